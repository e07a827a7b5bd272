"""Import and export of Hugging Face folders: config.json, safetensors and tokenizer.json, without torch or pickle."""

from olmo_jax.hf.drift import first_drift as first_drift
from olmo_jax.hf.reading import Head as Head
from olmo_jax.hf.reading import check_checkpoint as check_checkpoint
from olmo_jax.hf.reading import import_checkpoint as import_checkpoint
from olmo_jax.hf.reading import read_head as read_head
from olmo_jax.hf.writing import export_checkpoint as export_checkpoint
