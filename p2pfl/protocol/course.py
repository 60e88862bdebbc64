"""The course of one peer, from the lobby to the end.

    lobby ──Start──▶ running ──last round──▶ finished ──neighbors done──▶ left
      │                 ▲  │ taken for dead                                ▲
      └─a run is on──▶ joining ◀┘            (a stop leads to "left" from anywhere)
      └─another layout──▶ observer

In the lobby every peer builds a model for the settings that all those present asked for, and says so; the lowest seat
begins when enough are ready. Who comes later asks a member for a round to begin with, and takes that round's model as
a snapshot. Every change of state is here; connections and records come and go in `core`.
"""

from statistics import median_low

from p2pfl.events import Finished, Started, StateChanged, Warned
from p2pfl.layout import Vector
from p2pfl.protocol.contacts import Contacts
from p2pfl.protocol.early import EarlyOffers
from p2pfl.protocol.gossip import Gossip
from p2pfl.protocol.joining import RETRY_S, RETRY_SOON_S, Joining, fits, granted, in_the_run, timely
from p2pfl.protocol.lobby import Beginning, Lobby, difference, ready_message
from p2pfl.protocol.membership import Table
from p2pfl.protocol.messages import (
    Join,
    Member,
    Offer,
    Refused,
    Running,
    Settings,
    SnapshotWanted,
    Start,
    Status,
    Update,
)
from p2pfl.protocol.neighborhood import without_form
from p2pfl.protocol.participant import Done, Effect, Emit, Fetch, Fetched, Prepare, Prepared
from p2pfl.protocol.progress import Progress, change_round, latest_change
from p2pfl.protocol.rounds import SynchronousRound
from p2pfl.protocol.served import AHEAD
from p2pfl.protocol.together import Together
from p2pfl.types import PeerId

_CATCHES_UP = 2 * AHEAD  # rounds; who is further behind takes the others' model
_BETWEEN_WORDS_S = 600.0  # to the person, that this peer still waits for the others to come as far
LINGER_S = 60.0  # a finished peer serves its last shares this long, or longer where rounds take long


class Course:
    """The states of one peer. Each method says what to do; what does not fit the state is passed over."""

    def __init__(
        self,
        instance: str,
        table: Table,
        contacts: Contacts,
        gossip: Gossip,
        progress: Progress,
        lobby: Lobby,
        together: Together,
    ) -> None:
        self._id = table.me.peer
        self._instance = instance
        self._table = table
        self._contacts = contacts
        self._gossip = gossip
        self._progress = progress
        self._lobby = lobby
        self._together = together
        self._joining = Joining(contacts.send)
        self._early = EarlyOffers()
        self._linger_until: float | None = None
        self._told_of_wait_at: float | None = None
        self._came_back = False  # to a run that it has a model of its own for
        self.rounds: SynchronousRound | None = None  # from the time on that the recipe stands
        self.state = "lobby"

    @property
    def round(self) -> int:
        """The round under way, or the next."""
        if self.rounds is not None:
            return self.rounds.round
        return self._lobby.prepared.round if self._lobby.prepared else 0

    @property
    def model(self) -> Vector | None:
        """The model with which that round begins."""
        if self.rounds is not None:
            return self.rounds.model
        return self._lobby.prepared.vector if self._lobby.prepared else None

    @property
    def settings(self) -> Settings:
        """The settings that were chosen by somebody in the network."""
        return self._lobby.running.settings if self._lobby.running is not None else (self._lobby.wanted or {})

    def next_deadline(self) -> float | None:
        """When to look at `deadlines` again."""
        times = [self._joining.retry_at, self._linger_until]
        if self.rounds is not None:
            times.append(self.rounds.next_deadline())
        if self.state == "lobby":
            times += [self._lobby.wait_until, self._together.hold_until]
        return min((t for t in times if t is not None), default=None)

    def deadlines(self, now: float) -> list[Effect]:
        """Act on waits that are over."""
        effects: list[Effect] = []
        if self.state == "joining" and self._joining.retry_at is not None and self._joining.retry_at <= now:
            effects += self._ask_again(now)
        if self.state == "finished" and self._linger_until is not None and self._linger_until <= now:
            return effects + self.leave("rounds")
        if self.state == "lobby" and self._lobby.wait_until is not None and self._lobby.wait_until <= now:
            return effects + self.fail(self._lobby.nobody(self._contacts.count, self._contacts.told_off))
        effects += self.begin(now)
        return effects + (self.rounds.advance(now) if self.rounds is not None else [])

    # The lobby

    def settle(self, now: float) -> list[Effect]:
        """Those present may have changed, or what they say: build anew, or begin."""
        if self.state != "lobby" or self._lobby.running is not None:
            return []
        present = self._table.select(
            lambda m: m.peer == self._id or (m.state == "lobby" and self._contacts.reachable(m.peer))
        )
        asked = [(m, self._contacts.asked_by(m.peer)) for m in present]
        decision = self._lobby.settle(asked, self._contacts.reachable)
        match decision:
            case str():
                return self.fail(decision)
            case Prepare():
                return [decision]
            case Beginning(running, beginners):
                assert self._lobby.prepared is not None  # the lobby begins with it
                text = without_form(self._lobby.prepared.rules, len(beginners), running.start)
                if text:
                    return self.fail(text)
                members = tuple(
                    self._table.change(m.peer, state="member", since=running.start)
                    for m in present
                    if m.peer in beginners
                )
                start = Start(running, self._lobby.init, members)
                return [*self._contacts.broadcast(start), *self._enter(now)]
            case None:
                text = self._lobby.differing(len(present))
                return [Emit(Warned(peer=self._id, text=text))] if text else []

    def built(self, prepared: Prepared, now: float) -> list[Effect]:
        """The model is there."""
        if not self._lobby.built(prepared):
            return []
        if self._lobby.running is None:
            text = without_form(prepared.rules, prepared.rules.min_peers, prepared.round)
            if text and prepared.settings == self._contacts.asked_by(self._id):
                return self.fail(text)
            if text:  # others had a say in it, and may yet go: this peer only does not begin so
                self._lobby.set_aside()
                return [Emit(Warned(peer=self._id, text=text))]
        effects = [effect for peer, data in self._lobby.data_of.items() for effect in self.told_of_data(peer, data)]
        if self._lobby.running is not None:
            return effects + self._enter(now)
        return [*effects, *self._contacts.broadcast(ready_message(prepared)), *self.settle(now)]

    def told_of_data(self, peer: PeerId, data: str) -> list[Effect]:
        """Word of what another peer trains on."""
        if not self._lobby.found_same_data(peer, data):
            return []
        text = "trains on the same data as this peer; give each its own with --part I/N or --data"
        return [Emit(Warned(peer=self._id, text=f"{self._gossip.name(peer)} {text}"))]

    def adopt(self, running: Running, now: float) -> list[Effect]:
        """A run is on, or begins: its recipe stands."""
        if self.state != "lobby" or (self._lobby.running is not None and self._lobby.prepared is None):
            return []
        answer = self._lobby.adopt(running)
        match answer:
            case str():
                return self.fail(answer)
            case Prepare():
                return [answer]
            case None:
                return self._enter(now)

    def begin(self, now: float) -> list[Effect]:
        """Those this peer begins with have come, or it has waited for them long enough."""
        held = self.state == "lobby" and self._together.hold_until is not None
        return self._enter(now) if held and not self._together.waits(now) else []

    def _enter(self, now: float) -> list[Effect]:
        """Model and recipe are there: begin, ask to join, or only watch."""
        prepared, running = self._lobby.prepared, self._lobby.running
        if prepared is None or running is None or (self.state == "lobby" and self._together.waits(now)):
            return []
        self._together.over()
        if prepared.layout != running.layout:
            return self._observe(prepared, running)
        model, round = self.model, self.round  # so far, until a snapshot comes
        dropped = self.rounds.drop() if self.rounds is not None else []
        self.rounds = SynchronousRound(
            self._id,
            self._instance,
            prepared,
            self._table.view,
            self._contacts.send,
            lambda peer: self._gossip.may_answer(peer, self.round),
            self._tell_all,
            self._table.may_take_part,
        )
        for peer, told in self._progress.told_so_far:
            self.rounds.heard(peer, told)
        if model is not None:
            self.rounds.model, self.rounds.round = model, round
        me = self._table.me
        own_start = self.state == "lobby" and me.since == running.start and prepared.round == running.start
        same_init = running.start > 0 or prepared.init == self._lobby.init
        if own_start and same_init and prepared.vector is not None:
            return self._begin(running.start, prepared.vector, now)
        if prepared.rules.rounds and self.rounds.round >= prepared.rules.rounds:
            last = f"the run ends with round {prepared.rules.rounds}"
            text = f"{last}, and this peer's model has been as far: it stays as it is"
            return [*dropped, Emit(Warned(peer=self._id, text=text)), *self.leave("rounds")]
        self.state = "joining"
        state: list[Effect] = [Emit(StateChanged(peer=self._id, state="joining", round=running.start))]
        return dropped + state + (self._join(now) if me.since is None else self._ask_for_snapshot(now))

    def _tell_all(self, peer: PeerId) -> list[Effect]:
        return [effect for part in self._table.chunks() for effect in self._contacts.send(peer, Update(part))]

    def _observe(self, prepared: Prepared, running: Running) -> list[Effect]:
        self.state = "observer"
        me = self._table.change(self._id, state="observer")
        what = difference(prepared.tensors, running.tensors)
        text = f"this peer's model differs from the network's ({what}): it stays visible and is not averaged"
        state = StateChanged(peer=self._id, state="observer", round=running.start)
        return [Emit(Warned(peer=self._id, text=text)), Emit(state), *self._contacts.broadcast(Update((me,)))]

    def told_of_me(self, old: Member | None, new: Member, now: float) -> list[Effect]:
        """Somebody else's word on this peer: a round to begin with, or a rumor of its death."""
        if self.state == "joining" and new.since is not None and (old is None or new.since != old.since):
            return self._ask_for_snapshot(now) if (begun := self.others_went_on(now)) == [] else begun
        if self.state == "joining" and new.since is None:
            return self._join(now)
        if self.state == "observer" and new.state != "observer":
            return self._contacts.broadcast(Update((self._table.change(self._id, state="observer"),)))
        if self.state == "running" and (new.since is None or new.since > self.round):
            self._came_back = True
            return self._enter(now)  # the others go on without this peer: come back as a newcomer
        return []

    # Joining

    def _join(self, now: float) -> list[Effect]:
        assert self._lobby.prepared is not None  # _enter came before
        reached = self.rounds.round if self.rounds is not None else 0  # of the run: nobody goes back in it
        question = Join(self._lobby.prepared.layout, self._lobby.prepared.data, reached)
        return self._joining.ask(question, self._can_answer(now), now)

    def _ask_for_snapshot(self, now: float) -> list[Effect]:
        since = self._table.me.since
        assert since is not None
        if self.rounds is not None:
            self.rounds.round = since  # offers of earlier rounds are not for this peer
        # At the start, others may wait like this peer, and some have the model at once: whom to ask is not known.
        running = self._lobby.running
        retry_s = RETRY_SOON_S if running is not None and since == running.start else RETRY_S
        asked = self._joining.ask(SnapshotWanted(since), self._can_answer(now), now, retry_s)
        return [*self._tell_of_wait(since, now), *asked]

    def _tell_of_wait(self, since: int, now: float) -> list[Effect]:
        """Word to the person, now and then, that the others have far to go before this peer can take part."""
        known = [self._progress.round_of(peer) for peer in self._could_answer()]
        others = median_low(known) if known else since
        told_of = self._told_of_wait_at is not None and now < self._told_of_wait_at + _BETWEEN_WORDS_S
        if told_of or since - others <= _CATCHES_UP:
            return []
        self._told_of_wait_at = now
        text = f"this peer has been as far as round {since} and waits until the others are; they are at {others}"
        return [Emit(Warned(peer=self._id, text=text))]

    def _ask_again(self, now: float) -> list[Effect]:
        since, members = self._table.me.since, self._could_answer()
        lost = self._joining.given_up(members, now)
        if lost:
            return self.fail(lost)
        if since is None or any(self._progress.round_of(peer) > since for peer in members):
            return self._join(now)
        return self._ask_for_snapshot(now)

    def _can_answer(self, now: float) -> list[PeerId]:
        return [peer for peer in self._could_answer() if not self._gossip.gives_way(peer, now)]

    def _could_answer(self) -> list[PeerId]:
        start = self._lobby.running.start if self._lobby.running else 0
        members = in_the_run(self._table, self._table.me, start)
        return [member.peer for member in members if self._contacts.reachable(member.peer)]

    def snapshot_offered(self, peer: PeerId, offer: Offer) -> list[Effect]:
        """A member has the model to begin with."""
        prepared, member = self._lobby.prepared, self._table.get(peer)
        waits = self.state == "joining" and self._joining.retry_at is not None
        if not waits or prepared is None or member is None:
            return []
        if not timely(offer, self._table.me.since) or not fits(offer, prepared):
            return []
        self._joining.answered()  # the fetch has deadlines of its own
        return [Fetch(peer, member.addresses, offer)]

    def snapshot_fetched(self, event: Fetched, now: float) -> list[Effect]:
        """The model to begin with is here, unless another is wanted by now."""
        if self.state != "joining" or not timely(event.offer, self._table.me.since):
            return []
        return self._begin(event.offer.round, event.vector, now) if event.finite else self._join(now)

    def snapshot_failed(self, now: float) -> list[Effect]:
        """The model to begin with did not come: ask for a round anew."""
        return self._join(now) if self.state == "joining" else []

    def admit(self, peer: PeerId, layout: str, reached: int) -> list[Effect]:
        """A newcomer asks for a round, none before the one it has reached; what is news goes to all."""
        prepared, member = self._lobby.prepared, self._table.get(peer)
        if self.rounds is None or prepared is None or member is None or self.state == "joining":
            return []
        if layout != prepared.layout:
            return self._contacts.send(peer, Refused("schema mismatch"))
        if member.state in ("dead", "left"):
            # Only the peer itself can contradict that, and asks again.
            return self._contacts.send(peer, Update((member,)))
        since = granted(member, max(self.change_round(), reached), prepared.rules.rounds)
        if since is None:  # the others know
            return self._contacts.send(peer, Update((member,)))
        return self._contacts.broadcast(Update((self._table.change(peer, state="member", since=since, until=None),)))

    def others_went_on(self, now: float) -> list[Effect]:
        """A peer told its round: who comes back with its own model begins once the others are as far."""
        since, rounds, prepared = self._table.me.since, self.rounds, self._lobby.prepared
        if self.state != "joining" or not self._came_back or since is None or rounds is None or prepared is None:
            return []
        near = any(self._progress.round_of(peer) + 1 >= since for peer in self._could_answer())
        if prepared.rules.healing != "average" or rounds.model is None or not near:
            return []
        return self._begin(since, rounds.model, now)

    def left_behind(self) -> bool:
        """Whether most others are so far ahead that catching up is better than going on."""
        known = [self._progress.round_of(peer) for peer in self._could_answer()]
        return self.state == "running" and bool(known) and median_low(known) > self.round + _CATCHES_UP

    def change_round(self) -> int:
        """The first round that a change announced now can hold for."""
        known = [self._progress.round_of(peer) for peer in self._could_answer()]
        return change_round(known, self.round, joining=self.state == "joining")

    def latest_change(self) -> int:
        """The last round for which others can have announced a change of view by now, as far as they are believed."""
        known = [self._progress.round_of(peer) for peer in self._could_answer()]
        if self.state in ("lobby", "joining"):  # how far a run is that goes on without this peer is for others to say
            base = max((self._progress.round_of(m.peer) for m in self._contacts.connected()), default=0)
        else:
            base = median_low(known) if known else 0
        return latest_change(max(base, self.round), len(in_the_run(self._table, self._table.me, 0)))

    def grant(self, told: Running | None = None) -> int | None:
        """The last round that this peer takes for one to begin with, as most members are heard; None if it asks not.

        In the lobby, word that it is among those who begin may come before the `Start` does, with that of the run.

        Args:
            told: the run that somebody is just telling of.
        """
        running = self._lobby.running or told
        if self.state == "lobby" and running is not None:
            rounds = [self._progress.round_of(member.peer) for member in self._contacts.connected()]
            return running.start if median_low(rounds or [0]) <= running.start + AHEAD else None
        if self.state != "joining":
            return None
        known = [self._progress.round_of(peer) for peer in self._could_answer()]
        known = known or [self._progress.round_of(member.peer) for member in self._contacts.connected()]
        return latest_change(max(median_low(known or [0]), self.round), len(self._could_answer()))

    # Rounds and the end

    def share_offered(self, peer: PeerId, offer: Offer, now: float) -> list[Effect]:
        """A share of somebody's round; word of the beginning may come later than a neighbor's first."""
        if self.rounds is not None and self.state != "joining":
            return self.rounds.offered(peer, offer, now)
        if self._table.may_take_part(peer, offer.round):
            self._early.hold(peer, offer)
        return []

    def forget(self, peer: PeerId) -> None:
        """There is no connection to a peer any more: what it told of itself is forgotten."""
        self._early.forget(peer)
        if self.rounds is not None:
            self.rounds.forget(peer)

    def _begin(self, round: int, vector: Vector, now: float) -> list[Effect]:
        assert self.rounds is not None  # _enter made it
        assert self._lobby.running is not None
        self.state = "running"
        self._joining.answered()
        names = self._table.view(round).names
        started = Started(peer=self._id, settings=self.settings, round=round, members=names)
        self._lobby.let_go()
        effects = self.rounds.begin(round, vector, now)
        for peer, offer in self._early.all():
            effects += self.rounds.offered(peer, offer, now)
        self._early = EarlyOffers()
        return [Emit(started), *self.after_round(effects, now)]

    def after_round(self, effects: list[Effect], now: float) -> list[Effect]:
        """Tell the others where this peer is, and notice the end."""
        rounds = self.rounds
        if rounds is None or self.state != "running":
            return effects
        told = self._contacts.broadcast(Status(rounds.round, rounds.finished))
        if not rounds.finished:
            return [*effects, *told]
        self.state, self._linger_until = "finished", now + max(LINGER_S, rounds.linger_s())
        finished = Emit(StateChanged(peer=self._id, state="finished", round=rounds.round))
        return [*effects, *told, finished, *self.neighbors_done()]

    def neighbors_done(self) -> list[Effect]:
        """Leave once nobody can need the last share any more."""
        if self.state not in ("finished", "observer"):
            return []
        others = [m.peer for m in self._contacts.connected() if m.peer != self._id and m.state in ("member", "lobby")]
        return self.leave("rounds") if self._progress.all_done(others) else []

    def leave(self, reason: str, error: str = "") -> list[Effect]:
        """Go, from whatever state; `error` is for the person to read."""
        me = self._table.me
        until = None if me.since is None else max(me.since, self.change_round())
        self._table.change(self._id, state="left", until=until)
        self.state = "left"
        return [
            *self._contacts.farewell(),
            Emit(StateChanged(peer=self._id, state="left", round=self.round)),
            Emit(Finished(peer=self._id, round=self.round, reason=reason)),
            Done(self.round, error),
        ]

    def fail(self, error: str) -> list[Effect]:
        """Go because of something that a person must mend."""
        return self.leave("stopped", error)
