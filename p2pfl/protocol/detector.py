"""Who is alive: SWIM with Lifeguard's self-health, as a state machine without messages, links or a clock.

Each period a few members are pinged, in an order that is shuffled anew each time round. Who does not answer in time is
pinged through others; who does not answer them either is suspected, aloud, and declared dead some time later, the
sooner the more accusers there are. Anything heard of a peer ends all that. A peer that finds itself slow (answers come
late, its timers too) gives the others more time: it is more likely at fault itself.

Sources: Das, Gupta and Motivala, "SWIM", 2002, section 4; Dadgar, Phillips and Currey, "Lifeguard", 2018, section IV.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from p2pfl.keys import random_key
from p2pfl.types import PeerId

_MOST_ASKED = 16  # pings of a peer that may still be answered
_DIRECT_MISSES = 3  # in a row, while others hear a peer: its link is of no use


@dataclass(frozen=True)
class Swim:
    """How soon, and how surely, a silent peer is taken for dead."""

    period_s: float = 1.0  # between rounds of pings; less notices sooner, and costs more messages
    timeout_s: float = 0.5  # for an answer, before others are asked; less asks in vain where cores are busy
    indirect: int = 3  # others asked; more survive more bad links at once, and cost two messages each
    share: int = 3  # one in so many members is pinged each period; more spares messages and notices later
    most_pings: int = 8  # a period; more notices sooner in a network above `share` times as many
    suspicion_min_s: float = 2.5  # until death, with enough accusers; more forgives longer silences
    suspicion_max_s: float = 4.0  # with one accuser of many; more forgives a bad judge for longer
    worst_health: int = 8  # the most a slow peer stretches its own times by; more forgives slower machines
    longest_timeout_s: float = 10.0  # where answers take long; less sees a death sooner there, and forgives less
    lag_s: float = 0.75  # a timer that comes this late is a sign that this process slept; less forgives too often


@dataclass(frozen=True)
class PingIt:
    """Ping a peer over its link."""

    peer: PeerId
    number: int


@dataclass(frozen=True)
class AskFor:
    """Have a helper ping a peer."""

    helper: PeerId
    peer: PeerId
    number: int


@dataclass(frozen=True)
class Suspect:
    """Say aloud that a peer is suspected here."""

    peer: PeerId


@dataclass(frozen=True)
class Dead:
    """A peer's time is up."""

    peer: PeerId


@dataclass(frozen=True)
class Deaf:
    """Others hear a peer, and this one does not over the link there is: it is better closed, and made anew."""

    peer: PeerId


Verdict: TypeAlias = PingIt | AskFor | Suspect | Dead | Deaf


def suspicion_s(swim: Swim, confirmations: int, others: int) -> float:
    """Seconds from suspicion to death: from the most to the least, falling with the logarithm of the confirmations.

    Args:
        confirmations: accusers beside the first.
        others: members beside this peer and the suspect, who could be accusers.

    Source: Lifeguard, section IV-B.
    """
    expected = min(swim.indirect, others)
    if expected < 1:
        return swim.suspicion_min_s
    part = math.log(min(confirmations, expected) + 1) / math.log(expected + 1)
    return swim.suspicion_max_s - (swim.suspicion_max_s - swim.suspicion_min_s) * part


@dataclass(frozen=True)
class RoundTrip:
    """How long a peer's answers take: smoothed, and how much that varies."""

    mean_s: float
    deviation_s: float

    @property
    def timeout_s(self) -> float:
        """When an answer is late."""
        return self.mean_s + 4.0 * self.deviation_s


def measured(known: RoundTrip | None, took_s: float) -> RoundTrip:
    """Take in how long one more answer took.

    Source: RFC 6298, section 2.
    """
    if known is None:
        return RoundTrip(took_s, took_s / 2)
    deviation_s = 0.75 * known.deviation_s + 0.25 * abs(known.mean_s - took_s)
    return RoundTrip(0.875 * known.mean_s + 0.125 * took_s, deviation_s)


def pings(swim: Swim, others: int) -> int:
    """How many of the other members are pinged in a period: two at least, or three peers would notice too late."""
    return min(swim.most_pings, others, max(2, math.ceil(others / swim.share)))


@dataclass
class _Probe:
    number: int
    ask_at: float  # others are asked then; infinity once they are
    end_at: float
    helpers: frozenset[PeerId] = frozenset()
    direct: bool = True


@dataclass
class _Suspicion:
    began: float
    accusers: set[PeerId] = field(default_factory=set)


class Detector:
    """One peer's eye on all others. Feed it what is heard, and ask what is due."""

    def __init__(self, me: PeerId, swim: Swim) -> None:
        self._me = me
        self._swim = swim
        self._probes: dict[PeerId, _Probe] = {}
        self._suspicions: dict[PeerId, _Suspicion] = {}
        self._misses: dict[PeerId, int] = {}  # direct ones in a row
        self._asked: dict[PeerId, dict[int, float]] = {}  # pings that may still be answered, and since when
        self._took: dict[PeerId, RoundTrip] = {}
        self._order: list[PeerId] = []  # who is left of this time round
        self._rounds = 0  # how often the order was drawn
        self._number = 0
        self._next_period: float | None = None
        self.health = 0  # 0 is best: times are stretched by one more than this

    # What is heard

    def heard(self, peer: PeerId) -> None:
        """Something came over a peer's own link."""
        self._misses.pop(peer, None)
        self._answered(peer)

    def acknowledged(self, number: int, by: PeerId, now: float) -> PeerId | None:
        """An answer came; returns of whom, if it was asked for and is not late."""
        asked = self._asked.get(by, {})
        if number in asked:
            self._misses.pop(by, None)
            self._took[by] = measured(self._took.get(by), now - asked[number])
            self._asked[by] = {later: since for later, since in asked.items() if later > number}
        for peer, probe in self._probes.items():
            if probe.number == number and (by == peer or by in probe.helpers):
                self._answered(peer)
                return peer
        return None

    def _answered(self, peer: PeerId) -> None:
        probe = self._probes.pop(peer, None)
        if probe is not None and probe.direct:
            self.health = max(0, self.health - 1)
        self._suspicions.pop(peer, None)

    def forget(self, peer: PeerId) -> None:
        """A peer is gone, or somebody else by now."""
        for known in (self._probes, self._suspicions, self._misses, self._asked, self._took):
            known.pop(peer, None)

    def accused(self, peer: PeerId, by: PeerId, now: float) -> None:
        """Another peer suspects one that is not heard here: it counts once this one suspects it too; look at once."""
        suspicion = self._suspicions.setdefault(peer, _Suspicion(math.inf))
        suspicion.accusers.add(by)
        self.doubt(peer, now)

    def doubt(self, peer: PeerId, now: float) -> None:
        """There is reason to look at a peer now."""
        if peer not in self._probes and not self.suspects(peer):
            self._probes[peer] = self._probe(peer, now, ask_at=now)

    def suspects(self, peer: PeerId) -> bool:
        """Whether this peer itself suspects another."""
        return peer in self._suspicions and self._me in self._suspicions[peer].accusers

    def lagged(self, now: float) -> None:
        """This process slept, or was kept waiting: whatever it waited for has all its time again."""
        self._worse()
        self._asked.clear()
        for peer in self._probes:
            self._probes[peer] = self._probe(peer, now, ask_at=now)
        for suspicion in self._suspicions.values():
            if suspicion.began < math.inf:
                suspicion.began, suspicion.accusers = now, {self._me}
        if self._next_period is not None:
            self._next_period = now

    # What is due

    def due(self, watched: Sequence[PeerId], linked: Callable[[PeerId], bool], now: float) -> list[Verdict]:
        """What to do now.

        Args:
            watched: all members but this peer, in any order that is the same from call to call.
            linked: whether there is a connection to a peer.
        """
        known = (self._probes, self._suspicions, self._misses, self._asked, self._took)
        for peer in set().union(*known).difference(watched):
            self.forget(peer)
        verdicts: list[Verdict] = []
        if not watched:
            self._next_period = None
            return verdicts
        if self._next_period is None or self._next_period <= now:
            self._next_period = now + self._stretched(self._swim.period_s)
            for peer in self._turn(watched):
                if peer not in self._probes:
                    begun = self._probes[peer] = self._probe(peer, now)
                    if linked(peer):
                        verdicts.append(PingIt(peer, begun.number))
                    else:
                        begun.ask_at, begun.direct = now, False
        for peer, probe in list(self._probes.items()):
            if probe.ask_at <= now:
                verdicts += self._ask(peer, probe, watched, linked)
            if probe.end_at <= now:
                verdicts += self._unanswered(peer, linked, now)
        for peer, suspicion in list(self._suspicions.items()):
            if suspicion.began + self._patience(peer, suspicion, len(watched)) <= now:
                self.forget(peer)
                verdicts.append(Dead(peer))
        for verdict in verdicts:
            if isinstance(verdict, PingIt):
                self._note(verdict, now)
        return verdicts

    def _note(self, ping: PingIt, now: float) -> None:
        """Remember when a peer was asked; what is asked twice under one number counts from the first time."""
        asked = self._asked.setdefault(ping.peer, {})
        asked.setdefault(ping.number, now)
        if len(asked) > _MOST_ASKED:
            del asked[next(iter(asked))]

    def next_deadline(self, watched: int) -> float | None:
        """When to ask again what is due.

        Args:
            watched: how many members there are beside this peer.
        """
        if self._next_period is None:
            return None
        times = [self._next_period, *(min(probe.ask_at, probe.end_at) for probe in self._probes.values())]
        times += [s.began + self._patience(peer, s, watched) for peer, s in self._suspicions.items()]
        return min(times)

    def _patience(self, peer: PeerId, suspicion: _Suspicion, watched: int) -> float:
        more_s = 2 * (self._timeout_s(peer) - self._swim.timeout_s)
        return suspicion_s(self._swim, len(suspicion.accusers) - 1, watched - 1) + more_s

    def _timeout_s(self, peer: PeerId) -> float:
        """How long an answer may take: what it usually does, where that is more than on a LAN."""
        took = self._took.get(peer)
        usual_s = 0.0 if took is None else min(took.timeout_s, self._swim.longest_timeout_s)
        return max(self._swim.timeout_s, usual_s)

    def _turn(self, watched: Sequence[PeerId]) -> list[PeerId]:
        """Whose turn it is: everybody once, then in another order."""
        count = pings(self._swim, len(watched))
        present = set(watched)
        turn: list[PeerId] = []
        while len(turn) < count:
            self._order = [peer for peer in self._order if peer in present]
            if not self._order:
                self._rounds += 1
                key = {peer: random_key(self._rounds, "ping", self._me, peer) for peer in watched if peer not in turn}
                self._order = sorted(key, key=key.__getitem__)
            turn.append(self._order.pop())
        return turn

    def _probe(self, peer: PeerId, now: float, ask_at: float | None = None) -> _Probe:
        self._number += 1
        wait_s = self._stretched(self._timeout_s(peer))
        if ask_at is not None:
            return _Probe(self._number, ask_at, now + wait_s, direct=False)
        return _Probe(self._number, now + wait_s, now + max(2 * wait_s, self._stretched(self._swim.period_s)))

    def _ask(
        self, peer: PeerId, probe: _Probe, watched: Sequence[PeerId], linked: Callable[[PeerId], bool]
    ) -> list[Verdict]:
        """No answer in time: ping it anew, and through others."""
        probe.ask_at = math.inf
        if probe.direct and not self.suspects(peer):
            self._worse()
        self._misses[peer] = self._misses.get(peer, 0) + 1
        drawn = {p: random_key(probe.number, "helper", self._me, p) for p in watched if p != peer and linked(p)}
        helpers = sorted(drawn, key=drawn.__getitem__)[: self._swim.indirect]
        probe.helpers = frozenset(helpers)
        again: list[Verdict] = [PingIt(peer, probe.number)] if linked(peer) else []
        deaf: list[Verdict] = []
        if linked(peer) and self._misses[peer] > _DIRECT_MISSES and not self.suspects(peer):
            self._misses.pop(peer)
            deaf, again = [Deaf(peer)], []
        return [*again, *(AskFor(helper, peer, probe.number) for helper in helpers), *deaf]

    def _unanswered(self, peer: PeerId, linked: Callable[[PeerId], bool], now: float) -> list[Verdict]:
        """Nobody hears it. Until its time is up it is asked again and again, however slow this peer finds itself."""
        self._number += 1
        wait_s = self._timeout_s(peer)
        self._probes[peer] = _Probe(self._number, now + wait_s, now + 2 * wait_s, direct=False)
        again: list[Verdict] = [PingIt(peer, self._number)] if linked(peer) else []
        if self.suspects(peer):
            return again
        suspicion = self._suspicions.setdefault(peer, _Suspicion(now))
        suspicion.began = now
        suspicion.accusers.add(self._me)
        return [Suspect(peer), *again]

    def _worse(self) -> None:
        self.health = min(self._swim.worst_health, self.health + 1)

    def _stretched(self, seconds: float) -> float:
        return seconds * (1 + self.health)
