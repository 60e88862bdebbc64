"""How a network comes to another key: signed changes that every member may make, and that leave all with one ring.

Rings of one network make a lattice. Of two changes the one with the higher rank gives the key, and bans add up; so
members that hear the same changes, in any order and however often, hold the same key and ban the same peers. Whoever
holds the key may change it: that a change is by a member is what the signature and the link it came over prove.
"""

import hashlib
from collections.abc import Iterable

from p2pfl.errors import ProtocolError, UsageError
from p2pfl.identity import Identity, peer_id, verifies
from p2pfl.network_key import KEY_BYTES, KeyRing, NetworkKey
from p2pfl.protocol.messages import KeyChange
from p2pfl.types import PeerId

MOST_BANNED = 256  # as many as a `KeyChange` has room for
MOST_AHEAD = 1 << 16  # epochs in one step: a liar cannot use up the numbers that are left


class Rekeying:
    """What a participant knows of its network's key, without holding it.

    Args:
        network: the network's name; a change is signed for it.
        rank: of the ring in force, `KeyRing.rank`.
        banned: ids that are refused, whatever key they hold.
    """

    def __init__(self, network: str, rank: tuple[int, bytes], banned: Iterable[PeerId] = ()) -> None:
        self._network = network
        self._rank = rank
        self._banned = frozenset(banned)
        self._latest: KeyChange | None = None

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
        """What a member that comes later must be told: the change by which the key in force came; None before any.

        Only for who has proved another id than a banned one.
        """
        return self._latest

    def accept(self, change: KeyChange) -> bool:
        """Take in a change, from a member over a proven link, or from this peer's own user.

        True where it is news, a higher rank or another ban: then it is to be carried out and passed on. Links to who
        is banned now must be closed first.

        Raises:
            ProtocolError: `bad key`, `bad signature` or `key change too far ahead`; nothing has changed.
        """
        check(self._network, change)
        if change.epoch > self._rank[0] + MOST_AHEAD:
            raise ProtocolError("key change too far ahead", f"epoch {change.epoch} after {self._rank[0]}")
        rank = _rank(change)
        banned = self._banned.union(change.banned)
        news = rank > self._rank or banned != self._banned
        if rank >= self._rank:
            self._rank, self._latest = rank, change
        self._banned = banned
        return news


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
    try:
        by = peer_id(change.by_key)
    except ValueError as error:
        raise ProtocolError("bad signature", "no public key") from error
    if by != change.by or not verifies(change.by_key, _signed(network, change), change.signature):
        raise ProtocolError("bad signature", f"of a key change by {change.by}")


def changed(ring: KeyRing, change: KeyChange) -> KeyRing:
    """The ring after a change that was accepted; the same whichever of two changes comes first.

    The key before it is still honored, unless the change bans somebody: a banned peer holds that key.
    """
    banned = ring.banned.union(change.banned)
    key, epoch = ring.key, ring.epoch
    former = ring.former
    if _rank(change) > ring.rank:
        key, epoch = NetworkKey(ring.name, change.key), change.epoch
        # Of two rotations at once, others may still hold either key, or the one before both.
        former = (ring.key, *(ring.former if change.epoch == ring.epoch else ()))
    if banned != ring.banned:
        former = ()
    return KeyRing(key, epoch, tuple(one for one in former if one != key), banned)


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
