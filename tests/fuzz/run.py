"""The loop: damaged inputs to commands in processes that are forked off one which has everything imported.

An input is a function of seed, format and index alone, and so can be had again. A command ends well if it ends in time
with one of EXITS, at most MOST_LINES on stderr, no traceback, and everything of the user's as it was.
"""

import dataclasses
import fnmatch
import hashlib
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tests.fuzz.mutations import mutate
from tests.fuzz.subjects import SUBJECTS, Verb

EXITS = (0, 1, 2, 75)
VALID = "nothing"
MOST_LINES, MOST_CHARACTERS = 3, 4000
# Lines of work that goes on: of preparing, of counting progress, of a stack's start.
PROGRESS = re.compile(r"prepare \S+: |(split|train|validation) +\S|\w[\w ]*: \d+/\d+ |\S+: compute |\S+-[0-9a-f]{8}: ")
_MOST_BYTES = 8 * 2**30


@dataclasses.dataclass(frozen=True)
class Input:
    """One damaged file and the command that reads it."""

    format: str
    seed: int
    index: int
    file: str
    mutation: str
    content: bytes
    verb: Verb

    @property
    def replay(self) -> str:
        return f"{self.seed}:{self.index}"


@dataclasses.dataclass(frozen=True)
class Failure:
    """What was wrong, in words that are the same for the same cause, and the last line on stderr."""

    what: str
    last_line: str


def draw(place: Path, format_: str, seed: int, index: int) -> Input:
    """The input of a format with this number; `place` holds the valid ones."""
    subject, rng = SUBJECTS[format_], random.Random(f"{seed}:{format_}:{index}")
    folder = place / subject.folder
    files = sorted(str(p.relative_to(folder)) for pattern in subject.files for p in folder.glob(pattern))
    file = rng.choice(files)
    (verb,) = rng.choices(subject.verbs, [verb.weight for verb in subject.verbs])
    mutation, content = mutate((folder / file).read_bytes(), subject.kind, rng)
    return Input(format_, seed, index, file, mutation, content, verb)


def valid(place: Path) -> Iterator[Input]:
    """Every command on files as they are: they have to end with 0, or damage would go unread."""
    for name, subject in SUBJECTS.items():
        folder = place / subject.folder
        file = next(str(p.relative_to(folder)) for pattern in subject.files for p in folder.glob(pattern))
        for verb in subject.verbs:
            yield Input(name, 0, 0, file, VALID, (folder / file).read_bytes(), verb)


@dataclasses.dataclass
class _Child:
    input: Input
    pid: int
    scratch: Path
    started: float
    before: dict[str, str]


class Fuzzer:
    """place: valid inputs. scratch: a folder for copies of them. jobs: commands at once.

    shown: what a command prints is printed, and the folder that it ran in stays.
    """

    def __init__(self, place: Path, scratch: Path, jobs: int, shown: bool = False):
        self._place, self._scratch, self._jobs, self._shown = place, scratch, jobs, shown
        self._running: dict[int, _Child] = {}
        self._digests: dict[Path, dict[str, str]] = {}
        self._numbers = 0

    def failures(self, inputs: Iterable[Input]) -> Iterator[tuple[Input, Failure | None, float]]:
        """Every input with what went wrong, and the seconds of a processor that it took; as commands end."""
        for one in inputs:
            while len(self._running) >= self._jobs:
                yield self._ended()
            self._start(one)
        while self._running:
            yield self._ended()

    def _start(self, one: Input) -> None:
        self._numbers += 1
        scratch = self._scratch / str(self._numbers)
        scratch.mkdir(parents=True)
        folder = self._place / SUBJECTS[one.format].folder
        if folder not in self._digests:
            self._digests[folder] = _digests(folder)
        before = self._digests[folder] | {one.file: hashlib.sha256(one.content).hexdigest()}
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _carry_out(one, folder, scratch)
        self._running[pid] = _Child(one, pid, scratch, started, before)

    def _ended(self) -> tuple[Input, Failure | None, float]:
        while True:
            pid, status, used = os.wait4(-1, os.WNOHANG)
            if pid:
                return self._judged(self._running.pop(pid), os.waitstatus_to_exitcode(status), used)
            for child in self._running.values():
                if time.monotonic() - child.started > child.input.verb.seconds * _crowding():
                    os.killpg(child.pid, signal.SIGABRT)  # faulthandler shows where it was
                    time.sleep(0.5)
                    os.killpg(child.pid, signal.SIGKILL)
                    used = os.wait4(child.pid, 0)[2]
                    return self._judged(self._running.pop(child.pid), None, used)
            time.sleep(0.01)

    def _judged(
        self, child: _Child, code: int | None, used: resource.struct_rusage
    ) -> tuple[Input, Failure | None, float]:
        lines = (child.scratch / "stderr").read_text(errors="replace").splitlines()
        exits = (0,) if child.input.mutation == VALID else EXITS
        failure = _failure(lines, code, exits) or _changed(child)
        if self._shown:
            print((child.scratch / "stdout").read_text(errors="replace"), "\n".join(lines), sep="\n")
        else:
            shutil.rmtree(child.scratch)
        return child.input, failure, used.ru_utime + used.ru_stime


def _crowding() -> float:
    """How many times longer a command may take since others want the processors too."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def _carry_out(one: Input, valid_files: Path, scratch: Path) -> None:
    """In the child: the command in a folder of its own, as `olmo-jax` would be; never returns."""
    code = 1
    try:
        os.setsid()
        shutil.copytree(valid_files, scratch / "in")
        (scratch / "in" / one.file).write_bytes(one.content)
        os.chdir(scratch / "in")
        (scratch / "tmp").mkdir()
        os.environ["TMPDIR"] = str(scratch / "tmp")
        for name, number in (("stdout", 1), ("stderr", 2)):
            file = os.open(scratch / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, number)
        import faulthandler
        import tempfile

        tempfile.tempdir = None
        faulthandler.enable()
        resource.setrlimit(resource.RLIMIT_DATA, (_MOST_BYTES, _MOST_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        from sweeps import cli

        code = cli.main(one.verb.arguments.split())
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001  shown as the interpreter would
        traceback.print_exc()
    finally:
        for file in (sys.stdout, sys.stderr):
            file.flush()
        os._exit(code if isinstance(code, int) else 1)


def _failure(lines: list[str], code: int | None, exits: Sequence[int]) -> Failure | None:
    printed = [line for line in lines if line.strip() and not line.startswith("Extension modules: ")]
    last = printed[-1][:300] if printed else ""
    if code is None:
        return Failure(f"hang in {_frame(lines, newest_first=True)}", last)
    if code < 0:
        return Failure(f"signal {-code} in {_frame(lines, newest_first=True)}", last)
    if any(line.startswith("Traceback (most recent call last)") for line in lines):
        error = _error(lines)
        return Failure(f"traceback {re.split(r'[: ]', error)[0]} in {_frame(lines)}", error)
    if code not in exits:
        return Failure(f"exit {code}", last)
    printed = [line for line in printed if not PROGRESS.match(line)]
    if any(len(line) > MOST_CHARACTERS for line in printed):
        return Failure("a line on stderr that is too long", printed[-1][:300])
    if len(printed) > MOST_LINES:
        return Failure(
            f"{min(len(printed), 10)} lines on stderr" + (" or more" if len(printed) >= 10 else ""), printed[0][:300]
        )
    return None


def _error(lines: list[str]) -> str:
    """The first line of the error that the last traceback ends with."""
    last = max(i for i, line in enumerate(lines) if line.startswith("Traceback (most recent call last)"))
    return next((line[:300] for line in lines[last + 1 :] if line[:1].strip()), "")


def _frame(lines: list[str], newest_first: bool = False) -> str:
    """The innermost frame that is ours, of a traceback or of faulthandler's."""
    root = str(Path(__file__).parents[2])
    frames = [
        f"{m[1].removeprefix(root).lstrip('/')}:{m[2]}"
        for line in lines
        if (m := re.match(r'\s*File "([^"]+)", line (\d+)', line)) and m[1].startswith(root) and "/tests/" not in m[1]
    ]
    return (frames[0] if newest_first else frames[-1]) if frames else "no frame of ours"


def _changed(child: _Child) -> Failure | None:
    """A file that was there and whose content is nowhere any more, unless the command may write it anew."""
    after = _digests(child.scratch / "in")
    kept = set(after.values())
    for name, digest in child.before.items():
        if after.get(name) == digest or digest in kept:
            continue
        if any(fnmatch.fnmatch(name, pattern) for pattern in child.input.verb.may_change):
            continue
        return Failure(f"changed {name}" if name in after else f"lost {name}", "")
    return None


def _digests(folder: Path) -> dict[str, str]:
    """Contents of all files by name, without locks."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(".lock") and "__pycache__" not in path.parts
    }


class Tally:
    """Inputs, failures and seconds of a processor by format; failures by kind, with the first of each."""

    def __init__(self) -> None:
        self.inputs: Counter[str] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.failed: Counter[str] = Counter()
        self.kinds: dict[tuple[str, str, str], list[tuple[Input, Failure]]] = defaultdict(list)

    def add(self, one: Input, failure: Failure | None, seconds: float) -> None:
        self.inputs[one.format] += 1
        self.seconds[one.format] += seconds
        if failure is not None:
            self.failed[one.format] += 1
            self.kinds[one.format, one.verb.name, failure.what].append((one, failure))

    def lines(self) -> list[str]:
        width = max(map(len, SUBJECTS))
        lines = [f"{'format':{width}} {'inputs':>7} {'failures':>8} {'seconds':>8} {'a minute':>9}"]
        for name in SUBJECTS:
            n, seconds = self.inputs[name], self.seconds[name]
            a_minute = 60 * n / seconds if seconds else 0.0
            lines.append(f"{name:{width}} {n:7} {self.failed[name]:8} {seconds:8.1f} {a_minute:9.0f}")
        total = (sum(self.inputs.values()), sum(self.failed.values()), sum(self.seconds.values()))
        return [*lines, f"{'all':{width}} {total[0]:7} {total[1]:8} {total[2]:8.1f}"]

    def failure_lines(self) -> list[str]:
        return [
            f"{format_}, {verb}: {what} ({len(failures)} times; first {one.mutation} of {one.file}, "
            f"--only='{format_}' --replay={one.replay}): {failure.last_line}"
            for (format_, verb, what), failures in sorted(self.kinds.items())
            for one, failure in failures[:1]
        ]
