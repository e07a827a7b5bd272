"""The compiled programs of a cohort: initial state, steps of a segment, selection of members for the next segment.

A process compiles one program per static shape, number of members, mesh and execution plan. The hyper-parameters of
the members are arguments.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from olmo_jax import intervention, model, optimizer
from olmo_jax.cohort import Run, Shape
from olmo_jax.config import ModelConfig, OptimizerConfig
from olmo_jax.data import batches
from olmo_jax.execution import sharding
from olmo_jax.execution.members import over_members
from olmo_jax.execution.plan import ExecutionPlan
from olmo_jax.optimizer import Hyper
from olmo_jax.step import Metrics, State, init_member, member_step, member_structs

# The number of compiled programs that stay in memory, those used last.
_CACHED_PROGRAMS = 16


class Program(NamedTuple):
    """The compiled steps of a segment, and the hyper-parameters of its members.

    `steps(state, hyper, table, batches, count)` takes a step on the first `count` of the K batches (see
    data/batches.py) and returns the new state (the old one is donated) and Metrics `[K, M]`, undefined after `count`.
    """

    steps: jax.stages.Compiled
    hyper: Hyper


def stack_hyper(runs: Sequence[Run], size: int) -> Hyper:
    """Return the members' hyper-parameters, stacked to `size`; inert members repeat the last run's with 0 steps."""
    present = optimizer.options(run.config for run in runs)
    members = [optimizer.hyper(run.config, present) for run in runs]
    members += [members[-1]._replace(total_steps=np.int32(0))] * (size - len(runs))
    return jax.tree.map(lambda *xs: np.stack(xs), *members)


def initial_state(shape: Shape, runs: Sequence[Run], mesh: Mesh) -> State:
    """Return the stack before its first step: each member is what `model.init` returns for its seed, bit for bit.

    In a factored head, the rows of P beyond the member's `head_rank` are 0.
    """
    seeds_M = np.asarray(sharding.pad([run.config.init_seed for run in runs], mesh), np.uint32)
    ranks_M = np.asarray(sharding.pad([run.config.intervention.head_rank for run in runs], mesh), np.int32)
    shardings = sharding.stack_shardings(mesh, stack_structs(shape, len(seeds_M)), shape.config.mesh.fsdp)
    # Of the settings only these, so that cohorts which differ in others share the program.
    settings = shape.model, shape.config.optimizer, shape.is_averaged
    return jax.jit(_initial, static_argnums=(0, 1, 2), out_shardings=shardings)(*settings, seeds_M, ranks_M)


def _initial(config: ModelConfig, settings: OptimizerConfig, averaged: bool, seeds_M: Array, ranks_M: Array) -> State:
    def one(seed: Array, rank: Array) -> State:
        params = intervention.first_params(model.init(config, jax.random.key(seed)), rank)
        return init_member(params, settings, averaged)

    return jax.vmap(one)(seeds_M, ranks_M)


def stack_structs(shape: Shape, size: int) -> State:
    """Return the shapes and dtypes of the state of a stack of `size` members."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape), x.dtype), member_structs(shape))


def compile_steps(
    shape: Shape, runs: Sequence[Run], mesh: Mesh, plan: ExecutionPlan, table: Array | None = None
) -> Program:
    """Return the compiled steps of a segment of `runs`, cached for cohorts that differ only in hyper-parameters.

    Args:
      plan: the execution plan (see memory.py).
      table: the tokens in which batches name windows; None if batches contain tokens (see data/batches.py).
    """
    hyper_M = stack_hyper(runs, sharding.padded(len(runs), mesh))
    structs = jax.tree.map(_struct, (hyper_M, table))
    steps = _compiled(shape.compiled, mesh, plan, *structs)
    return Program(steps, jax.tree.map(lambda x: sharding.put(mesh, sharding.MEMBERS, x), hyper_M))


@functools.lru_cache(_CACHED_PROGRAMS)
def _compiled(
    shape: Shape, mesh: Mesh, plan: ExecutionPlan, hyper: Hyper, table: jax.ShapeDtypeStruct | None
) -> jax.stages.Compiled:
    """Return the compiled steps of as many members as `hyper` has, whose leaves are shapes and dtypes."""
    size = hyper.learning_rate.shape[0]
    state = stack_structs(shape, size)
    batch_K = batches.struct(
        mesh, plan.steps_per_call, size, shape.batch_size, shape.sequence_length, table is not None
    )
    state_shardings = sharding.stack_shardings(mesh, state, shape.config.mesh.fsdp)
    members, metrics = (NamedSharding(mesh, spec) for spec in (sharding.MEMBERS, PartitionSpec(None, "member")))
    replicated = NamedSharding(mesh, PartitionSpec())

    def train_steps(
        state: State, hyper: Hyper, table: Array | None, batch_K: Array, count: Array
    ) -> tuple[State, Metrics]:
        def one(state: State, h: Hyper, batch: Array) -> tuple[State, Metrics]:
            tokens_BL = batches.tokens(table, batch, shape.sequence_length, shape.window_stride)
            return member_step(shape, state, h, tokens_BL, mesh, plan)

        def step(i: Array, carry: tuple[State, Metrics]) -> tuple[State, Metrics]:
            state, rows = carry
            state, row = over_members(one, plan.mapping, mesh)(state, hyper, batch_K[i])
            return state, jax.tree.map(lambda values_KM, x_M: values_KM.at[i].set(x_M), rows, row)

        if plan.steps_per_call == 1:
            state, row = over_members(one, plan.mapping, mesh)(state, hyper, batch_K[0])
            return state, jax.tree.map(lambda x_M: x_M[None], row)
        rows = Metrics(*(jnp.full(batch_K.shape[:2], jnp.nan) for _ in Metrics._fields))
        return jax.lax.fori_loop(0, count, step, (state, rows))

    steps = jax.jit(
        train_steps,
        in_shardings=(state_shardings, members, None if table is None else replicated, batch_K.sharding, replicated),
        out_shardings=(state_shardings, metrics),
        donate_argnums=0,
    )
    return steps.lower(state, hyper, table, batch_K, jax.ShapeDtypeStruct((), jnp.int32)).compile()


def pick(state: State, places: Sequence[int], mesh: Mesh, fsdp: bool = False) -> State:
    """Return the stack of the members at `places`, padded to the mesh's member axis with inert copies of the last.

    The stack itself is returned if it begins with exactly these and has the right size: members after them are inert.
    """
    if list(places) == list(range(len(places))) and len(state.step) == sharding.padded(len(places), mesh):
        return state
    indices = np.asarray(sharding.pad(places, mesh))
    shardings = sharding.stack_shardings(mesh, jax.eval_shape(_take, state, indices), fsdp)
    return jax.jit(_take, out_shardings=shardings)(state, indices)


def _take(state: State, places_m: Array) -> State:
    return jax.tree.map(lambda x: x[places_m], state)


def _struct(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
