"""Copy a sweep's working directory to a mirror, for hosts that may be lost at any moment.

While a sweep trains, `mirrored` copies complete files to a folder or an object store; on an empty disk `fetch` restores
them. The mirror has the layout of the working directory. On it a checkpoint is complete once `<step>.complete.json`,
{file: size}, lies beside it, a data set once its index.json exists, a sweep once sweep.json does. Resuming truncates
metrics beyond the last checkpoint, so they are copied only with checkpoints and at the end.
"""

import contextlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from etils import epath
from pyarrow import fs

from olmo_jax.console import progress, say
from olmo_jax.data.shards import INDEX_FILE
from olmo_jax.files import read_json
from olmo_jax.logs.metrics import METRICS, TIMINGS
from sweeps.remote.store import PARTIAL, DamagedMirrorError, MirrorError, Store

_SWEEP, _COMPLETE = "sweep.json", ".complete.json"
_MARKER = ".mirror"  # an empty file on the mirror; if it is gone, so may be everything that was sent
_FILE = re.compile(
    r"cohorts/[^/]+/compute\.json|runs/[^/]+/((config|status|columns|results/[^/]+)\.json|(metrics|timings)\.jsonl)"
)
_CHECKPOINT = re.compile(r"(cohorts/[^/]+/checkpoints/[0-9]+)" + re.escape(_COMPLETE))
_INDEX = re.compile(r"(data/[^/]+)/" + re.escape(INDEX_FILE))
_TRANSFERS = 8  # at a time: most files are small, and the latency of an object store dominates

Stamp = tuple[int, ...]


def fetch(url: str, workdir: epath.Path) -> int:
    """Fetch what is complete on the mirror into a working directory that has no sweep.json yet; else do nothing.

    Files, checkpoints and data sets each appear by one rename, sweep.json last; after an interruption the next call
    starts over.

    Returns:
      The number of files fetched; 0 if the mirror holds no sweep, or if `url` is empty.

    Raises:
      ConfigError: the URL can't be a mirror's. MirrorError: it can't be read, or its sweep.json is damaged.
    """
    if not url:
        return 0
    store, local = Store(url, workdir), Path(workdir)
    if (local / _SWEEP).exists() or _SWEEP not in (remote := store.files()):
        return 0
    _runs(store.read_json(_SWEEP), f"{store.url}: {_SWEEP}")
    folders = {f: names for f, names in _complete_folders(store, remote).items() if not (local / f).exists()}
    files = [name for name in remote if _FILE.fullmatch(name)]
    names = [*(f"{folder}/{name}" for folder, names in folders.items() for name in names), *files, _SWEEP]
    staging = local / f".fetch{PARTIAL}"
    if staging.exists():
        shutil.rmtree(staging)
    with progress(f"fetch {store.url}", len(names)) as show:
        _in_parallel(lambda name: store.get(remote[name], name, staging / name), names, show)
    for name in (*folders, *files, _SWEEP):
        (local / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / name).replace(local / name)
    shutil.rmtree(staging)
    return len(names)


@contextlib.contextmanager
def mirrored(workdir: epath.Path, url: str, every: float = 5.0) -> Iterator[None]:
    """Copy new files of a working directory every few seconds, and once more on leaving; do nothing without a URL.

    While the mirror can't be reached, one line says so and each round tries again.

    Raises:
      ConfigError: the URL can't be a mirror's. MirrorError: on entering, it can't be reached or holds another sweep; on
      leaving, the last copy failed (which is only printed if the body raised).
    """
    if not url:
        yield
        return
    mirror = _Mirror(Store(url, workdir), Path(workdir))
    leave = threading.Event()
    thread = threading.Thread(target=_copy_repeatedly, args=(mirror, leave, every), name="mirror", daemon=True)
    thread.start()
    completed = False
    try:
        yield
        completed = True
    finally:
        leave.set()
        thread.join()
        try:
            mirror.copy(last=True)
        except MirrorError as error:
            if completed:
                raise
            say(str(error))


def _copy_repeatedly(mirror: "_Mirror", leave: threading.Event, every: float) -> None:
    failing = False
    while not leave.wait(every):
        try:
            mirror.copy()
            failing = False
        except MirrorError as error:
            if not failing:
                say(f"{error} (retrying every {every:g} s)")
            failing = True


class _Mirror:
    """A record of which files of a working directory are on its mirror, and the method that copies the others."""

    def __init__(self, store: Store, workdir: Path):
        self._store, self._workdir = store, workdir
        remote = store.files()
        sweep = workdir / _SWEEP
        runs = _runs(read_json(sweep, "put it back from a copy"), str(sweep)) if sweep.exists() else set()
        if _SWEEP in remote and not _runs(store.read_json(_SWEEP), f"{store.url}: {_SWEEP}") <= runs:
            raise MirrorError(
                f"{store.url}: holds runs that {workdir} doesn't have; choose another --mirror or --workdir"
            )
        store.put(_MARKER, b"")  # fails at once if the mirror can't be written to
        # A file that isn't older on the mirror was sent or fetched by this host, or sent later by another.
        small = {name: stamp for name in self._small() if (stamp := _stamp(workdir / name)) and name in remote}
        self._sent = {name: stamp for name, stamp in small.items() if remote[name].mtime_ns >= stamp[0]}
        self._checkpoints = {name for name in self._folders() if not name.startswith("data/")}

    def copy(self, last: bool = False) -> None:
        """Copy what is new, in an order that leaves the mirror usable whenever it is interrupted. Raises MirrorError.

        Metrics are read after the checkpoints are listed, so that they cover each of these. Files that declare work
        done (status.json, results) are read before the checkpoints are listed and sent after them.
        """
        try:
            self._copy(last)
        except OSError as error:
            raise MirrorError(f"copying {self._workdir} to {self._store.url}: {error}; check the disk") from error

    def _copy(self, last: bool) -> None:
        if last:
            self._store.check_has(_MARKER)
        small = self._small()
        declarations = self._changed(n for n in small if _declares_done(n))
        contents = {name: self._read(name) for name in declarations}
        folders = self._folders()
        new = {name: stamp for name, stamp in folders.items() if self._sent.get(name) != stamp}
        checkpoints = [name for name in new if not name.startswith("data/")]
        deleted = [name for name in self._checkpoints - folders.keys() if _has_sibling(name, folders)]
        self._checkpoints.update(checkpoints)

        for name in new.keys() - set(checkpoints):
            self._send_folder(name, new[name])
        self._send(self._changed(n for n in small if not _declares_done(n) and not n.endswith(".jsonl")))
        if checkpoints or last:
            self._send(self._changed(n for n in small if n.endswith(".jsonl")))
        for name in checkpoints:
            self._send_folder(name, new[name])
        for name in deleted:
            self._store.delete(name + _COMPLETE)
            self._store.delete(name, folder=True)
            self._sent.pop(name, None)
            self._checkpoints.remove(name)
        self._send(declarations, contents)

    def _send(self, stamps: dict[str, Stamp], contents: dict[str, bytes] | None = None) -> None:
        if stamps:
            self._store.check_has(_MARKER)

        def send(name: str) -> None:
            content = contents[name] if contents else self._read(name)
            if name.endswith(".jsonl"):
                content = content[: content.rfind(b"\n") + 1]  # without a line that is still being written
            self._store.put(name, content)
            self._sent[name] = stamps[name]

        _in_parallel(send, stamps)

    def _send_folder(self, name: str, stamp: Stamp) -> None:
        """Send a data set or checkpoint, then the file that marks it complete; nothing if the mirror has the same."""
        files = self._files_of(name)
        index = INDEX_FILE if name.startswith("data/") else None
        marker = f"{name}/{index}" if index else name + _COMPLETE
        content = self._read(marker) if index else json.dumps(files).encode()
        if self._store.has(marker) and self._store.read(marker) == content:
            self._sent[name] = stamp
            return
        if not index and self._store.has(marker) and files.items() < _sizes(self._store, marker).items():
            return  # the checkpoint is being deleted from the disk; the next round handles that
        self._store.delete(marker)  # that of an earlier checkpoint of this step

        def send(file: str) -> None:
            self._store.put(f"{name}/{file}", self._workdir / name / file)

        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile; the next round handles that
            _in_parallel(send, [file for file in files if file != index])
            if files and self._files_of(name) == files:
                self._store.put(marker, content)
                self._sent[name] = stamp

    def _changed(self, names: Iterable[str]) -> dict[str, Stamp]:
        stamps = {name: stamp for name in names if (stamp := _stamp(self._workdir / name))}
        return {name: stamp for name, stamp in stamps.items() if self._sent.get(name) != stamp}

    def _small(self) -> list[str]:
        """Return the names of the files that are sent one by one, whether or not they exist yet."""
        runs = [f"runs/{run}" for run in self._names("runs")]
        results = [f"{run}/results/{name}" for run in runs for name in self._names(f"{run}/results")]
        files = [
            f"{run}/{name}" for run in runs for name in ("config.json", "status.json", "columns.json", METRICS, TIMINGS)
        ]
        computes = [f"cohorts/{cohort}/compute.json" for cohort in self._names("cohorts")]
        return [_SWEEP, *computes, *files, *filter(_FILE.fullmatch, results)]

    def _folders(self) -> dict[str, Stamp]:
        """Return prepared data and committed checkpoints; Orbax renames a folder to its step once it is complete."""
        parents = [f"cohorts/{cohort}/checkpoints" for cohort in self._names("cohorts")]
        names = [f"{parent}/{step}" for parent in parents for step in self._names(parent) if step.isdigit()]
        data = [f"data/{name}" for name in self._names("data") if (self._workdir / "data" / name / INDEX_FILE).exists()]
        complete = names + [name for name in data if not _is_temporary(name)]
        return {name: stamp for name in complete if (stamp := _stamp(self._workdir / name))}

    def _files_of(self, folder: str) -> dict[str, int]:
        """Return the files of a data set or checkpoint with their sizes, in bytes."""
        base = self._workdir / folder
        stamps = {path.relative_to(base).as_posix(): _stamp(path) for path in base.rglob("*") if not path.is_dir()}
        is_data = folder.startswith("data/")
        return {name: s[1] for name, s in sorted(stamps.items()) if s and not (is_data and _is_temporary(name))}

    def _names(self, folder: str) -> list[str]:
        path = self._workdir / folder
        return sorted(os.listdir(path)) if path.is_dir() else []

    def _read(self, name: str) -> bytes:
        return (self._workdir / name).read_bytes()


def _complete_folders(store: Store, remote: dict[str, fs.FileInfo]) -> dict[str, list[str]]:
    """Return the files of each checkpoint and data set that is complete on the mirror."""
    folders: dict[str, list[str]] = {}
    for name in remote:
        if match := _CHECKPOINT.fullmatch(name):
            listed = _sizes(store, name)
            sizes = {file: info.size for file in listed if (info := remote.get(f"{match[1]}/{file}"))}
            if listed and sizes == listed:
                folders[match[1]] = list(listed)
            else:
                say(f"{store.url}: {match[1]} doesn't match {name}; left out")
        elif (match := _INDEX.fullmatch(name)) and not _is_temporary(name):
            files = [n[len(match[1]) + 1 :] for n in remote if n.startswith(match[1] + "/")]
            folders[match[1]] = [file for file in files if not _is_temporary(file)]
    return folders


def _sizes(store: Store, name: str) -> dict[str, int]:
    """Return the file sizes in a `.complete.json`; none if it is damaged: its checkpoint then counts as incomplete."""
    try:
        return store.read_json(name)
    except DamagedMirrorError:
        return {}


def _in_parallel(
    action: Callable[[str], None], names: Collection[str], show: Callable[[int, str], None] = lambda done, name: None
) -> None:
    """Call `action` for each name, several at a time, and show how many are done. The first error is raised."""
    with ThreadPoolExecutor(_TRANSFERS) as pool:
        for done, (name, _) in enumerate(zip(names, pool.map(action, names), strict=True), 1):
            show(done, name)


def _has_sibling(checkpoint: str, others: Iterable[str]) -> bool:
    """Return whether a checkpoint's cohort has another; if not, the disk was emptied, and the mirror keeps its copy."""
    parent = checkpoint.rpartition("/")[0]
    return any(other.rpartition("/")[0] == parent for other in others)


def _declares_done(name: str) -> bool:
    return name.endswith("/status.json") or "/results/" in name


def _is_temporary(name: str) -> bool:
    return any(part.startswith(".") or part.endswith(PARTIAL) for part in name.split("/"))


def _runs(sweep: Any, name: str) -> set[str]:
    try:
        return {run["run_id"] for cohort in sweep["cohorts"] for run in cohort["runs"]}
    except (KeyError, TypeError) as error:
        raise MirrorError(f"{name} is damaged: it names no runs; put it back from a copy") from error


def _stamp(path: Path) -> Stamp | None:
    """Return modification time, size and inode, which change with a file's content; None if it doesn't exist."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
