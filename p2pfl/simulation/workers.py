"""Worker processes of one run, and the memory they share with it.

They are forked: a child has the problem as it is, the user's own module and loss included, without anything being sent
or imported again, and a script needs no guard around its main part. Shared memory has no name: it is gone with the
last process, however that ends. A child whose pipe ends has lost its parent and leaves.
"""

import mmap
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from types import TracebackType
from typing import Any, Self, TypeAlias

import msgspec
import torch

from p2pfl import errors

Task: TypeAlias = tuple[str, tuple[int, ...]]  # the name of a method, and its arguments
Answer: TypeAlias = tuple[float, ...]

_GRACE_S = 2.0  # for a worker to leave by itself


class _Told(msgspec.Struct, array_like=True):
    """What a worker answers."""

    answer: tuple[float, ...] = ()
    error: str = ""
    kind: str = ""


_tasks: msgspec.msgpack.Decoder[Task] = msgspec.msgpack.Decoder(Task)
_answers: msgspec.msgpack.Decoder[_Told] = msgspec.msgpack.Decoder(_Told)


def can_fork() -> bool:
    """Whether worker processes are possible here: on Linux, and not where this process may have no children."""
    return sys.platform == "linux" and not multiprocessing.current_process().daemon


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shared(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Zeros that forked processes see and change in one place."""
    size = prod(shape)
    memory = mmap.mmap(-1, max(1, size) * dtype.itemsize)
    return torch.frombuffer(memory, dtype=dtype, count=max(1, size))[:size].view(*shape)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread for as long as the block lasts: bits repeat, and workers do not disturb each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Workers:
    """Does tasks in worker processes, or here where there are none; a context manager, which ends them."""

    def __init__(self, methods: Mapping[str, Callable[..., Answer]], count: int) -> None:
        """Fork.

        Args:
            methods: what tasks are about, called with integers in the worker; its changes are seen elsewhere only in
                `shared` memory.
            count: worker processes; 1 for none.
        """
        self._methods = methods
        self._running: list[tuple[ForkProcess, Connection]] = []
        if count > 1:
            context = multiprocessing.get_context("fork")
            for _ in range(count):
                near, far = context.Pipe()
                others = [pipe for _, pipe in self._running]
                process = context.Process(target=_work, args=(methods, far, [near, *others]), daemon=True)
                with warnings.catch_warnings():
                    # Python 3.12 warns where threads run: the child uses none of theirs, and no lock they may hold.
                    warnings.simplefilter("ignore", DeprecationWarning)
                    process.start()
                far.close()
                self._running.append((process, near))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process, pipe in self._running:
            pipe.close()
            if kind is not None:
                process.kill()  # what it computes, nobody wants
        for process, _ in self._running:
            process.join(_GRACE_S)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        self._running.clear()

    @property
    def count(self) -> int:
        """Processes that work, this one included where it works."""
        return max(1, len(self._running))

    def pids(self) -> list[int]:
        """The worker processes."""
        return [process.pid for process, _ in self._running if process.pid is not None]

    def do(self, tasks: Sequence[Task], *, settled: bool = False) -> list[Answer]:
        """Do all tasks, each in whatever worker is free; the answers in the order of the tasks.

        Args:
            settled: the same tasks go to the same workers each time, for those that keep something from one to the
                next.

        Raises:
            P2pflError: as the method raised it.
            TrainingError: a worker died, or a method raised something else.
        """
        if not self._running:
            return [self._methods[name](*arguments) for name, arguments in tasks]
        count = len(self._running)
        everything = list(enumerate(tasks))
        waiting = [everything[k::count] for k in range(count)] if settled else [everything] * count
        doing: dict[Connection, int] = {}
        answers: list[Answer] = [()] * len(tasks)

        def feed(worker: int) -> None:
            if waiting[worker]:
                position, task = waiting[worker].pop(0)
                pipe = self._running[worker][1]
                self._send(worker, msgspec.msgpack.encode(task))
                doing[pipe] = position

        for worker in range(count):
            feed(worker)
        number = {pipe: worker for worker, (_, pipe) in enumerate(self._running)}
        while doing:
            for ready in multiprocessing.connection.wait(list(doing)):
                assert isinstance(ready, Connection)
                answers[doing.pop(ready)] = self._receive(number[ready])
                feed(number[ready])
        return answers

    def _send(self, worker: int, data: bytes) -> None:
        try:
            self._running[worker][1].send_bytes(data)
        except OSError as error:
            raise self._died(worker) from error

    def _receive(self, worker: int) -> Answer:
        try:
            told = _answers.decode(self._running[worker][1].recv_bytes())
        except (EOFError, OSError) as error:
            raise self._died(worker) from error
        if told.error:
            raise getattr(errors, told.kind, errors.TrainingError)(told.error)
        return told.answer

    def _died(self, worker: int) -> errors.TrainingError:
        process = self._running[worker][0]
        process.join(_GRACE_S)
        code = process.exitcode
        how = f"signal {-code}" if code is not None and code < 0 else f"status {code}"
        return errors.TrainingError(
            f"a worker process of the simulation ended with {how}; if memory ran out, take fewer peers or workers = 1"
        )


def _work(methods: Mapping[str, Callable[..., Answer]], pipe: Connection, others: Sequence[Connection]) -> None:
    """The child: answer tasks until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in others:  # copies of the parent's ends would keep pipes open when the parent is gone
        other.close()
    torch.set_num_threads(1)
    try:
        while True:
            name, arguments = _tasks.decode(pipe.recv_bytes())
            pipe.send_bytes(msgspec.msgpack.encode(_answered(methods[name], arguments)))
    except (EOFError, OSError):
        return  # the run is over, or the parent gone


def _answered(method: Callable[..., Answer], arguments: tuple[int, ...]) -> _Told:
    try:
        return _Told(method(*arguments))
    except errors.P2pflError as error:
        return _Told(error=str(error), kind=type(error).__name__)
    except Exception as error:  # a user's own module may raise anything: the parent tells it in one line
        place: Any = traceback.extract_tb(error.__traceback__)[-1]
        text = " ".join(str(error).split())
        return _Told(error=f"{type(error).__name__}: {text} ({place.filename}, line {place.lineno})")
