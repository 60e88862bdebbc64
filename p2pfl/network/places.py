"""Places for handshakes: so many at once, so many of one site, and none for good: the slow make room for who waits.

A handshake takes milliseconds, unless its other end falls silent. Where all places are taken, whoever of the site that
has most of them has taken longest gives up its own, if it had a while. So neither one host, nor as many as there are
places, can lock others out by saying the first half of a handshake and no more.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

SLOW_S = 0.25  # before a handshake makes room for another; less costs slow machines theirs, more lets fewer in a second


@dataclass(eq=False)
class _Place:
    """One taken, or waited for."""

    site: str
    drop: Callable[[], None]
    given: "asyncio.Future[None]"
    since: float = 0.0


class Places:
    """Keeps them; used on one event loop.

    Args:
        total: at once.
        each: of them of one site.
    """

    def __init__(self, total: int, each: int) -> None:
        self._total = total
        self._each = each
        self._taken: list[_Place] = []  # the oldest first
        self._held: Counter[str] = Counter()
        self._waiting: list[_Place] = []
        self._look: asyncio.TimerHandle | None = None

    async def take(self, site: str, drop: Callable[[], None]) -> _Place:
        """Wait for a place; it is given back by `free`.

        Args:
            drop: ends what the place is for, if it must make room.
        """
        place = _Place(site, drop, asyncio.get_running_loop().create_future())
        self._waiting.append(place)
        self._serve()
        try:
            await place.given
        except asyncio.CancelledError:
            self.free(place)
            raise
        return place

    def free(self, place: _Place) -> None:
        """Give a place back, or wait for it no longer."""
        if place in self._waiting:
            self._waiting.remove(place)
        elif place in self._taken:
            self._leave(place)
            self._serve()

    def _serve(self) -> None:
        """Give out what there is, first to who has fewest."""
        loop = asyncio.get_running_loop()
        while ready := [place for place in self._waiting if self._held[place.site] < self._each]:
            place = min(ready, key=lambda one: self._held[one.site])
            if len(self._taken) >= self._total and not self._make_room(place.site, loop):
                return
            self._waiting.remove(place)
            self._taken.append(place)
            self._held[place.site] += 1
            place.since = loop.time()
            if not place.given.done():
                place.given.set_result(None)

    def _make_room(self, site: str, loop: asyncio.AbstractEventLoop) -> bool:
        most = max(self._held.values())
        if most <= self._held[site]:
            return False
        slowest = next(place for place in self._taken if self._held[place.site] == most)
        wait_s = slowest.since + SLOW_S - loop.time()
        if wait_s > 0:
            if self._look is None:
                self._look = loop.call_later(wait_s, self._again)
            return False
        self._leave(slowest)
        slowest.drop()
        return True

    def _again(self) -> None:
        self._look = None
        self._serve()

    def _leave(self, place: _Place) -> None:
        self._taken.remove(place)
        self._held[place.site] -= 1
        if not self._held[place.site]:
            del self._held[place.site]
