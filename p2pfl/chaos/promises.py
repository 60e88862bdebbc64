"""The invariants of a soak, checked while the peers' events come in. Nothing here does I/O or looks at a clock.

A *life* is one process of one peer, from its start to its end. What the list of faults calls fault 48:

- the rows of the mixing matrix sum to one, and every share that counts was received whole;
- no share that was refused was taken in;
- the rounds of a life only grow; no peer without a fault of its own stands still for longer than a round may wait;
- nobody is declared dead but who is out of reach; nobody's process ends by itself;
- memory, tasks and descriptors do not grow.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

from p2pfl.chaos.plan import KINDS, Injection
from p2pfl.events import (
    Listening,
    PeerGone,
    PeerJoined,
    Refusal,
    RoundFinished,
    RunEvent,
    ShareReceived,
    ShareRejected,
    ViewTaken,
    Warned,
)
from p2pfl.types import PeerId

GRACE_S = 6.0  # after a fault, word of it may still be under way
_CUT_OFF = frozenset({"link", "split", "pair", "loss", "bandwidth"})  # who is, may take others for dead
_WARM_UP_S = 10.0  # of a life: buffers, connections and libraries come then
_JUDGED_S = 40.0  # shorter lives say nothing about growth
_MEMORY_MB, _MEMORY_SHARE, _DESCRIPTORS, _TASKS = 16.0, 0.06, 6, 8
_LOST = frozenset({"late", "missing", "foreign", "gone", "unreachable", "too slow", "broken off", "refused"})
_KEPT = 12  # broken promises told of in words, of each kind


@dataclass(frozen=True)
class Vitals:
    """What a process holds at one time."""

    at_s: float
    memory_mb: float
    descriptors: int
    tasks: int


@dataclass
class Life:
    """One process of one peer, and what it told."""

    position: int
    began_s: float
    peer: PeerId = ""
    incarnation: int = 0  # how many lives of this position came before
    ended_s: float | None = None
    expected_end: bool = False
    round: int = -1
    rounds: int = 0
    finished_s: float | None = None  # its last round
    members: tuple[str, ...] = ()
    accuracies: deque[float] = field(default_factory=lambda: deque(maxlen=5))
    vitals: list[Vitals] = field(default_factory=list)
    received: set[tuple[int, PeerId]] = field(default_factory=set)  # since its last round, for which, and whose
    met: dict[PeerId, int] = field(default_factory=dict)  # which life of each other peer it talked to last
    rejected: set[tuple[int, PeerId]] = field(default_factory=set)
    returned_s: deque[float] = field(default_factory=lambda: deque(maxlen=64))  # ends of its latest rounds


@dataclass
class Seen:
    """What an injection really did, as those saw it who carried it out."""

    injection: Injection
    began_s: float
    ended_s: float | None = None
    proofs: Counter[str] = field(default_factory=Counter)  # counted evidence that the fault happened
    broken: list[str] = field(default_factory=list)
    back_s: float | None = None  # seconds from its end until who had it is one with the others again

    @property
    def happened(self) -> bool:
        """Whether anything shows that it was there at all."""
        return any(self.proofs.values())

    def covers(self, at_s: float, after_s: float = GRACE_S) -> bool:
        """Whether it goes on at a time, or was over so little before."""
        return self.began_s <= at_s and (self.ended_s is None or at_s <= self.ended_s + after_s)


class Book:
    """Keeps the lives of all peers and finds what they broke."""

    def __init__(self, names: Sequence[str], longest_wait_s: float, back_within_s: float) -> None:
        """Empty.

        Args:
            longest_wait_s: seconds between two rounds of a peer without a fault of its own, at most.
            back_within_s: seconds after its fault in which a peer is one with the others again.
        """
        self.names = tuple(names)
        self.longest_wait_s = longest_wait_s
        self.back_within_s = back_within_s
        self.lives: list[list[Life]] = [[] for _ in names]
        self.seen: list[Seen] = []
        self.broken: Counter[str] = Counter()
        self.told: list[str] = []
        self.refusals: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()  # shares that did not count, by reason
        self.longest_gap_s = 0.0
        self.rounds = 0
        self.rows = 0  # of which the sum was looked at

    # The lives

    def begin(self, position: int, at_s: float) -> Life:
        """A process was started."""
        life = Life(position, at_s, incarnation=len(self.lives[position]))
        self.lives[position].append(life)
        return life

    def end(self, life: Life, at_s: float, why: str) -> None:
        """A process ended; `why` is empty where it left in good order."""
        life.ended_s = at_s
        if why and not life.expected_end:
            self.fault("no process ends by itself", f"{self.names[life.position]}: {why}", at_s)

    def now(self, position: int) -> Life:
        """The present, or last, life of a peer."""
        return self.lives[position][-1]

    def of(self, peer: PeerId) -> Life | None:
        """Whose id that is, or was."""
        found = [life for lives in self.lives for life in lives if life.peer == peer]
        return found[-1] if found else None

    # What they tell

    def take(self, life: Life, event: RunEvent, at_s: float) -> None:
        """Take in what a life told."""
        match event:
            case Listening():
                life.peer = event.peer
            case ShareReceived(round=round, other=other):
                life.received.add((round, other))
                if (round, other) in life.rejected:
                    self.fault("no refused share is taken in", f"{self._who(life)}: round {round}", at_s)
            case ShareRejected(round=round, other=other, reason=reason):
                self.failures[reason] += 1
                if reason not in _LOST:  # what was refused for what it is; what was lost may come yet
                    life.rejected.add((round, other))
                    life.received.discard((round, other))  # its norm was looked at once there was one to compare
                self._prove(at_s, self.of(other), "shares missed")
            case RoundFinished():
                self._finished(life, event, at_s)
            case ViewTaken(members=members):
                life.members = members
            case PeerJoined(other=other):
                met = self.of(other)
                if met is not None:
                    life.met[other] = met.incarnation
            case PeerGone(other=other, reason=reason):
                self._gone(life, self.of(other), reason, at_s)
            case Refusal(reason=reason):
                self.refusals[reason] += 1
                self._prove(at_s, life, "refusals", ("garbage", "half-open", "stranger", "liar", "ghosts"))
            case Warned(text=text):
                if "checkpoint" in text:
                    self._prove(at_s, life, "warnings", ("disk",))

    def _finished(self, life: Life, event: RoundFinished, at_s: float) -> None:
        self.rounds += 1
        if event.round <= life.round:
            self.fault("rounds only grow", f"{self._who(life)}: {life.round}, then {event.round}", at_s)
        counted = sum(round == event.round for round, _ in life.received)  # rounds that were given up mix nothing
        if event.neighbors - event.missing != counted:
            text = f"{self._who(life)}: round {event.round} mixed {event.neighbors - event.missing} of {counted} shares"
            self.fault("what was received is what was mixed", text, at_s)
        if event.row_sum is not None:
            self.rows += 1
            if abs(event.row_sum - 1.0) > 1e-9:
                self.fault("rows sum to one", f"{self._who(life)}: round {event.round}: {event.row_sum!r}", at_s)
        if life.finished_s is not None:
            self._gap(life, life.finished_s, at_s)
        life.round, life.finished_s = event.round, at_s
        life.rounds += 1
        life.returned_s.append(at_s)
        life.received.clear()
        life.rejected = {(round, other) for round, other in life.rejected if round >= event.round}
        if event.test_accuracy is not None:
            life.accuracies.append(event.test_accuracy)
        for seen in self.seen:
            if seen.ended_s is not None and seen.back_s is None and self._is_back(seen):
                seen.back_s = at_s - seen.ended_s

    def _is_back(self, seen: Seen) -> bool:
        """Whether those that had a fault do rounds again, and they and all that are well have each other in view."""
        ended_s = seen.ended_s
        targets = [self.now(position) for position in self._positions(seen)]
        if ended_s is None or any(life.finished_s is None or life.finished_s < ended_s for life in targets):
            return False
        ill = {
            position
            for other in self.seen
            if other is not seen and KINDS[other.injection.kind].disturbs and other.back_s is None
            for position in self._positions(other)
        }
        well = [lives[-1] for lives in self.lives if lives and lives[-1].ended_s is None and lives[-1].rounds]
        those = [life for life in well if life.position not in ill or life in targets]
        names = {self.names[life.position] for life in those}
        return all(names <= set(life.members) for life in those)

    def _positions(self, seen: Seen) -> Sequence[int]:
        return range(len(self.names)) if KINDS[seen.injection.kind].all else seen.injection.targets

    def _gap(self, life: Life, before_s: float, at_s: float) -> None:
        """A peer without a fault of its own goes on."""
        own = [
            seen for seen in self.seen if self._touches(seen, life.position) and seen.covers(at_s, self.back_within_s)
        ]
        own += [seen for seen in self.seen if self._touches(seen, life.position) and seen.covers(before_s)]
        if any(KINDS[seen.injection.kind].disturbs for seen in own):
            return
        self.longest_gap_s = max(self.longest_gap_s, at_s - before_s)
        if at_s - before_s > self.longest_wait_s:
            self.fault("no stall is longer than a round may wait", f"{self._who(life)}: {at_s - before_s:.1f} s", at_s)

    def _gone(self, life: Life, other: Life | None, reason: str, at_s: float) -> None:
        if other is None:
            return
        self._prove(at_s, other, reason)
        if reason != "dead" or other.ended_s is not None:
            return
        if life.met.get(other.peer, other.incarnation) < other.incarnation:
            return  # the one it had met has ended, and of the one that was started again it has not heard
        excuses = [seen for seen in self.seen if seen.covers(at_s) and self._excuses(seen, life, other)]
        if not excuses:
            text = f"{self.names[other.position]}, by {self._who(life)}"
            self.fault("nobody is declared dead who can be reached", text, at_s)

    def _excuses(self, seen: Seen, life: Life, other: Life) -> bool:
        kind = seen.injection.kind
        if kind in _CUT_OFF and self._touches(seen, life.position):
            return True
        return KINDS[kind].disturbs and self._touches(seen, other.position)

    @staticmethod
    def _touches(seen: Seen, position: int) -> bool:
        return KINDS[seen.injection.kind].all or position in seen.injection.targets

    def _prove(self, at_s: float, life: Life | None, what: str, kinds: Sequence[str] = ()) -> None:
        """Note what is the doing of a fault that goes on."""
        for seen in self.seen:
            if life is None or not self._touches(seen, life.position) or not seen.covers(at_s):
                continue
            if kinds and seen.injection.kind not in kinds:
                continue
            if kinds or KINDS[seen.injection.kind].disturbs or seen.injection.kind == "pair":
                seen.proofs[what] += 1

    # The verdict

    def fault(self, promise: str, text: str, at_s: float) -> None:
        """A promise was broken."""
        self.broken[promise] += 1
        if self.broken[promise] <= _KEPT:
            self.told.append(f"{at_s:.1f} s: {promise}: {text}")
        for seen in self.seen:
            if seen.covers(at_s, self.back_within_s):
                seen.broken.append(promise)

    def close(self, at_s: float) -> None:
        """Look at what can only be judged at the end, in quiet and with all peers alive."""
        views = {self.names[lives[-1].position]: lives[-1].members for lives in self.lives if lives}
        for name, members in views.items():
            if set(members) != set(self.names):
                text = f"{name} has {', '.join(members) or 'none'}"
                self.fault("all views are equal, and whole, in the end", text, at_s)
        for seen in self.seen:
            kind = KINDS[seen.injection.kind]
            if kind.disturbs and (seen.back_s is None or seen.back_s > self.back_within_s):
                back = "not" if seen.back_s is None else f"after {seen.back_s:.1f} s"
                names = ", ".join(self.names[target] for target in seen.injection.targets)
                self.fault("who had a fault is back in time", f"{seen.injection.kind} of {names}: {back}", at_s)
                seen.broken.append("back")
        for lives in self.lives:
            for life in lives:
                for text in growth(life.vitals):
                    self.fault("memory, tasks and descriptors are flat", f"{self._who(life)}: {text}", at_s)

    @property
    def accuracy(self) -> float | None:
        """Mean over the peers of their last few rounds."""
        means = [sum(life.accuracies) / len(life.accuracies) for (*_, life) in self.lives if life.accuracies]
        return sum(means) / len(means) if means else None

    def _who(self, life: Life) -> str:
        return f"{self.names[life.position]} (life {life.incarnation + 1})"


def growth(vitals: Sequence[Vitals]) -> Iterator[str]:
    """What grew in a life, by the medians of its first and its last third, after a warm-up."""
    if not vitals:
        return
    steady = [one for one in vitals if one.at_s >= vitals[0].at_s + _WARM_UP_S]
    if not steady or steady[-1].at_s - steady[0].at_s < _JUDGED_S:
        return
    third = max(1, len(steady) // 3)
    first, last = steady[:third], steady[-third:]
    before, after = median(one.memory_mb for one in first), median(one.memory_mb for one in last)
    if after - before > max(_MEMORY_MB, _MEMORY_SHARE * before):
        yield f"memory grew from {before:.0f} to {after:.0f} MB"
    before, after = median(one.descriptors for one in first), median(one.descriptors for one in last)
    if after - before > _DESCRIPTORS:
        yield f"descriptors grew from {before:.0f} to {after:.0f}"
    before, after = median(one.tasks for one in first), median(one.tasks for one in last)
    if after - before > _TASKS:
        yield f"tasks grew from {before:.0f} to {after:.0f}"
