"""Split a cohort that a device can't hold at once into stacks that it can hold; sweep.json records the split."""

import dataclasses
import math
from collections.abc import Sequence

import jax

from olmo_jax.cohort import Cohort, Shape
from olmo_jax.config import ConfigError
from olmo_jax.execution import memory, sharding
from olmo_jax.execution import plan as execution_plan
from olmo_jax.model import parameter_count
from sweeps.planning.stack_config import StackConfig

PartsConfig = StackConfig  # the former name, kept for one release

# The fraction of a device's memory to use; the estimate of what a stack needs is right within a factor of two.
_FILLED = 0.5


def cut(cohort: Cohort, config: StackConfig, pinned: Sequence[Sequence[str]] = ()) -> list[Cohort]:
    """Return the stacks that a cohort is trained in, each with its `part`.

    Args:
      pinned: run ids of the stacks that are recorded already; other runs form further stacks.

    Raises ConfigError if the device can't hold one member, saying how much memory a member needs.
    """
    by_id = {run.id: run for run in cohort.runs}
    stacks = [tuple(by_id[name] for name in names) for names in pinned]
    pinned_ids = {name for names in pinned for name in names}
    new = [run for run in cohort.runs if run.id not in pinned_ids]
    if new:
        most = most_members(cohort.shape, len(new), config)
        size = math.ceil(len(new) / math.ceil(len(new) / most))  # about equal sizes, not a small last stack
        stacks += [tuple(new[i : i + size]) for i in range(0, len(new), size)]
    return [dataclasses.replace(cohort, runs=runs, part=part) for part, runs in enumerate(stacks)]


def most_members(shape: Shape, members: int, config: StackConfig) -> int:
    """Return how many of `members` a stack may hold, from an estimate of the memory that they need on each device."""
    mesh = sharding.make_mesh(shape.config.mesh, members)
    room = config.memory_gb * 1e9 or memory.device_memory()
    most = min(members, config.most_members or members)
    while most > 1 and _bytes(shape, most, mesh) > room * _FILLED:
        most -= 1
    if most == 1:
        # The least memory that a member needs: that for one sequence at a time.
        least = _bytes(shape, 1, mesh, microbatches=max(1, shape.batch_size // mesh.shape["data"]))
        if least > room:
            raise ConfigError(
                f"config.model.d_model = {shape.model.d_model}, n_layers = {shape.model.n_layers}: one member needs "
                f"about {least / 1e9:.2g} GB of a device's {room / 1e9:.2g} GB of memory; set config.compute.remat, or "
                "config.mesh.fsdp with more devices, or use a smaller model"
            )
    return most


def _bytes(shape: Shape, members: int, mesh: jax.sharding.Mesh, microbatches: int = 0) -> float:
    plan = memory.choose_execution_plan(shape, members, mesh)
    if microbatches and not shape.config.compute.microbatches:
        plan = plan._replace(microbatches=microbatches)
    cut_over = mesh.shape["model"] * (mesh.shape["data"] if shape.config.mesh.fsdp else 1)
    parameters = parameter_count(shape.model)[0] // cut_over
    per_device = sharding.padded(members, mesh) // mesh.shape["member"]
    tokens = shape.tokens_per_step // mesh.shape["data"]
    return execution_plan.rough_bytes(shape.model, tokens, shape.sequence_length, parameters, per_device, plan)


def runs_of(stacks: Sequence[Cohort]) -> list[list[str]]:
    """Return the run ids of each stack, as `cut` takes them for `pinned`."""
    return [[run.id for run in stack.runs] for stack in stacks]
