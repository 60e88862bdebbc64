"""One thread for all that computes, which nobody has to wait for: where it hangs, the process can end without it."""

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Worker(Executor):
    """Work in the order in which it is handed in.

    The executors of the standard library are joined by the interpreter as it ends, however long that takes.
    """

    def __init__(self, name: str) -> None:
        """The thread starts with the first work."""
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._begun = False
        self.last: Future[None] | None = None  # ends with what was handed in last; of its result it keeps nothing

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Do this after what was handed in before."""
        future: Future[_T] = Future()
        ended: Future[None] = Future()
        ended.set_running_or_notify_cancel()  # who gives up waiting for it cancels nothing

        def work() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn(*args, **kwargs))
                except BaseException as error:  # whoever waits for the result gets it
                    future.set_exception(error)
            ended.set_result(None)

        self._queue.put(work)
        self.last = ended
        if not self._begun:
            self._begun = True
            self._thread.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more; `wait` for what was handed in."""
        self._queue.put(None)
        if wait and self._begun:
            self._thread.join()

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            work()
            del work  # and the models that it holds
