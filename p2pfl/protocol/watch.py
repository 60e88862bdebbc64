"""The failure detector's messages: pings and their answers, probes for others, suspicions, and tables that are told.

An answer carries the digest of the answerer's table; where it is another than here, that peer is told all records. So
tables become equal whatever was lost on the way.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from p2pfl.protocol.contacts import Contacts
from p2pfl.protocol.detector import AskFor, Dead, Deaf, Detector, PingIt, Suspect, Swim
from p2pfl.protocol.gossip import Gossip
from p2pfl.protocol.links import Links
from p2pfl.protocol.membership import GONE, Table
from p2pfl.protocol.messages import MAX_MEMBERS, Ack, Ping, Probe, Suspicion, Update
from p2pfl.protocol.participant import Close, Effect
from p2pfl.types import PeerId

_MAX_RELAYED = 256  # probes for others that are under way at once
_BETWEEN_TELLINGS_S = 2.0  # of the whole table to one peer
_SETTLED_S = 0.5  # a table that has just changed is on its way to others already
_JUST_LOST_S = 2.0  # a reset, and nobody listening where it came from: the process has ended
_UNMET_S = 30.0  # for a member to be met here before it can be missed: where all begin at once, connecting takes long


@dataclass(frozen=True)
class _Relayed:
    asker: PeerId
    peer: PeerId
    number: int


class Watch:
    """One peer's part in watching all others."""

    def __init__(
        self, table: Table, links: Links, contacts: Contacts, gossip: Gossip, detector: Detector, swim: Swim
    ) -> None:
        self._table = table
        self._links = links
        self._contacts = contacts
        self._gossip = gossip
        self._detector = detector
        self._swim = swim
        self._relayed: OrderedDict[int, _Relayed] = OrderedDict()
        self._relays = 1 << 32  # numbers of pings for others; the detector's own count from 1
        self._told_at: dict[PeerId, float] = {}
        self._digest = table.digest
        self._changed_at = 0.0
        self._heard_at: dict[PeerId, float] = {}
        self._lost_at: dict[PeerId, float] = {}
        self._others: tuple[PeerId, ...] = ()  # as they were last looked at
        self._unmet: dict[
            PeerId, float
        ] = {}  # who of them has not been here since it came, and how long that is no sign

    # Messages

    def heard(self, peer: PeerId, now: float) -> None:
        """Anything came from a peer."""
        self._heard_at[peer] = now
        self._detector.heard(peer)

    def pinged(self, peer: PeerId, ping: Ping) -> list[Effect]:
        """Answer."""
        return self._contacts.send(peer, Ack(ping.number, self._table.me.incarnation, self._table.digest))

    def acknowledged(self, peer: PeerId, ack: Ack, now: float) -> list[Effect]:
        """An answer, to this peer or to one that asked it; where its table is another one, tell it this one's."""
        relayed = self._relayed.get(ack.number)
        if relayed is not None:
            if relayed.peer != peer:
                return []
            del self._relayed[ack.number]
            return self._contacts.send(relayed.asker, Ack(relayed.number, ack.incarnation))
        self._detector.acknowledged(ack.number, peer, now)
        return self._differs(peer, ack.table, now)

    def _differs(self, peer: PeerId, table: bytes, now: float) -> list[Effect]:
        if not table or table == self._table.digest:
            return []
        if self._digest != self._table.digest:
            self._digest, self._changed_at = self._table.digest, now
        recent = now - self._changed_at < _SETTLED_S
        if recent or now - self._told_at.get(peer, -_BETWEEN_TELLINGS_S) < _BETWEEN_TELLINGS_S:
            return []
        return self._tell(peer, now)

    def _tell(self, peer: PeerId, now: float) -> list[Effect]:
        self._told_at[peer] = now
        return [effect for part in self._table.chunks() for effect in self._contacts.send(peer, Update(part))]

    def asked(self, asker: PeerId, probe: Probe) -> list[Effect]:
        """Ping a peer for another one."""
        if not self._links.reachable(probe.peer):
            return []
        self._relays += 1
        self._relayed[self._relays] = _Relayed(asker, probe.peer, probe.number)
        if len(self._relayed) > _MAX_RELAYED:
            self._relayed.popitem(last=False)
        return self._contacts.send(probe.peer, Ping(self._relays))

    def suspected(self, by: PeerId, suspicion: Suspicion, now: float) -> list[Effect]:
        """Another peer takes one for dead: hand it on to who is heard here, look after who is not."""
        known = self._table.get(suspicion.peer)
        if suspicion.peer == self._table.me.peer:
            return self._gossip.accused(suspicion.incarnation, now)
        if known is None or known.state in GONE or suspicion.incarnation != known.incarnation:
            return []
        effects: list[Effect] = []
        if self._links.reachable(suspicion.peer):
            effects = self._gossip.warn(suspicion, now)
        if now - self._heard_at.get(suspicion.peer, -self._swim.timeout_s) >= self._swim.timeout_s:
            self._detector.accused(suspicion.peer, by, now)
        return effects

    # Links

    def lost(self, peer: PeerId, now: float) -> None:
        """The last connection to a peer broke: ask others after it."""
        self._lost_at[peer] = now
        if len(self._lost_at) > MAX_MEMBERS:
            del self._lost_at[next(iter(self._lost_at))]
        self._heard_at.pop(peer, None)
        self._told_at.pop(peer, None)
        self._detector.doubt(peer, now)

    def back(self, peer: PeerId, now: float) -> None:
        """There is a connection to a peer."""
        self._lost_at.pop(peer, None)
        self._unmet.pop(peer, None)
        self.heard(peer, now)

    def renewed(self, peer: PeerId) -> None:
        """It has contradicted, or was started again: what spoke against an earlier incarnation is of no account.

        Source: Das, Gupta and Motivala, "SWIM", 2002, section 4.2.
        """
        self._lost_at.pop(peer, None)
        self._detector.forget(peer)

    def refused(self, peer: PeerId, now: float) -> bool:
        """Where a peer was dialed nobody listens; whether that is its end, its connection having just broken."""
        if self._links.reachable(peer) or self._table.get(peer) is None:
            return False
        if now - self._lost_at.get(peer, -_JUST_LOST_S) < _JUST_LOST_S:
            return True
        self._unmet.pop(peer, None)
        self._detector.doubt(peer, now)
        return False

    # Time

    def lagged(self, now: float) -> None:
        """This process was kept from working."""
        self._detector.lagged(now)

    def due(self, now: float, die: Callable[[PeerId], list[Effect]]) -> list[Effect]:
        """Ping, ask, suspect; `die` says what to do about who is dead."""
        effects: list[Effect] = []
        for verdict in self._detector.due(self._watched(now), self._links.reachable, now):
            match verdict:
                case PingIt(peer, number):
                    effects += self._contacts.send(peer, Ping(number, self._table.digest))
                case AskFor(helper, peer, number):
                    effects += self._contacts.send(helper, Probe(number, peer))
                case Suspect(peer):
                    known = self._table.get(peer)
                    if known is not None:
                        effects += self._contacts.spread(Suspicion(peer, known.incarnation), but=peer)
                case Deaf(peer):
                    effects += [Close(link, "deaf") for link in self._links.links_of((peer,))]
                case Dead(peer):
                    effects += die(peer)
        return effects

    def next_deadline(self) -> float | None:
        """When to look again."""
        times = [*self._unmet.values(), self._detector.next_deadline(len(self._others) - len(self._unmet))]
        return min((time for time in times if time is not None), default=None)

    def _watched(self, now: float) -> tuple[PeerId, ...]:
        """All others, but for those who have only just come and were not met here yet.

        While a network comes together on few cores, hundreds of handshakes take longer than any silence is borne, and
        hardly anybody has a connection to whom others tell of. Whoever has met it watches it meanwhile.
        """
        others = self._table.others
        if others != self._others:
            came = set(others).difference(self._others)
            self._unmet = {peer: until for peer, until in self._unmet.items() if peer in others}
            self._unmet |= {peer: now + _UNMET_S for peer in others if peer in came and not self._links.reachable(peer)}
            self._others = others
        if not self._unmet:
            return others
        self._unmet = {peer: until for peer, until in self._unmet.items() if until > now}
        return tuple(peer for peer in others if peer not in self._unmet)
