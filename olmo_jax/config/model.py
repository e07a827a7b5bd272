"""The architecture of a decoder: OLMo-1, OLMo-2, Pythia (GPT-NeoX), the families of hf/, and combinations of them."""

import dataclasses
import math
from typing import NamedTuple

from geometry.norms import NORMS
from olmo_jax.config.field import BELOW_ONE, POSITIVE, POSITIVE_WHOLE, Role, at_least, choice, each, setting
from olmo_jax.config.rope import RopeScaling
from olmo_jax.config.validation import Settings, require

_ATTENTION = ("full", "sliding", "unrotated")


class Layer(NamedTuple):
    """How the attention of one block may differ from that of others.

    window: tokens that a query attends to, up to and including its own; 0: all. rope_theta: base of the rotary
    frequencies; 0: queries and keys aren't rotated. scaling: how the frequencies are scaled.
    """

    window: int
    rope_theta: float
    scaling: RopeScaling


@dataclasses.dataclass(frozen=True)
class ModelConfig(Settings):
    """A decoder. The defaults are OLMo-1's block; presets.py has the published models."""

    vocab_size: int = setting(
        50280,
        Role.STATIC,
        "V, the number of tokens in the model's vocabulary; at least the tokenizer's.",
        bound=POSITIVE_WHOLE,
        unit="tokens",
    )
    pad_vocab_to: int = setting(
        128,
        Role.STATIC,
        "Rows of the embedding and unembedding are padded to a multiple of this (OLMo: 128).",
        bound=POSITIVE_WHOLE,
    )
    d_model: int = setting(256, Role.STATIC, "D, the width of the residual stream.", bound=POSITIVE_WHOLE)
    n_layers: int = setting(4, Role.STATIC, "Number of blocks.", bound=POSITIVE_WHOLE)
    n_heads: int = setting(
        8, Role.STATIC, "Query heads per block, of D / n_heads dimensions each (or head_width).", bound=POSITIVE_WHOLE
    )
    d_ff: int = setting(
        1024,
        Role.STATIC,
        "F, the hidden width of the MLP; OLMo-1's 4 D makes 16 D^2 parameters per layer.",
        bound=POSITIVE_WHOLE,
    )
    rope_theta: float = setting(10000.0, Role.STATIC, "Base of the rotary frequencies.", bound=POSITIVE)
    norm_eps: float = setting(1e-5, Role.STATIC, "Added to the variance, or the mean square, in norms.", bound=POSITIVE)
    init_std: float = setting(
        0.02,
        Role.STATIC,
        "Standard deviation of the truncated normal that parameters start from (see model.py).",
        bound=POSITIVE,
    )
    compute_dtype: str = setting(
        "float32",
        Role.STATIC,
        "Type of activations and matmuls; parameters, norms, softmax and loss are always float32. On a GPU, matmuls of "
        '"float32" run in TF32, JAX\'s default.',
        bound=choice("float32", "bfloat16"),
    )
    n_kv_heads: int = setting(
        0,
        Role.STATIC,
        "Key and value heads, each shared by n_heads / n_kv_heads query heads; 0: as many as n_heads.",
    )
    context_length: int = setting(
        2048,
        Role.STATIC,
        'The longest sequence that the model is meant for; with "learned" positions, also their number.',
        bound=POSITIVE_WHOLE,
        unit="tokens",
    )
    norm: str = setting(
        "layer_norm",
        Role.STATIC,
        'Kind of norm: "layer_norm" without parameters (OLMo-1), "affine_layer_norm" with scale and bias (GPT-NeoX) or '
        '"rms_norm" with a scale (OLMo-2).',
        bound=choice(*NORMS),
    )
    norm_at: str = setting(
        "before",
        Role.STATIC,
        'Place of norms: "before" a sublayer reads the residual stream, "after" it, on what it adds (OLMo-2), or '
        '"both" (Gemma-3). The norm of the final states is there in any case.',
        bound=choice("before", "after", "both"),
    )
    qk_norm: bool = setting(
        False,
        Role.STATIC,
        "Norm over all heads of queries, and of keys, before the rotary embedding (OLMo-2).",
    )
    clip_qkv: float = setting(
        0.0,
        Role.STATIC,
        "Queries, keys and values are clipped to [-clip_qkv, clip_qkv] (OLMo-1 7B); 0: no clipping.",
        bound=at_least(0, "needs a positive number, or 0 for no clipping"),
    )
    parallel: bool = setting(
        False,
        Role.STATIC,
        "Attention and MLP both read the stream as it enters the block (GPT-NeoX), each through its own norm; "
        "otherwise the MLP reads the stream after attention.",
    )
    mlp: str = setting(
        "swiglu",
        Role.STATIC,
        'Form of the MLP: "swiglu", silu(gate) * up; "geglu", gelu(gate) * up with the tanh approximation (Gemma); '
        '"gelu", exact and without a gate; "gelu_tanh", its tanh approximation (GPT-2).',
        bound=choice("swiglu", "geglu", "gelu", "gelu_tanh"),
    )
    attention_bias: bool = setting(False, Role.STATIC, "Attention's projections add a bias.")
    mlp_bias: bool = setting(False, Role.STATIC, "The MLP's projections add a bias.")
    positions: str = setting(
        "rotary",
        Role.STATIC,
        'Positions: "rotary", or "learned" vectors that are added to the embedding.',
        bound=choice("rotary", "learned"),
    )
    rotary_fraction: float = setting(
        1.0, Role.STATIC, "Share of a head's dimensions that the rotary embedding rotates (Pythia: .25).", unit="share"
    )
    tied: bool = setting(False, Role.STATIC, "The embedding also serves as the unembedding.")
    dropout: float = setting(
        0.0, Role.STATIC, "Dropout of the embedding and of what each sublayer adds, in training.", bound=BELOW_ONE
    )
    head_width: int = setting(
        0,
        Role.STATIC,
        "K, the dimensions of a head; 0: D / n_heads.",
        bound=at_least(0, "needs a positive whole number, or 0 for d_model / n_heads"),
    )
    qk_norm_by_head: bool = setting(
        False,
        Role.STATIC,
        "The norm of queries and keys acts on each head separately, with one scale for all heads (Qwen3, Gemma-3).",
    )
    out_bias: bool = setting(
        True,
        Role.STATIC,
        "With attention_bias, attention's output projection adds a bias too (Qwen2: only the others do).",
    )
    norm_plus_one: bool = setting(False, Role.STATIC, "Norms multiply by 1 + scale, and the scale starts at 0 (Gemma).")
    scaled_embedding: bool = setting(False, Role.STATIC, "Embeddings are multiplied by sqrt(D) (Gemma).")
    score_width: float = setting(
        0.0,
        Role.STATIC,
        "Attention's scores are divided by the square root of this; 0: K (Gemma-3's query_pre_attn_scalar).",
        bound=at_least(0, "needs a positive number, or 0 for the width of a head"),
    )
    attention_pattern: tuple[str, ...] = setting(
        (),
        Role.STATIC,
        'Attention of each block, repeated if there are more blocks: "full"; "sliding", over the last `window` tokens; '
        '"unrotated", full and without rotary embedding (SmolLM3). (): all full.',
        bound=each(choice(*_ATTENTION), f"needs names from {', '.join(_ATTENTION)}"),
    )
    window: int = setting(
        0,
        Role.STATIC,
        'Tokens that "sliding" attention reaches, including the query\'s own; 0 without such blocks.',
        bound=at_least(0, "needs a positive whole number, or 0 for no window"),
        unit="tokens",
    )
    sliding_rope_theta: float = setting(
        0.0,
        Role.STATIC,
        'Base of the rotary frequencies of "sliding" blocks, which are never scaled; 0: rope_theta.',
        bound=at_least(0, "needs a positive number, or 0 for rope_theta"),
    )
    rope_scaling: RopeScaling = RopeScaling()  # of blocks with "full" attention
    scaled_init: bool = setting(
        True,
        Role.STATIC,
        "The standard deviation at the start is init_std / sqrt(2 n_layers) in matrices that write to the residual "
        "stream, and at most .3 / sqrt(D) in the unembedding; False: init_std in all, as in OLMo's ladder.",
    )
    factored_head: bool = setting(
        False,
        Role.STATIC,
        "The unembedding is a product U P with P [D, D], as intervention.head_rank requires. P starts as the identity "
        "and stays so in runs without a head_rank, whose results are those of the usual head.",
    )

    @property
    def padded_vocab_size(self) -> int:
        return -(-self.vocab_size // self.pad_vocab_to) * self.pad_vocab_to

    @property
    def d_head(self) -> int:
        return self.head_width or self.d_model // self.n_heads

    @property
    def gated(self) -> bool:
        """Whether the MLP has a gate."""
        return self.mlp in ("swiglu", "geglu")

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The attention of each block."""
        theta = self.rope_theta if self.positions == "rotary" else 0.0
        sliding = theta and (self.sliding_rope_theta or theta)
        kinds = {
            "full": Layer(0, theta, self.rope_scaling),
            "sliding": Layer(self.window, sliding, RopeScaling()),
            "unrotated": Layer(0, 0.0, RopeScaling()),
        }
        pattern = self.attention_pattern or ("full",)
        return tuple(kinds[pattern[i % len(pattern)]] for i in range(self.n_layers))

    @property
    def alike(self) -> bool:
        """Whether all blocks attend in the same way, so that one compiled block can serve for all."""
        return len(set(self.layers)) == 1

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads, with 0 resolved."""
        return self.n_kv_heads or self.n_heads

    @property
    def rotary_width(self) -> int:
        """Number of dimensions of a head that are rotated."""
        return int(self.d_head * self.rotary_fraction)

    @property
    def residual_init_std(self) -> float:
        """Standard deviation at the start of the matrices that write to the residual stream."""
        return self.init_std / math.sqrt(2 * self.n_layers) if self.scaled_init else self.init_std

    @property
    def unembedding_init_std(self) -> float:
        """Standard deviation at the start of the unembedding, tied or not."""
        return min(self.init_std, 0.3 / math.sqrt(self.d_model)) if self.scaled_init else self.init_std

    def check_fields(self, at: str) -> None:
        require(
            self.head_width > 0 or self.d_model % self.n_heads == 0,
            f"{at}.n_heads",
            self.n_heads,
            f"doesn't divide {at}.d_model = {self.d_model}; choose a divisor, or set {at}.head_width",
        )
        require(
            0 <= self.n_kv_heads <= self.n_heads and self.n_heads % self.kv_heads == 0,
            f"{at}.n_kv_heads",
            self.n_kv_heads,
            f"doesn't divide {at}.n_heads = {self.n_heads}; choose a divisor, or 0 for as many",
        )
        if self.positions == "rotary":
            self._check_rotary(at)
        self._check_pattern(at)
        require(
            self.qk_norm or not self.qk_norm_by_head,
            f"{at}.qk_norm_by_head",
            self.qk_norm_by_head,
            f"changes {at}.qk_norm, which is off; set it too",
        )
        require(
            self.norm != "layer_norm" or not self.norm_plus_one,
            f"{at}.norm_plus_one",
            self.norm_plus_one,
            f"{at}.norm = 'layer_norm' has no scale; choose another norm",
        )
        require(
            not (self.factored_head and self.tied),
            f"{at}.factored_head",
            self.factored_head,
            f"divides the unembedding into two factors, and {at}.tied makes it the embedding; choose one of them",
        )

    def _check_pattern(self, at: str) -> None:
        pattern = self.attention_pattern
        require(
            len(pattern) <= self.n_layers,
            f"{at}.attention_pattern",
            pattern,
            f"names {len(pattern)} blocks, more than {at}.n_layers = {self.n_layers}; name at most that many",
        )
        require(
            ("sliding" in pattern) == (self.window > 0),
            f"{at}.window",
            self.window,
            f"needs a positive number if {at}.attention_pattern has 'sliding' blocks, and 0 if it has none",
        )
        require(
            not self.sliding_rope_theta or "sliding" in pattern,
            f"{at}.sliding_rope_theta",
            self.sliding_rope_theta,
            f"has no effect without 'sliding' blocks in {at}.attention_pattern; leave it out",
        )
        require(
            self.positions == "rotary" or self.rope_scaling.kind == "none",
            f"{at}.rope_scaling.kind",
            self.rope_scaling.kind,
            f"has no effect with {at}.positions = {self.positions!r}; leave it out",
        )

    def _check_rotary(self, at: str) -> None:
        if self.rotary_fraction == 1:
            require(
                self.d_head % 2 == 0,
                f"{at}.n_heads",
                self.n_heads,
                f"leaves heads of {self.d_head} dimensions; rotary embedding needs an even number",
            )
        require(
            0 < self.rotary_fraction <= 1 and self.rotary_width > 0 and self.rotary_width % 2 == 0,
            f"{at}.rotary_fraction",
            self.rotary_fraction,
            f"rotates {self.rotary_width} of a head's {self.d_head} dimensions; needs an even number, at least 2",
        )


def parameter_count(config: ModelConfig) -> tuple[int, int]:
    """Return the number of parameters in total, and without the embedding, learned positions and the unembedding."""
    c, wide = config, config.n_heads * config.d_head
    narrow = c.kv_heads * c.d_head
    attention = c.d_model * (wide + 2 * narrow) + wide * c.d_model
    attention += (wide + 2 * narrow + c.d_model * c.out_bias) * c.attention_bias
    normed = (c.d_head, c.d_head) if c.qk_norm_by_head else (wide, narrow)
    attention += c.qk_norm * sum(_norm_parameters(c, width) for width in normed)
    into = 2 if c.gated else 1
    mlp = (into + 1) * c.d_model * c.d_ff + (into * c.d_ff + c.d_model) * c.mlp_bias
    norms = (4 if c.norm_at == "both" else 2) * _norm_parameters(c, c.d_model)
    inner = c.n_layers * (attention + mlp + norms) + _norm_parameters(c, c.d_model)
    rows = c.padded_vocab_size * (1 if c.tied else 2) + c.context_length * (c.positions == "learned")
    return inner + rows * c.d_model + c.factored_head * c.d_model**2, inner


def head_count(config: ModelConfig) -> int:
    """Return the number of parameters without embedding and learned positions, but with an untied unembedding.

    This is OLMo's `num_params(include_embedding=False)`, by which public suites of small models name their sizes.
    """
    c, (total, _) = config, parameter_count(config)
    return total - (c.padded_vocab_size + c.context_length * (c.positions == "learned")) * c.d_model


def _norm_parameters(config: ModelConfig, width: int) -> int:
    return {"layer_norm": 0, "rms_norm": 1, "affine_layer_norm": 2}[config.norm] * width
