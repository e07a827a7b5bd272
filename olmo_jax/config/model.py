"""What one decoder is made of: OLMo-1, OLMo-2, Pythia (GPT-NeoX), and what lies between them."""

import dataclasses

from geometry.norms import NORMS
from olmo_jax.config.field import BELOW_ONE, POSITIVE, POSITIVE_WHOLE, Role, at_least, choice, setting
from olmo_jax.config.validation import Settings, require


@dataclasses.dataclass(frozen=True)
class ModelConfig(Settings):
    """A decoder. The defaults are OLMo-1's block; presets.py has the published models."""

    vocab_size: int = setting(
        50280,
        Role.STATIC,
        "V, the tokens that the model can name; at least the tokenizer's.",
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
    n_layers: int = setting(4, Role.STATIC, "Blocks of the model.", bound=POSITIVE_WHOLE)
    n_heads: int = setting(
        8, Role.STATIC, "Heads of queries in a block, of D / n_heads dimensions each.", bound=POSITIVE_WHOLE
    )
    d_ff: int = setting(
        1024,
        Role.STATIC,
        "F, the hidden width of the MLP; OLMo-1's 4 D makes 16 D^2 parameters a layer.",
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
        '"float32" run in TF32, as is JAX\'s default.',
        bound=choice("float32", "bfloat16"),
    )
    n_kv_heads: int = setting(
        0,
        Role.STATIC,
        "Heads of keys and values, each read by n_heads / n_kv_heads heads of queries; 0: as many as n_heads.",
    )
    context_length: int = setting(
        2048,
        Role.STATIC,
        'The longest sequence that the model is for; "learned" has as many positions.',
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
        'Place of norms: "before" a sublayer reads the residual stream, or "after" it, on what it adds (OLMo-2). The '
        "norm of the final states stays.",
        bound=choice("before", "after"),
    )
    qk_norm: bool = setting(
        False,
        Role.STATIC,
        "Norm over all heads of queries, and of keys, before the rotary embedding (OLMo-2).",
    )
    clip_qkv: float = setting(
        0.0,
        Role.STATIC,
        "Queries, keys and values are cut to [-clip_qkv, clip_qkv] (OLMo-1 7B); 0 never cuts.",
        bound=at_least(0, "needs a positive number, or 0 for no clipping"),
    )
    parallel: bool = setting(
        False,
        Role.STATIC,
        "Attention and MLP both read the stream as it enters the block (GPT-NeoX), each through its own norm; else the "
        "MLP reads what attention left.",
    )
    mlp: str = setting(
        "swiglu",
        Role.STATIC,
        'Form of the MLP: "swiglu", silu(gate) * up, or "gelu", exact and without a gate.',
        bound=choice("swiglu", "gelu"),
    )
    attention_bias: bool = setting(False, Role.STATIC, "Attention's projections add a bias.")
    mlp_bias: bool = setting(False, Role.STATIC, "The MLP's projections add a bias.")
    positions: str = setting(
        "rotary",
        Role.STATIC,
        '"rotary", or "learned" vectors that are added to the embedding.',
        bound=choice("rotary", "learned"),
    )
    rotary_fraction: float = setting(
        1.0, Role.STATIC, "Share of a head's dimensions that the rotary embedding turns (Pythia: .25).", unit="share"
    )
    tied: bool = setting(False, Role.STATIC, "The embedding is the unembedding as well.")
    dropout: float = setting(
        0.0, Role.STATIC, "Dropout of the embedding and of what each sublayer adds, in training.", bound=BELOW_ONE
    )

    @property
    def padded_vocab_size(self) -> int:
        return -(-self.vocab_size // self.pad_vocab_to) * self.pad_vocab_to

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values, chosen or not."""
        return self.n_kv_heads or self.n_heads

    @property
    def rotary_width(self) -> int:
        """Dimensions of a head that are turned."""
        return int(self.d_head * self.rotary_fraction)

    def check_fields(self, at: str) -> None:
        require(
            self.d_model % self.n_heads == 0,
            f"{at}.n_heads",
            self.n_heads,
            f"doesn't divide {at}.d_model = {self.d_model}; choose a divisor",
        )
        require(
            0 <= self.n_kv_heads <= self.n_heads and self.n_heads % self.kv_heads == 0,
            f"{at}.n_kv_heads",
            self.n_kv_heads,
            f"doesn't divide {at}.n_heads = {self.n_heads}; choose a divisor, or 0 for as many",
        )
        if self.positions == "rotary":
            self._check_rotary(at)

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
            f"turns {self.rotary_width} of a head's {self.d_head} dimensions; needs an even number of them, at least 2",
        )


def parameter_count(config: ModelConfig) -> tuple[int, int]:
    """Return the parameters in all, and those without the embedding, learned positions and the unembedding."""
    c, wide = config, config.n_heads * config.d_head
    narrow = c.kv_heads * c.d_head
    attention = c.d_model * (wide + 2 * narrow) + wide * c.d_model
    attention += (wide + 2 * narrow + c.d_model) * c.attention_bias
    attention += c.qk_norm * (_norm_parameters(c, wide) + _norm_parameters(c, narrow))
    into = 2 if c.mlp == "swiglu" else 1
    mlp = (into + 1) * c.d_model * c.d_ff + (into * c.d_ff + c.d_model) * c.mlp_bias
    inner = c.n_layers * (attention + mlp + 2 * _norm_parameters(c, c.d_model)) + _norm_parameters(c, c.d_model)
    rows = c.padded_vocab_size * (1 if c.tied else 2) + c.context_length * (c.positions == "learned")
    return inner + rows * c.d_model, inner


def _norm_parameters(config: ModelConfig, width: int) -> int:
    return {"layer_norm": 0, "rms_norm": 1, "affine_layer_norm": 2}[config.norm] * width
