"""Control connections: whom to dial and when, the handshake, and one connection for each pair of peers.

Both ends send `Hello` at once. The first message of the other end must be its `Hello`; what it says is checked here,
and a refusal is sent before the connection is closed, so that the other end can tell its user.

Of two connections to one peer, that dialed by the lower id stays; if one end dialed both, the one greeted last. And so
it is where the other one was greeted long before: nobody dials who has a connection, so to one end it is gone. An end
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
MAX_TARGETS = 1024  # kept for dialing; a stranger makes room beyond, then a member that was not reached
_AT_ONCE_S = 15.0  # two connections are made at once, and the slower of them is greeted in so long
BETWEEN_HASTES_S = 5.0  # what others say makes a dial come early, at most this often
LONGEST_UNPROVEN_S = 300.0  # at none of its addresses has the member ever answered: they may be a third party's
LONGEST_FOR_GONE_S = 30.0  # of a member that is dead, once it has been tried for a while
FORGOTTEN_AFTER_S = 3600.0  # of dials to a dead member; more heals longer splits, where nobody is announced on the LAN

# Members are many where a network comes back; who has only ever said where it is could send all of them to one place.
_MEMBERS_AT_ONCE, _MEMBERS_PER_S, _MEMBERS_BURST = 64, 16.0, 64


@dataclass
class _Target:
    """Somebody to dial: a peer by id, or an address of whom nothing else is known."""

    addresses: tuple[str, ...]
    due: float
    failures: int = 0
    dialing: bool = False
    outdated: bool = False  # its present incarnation was heard of after the dial under way began
    known: bool = False  # it has said hello here before, or more than one member tells of it
    once: bool = False  # hearsay of one member alone: a lie costs one dial
    named: bool = False  # by the user
    gone: bool = False  # a member that is dead
    budget: DialBudget | None = None  # against which the dial under way counts
    proved: frozenset[str] = frozenset()  # the addresses of the last dial that reached it
    failing_since: float | None = None
    turned_down: int = 0  # times in a row, by either end, after it was reached
    hastened_at: float = -inf

    @property
    def proven(self) -> bool:
        """Whether the peer was reached at these addresses, or some of them."""
        return not self.proved.isdisjoint(self.addresses)


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
        self._greeted_at: dict[LinkId, float] = {}
        self._left_by_other: set[LinkId] = set()
        self._turned_down: set[LinkId] = set()
        self._proven: dict[LinkId, PeerId] = {}
        self._strangers = DialBudget()
        self._members = DialBudget(_MEMBERS_AT_ONCE, _MEMBERS_PER_S, _MEMBERS_BURST)
        self._look_at = -inf  # no dial can begin before; a table of ghosts is not gone through at each event
        self._newest_first = True
        self._called: dict[str, PeerId] = {}  # aliases that turned out to be somebody's
        self.open = True

    # Dialing

    def propose(
        self, key: str, addresses: tuple[str, ...], now: float, *, known: bool = False, named: bool = False
    ) -> None:
        """Remember somebody to dial; who is remembered gets the new addresses, and is tried soon.

        Args:
            known: it is a member: it is dialed before strangers, and again soon.
            named: the user named it: it is dialed as long as this peer runs.
        """
        key = self._called.get(key, key)
        target = self._targets.get(key)
        if target is None:
            if key != self._me and self._has_room(known, named):
                self._targets[key] = target = _Target(addresses, now, known=known, named=named)
                self._look(max(now, self._budget(target).next_at(now)))
            return
        target.known |= known
        target.named |= named
        target.once = False
        if known:
            target.gone = False
        if target.addresses != addresses:
            target.addresses = addresses
            self._hasten(target, now)

    def suggest(self, peer: PeerId, addresses: tuple[str, ...], now: float) -> None:
        """One member tells of a stranger: dial it, once. It may be somebody who knows nothing of all this."""
        if peer not in self._targets and peer not in self._link_of:
            self.propose(peer, addresses, now)
            if peer in self._targets:
                self._targets[peer].once = True

    def retry(self, key: str, now: float) -> None:
        """Try again, at once where that was not asked for a moment ago."""
        if key in self._targets:
            self._hasten(self._targets[key], now)

    def _hasten(self, target: _Target, now: float) -> None:
        if target.due > now and now - target.hastened_at >= BETWEEN_HASTES_S:
            target.due = target.hastened_at = now
        self._look(max(target.due, self._budget(target).next_at(now)))

    def gone(self, key: str) -> None:
        """A member is dead: it is dialed for a while, as the network may have come apart."""
        if key in self._targets:
            self._targets[key].gone = True

    def forget(self, key: str) -> None:
        """Dial somebody no more."""
        target = self._targets.pop(key, None)
        if target is not None:
            self._dialed_out(target)

    def _has_room(self, known: bool, named: bool) -> bool:
        """Make room for one more: who failed most goes first, and strangers before members."""
        if len(self._targets) < MAX_TARGETS:
            return True
        busy = self._busy()
        ranks = [
            (not target.known, target.due == inf, target.failures, -number, key)
            for number, (key, target) in enumerate(self._targets.items())
            if not (target.named or target.dialing or key in busy) and (known or named or not target.known)
        ]
        if not ranks:
            return named
        self.forget(max(ranks)[-1])
        return True

    def due(self, now: float) -> list[Dial]:
        """Whom to dial now."""
        if not self.open or now < self._look_at:
            return []
        dials, busy = [], self._busy()
        for key, target in self._ready(now, busy):
            budget = self._budget(target)
            if not budget.begin(now):
                continue
            target.budget, target.dialing, target.due = budget, True, now  # its next turn comes after those that wait
            target.outdated = False
            dials.append(Dial(key, target.addresses))
        if dials:
            self._newest_first = not self._newest_first
        self._look_at = min(
            (
                max(target.due, self._budget(target).next_at(now))
                for key, target in self._targets.items()
                if not target.dialing and key not in busy
            ),
            default=inf,
        )
        return dials

    def _ready(self, now: float, busy: set[str]) -> list[tuple[str, _Target]]:
        """Who could be dialed now, in the order of their turns.

        By turns who failed least, the newest first, and who waits longest: ghosts use up the budget, and neither a
        newcomer among many nor one whose first dial failed must wait for all of them.
        """
        ready = [
            (key, target)
            for key, target in self._targets.items()
            if target.due <= now and not target.dialing and key not in busy
        ]
        if self._newest_first:
            return sorted(ready, key=lambda item: (not item[1].named, item[1].failures, -item[1].due))
        return sorted(ready, key=lambda item: (not item[1].named, item[1].due))

    def next_dial(self, now: float) -> float | None:
        """When the next dial is due."""
        return self._look_at if self.open and self._look_at < inf else None

    def _budget(self, target: _Target) -> DialBudget:
        """Members have their own, as long as they were reached where they say they are, or were not yet tried."""
        trusted = target.named or (target.known and (target.proven or not target.failures))
        return self._members if trusted else self._strangers

    def _busy(self) -> set[str]:
        """Whom there is a connection to, or one that was dialed and has not said hello."""
        return {*self._link_of, *(key for key in self._dialed.values() if key is not None)}

    def _look(self, at: float = -inf) -> None:
        self._look_at = min(self._look_at, at)

    def renewed(self, peer: PeerId) -> None:
        """A peer is in a later incarnation: a dial that is under way may end where it was before."""
        if peer in self._targets:
            self._targets[peer].outdated = True

    def outdated(self, key: str) -> bool:
        """Whether the latest dial of somebody began before its present incarnation was heard of."""
        return key not in self._targets or self._targets[key].outdated

    def dial_failed(self, key: str, now: float) -> None:
        """Back off: twice as long each time, up to ten seconds, spread so that peers do not dial in step."""
        target = self._targets.get(key)
        if target is None:
            return
        self._dialed_out(target)
        if target.failing_since is None:
            target.failing_since = now
        if target.once:
            target.due = inf  # until somebody else tells of it
            return
        if target.gone and not target.named and now - target.failing_since >= FORGOTTEN_AFTER_S:
            self.forget(key)
            return
        spread = 0.75 + 0.5 * (random_key(target.failures, "dial", self._me, key) % 1024) / 1024
        target.due = now + min(_longest_s(target), FIRST_DELAY_S * 2.0 ** min(target.failures, 12)) * spread
        target.failures += 1

    def _dialed_out(self, target: _Target) -> None:
        target.dialing = False
        if target.budget is not None:
            target.budget.end()
            target.budget = None
        self._look()

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
        self._look()

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
            mine, theirs = (f"{lowest} to {highest}" for lowest, highest in (VERSIONS, hello.versions))
            raise ProtocolError("no common version", f"this peer speaks {mine}, the other one {theirs}")
        proven, dialed = self._proven.get(link, ""), self._dialed.get(link)
        if proven and hello.me.peer != proven:
            raise ProtocolError("wrong peer id", f"{hello.me.peer}, with the key of {proven}")
        if dialed is not None and is_id(dialed) and dialed != hello.me.peer:
            raise ProtocolError("wrong peer id", f"{hello.me.peer}, where {dialed} was dialed")

    def greeted(self, link: LinkId, hello: Hello, now: float) -> LinkId | None:
        """Take the other end's hello; returns the surplus one of two connections to that peer, to be left."""
        peer = hello.me.peer
        self._hello_of[peer] = hello
        self._peer_of[link] = peer
        key = self._dialed.get(link)
        if key is not None and key != peer and key in self._targets:
            # The address is one of this peer's: from here on it is dialed under its id.
            addresses, named = self._targets[key].addresses, self._targets[key].named
            self.forget(key)
            self._dialed[link] = peer
            if ":" not in key and len(self._called) < MAX_TARGETS:
                self._called[key] = peer
            reached = tuple(dict.fromkeys((*hello.me.addresses, *addresses)))
            self.propose(peer, reached, 0.0, known=True, named=named)
        target = self._targets.get(peer)
        if target is not None:
            target.known, target.once, target.gone, target.failing_since = True, False, False, None
            if key is not None:
                target.proved = frozenset(target.addresses)
            if key is not None or target.proven:  # who comes by itself has not shown that it is where it says
                target.failures = 0
        self._greeted_at[link] = now
        other = self._link_of.get(peer)
        at_once = other is not None and now - self._greeted_at[other] < _AT_ONCE_S
        if other is not None and at_once and self._dialer(link, peer) > self._dialer(other, peer):
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

    def turned_down(self, link: LinkId) -> None:
        """One end will not talk to the other, though both may have said hello: it is dialed less and less often."""
        self._turned_down.add(link)

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
        self._greeted_at.pop(link, None)
        self._left_by_other.discard(link)
        self._proven.pop(link, None)
        self._look()
        down = link in self._turned_down
        self._turned_down.discard(link)
        target = self._targets.get(key or "")
        if target is not None and peer is not None:
            target.turned_down = target.turned_down + 1 if down else 0
            if down:
                target.failures = target.turned_down
        if key is not None and (peer is None or down):
            self.dial_failed(key, now)  # it never got as far as a hello, or no further: no hurry to dial again
        if peer is None or self._link_of.get(peer) != link:
            return None
        remaining = self._links_to(peer)
        if remaining:
            self._link_of[peer] = remaining[-1]
            return None
        del self._link_of[peer]
        self._hello_of.pop(peer, None)
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
        """What a peer last said of itself, as long as there is a connection."""
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


def _longest_s(target: _Target) -> float:
    """The longest time between two dials."""
    if target.known and not target.proven and not target.named:
        return LONGEST_UNPROVEN_S
    if target.known and target.failures < _TRIES_SOON:
        return LONGEST_FOR_MEMBERS_S
    return LONGEST_FOR_GONE_S if target.gone else LONGEST_DELAY_S
