"""One peer, whole: connections, membership, the lobby before the first round, joining later, rounds, and the end.

    lobby ──Start──▶ running ──last round──▶ finished ──neighbors done──▶ left
      │                 ▲  │ taken for dead                                ▲
      └─a run is on──▶ joining ◀┘            (a stop leads to "left" from anywhere)
      └─another layout──▶ observer

In the lobby every peer builds a model for the settings that all those present asked for, and says so; the lowest seat
begins when enough are ready. Who comes later asks a member for a round to begin with, and takes that round's model as
a snapshot. Sans I/O: see `participant`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from p2pfl.errors import ProtocolError
from p2pfl.events import Finished, PeerGone, PeerJoined, Started, StateChanged, Warned
from p2pfl.layout import Vector
from p2pfl.protocol.agreement import agree, conflict
from p2pfl.protocol.links import Links
from p2pfl.protocol.membership import Table, display_names
from p2pfl.protocol.messages import (
    MAX_ROUND,
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
    Running,
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
    Emit,
    Event,
    Fetch,
    Fetched,
    FetchFailed,
    Found,
    LinkId,
    LinkLost,
    LinkOpened,
    Mixed,
    Prepare,
    Prepared,
    Received,
    Send,
    Stop,
    Tick,
    Trained,
)
from p2pfl.protocol.rounds import SynchronousRound
from p2pfl.types import PeerId, is_index, seat_order

ROUNDS_AHEAD = 2  # a change of view is announced for this many rounds after the latest round known
SUSPECT_S = 6.0  # a peer that cannot be reached, yet nobody answers that it is gone, is given this long
JOIN_RETRY_S = 10.0  # a newcomer without an answer asks somebody else
LINGER_S = 60.0  # a finished peer serves its last share this long at most
_SURPLUS = "second connection"
_FATAL = frozenset({"duplicate seat", "duplicate identity", "no common version"})


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
    ) -> None:
        self._id = me.peer
        self._network = network
        self._instance = instance
        self._asked = asked
        self._max_body = max_body
        self._wait_until = wait_until
        self._wait_s = wait_s
        self._table = Table(me)
        self._links = Links(me.peer, network)
        self.state = "lobby"
        self._wanted: Settings | None = None  # settings a model is being, or has been, built for
        self._prepared: Prepared | None = None
        self._ready: dict[PeerId, Ready] = {}
        self._running: Running | None = None
        self._init = ""
        self._rounds: SynchronousRound | None = None
        self._round_of: dict[PeerId, int] = {}
        self._finished: set[PeerId] = set()
        self._suspects: dict[PeerId, float] = {}
        self._retry_at: float | None = None  # joining: when to ask somebody else
        self._asked_of: Counter[PeerId] = Counter()
        self._linger_until: float | None = None
        self._same_data: set[PeerId] = set()
        self._early: dict[PeerId, Offer] = {}
        self._said: dict[LinkId, Hello] = {}  # until the other end's hello comes
        self._rumors: dict[PeerId, Member] = {}  # of the death of somebody with a connection to here
        self._alone_since: float | None = None  # joining: since when no member can be reached

    # The participant

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Take in an event and say what to do."""
        if self.state == "left":
            return []
        effects = self._handle(event, now)
        effects += self._deadlines(now)
        if self.state == "left":
            return sorted(effects, key=lambda effect: isinstance(effect, Done))  # nothing comes after the end
        return effects + list(self._links.due(now))

    def next_deadline(self) -> float | None:
        """When to hand in a `Tick`."""
        if self.state == "left":
            return None
        times = [self._links.next_dial(), self._retry_at, self._linger_until, *self._suspects.values()]
        if self._rounds is not None:
            times.append(self._rounds.next_deadline())
        if self.state == "lobby" and self._running is None:
            times.append(self._wait_until)
        return min((t for t in times if t is not None), default=None)

    def _handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Received(link, message):
                return self._received(link, message, now)
            case Trained() if self._rounds is not None:
                return self._rounds.trained(event, now)
            case Mixed() if self._rounds is not None:
                return self._after_round(self._rounds.mixed(event, now), now)
            case Fetched():
                return self._fetched(event, now)
            case FetchFailed():
                return self._fetch_failed(event, now)
            case LinkOpened(link, dialed):
                self._links.opened(link, dialed)
                self._said[link] = self._hello()
                return [Send(link, self._said[link])]
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
                return self._take_prepared(event, now)
            case Stop():
                return self._leave("stopped")
            case Tick():
                return self._lobby(now)  # the first one is the beginning
            case _:
                return []

    def _deadlines(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if self.state == "left":
            return effects
        for peer in [peer for peer, until in self._suspects.items() if until <= now]:
            effects += self._declare_dead(peer, now)
        if self._retry_at is not None and self._retry_at <= now and self.state == "joining":
            effects += self._ask_again(now)
        if self._linger_until is not None and self._linger_until <= now and self.state == "finished":
            return effects + self._leave("rounds")
        waits = self.state == "lobby" and self._running is None
        if waits and self._wait_until is not None and self._wait_until <= now:
            return effects + self._fail(self._nobody())
        if self._rounds is not None:
            effects += self._rounds.advance(now)
        return effects

    # Connections

    def _hello(self) -> Hello:
        return Hello(
            versions=VERSIONS,
            network=self._network,
            instance=self._instance,
            me=self._table.me,
            max_body=self._max_body,
            asked=self._asked,
            round=self._round,
            running=self._running,
            members=self._table.told(),
        )

    def _received(self, link: LinkId, message: Message, now: float) -> list[Effect]:
        if not self._links.known(link):
            return []
        peer = self._links.peer_of(link)
        if isinstance(message, Refused):
            return self._refused(link, message, peer)
        if peer is None:
            if not isinstance(message, Hello):
                return self._refuse(link, ProtocolError("no hello"))
            return self._greet(link, message, now)
        match message:
            case Ready():
                self._ready[peer] = message
                return self._told_of_data(peer, message.data) + self._lobby(now)
            case Start(running, init, members):
                self._init = init
                return self._learn(members, peer, now) + self._adopt(running, now)
            case Join(layout, data):
                return self._told_of_data(peer, data) + self._admit(peer, layout)
            case Update(members):
                return self._learn(members, peer, now)
            case Status(round, finished):
                self._round_of[peer] = round
                if self._rounds is not None:
                    self._rounds.heard(peer, round)
                if finished:
                    self._finished.add(peer)
                return self._neighbors_done()
            case Offer(kind="share"):
                self._round_of[peer] = max(self._round_of.get(peer, 0), message.round)
                if self._rounds is not None and self.state != "joining":
                    return self._rounds.offered(peer, message, now)
                self._early[peer] = message  # word of the beginning may come later than a neighbor's first share
                return []
            case Offer(kind="snapshot"):
                return self._snapshot_offered(peer, message)
            case SnapshotWanted(round):
                return self._rounds.snapshot_wanted(peer, round) if self._rounds is not None else []
            case Goodbye(me) if me.peer == peer:
                self._finished.add(peer)
                self._links.forget(peer)
                return [*self._learn((me,), peer, now), Close(link, "goodbye")]
            case Declined() if self._rounds is not None:
                self._rounds.declined(peer, message)
                return []
            case _:  # an unknown extension is ignored
                return []

    def _greet(self, link: LinkId, hello: Hello, now: float) -> list[Effect]:
        try:
            self._links.check(hello)
        except ProtocolError as error:
            return self._refuse(link, error)
        clash = self._clash(hello)
        if clash is not None:
            reason, detail, mine = clash
            if reason == "self":
                self._links.forget(self._links.key_of(link) or "")
                return [Close(link, reason)]
            refusal = self._refuse(link, ProtocolError(reason, detail))
            return [Close(link, reason), *self._fail(detail)] if mine else refusal
        peer, said = hello.me.peer, self._said.pop(link)
        surplus = self._links.greeted(link, hello)
        effects: list[Effect] = [] if surplus is None else [self._leave_link(surplus)]
        if surplus == link:
            return effects
        self._suspects.pop(peer, None)
        self._finished.discard(peer)
        self._round_of[peer] = hello.round
        if surplus is None:
            joined = PeerJoined(peer=self._id, other=peer, name=hello.me.name, seat=hello.me.seat)
            effects.append(Emit(joined))
        effects += self._learn((hello.me, *hello.members), peer, now)
        if self._running is not None and hello.running is None and said.running is None:
            effects.append(Send(link, Start(self._running, self._init, self._table.told())))
        elif said.members != self._table.told():
            effects.append(Send(link, Update(self._table.told())))
        if self._prepared is not None and self.state == "lobby":
            effects.append(Send(link, self._ready_message(self._prepared)))
        if self._rounds is not None:
            effects.append(Send(link, Status(self._round, self._rounds.finished)))
            effects += self._rounds.relinked(peer)
        if hello.running is not None:
            return effects + self._adopt(hello.running, now)
        if self._running is not None and self.state != "lobby":
            return effects  # it learns of the run from this peer
        return effects + self._lobby(now)

    def _clash(self, hello: Hello) -> tuple[str, str, bool] | None:
        """Whether the other end claims who or what is taken: reason, text, and whether it is this peer that yields."""
        peer, seat = hello.me.peer, hello.me.seat
        me = self._table.me
        if peer == self._id:
            if hello.instance == self._instance:
                return "self", "", False
            mine = (me.state != "member", self._instance) > (hello.me.state != "member", hello.instance)
            return "duplicate identity", "another process resumed the same run folder: stop one of the two", mine
        known = self._links.hello_of(peer)
        if known is not None and self._links.reachable(peer) and known.instance != hello.instance:
            return "duplicate identity", "another process resumed the same run folder: stop one of the two", False
        if not is_index(seat):
            return None
        text = f"part {int(seat) + 1} is taken by {{}} already; choose another --part"
        if seat_order(seat) == seat_order(me.seat):
            mine = _standing(me) > _standing(hello.me)
            return "duplicate seat", text.format(hello.me.name if mine else me.name), mine
        holder = self._holder(hello.me)
        return None if holder is None else ("duplicate seat", text.format(holder), False)

    def _holder(self, newcomer: Member) -> str | None:
        """Who has the newcomer's seat and need not yield it; one who must is told by the newcomer itself."""
        for member in self._table:
            if (
                member.peer != newcomer.peer
                and seat_order(member.seat) == seat_order(newcomer.seat)
                and member.state not in ("dead", "left")
                and self._links.reachable(member.peer)
                and _standing(member) < _standing(newcomer)
            ):
                return str(member.name)
        return None

    def _refuse(self, link: LinkId, error: ProtocolError) -> list[Effect]:
        detail = str(error).removeprefix(error.reason).removeprefix(": ")
        return [Send(link, Refused(error.reason, detail[:500])), Close(link, error.reason)]

    def _leave_link(self, link: LinkId) -> Effect:
        """Send no more on a surplus connection; see `links`."""
        if self._links.is_left_by_other(link):
            return Close(link, _SURPLUS)
        return Send(link, Refused(_SURPLUS))

    def _refused(self, link: LinkId, refusal: Refused, peer: PeerId | None) -> list[Effect]:
        if refusal.reason == _SURPLUS and peer is not None:
            return [Close(link, _SURPLUS)] if self._links.left_by_other(link) else []
        if refusal.reason in _FATAL and self.state in ("lobby", "joining"):
            return self._fail(refusal.detail or refusal.reason)
        return [Close(link, "refused")]

    def _link_lost(self, link: LinkId, now: float) -> list[Effect]:
        self._said.pop(link, None)
        peer = self._links.lost(link, now)
        if peer is None:
            return []
        self._ready.pop(peer, None)
        rumor = self._rumors.pop(peer, None)
        effects = self._learn((rumor,), peer, now) if rumor is not None else []
        member = self._table.get(peer)
        if member is not None and member.state not in ("dead", "left"):
            self._suspects[peer] = now + SUSPECT_S
            self._links.propose(peer, member.addresses, now)
            self._links.retry(peer, now)
        return effects + self._lobby(now) + self._neighbors_done()

    def _declare_dead(self, peer: PeerId, now: float) -> list[Effect]:
        self._suspects.pop(peer, None)
        member = self._table.get(peer)
        if member is None or member.state in ("dead", "left") or self._links.reachable(peer):
            return []
        until = None if member.since is None else max(member.since, self._change_round())
        dead = self._table.change(peer, state="dead", until=until)
        gone = PeerGone(peer=self._id, other=peer, name=self._name(peer), reason="dead")
        return [Emit(gone), *self._broadcast(Update((dead,))), *self._lobby(now), *self._neighbors_done()]

    # Members

    def _learn(self, records: tuple[Member, ...], teller: PeerId, now: float) -> list[Effect]:
        """Take in records and pass on what is news."""
        doubtful = [r for r in records if r.state == "dead" and r.peer != self._id and self._links.reachable(r.peer)]
        self._rumors.update((record.peer, record) for record in doubtful)  # until the connection breaks
        records = tuple(record for record in records if record not in doubtful)
        before = {record.peer: self._table.get(record.peer) for record in records}
        goes_on = any(r.peer == self._id for r in records) and self._other_side_is_smaller(teller)
        news = self._table.merge(records)
        old = before.get(self._id)
        if goes_on and old is not None and self._table.me.since is None and self.state == "running":
            self._table.change(self._id, state=old.state, since=old.since)
        effects: list[Effect] = []
        for member in news:
            old = before[member.peer]
            if member.peer == self._id:
                continue  # below, after the others are told
            if member.state in ("dead", "left"):
                self._suspects.pop(member.peer, None)
                if old is not None and old.state not in ("dead", "left"):
                    gone = PeerGone(peer=self._id, other=member.peer, name=self._name(member.peer), reason=member.state)
                    effects.append(Emit(gone))
            elif member.addresses:
                self._links.propose(member.peer, member.addresses, now)
        if news:
            fresh = Update(tuple(self._table.get(m.peer) or m for m in news))
            effects += [e for e in self._broadcast(fresh) if e.link != self._links.link_of(teller)]
            if any(m.peer == self._id for m in news):
                effects += self._send(teller, Update((self._table.me,)))
                effects += self._told_of_me(old, self._table.me, now)
        return effects + (self._neighbors_done() if news else [])

    def _other_side_is_smaller(self, teller: PeerId) -> bool:
        """Whether a teller that had lost this peer, and was lost to it, is of the smaller part of the network."""
        hello, record = self._links.hello_of(teller), self._table.get(teller)
        if hello is None or (record is not None and record.state == "member"):
            return False

        def weight(members: Iterable[Member]) -> tuple[int, tuple[int, int, str]]:
            taking_part = [member for member in members if member.state == "member"]
            seats = [seat_order(member.seat) for member in taking_part]
            lowest = min(seats, default=(2, 0, ""))
            return -len(taking_part), lowest

        return weight(self._table) < weight({m.peer: m for m in (*hello.members, hello.me)}.values())

    def _told_of_me(self, old: Member | None, new: Member, now: float) -> list[Effect]:
        """Somebody else's word on this peer: a round to begin with, or a rumor of its death."""
        if self.state == "joining" and new.since is not None and (old is None or new.since != old.since):
            return self._ask_for_snapshot(now)
        if self.state == "joining" and new.since is None:
            return self._join(now)
        if self.state == "observer" and new.state != "observer":
            return list(self._broadcast(Update((self._table.change(self._id, state="observer"),))))
        if self.state == "running" and (new.since is None or new.since > self._round):
            return self._enter(now)  # the others go on without this peer: come back as a newcomer
        return []

    def _admit(self, peer: PeerId, layout: str) -> list[Effect]:
        """A newcomer asks for a round; the record that answers goes to all."""
        prepared, member = self._prepared, self._table.get(peer)
        if self._rounds is None or prepared is None or member is None or self.state == "joining":
            return []
        if layout != prepared.layout:
            return self._send(peer, Refused("schema mismatch"))
        if member.state in ("dead", "left"):
            return self._send(peer, Update((member,)))  # only the peer itself can contradict that, and asks again
        since = self._change_round()
        if prepared.rules.rounds:
            since = min(since, prepared.rules.rounds)
        if member.since is None or member.since < since or member.state != "member":
            member = self._table.change(peer, state="member", since=since, until=None)
        return list(self._broadcast(Update((member,))))

    def _change_round(self) -> int:
        """The first round for which a change of view announced now can hold everywhere."""
        known = [self._round_of.get(m.peer, 0) for m in self._in_the_run() if self._links.reachable(m.peer)]
        if self.state != "joining" or not known:
            known.append(self._round)
        return min(max(known) + ROUNDS_AHEAD, MAX_ROUND)

    # The lobby

    def _lobby(self, now: float) -> list[Effect]:
        """Settle on settings with those present, and begin if this is the lowest seat and enough are ready."""
        if self.state != "lobby" or self._running is not None:
            return []
        present = self._present()
        asked = [(m.name, self._asked if m.peer == self._id else self._hello_asked(m.peer)) for m in present]
        settings = agree(asked)
        clash = conflict(self._asked, settings, asked)
        if clash is not None:
            return self._fail(str(clash))
        if settings != self._wanted:
            self._wanted = settings
            return [Prepare(settings)]
        prepared = self._prepared
        if prepared is None or prepared.settings != settings or present[0].peer != self._id:
            return []
        mine = self._ready_message(prepared)
        ready = {
            peer: told
            for peer, told in self._ready.items()
            if self._links.reachable(peer) and (told.fingerprint, told.layout) == (mine.fingerprint, mine.layout)
        }
        if 1 + len(ready) < prepared.rules.min_peers:
            return []
        begin = max([prepared.round, *(told.round for told in ready.values())])
        members = tuple(
            self._table.change(m.peer, state="member", since=begin)
            for m in present
            if m.peer == self._id or m.peer in ready
        )
        self._running = Running(settings, prepared.fingerprint, prepared.layout, prepared.tensors, begin)
        self._init = prepared.init
        return [*self._broadcast(Start(self._running, self._init, members)), *self._enter(now)]

    def _present(self) -> list[Member]:
        """Who waits in the lobby with this peer, by seat."""
        return self._table.select(
            lambda m: m.peer == self._id or (m.state == "lobby" and self._links.reachable(m.peer))
        )

    def _hello_asked(self, peer: PeerId) -> Settings:
        hello = self._links.hello_of(peer)
        return hello.asked if hello else {}

    def _ready_message(self, prepared: Prepared) -> Ready:
        return Ready(prepared.fingerprint, prepared.layout, prepared.tensors, prepared.data, prepared.round)

    def _take_prepared(self, prepared: Prepared, now: float) -> list[Effect]:
        if prepared.settings != self._wanted:
            return []  # the settings changed while it was being built
        self._prepared = prepared
        if self._running is not None:
            return self._enter(now)
        return [*self._broadcast(self._ready_message(prepared)), *self._lobby(now)]

    def _told_of_data(self, peer: PeerId, data: str) -> list[Effect]:
        if self._prepared is None or data != self._prepared.data or peer in self._same_data:
            return []
        self._same_data.add(peer)
        text = f"{self._name(peer)} trains on the same data as this peer; give each its own with --part I/N or --data"
        return [Emit(Warned(peer=self._id, text=text))]

    # Taking part

    def _adopt(self, running: Running, now: float) -> list[Effect]:
        """A run is on, or begins: its recipe stands."""
        if self.state != "lobby" or (self._running is not None and self._prepared is None):
            return []
        clash = conflict(self._asked, running.settings, [])
        if clash is not None:
            return self._fail(str(clash).replace("the network asked for", f"network {self._network!r} runs with"))
        self._running = running
        if self._prepared is not None and self._prepared.fingerprint == running.fingerprint:
            return self._enter(now)
        self._wanted, self._prepared = running.settings, None
        return [Prepare(running.settings)]

    def _enter(self, now: float) -> list[Effect]:
        """Model and recipe are there: begin, ask to join, or only watch."""
        prepared, running = self._prepared, self._running
        if prepared is None or running is None:
            return []
        if prepared.layout != running.layout:
            return self._observe(prepared, running)
        model, round = self.model, self._round  # so far, until a snapshot comes
        dropped = self._rounds.drop() if self._rounds is not None else []
        self._rounds = SynchronousRound(
            self._id,
            self._instance,
            prepared,
            self._table.view,
            self._send,
            self._may_answer,
            lambda peer: self._send(peer, Update(self._table.told())),
        )
        if model is not None:
            self._rounds.model, self._rounds.round = model, round
        me = self._table.me
        own_start = self.state == "lobby" and me.since == running.start and prepared.round == running.start
        if own_start and prepared.vector is not None and (running.start > 0 or prepared.init == self._init):
            return self._begin(running.start, prepared.vector, now)
        self.state = "joining"
        state: list[Effect] = [Emit(StateChanged(peer=self._id, state="joining", round=running.start))]
        return dropped + state + (self._join(now) if me.since is None else self._ask_for_snapshot(now))

    def _begin(self, round: int, vector: Vector, now: float) -> list[Effect]:
        assert self._rounds is not None  # _enter made it
        assert self._running is not None
        self.state, self._retry_at = "running", None
        names = self._table.view(round).names
        started = Started(peer=self._id, settings=self._running.settings, round=round, members=names)
        if self._prepared is not None:
            self._prepared = replace(self._prepared, vector=None)
        effects = self._rounds.begin(round, vector, now)
        for peer, offer in self._early.items():
            effects += self._rounds.offered(peer, offer, now)
        self._early.clear()
        return [Emit(started), *self._after_round(effects, now)]

    def _observe(self, prepared: Prepared, running: Running) -> list[Effect]:
        self.state = "observer"
        me = self._table.change(self._id, state="observer")
        mine, theirs = prepared.tensors, running.tensors
        pairs = [(a, b) for a, b in zip(mine, theirs, strict=False) if a != b]
        what = f"this peer's {pairs[0][0]}, the network's {pairs[0][1]}" if pairs else "the number of tensors"
        text = f"this peer's model differs from the network's ({what}): it stays visible and is not averaged"
        state = StateChanged(peer=self._id, state="observer", round=running.start)
        return [Emit(Warned(peer=self._id, text=text)), Emit(state), *self._broadcast(Update((me,)))]

    def _join(self, now: float) -> list[Effect]:
        """Ask a member, another one each time, for a round to begin with."""
        assert self._prepared is not None
        peer = self._next_of(m.peer for m in self._in_the_run())
        self._retry_at = now + (JOIN_RETRY_S if peer else 1.0)
        return self._send(peer, Join(self._prepared.layout, self._prepared.data)) if peer else []

    def _ask_for_snapshot(self, now: float) -> list[Effect]:
        since = self._table.me.since
        assert since is not None
        if self._rounds is not None:
            self._rounds.round = since  # offers of earlier rounds are not for this peer
        peer = self._next_of(m.peer for m in self._in_the_run())
        self._retry_at = now + (JOIN_RETRY_S if peer else 1.0)
        return self._send(peer, SnapshotWanted(since)) if peer else []

    def _ask_again(self, now: float) -> list[Effect]:
        """No answer yet: ask somebody else, or give up where nobody is left who could answer."""
        since = self._table.me.since
        members = [m.peer for m in self._in_the_run() if self._links.reachable(m.peer)]
        self._alone_since = None if members else now if self._alone_since is None else self._alone_since
        if self._alone_since is not None and now >= self._alone_since + LINGER_S:
            return self._fail(f"the run has ended without this peer: for {LINGER_S:g} s no member could be reached")
        if since is None or any(self._round_of.get(peer, 0) > since for peer in members):
            return self._join(now)
        return self._ask_for_snapshot(now)

    def _in_the_run(self) -> list[Member]:
        """Members that began before this peer may, or with it at the start: who came with it waits like it."""
        me, start = self._table.me, self._running.start if self._running else 0
        return self._table.select(
            lambda m: (
                m.peer != me.peer
                and m.state == "member"
                and m.since is not None
                and (me.since is None or m.since < me.since or m.since == start)
            )
        )

    def _next_of(self, peers: Iterable[PeerId]) -> PeerId | None:
        """Somebody reachable, who was asked the fewest times."""
        reachable = [peer for peer in peers if self._links.reachable(peer)]
        if not reachable:
            return None
        peer = min(reachable, key=lambda peer: self._asked_of[peer])
        self._asked_of[peer] += 1
        return peer

    def _snapshot_offered(self, peer: PeerId, offer: Offer) -> list[Effect]:
        prepared, member = self._prepared, self._table.get(peer)
        if self.state != "joining" or prepared is None or member is None or self._retry_at is None:
            return []
        if not self._timely(offer):
            return []
        expected = (prepared.layout, prepared.fingerprint, prepared.bytes)
        if (offer.layout, offer.recipe, offer.bytes) != expected:
            return []
        self._retry_at = None  # the fetch has deadlines of its own
        return [Fetch(peer, member.addresses, offer)]

    def _fetched(self, event: Fetched, now: float) -> list[Effect]:
        if event.offer.kind == "share":
            return self._rounds.fetched(event, now) if self._rounds is not None else []
        if self.state != "joining" or not self._timely(event.offer):
            return []
        if not event.finite:
            return self._join(now)
        return self._begin(event.offer.round, event.vector, now)

    def _timely(self, snapshot: Offer) -> bool:
        """Whether a snapshot is of no earlier round than the one granted; what was granted before is not any more."""
        since = self._table.me.since
        return since is not None and snapshot.round >= since

    def _fetch_failed(self, event: FetchFailed, now: float) -> list[Effect]:
        if event.offer.kind == "snapshot":
            return self._join(now) if self.state == "joining" else []
        return self._rounds.fetch_failed(event, now) if self._rounds is not None else []

    # Rounds and the end

    def _after_round(self, effects: list[Effect], now: float) -> list[Effect]:
        """Tell the others where this peer is, and notice the end."""
        rounds = self._rounds
        if rounds is None or self.state != "running":
            return effects
        told = self._broadcast(Status(rounds.round, rounds.finished))
        if not rounds.finished:
            return [*effects, *told]
        self.state, self._linger_until = "finished", now + LINGER_S
        finished = Emit(StateChanged(peer=self._id, state="finished", round=rounds.round))
        return [*effects, *told, finished, *self._neighbors_done()]

    def _neighbors_done(self) -> list[Effect]:
        """Leave once nobody can need the last share any more."""
        if self.state not in ("finished", "observer"):
            return []
        members = self._table.select(
            lambda m: m.peer != self._id and m.state in ("member", "lobby") and self._links.reachable(m.peer)
        )
        if all(m.peer in self._finished for m in members):
            return self._leave("rounds")
        return []

    def _leave(self, reason: str) -> list[Effect]:
        me = self._table.me
        until = None if me.since is None else max(me.since, self._change_round())
        me = self._table.change(self._id, state="left", until=until)
        self.state, self._links.open = "left", False
        effects: list[Effect] = [*self._broadcast(Goodbye(me))]
        effects += [Close(link, "goodbye") for link in self._links.all]
        effects.append(Emit(StateChanged(peer=self._id, state="left", round=self._round)))
        effects.append(Emit(Finished(peer=self._id, round=self._round, reason=reason)))
        return [*effects, Done(self._round)]

    def _fail(self, error: str) -> list[Effect]:
        effects = self._leave("stopped")
        return [*effects[:-1], Done(self._round, error)]

    def _nobody(self) -> str:
        found = len(self._links.peers)
        seen = "no peer was found" if not found else f"only {found} of the peers needed were found"
        return f"{seen} within {self._wait_s:g} s; start p2pfl on another machine, or give --peer HOST:PORT"

    # Small pieces

    @property
    def round(self) -> int:
        """The round under way, or the next."""
        return self._round

    @property
    def model(self) -> Vector | None:
        """The model with which that round begins."""
        if self._rounds is not None:
            return self._rounds.model
        return self._prepared.vector if self._prepared else None

    @property
    def settings(self) -> Settings:
        """The settings that were chosen by somebody in the network."""
        return self._running.settings if self._running is not None else (self._wanted or {})

    @property
    def members(self) -> tuple[Member, ...]:
        """All that is known of the network's peers."""
        return tuple(self._table)

    @property
    def _round(self) -> int:
        return self._rounds.round if self._rounds is not None else (self._prepared.round if self._prepared else 0)

    def _name(self, peer: PeerId) -> str:
        return display_names(self._table).get(peer, peer[:8])

    def _send(self, peer: PeerId, message: Message) -> list[Effect]:
        link = self._links.link_of(peer)
        return [] if link is None else [Send(link, message)]

    def _may_answer(self, peer: PeerId) -> bool:
        """Whether a member is worth waiting for: still, or already, of the round, and connected or never lost."""
        member = self._table.get(peer)
        if member is None or member.state != "member" or member.since is None or member.since > self._round:
            return False
        return self._links.reachable(peer) or peer not in self._suspects

    def _broadcast(self, message: Message) -> list[Send]:
        return [Send(link, message) for peer in self._links.peers if (link := self._links.link_of(peer)) is not None]


def _standing(member: Member) -> tuple[bool, PeerId]:
    """Of two peers with one seat the lower one keeps it: who takes part already, then the lower id."""
    return member.state != "member", member.peer
