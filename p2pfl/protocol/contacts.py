"""Whom this peer can talk to: hellos exchanged and judged, refusals, and messages to one peer or to all."""

import math
from collections.abc import Callable, Container
from dataclasses import dataclass

from msgspec.structs import replace

from p2pfl.errors import ProtocolError
from p2pfl.events import PeerJoined, Refusal, Warned
from p2pfl.keys import random_key
from p2pfl.protocol.claims import clash
from p2pfl.protocol.links import Links
from p2pfl.protocol.membership import Table
from p2pfl.protocol.messages import Goodbye, Hello, Member, Message, Offer, Refused, Running, Settings
from p2pfl.protocol.participant import Close, Effect, Emit, LinkId, Send
from p2pfl.types import PeerId

_TAKEN = {  # by reason: what a refusal means if it is true, which this peer cannot see from here
    "duplicate seat": "another peer says that the part of this one is taken; if so, choose another --part",
    "duplicate identity": "another peer says that this one runs twice; if so, stop one of the two",
    "no common version": "another peer speaks another version of the protocol: update the older of the two",
}
_SURPLUS = "second connection"


def fan_out(peers: int) -> int:
    """How many peers hear something from each that it is news to."""
    return 3 + math.ceil(math.log2(max(peers, 2)))


@dataclass(frozen=True)
class Met:
    """A peer's hello was accepted."""

    link: LinkId
    hello: Hello
    said: Hello  # what was said to it on this connection, perhaps a while ago


@dataclass(frozen=True)
class Yields:
    """This peer claims what is another's, and has to go."""

    why: str


class Contacts:
    """The connections of one peer as effects; which there are is the business of `links`."""

    def __init__(
        self,
        table: Table,
        links: Links,
        hello: Hello,
        complaint: Callable[[Settings], str],
        check: Callable[[Member], None],
        banned: Callable[[], Container[PeerId]],
        seal: Callable[[Offer, PeerId], Offer],
    ) -> None:
        """Nobody is there yet.

        Args:
            check: raises ProtocolError where a record is not its peer's own word.
            banned: who is refused, whatever key they hold.
            seal: puts an offer under this peer's signature, for one receiver.
        """
        self._check_record = check
        self._banned = banned
        self._seal = seal
        self._table = table
        self._links = links
        self._hello = hello  # what stays the same in every hello
        self._complaint = complaint
        self._said: dict[LinkId, Hello] = {}  # until the other end's hello comes
        self._knew: dict[PeerId, frozenset[tuple[PeerId, str]]] = {}  # of whom a peer knew when it was met, and seats
        self._warned_of: set[str] = set()
        self._spread = 0  # how often something was
        self.told_off: tuple[str, ...] = ()  # why others would not talk, if what they say is true, or this one to them

    def opened(
        self,
        link: LinkId,
        dialed: str | None,
        proven: PeerId,
        round: int,
        running: Running | None,
        waited_s: float,
    ) -> list[Effect]:
        """Say hello first, on either end."""
        self._links.opened(link, dialed, proven)
        if proven in self._banned():
            return self.refuse(link, ProtocolError("banned"))
        self._said[link] = replace(
            self._hello,
            me=self._table.me,
            round=round,
            running=running,
            members=self._table.told(),
            waited_s=max(0.0, waited_s),
        )
        return [Send(link, self._said[link])]

    def greet(self, link: LinkId, hello: Hello, now: float) -> tuple[list[Effect], Met | Yields | None]:
        """Judge the other end's hello; None where it is refused, or on a connection too many."""
        if link not in self._said:
            return [], None  # it was refused before its first word
        try:
            self._links.check(link, hello)
            if hello.me.peer in self._banned():
                raise ProtocolError("banned")
            self._check_record(hello.me)
            self.check(hello.asked)
            self.check(hello.running.settings if hello.running is not None else {})
        except ProtocolError as error:
            return self.refuse(link, error), None
        peer, me = hello.me.peer, self._table.me
        known = self._links.hello_of(peer) if self._links.reachable(peer) else None
        found = clash(
            hello,
            me,
            self._said[link],
            known,
            self.connected(),
            proven=self._links.proven(link) == peer,
            unheard_of=any((peer, hello.me.seat) not in knew for other, knew in self._knew.items() if other != peer),
        )
        if found is not None:
            if found.reason == "self":
                self._links.forget(self._links.key_of(link) or "")
                return [Close(link, found.reason)], None
            if found.mine:
                return [Close(link, found.reason)], Yields(found.detail)
            return self.refuse(link, ProtocolError(found.reason, found.detail)), None
        said = self._said.pop(link)
        self._knew.setdefault(peer, frozenset((member.peer, member.seat) for member in hello.members))
        surplus = self._links.greeted(link, hello, now)
        effects: list[Effect] = [] if surplus is None else [self._leave(surplus)]
        if surplus == link:
            return effects, None
        if surplus is None:
            effects.append(Emit(PeerJoined(peer=me.peer, other=peer, name=hello.me.name, seat=hello.me.seat)))
        return effects, Met(link, hello, said)

    def check(self, settings: Settings) -> None:
        """Raise ProtocolError where no recipe has such settings."""
        complaint = self._complaint(settings)
        if complaint:
            raise ProtocolError("impossible settings", complaint)

    def refuse(self, link: LinkId, error: ProtocolError) -> list[Effect]:
        """Close a connection and tell the other end why, and who watches."""
        detail = str(error).removeprefix(error.reason).removeprefix(": ")
        what = "hello" if self._links.peer_of(link) is None else "message"
        told = self.refusal(link, what, error)
        self._links.turned_down(link)
        if error.reason == "no common version":
            self.told_off = tuple(dict.fromkeys((*self.told_off, _TAKEN[error.reason])))
        return [told, Send(link, Refused(error.reason, detail[:500])), Close(link, error.reason)]

    def refusal(self, link: LinkId, what: str, error: ProtocolError) -> Effect:
        """Word of what was refused, for whoever watches."""
        detail = str(error).removeprefix(error.reason).removeprefix(": ")
        other = self._links.peer_of(link) or self._links.proven(link)
        me = self._table.me.peer
        return Emit(Refusal(peer=me, what=what, reason=error.reason, other=other, connection=link, detail=detail[:500]))

    def _leave(self, link: LinkId) -> Effect:
        """Send no more on a surplus connection; see `links`."""
        if self._links.is_left_by_other(link):
            return Close(link, _SURPLUS)
        return Send(link, Refused(_SURPLUS))

    def refused(self, link: LinkId, refusal: Refused) -> list[Effect]:
        """The other end will not talk on this connection."""
        if refusal.reason == _SURPLUS and self._links.peer_of(link) is not None:
            return [Close(link, _SURPLUS)] if self._links.left_by_other(link) else []
        self._links.turned_down(link)
        effects: list[Effect] = [Close(link, "refused")]
        text = _TAKEN.get(refusal.reason)
        if text is not None and refusal.reason not in self._warned_of and self._table.me.state == "lobby":
            self._warned_of.add(refusal.reason)  # once: its words are nobody's to read, and worth no more
            self.told_off = tuple(dict.fromkeys((*self.told_off, text)))
            effects.append(Emit(Warned(peer=self._table.me.peer, text=text)))
        return effects

    def lost(self, link: LinkId, now: float) -> PeerId | None:
        """A connection ended; returns the peer that cannot be reached any more, if that was its last one."""
        self._said.pop(link, None)
        peer = self._links.lost(link, now)
        if peer is not None:
            self._knew.pop(peer, None)
        return peer

    def connected(self) -> list[Member]:
        """The records of those there is a connection to, by seat."""
        return self._table.select(lambda member: self._links.reachable(member.peer))

    @property
    def count(self) -> int:
        """How many peers there is a connection to."""
        return len(self._links.peers)

    def reachable(self, peer: PeerId) -> bool:
        """Whether there is a connection to a peer."""
        return self._links.reachable(peer)

    def asked_by(self, peer: PeerId) -> Settings:
        """The settings that the user of a peer, or of this one, asked for; none where there was no hello."""
        hello = self._hello if peer == self._table.me.peer else self._links.hello_of(peer)
        return hello.asked if hello else {}

    def send(self, peer: PeerId, message: Message) -> list[Effect]:
        """To one peer, if there is a connection; an offer goes under seal."""
        link = self._links.link_of(peer)
        if link is None:
            return []
        return [Send(link, self._seal(message, peer) if isinstance(message, Offer) else message)]

    def broadcast(self, message: Message, but: PeerId | None = None) -> list[Effect]:
        """To everybody there is a connection to, except perhaps for one."""
        return [effect for peer in self._links.peers if peer != but for effect in self.send(peer, message)]

    def spread(self, message: Message, but: PeerId | None = None) -> list[Effect]:
        """To a few, each of whom tells as many others what is news to it: all hear of it, for n log n messages.

        Both neighbors in the order of ids are among them, so that whatever the rest draws nobody is left out; others
        are drawn anew each time.
        """
        told = [peer for peer in self._links.peers if peer != but]
        few = fan_out(len(told) + 1)
        if few < len(told):
            self._spread += 1
            me = self._table.me.peer
            ring = sorted([me, *told])
            place = ring.index(me)
            near = [ring[place - 1], ring[(place + 1) % len(ring)]]
            drawn = {peer: random_key(self._spread, "spread", me, peer) for peer in told if peer not in near}
            told = near + sorted(drawn, key=drawn.__getitem__)[: few - len(near)]
        return [effect for peer in told for effect in self.send(peer, message)]

    def farewell(self) -> list[Effect]:
        """Say goodbye to everybody and dial nobody any more."""
        self._links.open = False
        # Where no hello has come yet, ours is out, and the goodbye behind it is understood.
        told: list[Effect] = [Send(link, Goodbye(self._table.me)) for link in self._links.all]
        return [*told, *(Close(link, "goodbye") for link in self._links.all)]
