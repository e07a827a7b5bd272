"""The configuration of one run: frozen dataclasses, checked once, at the start (see checked.py)."""

import dataclasses
import math
import re

from olmo_jax.checked import ConfigError as ConfigError
from olmo_jax.checked import from_config_dict as from_config_dict
from olmo_jax.checked import one_of, require
from olmo_jax.checked import to_config_dict as to_config_dict
from olmo_jax.checked import unknown_key as unknown_key
from olmo_jax.compute import ComputeConfig as ComputeConfig
from olmo_jax.model_config import ModelConfig as ModelConfig

SCHEDULES = ("cosine", "linear")


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
      decay_embeddings: whether weight decay reaches the embedding, the unembedding and learned positions.
      decay_norms: whether it reaches what isn't a matrix, the scales of norms and biases.
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
    decay_norms: bool = True
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
        one_of(self.schedule, SCHEDULES, f"{at}.schedule")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What text the run sees, and in what portions.

    Attributes:
      name: folder of the prepared data below the root; runs of a sweep with different data need different names.
      root: where prepared data lie; "" is WORKDIR/data. A place, so no part of a run's identity.
      corpus: "python_packages"; "debian_prose", manuals, dictionaries and books out of Debian packages (fetched with
        apt-get, 160 MB); "olmo_tasks", OLMo's evaluation tasks as text (fetched with pip, 145 MB); several of these
        joined by "+"; "text_files"; or the name of a TFDS data set with `text` that lies in `tfds_dir`.
      tfds_dir: TFDS data directory of a data set that is there already; a place, no part of the identity.
      files: globs of the user's .txt, .jsonl, .jsonl.gz, .jsonl.zst and .parquet (corpus "text_files").
      text_field, domain_field: fields of .jsonl, .parquet or TFDS examples; no domain field: one domain, "text".
      max_megabytes: cap, in 1e6 bytes, on the text of each domain of "debian_prose" and "olmo_tasks", and of each kind
        that "python_packages" takes: training prose, held-out prose, code.
      tokenizer: "bpe" trains a byte-level BPE of `bpe_vocab_size` on the training documents; "olmo" is OLMo-1's (50280
        tokens) and "olmo2" OLMo-2's (100278), fetched with pip; else the path of a tokenizer.json, with a "/" in it or
        ".json" at its end.
      eos_token: the tokenizer's token that ends, and in evaluation begins, a document.
      train_domains: domains that training draws from; () takes all.
      validation_fraction: share of documents, by hash, that training never sees.
      sequence_length: L. batch_size: sequences a step.
      max_epochs: a budget that passes the training tokens more often than this is refused; no part of the identity.
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
    max_epochs: float = 1.0

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
        for name in ("max_megabytes", "max_epochs"):
            require(getattr(self, name) > 0, f"{at}.{name}", getattr(self, name), "needs a positive number")
        require(
            self.tokenizer in ("bpe", "olmo", "olmo2") or "/" in self.tokenizer or self.tokenizer.endswith(".json"),
            f"{at}.tokenizer",
            self.tokenizer,
            "is none of 'bpe', 'olmo' and 'olmo2', nor a path: that has a '/' or ends in .json",
        )
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
class TargetConfig:
    """What is measured of a target of the probe.

    Attributes:
      metrics: names registered in geometry.probe; () leaves the target out.
      every: steps between two measurements, counted from 0; 0: as the probe's `every` says.
      centred: measure the target less its mean row too, as `<target>_centred`.
      spectrum: beside the metrics, singular values at places 1, 2, 3, 4, 6, 8, 12 and so on, as `<target>_spectrum`.
    """

    metrics: tuple[str, ...] = ()
    every: int = 0
    centred: bool = False
    spectrum: bool = False

    def check(self, at: str) -> None:
        require(self.every >= 0, f"{at}.every", self.every, "needs 0 (as the probe) or a positive number of steps")


@dataclasses.dataclass(frozen=True)
class ParametersConfig(TargetConfig):
    """The matrices whose path, such as blocks_0/mlp/up, holds the regular expression `pattern`; a target each."""

    pattern: str = ""

    def check(self, at: str) -> None:
        super().check(at)
        require(
            not self.metrics or bool(self.pattern),
            f"{at}.pattern",
            self.pattern,
            f"says which parameters {at}.metrics are of, such as 'mlp/(up|down)$'",
        )
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ConfigError(f"{at}.pattern = {self.pattern!r}: is no regular expression: {error}") from error


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """Geometry measured in the loop: at step 0, every so many steps, and at every checkpoint.

    Attributes:
      every: steps between two measurements, counted from 0, of targets that say nothing else; 0 never measures them.
      unembedding: W without the rows that pad the vocabulary; raw, and as `unembedding_gauge_fixed` less what the
        logits can't see. embedding: likewise without padding, raw alone. parameters: other matrices, by path.
      final_states: states after the final norm. layers: states after each block, as `layer_0`, `layer_1` and so on.
      documents: fixed validation documents, after a BOS, in each of `sets` disjoint sets whose states are measured.
      sets: the mean over them is reported and, as `<target>_spread`, the standard deviation.
      document_tokens: tokens of each document that are read, BOS included.
      tokens: "last" takes the state of each document's last token (paper A's H); "all" those of all tokens but BOS and
        padding; "sampled" `sampled_tokens` of these, always the same.
      sampled_tokens: of each set.
      neighbors: size L of the neighbourhoods of local dimension (paper B: 128).
    """

    every: int = 100
    unembedding: TargetConfig = TargetConfig(
        metrics=("effective_rank", "effective_rank_percent", "stable_rank", "mean_cosine", "partition_isotropy"),
        spectrum=True,
    )
    embedding: TargetConfig = TargetConfig()
    parameters: ParametersConfig = ParametersConfig()
    final_states: TargetConfig = TargetConfig(
        metrics=("effective_rank", "effective_rank_percent", "mean_cosine", "isoscore", "points", "rank_cap")
    )
    layers: TargetConfig = TargetConfig()
    documents: int = 128
    sets: int = 3
    document_tokens: int = 64
    tokens: str = "last"
    sampled_tokens: int = 1024
    neighbors: int = 128

    @property
    def reads_states(self) -> bool:
        """Whether anything is measured of states, so that documents are read."""
        return any(self.interval(target) and target.metrics for target in (self.final_states, self.layers))

    def interval(self, target: TargetConfig) -> int:
        """Steps between two measurements of a target; 0 for never."""
        return target.every or self.every

    def check(self, at: str) -> None:
        require(self.every >= 0, f"{at}.every", self.every, "needs 0 (never) or a positive number of steps")
        for name in ("documents", "document_tokens", "sampled_tokens"):
            require(getattr(self, name) > 1, f"{at}.{name}", getattr(self, name), "needs at least 2")
        require(self.sets > 0, f"{at}.sets", self.sets, "needs at least 1")
        require(self.neighbors > 2, f"{at}.neighbors", self.neighbors, "needs at least 3")
        one_of(self.tokens, ("last", "sampled", "all"), f"{at}.tokens")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the stack is written. The last step of every member is always written.

    Attributes:
      every: steps between two checkpoints; 0 for none but the others.
      log_spaced: this many checkpoints at steps in geometric progression from 1 to the last, for each budget of a
        stack (a cohort, or its part); 0 for none.
    """

    every: int = 0
    log_spaced: int = 0

    def check(self, at: str) -> None:
        for name in ("every", "log_spaced"):
            require(getattr(self, name) >= 0, f"{at}.{name}", getattr(self, name), "needs a number of 0 or more")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh ("member", "data", "model"); 0 members: as many as there are to use.

    Attributes:
      fsdp: parameters and moments are cut over "data" as well and gathered where they are used, matrix by matrix
        (fully sharded data parallelism), for a model that one device can't hold.
    """

    member: int = 0
    data: int = 1
    model: int = 1
    fsdp: bool = False

    def check(self, at: str) -> None:
        require(self.member >= 0, f"{at}.member", self.member, "needs a number of devices, or 0 to choose")
        for name in ("data", "model"):
            require(getattr(self, name) > 0, f"{at}.{name}", getattr(self, name), "needs a positive number of devices")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One run.

    Attributes:
      name: the readable part of the run's id.
      imported: the architecture that the parameters were read from, for a run that `olmo-jax import` made; such a run
        isn't trained here, and of its optimiser, batch and budget nothing is known.
      tokens: the budget; tokens // (batch_size * sequence_length) steps are taken.
      init_seed: of the parameters. data_seed: of the order of the windows, and of dropout.
      tensorboard: also write TensorBoard event files. wandb: also log to this project of Weights & Biases; "" for no.
      mapping: how members go through the device: "vmap" all at once, which feeds an accelerator's many units; "map" one
        after another, which a CPU's caches like better; "auto" by backend. Results agree within rounding.
    """

    name: str = "run"
    tokens: int = 8_000_000_000
    init_seed: int = 0
    data_seed: int = 0
    tensorboard: bool = False
    wandb: str = ""
    mapping: str = "auto"
    imported: str = ""
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    data: DataConfig = DataConfig()
    probe: ProbeConfig = ProbeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    mesh: MeshConfig = MeshConfig()
    compute: ComputeConfig = ComputeConfig()

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
            self.total_steps >= 1 or bool(self.imported),  # a publisher's step 0 may be all that there is
            f"{at}.tokens",
            self.tokens,
            f"is less than one step, {at}.data.batch_size x sequence_length = {self.tokens_per_step} tokens",
        )
        require(
            self.total_steps < 2**31,
            f"{at}.tokens",
            self.tokens,
            f"is {self.total_steps} steps of {self.tokens_per_step} tokens; fewer than 2^31 can be counted",
        )
        require(
            self.data.sequence_length <= self.model.context_length,
            f"{at}.model.context_length",
            self.model.context_length,
            f"is less than {at}.data.sequence_length = {self.data.sequence_length}; raise it, or lower that",
        )
        one_of(self.mapping, ("auto", "vmap", "map"), f"{at}.mapping")
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
