"""The compiled programs of a cohort: its initial state, the steps of a segment, the members that go on to the next.

A process compiles a program once for what it is: the static shape, the number of members, the mesh, and how a step is
carried out. Each member's numbers are arguments.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from olmo_jax import model, optimizer
from olmo_jax.cohort import Run, Shape
from olmo_jax.config import ModelConfig
from olmo_jax.data import batches
from olmo_jax.execution import sharding
from olmo_jax.execution.members import over_members
from olmo_jax.execution.plan import ExecutionPlan
from olmo_jax.optimizer import Hyper
from olmo_jax.step import Metrics, State, init_member, member_step, member_structs

# Of the compiled programs of one kind, those used last stay in memory.
_PROGRAMS_KEPT = 16


class Program(NamedTuple):
    """A segment's steps, compiled.

    `steps(state, hyper, table, fed, count)` takes the first `count` of the K batches in `fed` (see data/batches.py) and
    returns the state, in place of the donated one, and Metrics `[K, M]`, those beyond `count` meaningless.
    """

    steps: jax.stages.Compiled
    hyper: Hyper


def stack_hyper(runs: Sequence[Run], size: int) -> Hyper:
    """Members' numbers stacked to `size`; places beyond the runs repeat the last with no steps to take."""
    members = [optimizer.hyper(run.config) for run in runs]
    members += [members[-1]._replace(total_steps=np.int32(0))] * (size - len(runs))
    return jax.tree.map(lambda *xs: np.stack(xs), *members)


def initial_state(shape: Shape, runs: Sequence[Run], mesh: Mesh) -> State:
    """The stack before its first step: each member as `model.init` makes it from its own seed, bit for bit."""
    seeds_M = np.asarray(sharding.pad([run.config.init_seed for run in runs], mesh), np.uint32)
    shardings = sharding.stack_shardings(mesh, stack_structs(shape, len(seeds_M)), shape.config.mesh.fsdp)
    return jax.jit(_initial, static_argnums=0, out_shardings=shardings)(shape.model, seeds_M)


def _initial(config: ModelConfig, seeds_M: Array) -> State:
    return jax.vmap(lambda seed: init_member(model.init(config, jax.random.key(seed))))(seeds_M)


def stack_structs(shape: Shape, size: int) -> State:
    """Shapes and dtypes of the state of a stack of `size` members."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape), x.dtype), member_structs(shape))


def compile_steps(
    shape: Shape, runs: Sequence[Run], mesh: Mesh, compute: ExecutionPlan, table: Array | None = None
) -> Program:
    """The compiled steps of a segment of `runs`; compiled once for all that differ in their members' numbers alone.

    Args:
      compute: how they are carried out (see memory.py).
      table: the tokens that batches name windows of; None where they bring their own (see data/batches.py).
    """
    hyper_M = stack_hyper(runs, sharding.padded(len(runs), mesh))
    structs = jax.tree.map(_struct, (hyper_M, table))
    steps = _compiled(shape.compiled, mesh, compute, *structs)
    return Program(steps, jax.tree.map(lambda x: sharding.put(mesh, sharding.MEMBERS, x), hyper_M))


@functools.lru_cache(_PROGRAMS_KEPT)
def _compiled(
    shape: Shape, mesh: Mesh, compute: ExecutionPlan, hyper: Hyper, table: jax.ShapeDtypeStruct | None
) -> jax.stages.Compiled:
    """The steps of as many members as there are numbers in `hyper`, whose leaves are shapes and dtypes."""
    size = hyper.learning_rate.shape[0]
    state = stack_structs(shape, size)
    fed = batches.struct(mesh, compute.steps_per_call, size, shape.batch_size, shape.sequence_length, table is not None)
    state_shardings = sharding.stack_shardings(mesh, state, shape.config.mesh.fsdp)
    members, of_steps = (NamedSharding(mesh, spec) for spec in (sharding.MEMBERS, PartitionSpec(None, "member")))
    whole = NamedSharding(mesh, PartitionSpec())

    def train_steps(state: State, hyper: Hyper, table: Array | None, fed: Array, count: Array) -> tuple[State, Metrics]:
        def one(state: State, h: Hyper, batch: Array) -> tuple[State, Metrics]:
            tokens_BL = batches.tokens(table, batch, shape.sequence_length, shape.window_stride)
            return member_step(shape, state, h, tokens_BL, mesh, compute)

        def step(i: Array, carry: tuple[State, Metrics]) -> tuple[State, Metrics]:
            state, rows = carry
            state, row = over_members(one, compute.mapping, mesh)(state, hyper, fed[i])
            return state, jax.tree.map(lambda all_KM, x_M: all_KM.at[i].set(x_M), rows, row)

        if compute.steps_per_call == 1:
            state, row = over_members(one, compute.mapping, mesh)(state, hyper, fed[0])
            return state, jax.tree.map(lambda x_M: x_M[None], row)
        rows = Metrics(*(jnp.full(fed.shape[:2], jnp.nan) for _ in Metrics._fields))
        return jax.lax.fori_loop(0, count, step, (state, rows))

    steps = jax.jit(
        train_steps,
        in_shardings=(state_shardings, members, None if table is None else whole, fed.sharding, whole),
        out_shardings=(state_shardings, of_steps),
        donate_argnums=0,
    )
    return steps.lower(state, hyper, table, fed, jax.ShapeDtypeStruct((), jnp.int32)).compile()


def pick(state: State, places: Sequence[int], mesh: Mesh, fsdp: bool = False) -> State:
    """The members at `places`, padded to the mesh's member axis with inert copies of the last.

    The stack itself where it begins with just these and has the right size: what stands beyond them is inert.
    """
    if list(places) == list(range(len(places))) and len(state.step) == sharding.padded(len(places), mesh):
        return state
    taken = np.asarray(sharding.pad(places, mesh))
    shardings = sharding.stack_shardings(mesh, jax.eval_shape(_take, state, taken), fsdp)
    return jax.jit(_take, out_shardings=shardings)(state, taken)


def _take(state: State, places_m: Array) -> State:
    return jax.tree.map(lambda x: x[places_m], state)


def _struct(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
