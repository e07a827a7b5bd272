"""Orbax checkpoints of a cohort's stack, and the one run in it that somebody wants.

Layout of `cohorts/<folder>/checkpoints/<step>/`: the items `params`, `moments` (with step counters) and `members`, the
run ids in the order of the member axis and a checksum of each array. Arrays of at least 1 MiB a member are stored in
one chunk a member, so that one run is read without the others. The stack may hold inert members beyond the listed ones.
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
from olmo_jax.console import say
from olmo_jax.errors import CheckpointError as CheckpointError
from olmo_jax.execution import processes, sharding
from olmo_jax.files import DamagedFileError, read_json
from olmo_jax.step import State, params_structs
from olmo_jax.storage.checksums import check_member, checksums
from olmo_jax.storage.lock import lacks_locks
from olmo_jax.storage.run_files import run_record

with epy.lazy_imports():  # a third of a second, for commands that only list checkpoints
    import orbax.checkpoint as ocp
    import tensorstore


_METADATA = "_CHECKPOINT_METADATA"


def directory(workdir: epath.PathLike, folder: str) -> epath.Path:
    """Where the checkpoints of a cohort (Cohort.folder) lie, an absolute path (Orbax takes no other)."""
    path = epath.Path(workdir) / "cohorts" / folder / "checkpoints"
    return path if "://" in str(path) else path.absolute()


def check_place(workdir: epath.PathLike) -> None:
    """Raises ConfigError for a working directory below which checkpoints would be written and never read.

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
            _lock_by_files()
        self._path = path
        if processes.is_first():
            _drop_damaged(path)
        processes.meet("damaged metadata dropped")
        with _reading(path):
            self._manager = _open(path)

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: State, members: Sequence[str]) -> None:
        """Copies the stack off the device and writes it in the background.

        Raises CheckpointError for what can't be written, an earlier one's failure in the background included.
        """
        moments = _moments(state)
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.PyTreeSave(state.params, save_args=_chunk_a_member(state.params)),
                    moments=ocp.args.PyTreeSave(moments, save_args=_chunk_a_member(moments)),
                    members=ocp.args.JsonSave({"runs": list(members), "checksums": checksums(state)}),
                ),
            )

    def save_params(self, step: int, params_M: Any, members: Sequence[str]) -> None:
        """Writes a stack that nothing will train on from, without moments; returns once it is on disk."""
        params = ocp.args.PyTreeSave(params_M, save_args=_chunk_a_member(params_M))
        listed = {"runs": list(members), "checksums": checksums({"params": params_M})}
        composite = ocp.args.Composite(params=params, members=ocp.args.JsonSave(listed))
        with self._writing():
            # Forced, for Orbax leaves out a step before the last one that is there.
            self._manager.save(step, args=composite, force=True)
        self.wait()

    def restore(self, step: int, member: State, mesh: Mesh, fsdp: bool = False) -> State:
        """The stack of a checkpoint laid over `mesh`, whatever mesh saved it; `member` gives one member's shapes.

        Raises CheckpointError, in every process, where it isn't whole or isn't what was saved, by its checksums.
        """
        place, restored, saved = self._path / str(step), None, {}
        try:
            with _reading(place):
                saved = _members(place)["checksums"]
                size = jax.tree.leaves(self._manager.item_metadata(step)["params"].tree)[0].shape[0]
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape), x.dtype), member)
            params, moments = (_restore(tree, mesh, fsdp) for tree in (like.params, _moments(like)))
            with _reading(place):
                args = ocp.args.Composite(params=params, moments=moments)
                restored = self._manager.restore(step, args=args)
            failed = None
        except CheckpointError as error:
            failed = error
        if processes.anyone(failed is not None) or restored is None:
            raise failed or CheckpointError(f"{place}: another process can't read it")
        state = State(params=restored["params"], **restored["moments"])
        if changed := [name for name, value in checksums(state).items() if saved.get(name) != value]:
            raise CheckpointError(f"{place}: {', '.join(changed[:3])} isn't what was saved")
        return state

    def check(self, step: int) -> None:
        """Raises CheckpointError, in every process, unless a checkpoint can be read and is what was saved."""
        failed = None
        try:
            if processes.is_first():
                for item in ("params", "moments"):
                    _load(self._path, step, item)
        except CheckpointError as error:
            failed = error
        if processes.anyone(failed is not None):
            raise failed or CheckpointError(f"{self._path / str(step)}: the first process can't read it")

    def set_aside(self, step: int) -> epath.Path:
        """Moves a checkpoint out of the way, to where nothing looks for it; returns where it lies."""
        folder = self._path.parent / "broken"
        folder.mkdir(exist_ok=True)
        taken = {p.name for p in folder.iterdir()}
        free = (f"{step}" if k == 0 else f"{step}.{k}" for k in itertools.count())
        place = folder / next(name for name in free if name not in taken)
        processes.meet("set aside")  # all have seen what is taken
        if processes.is_first():
            (self._path / str(step)).rename(place)
        processes.meet("set aside, done")
        self._manager.reload()
        return place

    def delete(self, step: int) -> None:
        """Deletes a checkpoint; cut short, nothing is left where checkpoints are looked for."""
        processes.meet("delete")
        if processes.is_first():
            self._deleted.mkdir(exist_ok=True)
            (self._path / str(step)).rename(self._deleted / str(step))
            self._deleted.rmtree()
        processes.meet("delete, done")
        self._manager.reload()

    def wait(self) -> None:
        """Until what was saved is on disk; raises CheckpointError if that went wrong in the background."""
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
                f"{self._path}: a checkpoint can't be written: {_first_line(error)}; those before it are safe. Mend "
                "that, or make room, and run the same command again"
            ) from error


@contextlib.contextmanager
def open_checkpoints(path: epath.Path) -> Iterator[Checkpoints]:
    """Checkpoints that are waited for and closed at the end, also when training fails."""
    checkpoints = Checkpoints(path)
    try:
        yield checkpoints
    finally:
        checkpoints.close()


def load_run(workdir: epath.PathLike, run_id: str, step: int | None = None) -> tuple[ModelConfig, Any]:
    """One run's model configuration and parameters (numpy arrays), from its last checkpoint or the one at `step`.

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
    """Raises CheckpointError unless parameters, of one model or a stack, have the shapes of a configuration."""

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
    """Of a run at a checkpoint, the step at which it diverged, or -1, and the place in step.REASONS of why.

    Of an imported one, which has no moments, it isn't known: -1 and 0. Raises CheckpointError.
    """
    _, path, places = _find(workdir, run_id)
    if step not in places:
        raise CheckpointError(f"run '{run_id}' in {workdir} has no checkpoint at step {step}")
    if not (path / str(step) / "moments").exists():
        return -1, 0
    marks = _read_member(path, step, places[step], "moments", ("diverged_at", "reason"))
    return int(marks["diverged_at"]), int(marks["reason"])


def run_steps(workdir: epath.PathLike, run_id: str) -> list[int]:
    """Steps of a run's checkpoints, ascending; none before its first. Raises CheckpointError: no such run."""
    return sorted(_find(workdir, run_id)[2])


def load_stack(workdir: epath.PathLike, folder: str, step: int) -> tuple[list[str], Any]:
    """Run ids and stacked parameters (numpy arrays, inert members left out) of a checkpoint.

    Raises CheckpointError where it can't be read or isn't what was saved.
    """
    return _load(directory(workdir, folder), step)


def _load(path: epath.Path, step: int, item: str = "params") -> tuple[list[str], Any]:
    """Run ids and an item's stacked arrays, checked against what was saved."""
    with _reading(path / str(step)), contextlib.closing(_open(path)) as manager:
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
    """Step -> run ids, of every checkpoint of a cohort that was written to its end."""
    if not path.exists():
        return {}
    found = {}
    for step in sorted(int(p.name) for p in path.iterdir() if p.name.isdigit()):
        with contextlib.suppress(FileNotFoundError):  # deleted or set aside meanwhile
            found[step] = _members(path / str(step))["runs"]
    return found


def _members(checkpoint: epath.Path) -> dict[str, Any]:
    """Run ids by place, and checksums. FileNotFoundError where there is no such checkpoint (any more)."""
    path, remedy = checkpoint / "members" / "metadata", "put it back from a copy, or move the checkpoint away"
    try:
        found = read_json(path, remedy)
    except DamagedFileError as error:
        raise CheckpointError(str(error)) from error
    runs, sums = found.get("runs"), found.get("checksums")
    are_members = isinstance(runs, list) and all(isinstance(run, str) for run in runs)
    if not (are_members and isinstance(sums, dict) and all(isinstance(of, list) for of in sums.values())):
        raise CheckpointError(f"{path}: isn't a list of members with checksums; {remedy}")
    return found


def _find(workdir: epath.PathLike, run_id: str) -> tuple[dict[str, Any], epath.Path, dict[int, int]]:
    """A run's config.json, its cohort's checkpoints, and its place in the stack of each that holds it, by step."""
    record = run_record(workdir, run_id)
    path = directory(workdir, record["folder"])
    return record, path, {s: members.index(run_id) for s, members in member_lists(path).items() if run_id in members}


def _moments(state: State) -> dict[str, Any]:
    return {name: value for name, value in state._asdict().items() if name != "params"}


def _lock_by_files() -> None:
    """Makes tensorstore use lock files, in this process from now on.

    Where the file system has no locks it can't write an OCDBT manifest else ("Function not implemented"). Orbax has
    no option for it: all of its contexts are made from this one.
    """
    from orbax.checkpoint._src.serialization import tensorstore_utils  # no public name, so only where it is needed

    tensorstore_utils._DEFAULT_OCDBT_TS_CONTEXT["file_io_locking"] = {"mode": "lockfile"}


def _open(path: epath.Path) -> "ocp.CheckpointManager":
    """Opens Orbax's manager. Raises CheckpointError for damaged checkpoint metadata, on which Orbax would fail."""
    for step in (p for p in path.iterdir() if p.name.isdigit()):
        _check_metadata(step / _METADATA)
    handlers = {
        "params": ocp.PyTreeCheckpointHandler(),
        "moments": ocp.PyTreeCheckpointHandler(),
        "members": ocp.JsonCheckpointHandler(),
    }
    return ocp.CheckpointManager(path, item_handlers=handlers, options=ocp.CheckpointManagerOptions(create=False))


def _check_metadata(path: epath.Path) -> None:
    """Raises CheckpointError if Orbax's own metadata of a checkpoint are damaged; nothing in them is needed here."""
    remedy = "delete that file, the checkpoint is read without it"
    try:
        metadata = read_json(path, remedy)
    except FileNotFoundError:
        return
    except DamagedFileError as error:
        raise CheckpointError(str(error)) from error
    sections = ("item_handlers", "metrics", "performance_metrics", "custom_metadata")
    stamps = ("init_timestamp_nsecs", "commit_timestamp_nsecs")
    whole = (
        all(isinstance(metadata.get(key, {}), dict) for key in sections)
        and all(isinstance(of, str) for of in metadata.get("item_handlers", {}).values())
        and all(metadata.get(key) is None or type(metadata[key]) is int for key in stamps)
        and not metadata.get("performance_metrics")
    )
    if not whole:
        raise CheckpointError(f"{path}: isn't what Orbax wrote; {remedy}")


def _drop_damaged(path: epath.Path) -> None:
    for step in (p for p in path.iterdir() if p.name.isdigit()):
        try:
            _check_metadata(step / _METADATA)
        except CheckpointError as error:
            (step / _METADATA).unlink()
            say(f"{error}; done")


def _read_member(path: epath.Path, step: int, place: int, item: str = "params", only: Sequence[str] = ()) -> Any:
    """One member's arrays of an item, checked against what was saved; of a dict `only` some keys."""
    with _reading(path / str(step)), contextlib.closing(_open(path)) as manager:
        tree = manager.item_metadata(step)[item].tree
        tree = {key: tree[key] for key in only} if only else tree
    folder = path / str(step) / item

    def read(meta: Any) -> Any:
        # A local path as it is, never as a URL: a folder's name may hold % or #.
        base: Any = str(folder) if "://" in str(folder) else {"driver": "file", "path": f"{folder}/"}
        kvstore = {"driver": "ocdbt", "base": base}
        spec = {"driver": "zarr", "kvstore": kvstore | {"path": f"{meta.name}/"}}
        return tensorstore.open(spec, open=True, read=True)

    with _reading(path / str(step)):
        opened = jax.tree.map(read, tree)
        pending = jax.tree.map(lambda f: f.result()[place].read(), opened)
        member = jax.tree.map(lambda f: np.asarray(f.result()), pending)
        saved = _members(path / str(step))["checksums"]
    check_member(path / str(step), item, member, saved, place)
    return member


@contextlib.contextmanager
def _reading(checkpoint: epath.Path) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # of files that are gone or garbled Orbax raises anything, bare Exceptions too
        # Other troubles with a disk, and a device that is full, may pass.
        if isinstance(error, _PASSING) and not isinstance(error, FileNotFoundError):
            raise
        raise CheckpointError(
            f"{checkpoint}: can't be read: {_first_line(error)}; put it back from a copy, or choose another step"
        ) from error


_PASSING = (OSError, MemoryError, jax.errors.JaxRuntimeError)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


def _chunk_a_member(tree: Any) -> Any:
    def of(x: jax.Array) -> "ocp.SaveArgs":
        share = x.nbytes // x.shape[0]
        # Below this Orbax warns, for small chunks read slowly; and then reading all members costs next to nothing.
        return ocp.SaveArgs(chunk_byte_size=share, shard_axes=(0,)) if share >= 2**20 else ocp.SaveArgs()

    return jax.tree.map(of, tree)


def _restore(tree: Any, mesh: Mesh, fsdp: bool) -> Any:
    shardings = sharding.stack_shardings(mesh, tree, fsdp)
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)
    return ocp.args.PyTreeRestore(like, restore_args=ocp.checkpoint_utils.construct_restore_args(like))
