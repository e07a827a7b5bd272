"""Checkpoints of a cohort's stack of members, written and read with Orbax, and single runs read from them.

Layout of `cohorts/<folder>/checkpoints/<step>/`: the items `params`, `moments` (with step counters) and `members`, the
run ids in the order of the member axis and a checksum of each array. Arrays of at least 1 MiB per member are stored in
one chunk per member, so that one run is read without the others. The stack may hold inert members behind them.
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

with epy.lazy_imports():  # a third of a second, for commands that only list checkpoints
    import orbax.checkpoint as ocp
    import tensorstore


def directory(workdir: epath.PathLike, folder: str) -> epath.Path:
    """Return the folder of the checkpoints of a cohort (Cohort.folder), an absolute path (Orbax takes no other)."""
    path = epath.Path(workdir) / "cohorts" / folder / "checkpoints"
    return path if "://" in str(path) else path.absolute()


def check_place(workdir: epath.PathLike) -> None:
    """Raise ConfigError for a working directory below which checkpoints would be written and never read.

    Orbax finds the parts of a checkpoint with a glob in which it doesn't escape the folder's own name.
    """
    path = directory(workdir, "")
    require(
        not re.search(r"[*?[]", str(path)),
        "--workdir",
        str(workdir),
        "Orbax can't write checkpoints below a folder with *, ? or [ in its name or in that of one above it; choose "
        "another, such as lr_1e-2 for lr[1e-2]",
    )


class Checkpoints:
    """A cohort's checkpoints, written in the background while training goes on."""

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
        """Copy the stack off the device and write it in the background.

        Raises CheckpointError for what can't be written, an earlier one's failure in the background included.
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
        """Write a stack that no training resumes from, without moments; returns once it is on disk."""
        params = ocp.args.PyTreeSave(params_M, save_args=one_chunk_per_member(params_M))
        listed = {"runs": list(members), "checksums": checksums({"params": params_M})}
        composite = ocp.args.Composite(params=params, members=ocp.args.JsonSave(listed))
        with self._writing():
            # Forced, for Orbax leaves out a step before the last one that is there.
            self._manager.save(step, args=composite, force=True)
        self.wait()

    def restore(self, step: int, member: State, mesh: Mesh, fsdp: bool = False) -> State:
        """Return the stack of a checkpoint laid over `mesh`, whatever mesh saved it; `member` has one member's shapes.

        Raises CheckpointError, in every process, where it isn't whole or isn't what was saved, by its checksums.
        """
        place, restored, saved = self._path / str(step), None, {}
        try:
            with reading_errors(place):
                saved = _members(place)["checksums"]
                size = jax.tree.leaves(self._manager.item_metadata(step)["params"].tree)[0].shape[0]
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape), x.dtype), member)
            params, moments = (restore_args_onto(mesh, tree, fsdp) for tree in (like.params, _moments(like)))
            with reading_errors(place):
                args = ocp.args.Composite(params=params, moments=moments)
                restored = self._manager.restore(step, args=args)
            failed = None
        except CheckpointError as error:
            failed = error
        if processes.any_process(failed is not None) or restored is None:
            raise failed or CheckpointError(f"{place}: another process can't read it")
        state = State(params=restored["params"], **restored["moments"])
        if changed := [name for name, value in checksums(state).items() if saved.get(name) != value]:
            raise CheckpointError(f"{place}: {', '.join(changed[:3])} isn't what was saved")
        return state

    def check(self, step: int) -> None:
        """Raise CheckpointError, in every process, unless a checkpoint can be read and is what was saved."""
        failed = None
        try:
            if processes.is_first():
                for item in ("params", "moments"):
                    _load(self._path, step, item)
        except CheckpointError as error:
            failed = error
        if processes.any_process(failed is not None):
            raise failed or CheckpointError(f"{self._path / str(step)}: the first process can't read it")

    def set_aside(self, step: int) -> epath.Path:
        """Move a checkpoint to a folder in which nothing looks for checkpoints; returns its new path."""
        folder = self._path.parent / "broken"
        folder.mkdir(exist_ok=True)
        taken = {p.name for p in folder.iterdir()}
        free = (f"{step}" if k == 0 else f"{step}.{k}" for k in itertools.count())
        place = folder / next(name for name in free if name not in taken)
        processes.barrier("set aside")  # all have seen what is taken
        if processes.is_first():
            (self._path / str(step)).rename(place)
        processes.barrier("set aside, done")
        self._manager.reload()
        return place

    def delete(self, step: int) -> None:
        """Delete a checkpoint; if that is interrupted, no part of it is left where checkpoints are looked for."""
        processes.barrier("delete")
        if processes.is_first():
            self._deleted.mkdir(exist_ok=True)
            (self._path / str(step)).rename(self._deleted / str(step))
            self._deleted.rmtree()
        processes.barrier("delete, done")
        self._manager.reload()

    def wait(self) -> None:
        """Wait until what was saved is on disk; raises CheckpointError if that failed in the background."""
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
                f"{self._path}: a checkpoint can't be written: {first_line(error)}; those before it are safe. Mend "
                "that, or make room, and run the same command again"
            ) from error


@contextlib.contextmanager
def open_checkpoints(path: epath.Path) -> Iterator[Checkpoints]:
    """Open the checkpoints in a folder; at the end, also of a training that fails, wait for them and close them."""
    checkpoints = Checkpoints(path)
    try:
        yield checkpoints
    finally:
        checkpoints.close()


def load_run(workdir: epath.PathLike, run_id: str, step: int | None = None) -> tuple[ModelConfig, Any]:
    """Return one run's model configuration and parameters (numpy arrays), of its last checkpoint or the one at `step`.

    Reads this run's chunk of each array, not the stack; needs none of the devices that trained it.

    Raises:
      CheckpointError: no such run, no checkpoint of it (yet), or none at that step; says which there are.
    """
    record, path, places = _find(workdir, run_id)
    if not places or (step is not None and step not in places):
        at = "" if step is None else f" at step {step}"
        have = ", ".join(map(str, sorted(places))) or "none yet; train it first"
        raise CheckpointError(f"run '{run_id}' in {workdir} has no checkpoint{at}; steps: {have}")
    chosen = max(places) if step is None else step
    config = from_config_dict(ModelConfig, record["config"]["model"], "config.model")
    params = _read_member(path, chosen, places[chosen])
    check_fits(path / str(chosen), params, config)
    return config, params


def check_fits(place: epath.Path, params: Any, config: ModelConfig, stacked: bool = False) -> None:
    """Raise CheckpointError unless parameters, of one model or a stack, have the shapes of a configuration."""

    def shapes(tree: Any, drop: int) -> dict[str, tuple[int, ...]]:
        return {sharding.path_name(p): x.shape[drop:] for p, x in jax.tree_util.tree_leaves_with_path(tree)}

    have, want = shapes(params, int(stacked)), shapes(params_structs(config), 0)
    for path in sorted(have.keys() | want.keys()):
        if have.get(path) != want.get(path):
            raise CheckpointError(
                f"{place}: {path} is {have.get(path, 'not there')}, and its runs' configuration makes it "
                f"{want.get(path, 'not there')}; put config.json and sweep.json back, or the checkpoint"
            )


def read_end(workdir: epath.PathLike, run_id: str, step: int) -> tuple[int, int]:
    """Return the step at which a run diverged, as of a checkpoint, or -1, and the reason's place in step.REASONS.

    For an imported run, which has no moments, it isn't known: -1 and 0. Raises CheckpointError.
    """
    _, path, places = _find(workdir, run_id)
    if step not in places:
        raise CheckpointError(f"run '{run_id}' in {workdir} has no checkpoint at step {step}")
    if not (path / str(step) / "moments").exists():
        return -1, 0
    marks = _read_member(path, step, places[step], "moments", ("diverged_at", "reason"))
    return int(marks["diverged_at"]), int(marks["reason"])


def run_steps(workdir: epath.PathLike, run_id: str) -> list[int]:
    """Return the steps of a run's checkpoints, ascending; raises CheckpointError if there is no such run."""
    return sorted(_find(workdir, run_id)[2])


def load_stack(workdir: epath.PathLike, folder: str, step: int) -> tuple[list[str], Any]:
    """Return the run ids and stacked parameters (numpy arrays, inert members left out) of a checkpoint.

    Raises CheckpointError where it can't be read or isn't what was saved.
    """
    return _load(directory(workdir, folder), step)


def _load(path: epath.Path, step: int, item: str = "params") -> tuple[list[str], Any]:
    """Return the run ids and an item's stacked arrays, checked against what was saved."""
    with reading_errors(path / str(step)), contextlib.closing(open_manager(path)) as manager:
        members = _members(path / str(step))
        tree = manager.item_metadata(step)[item].tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        args = ocp.args.Composite(**{item: ocp.args.PyTreeRestore(restore_args=as_numpy)})
        arrays = manager.restore(step, args=args)[item]
    runs, saved = members["runs"], members["checksums"]
    if len(runs) > min(len(x) for x in jax.tree.leaves(arrays)):
        raise CheckpointError(f"{path / str(step)}: lists more runs than it holds; put it back from a copy")
    for place in range(len(runs)):
        check_member(path / str(step), item, jax.tree.map(lambda x, m=place: x[m], arrays), saved, place)
    return runs, jax.tree.map(lambda x: x[: len(runs)], arrays)


def member_lists(path: epath.Path) -> dict[int, list[str]]:
    """Return the run ids of every checkpoint of a cohort that was written to its end, by step."""
    if not path.exists():
        return {}
    lists = {}
    for step in sorted(int(p.name) for p in path.iterdir() if p.name.isdigit()):
        with contextlib.suppress(FileNotFoundError):  # deleted or set aside meanwhile
            lists[step] = _members(path / str(step))["runs"]
    return lists


def _members(checkpoint: epath.Path) -> dict[str, Any]:
    """Return the run ids by place, and checksums; FileNotFoundError if there is no such checkpoint (any more)."""
    path, remedy = checkpoint / "members" / "metadata", "put it back from a copy, or move the checkpoint away"
    try:
        members = read_json(path, remedy)
    except DamagedFileError as error:
        raise CheckpointError(str(error)) from error
    runs, sums = members.get("runs"), members.get("checksums")
    are_members = isinstance(runs, list) and all(isinstance(run, str) for run in runs)
    if not (are_members and isinstance(sums, dict) and all(isinstance(of, list) for of in sums.values())):
        raise CheckpointError(f"{path}: isn't a list of members with checksums; {remedy}")
    return members


def _find(workdir: epath.PathLike, run_id: str) -> tuple[dict[str, Any], epath.Path, dict[int, int]]:
    """Return a run's config.json, its cohort's checkpoints, and its place in each stack that holds it, by step."""
    record = run_record(workdir, run_id)
    path = directory(workdir, record["folder"])
    return record, path, {s: members.index(run_id) for s, members in member_lists(path).items() if run_id in members}


def _moments(state: State) -> dict[str, Any]:
    return {name: value for name, value in state._asdict().items() if name != "params"}


def _read_member(path: epath.Path, step: int, place: int, item: str = "params", only: Sequence[str] = ()) -> Any:
    """Return one member's arrays of an item, checked against what was saved; of a dict `only` some keys."""
    with reading_errors(path / str(step)), contextlib.closing(open_manager(path)) as manager:
        tree = manager.item_metadata(step)[item].tree
        tree = {key: tree[key] for key in only} if only else tree
    folder = path / str(step) / item

    def read(meta: Any) -> Any:
        # A local path as it is, never as a URL: a folder's name may hold % or #.
        base: Any = str(folder) if "://" in str(folder) else {"driver": "file", "path": f"{folder}/"}
        kvstore = {"driver": "ocdbt", "base": base}
        spec = {"driver": "zarr", "kvstore": kvstore | {"path": f"{meta.name}/"}}
        return tensorstore.open(spec, open=True, read=True)

    with reading_errors(path / str(step)):
        opened = jax.tree.map(read, tree)
        pending = jax.tree.map(lambda f: f.result()[place].read(), opened)
        member = jax.tree.map(lambda f: np.asarray(f.result()), pending)
        saved = _members(path / str(step))["checksums"]
    check_member(path / str(step), item, member, saved, place)
    return member
