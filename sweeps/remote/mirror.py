"""A copy of a sweep's working directory elsewhere, for hosts that may go at any moment.

While a sweep trains, `mirrored` copies what is committed to a folder or an object store; on an empty disk `fetch`
brings it back. The mirror is laid out as the working directory is. A checkpoint there is whole once
`<step>.complete.json`, {file: size}, lies beside it, data are once their index.json is there, a sweep once sweep.json
is. Metrics beyond the last checkpoint are cut on resume, so they travel with checkpoints and at the end.
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
from sweeps.remote.store import PARTIAL, DamagedMirrorError, MirrorError, Place

_SWEEP, _COMPLETE = "sweep.json", ".complete.json"
_HERE = ".mirror"  # empty; once it is gone from there, all that was sent may be
_FILE = re.compile(
    r"cohorts/[^/]+/compute\.json|runs/[^/]+/((config|status|results/[^/]+)\.json|(metrics|timings)\.jsonl)"
)
_CHECKPOINT = re.compile(r"(cohorts/[^/]+/checkpoints/[0-9]+)" + re.escape(_COMPLETE))
_INDEX = re.compile(r"(data/[^/]+)/" + re.escape(INDEX_FILE))
_AT_ONCE = 8  # files on their way: most are small, and an object store takes its time over each

Stamp = tuple[int, ...]


def fetch(url: str, workdir: epath.Path) -> int:
    """Brings what is whole on the mirror into a working directory that has no sweep.json yet; else does nothing.

    Files, checkpoints and data sets each appear by one rename, sweep.json last: cut short, the next call begins again.

    Returns:
      The number of files fetched; 0 where the mirror holds no sweep, or where `url` is empty.

    Raises:
      ConfigError: the URL can't be a mirror's. MirrorError: it can't be read, or its sweep.json is damaged.
    """
    if not url:
        return 0
    place, local = Place(url, workdir), Path(workdir)
    if (local / _SWEEP).exists() or _SWEEP not in (there := place.files()):
        return 0
    _runs(place.read_json(_SWEEP), f"{place.url}: {_SWEEP}")
    folders = {f: names for f, names in _whole_folders(place, there).items() if not (local / f).exists()}
    files = [name for name in there if _FILE.fullmatch(name)]
    names = [*(f"{folder}/{name}" for folder, names in folders.items() for name in names), *files, _SWEEP]
    staging = local / f".fetch{PARTIAL}"
    if staging.exists():
        shutil.rmtree(staging)
    with progress(f"fetch {place.url}", len(names)) as show:
        _at_once(lambda name: place.get(there[name], name, staging / name), names, show)
    for name in (*folders, *files, _SWEEP):
        (local / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / name).replace(local / name)
    shutil.rmtree(staging)
    return len(names)


@contextlib.contextmanager
def mirrored(workdir: epath.Path, url: str, every: float = 5.0) -> Iterator[None]:
    """Copies what is new in a working directory every few seconds, and once more on leaving; nothing without a URL.

    While the mirror can't be reached, one line says so and each round tries again.

    Raises:
      ConfigError: the URL can't be a mirror's. MirrorError: on entering, it can't be reached or holds another sweep; on
      leaving, the last copy failed (which is only said if the body raised).
    """
    if not url:
        yield
        return
    mirror = _Mirror(Place(url, workdir), Path(workdir))
    leave = threading.Event()
    thread = threading.Thread(target=_rounds, args=(mirror, leave, every), name="mirror", daemon=True)
    thread.start()
    ended = False
    try:
        yield
        ended = True
    finally:
        leave.set()
        thread.join()
        try:
            mirror.copy(last=True)
        except MirrorError as error:
            if ended:
                raise
            say(str(error))


def _rounds(mirror: "_Mirror", leave: threading.Event, every: float) -> None:
    failing = False
    while not leave.wait(every):
        try:
            mirror.copy()
            failing = False
        except MirrorError as error:
            if not failing:
                say(f"{error} (tried again every {every:g} s)")
            failing = True


class _Mirror:
    """What of a working directory is on its mirror, and the rounds that copy the rest."""

    def __init__(self, place: "Place", workdir: Path):
        self._place, self._workdir = place, workdir
        there = place.files()
        here = workdir / _SWEEP
        runs = _runs(read_json(here, "put it back from a copy"), str(here)) if here.exists() else set()
        if _SWEEP in there and not _runs(place.read_json(_SWEEP), f"{place.url}: {_SWEEP}") <= runs:
            raise MirrorError(
                f"{place.url}: holds runs that {workdir} hasn't got; choose another --mirror or --workdir"
            )
        place.put(_HERE, b"")  # what can't be written to is refused at once
        # What isn't older there has been sent from here, or fetched; or another host has sent more since.
        small = {name: stamp for name in self._small() if (stamp := _stamp(workdir / name)) and name in there}
        self._sent = {name: stamp for name, stamp in small.items() if there[name].mtime_ns >= stamp[0]}
        self._seen = {name for name in self._folders() if not name.startswith("data/")}

    def copy(self, last: bool = False) -> None:
        """One round, in such an order that the mirror may be fetched from whenever it is cut short. Raises MirrorError.

        Metrics are read once the checkpoints are listed, so that they reach to each of these. What says that something
        is done is read before, and sent after them.
        """
        try:
            self._copy(last)
        except OSError as error:
            raise MirrorError(f"copying {self._workdir} to {self._place.url}: {error}; see to the disk") from error

    def _copy(self, last: bool) -> None:
        if last:
            self._place.check_has(_HERE)
        small = self._small()
        claimed = self._changed(n for n in small if _is_claim(n))
        claims = {name: self._read(name) for name in claimed}
        folders = self._folders()
        new = {name: stamp for name, stamp in folders.items() if self._sent.get(name) != stamp}
        checkpoints = [name for name in new if not name.startswith("data/")]
        gone = [name for name in self._seen - folders.keys() if _has_sibling(name, folders)]
        self._seen.update(checkpoints)

        for name in new.keys() - set(checkpoints):
            self._send_folder(name, new[name])
        self._send(self._changed(n for n in small if not _is_claim(n) and not n.endswith(".jsonl")))
        if checkpoints or last:
            self._send(self._changed(n for n in small if n.endswith(".jsonl")))
        for name in checkpoints:
            self._send_folder(name, new[name])
        for name in gone:
            self._place.delete(name + _COMPLETE)
            self._place.delete(name, folder=True)
            self._sent.pop(name, None)
            self._seen.remove(name)
        self._send(claimed, claims)

    def _send(self, stamps: dict[str, Stamp], contents: dict[str, bytes] | None = None) -> None:
        if stamps:
            self._place.check_has(_HERE)

        def send(name: str) -> None:
            content = contents[name] if contents else self._read(name)
            if name.endswith(".jsonl"):
                content = content[: content.rfind(b"\n") + 1]  # no line that is being written
            self._place.put(name, content)
            self._sent[name] = stamps[name]

        _at_once(send, stamps)

    def _send_folder(self, name: str, stamp: Stamp) -> None:
        """Sends data or a checkpoint, then what makes it whole there; nothing if just that is there."""
        files = self._files_of(name)
        index = INDEX_FILE if name.startswith("data/") else None
        marker = f"{name}/{index}" if index else name + _COMPLETE
        content = self._read(marker) if index else json.dumps(files).encode()
        if self._place.has(marker) and self._place.read(marker) == content:
            self._sent[name] = stamp
            return
        if not index and self._place.has(marker) and files.items() < _sizes(self._place, marker).items():
            return  # it is being deleted here, which the next round sees
        self._place.delete(marker)  # of an earlier checkpoint of this step

        def send(file: str) -> None:
            self._place.put(f"{name}/{file}", self._workdir / name / file)

        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile: the next round sees that
            _at_once(send, [file for file in files if file != index])
            if files and self._files_of(name) == files:
                self._place.put(marker, content)
                self._sent[name] = stamp

    def _changed(self, names: Iterable[str]) -> dict[str, Stamp]:
        stamps = {name: stamp for name in names if (stamp := _stamp(self._workdir / name))}
        return {name: stamp for name, stamp in stamps.items() if self._sent.get(name) != stamp}

    def _small(self) -> list[str]:
        """Names of the files that are sent one by one, sweep.json and compute.json among them, there or not."""
        runs = [f"runs/{run}" for run in self._names("runs")]
        results = [f"{run}/results/{name}" for run in runs for name in self._names(f"{run}/results")]
        files = [f"{run}/{name}" for run in runs for name in ("config.json", "status.json", METRICS, TIMINGS)]
        computes = [f"cohorts/{cohort}/compute.json" for cohort in self._names("cohorts")]
        return [_SWEEP, *computes, *files, *filter(_FILE.fullmatch, results)]

    def _folders(self) -> dict[str, Stamp]:
        """Prepared data, and committed checkpoints: Orbax renames a folder to its step once all is in it."""
        parents = [f"cohorts/{cohort}/checkpoints" for cohort in self._names("cohorts")]
        names = [f"{parent}/{step}" for parent in parents for step in self._names(parent) if step.isdigit()]
        data = [f"data/{name}" for name in self._names("data") if (self._workdir / "data" / name / INDEX_FILE).exists()]
        found = names + [name for name in data if not _is_passing(name)]
        return {name: stamp for name in found if (stamp := _stamp(self._workdir / name))}

    def _files_of(self, folder: str) -> dict[str, int]:
        """The files of such a folder with their sizes."""
        base = self._workdir / folder
        stamps = {path.relative_to(base).as_posix(): _stamp(path) for path in base.rglob("*") if not path.is_dir()}
        of_data = folder.startswith("data/")
        return {name: s[1] for name, s in sorted(stamps.items()) if s and not (of_data and _is_passing(name))}

    def _names(self, folder: str) -> list[str]:
        path = self._workdir / folder
        return sorted(os.listdir(path)) if path.is_dir() else []

    def _read(self, name: str) -> bytes:
        return (self._workdir / name).read_bytes()


def _whole_folders(place: Place, there: dict[str, fs.FileInfo]) -> dict[str, list[str]]:
    """The files of each checkpoint and data set that is all there."""
    found: dict[str, list[str]] = {}
    for name in there:
        if match := _CHECKPOINT.fullmatch(name):
            listed = _sizes(place, name)
            sizes = {file: info.size for file in listed if (info := there.get(f"{match[1]}/{file}"))}
            if listed and sizes == listed:
                found[match[1]] = list(listed)
            else:
                say(f"{place.url}: {match[1]} isn't what {name} says; left out")
        elif (match := _INDEX.fullmatch(name)) and not _is_passing(name):
            files = [n[len(match[1]) + 1 :] for n in there if n.startswith(match[1] + "/")]
            found[match[1]] = [file for file in files if not _is_passing(file)]
    return found


def _sizes(place: Place, name: str) -> dict[str, int]:
    """What a `.complete.json` says of a checkpoint; nothing where it is damaged, for nobody can vouch for that one."""
    try:
        return place.read_json(name)
    except DamagedMirrorError:
        return {}


def _at_once(
    action: Callable[[str], None], names: Collection[str], show: Callable[[int, str], None] = lambda done, name: None
) -> None:
    """Does `action` for each name, several at a time, and shows how many are done. The first error ends it."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for done, (name, _) in enumerate(zip(names, pool.map(action, names), strict=True), 1):
            show(done, name)


def _has_sibling(checkpoint: str, others: Iterable[str]) -> bool:
    """Whether its cohort has another: if not, the disk was emptied, and the mirror is there for just that."""
    parent = checkpoint.rpartition("/")[0]
    return any(other.rpartition("/")[0] == parent for other in others)


def _is_claim(name: str) -> bool:
    return name.endswith("/status.json") or "/results/" in name


def _is_passing(name: str) -> bool:
    return any(part.startswith(".") or part.endswith(PARTIAL) for part in name.split("/"))


def _runs(sweep: Any, name: str) -> set[str]:
    try:
        return {run["run_id"] for cohort in sweep["cohorts"] for run in cohort["runs"]}
    except (KeyError, TypeError) as error:
        raise MirrorError(f"{name} is damaged: it names no runs; put it back from a copy") from error


def _stamp(path: Path) -> Stamp | None:
    """Time, size and identity, which tell two contents of a path apart; None where there is nothing."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
