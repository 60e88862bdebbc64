"""Who belongs to the network: records that merge the same in any order, and the view of a round they give.

A record is about one peer. Between two records of a peer the higher incarnation wins, then the state that is further
along (lobby < member = observer < dead < left), then the later rounds: a join semilattice, so peers that have seen
the same records hold the same table however the messages came. Only the peer itself raises its incarnation, which is
how it comes back, or contradicts a claim of its death; its signature is on that, see `records`. Of itself a peer
believes nobody: what others claim of it is `gossip`'s to answer.

A table is bounded. Room is made by forgetting who is gone, of whom so much is kept that an old record does not bring
it back; and for who has said hello here, by forgetting one that has not.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import msgspec

from p2pfl.protocol.messages import MAX_MEMBERS, MAX_MESSAGE_BYTES, Member, State
from p2pfl.types import PeerId, seat_order

MAX_TOLD_BYTES = MAX_MESSAGE_BYTES // 2  # the rest is for a hello's settings
GONE = ("dead", "left")
MAX_BURIED = 4 * MAX_MEMBERS  # who was gone and is forgotten; more holds out against more ids that come and go
_RANK: Mapping[State, int] = {"lobby": 0, "observer": 1, "member": 2, "dead": 3, "left": 4}


def _precedence(record: Member) -> tuple[object, ...]:
    """Total order of the records of one peer; what stands at the end only makes it total."""
    rounds = (-1 if record.since is None else record.since, -1 if record.until is None else record.until)
    told = (record.addresses, record.seat, record.name, record.key, record.signature)
    return (record.incarnation, _RANK[record.state], *rounds, *told)


def supersedes(record: Member, known: Member) -> bool:
    """Whether of two records of one peer the first one stands."""
    return _precedence(record) > _precedence(known)


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


@dataclass(frozen=True)
class _Buried:
    """What is left of a record that was forgotten."""

    incarnation: int
    state: State
    since: int | None
    until: int | None


class Table:
    """All records this peer has heard of."""

    def __init__(
        self, me: Member, sign: Callable[[Member], Member] = lambda me: me, *, most: int = MAX_MEMBERS
    ) -> None:
        """Only this peer's own.

        Args:
            sign: puts this peer's own record under its signature.
            most: records that are held.
        """
        self._most = most
        self._met: dict[PeerId, None] = {}  # who has said hello here, the latest last
        self._buried: dict[PeerId, _Buried] = {}
        self._me = me.peer
        self._sign = sign
        self._records: dict[PeerId, Member] = {me.peer: sign(me)}
        self._ordered: tuple[Member, ...] | None = None
        self._digest: bytes | None = None

    @property
    def me(self) -> Member:
        """This peer's own record."""
        return self._records[self._me]

    def get(self, peer: PeerId) -> Member | None:
        """The record of a peer, if there is one."""
        return self._records.get(peer)

    def __iter__(self) -> Iterator[Member]:
        if self._ordered is None:
            self._ordered = tuple(sorted(self._records.values(), key=lambda m: (seat_order(m.seat), m.peer)))
        return iter(self._ordered)

    def __len__(self) -> int:
        return len(self._records)

    @property
    def digest(self) -> bytes:
        """16 bytes that are equal where tables are."""
        if self._digest is None:
            claims = [(m.peer, m.incarnation, m.state, m.since, m.until, m.signature) for m in self]
            self._digest = hashlib.blake2b(msgspec.msgpack.encode(sorted(claims)), digest_size=16).digest()
        return self._digest

    @property
    def others(self) -> tuple[PeerId, ...]:
        """Those who are neither dead nor gone, but for this peer, by seat."""
        return tuple(m.peer for m in self if m.peer != self._me and m.state not in GONE)

    def told(self) -> tuple[Member, ...]:
        """The records to tell others: all, or as many as fit a message, who is gone left out first."""
        return next(self.chunks())

    def chunks(self) -> Iterator[tuple[Member, ...]]:
        """All records, in as many parts as it takes for each to fit a message, who is gone last."""
        told: list[Member] = []
        size = 0
        for member in sorted(self, key=lambda member: member.state in GONE):
            length = len(msgspec.msgpack.encode(member))
            if size + length > MAX_TOLD_BYTES:
                yield tuple(told)
                told, size = [], 0
            told.append(member)
            size += length
        yield tuple(told)

    def merge(self, records: Iterable[Member]) -> list[Member]:
        """Take in records of others; returns those that were news. Strangers that find no room are left out."""
        news = []
        for told in records:
            known = self._records.get(told.peer)
            record = told if known is not None else self._unburied(told)
            if told.peer == self._me or record is None or (known is not None and not supersedes(record, known)):
                continue
            if known is None and len(self._records) >= self._most and not self._make_room(record.peer):
                continue
            self._buried.pop(record.peer, None)
            self._put(record)
            news.append(record)
        return news

    def met(self, peer: PeerId) -> None:
        """A peer has said hello here: it is somebody, where a record alone costs its maker nothing."""
        self._met.pop(peer, None)
        self._met[peer] = None
        if len(self._met) > self._most:
            del self._met[next(iter(self._met))]

    def change(self, peer: PeerId, **fields: object) -> Member:
        """Replace fields of a record, at this peer's own word."""
        record = msgspec.structs.replace(self._records[peer], **fields)
        self._put(self._sign(record) if peer == self._me else record)
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

    def _put(self, record: Member) -> None:
        self._records[record.peer] = record
        self._ordered = self._digest = None

    def _unburied(self, record: Member) -> Member | None:
        """What to make of a record of somebody unknown, or forgotten: nobody rises but by a higher incarnation."""
        buried = self._buried.get(record.peer)
        if buried is None or record.incarnation > buried.incarnation:
            return record
        if record.peer in self._met and record.incarnation == buried.incarnation and buried.state == "dead":
            # It is here, and must hear that it is held dead: then it contradicts.
            fields = {"state": buried.state, "since": buried.since, "until": buried.until}
            return msgspec.structs.replace(record, **fields)
        return None

    def _make_room(self, newcomer: PeerId) -> bool:
        """Forget somebody: who is gone; for one that was met also one that never was; and who was not met first."""
        replaceable = [
            (member.state not in GONE, member.peer in self._met, member.state == "member", number, member)
            for number, member in enumerate(self)
            if member.peer != self._me
            and (member.state in GONE or (newcomer in self._met and member.peer not in self._met))
        ]
        if not replaceable:
            return False
        forgotten = min(replaceable)[-1]
        del self._records[forgotten.peer]
        self._ordered = self._digest = None
        if forgotten.state in GONE:
            self._buried[forgotten.peer] = _Buried(
                forgotten.incarnation, forgotten.state, forgotten.since, forgotten.until
            )
            if len(self._buried) > MAX_BURIED:
                del self._buried[next(iter(self._buried))]
        return True
