"""The peers of a simulation: each a live peer's rounds; what they ask for is carried out in virtual time."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import msgspec

from p2pfl.events import Finished, Listening, RoundFinished, RunEvent, ShareRejected, ShareSent, Started, StateChanged
from p2pfl.graphs.schedule import Schedule
from p2pfl.graphs.topology import Topology
from p2pfl.layout import Layout, Vector
from p2pfl.protocol.joining import timely
from p2pfl.protocol.messages import Declined, Member, Message, Offer, SnapshotWanted, Status
from p2pfl.protocol.participant import (
    Abandon,
    Drop,
    Effect,
    Emit,
    Fetch,
    Fetched,
    FetchFailed,
    Hash,
    Hashed,
    Mix,
    Mixed,
    Prepared,
    Rules,
    Save,
    Serve,
    Train,
    Trained,
)
from p2pfl.protocol.rounds import SynchronousRound
from p2pfl.simulation.deferred import Deferred
from p2pfl.simulation.oracle import Oracle
from p2pfl.simulation.problem import Problem
from p2pfl.simulation.simulated_peer import SimulatedPeer
from p2pfl.simulation.virtual_time import VirtualTime
from p2pfl.simulation.world import World, steps_within
from p2pfl.types import PeerId


class Peers:
    """All peers, and the messages and bodies between them.

    Attributes:
        by_id: the latest peer of every id.
        gone: the round from which one that was noticed to be gone is back, infinite while it is not.
        past: rounds that nobody is in any more.
        tell, tell_mixed, snapshot: who is told of events, of whose shares were mixed in, and of a newcomer's model.
        tell_sent: who is told by whom, and in which round, a body was put on the wire, whatever became of it.
    """

    def __init__(
        self,
        problem: Problem,
        world: World,
        clock: VirtualTime,
        work: Deferred,
        layout: Layout,
        vectors: Iterable[Vector],
        round: int,
        everything: bool,
    ) -> None:
        """Nothing happens before `begin`.

        Args:
            vectors: with which each peer begins.
            round: the first one.
            everything: whether somebody wants all events, and not only those that reports are made of.
        """
        recipe = problem.recipe
        self._problem = problem
        self._world = world
        self._clock = clock
        self._work = work
        self._vectors = list(vectors)
        self._first = round
        self._everything = everything
        self.ids = [f"peer{index:06d}" for index in range(problem.peers)]
        self.index: dict[PeerId, int] = {id: index for index, id in enumerate(self.ids)}
        members = tuple(
            Member(id, str(index), name, state="member")
            for index, (id, name) in enumerate(zip(self.ids, problem.names, strict=True))
        )
        there = [index for index in range(problem.peers) if index not in world.absent]
        self.oracle = Oracle(members, there, round)
        per_epoch = [-(-len(part) // recipe.batch_size) for part in problem.parts]
        self._full = [recipe.steps or recipe.epochs * each for each in per_epoch]
        self._prepared = _prepared(problem, layout, self._topology, self._schedule)
        self._schedules: dict[int, Schedule] = {}  # by number of members
        if recipe.algorithm != "alone":
            self._schedules[problem.peers] = problem.schedule
        self.by_id: dict[PeerId, SimulatedPeer] = {}
        self.gone: dict[PeerId, float] = {}
        self._at: Counter[int] = Counter()  # how many are in a round, or wait for it
        self._arrived: dict[tuple[int, int], float] = {}  # the last message of an edge
        self._least_wait_s = min(recipe.min_deadline_s, recipe.max_wait_s)
        schedule = problem.schedule
        self._quiet = recipe.algorithm == "alone" or (schedule.static and not schedule.at(0).directed)
        self.past = round
        self.tell: Callable[[RunEvent, float], None] = lambda event, now: None
        self.snapshot: Callable[[SimulatedPeer, Offer, Vector | str], None] = lambda peer, offer, found: None
        self.tell_mixed: Callable[[int, int, tuple[PeerId, ...]], None] = lambda round, peer, parties: None
        self.tell_sent: Callable[[int, int], None] = lambda round, peer: None

    @property
    def members(self) -> list[SimulatedPeer]:
        """Those that take part, finished ones too."""
        return [peer for peer in self.by_id.values() if peer.begun and peer.here]

    @property
    def latest(self) -> int:
        """The latest round that anybody is in, or waits for."""
        return max((round for round, count in self._at.items() if count), default=self._first)

    def name(self, index: int) -> str:
        """What people call a peer."""
        return self._problem.names[index]

    def begin(self) -> None:
        """Let all peers begin that are there at first."""
        for index in range(self._problem.peers):
            if index not in self._world.absent:
                peer = self.new(index)
                peer.round, peer.begun = self._first, True
                self._at[self._first] += 1
        for peer in list(self.by_id.values()):
            self.start(peer, self._first, self._vectors[peer.index])

    def finish(self) -> None:
        """Tell that the run is over."""
        for peer in self.by_id.values():
            if peer.here:
                self.say(Finished(peer=peer.id, round=peer.round, reason="rounds"))

    def new(self, index: int) -> SimulatedPeer:
        """A peer that has not begun; in the place of one of the same id that is gone."""
        peer = self.by_id[self.ids[index]] = SimulatedPeer(index, self.ids[index])
        gone = self.gone

        def reachable(other: PeerId) -> bool:
            return other not in gone or gone[other] <= peer.rounds.round

        instance = f"{index}.{self._clock.happened}"
        peer.rounds = SynchronousRound(
            peer.id,
            instance,
            self._prepared,
            self.oracle.view,
            partial(self.send, peer),
            reachable,
            lambda other: [],
        )
        self.say(Listening(peer=peer.id, name=self.name(index), seat=str(index), addresses=()))
        return peer

    # Time goes on

    def start(self, peer: SimulatedPeer, round: int, vector: Vector) -> None:
        """Begin the first round of a peer."""
        if self._everything:
            settings = msgspec.structs.asdict(self._problem.recipe.network)
            names = self.oracle.view(round).names
            self.say(Started(peer=peer.id, settings=settings, round=round, members=names))
        self.carry_out(peer, peer.rounds.begin(round, vector, self._clock.now))

    def carry_out(self, peer: SimulatedPeer, effects: Sequence[Effect]) -> None:
        """Do what a peer asks for, and note where it is then."""
        while effects:
            following: list[Effect] = []
            for effect in effects:
                kind = type(effect)
                if kind is Emit:
                    event = effect.event  # type: ignore[union-attr]  # the exact type was compared: a match is slower
                    if self._everything or type(event) is RoundFinished or type(event) is ShareRejected:
                        self.tell(event, self._clock.now)
                elif kind is not Save:
                    following += self._act(peer, effect)
            effects = following
        if peer.begun and peer.rounds.round != peer.round:
            self._moved(peer)
        if peer.wake_at > peer.trains_since + self._least_wait_s:
            deadline = peer.rounds.next_deadline()
            if deadline is not None and deadline < peer.wake_at:
                peer.wake_at = deadline
                self._clock.at(deadline, self._wake, peer, deadline)

    def _act(self, peer: SimulatedPeer, effect: Effect) -> list[Effect]:
        """Carry out one effect; what follows from it at once."""
        match effect:
            case Fetch():
                self._fetch(peer, effect)
            case Serve(token, vector):
                peer.serve(token, vector)
            case Train():
                self._train(peer, effect)
            case Mix(round):
                self.tell_mixed(round, peer.index, effect.parties)
                mixed = Mixed(round, self._work.mix(peer.index, effect), None, 0.0)
                return peer.rounds.mixed(mixed, self._clock.now)
            case Drop(token):
                peer.withdraw(token, self._clock.now)
            case Hash(token):
                return peer.rounds.hashed(Hashed(token, b""))
            case Abandon(_, token):
                peer.fetching.discard(token)
        return []

    def _wake(self, peer: SimulatedPeer, time: float) -> None:
        if peer.here and peer.wake_at == time:
            peer.wake_at = math.inf
            self.carry_out(peer, peer.rounds.advance(self._clock.now))

    def _moved(self, peer: SimulatedPeer) -> None:
        """A peer is in another round: whoever may wait for word of that gets it."""
        before, peer.round = peer.round, peer.rounds.round
        self.count(before, peer.round)
        # Where links stay and go both ways, the next offer says as much to the same peers.
        told_by_offers = self._quiet and peer.round == before + 1 and not peer.rounds.finished
        for other in () if told_by_offers else peer.rounds.listeners:
            self.send(peer, other, Status(peer.round, peer.rounds.finished))
        if peer.rounds.finished:
            self.say(StateChanged(peer=peer.id, state="finished", round=peer.round))

    def count(self, before: int | None, after: int | None) -> None:
        """Note that a peer goes from one round to another, comes (None before) or goes (None after)."""
        if before is not None:
            self._at[before] -= 1
        if after is not None:
            self._at[after] += 1
        if before is not None and before <= self.past and not self._at[before]:
            del self._at[before]
            self.past = min((round for round, count in self._at.items() if count), default=self.past)

    def _topology(self, nodes: int, round: int) -> Topology:
        return self._schedule(nodes).at(round)

    def _schedule(self, nodes: int) -> Schedule:
        """As the problem says for all peers, as the recipe says where some are gone."""
        schedule = self._schedules.get(nodes)
        if schedule is None:
            if self._problem.recipe.algorithm == "alone":
                schedule = Schedule.of(Topology("alone", nodes, ()))
            else:
                schedule = self._problem.recipe.schedule(nodes)
            self._schedules[nodes] = schedule
        return schedule

    # Training

    def _train(self, peer: SimulatedPeer, effect: Train) -> None:
        peer.trains_since = self._clock.now
        step_s, full = self._world.step_s[peer.index], self._full[peer.index]
        steps = steps_within(effect.budget_s, step_s, full)
        row = self._work.train(effect.round, peer.index, effect.vector, steps)
        trained = Trained(effect.round, row, steps, full, None, steps * step_s)
        self._clock.at(self._clock.now + steps * step_s, self._trained, peer, trained)

    def _trained(self, peer: SimulatedPeer, event: Trained) -> None:
        if peer.here:
            self.carry_out(peer, peer.rounds.trained(event, self._clock.now))

    # Messages and bodies

    def send(self, sender: SimulatedPeer, to: PeerId, message: Message) -> list[Effect]:
        """A connection delivers in order; what is sent to nobody is lost."""
        receiver = self.by_id.get(to)
        if receiver is not None and receiver.here:
            arrival = self._clock.now + self._world.latency_s(sender.index, receiver.index)
            if not self._world.ordered:
                edge = (sender.index, receiver.index)
                arrival = self._arrived[edge] = max(arrival, self._arrived.get(edge, 0.0))
            self._clock.at(arrival, self._deliver, receiver, sender.id, message)
        return []

    def _deliver(self, peer: SimulatedPeer, sender: PeerId, message: Message) -> None:
        if not peer.here:
            return
        now = self._clock.now
        match message:
            case Offer(kind="share"):
                self.carry_out(peer, peer.rounds.offered(sender, message, now))
            case Offer():
                if not peer.begun and timely(message, peer.round):
                    self._fetch(peer, Fetch(sender, (), message))
            case Status(round):
                peer.rounds.heard(sender, round)
                self.carry_out(peer, peer.rounds.advance(now))
            case Declined():
                peer.rounds.declined(sender, message)
            case SnapshotWanted(round):
                self.carry_out(peer, peer.rounds.snapshot_wanted(sender, round))

    def _fetch(self, peer: SimulatedPeer, effect: Fetch) -> None:
        """There and back again: a request, then the body."""
        owner, world, offer = self.by_id[effect.peer], self._world, effect.offer
        asked_at = self._clock.now + world.latency_s(peer.index, owner.index)
        there_at = asked_at + world.latency_s(owner.index, peer.index)
        there_at += world.transfer_s(owner.index, peer.index, offer.bytes)
        peer.fetching.add(offer.token)
        owner.begin_upload(offer.token)
        self._clock.at(there_at, self._fetched, peer, owner, offer, asked_at)

    def _fetched(self, peer: SimulatedPeer, owner: SimulatedPeer, offer: Offer, asked_at: float) -> None:
        now = self._clock.now
        found = owner.end_upload(offer, asked_at, now)
        if not isinstance(found, str) or found == "broken off":
            self.tell_sent(offer.round, owner.index)
        if not peer.here or offer.token not in peer.fetching:
            return
        peer.fetching.discard(offer.token)
        if offer.kind == "snapshot":
            self.snapshot(peer, offer, found)
            return
        if not isinstance(found, str) and self._world.lost(offer.round, owner.index, peer.index):
            found = "broken off"
        if isinstance(found, str):
            self.carry_out(peer, peer.rounds.fetch_failed(FetchFailed(owner.id, offer, found), now))
            return
        if self._everything:
            self.say(ShareSent(peer=owner.id, round=offer.round, other=peer.id, bytes=offer.bytes))
        self.carry_out(peer, peer.rounds.fetched(Fetched(owner.id, offer, found, True), now))

    def say(self, event: RunEvent) -> None:
        """Tell an event that no report is made of."""
        if self._everything:
            self.tell(event, self._clock.now)


def _prepared(
    problem: Problem, layout: Layout, topology: Callable[[int, int], Topology], schedule: Callable[[int], Schedule]
) -> Prepared:
    """What all peers know of model and recipe."""
    recipe = problem.recipe
    rules = Rules(
        topology=topology,
        schedule=schedule,
        rounds=recipe.rounds,
        min_peers=1,
        patience=recipe.patience,
        min_deadline_s=recipe.min_deadline_s,
        max_wait_s=recipe.max_wait_s,
    )
    return Prepared(
        settings={},
        fingerprint=recipe.network.fingerprint,
        rules=rules,
        layout=layout.digest,
        tensors=layout.describe(),
        bytes=layout.framed_bytes,
        data="",
        vector=None,
        init="",
    )
