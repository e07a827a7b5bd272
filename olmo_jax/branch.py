"""Branches: members that start from checkpoints of other runs, their parents, instead of random parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import Array
from jax.sharding import Mesh

from olmo_jax import intervention
from olmo_jax.checkpoint import check_fits, directory, load_average, load_moments, load_run, read_end, run_steps
from olmo_jax.cohort import Cohort, Run, checkpoint_steps, shape_of
from olmo_jax.config import TrainConfig
from olmo_jax.console import say
from olmo_jax.errors import CheckpointError
from olmo_jax.execution import sharding
from olmo_jax.step import State, init_member
from olmo_jax.storage.run_files import is_run, run_config


def parent_workdir(workdir: epath.Path, config: TrainConfig) -> epath.Path:
    """Return the working directory that holds the parent of a branch."""
    return epath.Path(config.branch.workdir) if config.branch.workdir else workdir


def missing(workdir: epath.Path, cohort: Cohort) -> list[str]:
    """Return, as "RUN@STEP", the checkpoints that members of a cohort start from and that aren't written yet."""
    wanted = {
        (parent_workdir(workdir, run.config), run.config.branch) for run in cohort.runs if run.config.branch.parent
    }
    return sorted(
        {
            branch.parent
            for folder, branch in wanted
            if not is_run(folder, branch.run) or branch.step not in run_steps(folder, branch.run)
        }
    )


def with_parents(workdir: epath.Path, cohort: Cohort, state: State, mesh: Mesh) -> State:
    """Return the stack before its first step, with the parents' states in place of those of members that are branches.

    A branch of a run that had diverged is marked as diverged at the same step, and so isn't trained.

    Args:
      state: the stack as initialised, which is donated.
    """
    shardings = sharding.stack_shardings(mesh, state, cohort.shape.config.mesh.fsdp)
    put = jax.jit(_put, out_shardings=shardings, donate_argnums=0)
    for m, run in enumerate(cohort.runs):
        if run.config.branch.parent:
            state = put(state, first_state(workdir, run), np.int32(m))
    return state


def _put(state_M: State, one: State, m: Array) -> State:
    return jax.tree.map(lambda x_M, x: x_M.at[m].set(x), state_M, one)


def first_state(workdir: epath.Path, run: Run) -> State:
    """Return the state that a branch starts from; a moving average of its own starts anew.

    Raises CheckpointError if the parent's checkpoint is missing or doesn't fit.
    """
    config, branch, folder = run.config, run.config.branch, parent_workdir(workdir, run.config)
    diverged_at, reason = read_end(folder, branch.run, branch.step)
    if diverged_at >= 0:
        say(f"{run.id}: its parent {branch.run} diverged at step {diverged_at}, so it isn't trained")
    params = load_run(folder, branch.run, branch.step)[1]
    check_fits(directory(folder, branch.run), params, config.model)
    state = init_member(params, config)
    if branch.moments:
        state = state._replace(moments=load_moments(folder, branch.run, branch.step, state.moments))
    if branch.average_last:
        params = _mean_of_last(folder, config)
    if branch.ema:
        params = _moving_average(folder, config)
    return state._replace(
        params=intervention.first_params(params, config.intervention.head_rank),
        step=jnp.int32(branch.start_step),
        diverged_at=jnp.int32(diverged_at),
        reason=jnp.int32(reason),
    )


def _mean_of_last(folder: epath.Path, config: TrainConfig) -> Any:
    """Return the mean of the parameters of the parent's last checkpoints up to the branch's step, added in float64.

    Checkpoints that only an interruption wrote don't count, so that the mean doesn't depend on it.
    """
    branch = config.branch
    parent = run_config(folder, branch.run)
    due = checkpoint_steps(Cohort(shape_of(parent, ""), (Run(branch.run, parent),)))
    steps = run_steps(folder, branch.run)
    steps = [step for step in steps if step <= branch.step and (parent.imported or step in due)]
    if len(steps) < branch.average_last:
        raise CheckpointError(
            f"config.train.branch.average_last = {branch.average_last}: {branch.run} has checkpoints at "
            f"{', '.join(map(str, steps))} up to step {branch.step}; lower it, or write more of them"
        )
    total: Any = None
    for step in steps[-branch.average_last :]:
        params = jax.tree.map(lambda x: x.astype(np.float64), load_run(folder, branch.run, step)[1])
        total = params if total is None else jax.tree.map(np.add, total, params)
    return jax.tree.map(lambda x: (x / branch.average_last).astype(np.float32), total)


def _moving_average(folder: epath.Path, config: TrainConfig) -> Any:
    """Return the parent's moving average at the branch's step: a mean with weights d^age over the steps it took."""
    branch = config.branch
    parent = run_config(folder, branch.run)
    sums, step = load_average(folder, branch.run, branch.step)
    total = 1.0 - parent.checkpoint.ema_decay ** (step - parent.branch.start_step)
    return jax.tree.map(lambda x: (x.astype(np.float64) / total).astype(np.float32), sums)
