"""Choose the execution plan of a cohort for the available devices, where the configuration leaves it open."""

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


def choose_execution_plan(shape: Shape, members: int, mesh: Mesh) -> ExecutionPlan:
    """Return the execution plan of a cohort of `members` on a mesh; raises ConfigError if there is none."""
    members_per_device, c = sharding.padded(members, mesh) // mesh.shape["member"], shape.config.compute
    chosen = execution_plan.for_training(
        c,
        shape.model,
        shape.batch_size,
        shape.sequence_length,
        shape.config.mapping,
        members_per_device,
        jax.default_backend(),
    )
    if shape.config.mesh.fsdp and not c.steps_per_call:
        chosen = chosen._replace(steps_per_call=1)  # in a loop XLA would keep the gathered matrices
    return chosen._replace(whole_vocabulary=mesh.shape["model"] > 1, gathered=shape.config.mesh.fsdp)


def fit(shape: Shape, runs: Sequence[Run], mesh: Mesh, plan: ExecutionPlan, room: float) -> ExecutionPlan:
    """Return the plan with the fewest microbatches whose compiled steps fit into `room` bytes of a device.

    The plan is unchanged if a rough estimate says that it fits easily, or if the configuration sets the number. Raises
    ConfigError if even single sequences don't fit.
    """
    member = member_structs(shape)
    sizes = [math.prod(x.shape) for x in jax.tree.leaves(member.params)]
    tokens = shape.tokens_per_step // mesh.shape["data"]
    size = sharding.padded(len(runs), mesh)
    members_per_device = size // mesh.shape["member"]
    sequences_per_device = shape.batch_size // mesh.shape["data"]

    def estimate(microbatches: int) -> float:
        candidate = plan._replace(microbatches=microbatches)
        return execution_plan.rough_bytes(
            shape.model, tokens, shape.sequence_length, sum(sizes), members_per_device, candidate
        )

    if estimate(plan.microbatches) < room / 4 or shape.config.compute.microbatches:
        return plan
    divisors = [n for n in range(1, sequences_per_device + 1) if sequences_per_device % n == 0]
    # Each attempt compiles a program, so skip those that the estimate, right within a factor of two, rules out.
    for microbatches in [n for n in divisors if estimate(n) < 2 * room] or divisors[-1:]:
        candidate = plan._replace(microbatches=microbatches)
        memory = compile_steps(shape, runs, mesh, candidate).steps.memory_analysis()
        if memory is None:
            return plan
        needed = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        needed -= memory.alias_size_in_bytes
        if needed <= room:
            return candidate
    raise ConfigError(
        f"config.data.batch_size = {shape.batch_size}: even with one sequence at a time, {len(runs)} members need "
        f"{needed / 1e9:.1f} GB of a device that has {room / 1e9:.1f} GB; set config.compute.remat, or use more devices"
    )


def device_memory() -> float:
    """Return the bytes of memory of one device of this process; on a CPU, its share of the machine's memory."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return float(stats["bytes_limit"])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / jax.local_device_count()
