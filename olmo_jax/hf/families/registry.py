"""The architectures that can be read from or written to Hugging Face's format, in the order of preference."""

from olmo_jax.hf.families.ai2 import AI2_OLMO as AI2_OLMO
from olmo_jax.hf.families.gemma3 import GEMMA3
from olmo_jax.hf.families.gpt2 import GPT2
from olmo_jax.hf.families.gpt_neox import GPT_NEOX
from olmo_jax.hf.families.llama import LLAMA, MISTRAL, SMOLLM3
from olmo_jax.hf.families.olmo import OLMO as OLMO
from olmo_jax.hf.families.olmo import OLMO2, OLMO3
from olmo_jax.hf.families.qwen import QWEN2, QWEN3

# A model that several of them can express is written as the first of these.
FAMILIES = (OLMO, OLMO2, GPT_NEOX, AI2_OLMO, LLAMA, MISTRAL, QWEN2, QWEN3, OLMO3, SMOLLM3, GPT2, GEMMA3)
