"""What one decoder is made of: OLMo-1, OLMo-2, Pythia (GPT-NeoX), and what lies between them."""

import dataclasses

from geometry.gauge import NORMS
from olmo_jax.config.validation import one_of, require


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder. The defaults are OLMo-1's block; presets.py has the published models.

    Attributes:
      vocab_size: V, the tokens that the model can name; at least the tokenizer's.
      pad_vocab_to: rows of the embedding and unembedding are padded to a multiple of this (OLMo: 128).
      d_model: D. n_layers, n_heads: heads have D / n_heads dimensions each.
      d_ff: F, the hidden width of the MLP; OLMo-1's 4 D makes 16 D^2 parameters a layer.
      rope_theta: base of the rotary frequencies. norm_eps: added to the variance, or the mean square, in norms.
      init_std: standard deviation of the truncated normal that parameters start from (see model.py).
      compute_dtype: "float32" or "bfloat16", of activations and matmuls; parameters, norms, softmax and loss are
        always float32. On a GPU, matmuls of "float32" run in TF32, as is JAX's default.
      n_kv_heads: heads of keys and values, each read by n_heads / n_kv_heads heads of queries; 0: as many as n_heads.
      context_length: the longest sequence the model is for; as many positions has "learned".
      norm: "layer_norm" without parameters (OLMo-1), "affine_layer_norm" with scale and bias (GPT-NeoX) or "rms_norm"
        with a scale (OLMo-2): the names of geometry.gauge.
      norm_at: "before" a sublayer reads the residual stream, or "after" it, on what it adds (OLMo-2). The norm of the
        final states stays.
      qk_norm: norm over all heads of queries, and of keys, before the rotary embedding (OLMo-2).
      clip_qkv: queries, keys and values are cut to [-clip_qkv, clip_qkv] (OLMo-1 7B); 0 never cuts.
      parallel: attention and MLP both read the stream as it enters the block (GPT-NeoX), each through its own norm;
        else the MLP reads what attention left.
      mlp: "swiglu", silu(gate) * up, or "gelu", exact and without a gate.
      attention_bias, mlp_bias: whether the projections add a bias.
      positions: "rotary", or "learned" vectors that are added to the embedding.
      rotary_fraction: share of a head's dimensions that the rotary embedding turns (Pythia: .25).
      tied: the embedding is the unembedding as well.
      dropout: of the embedding and of what each sublayer adds, in training.
    """

    vocab_size: int = 50280
    pad_vocab_to: int = 128
    d_model: int = 256
    n_layers: int = 4
    n_heads: int = 8
    d_ff: int = 1024
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    init_std: float = 0.02
    compute_dtype: str = "float32"
    n_kv_heads: int = 0
    context_length: int = 2048
    norm: str = "layer_norm"
    norm_at: str = "before"
    qk_norm: bool = False
    clip_qkv: float = 0.0
    parallel: bool = False
    mlp: str = "swiglu"
    attention_bias: bool = False
    mlp_bias: bool = False
    positions: str = "rotary"
    rotary_fraction: float = 1.0
    tied: bool = False
    dropout: float = 0.0

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

    def check(self, at: str) -> None:
        for name in ("vocab_size", "pad_vocab_to", "d_model", "n_layers", "n_heads", "d_ff", "context_length"):
            require(getattr(self, name) > 0, f"{at}.{name}", getattr(self, name), "needs a positive whole number")
        for name in ("rope_theta", "norm_eps", "init_std"):
            require(getattr(self, name) > 0, f"{at}.{name}", getattr(self, name), "needs a positive number")
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
        one_of(self.norm, NORMS, f"{at}.norm")
        one_of(self.norm_at, ("before", "after"), f"{at}.norm_at")
        one_of(self.mlp, ("swiglu", "gelu"), f"{at}.mlp")
        one_of(self.positions, ("rotary", "learned"), f"{at}.positions")
        one_of(self.compute_dtype, ("float32", "bfloat16"), f"{at}.compute_dtype")
        require(self.clip_qkv >= 0, f"{at}.clip_qkv", self.clip_qkv, "needs a positive number, or 0 for no clipping")
        require(0 <= self.dropout < 1, f"{at}.dropout", self.dropout, "needs a number in [0, 1)")
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
