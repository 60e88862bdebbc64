"""One peer, whole: everything that happens to it, and which room answers.

Connections and records come and go here; what that means for this peer's own states is the business of `course`.
From below: `links` and `claims`, `contacts`, `gossip`, `watch`; beside them `lobby`, `joining`, `progress` and
`rounds`, which `course` leads through. Each owns what it keeps and none knows those above it. Whatever another peer
says of itself or of others is checked for signatures here, before anybody looks at it. Sans I/O: see `participant`.
"""

from collections.abc import Callable, Iterable, Sequence
from math import inf

from p2pfl.errors import ProtocolError
from p2pfl.events import ShareRejected
from p2pfl.identity import Identity
from p2pfl.layout import Vector
from p2pfl.protocol.clock import Clock
from p2pfl.protocol.contacts import Contacts, Met, Yields
from p2pfl.protocol.course import Course
from p2pfl.protocol.detector import Detector, Swim
from p2pfl.protocol.gossip import Gossip, Learned
from p2pfl.protocol.links import Links
from p2pfl.protocol.lobby import Lobby, ready_message
from p2pfl.protocol.membership import GONE, Table
from p2pfl.protocol.messages import (
    VERSIONS,
    Ack,
    Declined,
    Goodbye,
    Hello,
    Join,
    KeyChange,
    Member,
    Message,
    Offer,
    Ping,
    Probe,
    Ready,
    Refused,
    Running,
    Settings,
    SnapshotWanted,
    Start,
    Status,
    Suspicion,
    Update,
)
from p2pfl.protocol.participant import (
    Close,
    DialFailed,
    Done,
    Effect,
    Emit,
    Event,
    Fetched,
    FetchFailed,
    Found,
    Hashed,
    KeyChosen,
    LinkId,
    LinkLost,
    LinkOpened,
    Mixed,
    Prepared,
    Received,
    Rekey,
    Send,
    Stop,
    Tick,
    Trained,
)
from p2pfl.protocol.progress import Progress
from p2pfl.protocol.records import Patience, Verified, signed
from p2pfl.protocol.rekeying import Rekeying
from p2pfl.protocol.seal import Seal
from p2pfl.protocol.together import Together
from p2pfl.protocol.watch import Watch
from p2pfl.types import PeerId

SWIM = Swim()


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
        identity: Identity,
        banned: Iterable[PeerId] = (),
        rank: tuple[int, bytes] = (0, b""),
        swim: Swim = SWIM,
    ) -> None:
        """Begin in the lobby.

        Args:
            asked: settings this peer proposes, where nobody of a lower seat does.
            firm: those of them that its user asked for now: it stops where another value stands. All, unless given.
            complaint: what is wrong with settings that another peer tells, empty where a recipe can have them.
            identity: of this peer; `me.peer` is its id.
            banned, rank: of the ring of keys that the network goes by, see `KeyRing`.
            swim: how soon a silent peer is taken for dead.
        """
        if me.peer != identity.peer:
            raise ValueError("a peer's record is under its own id")
        self._id = me.peer
        self._clock = Clock(swim.lag_s)
        self._began = inf  # when the first event came
        self._verified = Verified(network)
        self._patience = Patience()
        self._rekeying = Rekeying(network, rank, banned, identity)
        self._table = Table(me, lambda record: signed(record, network, identity))
        self._seal = Seal(identity, network, lambda: self._table.me.incarnation)
        self._links = Links(me.peer, network)
        me = self._table.me
        hello = Hello(versions=VERSIONS, network=network, instance=instance, me=me, max_body=max_body, asked=asked)
        self._contacts = Contacts(
            self._table,
            self._links,
            hello,
            complaint,
            self._verified.check,
            lambda: self._rekeying.banned,
            self._seal.seal,
        )
        detector = Detector(me.peer, swim)
        self._gossip = Gossip(
            self._table, self._links, self._contacts, detector.suspects, lambda: self._course.latest_change()
        )
        self._watch = Watch(self._table, self._links, self._contacts, self._gossip, detector, swim)
        self._progress = Progress()
        self._lobby = Lobby(me.peer, network, asked if firm is None else firm, wait_until, wait_s)
        self._together = Together(me.peer, self._links.reachable)
        self._course = Course(
            instance, self._table, self._contacts, self._gossip, self._progress, self._lobby, self._together
        )

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
        now, lagged = self._clock.read(now)
        if lagged:
            self._watch.lagged(now)
        self._began = min(self._began, now)
        effects = self._handle(event, now)
        effects += self._deadlines(now)
        if self._course.state == "left":
            return sorted(effects, key=lambda effect: isinstance(effect, Done))  # nothing comes after the end
        effects += self._links.due(now)
        self._clock.expect(self._next_deadline())
        return effects

    def next_deadline(self) -> float | None:
        """When to hand in a `Tick`."""
        if self._course.state == "left":
            return None
        deadline = self._next_deadline()
        return None if deadline is None else self._clock.given(deadline)

    def _next_deadline(self) -> float | None:
        times = (
            self._links.next_dial(self._clock.now),
            self._gossip.next_deadline(),
            self._watch.next_deadline(),
            self._course.next_deadline(),
            self._rekeying.next_deadline(),
        )
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
            case Hashed() if self._course.rounds is not None:
                return self._course.rounds.hashed(event)
            case LinkOpened(link, dialed, proven):
                waited_s = now - self._began
                return self._contacts.opened(link, dialed, proven, self._course.round, self._lobby.running, waited_s)
            case LinkLost(link):
                return self._link_lost(link, now)
            case DialFailed(key, refused):
                refused = refused and not self._links.outdated(key)
                self._links.dial_failed(key, now)
                return self._declare_dead(key, now) if refused and self._watch.refused(key, now) else []
            case Found(peer, addresses, named):
                if peer != self._id:
                    self._links.propose(peer or addresses[0], addresses, now, named=named)
                return []
            case Prepared():
                return self._course.built(event, now)
            case KeyChosen(change):
                return self._rekey(change, None, now)
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
            if message.reason == "duplicate identity" and self._gossip.elsewhere:
                # Nobody's word is enough: whoever goes by this peer's key there shows it, or does not.
                self._links.suggest(self._gossip.elsewhere[0], self._gossip.elsewhere, now)
            return self._contacts.refused(link, message)
        peer = self._links.peer_of(link)
        if peer is None:
            if not isinstance(message, Hello):
                return self._contacts.refuse(link, ProtocolError("no hello"))
            return self._greet(link, message, now)
        if peer in self._rekeying.banned:
            return []  # it may have said this before it was cut off
        if self._links.link_of(peer) == link:  # what comes over another says nothing of this one
            self._watch.heard(peer, now)
        match message:
            case Ready():
                self._lobby.told(peer, message)
                return self._course.told_of_data(peer, message.data) + self._course.settle(now)
            case Start():
                return self._told_to_start(link, message, now)
            case Join(layout, data, round):
                return self._course.told_of_data(peer, data) + self._course.admit(peer, layout, round)
            case Update(members):
                return self._learn(members, link, now)
            case Status(round, finished):
                self._progress.told(peer, round)
                if self._course.rounds is not None:
                    self._course.rounds.heard(peer, round)
                if finished:
                    self._progress.done(peer)
                return self._course.others_went_on(now) + self._course.neighbors_done()
            case Offer():
                return self._offered(peer, message, now)
            case SnapshotWanted(round) if self._course.rounds is not None:
                return self._course.rounds.snapshot_wanted(peer, round)
            case Declined() if self._course.rounds is not None:
                self._course.rounds.declined(peer, message)
                return []
            case Ping():
                return self._watch.pinged(peer, message)
            case Ack():
                return self._watch.acknowledged(peer, message, now)
            case Probe():
                return self._watch.asked(peer, message)
            case Suspicion():
                return self._watch.suspected(peer, message, now)
            case KeyChange():
                return self._rekey(message, link, now)
            case Goodbye(me):
                if me.peer != peer or me.state != "left":
                    return self._contacts.refuse(link, ProtocolError("foreign record", "in a goodbye"))
                return self._goodbye(link, me, now)
            case _:  # an unknown extension is ignored
                return []

    def _goodbye(self, link: LinkId, me: Member, now: float) -> list[Effect]:
        effects = self._learn((me,), link, now)
        known = self._table.get(me.peer)
        if known is not None and known.state == "left":
            self._progress.done(me.peer)
            self._links.forget(me.peer)
        return [*effects, Close(link, "goodbye")]

    def _told_to_start(self, link: LinkId, start: Start, now: float) -> list[Effect]:
        """A run begins, or is on; only who waits for one takes more from that than news of others."""
        try:
            self._contacts.check(start.running.settings)
        except ProtocolError as error:
            return self._contacts.refuse(link, error)
        if self._course.state != "lobby":
            return self._learn(start.members, link, now)
        if self._lobby.running is None or not self._lobby.init:
            self._lobby.init = start.init
        # Nobody can count in who was never seen here: others than those are candidates to be dialed, like all hearsay.
        begin = [m for m in start.members if self._begins(m, start.running.start)]
        effects = self._learn(begin, link, now, begun=start.running)
        effects += self._learn([m for m in start.members if m not in begin], link, now, running=start.running)
        self._together.told(start, now)
        return effects + self._course.adopt(start.running, now)

    def _begins(self, record: Member, start: int) -> bool:
        """Whether who is said to be in a run from its first round on is there at all."""
        here = record.peer == self._id or self._links.reachable(record.peer)
        return here and record.state == "member" and record.since == start

    def _offered(self, peer: PeerId, sealed: Offer, now: float) -> list[Effect]:
        """Open the seal; a broken one costs the offer."""
        sender = self._table.get(peer) or self._links.hello_of(peer).me  # type: ignore[union-attr]  # it was greeted
        try:
            offer = self._seal.open(sender, sealed)
        except ProtocolError as error:
            rejected = ShareRejected(peer=self._id, round=sealed.round, other=peer, reason=error.reason)
            return [Emit(rejected)]  # declining it would withdraw the honest offer whose token a liar has repeated
        if offer.kind == "snapshot":
            return self._course.snapshot_offered(peer, offer)
        self._progress.offered(peer, offer.round)
        return self._course.share_offered(peer, offer, now)

    def _deadlines(self, now: float) -> list[Effect]:
        if self._course.state == "left":
            return []
        before = self._table.me
        effects = self._gossip.due(now)
        if self._table.me != before:
            effects += self._course.told_of_me(before, self._table.me, now)
        effects += self._watch.due(now, lambda peer: self._declare_dead(peer, now)) + self._rekey_late(now)
        return effects + self._course.deadlines(now)

    # Peers that come and go

    def _greet(self, link: LinkId, hello: Hello, now: float) -> list[Effect]:
        effects, outcome = self._contacts.greet(link, hello, now)
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
        self._table.met(peer)
        self._watch.back(peer, now)
        self._progress.met(peer, hello.round)
        running = self._course.state == "running"
        learned = self._gossip.met(said, hello, now, running=running)
        effects: list[Effect] = [] if learned is None else self._learned(learned, now)
        effects += self._learn((hello.me, *hello.members), met.link, now, running=hello.running)
        run, told = self._lobby.running, self._table.told()
        messages: list[Message] = []
        if run is not None and hello.running is None and said.running is None:
            messages.append(Start(run, self._lobby.init, told))
        elif said.members != told:
            messages.append(Update(told))
        if self._lobby.prepared is not None and self._course.state == "lobby":
            messages.append(ready_message(self._lobby.prepared))
        if self._rekeying.latest is not None and self._links.proven(met.link):
            messages.append(self._rekeying.latest)
        effects += [Send(met.link, message) for message in messages]
        if self._course.rounds is not None:
            # Who is told a round takes it that the shares of earlier ones are offered: these come first.
            effects += self._course.rounds.relinked(peer)
            effects.append(Send(met.link, Status(self._course.round, self._course.rounds.finished)))
        word = self._together.word_on(peer)
        if word is not None:
            start, record = word
            return effects + self._learn((record,), met.link, now, begun=start.running) + self._course.begin(now)
        return effects + (self._course.settle(now) if hello.running is None else self._course.adopt(hello.running, now))

    def _link_lost(self, link: LinkId, now: float) -> list[Effect]:
        peer = self._contacts.lost(link, now)
        if peer is None:
            return []
        self._lobby.lost(peer)
        self._rekeying.forget(peer)
        self._progress.forget(peer)
        self._course.forget(peer)
        self._gossip.lost(peer, now)
        self._watch.lost(peer, now)
        return self._course.settle(now) + self._course.neighbors_done()

    def _declare_dead(self, peer: PeerId, now: float) -> list[Effect]:
        effects = self._gossip.declare_dead(peer, self._course.change_round())
        return effects + self._course.settle(now) + self._course.neighbors_done() if effects else []

    def _learn(
        self,
        records: Sequence[Member],
        link: LinkId,
        now: float,
        *,
        running: Running | None = None,
        begun: Running | None = None,
    ) -> list[Effect]:
        """Take in records that are their peers' own word; the first one that is not costs the connection.

        Args:
            running: the run that came with them.
            begun: the run that the teller begins with them, and is believed.
        """
        teller = self._links.peer_of(link)
        if teller is None:
            return []
        sound: list[Member] = []
        for record in records:
            if record.peer in self._rekeying.banned and record.state not in GONE:
                continue
            if not self._verified.knows(record) and not self._patience.takes(teller, now):
                continue  # it will be told again: tables that differ are
            try:
                self._verified.check(record)
            except ProtocolError as error:
                # Honest peers pass on nothing that they have not verified, and the rest may be a thousand such ones.
                return self._contacts.refuse(link, error)
            sound.append(record)
        grant = self._course.grant(running) if begun is None else begun.start
        return self._learned(self._gossip.learn(sound, teller, now, grant=grant, trusted=begun is not None), now)

    def _learned(self, learned: Learned, now: float) -> list[Effect]:
        effects = list(learned.effects)
        for peer in learned.renewed:
            self._watch.renewed(peer)
            self._links.renewed(peer)
        if learned.of_me:
            before = learned.before
            raised = before is not None and self._table.me.incarnation > before.incarnation
            if raised and self._table.me.since is not None and self._course.left_behind():
                learned = self._gossip.begin_anew(self._clock.now)
                effects += learned.effects
            effects += self._course.told_of_me(before, self._table.me, now)
        return effects + (self._course.neighbors_done() if learned.news else [])

    # The network's key

    def _rekey(self, change: KeyChange, link: LinkId | None, now: float) -> list[Effect]:
        """The network has another key: use it, pass it on, and have no more to do with whom it bans."""
        if link is None:
            return self._carry_out(now) if self._rekeying.accept(change) else []
        if not self._links.proven(link):
            return [self._contacts.refusal(link, "message", ProtocolError("no TLS", "a key in the clear"))]
        teller = self._links.peer_of(link)
        if teller is None or self._rekeying.waits(teller, change, now):
            return []
        try:
            if not self._rekeying.accept(change):
                return []
        except ProtocolError as error:
            return self._contacts.refuse(link, error)
        self._rekeying.took(now)
        return self._carry_out(now, teller if self._rekeying.latest == change else None)

    def _rekey_late(self, now: float) -> list[Effect]:
        """Take in what others told too soon after an earlier change; of several keys one is carried out."""
        effects: list[Effect] = []
        news = False
        for teller, change in self._rekeying.due(now).items():
            try:
                news |= self._rekeying.accept(change)
            except ProtocolError as error:
                link = self._links.link_of(teller)
                effects += [] if link is None else self._contacts.refuse(link, error)
        if not news:
            return effects
        self._rekeying.took(now)
        return effects + self._carry_out(now)

    def _carry_out(self, now: float, teller: PeerId | None = None) -> list[Effect]:
        banned, latest = self._rekeying.banned, self._rekeying.latest
        if self._id in banned:
            return self._course.fail("this peer was banned from the network by one of its members")
        effects: list[Effect] = [Close(closed, "banned") for closed in self._links.links_of(banned)]
        for peer in banned:
            self._links.forget(peer)
            self._rekeying.forget(peer)
            effects += self._declare_dead(peer, now)
        if latest is None:
            return effects
        for peer in self._links.peers:
            to = self._links.link_of(peer)
            if peer not in banned and peer != teller and to is not None and self._links.proven(to):
                effects.append(Send(to, latest))
        return [*effects, Rekey(latest)]
