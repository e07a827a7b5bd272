"""A cohort: runs that share every static shape, stacked along a member axis and trained as one program.

Everything that acts on one member is written for one (`member_step`); `over_members` adds the member axis to it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epy
from jax import Array
from jax.sharding import Mesh

from olmo_jax import loss, model, optimizer
from olmo_jax.config import CheckpointConfig, MeshConfig, ModelConfig, ProbeConfig, TrainConfig
from olmo_jax.config.identity import digest, identity_fields
from olmo_jax.data.sources import arithmetic
from olmo_jax.execution import plan as computing
from olmo_jax.execution import sharding
from olmo_jax.execution.members import over_members as over_members
from olmo_jax.execution.plan import Compute, ComputeConfig
from olmo_jax.optimizer import Hyper

with epy.lazy_imports():  # a fifth of a second, for commands that train nothing
    import optax


@dataclasses.dataclass(frozen=True)
class Shape:
    """What the members of a cohort have in common: compiled into their program, or done to all of them at once.

    arithmetic: they learn equations, whose answers alone bear loss; which of them is each member's own matter.
    """

    model: ModelConfig
    batch_size: int
    sequence_length: int
    decay_embeddings: bool
    decay_norms: bool
    z_loss: float
    data_name: str
    data_fingerprint: str
    train_domains: tuple[str, ...]
    arithmetic: bool
    probe: ProbeConfig
    checkpoint: CheckpointConfig
    mesh: MeshConfig
    mapping: str
    compute: ComputeConfig

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.sequence_length

    @property
    def window_stride(self) -> int:
        """Tokens from one window's first to the next one's: text windows share a token, equations end in eos."""
        return arithmetic.STRIDE if self.arithmetic else self.sequence_length

    @property
    def compiled(self) -> "Shape":
        """Without what no step's program depends on, so that cohorts which differ in that alone share one."""
        return dataclasses.replace(
            self.lasting,
            data_name="",
            data_fingerprint="",
            train_domains=(),
            probe=ProbeConfig(),
            checkpoint=CheckpointConfig(),
            mesh=MeshConfig(fsdp=self.mesh.fsdp),
        )

    @property
    def lasting(self) -> "Shape":
        """Less how and on what a step is carried out, which may change from one start to the next."""
        return dataclasses.replace(self, mesh=MeshConfig(), mapping="auto", compute=ComputeConfig())


@dataclasses.dataclass(frozen=True)
class Run:
    """One model trained once."""

    id: str
    config: TrainConfig


@dataclasses.dataclass(frozen=True)
class Cohort:
    """The runs of one program, in the order of their places on the member axis.

    part: where they are only some of the runs of their shape, which of its stacks these are in: see planning/stacks.py.
    recorded_id: the id under which a working directory has it; "" for one that isn't recorded yet.
    """

    shape: Shape
    runs: tuple[Run, ...]
    part: int = 0
    recorded_id: str = dataclasses.field(default="", compare=False)

    @property
    def id(self) -> str:
        """By the shape alone: runs that join later change nothing of it, and parts share it."""
        s = self.shape.model
        readable = f"d{s.d_model}-l{s.n_layers}-b{self.shape.batch_size}"
        return self.recorded_id or f"{readable}-{digest(identity_fields(self.shape.lasting))[:8]}"

    @property
    def folder(self) -> str:
        """Name of the folder, below cohorts/, of this stack's checkpoints."""
        return f"{self.id}.{self.part}" if self.part else self.id

    @property
    def segment_ends(self) -> list[int]:
        """Steps at which members end and the stack shrinks; between two of them lies one compiled program."""
        return sorted({run.config.total_steps for run in self.runs})

    def active(self, step: int) -> list[int]:
        """Places of the runs that take step number `step`, counted from 1; at 0 all are there."""
        return [i for i, run in enumerate(self.runs) if run.config.total_steps >= step]


def shape_of(config: TrainConfig, data_fingerprint: str) -> Shape:
    """The cohort key of a run."""
    return Shape(
        model=config.model,
        batch_size=config.data.batch_size,
        sequence_length=config.data.sequence_length,
        decay_embeddings=config.optimizer.decay_embeddings,
        decay_norms=config.optimizer.decay_norms,
        z_loss=config.optimizer.z_loss,
        data_name=config.data.name,
        data_fingerprint=data_fingerprint,
        train_domains=config.data.train_domains,
        arithmetic=config.data.is_arithmetic,
        probe=config.probe,
        checkpoint=config.checkpoint,
        mesh=config.mesh,
        mapping=config.mapping,
        compute=config.compute,
    )


def checkpoint_steps(cohort: Cohort) -> set[int]:
    """Steps at which the cohort is written, by configuration: a stop adds one, which goes once the cohort is done."""
    ends, config = cohort.segment_ends, cohort.shape.checkpoint
    steps = set(ends)
    if config.every:
        steps |= set(range(config.every, ends[-1], config.every))
    if config.log_spaced:
        steps |= {round(s) for end in ends for s in np.geomspace(1, end, config.log_spaced)}
    return steps


class State(NamedTuple):
    """A member's state; a cohort holds it stacked.

    `step` counts updates, `diverged_at` is -1 or the fatal one, and `reason` the place in REASONS of what it was.
    """

    params: Any
    moments: Any
    step: Array
    diverged_at: Array
    reason: Array


# What of a step turned non-finite first.
REASONS = ("", "loss", "gradient", "parameters")


class Metrics(NamedTuple):
    """What one step reports, float32 scalars; NaN from the step on at which a member is frozen."""

    loss: Array
    grad_norm: Array
    learning_rate: Array


def init_member(params: Any) -> State:
    """The state of a member before its first step, from its parameters."""
    return State(params, optimizer.init(params), jnp.int32(0), jnp.int32(-1), jnp.int32(0))


def member_step(
    shape: Shape,
    state: State,
    h: Hyper,
    tokens_BL: Array,
    mesh: Mesh | None = None,
    compute: Compute | None = None,
    weights_BL: Array | None = None,
) -> tuple[State, Metrics]:
    """One update of one member on `[B, L + 1]` tokens; `mesh` is needed where parameters are fully sharded over it.

    `weights_BL` of the L predictions leaves some out or counts them less; None counts each once, and where a batch is
    cut into microbatches it must be. `compute` says by which of several ways to the same numbers; None chooses by
    backend. A member whose loss, gradient or new parameters turn non-finite is frozen as it was before and marked with
    the step; a member at its total steps (an inert one has 0) is left as it is.
    """

    compute = computing.forward(shape.model) if compute is None else compute
    # A function of seed and step alone, so that a resumed run drops what it would have dropped.
    dropout_key = jax.random.fold_in(jax.random.key(h.dropout_seed), state.step) if shape.model.dropout else None
    of_batch = functools.partial(_gradients, shape, compute, mesh, state.params)
    if compute.microbatches == 1:
        entropy, gradients = of_batch(tokens_BL, dropout_key, weights_BL)
    else:
        entropy, gradients = _averaged(of_batch, tokens_BL, dropout_key, compute.microbatches)
    rate = optimizer.learning_rate(h, state.step + 1)
    adamw = optimizer.adamw(h, rate, shape.decay_embeddings, shape.decay_norms)
    updates, moments = adamw.update(gradients, state.moments, state.params)
    params = optax.apply_updates(state.params, updates)

    grad_norm = optax.tree.norm(gradients)
    of_step = jnp.stack([entropy, grad_norm, optax.tree.norm(params)])  # in the order of REASONS
    finite = jnp.all(jnp.isfinite(of_step))
    running = (state.diverged_at < 0) & (state.step < h.total_steps)
    moved = running & finite
    new = State(
        params=_select(moved, params, state.params),
        moments=_select(moved, moments, state.moments),
        step=state.step + moved.astype(jnp.int32),
        diverged_at=jnp.where(running & ~finite, state.step + 1, state.diverged_at),
        reason=jnp.where(running & ~finite, 1 + jnp.argmin(jnp.isfinite(of_step)), state.reason),
    )
    shown = (jnp.where(moved, x, jnp.nan) for x in (entropy, grad_norm, rate))
    return new, Metrics(*shown)


def _gradients(
    shape: Shape,
    compute: Compute,
    mesh: Mesh | None,
    params: Any,
    tokens_BL: Array,
    dropout_key: Array | None,
    weights_BL: Array | None = None,
) -> tuple[Array, Any]:
    """Cross-entropy of a batch and the gradient of its objective."""

    def states(params: Any) -> Array:
        tokens = tokens_BL[:, :-1]
        hidden = model.hidden(
            shape.model, params, tokens, dropout_key=dropout_key, compute=compute, last=shape.arithmetic
        )
        return hidden.final_BLD

    def objective(params: Any) -> tuple[Array, Array]:
        if shape.mesh.fsdp and mesh is not None:
            final_BLD = sharding.gathering(mesh, states)(params)
            w_VD = model.unembedding(sharding.gathered(mesh, params))
        else:
            final_BLD, w_VD = states(params), model.unembedding(params)
        tile = len(w_VD) if compute.whole_vocabulary else None
        targets_BL = tokens_BL[:, 1:]
        if shape.arithmetic:  # the answer's
            targets_BL = targets_BL[:, -1:]
        result = loss.cross_entropy(
            final_BLD, w_VD, targets_BL, weights_BL, shape.z_loss, tile=tile, members=compute.members
        )
        return result.objective, result.cross_entropy

    (_, entropy), gradients = jax.value_and_grad(objective, has_aux=True)(params)
    return entropy, gradients


def _averaged(of_batch: Callable[..., Any], tokens_BL: Array, dropout_key: Array | None, parts: int) -> Any:
    """The mean of `of_batch` over equal parts of a batch, one after another; each takes every parts-th sequence.

    So that a part lies on all the devices that the batch lies on.
    """
    tokens_nbL = jnp.moveaxis(tokens_BL.reshape(-1, parts, tokens_BL.shape[1]), 1, 0)

    def add(total: Any, part: tuple[Array, Array]) -> tuple[Any, None]:
        i, tokens_bL = part
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, i)
        return jax.tree.map(jnp.add, total, of_batch(tokens_bL, key)), None

    like = jax.eval_shape(of_batch, tokens_nbL[0], dropout_key)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    total, _ = jax.lax.scan(add, zero, (jnp.arange(parts), tokens_nbL))
    return jax.tree.map(lambda x: x / parts, total)


def _select(condition: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def params_structs(config: ModelConfig) -> Any:
    """Shapes and dtypes of one model's parameters."""
    return _structs(config).params


def member_structs(shape: Shape) -> State:
    """Shapes and dtypes of one member's state."""
    return _structs(shape.model)


@functools.cache
def _structs(config: ModelConfig) -> State:
    return jax.eval_shape(lambda: init_member(model.init(config, jax.random.key(0))))
