"""What makes a live peer a member of its network: its identity, the network's keys, and how both change.

Identity and keys come from `home` unless the caller brings them. A change of the key, by another member or by
`p2pfl network rotate` in another process of this machine, is used at once; the key before it is honored for a while,
so that nobody who was away for a moment is locked out, unless the change was made to lock somebody out.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

from p2pfl import home
from p2pfl.errors import ProtocolError, UsageError
from p2pfl.identity import SECRET_BYTES, Identity
from p2pfl.network.discovery import Announcement
from p2pfl.network.tls import Credentials
from p2pfl.network_key import KeyRing, NetworkKey
from p2pfl.protocol.messages import VERSIONS, KeyChange, Member
from p2pfl.protocol.rekeying import change, changed
from p2pfl.types import PeerId

FORMER_S = 600.0  # for which a former key is honored; more lets in who was away longer, and whoever stole that key
_LOOK_S = 2.0  # between looks at the ring on disk
_MET = 64  # addresses of earlier runs to look at; more find a network that has moved, and dial longer in vain
_START = 1 << 16  # incarnations of one start, as in `home`


def ring_in(key: str | NetworkKey | KeyRing | None) -> KeyRing | None:
    """The ring that a caller gave in one of its forms. Raises UsageError for a token that is none."""
    if isinstance(key, str):
        return KeyRing.of_token(key)
    return KeyRing(key) if isinstance(key, NetworkKey) else key


class Belonging:
    """One peer's identity and keys, for one run."""

    def __init__(
        self,
        network: str,
        name: str,
        *,
        key: KeyRing | None,
        identity: home.Held | Identity | Path | None,
        encrypted: bool,
        at_home: bool,
        warn: Callable[[str], None],
        resumed: PeerId = "",
        after: int = -1,
    ) -> None:
        """Take identity and keys; `release` gives the identity back.

        Args:
            key: the ring to go by; else that of this machine, if the run is encrypted.
            identity: who to be; a path is of a file as `home` keeps them.
            at_home: take an identity of this machine where none is given, else an ephemeral one.
            resumed: the id of the run that goes on, empty where a new one begins.
            after: its incarnation then.

        Raises:
            UsageError: there is no key, or the identity cannot be had.
        """
        self.network = network
        self._warn = warn
        self._kept = key is None
        self._own: home.Held | None = None  # to be given back
        self._held: home.Held | None = None
        self._news: home.RingWatch | None = None
        self._former_until: dict[NetworkKey, float] = {}
        self._unkept = asyncio.Event()  # the ring is another than on disk
        self.changed = asyncio.Event()  # what is announced is another now
        if encrypted and key is None:
            self._news = home.RingWatch(network)
            key = home.ring_of(network)
            if key is None:
                raise UsageError(
                    f"there is no key of network {network!r} on this machine: make one by  p2pfl network create "
                    f"{network}\nor bring the file `key` of a member and join by  p2pfl network join FILE"
                )
        if isinstance(identity, Identity):
            self.identity, self.incarnation = identity, (max(after, 0) // _START + 1) * _START
        elif isinstance(identity, home.Held):
            self._held = identity
        elif identity is not None or at_home:
            file = identity if isinstance(identity, Path) else None
            self._own = home.hold(network, name, file=file, peer=resumed or None, after=max(after, 0))
            self._held = self._own
        else:
            self.identity, self.incarnation = Identity(secrets.token_bytes(SECRET_BYTES)), _START
        if self._held is not None:
            self.identity, self.incarnation = self._held.identity, self._held.incarnation
        self.ring = key
        self.credentials = Credentials(self.identity, key) if key is not None else None
        self._use()

    @property
    def peer(self) -> PeerId:
        """Who this peer is."""
        return self.identity.peer

    @property
    def encrypted(self) -> bool:
        """Whether every link is."""
        return self.ring is not None

    @property
    def rank(self) -> tuple[int, bytes]:
        """Of the ring, see `KeyRing`."""
        return self.ring.rank if self.ring is not None else (0, b"")

    @property
    def banned(self) -> frozenset[PeerId]:
        """Who is refused whatever key it holds."""
        return self.ring.banned if self.ring is not None else frozenset()

    def release(self) -> None:
        """Let another process be this peer."""
        if self._unkept.is_set() and self.ring is not None:
            self._keep(self.ring)
        if self._own is not None:
            self._own.release()

    # What strangers hear

    @property
    def tags(self) -> tuple[str, ...]:
        """What the networks to look for are called on the LAN, the one to announce first."""
        return (self.network,) if self.ring is None else tuple(key.tag for key in self.ring.keys)

    def announcement(self, addresses: tuple[str, ...]) -> Announcement:
        """What the LAN is told: with a key, nothing that means anything to who has not got it."""
        name = self.peer if self.ring is None else self.ring.key.alias(self.peer)
        return Announcement(name, self.tags[0], addresses, VERSIONS[1])

    def names(self, peer: PeerId) -> tuple[str, ...]:
        """What a peer is called on the LAN, under each key that is honored."""
        return (peer,) if self.ring is None else tuple(key.alias(peer) for key in self.ring.keys)

    def known(self, name: str, members: Iterable[Member]) -> Member | None:
        """The member that is called so on the LAN, if it is one of these."""
        keys = () if self.ring is None else self.ring.keys
        return next((m for m in members if m.peer == name or any(_alias(key, m.peer) == name for key in keys)), None)

    def met(self) -> tuple[str, ...]:
        """Where members of this machine's earlier runs were."""
        known = home.peers_of(self.network) if self._news is not None else ()
        return tuple(dict.fromkeys(a for one in known if one.peer != self.peer for a in one.addresses))[:_MET]

    # Other keys

    def rekey(self, change: KeyChange) -> None:
        """Go by the network's new key, and keep it."""
        if self.ring is None:
            return
        self._follow(changed(self.ring, change))

    async def watch(self, chosen: Callable[[KeyChange], None], members: Callable[[], Iterable[Member]]) -> None:
        """Tell when the user of this machine has changed the key, keep what others made it, and end former keys.

        The present key, where it is not the first, is told at once: for who comes with a former one. Members are
        remembered on this machine, to be found again, or banned by their names.
        """
        if self.ring is not None and (self.ring.epoch or self.ring.banned):
            self._tell(chosen, self.ring)
        remembered: tuple[home.Known, ...] = ()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._unkept.wait()
            if self._unkept.is_set() and self.ring is not None:
                self._unkept.clear()
                await asyncio.to_thread(self._keep, self.ring)
            met = tuple(home.Known(m.peer, m.name, m.addresses) for m in members() if m.peer != self.peer)
            if self._news is not None and met != remembered:
                remembered = met
                with contextlib.suppress(UsageError):  # a full disk: the next run looks for them by mDNS alone
                    await asyncio.to_thread(home.remember_peers, self.network, met)
            if self.ring is None:
                return
            self._honor(tuple(key for key in self.ring.former if self._former_until[key] > _now()))
            try:
                ring = self._news.news() if self._news is not None else None
            except UsageError as error:
                self._warn(str(error))
                continue
            if ring is None:
                continue
            joined = self.ring.joined(ring)
            if (joined.key, joined.epoch, joined.banned) != (self.ring.key, self.ring.epoch, self.ring.banned):
                self._tell(chosen, ring)
            elif ring.key == self.ring.key:  # `p2pfl network retire`
                self._honor(tuple(key for key in self.ring.former if key in ring.former))

    def _tell(self, chosen: Callable[[KeyChange], None], ring: KeyRing) -> None:
        try:
            told = change(self.identity, ring)
            chosen(told)
        except (UsageError, ProtocolError) as error:
            self._warn(f"the key of network {self.network!r} is not told to the others: {error}")

    def _honor(self, former: tuple[NetworkKey, ...]) -> None:
        if self.ring is not None:
            self._follow(self.ring.honoring(former))

    def _follow(self, ring: KeyRing) -> None:
        if ring == self.ring:
            return
        self.ring = ring
        if self._kept:
            self._unkept.set()  # a disk may take its time: `watch` sees to it
        self._use()
        self.changed.set()

    def _keep(self, ring: KeyRing) -> None:
        try:
            home.store_ring(ring)
        except UsageError as error:
            self._warn(f"the network's new key is used, and could not be kept: {error}")

    def _use(self) -> None:
        if self.ring is None or self.credentials is None:
            return
        self.credentials.use(self.ring)
        if self._held is not None:
            self._held.uses(self.ring)
        until = self._former_until
        self._former_until = {key: until.get(key) or _now() + FORMER_S for key in self.ring.former}


def _now() -> float:
    """On the clock of the event loop, which never goes back."""
    return asyncio.get_running_loop().time()


@lru_cache(maxsize=4096)
def _alias(key: NetworkKey, peer: PeerId) -> str:
    return key.alias(peer)
