"""Virtual time: what is to happen stands in one heap, and the clock jumps from one thing to the next."""

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any


class VirtualTime:
    """A clock in seconds from 0. Of two things at one time, what was put down first happens first."""

    def __init__(self) -> None:
        self.now = 0.0
        self.happened = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0

    def at(self, time: float, action: Callable[..., None], *arguments: Any) -> None:
        """Call `action(*arguments)` at a time, at once if that is past."""
        self._order = order = self._order + 1
        heappush(self._heap, (time if time > self.now else self.now, order, action, arguments))

    def run(self, ended: Callable[[], bool]) -> None:
        """Let things happen until there are none left, or this says so."""
        heap = self._heap
        while heap and not ended():
            self.now, _, action, arguments = heappop(heap)
            self.happened += 1
            action(*arguments)
