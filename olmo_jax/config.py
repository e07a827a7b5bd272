"""The configuration of one run: frozen dataclasses, checked once, at the start.

At the edge a configuration is an ml_collections ConfigDict (`to_config_dict`), so that every field can be overridden
on the command line. Inside it is a frozen dataclass (`from_config_dict`): what isn't a field doesn't exist.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that can't be run; the message names the key, the value and the remedy."""


def require(condition: bool, key: str, value: object, remedy: str) -> None:
    """Raises ConfigError unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{key} = {value!r}: {remedy}")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """An OLMo-1 decoder: non-parametric LayerNorm, SwiGLU, RoPE, no biases, untied.

    Attributes:
      vocab_size: V, the tokens that the model can name; at least the tokenizer's.
      pad_vocab_to: rows of the embedding and unembedding are padded to a multiple of this (OLMo: 128).
      d_model: D. n_layers, n_heads: heads have D / n_heads dimensions each, an even number (RoPE turns pairs).
      d_ff: F, the hidden width of the SwiGLU; OLMo-1's 4 D makes 16 D^2 parameters a layer.
      rope_theta: base of the rotary frequencies. norm_eps: added to the variance in LayerNorm.
      init_std: standard deviation of the truncated normal that parameters start from (see model.py).
      compute_dtype: "float32" or "bfloat16", of activations and matmuls; parameters, norms, softmax and loss are
        always float32. On a GPU, matmuls of "float32" run in TF32, as is JAX's default.
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

    @property
    def padded_vocab_size(self) -> int:
        return math.ceil(self.vocab_size / self.pad_vocab_to) * self.pad_vocab_to

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    def check(self, at: str) -> None:
        for name in ("vocab_size", "pad_vocab_to", "d_model", "n_layers", "n_heads", "d_ff"):
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
            self.d_head % 2 == 0,
            f"{at}.n_heads",
            self.n_heads,
            f"leaves heads of {self.d_head} dimensions; rotary embedding needs an even number",
        )
        _one_of(self.compute_dtype, ("float32", "bfloat16"), f"{at}.compute_dtype")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, gradient clipping and the learning-rate schedule.

    Attributes:
      learning_rate: the peak. weight_decay: decoupled, multiplied by the learning rate.
      beta1, beta2, eps: Adam's. clip_norm: the gradient's global norm is cut to this; 0 never cuts.
      warmup_fraction: share of the steps over which the rate rises linearly.
      warmup_from: the rate rises from this share of the peak (OLMo: .1).
      final_fraction: the rate ends at this share of the peak.
      schedule: "cosine" (OLMo's) or "linear", the shape of the way down.
      decay_embeddings: whether weight decay reaches the embedding and the unembedding.
      z_loss: weight of the squared log-partition added to the loss; 0 for none.
    """

    learning_rate: float = 3e-4
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip_norm: float = 1.0
    warmup_fraction: float = 0.02
    warmup_from: float = 0.1
    final_fraction: float = 0.1
    schedule: str = "cosine"
    decay_embeddings: bool = True
    z_loss: float = 0.0

    def check(self, at: str) -> None:
        require(0 < self.learning_rate < math.inf, f"{at}.learning_rate", self.learning_rate, "needs a positive number")
        require(0 < self.eps < math.inf, f"{at}.eps", self.eps, "needs a positive number")
        for name in ("weight_decay", "clip_norm", "z_loss"):
            require(
                0 <= getattr(self, name) < math.inf, f"{at}.{name}", getattr(self, name), "needs a number of 0 or more"
            )
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"{at}.{name}", getattr(self, name), "needs a number in [0, 1)")
        for name in ("warmup_fraction", "warmup_from", "final_fraction"):
            require(0 <= getattr(self, name) <= 1, f"{at}.{name}", getattr(self, name), "needs a number in [0, 1]")
        _one_of(self.schedule, ("cosine", "linear"), f"{at}.schedule")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What text the run sees, and in what portions.

    Attributes:
      name: folder of the prepared data below the root; runs of a sweep with different data need different names.
      root: where prepared data lie; "" is WORKDIR/data. A place, so no part of a run's identity.
      corpus: "python_packages", "text_files", or the name of a TFDS data set with `text` that lies in `tfds_dir`.
      tfds_dir: TFDS data directory of a data set that is there already; a place, no part of the identity.
      files: globs of the user's .txt, .jsonl, .jsonl.gz, .jsonl.zst and .parquet (corpus "text_files").
      text_field, domain_field: fields of .jsonl, .parquet or TFDS examples; no domain field: one domain, "text".
      max_megabytes: cap on the text of each kind that "python_packages" takes: training prose, held-out prose, code.
      tokenizer: "bpe" trains a byte-level BPE of `bpe_vocab_size` on the training documents; else a tokenizer.json.
      eos_token: the tokenizer's token that ends, and in evaluation begins, a document.
      train_domains: domains that training draws from; () takes all.
      validation_fraction: share of documents, by hash, that training never sees.
      sequence_length: L. batch_size: sequences a step.
    """

    name: str = "main"
    root: str = ""
    corpus: str = "python_packages"
    tfds_dir: str = ""
    files: tuple[str, ...] = ()
    text_field: str = "text"
    domain_field: str = ""
    max_megabytes: float = 24.0
    tokenizer: str = "bpe"
    bpe_vocab_size: int = 4096
    eos_token: str = "<|endoftext|>"
    train_domains: tuple[str, ...] = ()
    validation_fraction: float = 0.1
    sequence_length: int = 1024
    batch_size: int = 128

    def check(self, at: str) -> None:
        for name in ("name", "corpus", "text_field", "tokenizer", "eos_token"):
            require(bool(getattr(self, name)), f"{at}.{name}", getattr(self, name), "must not be empty")
        require(
            "/" not in self.name and not self.name.startswith("."),
            f"{at}.name",
            self.name,
            "is the name of a folder: no '/', no leading '.'",
        )
        for name in ("batch_size", "sequence_length"):
            require(getattr(self, name) > 0, f"{at}.{name}", getattr(self, name), "needs a positive whole number")
        require(
            self.bpe_vocab_size >= 257,
            f"{at}.bpe_vocab_size",
            self.bpe_vocab_size,
            "a byte-level BPE has 256 bytes and the end-of-text token, so at least 257",
        )
        require(self.max_megabytes > 0, f"{at}.max_megabytes", self.max_megabytes, "needs a positive number")
        require(
            0 < self.validation_fraction < 1,
            f"{at}.validation_fraction",
            self.validation_fraction,
            "needs a number between 0 and 1",
        )
        require(
            self.corpus != "text_files" or bool(self.files),
            f"{at}.files",
            self.files,
            "corpus 'text_files' needs at least one path or glob",
        )


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """Geometry measured in the loop.

    Attributes:
      every: steps between two probes, counted from 0; 0 never probes. Otherwise checkpoints are probed too.
      documents: fixed validation documents whose last token's final states are H.
      document_tokens: tokens of each document that are read.
    """

    every: int = 100
    documents: int = 128
    document_tokens: int = 64

    def check(self, at: str) -> None:
        require(self.every >= 0, f"{at}.every", self.every, "needs 0 (never) or a positive number of steps")
        for name in ("documents", "document_tokens"):
            require(getattr(self, name) > 1, f"{at}.{name}", getattr(self, name), "needs at least 2")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the stack is written. The last step of every member is always written.

    Attributes:
      every: steps between two checkpoints; 0 for none but the others.
      log_spaced: this many checkpoints at steps in geometric progression from 1 to the last, for each budget of a
        cohort; 0 for none.
    """

    every: int = 0
    log_spaced: int = 0

    def check(self, at: str) -> None:
        for name in ("every", "log_spaced"):
            require(getattr(self, name) >= 0, f"{at}.{name}", getattr(self, name), "needs a number of 0 or more")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh ("member", "data", "model"); 0 members: as many as there are to use."""

    member: int = 0
    data: int = 1
    model: int = 1

    def check(self, at: str) -> None:
        require(self.member >= 0, f"{at}.member", self.member, "needs a number of devices, or 0 to choose")
        for name in ("data", "model"):
            require(getattr(self, name) > 0, f"{at}.{name}", getattr(self, name), "needs a positive number of devices")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One run.

    Attributes:
      name: the readable part of the run's id.
      tokens: the budget; tokens // (batch_size * sequence_length) steps are taken.
      init_seed: of the parameters. data_seed: of the order of the windows.
      tensorboard: also write TensorBoard event files.
      mapping: how members go through the device: "vmap" all at once, which feeds an accelerator's many units; "map" one
        after another, which a CPU's caches like better; "auto" by backend. Results agree within rounding.
    """

    name: str = "run"
    tokens: int = 8_000_000_000
    init_seed: int = 0
    data_seed: int = 0
    tensorboard: bool = False
    mapping: str = "auto"
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    data: DataConfig = DataConfig()
    probe: ProbeConfig = ProbeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    mesh: MeshConfig = MeshConfig()

    @property
    def tokens_per_step(self) -> int:
        return self.data.batch_size * self.data.sequence_length

    @property
    def total_steps(self) -> int:
        return self.tokens // self.tokens_per_step

    @property
    def warmup_steps(self) -> int:
        return round(self.optimizer.warmup_fraction * self.total_steps)

    def check(self, at: str) -> None:
        require(
            bool(self.name) and "/" not in self.name and not self.name.startswith("."),
            f"{at}.name",
            self.name,
            "begins the name of a folder: not empty, no '/', no leading '.'",
        )
        require(
            self.total_steps >= 1,
            f"{at}.tokens",
            self.tokens,
            f"is less than one step, {at}.data.batch_size x sequence_length = {self.tokens_per_step} tokens",
        )
        _one_of(self.mapping, ("auto", "vmap", "map"), f"{at}.mapping")
        for name in ("init_seed", "data_seed"):
            require(
                0 <= getattr(self, name) < 2**32, f"{at}.{name}", getattr(self, name), "needs a number in [0, 2^32)"
            )
        if self.data.tokenizer == "bpe":
            require(
                self.data.bpe_vocab_size <= self.model.vocab_size,
                f"{at}.model.vocab_size",
                self.model.vocab_size,
                f"is smaller than {at}.data.bpe_vocab_size = {self.data.bpe_vocab_size}; tokens would lie outside the "
                "vocabulary",
            )


def to_config_dict(config: Any) -> ConfigDict:
    """The ml_collections form of a dataclass configuration, nested as it is."""
    result = ConfigDict()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        result[field.name] = to_config_dict(value) if dataclasses.is_dataclass(value) else value
    return result


def from_config_dict(kind: type[T], values: Mapping[str, Any] | ConfigDict, at: str = "config") -> T:
    """Builds the frozen, checked dataclass `kind` from a (nested) mapping.

    Fields that `values` lacks keep their defaults. Raises ConfigError for an unknown key (naming the nearest one), a
    value of the wrong type, and whatever `kind.check` finds.
    """
    fields = {f.name: t for f, t in _typed_fields(kind)}
    built = {}
    for key, value in values.items():
        if key not in fields:
            raise ConfigError(unknown_key(at, key, fields))
        built[key] = _convert(fields[key], value, f"{at}.{key}")
    config = kind(**built)
    config.check(at)  # type: ignore[attr-defined]
    return config


def unknown_key(at: str, key: str, known: typing.Iterable[str]) -> str:
    """The message for a key that isn't a field: where, what, and the nearest name."""
    known = list(known)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(sorted(known))}"
    return f"{at} has no key '{key}'; {hint}"


def _typed_fields(kind: type) -> list[tuple[dataclasses.Field, Any]]:
    hints = typing.get_type_hints(kind)
    return [(f, hints[f.name]) for f in dataclasses.fields(kind)]


def _convert(kind: Any, value: Any, at: str) -> Any:
    if dataclasses.is_dataclass(kind):
        require(isinstance(value, Mapping | ConfigDict), at, value, "needs a section with keys of its own")
        return from_config_dict(kind, value, at)  # type: ignore[arg-type]
    if isinstance(kind, types.GenericAlias):
        require(isinstance(value, tuple | list), at, value, "needs a tuple, such as ('a', 'b')")
        item = typing.get_args(kind)[0]
        return tuple(_convert(item, v, f"{at}[{i}]") for i, v in enumerate(value))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    right = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    require(right, at, value, f"needs a value of type {kind.__name__}, not {type(value).__name__}")
    if kind is float:
        require(math.isfinite(value), at, value, "needs a finite number")
    return value


def _one_of(value: str, known: tuple[str, ...], key: str) -> None:
    require(value in known, key, value, f"needs one of {', '.join(known)}")
