"""The configuration of one run: frozen dataclasses, checked once, at the start (see validation.py)."""

import dataclasses

from olmo_jax.config.branch import BranchConfig, check_branch
from olmo_jax.config.compute import MAPPINGS, ComputeConfig
from olmo_jax.config.data import DataConfig
from olmo_jax.config.field import (
    BELOW_ONE,
    NOT_NEGATIVE,
    POSITIVE,
    POSITIVE_WHOLE,
    SEED,
    SHARE,
    Bound,
    Role,
    at_least,
    choice,
    each,
    setting,
)
from olmo_jax.config.intervention import InterventionConfig, check_intervention
from olmo_jax.config.model import ModelConfig
from olmo_jax.config.probe import ProbeConfig
from olmo_jax.config.validation import Settings, folder_name, require

OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("cosine", "linear", "wsd")
DECAY_SHAPES = ("linear", "sqrt")
_DEVICES = Bound("> 0", "needs a positive number of devices", lambda count: count > 0)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Settings):
    """The optimiser, gradient clipping and the learning-rate schedule."""

    name: str = setting(
        "adamw",
        Role.STATIC,
        'The update rule: "adamw", or "muon" for the matrices of the blocks and AdamW for everything else. Muon\'s '
        "updates are scaled to the size of AdamW's, so that both take the same learning rates and weight decays.",
        bound=choice(*OPTIMIZERS),
    )

    learning_rate: float = setting(3e-4, Role.TRACED, "Peak of the learning rate.", bound=POSITIVE)
    weight_decay: float = setting(
        0.1, Role.TRACED, "Decoupled weight decay, multiplied by the learning rate.", bound=NOT_NEGATIVE
    )
    beta1: float = setting(0.9, Role.TRACED, "Adam's decay of the first moment.", bound=BELOW_ONE)
    beta2: float = setting(0.95, Role.TRACED, "Adam's decay of the second moment.", bound=BELOW_ONE)
    eps: float = setting(1e-8, Role.TRACED, "Adam's epsilon.", bound=POSITIVE)
    clip_norm: float = setting(
        1.0, Role.TRACED, "The gradient's global norm is clipped to this; 0: no clipping.", bound=NOT_NEGATIVE
    )
    warmup_fraction: float = setting(
        0.02, Role.TRACED, "Share of the steps over which the rate rises linearly.", bound=SHARE, unit="share"
    )
    warmup_from: float = setting(
        0.1, Role.TRACED, "Share of the peak that the rate rises from (OLMo: .1).", bound=SHARE, unit="share"
    )
    final_fraction: float = setting(
        0.1, Role.TRACED, "Share of the peak that the rate ends at.", bound=SHARE, unit="share"
    )
    schedule: str = setting(
        "cosine",
        Role.TRACED,
        'Shape of the decay from the peak: "cosine" (OLMo\'s), "linear", or "wsd" (warm-up, stable, decay), which '
        "stays at the peak until the last decay_fraction of the steps.",
        bound=choice(*SCHEDULES),
    )
    decay_fraction: float = setting(
        0.1,
        Role.TRACED,
        'Share of all steps over which the rate of "wsd" decays, at the end; 0: it stays at the peak.',
        bound=SHARE,
        unit="share",
    )
    decay_shape: str = setting(
        "linear",
        Role.TRACED,
        'How the rate of "wsd" decays: "linear", or "sqrt" as 1 - sqrt(x), with x the share of the decay that is done.',
        bound=choice(*DECAY_SHAPES),
    )
    sam_rho: float = setting(
        0.0,
        Role.TRACED,
        "Sharpness-aware minimisation: the gradient is that at the parameters plus this times the gradient's direction "
        "(of norm 1 over all parameters), for which each step computes a second gradient. 0: not used.",
        bound=NOT_NEGATIVE,
    )
    embedding_rate: float = setting(
        1.0,
        Role.TRACED,
        "Factor of the learning rate of the embedding and of learned positions, which their weight decay is multiplied "
        "by too; the unembedding has intervention.head_rate.",
        bound=NOT_NEGATIVE,
    )
    block_rate: float = setting(
        1.0,
        Role.TRACED,
        "Factor of the learning rate of the blocks and the final norm, which their weight decay is multiplied by too.",
        bound=NOT_NEGATIVE,
    )
    muon_beta: float = setting(0.95, Role.TRACED, "Muon's decay of the momentum.", bound=BELOW_ONE)
    decay_embeddings: bool = setting(
        True, Role.STATIC, "Weight decay applies to the embedding, the unembedding and learned positions."
    )
    decay_norms: bool = setting(
        True, Role.STATIC, "Weight decay applies to what isn't a matrix: the scales of norms, and biases."
    )
    z_loss: float = setting(
        0.0,
        Role.STATIC,
        "Weight of the squared log-partition added to the loss; 0 for none.",
        bound=NOT_NEGATIVE,
    )

    def check_fields(self, at: str) -> None:
        # What would silently do nothing is refused.
        for key, needed, value in (
            ("decay_fraction", "schedule", "wsd"),
            ("decay_shape", "schedule", "wsd"),
            ("muon_beta", "name", "muon"),
        ):
            require(
                getattr(self, needed) == value or getattr(self, key) == _OPTIMIZER_DEFAULTS[key],
                f"{at}.{key}",
                getattr(self, key),
                f"has no effect without {at}.{needed} = {value!r}; set that, or leave this out",
            )


_OPTIMIZER_DEFAULTS = {field.name: field.default for field in dataclasses.fields(OptimizerConfig)}


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Settings):
    """When checkpoints are written. That of the last step of every member is always written."""

    every: int = setting(
        0,
        Role.OBSERVATION,
        "Steps between two checkpoints; 0: none at regular intervals.",
        bound=NOT_NEGATIVE,
        unit="steps",
    )
    log_spaced: int = setting(
        0,
        Role.OBSERVATION,
        "Number of checkpoints, at steps in geometric progression from 1 to the last, for each budget of a stack (a "
        "cohort, or a part of one); 0 for none.",
        bound=NOT_NEGATIVE,
    )
    ema_decay: float = setting(
        0.0,
        Role.OBSERVATION,
        "Also keep an exponential moving average of the parameters, with this decay per step; 0: none. A branch with "
        "branch.ema starts from it, and can so be evaluated as a run of its own.",
        bound=BELOW_ONE,
    )
    at: tuple[int, ...] = setting(
        (),
        Role.OBSERVATION,
        "Further steps at which checkpoints are written, such as those that branches start from.",
        bound=each(POSITIVE_WHOLE, "needs steps of 1 or more"),
        unit="steps",
    )


@dataclasses.dataclass(frozen=True)
class MeshConfig(Settings):
    """Devices along each axis of the mesh ("member", "data", "model")."""

    member: int = setting(
        0,
        Role.EXECUTION,
        "Devices that members are distributed over; 0: as many as can be used.",
        bound=at_least(0, "needs a number of devices, or 0 for as many as can be used"),
    )
    data: int = setting(1, Role.EXECUTION, "Devices that a batch is split over.", bound=_DEVICES)
    model: int = setting(1, Role.EXECUTION, "Devices that a member's matrices are split over.", bound=_DEVICES)
    fsdp: bool = setting(
        False,
        Role.EXECUTION,
        'Parameters and moments are split over "data" as well and gathered where they are used, matrix by matrix '
        "(fully sharded data parallelism), for a model that one device can't hold.",
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig(Settings):
    """One run: its model, optimiser, budget, data and seeds, what is measured and kept, and how it is carried out."""

    name: str = setting("run", Role.PLACE, "The readable part of the run's id.")
    tokens: int = setting(
        8_000_000_000,
        Role.TRACED,
        "The budget: tokens // (batch_size * sequence_length) steps are taken.",
        unit="tokens",
    )
    init_seed: int = setting(0, Role.SEED, "Seed of the parameters.", bound=SEED)
    data_seed: int = setting(
        0,
        Role.SEED,
        "Seed of the order of the windows, of dropout, and of which equations are trained on.",
        bound=SEED,
    )
    tensorboard: bool = setting(False, Role.PLACE, "Also write TensorBoard event files.")
    wandb: str = setting("", Role.PLACE, 'Also log to this project of Weights & Biases; "" for none.')
    mapping: str = setting(
        "auto",
        Role.EXECUTION,
        'How members are computed: "vmap", all at once, which suits an accelerator; "map", one after another, which '
        'suits the caches of a CPU; "auto" chooses by backend. Results agree within rounding.',
        bound=choice("auto", *MAPPINGS),
    )
    imported: str = setting(
        "",
        Role.DATA,
        "The architecture that the parameters were read from, for a run that `olmo-jax import` made. Such a run isn't "
        "trained here, and nothing is known of its optimiser, batch size and budget.",
    )
    imported_quantization: str = setting(
        "",
        Role.DATA,
        "How the weights of an imported run were quantised in their file, the type of most parameters first, such as "
        '"Q4_1, Q8_0"; "" if they weren\'t.',
    )
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    data: DataConfig = DataConfig()
    probe: ProbeConfig = ProbeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    mesh: MeshConfig = MeshConfig()
    compute: ComputeConfig = ComputeConfig()
    intervention: InterventionConfig = InterventionConfig()
    branch: BranchConfig = BranchConfig()

    def __post_init__(self) -> None:
        if self.intervention.head_rank and not self.model.factored_head:  # the one implies the other
            object.__setattr__(self, "model", dataclasses.replace(self.model, factored_head=True))

    @property
    def tokens_per_step(self) -> int:
        return self.data.batch_size * self.data.sequence_length

    @property
    def total_steps(self) -> int:
        return self.tokens // self.tokens_per_step

    @property
    def warmup_steps(self) -> int:
        return round(self.optimizer.warmup_fraction * self.total_steps)

    @property
    def decay_steps(self) -> int:
        """The steps at the end over which the rate of the schedule "wsd" decays."""
        return round(self.optimizer.decay_fraction * self.total_steps)

    def check_fields(self, at: str) -> None:
        folder_name(self.name, f"{at}.name")
        check_intervention(self, at)
        check_branch(self, at)
        require(
            self.total_steps >= 1 or bool(self.imported),  # of an imported run, step 0 may be the only one
            f"{at}.tokens",
            self.tokens,
            f"is less than one step, {at}.data.batch_size x sequence_length = {self.tokens_per_step} tokens; raise it",
        )
        require(
            self.total_steps < 2**31,
            f"{at}.tokens",
            self.tokens,
            f"is {self.total_steps} steps of {self.tokens_per_step} tokens; fewer than 2^31 can be counted",
        )
        require(
            self.optimizer.schedule != "wsd" or not self.optimizer.decay_fraction or self.decay_steps >= 1,
            f"{at}.optimizer.decay_fraction",
            self.optimizer.decay_fraction,
            f"leaves none of {self.total_steps} steps to decay over; raise it to 1 / {self.total_steps} or more, or "
            "set it to 0 for a rate that stays at the peak",
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
            f"is measured on documents, which equations aren't; make it () and name the metrics in {at}.probe.texts",
        )
        require(
            not (self.data.is_arithmetic and self.probe.measures_sharpness),
            f"{at}.probe.sharpness.documents",
            self.probe.sharpness.documents,
            "are text, which equations aren't; set it to 0, and use config.evaluation.curvature after training",
        )
        if self.data.tokenizer == "bpe" and not self.data.is_arithmetic:
            require(
                self.data.bpe_vocab_size <= self.model.vocab_size,
                f"{at}.model.vocab_size",
                self.model.vocab_size,
                f"is smaller than {at}.data.bpe_vocab_size = {self.data.bpe_vocab_size}; tokens would lie outside the "
                "vocabulary; raise it",
            )
