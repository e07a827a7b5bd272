"""Work on a stream of items by as many processes as there are cores, with the results in the order of the items.

The processes run this module: `multiprocessing` would import the caller's main module (and with it jax) once more, or
fail where there is none, and its pools outlive a parent that is killed. These end as soon as their parent does.
"""

import collections
import contextlib
import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

from olmo_jax.data import DataError
from olmo_jax.signals import waited_for

Item = TypeVar("Item")
Result = TypeVar("Result")

_FEW = 32  # items that aren't worth starting processes for
_IN_FLIGHT = 2  # items of a process: one that it works on, and the next
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from olmo_jax.data.workers import serve; serve(int(sys.argv[1]))"
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
        self.connection, its_end = Pipe()
        with its_end:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, str(its_end.fileno()), json.dumps(list(map(str, sys.path)))],
                pass_fds=(its_end.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=os.environ | _ONE_THREAD,
            )
        self.numbers: collections.deque[int] = collections.deque()
        self._send(job)

    def work_on(self, number: int, item: Any) -> None:
        self._send(item)
        self.numbers.append(number)

    def answer(self) -> tuple[int, Any]:
        """The number of the item that was sent first, and its result or _Failure."""
        try:
            return self.numbers.popleft(), self.connection.recv()
        except (EOFError, OSError):
            raise self._ended() from None

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self.connection.close()

    def _send(self, value: Any) -> None:
        try:
            self.connection.send(value)
        except OSError:
            raise self._ended() from None

    def _ended(self) -> DataError:
        code = self._process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return DataError(
            f"one of the processes that read and tokenise the text ended ({how}), as for lack of memory; run the same "
            "command again, where memory is short on fewer cores (taskset -c 0-3 COMMAND)"
        )


class _Pool:
    def __init__(self, job: Callable[[Any], Any], most: int):
        self._job, self._most = job, most
        self._processes: list[_Process] = []

    def map(self, items: Iterator[Any]) -> Iterator[Any]:
        results: dict[int, Any] = {}
        sent, done, ended = 0, 0, False
        while True:
            # A slow item mustn't let the others' results pile up.
            while not ended and sent - done < 2 * _IN_FLIGHT * self._most and (process := self._free()):
                item = next(items, self)
                ended = item is self or isinstance(item, _Failure)
                if isinstance(item, _Failure):
                    results[sent] = item
                elif not ended:
                    process.work_on(sent, item)
                sent += item is not self
            if done == sent:
                return
            busy = {process.connection: process for process in self._processes if process.numbers}
            for connection in wait(list(busy), 0 if done in results else None):
                number, result = busy[connection].answer()  # type: ignore[index]
                results[number] = result
            if done in results:
                yield _result(results.pop(done))
                done += 1

    def close(self) -> None:
        for process in self._processes:
            process.end()

    def _free(self) -> _Process | None:
        """A process that can be sent an item, started if need be."""
        free = min(self._processes, key=lambda process: len(process.numbers), default=None)
        if (free is None or free.numbers) and len(self._processes) < self._most:
            free = _Process(self._job)
            self._processes.append(free)
        return free if free is not None and len(free.numbers) < _IN_FLIGHT else None


def serve(descriptor: int) -> None:
    """What a process does: takes a job, then items, from the other end of a pipe, and sends the results.

    Signals to all processes of a terminal or a batch job are its parent's matter.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(descriptor)
    received: SimpleQueue[Any] = SimpleQueue()

    def receive() -> None:
        try:
            while True:
                received.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)  # the parent has ended or wants no more, so that what is being worked on is of no use

    threading.Thread(target=receive, daemon=True).start()
    job = received.get()
    while True:
        item = received.get()
        try:
            result = job(item)
        except Exception as error:  # noqa: BLE001  raised by the parent
            if not isinstance(error, DataError):
                error.add_note("".join(traceback.format_exception(error)))
            result = _Failure(error)
        try:
            connection.send(result)
        except OSError:
            os._exit(0)
