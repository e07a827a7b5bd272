"""Apply a function to a stream of items with one process per core; the results are in the order of the items.

The processes run this module, and end as soon as their parent does. `multiprocessing` would import the caller's main
module (and so jax) again, or fail if there is none, and its pools outlive a parent that is killed.
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
from olmo_jax.execution.cores import cores
from olmo_jax.signals import waited_for

Item = TypeVar("Item")
Result = TypeVar("Result")

_FEW = 32  # fewer items aren't worth starting processes for
_IN_FLIGHT = 2  # items per process: the one it works on, and the next one, which waits in the pipe
# Requested capacities of pipes, in bytes. The total of all pipes of a user is limited, by default to 64 MiB.
_PIPE_OF_ITEMS, _PIPE_OF_RESULTS = 1 << 19, 1 << 18
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from olmo_jax.data.tokenizing.workers import serve; serve(int(sys.argv[2]), int(sys.argv[3]))"
)
# Each process uses one core: threads of the tokenizer would only compete with the other processes.
_ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def in_order(
    job: Callable[[Item], Result], items: Iterable[Item], processes: int | None = None, few: int | None = None
) -> Generator[Result, None, None]:
    """Yield `job(item)` of each item, in order. The caller closes the generator if it doesn't read all of it.

    An error of `job` or `items` is raised after all results before it have been yielded, so the first error in the
    order of the items is the one raised, whatever process it occurred in.

    Args:
      job: a pure, picklable function; it is sent to each process once.
      items: picklable; read as they are needed, a few per process.
      processes: the maximum; None for one per core.
      few: with fewer items than this, or one process, no other process is started; None for the default.

    Raises DataError if a process was killed.
    """
    processes = cores() if processes is None else processes
    few = _FEW if few is None else few
    stream = _with_failure(items)
    first = list(itertools.islice(stream, few))
    if processes == 1 or len(first) < few:
        for item in itertools.chain(first, stream):
            yield waited_for(functools.partial(_apply, job, item))
        return
    with contextlib.closing(_Pool(job, processes)) as pool:
        yield from pool.map(itertools.chain(first, stream))


class _Failure(NamedTuple):
    """An error in place of an item or a result."""

    error: Exception


def _with_failure(items: Iterable[Any]) -> Iterator[Any]:
    try:
        yield from items
    except Exception as error:  # noqa: BLE001  raised again in the order of the items
        yield _Failure(error)


def _apply(job: Callable[[Any], Any], item: Any, check: Callable[[], None]) -> Any:
    del check  # an item takes too little time to need it
    return _result(item) if isinstance(item, _Failure) else job(item)


def _result(result: Any) -> Any:
    if isinstance(result, _Failure):
        raise result.error
    return result


class _Process:
    """A running process, and the numbers of the items sent to it whose results it hasn't returned yet."""

    def __init__(self, job: Callable[[Any], Any]):
        child_items, self._items = Pipe(duplex=False)
        self.results, child_results = Pipe(duplex=False)
        self._capacity = _enlarge(self._items, _PIPE_OF_ITEMS)
        _enlarge(self.results, _PIPE_OF_RESULTS)
        with child_items, child_results:
            ends = (child_items.fileno(), child_results.fileno())
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
        """Return whether a pickled item can be sent without blocking.

        A blocked send could deadlock: the process may be waiting for its results to be read.
        """
        return not self.numbers or (len(self.numbers) < _IN_FLIGHT and 2 * len(item) <= self._capacity)

    def work_on(self, number: int, item: bytes) -> None:
        self._send(item)
        self.numbers.append(number)

    def receive(self) -> tuple[int, Any]:
        """Return the number of the oldest item sent, and its result or _Failure."""
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
            f"one of the processes that read and tokenise the text ended ({how}), perhaps for lack of memory; run the "
            "same command again, on fewer cores if memory is short (taskset -c 0-3 COMMAND)"
        )


def _enlarge(end: Connection, size: int) -> int:
    """Ask for a pipe that holds `size` bytes; return how many it holds."""
    with contextlib.suppress(OSError, AttributeError):  # only Linux has this, with a limit per user
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
            # Limited, so that results don't accumulate while an item before them takes long.
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
                process = self._least_busy()
                if not process.takes(pickled):
                    break
                process.work_on(sent, pickled)
                sent, pickled = sent + 1, None
            if done == sent:
                return
            busy = {process.results: process for process in self._processes if process.numbers}
            for connection in wait(list(busy), 0 if done in results else None):
                number, result = busy[connection].receive()  # type: ignore[index]
                results[number] = result
            if done in results:
                yield _result(results.pop(done))
                done += 1

    def close(self) -> None:
        for process in self._processes:
            process.end()

    def _least_busy(self) -> _Process:
        """Return the process with the fewest items; a new one if all are busy and there may be more."""
        chosen = min(self._processes, key=lambda process: len(process.numbers), default=None)
        if (chosen is None or chosen.numbers) and len(self._processes) < self._most:
            chosen = _Process(self._job)
            self._processes.append(chosen)
        assert chosen is not None
        return chosen


def serve(items: int, results: int) -> None:
    """Run a worker process: receive a job, then items, from one pipe, and send the results to another.

    Args:
      items, results: file descriptors of the pipes.
    """
    # A terminal or batch system sends signals to all processes; only the parent handles them.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(items,), daemon=True).start()
    requests, responses = Connection(items, writable=False), Connection(results, readable=False)
    with contextlib.suppress(EOFError, OSError):
        job = requests.recv()
        while True:
            item = requests.recv()
            try:
                result = job(item)
            except Exception as error:  # noqa: BLE001  the parent raises it
                if not isinstance(error, DataError):
                    error.add_note("".join(traceback.format_exception(error)))
                result = _Failure(error)
            responses.send(result)


def _end_with_parent(descriptor: int) -> None:
    """End this process, whatever it is doing, once no process has the other end of a pipe open."""
    closed = select.poll()
    closed.register(descriptor, 0)  # a hang-up is reported in any case
    closed.poll()
    os._exit(0)
