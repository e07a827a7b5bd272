"""The execution plan of a step: choices for speed and memory, which change results only by rounding."""

from typing import Any, NamedTuple

import jax

from olmo_jax.config.compute import FORMS, LAYERS, MAPPINGS, ComputeConfig
from olmo_jax.config.model import ModelConfig
from olmo_jax.config.validation import ConfigError, require
from olmo_jax.execution import flops

# Bounds a call of several steps to a few seconds on each backend, since a stop waits for its end.
_FLOPS_PER_CALL = {"cpu": 2e11, "gpu": 5e13, "tpu": 5e13}
_MAX_STEPS = 32
# Unrolled layers run faster; scanned ones compile faster, since all share one compiled block.
_MAX_UNROLLED = 16


class ExecutionPlan(NamedTuple):
    """The choices of a plan; names as in ComputeConfig.

    mapping: how members share a device (TrainConfig.mapping). members: how many are computed side by side under vmap.
    whole_vocabulary: W isn't split into tiles of rows, because its rows lie on several devices.
    gathered: matrices are gathered before use (MeshConfig.fsdp); JAX then decides what to store for the gradient.
    """

    attention: str
    layers: str = "unrolled"
    remat: bool = False
    microbatches: int = 1
    steps_per_call: int = 1
    mapping: str = "vmap"
    members: int = 1
    whole_vocabulary: bool = False
    gathered: bool = False

    @classmethod
    def from_record(cls, record: Any) -> "ExecutionPlan | None":
        """Return the plan in a record made by `_asdict`; None if the record isn't valid."""
        if not isinstance(record, dict) or not {"attention"} <= record.keys() <= set(cls._fields):
            return None
        plan = cls(**record)
        valid = (
            all(type(value) is type(default) for value, default in zip(plan, cls("dense"), strict=True))
            and min(plan.microbatches, plan.steps_per_call, plan.members) > 0
            and (plan.attention in FORMS and plan.layers in LAYERS and plan.mapping in MAPPINGS)
        )
        return plan if valid else None

    def __str__(self) -> str:
        choices = [f"members by {self.mapping}", f"{self.attention} attention", f"{self.layers} layers"]
        choices += ["recomputed for the gradient"] if self.remat else []
        choices += [f"{self.microbatches} microbatches"] if self.microbatches > 1 else []
        return ", ".join([*choices, f"{self.steps_per_call} step(s) per call"])


def forward(config: ModelConfig, backend: str | None = None) -> ExecutionPlan:
    """Return the plan for a forward pass of one model or of several, which depends on the backend."""
    backend = backend or jax.default_backend()
    mapping = "map" if backend == "cpu" else "vmap"
    layers = "scanned" if config.n_layers > _MAX_UNROLLED and config.alike else "unrolled"
    return ExecutionPlan(_attention(config, backend), layers, mapping=mapping)


def for_training(
    config: ComputeConfig, model: ModelConfig, batch_size: int, length: int, mapping: str, members: int, backend: str
) -> ExecutionPlan:
    """Return the plan for training on a backend ("cpu", "gpu", "tpu"), with "auto" and 0 replaced by choices.

    Args:
      members: members of the cohort on one device.

    Raises ConfigError for a choice that the backend doesn't support. `microbatches` of 0 becomes 1; memory.fit
    increases it if memory doesn't suffice.
    """
    chosen = forward(model, backend)
    if config.attention != "auto":
        _check_attention(config.attention, model, backend)
        chosen = chosen._replace(attention=config.attention)
    if config.layers != "auto":
        require(
            config.layers == "unrolled" or model.alike,
            "config.compute.layers",
            config.layers,
            "needs blocks of one kind, and config.model.attention_pattern has several; choose 'unrolled'",
        )
        chosen = chosen._replace(layers=config.layers)
    if mapping != "auto":
        chosen = chosen._replace(mapping=mapping)
    microbatches = config.microbatches or 1
    require(
        batch_size % microbatches == 0,
        "config.compute.microbatches",
        microbatches,
        f"doesn't divide config.data.batch_size = {batch_size}; choose a divisor, or 0",
    )
    step = flops.train_step(model, batch_size, length) * members
    steps = config.steps_per_call or int(_FLOPS_PER_CALL.get(backend, 2e11) // step)
    return chosen._replace(
        remat=config.remat,
        microbatches=microbatches,
        steps_per_call=config.steps_per_call or max(1, min(steps, _MAX_STEPS)),
        members=members if chosen.mapping == "vmap" else 1,
    )


def rough_bytes(
    config: ModelConfig, tokens: int, length: int, parameters: int, members: int, plan: ExecutionPlan
) -> float:
    """Return the approximate bytes that a step needs on a device, right within a factor of two.

    They are those of the state, gradients and activations of `members`.
    """
    width = 2 if config.compute_dtype == "bfloat16" else 4
    scores = 0 if plan.attention == "cudnn" else 3 * config.n_heads * length
    per_layer = 12 * config.d_model + 4 * config.n_heads * config.d_head + 4 * config.d_ff + scores
    activations = per_layer * (1 if plan.remat else config.n_layers) * tokens * width / plan.microbatches
    return members * 6 * 4 * parameters + plan.members * activations


def _attention(config: ModelConfig, backend: str) -> str:
    if backend == "cpu":
        return "blocked"
    if backend == "gpu" and not _no_cudnn(config):
        return "cudnn"
    return "dense"


def _no_cudnn(config: ModelConfig) -> str:
    """Return what cuDNN's attention needs and a model lacks, "" if it supports the model."""
    if config.compute_dtype != "bfloat16":
        return f"config.model.compute_dtype = 'bfloat16', not {config.compute_dtype!r}"
    if config.d_head % 8 or config.d_head > 128:
        return f"heads of a multiple of 8 dimensions up to 128, not {config.d_head}"
    return ""


def _check_attention(form: str, config: ModelConfig, backend: str) -> None:
    reason = _no_cudnn(config)
    if form == "cudnn" and (backend != "gpu" or reason):
        needed = " and ".join(filter(None, ("an NVIDIA GPU", reason)))
        raise ConfigError(
            f"config.compute.attention = 'cudnn': needs {needed}; the backend here is {backend!r}, which supports "
            "dense and blocked"
        )
