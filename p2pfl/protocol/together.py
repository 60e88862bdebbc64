"""Beginning together: who is told of a run's first round waits a moment until it has met those it begins with.

A round counts only between peers that see the same members, and a member is who was met, not who was named. While a
network comes together not everybody has met everybody, and without this wait the first round would find fewer
neighbors than it has.
"""

from collections.abc import Callable

from p2pfl.protocol.messages import Member, Start
from p2pfl.types import PeerId

HOLD_S = 3.0  # to meet them; more begins with more of them where machines are slow, less ends a liar's hold sooner


class Together:
    """Whom this peer is to begin a run with."""

    def __init__(self, me: PeerId, reachable: Callable[[PeerId], bool]) -> None:
        self._me = me
        self._reachable = reachable
        self._start: Start | None = None
        self.hold_until: float | None = None

    def told(self, start: Start, now: float) -> None:
        """Somebody begins a run; only the first word of that counts, and only where this peer is in from the start."""
        if self._start is None and any(record.peer == self._me for record in self._beginners(start)):
            self._start = start
            self.hold_until = now + HOLD_S

    def word_on(self, peer: PeerId) -> tuple[Start, Member] | None:
        """What was said of a peer that has just been met, if it is one of them."""
        if self._start is None:
            return None
        return next(((self._start, r) for r in self._beginners(self._start) if r.peer == peer), None)

    def waits(self, now: float) -> bool:
        """Whether there is somebody yet to meet, and time."""
        if self._start is None or self.hold_until is None:
            return False
        missing = any(r.peer != self._me and not self._reachable(r.peer) for r in self._beginners(self._start))
        if missing and now < self.hold_until:
            return True
        self.hold_until = None
        return False

    def over(self) -> None:
        """The run is on."""
        self._start = self.hold_until = None

    @staticmethod
    def _beginners(start: Start) -> list[Member]:
        first = start.running.start
        return [record for record in start.members if record.state == "member" and record.since == first]
