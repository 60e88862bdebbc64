"""One peer, whole: everything that happens to it, and which room answers.

Connections and records come and go here; what that means for this peer's own states is the business of `course`.
From below: `links` and `claims`, `contacts`, `gossip`; beside them `lobby`, `joining`, `progress` and `rounds`, which
`course` leads through. Each owns what it keeps and none knows those above it. Sans I/O: see `participant`.
"""

from collections.abc import Callable, Sequence
from math import inf

from p2pfl.errors import ProtocolError
from p2pfl.layout import Vector
from p2pfl.protocol.contacts import FATAL, Contacts, Met, Yields
from p2pfl.protocol.course import Course
from p2pfl.protocol.gossip import Gossip
from p2pfl.protocol.links import Links
from p2pfl.protocol.lobby import Lobby, ready_message
from p2pfl.protocol.membership import Table
from p2pfl.protocol.messages import (
    VERSIONS,
    Declined,
    Goodbye,
    Hello,
    Join,
    Member,
    Message,
    Offer,
    Ready,
    Refused,
    Settings,
    SnapshotWanted,
    Start,
    Status,
    Update,
)
from p2pfl.protocol.participant import (
    Close,
    DialFailed,
    Done,
    Effect,
    Event,
    Fetched,
    FetchFailed,
    Found,
    LinkId,
    LinkLost,
    LinkOpened,
    Mixed,
    Prepared,
    Received,
    Send,
    Stop,
    Tick,
    Trained,
)
from p2pfl.protocol.progress import Progress
from p2pfl.types import PeerId


class PeerCore:
    """The participant of the synchronous algorithms. `handle` events, carry out the effects."""

    def __init__(
        self,
        me: Member,
        network: str,
        instance: str,
        asked: Settings,
        *,
        max_body: int,
        wait_until: float | None = None,
        wait_s: float = 0.0,
        complaint: Callable[[Settings], str] = lambda settings: "",
        firm: Settings | None = None,
    ) -> None:
        """Begin in the lobby.

        Args:
            asked: settings this peer proposes, where nobody of a lower seat does.
            firm: those of them that its user asked for now: it stops where another value stands. All, unless given.
            complaint: what is wrong with settings that another peer tells, empty where a recipe can have them.
        """
        self._id = me.peer
        self._began = inf  # when the first event came
        self._table = Table(me)
        self._links = Links(me.peer, network)
        hello = Hello(versions=VERSIONS, network=network, instance=instance, me=me, max_body=max_body, asked=asked)
        self._contacts = Contacts(self._table, self._links, hello, complaint)
        self._gossip = Gossip(self._table, self._links, self._contacts)
        self._progress = Progress()
        self._lobby = Lobby(me.peer, network, asked if firm is None else firm, wait_until, wait_s)
        self._course = Course(instance, self._table, self._contacts, self._gossip, self._progress, self._lobby)

    # What a driver may ask

    @property
    def state(self) -> str:
        """Where it is on its course."""
        return self._course.state

    @property
    def round(self) -> int:
        """The round under way, or the next."""
        return self._course.round

    @property
    def model(self) -> Vector | None:
        """The model with which that round begins."""
        return self._course.model

    @property
    def settings(self) -> Settings:
        """The settings that were chosen by somebody in the network."""
        return self._course.settings

    @property
    def members(self) -> tuple[Member, ...]:
        """All that is known of the network's peers."""
        return tuple(self._table)

    # The participant

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Take in an event and say what to do."""
        if self._course.state == "left":
            return []
        self._began = min(self._began, now)
        effects = self._handle(event, now)
        effects += self._deadlines(now)
        if self._course.state == "left":
            return sorted(effects, key=lambda effect: isinstance(effect, Done))  # nothing comes after the end
        return effects + list(self._links.due(now))

    def next_deadline(self) -> float | None:
        """When to hand in a `Tick`."""
        if self._course.state == "left":
            return None
        times = (self._links.next_dial(), self._gossip.next_deadline(), self._course.next_deadline())
        return min((t for t in times if t is not None), default=None)

    def _handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Received(link, message):
                return self._received(link, message, now)
            case Trained() if self._course.rounds is not None:
                return self._course.rounds.trained(event, now)
            case Mixed() if self._course.rounds is not None:
                return self._course.after_round(self._course.rounds.mixed(event, now), now)
            case Fetched(offer=Offer(kind="snapshot")):
                return self._course.snapshot_fetched(event, now)
            case Fetched() if self._course.rounds is not None:
                return self._course.rounds.fetched(event, now)
            case FetchFailed(offer=Offer(kind="snapshot")):
                return self._course.snapshot_failed(now)
            case FetchFailed() if self._course.rounds is not None:
                return self._course.rounds.fetch_failed(event, now)
            case LinkOpened(link, dialed):
                return self._contacts.opened(link, dialed, self._course.round, self._lobby.running, now - self._began)
            case LinkLost(link):
                return self._link_lost(link, now)
            case DialFailed(key, refused):
                self._links.dial_failed(key, now)
                return self._declare_dead(key, now) if refused else []
            case Found(peer, addresses):
                if peer != self._id:
                    self._links.propose(peer or addresses[0], addresses, now)
                return []
            case Prepared():
                return self._course.built(event, now)
            case Stop():
                return self._course.leave("stopped")
            case Tick():
                return self._course.settle(now)  # the first one is the beginning
            case _:
                return []

    def _received(self, link: LinkId, message: Message, now: float) -> list[Effect]:
        if not self._links.known(link):
            return []
        if isinstance(message, Refused):
            if message.reason in FATAL and self._course.state in ("lobby", "joining"):
                return self._course.fail(message.detail or message.reason)
            return self._contacts.refused(link, message)
        peer = self._links.peer_of(link)
        if peer is None:
            if not isinstance(message, Hello):
                return self._contacts.refuse(link, ProtocolError("no hello"))
            return self._greet(link, message, now)
        match message:
            case Ready():
                self._lobby.told(peer, message)
                return self._course.told_of_data(peer, message.data) + self._course.settle(now)
            case Start(running, init, members):
                try:
                    self._contacts.check(running.settings)
                except ProtocolError as error:
                    return self._contacts.refuse(link, error)
                self._lobby.init = init
                return self._learn(members, peer, now) + self._course.adopt(running, now)
            case Join(layout, data):
                return self._course.told_of_data(peer, data) + self._course.admit(peer, layout)
            case Update(members):
                return self._learn(members, peer, now)
            case Status(round, finished):
                self._progress.told(peer, round)
                if self._course.rounds is not None:
                    self._course.rounds.heard(peer, round)
                if finished:
                    self._progress.done(peer)
                return self._course.neighbors_done()
            case Offer(kind="share"):
                self._progress.offered(peer, message.round)
                return self._course.share_offered(peer, message, now)
            case Offer(kind="snapshot"):
                return self._course.snapshot_offered(peer, message)
            case SnapshotWanted(round) if self._course.rounds is not None:
                return self._course.rounds.snapshot_wanted(peer, round)
            case Declined() if self._course.rounds is not None:
                self._course.rounds.declined(peer, message)
                return []
            case Goodbye(me) if me.peer == peer:
                self._progress.done(peer)
                self._links.forget(peer)
                return [*self._learn((me,), peer, now), Close(link, "goodbye")]
            case _:  # an unknown extension is ignored
                return []

    def _deadlines(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if self._course.state == "left":
            return effects
        for peer in self._gossip.due(now):
            effects += self._declare_dead(peer, now)
        return effects + self._course.deadlines(now)

    # Peers that come and go

    def _greet(self, link: LinkId, hello: Hello, now: float) -> list[Effect]:
        effects, outcome = self._contacts.greet(link, hello)
        match outcome:
            case Yields(why):
                return effects + self._course.fail(why)
            case Met():
                return effects + self._welcome(outcome, now)
            case None:
                return effects

    def _welcome(self, met: Met, now: float) -> list[Effect]:
        """Bring a peer up to date on all that was not in the hello, and take what it says."""
        hello, said, peer = met.hello, met.said, met.hello.me.peer
        self._gossip.trust(peer)
        self._progress.met(peer, hello.round)
        effects = self._learn((hello.me, *hello.members), peer, now)
        running, told = self._lobby.running, self._table.told()
        messages: list[Message] = []
        if running is not None and hello.running is None and said.running is None:
            messages.append(Start(running, self._lobby.init, told))
        elif said.members != told:
            messages.append(Update(told))
        if self._lobby.prepared is not None and self._course.state == "lobby":
            messages.append(ready_message(self._lobby.prepared))
        effects += [Send(met.link, message) for message in messages]
        if self._course.rounds is not None:
            # Who is told a round takes it that the shares of earlier ones are offered: these come first.
            effects += self._course.rounds.relinked(peer)
            effects.append(Send(met.link, Status(self._course.round, self._course.rounds.finished)))
        return effects + (self._course.settle(now) if hello.running is None else self._course.adopt(hello.running, now))

    def _link_lost(self, link: LinkId, now: float) -> list[Effect]:
        peer = self._contacts.lost(link, now)
        if peer is None:
            return []
        self._lobby.lost(peer)
        self._progress.forget(peer)
        self._course.forget(peer)
        rumor = self._gossip.rumor_of(peer)
        effects = self._learn((rumor,), peer, now) if rumor is not None else []
        self._gossip.suspect(peer, now)
        return effects + self._course.settle(now) + self._course.neighbors_done()

    def _declare_dead(self, peer: PeerId, now: float) -> list[Effect]:
        effects = self._gossip.declare_dead(peer, self._course.change_round())
        return effects + self._course.settle(now) + self._course.neighbors_done() if effects else []

    def _learn(self, records: Sequence[Member], teller: PeerId, now: float) -> list[Effect]:
        learned = self._gossip.learn(records, teller, now, running=self._course.state == "running")
        effects = list(learned.effects)
        if learned.of_me:
            effects += self._course.told_of_me(learned.before, self._table.me, now)
        return effects + (self._course.neighbors_done() if learned.news else [])
