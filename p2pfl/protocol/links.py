"""Control connections: whom to dial and when, the handshake, and one connection for each pair of peers.

Both ends send `Hello` at once. The first message of the other end must be its `Hello`; what it says is checked here,
and a refusal is sent before the connection is closed, so that the other end can tell its user.

Of two connections to one peer, that dialed by the lower id stays; if one end dialed both, the one greeted last. An end
that leaves a connection says so on it, as its last word, and goes on listening: whoever has left it and hears this
closes it. So no message is lost while the ends are of different minds.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from p2pfl.errors import ProtocolError
from p2pfl.keys import random_key
from p2pfl.protocol.dial_budget import DialBudget
from p2pfl.protocol.messages import VERSIONS, Hello
from p2pfl.protocol.participant import Dial, LinkId
from p2pfl.types import PeerId

FIRST_DELAY_S = 0.25
LONGEST_DELAY_S = 10.0
LONGEST_FOR_MEMBERS_S = 3.0  # who was here before may be cut off for a while, and is back soon after
_ID_CHARACTERS = 52  # see `identity.peer_id`; an alias has half as many
_TRIES_SOON = 40  # of them, before a member is tried as seldom as anybody
MAX_TARGETS = 1024  # addresses kept for dialing; the newest strangers are left out beyond


@dataclass
class _Target:
    """Somebody to dial: a peer by id, or an address of whom nothing else is known."""

    addresses: tuple[str, ...]
    due: float
    failures: int = 0
    dialing: bool = False
    known: bool = False  # it has said hello here before, or more than one member tells of it
    once: bool = False  # hearsay of one member alone: a lie costs one dial
    budgeted: bool = False  # the dial under way counts against the budget of strangers


class Links:
    """The connections of one peer. Pure bookkeeping: the core turns its answers into effects."""

    def __init__(self, me: PeerId, network: str) -> None:
        self._me = me
        self._network = network
        self._targets: dict[str, _Target] = {}
        self._dialed: dict[LinkId, str | None] = {}  # open links and the key they were dialed under
        self._peer_of: dict[LinkId, PeerId] = {}
        self._link_of: dict[PeerId, LinkId] = {}
        self._hello_of: dict[PeerId, Hello] = {}
        self._left_by_other: set[LinkId] = set()
        self._proven: dict[LinkId, PeerId] = {}
        self._budget = DialBudget()
        self._called: dict[str, PeerId] = {}  # aliases that turned out to be somebody's
        self.open = True

    # Dialing

    def propose(self, key: str, addresses: tuple[str, ...], now: float, *, known: bool = False) -> None:
        """Remember somebody to dial; known ones get the new addresses and are tried soon.

        Args:
            known: it is a member: it is dialed past the budget of strangers, and again soon.
        """
        key = self._called.get(key, key)
        target = self._targets.get(key)
        if target is None:
            if len(self._targets) < MAX_TARGETS and key != self._me:
                self._targets[key] = _Target(addresses, now, known=known)
            return
        target.known |= known
        target.once = False
        if target.addresses != addresses:
            target.addresses = addresses
            target.due = min(target.due, now)

    def suggest(self, peer: PeerId, addresses: tuple[str, ...], now: float) -> None:
        """One member tells of a stranger: dial it, once. It may be somebody who knows nothing of all this."""
        if peer not in self._targets and peer not in self._link_of:
            self.propose(peer, addresses, now)
            if peer in self._targets:
                self._targets[peer].once = True

    def retry(self, key: str, now: float) -> None:
        """Try again at once."""
        if key in self._targets:
            self._targets[key].due = now

    def forget(self, key: str) -> None:
        """Dial somebody no more."""
        target = self._targets.pop(key, None)
        if target is not None and target.budgeted:
            self._budget.end()

    def due(self, now: float) -> list[Dial]:
        """Whom to dial now."""
        if not self.open:
            return []
        dials = []
        # Who failed least comes first: among ghosts that use up the budget, a newcomer would never get its turn.
        for key, target in sorted(self._targets.items(), key=lambda item: (item[1].failures, item[1].due)):
            if not self._wants(key, target) or target.due > now:
                continue
            if not target.known:
                if not self._budget.begin(now):
                    continue
                target.budgeted = True
            target.dialing = True
            dials.append(Dial(key, target.addresses))
        return dials

    def next_dial(self, now: float) -> float | None:
        """When the next dial is due."""
        if not self.open:
            return None
        wanted = [target for key, target in self._targets.items() if self._wants(key, target)]
        times = [target.due for target in wanted if target.known]
        strangers = [target.due for target in wanted if not target.known]
        if strangers:
            times.append(max(min(strangers), self._budget.next_at(now)))
        return min((time for time in times if time < inf), default=None)

    def _wants(self, key: str, target: _Target) -> bool:
        return not target.dialing and key not in self._link_of and key not in self._dialed.values()

    def dial_failed(self, key: str, now: float) -> None:
        """Back off: twice as long each time, up to ten seconds, spread so that peers do not dial in step."""
        target = self._targets.get(key)
        if target is None:
            return
        self._dialed_out(target)
        if target.once:
            target.due = inf  # until somebody else tells of it
            return
        spread = 0.75 + 0.5 * (random_key(target.failures, "dial", self._me, key) % 1024) / 1024
        soon = target.known and target.failures < _TRIES_SOON
        longest_s = LONGEST_FOR_MEMBERS_S if soon else LONGEST_DELAY_S
        target.due = now + min(longest_s, FIRST_DELAY_S * 2.0 ** min(target.failures, 10)) * spread
        target.failures += 1

    def _dialed_out(self, target: _Target) -> None:
        target.dialing = False
        if target.budgeted:
            target.budgeted = False
            self._budget.end()

    def failing(self, key: str) -> bool:
        """Whether the last dial of somebody came to nothing."""
        return key in self._targets and self._targets[key].failures > 0

    # Handshake

    def opened(self, link: LinkId, dialed: str | None, proven: PeerId = "") -> None:
        """A connection is there."""
        self._dialed[link] = dialed
        self._proven[link] = proven
        if dialed in self._targets:
            self._dialed_out(self._targets[dialed])

    def proven(self, link: LinkId) -> PeerId:
        """Whose key the other end has proved to hold; empty on a link without encryption."""
        return self._proven.get(link, "")

    def check(self, link: LinkId, hello: Hello) -> None:
        """Whether the other end's hello allows to talk; whether its seat is taken is the core's to judge.

        Raises:
            ProtocolError: the other end must not be talked to; the reason is told to it.
        """
        if hello.network != self._network:
            raise ProtocolError("other network", f"this is {self._network!r}")
        if hello.versions[0] > VERSIONS[1] or hello.versions[1] < VERSIONS[0]:
            raise ProtocolError("no common version", f"this peer speaks {VERSIONS[0]} to {VERSIONS[1]}")
        proven, dialed = self._proven.get(link, ""), self._dialed.get(link)
        if proven and hello.me.peer != proven:
            raise ProtocolError("wrong peer id", f"{hello.me.peer}, with the key of {proven}")
        if dialed is not None and is_id(dialed) and dialed != hello.me.peer:
            raise ProtocolError("wrong peer id", f"{hello.me.peer}, where {dialed} was dialed")

    def greeted(self, link: LinkId, hello: Hello) -> LinkId | None:
        """Take the other end's hello; returns the surplus one of two connections to that peer, to be left."""
        peer = hello.me.peer
        self._hello_of[peer] = hello
        self._peer_of[link] = peer
        key = self._dialed.get(link)
        if key is not None and key != peer and key in self._targets:
            # The address is one of this peer's: from here on it is dialed under its id.
            addresses = self._targets[key].addresses
            self.forget(key)
            self._dialed[link] = peer
            if ":" not in key and len(self._called) < MAX_TARGETS:
                self._called[key] = peer
            self.propose(peer, tuple(dict.fromkeys((*hello.me.addresses, *addresses))), 0.0)
        if peer in self._targets:
            self._targets[peer].failures = 0
            self._targets[peer].known = True
            self._targets[peer].once = False
        other = self._link_of.get(peer)
        if other is not None and self._dialer(link, peer) > self._dialer(other, peer):
            return link
        self._link_of[peer] = link
        return other

    def left_by_other(self, link: LinkId) -> bool:
        """The other end's last word on a connection; returns whether it can be closed."""
        self._left_by_other.add(link)
        peer = self._peer_of[link]
        if self._link_of.get(peer) == link and self._dialed.get(link) is None:
            # One end dialed both: it is the one to choose. On one dialed here the last word may have been said.
            others = [o for o in self._links_to(peer) if o != link and self._dialed.get(o) is None]
            if others:
                self._link_of[peer] = others[-1]
        return self._link_of.get(peer) != link

    def is_left_by_other(self, link: LinkId) -> bool:
        """Whether the other end has said its last word on a connection."""
        return link in self._left_by_other

    def _links_to(self, peer: PeerId) -> list[LinkId]:
        return [link for link, other in self._peer_of.items() if other == peer]

    def _dialer(self, link: LinkId, peer: PeerId) -> PeerId:
        return self._me if self._dialed.get(link) is not None else peer

    # Asking

    def lost(self, link: LinkId, now: float) -> PeerId | None:
        """A connection ended; returns the peer that cannot be reached any more, if that was its last one."""
        key = self._dialed.pop(link, None)
        peer = self._peer_of.pop(link, None)
        self._left_by_other.discard(link)
        self._proven.pop(link, None)
        if peer is None and key is not None:
            self.dial_failed(key, now)  # it never got as far as a hello: no hurry to dial again
        if peer is None or self._link_of.get(peer) != link:
            return None
        remaining = self._links_to(peer)
        if remaining:
            self._link_of[peer] = remaining[-1]
            return None
        del self._link_of[peer]
        return peer

    def known(self, link: LinkId) -> bool:
        """Whether a connection is open."""
        return link in self._dialed

    def key_of(self, link: LinkId) -> str | None:
        """The key under which a connection was dialed, None where the other end dialed."""
        return self._dialed.get(link)

    def peer_of(self, link: LinkId) -> PeerId | None:
        """Who is at the other end, once greeted."""
        return self._peer_of.get(link)

    def link_of(self, peer: PeerId) -> LinkId | None:
        """The connection to a peer."""
        return self._link_of.get(peer)

    def hello_of(self, peer: PeerId) -> Hello | None:
        """What a peer last said of itself."""
        return self._hello_of.get(peer)

    def reachable(self, peer: PeerId) -> bool:
        """Whether there is a connection to a peer."""
        return peer in self._link_of

    @property
    def peers(self) -> tuple[PeerId, ...]:
        """Whom there is a connection to."""
        return tuple(self._link_of)

    @property
    def all(self) -> tuple[LinkId, ...]:
        """All open connections, greeted or not."""
        return tuple(self._dialed)

    def links_of(self, peers: Iterable[PeerId]) -> list[LinkId]:
        """All connections to some peers, surplus ones and those not greeted yet too."""
        gone = set(peers)
        return [link for link in self._dialed if self._peer_of.get(link) in gone or self._proven.get(link) in gone]


def is_id(key: str) -> bool:
    """Whether a key is a peer's id, and not an address or the alias by which discovery knows a peer."""
    return len(key) == _ID_CHARACTERS and ":" not in key
