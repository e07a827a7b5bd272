"""The configuration of one run: frozen dataclasses, checked once, at the start (see validation.py)."""

import dataclasses
import math

from olmo_jax.config.compute import MAPPINGS, ComputeConfig
from olmo_jax.config.data import DataConfig
from olmo_jax.config.model import ModelConfig
from olmo_jax.config.probe import ProbeConfig
from olmo_jax.config.validation import folder_name, one_of, require

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
      init_seed: of the parameters. data_seed: of the order of the windows, and of dropout; and of
        which equations are trained on.
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
        folder_name(self.name, f"{at}.name")
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
        require(
            not (self.data.is_arithmetic and self.probe.reads_states),
            f"{at}.probe.{'final_states' if self.probe.final_states.metrics else 'layers'}.metrics",
            (self.probe.final_states.metrics or self.probe.layers.metrics),
            f"is measured on documents, and equations are none; make it () and name the metrics in {at}.probe.texts",
        )
        one_of(self.mapping, ("auto", *MAPPINGS), f"{at}.mapping")
        for name in ("init_seed", "data_seed"):
            require(
                0 <= getattr(self, name) < 2**32, f"{at}.{name}", getattr(self, name), "needs a number in [0, 2^32)"
            )
        if self.data.tokenizer == "bpe" and not self.data.is_arithmetic:
            require(
                self.data.bpe_vocab_size <= self.model.vocab_size,
                f"{at}.model.vocab_size",
                self.model.vocab_size,
                f"is smaller than {at}.data.bpe_vocab_size = {self.data.bpe_vocab_size}; tokens would lie outside the "
                "vocabulary",
            )
