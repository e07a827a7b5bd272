"""Checkpoints of a cohort's stack of members, written and read with Orbax, and single runs read from them.

Layout of `cohorts/<folder>/checkpoints/<step>/`: the items `params`, `moments` (with step counters, and a moving
average of the parameters if one is kept) and `members` (the
run ids in the order of the member axis, and a checksum of each array). Arrays of at least 1 MiB per member are stored
in one chunk per member, so that one run can be read without the others. Inert members may follow those listed.
"""

import contextlib
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath, epy
from jax.sharding import Mesh

from olmo_jax.config import ModelConfig, from_config_dict, require
from olmo_jax.errors import CheckpointError as CheckpointError
from olmo_jax.execution import processes, sharding
from olmo_jax.files import DamagedFileError, read_json
from olmo_jax.step import State, params_structs
from olmo_jax.storage.checksums import check_member, checksums
from olmo_jax.storage.lock import lacks_locks
from olmo_jax.storage.orbax_adapter import (
    drop_damaged_metadata,
    first_line,
    lock_by_files,
    one_chunk_per_member,
    open_manager,
    reading_errors,
    restore_args_onto,
)
from olmo_jax.storage.run_files import run_record

with epy.lazy_imports():  # saves commands that only list checkpoints a third of a second
    import orbax.checkpoint as ocp
    import tensorstore


def directory(workdir: epath.PathLike, folder: str) -> epath.Path:
    """Return the absolute path of a cohort's checkpoints (Orbax requires one); `folder` is Cohort.folder."""
    path = epath.Path(workdir) / "cohorts" / folder / "checkpoints"
    return path if "://" in str(path) else path.absolute()


def check_place(workdir: epath.PathLike) -> None:
    """Raise ConfigError for a working directory in which Orbax could write checkpoints but not read them.

    Orbax lists the files of a checkpoint with a glob pattern in which it doesn't escape the path of the folder.
    """
    path = directory(workdir, "")
    require(
        not re.search(r"[*?[]", str(path)),
        "--workdir",
        str(workdir),
        "Orbax can't read checkpoints below a folder with *, ? or [ in its path; choose another path, such as "
        "lr_1e-2 instead of lr[1e-2]",
    )


class Checkpoints:
    """The checkpoints of a cohort, written in the background while training continues."""

    def __init__(self, path: epath.Path):
        path.mkdir(parents=True, exist_ok=True)
        self._deleted = path.parent / "deleted"
        if processes.is_first() and self._deleted.exists():
            self._deleted.rmtree()
        if "://" not in str(path) and lacks_locks(path):
            lock_by_files()
        self._path = path
        if processes.is_first():
            drop_damaged_metadata(path)
        processes.barrier("damaged metadata dropped")
        with reading_errors(path):
            self._manager = open_manager(path)

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: State, members: Sequence[str]) -> None:
        """Copy the stack to the host and write it in the background.

        Raises CheckpointError if it can't be written, or if an earlier write failed in the background.
        """
        moments = _moments(state)
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.PyTreeSave(state.params, save_args=one_chunk_per_member(state.params)),
                    moments=ocp.args.PyTreeSave(moments, save_args=one_chunk_per_member(moments)),
                    members=ocp.args.JsonSave({"runs": list(members), "checksums": checksums(state)}),
                ),
            )

    def save_params(self, step: int, params_M: Any, members: Sequence[str]) -> None:
        """Write a stack without moments, from which no training can resume, and wait until it is on disk."""
        params = ocp.args.PyTreeSave(params_M, save_args=one_chunk_per_member(params_M))
        members_record = {"runs": list(members), "checksums": checksums({"params": params_M})}
        composite = ocp.args.Composite(params=params, members=ocp.args.JsonSave(members_record))
        with self._writing():
            # Forced, since Orbax otherwise skips a step that is earlier than the last one saved.
            self._manager.save(step, args=composite, force=True)
        self.wait()

    def restore(self, step: int, member: State, mesh: Mesh, fsdp: bool = False) -> State:
        """Return the stack of a checkpoint, sharded over `mesh`, which may differ from the mesh that saved it.

        `member` has the shapes of one member. Raises CheckpointError, in every process, if the checkpoint is incomplete
        or its checksums don't match.
        """
        path, restored, saved = self._path / str(step), None, {}
        try:
            with reading_errors(path):
                saved = _members(path)["checksums"]
                size = jax.tree.leaves(self._manager.item_metadata(step)["params"].tree)[0].shape[0]
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape), x.dtype), member)
            params, moments = (restore_args_onto(mesh, tree, fsdp) for tree in (like.params, _moments(like)))
            with reading_errors(path):
                args = ocp.args.Composite(params=params, moments=moments)
                restored = self._manager.restore(step, args=args)
            failure = None
        except CheckpointError as error:
            failure = error
        if processes.any_process(failure is not None) or restored is None:
            raise failure or CheckpointError(f"{path}: another process can't read it")
        state = State(params=restored["params"], **restored["moments"])
        if changed := [name for name, value in checksums(state).items() if saved.get(name) != value]:
            raise CheckpointError(f"{path}: the checksums of {', '.join(changed[:3])} don't match those saved")
        return state

    def check(self, step: int) -> None:
        """Raise CheckpointError, in every process, unless a checkpoint can be read and its checksums match."""
        failure = None
        try:
            if processes.is_first():
                for item in ("params", "moments"):
                    _load(self._path, step, item)
        except CheckpointError as error:
            failure = error
        if processes.any_process(failure is not None):
            raise failure or CheckpointError(f"{self._path / str(step)}: the first process can't read it")

    def set_aside(self, step: int) -> epath.Path:
        """Move a checkpoint to the folder `broken`, which isn't searched for checkpoints, and return its new path."""
        folder = self._path.parent / "broken"
        folder.mkdir(exist_ok=True)
        existing = {p.name for p in folder.iterdir()}
        candidates = (f"{step}" if k == 0 else f"{step}.{k}" for k in itertools.count())
        path = folder / next(name for name in candidates if name not in existing)
        processes.barrier("set aside")  # every process has listed the folder
        if processes.is_first():
            (self._path / str(step)).rename(path)
        processes.barrier("set aside, done")
        self._manager.reload()
        return path

    def delete(self, step: int) -> None:
        """Delete a checkpoint; an interruption leaves no part of it among the checkpoints."""
        processes.barrier("delete")
        if processes.is_first():
            self._deleted.mkdir(exist_ok=True)
            (self._path / str(step)).rename(self._deleted / str(step))
            self._deleted.rmtree()
        processes.barrier("delete, done")
        self._manager.reload()

    def wait(self) -> None:
        """Wait until all saved checkpoints are on disk; raises CheckpointError if a write failed in the background."""
        with self._writing():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        self.wait()
        self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{self._path}: can't write a checkpoint: {first_line(error)}; earlier ones are intact. Fix the "
                "cause, or free disk space, and run the same command again"
            ) from error


@contextlib.contextmanager
def open_checkpoints(path: epath.Path) -> Iterator[Checkpoints]:
    """Open the checkpoints in a folder; on exit, also after an error, wait for writes to finish and close them."""
    checkpoints = Checkpoints(path)
    try:
        yield checkpoints
    finally:
        checkpoints.close()


def load_run(workdir: epath.PathLike, run_id: str, step: int | None = None) -> tuple[ModelConfig, Any]:
    """Return one run's model configuration and parameters (numpy arrays) from its last checkpoint or the one at `step`.

    It reads only this run's chunk of each array, and works without the devices that trained it.

    Raises:
      CheckpointError: no such run, no checkpoint of it yet, or none at that step; the message lists those available.
    """
    record, path, index_by_step = _find(workdir, run_id)
    if not index_by_step or (step is not None and step not in index_by_step):
        at_step = "" if step is None else f" at step {step}"
        steps = ", ".join(map(str, sorted(index_by_step))) or "none yet; train it first"
        raise CheckpointError(f"run '{run_id}' in {workdir} has no checkpoint{at_step}; steps: {steps}")
    chosen = max(index_by_step) if step is None else step
    config = from_config_dict(ModelConfig, record["config"]["model"], "config.model")
    params = _read_member(path, chosen, index_by_step[chosen])
    check_fits(path / str(chosen), params, config)
    return config, params


def load_moments(workdir: epath.PathLike, run_id: str, step: int, like: Any) -> Any:
    """Return the state of one run's optimiser at a checkpoint (numpy arrays), in the structure of `like`.

    Raises CheckpointError if there is no such checkpoint, if it has no moments, or if they don't fit.
    """
    path, index = _with_moments(workdir, run_id, step)
    stored = _read_member(path, step, index, "moments", ("moments",))
    arrays = {sharding.path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(stored["moments"])}

    def array(at: Any, expected: Any) -> np.ndarray:
        name = sharding.path_name(at)
        if name not in arrays or arrays[name].shape != expected.shape:
            raise CheckpointError(f"{path / str(step)}: {name} is missing or of another shape than {expected.shape}")
        return arrays[name]

    return jax.tree_util.tree_map_with_path(array, like)


def load_average(workdir: epath.PathLike, run_id: str, step: int) -> tuple[Any, int]:
    """Return State.average of one run at a checkpoint (numpy arrays), and the updates that the run had taken by then.

    Raises CheckpointError if there is no such checkpoint, or if it keeps none.
    """
    path, index = _with_moments(workdir, run_id, step)
    stored = _read_member(path, step, index, "moments", ("average", "step"))
    return stored["average"], int(stored["step"])


def _with_moments(workdir: epath.PathLike, run_id: str, step: int) -> tuple[epath.Path, int]:
    """Return the folder of a run's checkpoints, and its index on the member axis at a step with moments."""
    _, path, index_by_step = _find(workdir, run_id)
    if step not in index_by_step:
        raise CheckpointError(f"run '{run_id}' in {workdir} has no checkpoint at step {step}")
    if not (path / str(step) / "moments").exists():
        raise CheckpointError(f"{path / str(step)}: has parameters alone, and no moments of an optimiser")
    return path, index_by_step[step]


def check_fits(place: epath.Path, params: Any, config: ModelConfig, stacked: bool = False) -> None:
    """Raise CheckpointError unless the parameters of a model or stack have the shapes that a configuration implies."""

    def shapes(tree: Any, drop: int) -> dict[str, tuple[int, ...]]:
        return {sharding.path_name(p): x.shape[drop:] for p, x in jax.tree_util.tree_leaves_with_path(tree)}

    actual, expected = shapes(params, int(stacked)), shapes(params_structs(config), 0)
    for path in sorted(actual.keys() | expected.keys()):
        if actual.get(path) != expected.get(path):
            raise CheckpointError(
                f"{place}: {path} has shape {actual.get(path, 'none (missing)')}, and the runs' configuration expects "
                f"{expected.get(path, 'none')}; put config.json and sweep.json, or the checkpoint, back from a copy"
            )


def read_end(workdir: epath.PathLike, run_id: str, step: int) -> tuple[int, int]:
    """Return the step at which a run diverged, -1 if it hadn't by this checkpoint, and an index into step.REASONS.

    For an imported run, which has no moments, this is unknown: -1 and 0. Raises CheckpointError.
    """
    _, path, index_by_step = _find(workdir, run_id)
    if step not in index_by_step:
        raise CheckpointError(f"run '{run_id}' in {workdir} has no checkpoint at step {step}")
    if not (path / str(step) / "moments").exists():
        return -1, 0
    end = _read_member(path, step, index_by_step[step], "moments", ("diverged_at", "reason"))
    return int(end["diverged_at"]), int(end["reason"])


def run_steps(workdir: epath.PathLike, run_id: str) -> list[int]:
    """Return the steps of a run's checkpoints, ascending; raises CheckpointError if there is no such run."""
    return sorted(_find(workdir, run_id)[2])


def load_stack(workdir: epath.PathLike, folder: str, step: int) -> tuple[list[str], Any]:
    """Return the run ids and stacked parameters (numpy arrays, without inert members) of a checkpoint.

    Raises CheckpointError if it can't be read or its checksums don't match.
    """
    return _load(directory(workdir, folder), step)


def _load(path: epath.Path, step: int, item: str = "params") -> tuple[list[str], Any]:
    """Return the run ids and an item's stacked arrays, after verifying their checksums."""
    with reading_errors(path / str(step)), contextlib.closing(open_manager(path)) as manager:
        members = _members(path / str(step))
        tree = manager.item_metadata(step)[item].tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        args = ocp.args.Composite(**{item: ocp.args.PyTreeRestore(restore_args=as_numpy)})
        arrays = manager.restore(step, args=args)[item]
    runs, saved = members["runs"], members["checksums"]
    if len(runs) > min(len(x) for x in jax.tree.leaves(arrays)):
        raise CheckpointError(f"{path / str(step)}: lists more runs than it holds; put it back from a copy")
    for index in range(len(runs)):
        check_member(path / str(step), item, jax.tree.map(lambda x, m=index: x[m], arrays), saved, index)
    return runs, jax.tree.map(lambda x: x[: len(runs)], arrays)


def member_lists(path: epath.Path) -> dict[int, list[str]]:
    """Return the run ids in every complete checkpoint of a cohort, by step."""
    if not path.exists():
        return {}
    lists = {}
    for step in sorted(int(p.name) for p in path.iterdir() if p.name.isdigit()):
        with contextlib.suppress(FileNotFoundError):  # deleted or set aside in the meantime
            lists[step] = _members(path / str(step))["runs"]
    return lists


def _members(checkpoint: epath.Path) -> dict[str, Any]:
    """Return the run ids in order, and the checksums; raises FileNotFoundError if there is no such checkpoint."""
    path, remedy = checkpoint / "members" / "metadata", "put it back from a copy, or move the checkpoint away"
    try:
        members = read_json(path, remedy)
    except DamagedFileError as error:
        raise CheckpointError(str(error)) from error
    runs, sums = members.get("runs"), members.get("checksums")
    valid_runs = isinstance(runs, list) and all(isinstance(run, str) for run in runs)
    if not (valid_runs and isinstance(sums, dict) and all(isinstance(sums_M, list) for sums_M in sums.values())):
        raise CheckpointError(f"{path}: not a list of members with checksums; {remedy}")
    return members


def _find(workdir: epath.PathLike, run_id: str) -> tuple[dict[str, Any], epath.Path, dict[int, int]]:
    """Return a run's config.json, the folder of its checkpoints, and its index on the member axis at each step."""
    record = run_record(workdir, run_id)
    path = directory(workdir, record["folder"])
    return record, path, {s: members.index(run_id) for s, members in member_lists(path).items() if run_id in members}


def _moments(state: State) -> dict[str, Any]:
    return {name: value for name, value in state._asdict().items() if name != "params" and value is not None}


def _read_member(path: epath.Path, step: int, index: int, item: str = "params", only: Sequence[str] = ()) -> Any:
    """Return one member's arrays of an item, after verifying their checksums; with `only`, those under these keys."""
    with reading_errors(path / str(step)), contextlib.closing(open_manager(path)) as manager:
        tree = manager.item_metadata(step)[item].tree
    if lacking := [key for key in only if key not in tree]:
        raise CheckpointError(f"{path / str(step)}: has no {', '.join(lacking)} among its {item}")
    tree = {key: tree[key] for key in only} if only else tree
    folder = path / str(step) / item

    def read(meta: Any) -> Any:
        # A local path stays as it is, never a URL: the name of a folder may contain % or #.
        base: Any = str(folder) if "://" in str(folder) else {"driver": "file", "path": f"{folder}/"}
        kvstore = {"driver": "ocdbt", "base": base}
        spec = {"driver": "zarr", "kvstore": kvstore | {"path": f"{meta.name}/"}}
        return tensorstore.open(spec, open=True, read=True)

    with reading_errors(path / str(step)):
        opened = jax.tree.map(read, tree)
        pending = jax.tree.map(lambda f: f.result()[index].read(), opened)
        member = jax.tree.map(lambda f: np.asarray(f.result()), pending)
        saved = _members(path / str(step))["checksums"]
    check_member(path / str(step), item, member, saved, index)
    return member
