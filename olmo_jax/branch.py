"""Branches: members that start from checkpoints of other runs, their parents, instead of random parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import Array
from jax.sharding import Mesh

from olmo_jax import intervention
from olmo_jax.checkpoint import (
    check_fits,
    directory,
    load_average,
    load_moments,
    load_run,
    member_lists,
    read_end,
    run_steps,
)
from olmo_jax.cohort import Cohort, Run
from olmo_jax.config import BranchConfig, TrainConfig
from olmo_jax.console import say
from olmo_jax.errors import CheckpointError
from olmo_jax.execution import processes, sharding
from olmo_jax.step import State, init_member
from olmo_jax.storage.run_files import is_run, run_config
from olmo_jax.storage.run_status import has_ended


def parent_workdir(workdir: epath.Path, config: TrainConfig) -> epath.Path:
    """Return the working directory that holds the parent of a branch."""
    return epath.Path(config.branch.workdir) if config.branch.workdir else workdir


def missing(workdir: epath.Path, cohort: Cohort) -> list[str]:
    """Return, as "RUN@STEP", the checkpoints that a stack has to start from and that aren't there.

    A stack that has ended, or has checkpoints of its own to resume from, needs none.
    """
    if any(member_lists(directory(workdir, cohort.folder))) or all(has_ended(workdir, run.id) for run in cohort.runs):
        return []
    places = {
        (parent_workdir(workdir, run.config), run.config.branch) for run in cohort.runs if run.config.branch.parent
    }
    return sorted({branch.parent for folder, branch in places if not _exists(folder, branch)})


def _exists(folder: epath.Path, branch: BranchConfig) -> bool:
    return is_run(folder, branch.run) and branch.step in run_steps(folder, branch.run)


def with_parents(workdir: epath.Path, cohort: Cohort, state: State, mesh: Mesh) -> State:
    """Return the stack before its first step, with the parents' states in place of those of members that are branches.

    A branch of a run that had diverged is marked as diverged where it starts, and so isn't trained.

    Args:
      state: the stack as initialised, which is donated.

    Raises CheckpointError, in every process, if a parent's checkpoint is missing or doesn't fit.
    """
    shardings = sharding.stack_shardings(mesh, state, cohort.shape.config.mesh.fsdp)
    put = jax.jit(_put, out_shardings=shardings, donate_argnums=0)
    for m, run in enumerate(cohort.runs):
        if not run.config.branch.parent:
            continue
        failure, one = None, None
        try:
            one = first_state(workdir, run)
        except CheckpointError as error:
            failure = error
        if processes.any_process(failure is not None):
            raise failure or CheckpointError(f"{run.id}: another process can't read {run.config.branch.parent}")
        state = put(state, one, np.int32(m))
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
    state = init_member(params, config.optimizer, config.checkpoint.ema_decay > 0)
    if branch.moments:
        moments = load_moments(folder, branch.run, branch.step, state.moments)
        state = state._replace(moments=_of_trained_rows(moments, config.intervention.head_rank))
    if branch.average_last:
        params = _mean_of_last(folder, config)
    if branch.ema:
        params = _moving_average(folder, config)
    return state._replace(
        params=intervention.first_params(params, config.intervention.head_rank),
        step=jnp.int32(branch.start_step),
        diverged_at=jnp.int32(branch.start_step if diverged_at >= 0 else -1),
        reason=jnp.int32(reason),
    )


def _of_trained_rows(moments: Any, head_rank: int) -> Any:
    """Return an optimiser's moments, of a factored head without those of the rows that a member doesn't train."""

    def one(path: Any, x: Any) -> Any:
        if not head_rank or not sharding.path_name(path).endswith("unembedding_factor"):
            return x
        return np.where(np.arange(len(x))[:, None] < head_rank, x, 0).astype(x.dtype)

    return jax.tree_util.tree_map_with_path(one, moments)


def _mean_of_last(folder: epath.Path, config: TrainConfig) -> Any:
    """Return the mean of the parameters at branch.averaged_steps, added in float64."""
    branch, total = config.branch, None
    for step in branch.averaged_steps:
        params = jax.tree.map(lambda x: x.astype(np.float64), load_run(folder, branch.run, step)[1])
        total = params if total is None else jax.tree.map(np.add, total, params)
    return jax.tree.map(lambda x: (x / len(branch.averaged_steps)).astype(np.float32), total)


def _moving_average(folder: epath.Path, config: TrainConfig) -> Any:
    """Return the parent's moving average at the branch's step: a mean with weights d^age over the steps it took."""
    branch = config.branch
    start = run_config(folder, branch.run).branch.start_step
    sums, step = load_average(folder, branch.run, branch.step)
    total = 1.0 - branch.ema_decay ** (step - start)
    return jax.tree.map(lambda x: (x.astype(np.float64) / total).astype(np.float32), sums)
