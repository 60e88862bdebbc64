"""How a network comes to another key: signed changes that every member may make, and that leave all with one ring.

Of two rings all members choose alike (`KeyRing.joined`), and each tells the others what it came to; so they end with
one key and ban the same peers, whatever they hear first. Whoever holds the key may change it: that a change is by a
member is what the signature and the link it came over prove. What the banned say is not heard.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping

from p2pfl.errors import ProtocolError, UsageError
from p2pfl.identity import Identity, peer_id, verifies
from p2pfl.network_key import KEY_BYTES, KeyRing, NetworkKey
from p2pfl.protocol.messages import KeyChange
from p2pfl.types import PeerId

MOST_BANNED = 256  # as many as a `KeyChange` has room for
MOST_AHEAD = 1 << 10  # epochs in one step: a liar cannot use up the numbers that are left
PAUSE_S = 5.0  # between changes by others; more spares disks a hostile member's work, and makes honest ones wait
_PEER_ID = re.compile("[a-z2-7]{52}")


class Rekeying:
    """What a participant knows of its network's key.

    Args:
        network: the network's name; a change is signed for it.
        rank: of the ring in force, `KeyRing.rank`.
        banned: ids that are refused, whatever key they hold.
        identity: by which a key made of two bans is told to others; without it such a key is not made known.
    """

    def __init__(
        self,
        network: str,
        rank: tuple[int, bytes],
        banned: Iterable[PeerId] = (),
        identity: Identity | None = None,
    ) -> None:
        self._network = network
        self._rank = rank
        self._banned = frozenset(banned)
        self._identity = identity
        self._latest: KeyChange | None = None
        self._waiting: dict[PeerId, KeyChange] = {}  # by who told it, the last of each
        self._free_at: float | None = None  # when the next change by others is taken

    @property
    def rank(self) -> tuple[int, bytes]:
        """Of the ring in force."""
        return self._rank

    @property
    def banned(self) -> frozenset[PeerId]:
        """Who is refused. It only grows."""
        return self._banned

    @property
    def latest(self) -> KeyChange | None:
        """What a member that comes later must be told: the key in force, and all bans; None before any change.

        Only for who has proved another id than a banned one.
        """
        return self._latest

    def accept(self, change: KeyChange) -> bool:
        """Take in a change, from a member over a proven link, or from this peer's own user.

        True where the key or the bans are others now: `latest` is then to be carried out and passed on. Links to who
        is banned now must be closed first. A change by who is banned is no news.

        Raises:
            ProtocolError: `bad key`, `bad signature`, `bad ban`, `too many bans` or `key change too far ahead`; nothing
                has changed.
        """
        if change == self._latest or change.by in self._banned:
            return False
        check(self._network, change)
        if change.epoch > self._rank[0] + MOST_AHEAD:
            raise ProtocolError("key change too far ahead", f"epoch {change.epoch} after {self._rank[0]}")
        if change.by in change.banned:
            raise ProtocolError("bad ban", "of itself")
        banned = self._banned.union(change.banned)
        if len(banned) > MOST_BANNED:
            raise ProtocolError("too many bans", f"{len(banned)}, more than {MOST_BANNED}")
        before = (self._rank, self._banned)
        self._latest = self._joined(change, banned)
        self._rank = self._rank if self._latest is None else _rank(self._latest)
        self._banned = banned
        return before != (self._rank, self._banned)

    def _joined(self, told: KeyChange, banned: frozenset[PeerId]) -> KeyChange | None:
        """What stands of what stood and what was told, with all the bans; None where a key stands that came so."""
        if banned == frozenset(told.banned) and (banned != self._banned or _rank(told) >= self._rank):
            return told
        if banned == self._banned:
            return self._latest
        if self._identity is None or self._latest is None:
            return told  # the key that stood was never told here; the bans are kept all the same
        mine, other = (_ring(self._network, change) for change in (self._latest, told))
        return change(self._identity, mine.joined(other))

    # Changes that come too soon after another

    def waits(self, teller: PeerId, change: KeyChange, now: float) -> bool:
        """Whether a change by others must wait until `due`; one that bans somebody need not, as bans are bounded."""
        if self._free_at is None or now >= self._free_at or not self._banned.issuperset(change.banned):
            return False
        if change != self._latest:
            self._waiting[teller] = change
        return True

    def took(self, now: float) -> None:
        """A change by others was carried out: the next ones wait."""
        self._free_at = now + PAUSE_S

    def forget(self, teller: PeerId) -> None:
        """Who told something that waits is gone."""
        self._waiting.pop(teller, None)

    def due(self, now: float) -> Mapping[PeerId, KeyChange]:
        """The changes whose time has come, by who told them."""
        if not self._waiting or (self._free_at is not None and now < self._free_at):
            return {}
        waiting, self._waiting = self._waiting, {}
        return waiting

    def next_deadline(self) -> float | None:
        """When to ask `due`."""
        return self._free_at if self._waiting else None


def change(identity: Identity, ring: KeyRing) -> KeyChange:
    """A ring as a message to the other members, signed by one of them.

    Raises:
        UsageError: too many peers are banned for one message.
    """
    if len(ring.banned) > MOST_BANNED:
        raise UsageError(f"{len(ring.banned)} peers are banned, more than {MOST_BANNED}: make a new network instead")
    unsigned = KeyChange(
        epoch=ring.epoch,
        key=ring.key.secret,
        by=identity.peer,
        by_key=identity.public,
        banned=tuple(sorted(ring.banned)),
    )
    return KeyChange(
        epoch=unsigned.epoch,
        key=unsigned.key,
        by=unsigned.by,
        by_key=unsigned.by_key,
        banned=unsigned.banned,
        signature=identity.sign(_signed(ring.name, unsigned)),
    )


def check(network: str, change: KeyChange) -> None:
    """Raise ProtocolError unless a change is signed for this network by the peer it names, and has a whole key."""
    if len(change.key) != KEY_BYTES:
        raise ProtocolError("bad key", f"{len(change.key)} bytes")
    if not all(_PEER_ID.fullmatch(peer) for peer in change.banned):
        raise ProtocolError("bad ban", "of what is no peer's id")
    try:
        by = peer_id(change.by_key)
    except ValueError as error:
        raise ProtocolError("bad signature", "no public key") from error
    if by != change.by or not verifies(change.by_key, _signed(network, change), change.signature):
        raise ProtocolError("bad signature", f"of a key change by {change.by}")


def changed(ring: KeyRing, change: KeyChange) -> KeyRing:
    """The ring after a change that was accepted, see `KeyRing.joined`."""
    return ring.joined(_ring(ring.name, change))


def _ring(network: str, change: KeyChange) -> KeyRing:
    return KeyRing(NetworkKey(network, change.key), change.epoch, (), frozenset(change.banned))


def _rank(change: KeyChange) -> tuple[int, bytes]:
    """As `KeyRing.rank`."""
    return (change.epoch, hashlib.sha256(change.key).digest())


def _signed(network: str, change: KeyChange) -> bytes:
    """What a signature is made over: every field, each with its length before it."""
    fields = (
        b"p2pfl key change",
        network.encode(),
        str(change.epoch).encode(),
        change.key,
        change.by.encode(),
        change.by_key,
        *(peer.encode() for peer in change.banned),
    )
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)
