"""How a step is carried out: choices of speed and memory, which change results by rounding alone."""

from typing import Any, NamedTuple

import jax

from olmo_jax.config.compute import FORMS, LAYERS, MAPPINGS, ComputeConfig
from olmo_jax.config.model import ModelConfig
from olmo_jax.config.validation import ConfigError, require
from olmo_jax.execution import flops

# A call of several steps lasts some seconds at most on what such backends do: a stop waits for its end.
_FLOPS_PER_CALL = {"cpu": 2e11, "gpu": 5e13, "tpu": 5e13}
_MOST_STEPS = 32
# Unrolled layers run faster, scanned ones compile faster: one block is compiled for all.
_MOST_UNROLLED = 16


class ExecutionPlan(NamedTuple):
    """The choices made; names as in ComputeConfig.

    mapping: how members go through the device (TrainConfig.mapping). members: how many do it side by side under vmap.
    whole_vocabulary: W isn't taken in tiles of rows, for these lie on several devices.
    gathered: matrices are gathered for use (MeshConfig.fsdp); matmuls leave it to JAX what is kept for the gradient.
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
    def of_record(cls, record: Any) -> "ExecutionPlan | None":
        """The choices that a record of them (`_asdict`) holds; None where it can't be one."""
        if not isinstance(record, dict) or not {"attention"} <= record.keys() <= set(cls._fields):
            return None
        found = cls(**record)
        whole = (
            all(type(value) is type(like) for value, like in zip(found, cls("dense"), strict=True))
            and min(found.microbatches, found.steps_per_call, found.members) > 0
            and (found.attention in FORMS and found.layers in LAYERS and found.mapping in MAPPINGS)
        )
        return found if whole else None

    def __str__(self) -> str:
        shown = [f"members by {self.mapping}", f"{self.attention} attention", f"{self.layers} layers"]
        shown += ["recomputed for the gradient"] if self.remat else []
        shown += [f"{self.microbatches} microbatches"] if self.microbatches > 1 else []
        return ", ".join([*shown, f"{self.steps_per_call} step(s) a call"])


def forward(config: ModelConfig, backend: str | None = None) -> ExecutionPlan:
    """The choices for a forward pass of one model, or of several: those by backend alone."""
    backend = backend or jax.default_backend()
    mapping = "map" if backend == "cpu" else "vmap"
    layers = "unrolled" if config.n_layers <= _MOST_UNROLLED else "scanned"
    return ExecutionPlan(_attention(config, backend), layers, mapping=mapping)


def decide(
    config: ComputeConfig, model: ModelConfig, batch_size: int, length: int, mapping: str, members: int, backend: str
) -> ExecutionPlan:
    """What is "auto" or 0 chosen for training on a backend ("cpu", "gpu", "tpu").

    Args:
      members: of the cohort that lie on one device.

    Raises ConfigError for what the backend can't do, with what it can. `microbatches` of 0 becomes 1; decide.fit raises
    it where memory doesn't suffice.
    """
    chosen = forward(model, backend)
    if config.attention != "auto":
        _check_attention(config.attention, model, backend)
        chosen = chosen._replace(attention=config.attention)
    if config.layers != "auto":
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
        steps_per_call=config.steps_per_call or max(1, min(steps, _MOST_STEPS)),
        members=members if chosen.mapping == "vmap" else 1,
    )


def rough_bytes(
    config: ModelConfig, tokens: int, length: int, parameters: int, members: int, compute: ExecutionPlan
) -> float:
    """About what a step of `members` holds of a device: state, gradients, activations; right within a factor of two."""
    width = 2 if config.compute_dtype == "bfloat16" else 4
    scores = 0 if compute.attention == "cudnn" else 3 * config.n_heads * length
    a_layer = 16 * config.d_model + 4 * config.d_ff + scores
    kept = a_layer * (1 if compute.remat else config.n_layers) * tokens * width / compute.microbatches
    return members * 6 * 4 * parameters + compute.members * kept


def _attention(config: ModelConfig, backend: str) -> str:
    if backend == "cpu":
        return "blocked"
    if backend == "gpu" and not _no_cudnn(config):
        return "cudnn"
    return "dense"


def _no_cudnn(config: ModelConfig) -> str:
    """Why cuDNN's attention can't take a model; "" if it can."""
    if config.compute_dtype != "bfloat16":
        return f"and config.model.compute_dtype = 'bfloat16', not {config.compute_dtype!r}"
    if config.d_head % 8 or config.d_head > 128:
        return f"and heads of a multiple of 8 dimensions up to 128, not {config.d_head}"
    return ""


def _check_attention(form: str, config: ModelConfig, backend: str) -> None:
    can = ["dense", "blocked"]
    reason = _no_cudnn(config)
    if form == "cudnn" and (backend != "gpu" or reason):
        raise ConfigError(
            f"config.compute.attention = 'cudnn': needs an NVIDIA GPU {reason}; the backend here is {backend!r}, which "
            f"can do {' and '.join(can)}"
        )
