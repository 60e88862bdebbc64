"""What peers tell of each other: records are passed on, and nobody is taken for dead on hearsay alone.

A peer that cannot be reached is suspected, and declared dead some seconds later unless it is back. A rumor of the
death of somebody with a connection to here is kept until that connection breaks. Where a network was in two parts that
took each other for dead, the larger part was right.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from p2pfl.events import PeerGone
from p2pfl.protocol.contacts import Contacts
from p2pfl.protocol.links import Links
from p2pfl.protocol.membership import Table, display_names
from p2pfl.protocol.messages import Member, Update
from p2pfl.protocol.participant import Effect, Emit
from p2pfl.types import PeerId, seat_order

SUSPECT_S = 6.0  # a peer that cannot be reached, yet nobody answers that it is gone, is given this long
_GONE = ("dead", "left")


@dataclass(frozen=True)
class Learned:
    """What came of the records that somebody told."""

    effects: Sequence[Effect]
    news: bool
    of_me: bool = False  # whether this peer's own record is among the news
    before: Member | None = None  # what the record was


class Gossip:
    """One peer's ear and mouth; the records themselves are in the table."""

    def __init__(self, table: Table, links: Links, contacts: Contacts) -> None:
        self._table = table
        self._links = links
        self._contacts = contacts
        self._suspects: dict[PeerId, float] = {}  # and until when they may come back
        self._rumors: dict[PeerId, Member] = {}  # of the death of somebody with a connection to here

    def learn(self, records: Iterable[Member], teller: PeerId, now: float, *, running: bool) -> Learned:
        """Take in records and pass on what is news.

        Args:
            running: whether this peer takes part in rounds, and goes on where the other side is the smaller.
        """
        me = self._table.me.peer
        records = tuple(record for record in records if not self._doubted(record))
        before = {record.peer: self._table.get(record.peer) for record in records}
        goes_on = running and me in before and self._is_of_smaller_side(teller)
        news = self._table.merge(records)
        old = before.get(me)
        if goes_on and old is not None and self._table.me.since is None:
            self._table.change(me, state=old.state, since=old.since)
        effects: list[Effect] = []
        for member in news:
            if member.peer == me:
                continue  # below, after the others are told
            if member.state in _GONE:
                self._suspects.pop(member.peer, None)
                known = before[member.peer]
                if known is not None and known.state not in _GONE:
                    effects.append(self._gone(member.peer, member.state))
            elif member.addresses:
                self._links.propose(member.peer, member.addresses, now)
        if not news:
            return Learned(effects, news=False)
        fresh = Update(tuple(self._table.get(member.peer) or member for member in news))
        effects += self._contacts.broadcast(fresh, but=teller)
        of_me = any(member.peer == me for member in news)
        if of_me:
            effects += self._contacts.send(teller, Update((self._table.me,)))
        return Learned(effects, True, of_me, old)

    def _doubted(self, record: Member) -> bool:
        """Whether this is of the death of somebody with a connection to here: believed once that breaks."""
        if record.state != "dead" or record.peer == self._table.me.peer or not self._links.reachable(record.peer):
            return False
        self._rumors[record.peer] = record
        return True

    def _is_of_smaller_side(self, teller: PeerId) -> bool:
        """Whether a teller that had lost this peer, and was lost to it, is of the smaller part of the network."""
        hello, record = self._links.hello_of(teller), self._table.get(teller)
        if hello is None or (record is not None and record.state == "member"):
            return False
        theirs = {member.peer: member for member in (*hello.members, hello.me)}
        return precedence(self._table) < precedence(theirs.values())

    # Suspicion

    def suspect(self, peer: PeerId, now: float) -> None:
        """The last connection to a peer broke: dial it, and wait a little."""
        member = self._table.get(peer)
        if member is not None and member.state not in _GONE:
            self._suspects[peer] = now + SUSPECT_S
            self._links.propose(peer, member.addresses, now)
            self._links.retry(peer, now)

    def trust(self, peer: PeerId) -> None:
        """It is back."""
        self._suspects.pop(peer, None)

    def rumor_of(self, peer: PeerId) -> Member | None:
        """The word of its death that was not believed so far; it is given out once."""
        return self._rumors.pop(peer, None)

    def due(self, now: float) -> list[PeerId]:
        """Whose time is up."""
        return [peer for peer, until in self._suspects.items() if until <= now]

    def next_deadline(self) -> float | None:
        """When the first one's time is up."""
        return min(self._suspects.values(), default=None)

    def declare_dead(self, peer: PeerId, change_round: int) -> list[Effect]:
        """Tell the others that a peer is gone, unless it is known to be, or can be reached.

        Args:
            change_round: the first round that may be without it.
        """
        self._suspects.pop(peer, None)
        member = self._table.get(peer)
        if member is None or member.state in _GONE or self._links.reachable(peer):
            return []
        until = None if member.since is None else max(member.since, change_round)
        dead = self._table.change(peer, state="dead", until=until)
        return [self._gone(peer, "dead"), *self._contacts.broadcast(Update((dead,)))]

    def may_answer(self, peer: PeerId, round: int) -> bool:
        """Whether a member is worth waiting for: still, or already, of the round, and connected or never lost."""
        member = self._table.get(peer)
        if member is None or member.state != "member" or member.since is None or member.since > round:
            return False
        return self._links.reachable(peer) or peer not in self._suspects

    def name(self, peer: PeerId) -> str:
        """The name to show for a peer."""
        return display_names(self._table).get(peer, peer[:8])

    def _gone(self, peer: PeerId, reason: str) -> Emit:
        return Emit(PeerGone(peer=self._table.me.peer, other=peer, name=self.name(peer), reason=reason))


def precedence(members: Iterable[Member]) -> tuple[int, tuple[int, int, str]]:
    """Of two parts of a network the lower one goes on: more members, then the lowest seat."""
    seats = [seat_order(member.seat) for member in members if member.state == "member"]
    return -len(seats), min(seats, default=(2, 0, ""))
