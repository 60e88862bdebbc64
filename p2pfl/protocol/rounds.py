"""The synchronous round: train, offer, gather the neighbors' shares, mix, and begin again.

A round's view and edges are frozen when it begins. A share counts if it comes from a neighbor of that view, for this
round, this recipe, this view and this layout, whole and finite; one round ahead is held, everything else is refused
with a reason that is counted. The round mixes when every neighbor's share is in or given up, or at the deadline. A
neighbor without a share leaves its weight with self: rows of the mixing matrix sum to one, the network's average then
drifts a little.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from p2pfl.errors import UsageError
from p2pfl.events import (
    RoundFinished,
    RoundsSkipped,
    ShareReceived,
    ShareRejected,
    StateChanged,
    ViewTaken,
    Warned,
)
from p2pfl.graphs.builders import ring
from p2pfl.graphs.mixing import mixing_weights, with_missing
from p2pfl.graphs.topology import Topology
from p2pfl.layout import Vector
from p2pfl.protocol.membership import View
from p2pfl.protocol.messages import Declined, Message, Offer
from p2pfl.protocol.pace import budget_s, next_round, wait_s
from p2pfl.protocol.participant import (
    Abandon,
    Drop,
    Effect,
    Emit,
    Fetch,
    Fetched,
    FetchFailed,
    Mix,
    Mixed,
    Prepared,
    Save,
    Serve,
    Train,
    Trained,
)
from p2pfl.types import PeerId

_MISSES_BEFORE_NOT_WAITED_FOR = 2
_ROUNDS_BETWEEN_TRIES = 8
_FETCH_TRIES = 3


@dataclass
class _Round:
    """What is known of the round under way."""

    number: int
    view: View
    topology: Topology
    sources: tuple[PeerId, ...]  # whose shares come here, by seat
    targets: tuple[PeerId, ...]
    began: float
    phase: str = "training"
    trained: Trained | None = None
    gathering_since: float = 0.0
    mixing_since: float = 0.0
    reduced: bool = False
    offers: dict[PeerId, Offer] = field(default_factory=dict)  # accepted, being fetched or here
    tries: dict[PeerId, int] = field(default_factory=dict)
    received: dict[PeerId, Vector] = field(default_factory=dict)
    given_up: set[PeerId] = field(default_factory=set)  # refused or failed: its weight goes to self
    arrivals: list[float] = field(default_factory=list)  # seconds after the beginning, own training included


class SynchronousRound:
    """One peer's rounds, from the first to the last. Driven by the core that owns connections and membership."""

    def __init__(
        self,
        me: PeerId,
        instance: str,
        prepared: Prepared,
        view: Callable[[int], View],
        send: Callable[[PeerId, Message], list[Effect]],
        reachable: Callable[[PeerId], bool],
        views_differ: Callable[[PeerId], list[Effect]],
    ) -> None:
        self._me = me
        self._instance = instance
        self._prepared = replace(prepared, vector=None)
        self._rules = prepared.rules
        self._view = view
        self._send = send
        self._reachable = reachable
        self._views_differ = views_differ
        self._current: _Round | None = None
        self.model = prepared.vector  # with which the current round began
        self._held: dict[PeerId, dict[int, Offer]] = {}  # offers of rounds to come
        self._misses: dict[PeerId, int] = {}
        self._train_s: dict[PeerId, float] = {}  # as neighbors told
        self._own_full_s: float | None = None  # for all the steps that the recipe asks for
        self._heard: dict[PeerId, int] = {}
        self._late_for: set[PeerId] = set()  # neighbors that declined the last offer as late
        self._snapshots_wanted: dict[PeerId, int] = {}
        self._served: list[tuple[int, str]] = []
        self._last_offers: dict[PeerId, tuple[Offer, ...]] = {}  # at most two: their bodies are still served
        self._counted: dict[PeerId, tuple[Offer, ...]] = {}  # the last two; on a new connection they are repeated
        self._last_view = ""
        self.round = prepared.round
        self.finished = False

    # Beginning

    def begin(self, round: int, vector: Vector, now: float) -> list[Effect]:
        """Begin a round with a model, or finish where there are no more rounds."""
        self.round, self.model = round, vector
        if self._current is not None:
            for peer, offer in self._current.offers.items():
                self._counted[peer] = (*self._counted.get(peer, ())[-1:], offer)
        self._current = None
        effects: list[Effect] = self._forget_served(before=round - 1)
        effects += self._offer_snapshots()
        if self._rules.rounds and round >= self._rules.rounds:
            self.finished = True
            return effects
        view = self._view(round)
        topology, warning = self._topology(len(view), round)
        position = view.positions[self._me]
        self._current = _Round(
            round,
            view,
            topology,
            sources=tuple(view.members[i].peer for i in topology.sources(position)),
            targets=tuple(view.members[i].peer for i in topology.targets(position)),
            began=now,
        )
        if view.digest != self._last_view:
            self._last_view = view.digest
            self._misses.clear()
            effects.append(Emit(ViewTaken(peer=self._me, round=round, members=view.names, topology=topology.name)))
            if warning:
                effects.append(Emit(Warned(peer=self._me, text=warning)))
        budget = self._budget(self._current.sources)
        self._current.reduced = budget is not None
        effects.append(Emit(StateChanged(peer=self._me, state="training", round=round)))
        effects.append(Train(round, vector, budget))
        due = {peer: held[round] for peer, held in self._held.items() if round in held}
        self._held = {
            peer: later
            for peer, held in self._held.items()
            if (later := {number: offer for number, offer in held.items() if number > round})
        }
        for peer, offer in due.items():
            effects += self.offered(peer, offer, now)
        return effects

    def _topology(self, nodes: int, round: int) -> tuple[Topology, str]:
        try:
            return self._rules.topology(nodes, round), ""
        except UsageError as error:
            # Members came or went and the recipe's topology has no form of this size: every peer falls back alike.
            return ring(nodes), f"{error}; the {nodes} peers go on as a ring"

    def _budget(self, sources: Sequence[PeerId]) -> float | None:
        times = [self._train_s[peer] for peer in sources if peer in self._train_s]
        late, self._late_for = self._late_for, set()
        return budget_s(self._rules, self._own_full_s, times, len(sources), len(late))

    # Events

    def trained(self, event: Trained, now: float) -> list[Effect]:
        """Local training is done: offer the result to the neighbors."""
        current = self._current
        if current is None or event.round != current.number or current.phase != "training":
            return []
        current.trained, current.phase, current.gathering_since = event, "gathering", now
        current.arrivals.append(now - current.began)
        self._own_full_s = event.seconds * event.full_steps / max(1, event.steps)
        token = f"{current.number}.{self._instance}"
        self._served.append((current.number, token))
        offer = Offer(
            kind="share",
            round=current.number,
            token=token,
            bytes=self._prepared.bytes,
            layout=self._prepared.layout,
            recipe=self._prepared.fingerprint,
            view=current.view.digest,
            degree=len(current.sources),
            steps=event.steps,
            train_s=event.seconds,
        )
        self._last_offers = {peer: (*self._last_offers.get(peer, ())[-1:], offer) for peer in current.targets}
        effects: list[Effect] = [
            Serve(token, event.vector, current.targets),
            Emit(StateChanged(peer=self._me, state="gathering", round=current.number)),
        ]
        for peer in current.targets:
            effects += self._send(peer, offer)
        return effects + self.advance(now)

    def relinked(self, peer: PeerId) -> list[Effect]:
        """A connection to a neighbor is there again: what was offered meanwhile may be lost."""
        return [effect for offer in self._last_offers.get(peer, ()) for effect in self._send(peer, offer)]

    def declined(self, peer: PeerId, answer: Declined) -> None:
        """A neighbor will not fetch what was offered."""
        last = self._last_offers.get(peer, ())[-1:]
        if answer.reason == "late" and any(offer.token == answer.token for offer in last):
            self._late_for.add(peer)

    def heard(self, peer: PeerId, round: int) -> None:
        """A peer tells its round; what it had to offer for earlier ones it has offered before."""
        self._heard[peer] = round

    def offered(self, peer: PeerId, offer: Offer, now: float) -> list[Effect]:
        """A neighbor offers its share."""
        current = self._current
        if offer in self._counted.get(peer, ()):
            return []
        if self.finished or (current is None and offer.round < self.round):
            return self._refuse(peer, offer, "late")
        if current is None or offer.round > current.number:
            reason = self._mismatch(offer)
            if reason:
                return self._refuse(peer, offer, reason)
            held = self._held.setdefault(peer, {})
            held[offer.round] = offer
            for stale in sorted(held)[:-2]:
                del held[stale]
            return self.advance(now)
        reason = self._objection(current, peer, offer)
        if reason == "duplicate":
            return []
        if reason:
            effects = self._refuse(peer, offer, reason)
            if reason == "late" and offer.round + 1 >= current.number:
                self._misses[peer] = 0  # only just: waited for once more, it falls into step
            if reason == "view mismatch":
                effects += self._views_differ(peer)
            if reason not in ("late", "foreign"):
                current.given_up.add(peer)
            return effects + self.advance(now)
        current.offers[peer] = offer
        self._train_s[peer] = offer.train_s
        effects = []
        if all(target in current.offers for target in current.targets):
            # Who offers this round is done with the last: its share makes room before the next one comes.
            effects = self._forget_served(before=current.number, snapshots=False)
        return [*effects, self._fetch(current, peer, offer)]

    def _mismatch(self, offer: Offer) -> str:
        """Why an offer of any round is none of this network's models, empty where it may be."""
        if offer.layout != self._prepared.layout:
            return "schema mismatch"
        if offer.recipe != self._prepared.fingerprint:
            return "recipe mismatch"
        return "" if offer.bytes == self._prepared.bytes else "wrong size"

    def _objection(self, current: _Round, peer: PeerId, offer: Offer) -> str:
        """Why an offer for no later round than this one cannot count, empty where it can."""
        known = current.offers.get(peer)
        if known == offer:
            return "duplicate"
        mismatch = self._mismatch(offer)
        if mismatch in ("schema mismatch", "recipe mismatch"):
            return mismatch
        if offer.round < current.number or current.phase == "mixing":
            return "late"
        if known is not None:
            return "second share"
        if offer.view != current.view.digest:
            return "view mismatch"
        if peer not in current.sources:
            return "foreign"
        return "" if offer.bytes == self._prepared.bytes else "wrong size"

    def _fetch(self, current: _Round, peer: PeerId, offer: Offer) -> Fetch:
        current.tries[peer] = current.tries.get(peer, 0) + 1
        member = current.view.members[current.view.positions[peer]]
        return Fetch(peer, member.addresses, offer)

    def fetched(self, event: Fetched, now: float) -> list[Effect]:
        """A neighbor's share is here."""
        current = self._current
        if current is None or current.offers.get(event.peer) != event.offer or current.phase == "mixing":
            return [Emit(self._rejected(event.peer, event.offer.round, "late"))]
        if not event.finite:
            current.given_up.add(event.peer)
            return self._refuse(event.peer, event.offer, "not finite") + self.advance(now)
        current.received[event.peer] = event.vector
        self._misses[event.peer] = 0
        current.arrivals.append(now - current.began)
        received = ShareReceived(peer=self._me, round=current.number, other=event.peer, bytes=event.offer.bytes)
        return [Emit(received), *self.advance(now)]

    def fetch_failed(self, event: FetchFailed, now: float) -> list[Effect]:
        """A neighbor's share did not arrive: try again while that peer can be reached, a few times."""
        current = self._current
        if current is None or current.offers.get(event.peer) != event.offer or current.phase == "mixing":
            return []
        tried = current.tries[event.peer]
        if event.reason == "broken off" and tried < _FETCH_TRIES and self._reachable(event.peer):
            return [self._fetch(current, event.peer, event.offer)]
        current.given_up.add(event.peer)
        return [Emit(self._rejected(event.peer, current.number, event.reason)), *self.advance(now)]

    def mixed(self, event: Mixed, now: float) -> list[Effect]:
        """The new model is loaded and evaluated: report, save, and go on."""
        current = self._current
        if current is None or event.round != current.number or current.phase != "mixing":
            return []
        trained = current.trained
        assert trained is not None  # mixing follows training
        finished = RoundFinished(
            peer=self._me,
            round=current.number,
            steps=trained.steps,
            neighbors=len(current.sources),
            missing=len(current.sources) - len(current.received),
            train_loss=trained.loss,
            test_loss=event.test_loss,
            test_accuracy=event.test_accuracy,
            neighbor_distance=event.distance,
            train_s=trained.seconds,
            wait_s=max(0.0, current.mixing_since - current.gathering_since),
            mix_s=event.seconds,
            metrics=event.metrics,
            reduced=current.reduced,
        )
        effects: list[Effect] = [Emit(finished)]
        ahead = [max(self._held[peer]) for peer in current.sources if self._held.get(peer)]
        following = next_round(current.number, ahead, len(current.sources))
        if following > current.number + 1:
            effects.append(Emit(RoundsSkipped(peer=self._me, after=current.number, next=following)))
        effects.append(Save(following, event.vector))
        return effects + self.begin(following, event.vector, now)

    def snapshot_wanted(self, peer: PeerId, round: int) -> list[Effect]:
        """A newcomer asks for the model with which a round begins; it gets that of the first one not before it."""
        self._snapshots_wanted[peer] = round
        return self._offer_snapshots() if self._current is not None or self.finished else []

    # Going on

    def advance(self, now: float) -> list[Effect]:
        """Mix if the round is ready; called whenever something it waits for may have changed."""
        current = self._current
        if current is None or current.phase != "gathering" or current.trained is None:
            return []
        waiting = self._waiting(current)
        if waiting and now < self._deadline(current):
            return []
        effects: list[Effect] = []
        for peer in current.sources:
            if peer not in current.received and peer not in current.given_up:
                self._misses[peer] = self._misses.get(peer, 0) + 1
                effects.append(Emit(self._rejected(peer, current.number, "missing")))
                if peer in current.offers:
                    effects.append(Abandon(peer, current.offers[peer].token))
        node = current.view.positions[self._me]
        weights = mixing_weights(current.topology, node)
        missing = [current.view.positions[peer] for peer in current.sources if peer not in current.received]
        weights = with_missing(weights, node, missing)
        present = tuple(peer for peer in current.sources if peer in current.received)  # by seat
        current.phase, current.mixing_since = "mixing", now
        mix = Mix(
            current.number,
            current.trained.vector,
            weights[node],
            tuple((weights[current.view.positions[peer]], current.received[peer]) for peer in present),
            present,
        )
        return [*effects, Emit(StateChanged(peer=self._me, state="mixing", round=current.number)), mix]

    def next_deadline(self) -> float | None:
        """When the running round stops waiting."""
        current = self._current
        return self._deadline(current) if current is not None and current.phase == "gathering" else None

    def _waiting(self, current: _Round) -> list[PeerId]:
        """Neighbors whose share may still come in time."""
        return [
            peer
            for peer in current.sources
            if peer not in current.received
            and peer not in current.given_up
            and self._reachable(peer)
            and self._waited_for(peer)
            and (peer in current.offers or not self._is_ahead(peer))
        ]

    def _waited_for(self, peer: PeerId) -> bool:
        """Not after two misses in a row, but for a try every few rounds; its share still counts if it comes in time."""
        misses = self._misses.get(peer, 0)
        return misses < _MISSES_BEFORE_NOT_WAITED_FOR or misses % _ROUNDS_BETWEEN_TRIES == 0

    def _is_ahead(self, peer: PeerId) -> bool:
        """Whether a neighbor that has not offered this round is past it."""
        return bool(self._held.get(peer)) or self._heard.get(peer, 0) > self.round

    def _deadline(self, current: _Round) -> float:
        parties = 1 + sum(self._reachable(peer) for peer in current.sources)
        return current.began + wait_s(self._rules, current.arrivals, parties)

    # Small pieces

    def _refuse(self, peer: PeerId, offer: Offer, reason: str) -> list[Effect]:
        return [
            Emit(self._rejected(peer, offer.round, reason)),
            *self._send(peer, Declined(token=offer.token, reason=reason)),
        ]

    def _rejected(self, peer: PeerId, round: int, reason: str) -> ShareRejected:
        return ShareRejected(peer=self._me, round=round, other=peer, reason=reason)

    def _offer_snapshots(self) -> list[Effect]:
        due: Iterable[PeerId] = [p for p, wanted in self._snapshots_wanted.items() if wanted <= self.round]
        effects: list[Effect] = []
        token = f"snapshot-{self.round}.{self._instance}"
        for peer in due:
            del self._snapshots_wanted[peer]
            assert self.model is not None  # only asked of a peer that has begun
            if (self.round, token) not in self._served:
                self._served.append((self.round, token))
                effects.append(Serve(token, self.model))
            offer = Offer(
                kind="snapshot",
                round=self.round,
                token=token,
                bytes=self._prepared.bytes,
                layout=self._prepared.layout,
                recipe=self._prepared.fingerprint,
            )
            effects += self._send(peer, offer)
        return effects

    def drop(self) -> list[Effect]:
        """These rounds are given up: nothing of them is served any more."""
        return [Drop(token) for _, token in self._served]

    def _forget_served(self, before: int, snapshots: bool = True) -> list[Effect]:
        """Bodies of rounds long past: a neighbor is at most one round behind, or skips."""
        stale = [
            (round, token)
            for round, token in self._served
            if round < before and (snapshots or not token.startswith("snapshot"))
        ]
        self._served = [entry for entry in self._served if entry not in stale]
        return [Drop(token) for _, token in stale]
