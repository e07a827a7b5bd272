"""How a cohort's steps are carried out on the devices at hand: what the configuration leaves open, decided."""

import math
import os
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from olmo_jax.cohort import Run, Shape
from olmo_jax.config.validation import ConfigError
from olmo_jax.execution import plan as execution_plan
from olmo_jax.execution import sharding
from olmo_jax.execution.plan import ExecutionPlan
from olmo_jax.execution.program import compile_steps
from olmo_jax.step import member_structs


def decide(shape: Shape, members: int, mesh: Mesh) -> ExecutionPlan:
    """How the steps of a cohort of `members` are carried out on a mesh; raises ConfigError for what can't be."""
    here, c = sharding.padded(members, mesh) // mesh.shape["member"], shape.config.compute
    chosen = execution_plan.decide(
        c, shape.model, shape.batch_size, shape.sequence_length, shape.config.mapping, here, jax.default_backend()
    )
    if shape.config.mesh.fsdp and not c.steps_per_call:
        chosen = chosen._replace(steps_per_call=1)  # in a loop XLA keeps what was gathered
    return chosen._replace(whole_vocabulary=mesh.shape["model"] > 1, gathered=shape.config.mesh.fsdp)


def fit(shape: Shape, runs: Sequence[Run], mesh: Mesh, compute: ExecutionPlan, room: float) -> ExecutionPlan:
    """`compute` with as few microbatches as fit into `room` bytes of a device, by what the compiled steps need.

    As it is where a rough estimate says that there is plenty of room, or where the configuration says how many. Raises
    ConfigError where even single sequences don't fit.
    """
    member = member_structs(shape)
    sizes = [math.prod(x.shape) for x in jax.tree.leaves(member.params)]
    tokens = shape.tokens_per_step // mesh.shape["data"]
    size = sharding.padded(len(runs), mesh)
    here = size // mesh.shape["member"]
    each = shape.batch_size // mesh.shape["data"]

    def rough(parts: int) -> float:
        tried = compute._replace(microbatches=parts)
        return execution_plan.rough_bytes(shape.model, tokens, shape.sequence_length, sum(sizes), here, tried)

    if rough(compute.microbatches) < room / 4 or shape.config.compute.microbatches:
        return compute
    divisors = [n for n in range(1, each + 1) if each % n == 0]
    # Each try compiles a program: not for what the estimate, right within a factor of two, rules out.
    for parts in [n for n in divisors if rough(n) < 2 * room] or divisors[-1:]:
        tried = compute._replace(microbatches=parts)
        memory = compile_steps(shape, runs, mesh, tried).steps.memory_analysis()
        if memory is None:
            return compute
        needed = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        needed -= memory.alias_size_in_bytes
        if needed <= room:
            return tried
    raise ConfigError(
        f"config.data.batch_size = {shape.batch_size}: {len(runs)} members need {needed / 1e9:.1f} GB of a device that "
        f"has {room / 1e9:.1f} even one sequence at a time; set config.compute.remat, or spread them over more devices"
    )


def device_memory() -> float:
    """Bytes that a device of this process has: its own, or on a CPU its share of the machine's."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return float(stats["bytes_limit"])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / jax.local_device_count()
