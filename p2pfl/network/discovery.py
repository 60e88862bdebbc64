"""Who might be on the network: candidates, the table that holds them, and discovery among peers of one process.

Discovery only proposes. A record can be stale, forged or another network's; what counts is the hello of the peer that
answers at the address. Dialing, and dialing again, is the caller's business.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from p2pfl.types import PeerId


@dataclass(frozen=True)
class Candidate:
    """A peer that may be reached; unverified."""

    peer: PeerId  # as it calls itself on the LAN: its id, or an alias where the network has a key
    network: str  # the tag that tells networks on one LAN apart
    addresses: tuple[str, ...]  # host:port, IPv6 hosts in brackets


@dataclass(frozen=True)
class Announcement:
    """What a peer tells of itself. The hosts 0.0.0.0 and :: stand for every address it has, now and later.

    Whoever is on the LAN can read it: where the network has a key, `peer` is an alias and `network` a keyed tag.
    """

    peer: PeerId
    network: str
    addresses: tuple[str, ...]
    version: int = 1  # highest protocol version spoken; the hello negotiates


Found = Callable[[Candidate], None]
Lost = Callable[[PeerId], None]


class Discovery(Protocol):
    """Proposes peers while entered.

    Constructors take `found`, called on the event loop for each new or changed candidate, never for the peer announced
    here, and `lost`, called when a candidate says goodbye or falls silent.
    """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def announce(self, announcement: Announcement) -> None:
        """Tell the others of this peer; again to change what is told. Another name replaces the former one."""
        ...

    def listen_for(self, network: str | Iterable[str] | None) -> None:
        """From now on, propose candidates with one of these tags; None: all. Those heard before are proposed now."""
        ...

    def candidates(self) -> tuple[Candidate, ...]:
        """All candidates known now, the longest silent first."""
        ...

    def verified(self, peer: PeerId) -> None:
        """Say that this candidate answered and proved its key: it outlasts others when the table is full."""
        ...


def tags_of(network: str | Iterable[str] | None) -> frozenset[str] | None:
    """The tags to listen for; None: all."""
    if network is None:
        return None
    return frozenset([network] if isinstance(network, str) else network)


def ignore(_: object) -> None:
    """A callback for who does not care."""


def join_address(host: str, port: int) -> str:
    """`host:port`, an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(address: str) -> tuple[str, int]:
    """The host (no brackets) and port of `host:port`.

    Raises:
        ValueError: it is not of that form, or the port is not within 1–65535.
    """
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""  # IPv6 without brackets could be read in several ways
    if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
        raise ValueError(f"{address!r} is not of the form host:port")
    return host, int(port)


@dataclass
class CandidateTable:
    """At most `limit` candidates; when full, the unverified one that was silent longest makes room.

    If all are verified, a newcomer is turned away: who answers is worth more than who might.
    """

    limit: int = 1024  # more remembers larger networks, and takes more memory from who floods the LAN
    dropped: int = 0  # candidates that found no room, or lost it
    _unverified: dict[PeerId, Candidate] = field(default_factory=dict)  # the longest silent first
    _verified: dict[PeerId, Candidate] = field(default_factory=dict)

    def heard(self, candidate: Candidate) -> bool:
        """Enter or refresh a candidate; whether it is new or changed."""
        peer = candidate.peer
        entries = self._verified if peer in self._verified else self._unverified
        known = entries.pop(peer, None)
        if known is None and len(self) >= self.limit:
            self.dropped += 1
            if not self._unverified:
                return False
            del self._unverified[next(iter(self._unverified))]
        entries[peer] = candidate
        return candidate != known

    def verified(self, peer: PeerId) -> None:
        """Keep this candidate, if it is known, over unverified ones."""
        candidate = self._unverified.pop(peer, None)
        if candidate is not None:
            self._verified[peer] = candidate

    def lost(self, peer: PeerId) -> bool:
        """Forget a candidate; whether it was known."""
        known = self._verified.pop(peer, None) or self._unverified.pop(peer, None)
        return known is not None

    def candidates(self) -> tuple[Candidate, ...]:
        """All of them, unverified before verified, the longest silent first."""
        return (*self._unverified.values(), *self._verified.values())

    def __len__(self) -> int:
        return len(self._unverified) + len(self._verified)


class NoDiscovery:
    """Proposes nobody: peers are named by hand, or learned from other peers."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    async def announce(self, announcement: Announcement) -> None:
        """Tell nobody."""

    def listen_for(self, network: str | Iterable[str] | None) -> None:
        """Nobody is proposed."""

    def candidates(self) -> tuple[Candidate, ...]:
        """None."""
        return ()

    def verified(self, peer: PeerId) -> None:
        """Nothing to keep."""


class MemoryLan:
    """What peers of one process share in place of a LAN; hand the same one to each `MemoryDiscovery`."""

    def __init__(self) -> None:
        self._present: list[MemoryDiscovery] = []

    def join(self, discovery: "MemoryDiscovery") -> None:
        """Let this peer hear the others."""
        self._present.append(discovery)
        self.repeat(discovery)

    def repeat(self, discovery: "MemoryDiscovery") -> None:
        """Tell this peer again of all who are present."""
        for other in tuple(self._present):
            if other.announced is not None:
                discovery.hear(other.announced)

    def leave(self, discovery: "MemoryDiscovery") -> None:
        """Say goodbye for this peer."""
        self._present.remove(discovery)
        if discovery.announced is not None:
            self.withdraw(discovery.announced)

    def withdraw(self, announcement: Announcement) -> None:
        """Tell everybody present that this holds no more."""
        for other in tuple(self._present):
            other.forget(announcement.peer)

    def announce(self, announcement: Announcement) -> None:
        """Tell everybody present, in the order they joined."""
        for discovery in tuple(self._present):
            discovery.hear(announcement)


class MemoryDiscovery:
    """Discovery among peers of one process: at once, in a fixed order, without a socket.

    Args:
        network: the tag, or tags, of the candidates to propose; None proposes all.
    """

    def __init__(self, lan: MemoryLan, network: str | Iterable[str] | None, found: Found, lost: Lost = ignore) -> None:
        self.announced: Announcement | None = None
        self._lan = lan
        self._tags = tags_of(network)
        self._found = found
        self._lost = lost
        self._table = CandidateTable()

    async def __aenter__(self) -> Self:
        self._lan.join(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lan.leave(self)

    async def announce(self, announcement: Announcement) -> None:
        """Tell the others of this peer; again to change what is told."""
        if self.announced is not None and self.announced.peer != announcement.peer:
            self._lan.withdraw(self.announced)
        self.announced = announcement
        self._lan.announce(announcement)

    def listen_for(self, network: str | Iterable[str] | None) -> None:
        """From now on, propose candidates with one of these tags; None: all. Those present are proposed now."""
        self._tags = tags_of(network)
        for candidate in self._table.candidates():
            if self._tags is not None and candidate.network not in self._tags:
                self.forget(candidate.peer)
        self._lan.repeat(self)

    def candidates(self) -> tuple[Candidate, ...]:
        """All candidates known now, the longest silent first."""
        return self._table.candidates()

    def verified(self, peer: PeerId) -> None:
        """Say that this candidate answered and proved its key: it outlasts others when the table is full."""
        self._table.verified(peer)

    def hear(self, announcement: Announcement) -> None:
        """For the LAN: somebody announced."""
        own = self.announced is not None and announcement.peer == self.announced.peer
        if own:
            return
        if self._tags is not None and announcement.network not in self._tags:
            self.forget(announcement.peer)
            return
        candidate = Candidate(announcement.peer, announcement.network, announcement.addresses)
        if self._table.heard(candidate):
            self._found(candidate)

    def forget(self, peer: PeerId) -> None:
        """For the LAN: somebody left."""
        if self._table.lost(peer):
            self._lost(peer)
