"""Work on a stream of items by as many processes as there are cores, with the results in the order of the items.

The processes run this module: `multiprocessing` would import the caller's main module (and with it jax) once more, or
fail where there is none, and its pools outlive a parent that is killed. These end as soon as their parent does.
"""

import collections
import contextlib
import fcntl
import functools
import itertools
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, TypeVar

from olmo_jax.data import DataError
from olmo_jax.signals import waited_for

Item = TypeVar("Item")
Result = TypeVar("Result")

_FEW = 32  # items that aren't worth starting processes for
_IN_FLIGHT = 2  # items of a process: one that it works on, and the next, which waits in the pipe
# Bytes that pipes are asked to hold. What users may have of all pipes together is limited, to 64 MiB by default.
_PIPE_OF_ITEMS, _PIPE_OF_RESULTS = 1 << 19, 1 << 18
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from olmo_jax.data.tokenizing.workers import serve; serve(int(sys.argv[2]), int(sys.argv[3]))"
)
# Each process works on one core: the tokenizer's threads would only compete with the other processes.
_ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(
    job: Callable[[Item], Result], items: Iterable[Item], processes: int | None = None, few: int | None = None
) -> Generator[Result, None, None]:
    """`job(item)` of each item, in order; a generator, to be closed by whoever doesn't read it to its end.

    What `job` or `items` raise is raised once all results before it have been read, so that the first error in order
    is the one that is raised, however the work was shared.

    Args:
      job: picklable, a pure function; it goes to each process once.
      items: picklable; read as they are needed, a few for each process.
      processes: how many at most; None for as many as there are cores.
      few: with fewer items than this, or one process, no other process is started; None for a sensible number.

    Raises DataError where a process was killed.
    """
    processes = cores() if processes is None else processes
    few = _FEW if few is None else few
    stream = _with_failure(items)
    first = list(itertools.islice(stream, few))
    if processes == 1 or len(first) < few:
        for item in itertools.chain(first, stream):
            yield waited_for(functools.partial(_done, job, item))
        return
    with contextlib.closing(_Pool(job, processes)) as pool:
        yield from pool.map(itertools.chain(first, stream))


class _Failure(NamedTuple):
    """Stands for what couldn't be read or worked on."""

    error: Exception


def _with_failure(items: Iterable[Any]) -> Iterator[Any]:
    try:
        yield from items
    except Exception as error:  # noqa: BLE001  raised again in its turn
        yield _Failure(error)


def _done(job: Callable[[Any], Any], item: Any, check: Callable[[], None]) -> Any:
    del check  # an item is soon done
    return _result(item) if isinstance(item, _Failure) else job(item)


def _result(result: Any) -> Any:
    if isinstance(result, _Failure):
        raise result.error
    return result


class _Process:
    """A running process and the numbers of the items that it has been sent and hasn't answered."""

    def __init__(self, job: Callable[[Any], Any]):
        its_items, self._items = Pipe(duplex=False)
        self.results, its_results = Pipe(duplex=False)
        self._capacity = _enlarged(self._items, _PIPE_OF_ITEMS)
        _enlarged(self.results, _PIPE_OF_RESULTS)
        with its_items, its_results:
            ends = (its_items.fileno(), its_results.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(list(map(str, sys.path))), *map(str, ends)],
                pass_fds=ends,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=os.environ | _ONE_THREAD,
            )
        self.numbers: collections.deque[int] = collections.deque()
        self._send(pickle.dumps(job))

    def takes(self, item: bytes) -> bool:
        """Whether it can be sent a pickled item without waiting for it, which may itself be waiting to be read from."""
        return not self.numbers or (len(self.numbers) < _IN_FLIGHT and 2 * len(item) <= self._capacity)

    def work_on(self, number: int, item: bytes) -> None:
        self._send(item)
        self.numbers.append(number)

    def answer(self) -> tuple[int, Any]:
        """The number of the item that was sent first, and its result or _Failure."""
        try:
            return self.numbers.popleft(), self.results.recv()
        except (EOFError, OSError):
            raise self._ended() from None

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._items.close()
        self.results.close()

    def _send(self, pickled: bytes) -> None:
        try:
            self._items.send_bytes(pickled)
        except OSError:
            raise self._ended() from None

    def _ended(self) -> DataError:
        code = self._process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return DataError(
            f"one of the processes that read and tokenise the text ended ({how}), as for lack of memory; run the same "
            "command again, where memory is short on fewer cores (taskset -c 0-3 COMMAND)"
        )


def _enlarged(end: Connection, size: int) -> int:
    """Asks for a pipe that holds more; returns what it holds."""
    with contextlib.suppress(OSError, AttributeError):  # Linux alone has this, and a limit for each user
        fcntl.fcntl(end.fileno(), fcntl.F_SETPIPE_SZ, size)
    with contextlib.suppress(OSError, AttributeError):
        return fcntl.fcntl(end.fileno(), fcntl.F_GETPIPE_SZ)
    return select.PIPE_BUF


class _Pool:
    def __init__(self, job: Callable[[Any], Any], most: int):
        self._job, self._most = job, most
        self._processes: list[_Process] = []

    def map(self, items: Iterator[Any]) -> Iterator[Any]:
        results: dict[int, Any] = {}
        sent, done, pickled = 0, 0, None
        while True:
            # A slow item mustn't let the others' results pile up.
            while sent - done < 2 * _IN_FLIGHT * self._most:
                if pickled is None:
                    item = next(items, None)
                    if item is None:
                        break
                    if isinstance(item, _Failure):
                        results[sent] = item
                        sent += 1
                        continue
                    # Not multiprocessing's ForkingPickler: its memoryview of a BytesIO, kept alive by the traceback of
                    # an error, crashes the garbage collector of CPython 3.12.1.
                    pickled = pickle.dumps(item)
                process = self._free()
                if not process.takes(pickled):
                    break
                process.work_on(sent, pickled)
                sent, pickled = sent + 1, None
            if done == sent:
                return
            busy = {process.results: process for process in self._processes if process.numbers}
            for connection in wait(list(busy), 0 if done in results else None):
                number, result = busy[connection].answer()  # type: ignore[index]
                results[number] = result
            if done in results:
                yield _result(results.pop(done))
                done += 1

    def close(self) -> None:
        for process in self._processes:
            process.end()

    def _free(self) -> _Process:
        """The process with the least to do, started if all have something."""
        free = min(self._processes, key=lambda process: len(process.numbers), default=None)
        if (free is None or free.numbers) and len(self._processes) < self._most:
            free = _Process(self._job)
            self._processes.append(free)
        assert free is not None
        return free


def serve(items: int, results: int) -> None:
    """What a process does: takes a job, then items, from one pipe, and sends the results into another.

    Signals to all processes of a terminal or a batch job are its parent's matter.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(items,), daemon=True).start()
    received, answers = Connection(items, writable=False), Connection(results, readable=False)
    with contextlib.suppress(EOFError, OSError):
        job = received.recv()
        while True:
            item = received.recv()
            try:
                result = job(item)
            except Exception as error:  # noqa: BLE001  raised by the parent
                if not isinstance(error, DataError):
                    error.add_note("".join(traceback.format_exception(error)))
                result = _Failure(error)
            answers.send(result)


def _end_with_parent(descriptor: int) -> None:
    """Ends this process, whatever it is doing, once nobody holds the other end of a pipe."""
    closed = select.poll()
    closed.register(descriptor, 0)  # reports a hang-up in any case
    closed.poll()
    os._exit(0)
