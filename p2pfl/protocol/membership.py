"""Who belongs to the network: records that merge the same in any order, and the view of a round they give.

A record is about one peer. Between two records of a peer the higher incarnation wins, then the state that is further
along (lobby < member = observer < dead < left), then the later rounds: a join semilattice, so peers that have seen
the same records hold the same table however the messages came. Only the peer itself raises its incarnation, which is
how it comes back, or contradicts a rumor of its death.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import msgspec

from p2pfl.protocol.messages import MAX_MEMBERS, MAX_MESSAGE_BYTES, Member, State
from p2pfl.types import PeerId, seat_order

MAX_TOLD_BYTES = MAX_MESSAGE_BYTES // 2  # the rest is for a hello's settings
_RANK: Mapping[State, int] = {"lobby": 0, "observer": 1, "member": 2, "dead": 3, "left": 4}


def _precedence(record: Member) -> tuple[int, int, int, int, tuple[str, ...], str, str]:
    """Total order of the records of one peer; the texts at the end only make it total."""
    rounds = (-1 if record.since is None else record.since, -1 if record.until is None else record.until)
    return (record.incarnation, _RANK[record.state], *rounds, record.addresses, record.seat, record.name)


@dataclass(frozen=True)
class View:
    """The members of one round, ordered by seat."""

    members: tuple[Member, ...]

    @cached_property
    def digest(self) -> str:
        """What neighbors compare before they use an edge."""
        text = "\n".join(f"{member.seat}\t{member.peer}" for member in self.members)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @cached_property
    def positions(self) -> Mapping[PeerId, int]:
        """Position of each member: its node in the topology."""
        return {member.peer: position for position, member in enumerate(self.members)}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names to show, by seat; equal ones are told apart by the start of their id."""
        return tuple(display_names(self.members).values())

    def __len__(self) -> int:
        return len(self.members)


def display_names(members: Iterable[Member]) -> dict[PeerId, str]:
    """A name a person can tell from the others for each member."""
    members = list(members)
    counts: dict[str, int] = {}
    for member in members:
        counts[member.name] = counts.get(member.name, 0) + 1
    return {m.peer: m.name if counts[m.name] == 1 else f"{m.name}-{m.peer[:4]}" for m in members}


class Table:
    """All records this peer has heard of."""

    def __init__(self, me: Member) -> None:
        self._me = me.peer
        self._records: dict[PeerId, Member] = {me.peer: me}

    @property
    def me(self) -> Member:
        """This peer's own record."""
        return self._records[self._me]

    def get(self, peer: PeerId) -> Member | None:
        """The record of a peer, if there is one."""
        return self._records.get(peer)

    def __iter__(self) -> Iterator[Member]:
        return iter(sorted(self._records.values(), key=lambda m: (seat_order(m.seat), m.peer)))

    def told(self) -> tuple[Member, ...]:
        """The records to tell others: all, or as many as fit a message, who is gone left out first."""
        told: list[Member] = []
        size = 0
        for member in sorted(self, key=lambda member: member.state in ("dead", "left")):
            size += len(msgspec.msgpack.encode(member))
            if size > MAX_TOLD_BYTES:
                break
            told.append(member)
        return tuple(told)

    def merge(self, records: Iterable[Member]) -> list[Member]:
        """Take in records; returns those that were news, as they now stand.

        A rumor that this peer is dead or gone is contradicted: its own record rises to the next incarnation, in the
        lobby, and is among the news, so that it can ask to join again. Beyond `MAX_MEMBERS` strangers are left out.
        """
        news = []
        for record in records:
            known = self._records.get(record.peer)
            if known is None:
                if len(self._records) < MAX_MEMBERS or self._evict():
                    self._records[record.peer] = record
                    news.append(record)
            elif _precedence(record) > _precedence(known):
                if record.peer == self._me:
                    record = self._refute(record)
                self._records[record.peer] = record
                news.append(record)
        return news

    def change(self, peer: PeerId, **fields: object) -> Member:
        """Replace fields of a record, at this peer's own word."""
        self._records[peer] = msgspec.structs.replace(self._records[peer], **fields)
        return self._records[peer]

    def view(self, round: int) -> View:
        """Who takes part in a round, as far as known here."""
        return View(
            tuple(m for m in self if m.since is not None and m.since <= round and (m.until is None or round < m.until))
        )

    def may_take_part(self, peer: PeerId, round: int) -> bool:
        """Whether a peer is a member of that round; of one in the lobby, word of its beginning may be under way."""
        record = self._records.get(peer)
        if record is None or record.since is None:
            return record is not None and record.state == "lobby"
        return record.since <= round and (record.until is None or round < record.until)

    def select(self, wanted: Callable[[Member], bool]) -> list[Member]:
        """The records of a kind, by seat."""
        return [member for member in self if wanted(member)]

    def _refute(self, rumor: Member) -> Member:
        mine = self.me
        gone = rumor.state in ("dead", "left") or rumor.until is not None
        if gone or rumor.incarnation > mine.incarnation:
            return msgspec.structs.replace(
                mine, incarnation=rumor.incarnation + 1, state="lobby", since=None, until=None
            )
        # A member granted me a round: take that, keep what only I know.
        return msgspec.structs.replace(rumor, addresses=mine.addresses, seat=mine.seat, name=mine.name)

    def _evict(self) -> bool:
        """Make room by forgetting somebody who is gone."""
        for member in self:
            if member.state in ("dead", "left") and member.peer != self._me:
                del self._records[member.peer]
                return True
        return False
