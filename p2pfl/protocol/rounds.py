"""The synchronous round: train, offer, gather the neighbors' shares, mix, and begin again.

A round's view and edges are frozen when it begins. A share counts if it comes from a neighbor of that view, for this
round, this recipe, this view and this layout, whole and finite; of rounds to come it is held, everything else is
refused with a reason that is counted. The round mixes when every neighbor's share is in or given up, or at the
deadline. A neighbor without a share leaves its weight with self: rows of the mixing matrix sum to one, the network's
average then drifts a little.

Neighbors may be others in every round, and links may go one way. Then a peer can get ahead of one that still needs its
share, and would have to keep it: it goes at most `AHEAD` rounds ahead, see `served`. For that it must hear the rounds
of others (`heard`, then `advance`): `listeners` says who has to be told of this peer's. A peer of which no round was
ever heard is not waited for in this way.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace

from p2pfl.events import (
    RoundFinished,
    RoundsSkipped,
    ShareReceived,
    ShareRejected,
    StateChanged,
    ViewTaken,
    Warned,
)
from p2pfl.layout import Vector
from p2pfl.protocol.early import EarlyOffers
from p2pfl.protocol.gathering import Gathering, mismatch
from p2pfl.protocol.membership import View
from p2pfl.protocol.messages import Declined, Message, Offer
from p2pfl.protocol.neighborhood import Neighborhood, Neighbors
from p2pfl.protocol.pace import Recent, budget_s, next_round, wait_s
from p2pfl.protocol.participant import (
    Abandon,
    Effect,
    Emit,
    Fetch,
    Fetched,
    FetchFailed,
    Hashed,
    Mixed,
    Prepared,
    Save,
    Train,
    Trained,
)
from p2pfl.protocol.progress import furthest
from p2pfl.protocol.served import AHEAD, Served
from p2pfl.protocol.snapshots import Snapshots
from p2pfl.types import PeerId

_MISSES_BEFORE_NOT_WAITED_FOR = 2
_ROUNDS_BETWEEN_TRIES = 8
_FETCH_TRIES = 3
_BETWEEN_TABLES_S = 2.0  # to one neighbor that sees other members; as where tables are found to differ, see `watch`


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
        takes_part: Callable[[PeerId, int], bool] = lambda peer, round: True,
    ) -> None:
        """Not begun yet.

        Args:
            view: the members of a round, as far as known.
            send: a message to a peer, if there is a connection.
            reachable: whether a peer is worth waiting for.
            views_differ: what to do about a neighbor that has another view of the round.
            takes_part: whether a peer may be a member of a round to come: of others no offer is kept.
        """
        self._me = me
        self._instance = instance
        self._prepared = replace(prepared, vector=None)
        self._rules = prepared.rules
        self._view = view
        self._send = send
        self._reachable = reachable
        self._views_differ = views_differ
        self._takes_part = takes_part
        self._current: Gathering | None = None
        self.model = prepared.vector  # with which the current round began
        self._early = EarlyOffers()
        self._served = Served()
        self._last_share: tuple[str, int] = ("", 0)  # token, and to how many it was offered
        self._differed_at: dict[PeerId, float] = {}  # when a neighbor was last told who is here
        self._late_for: set[PeerId] = set()  # neighbors that declined it as late
        self._counted: deque[dict[PeerId, Offer]] = deque(maxlen=AHEAD)  # they are repeated on a new connection
        self._misses: dict[PeerId, int] = {}
        self._train_s = Recent()  # as neighbors told
        self._arrived_s = Recent()  # after the beginning of the round of which their last share was
        self._own_full_s: float | None = None  # for all the steps that the recipe asks for
        self._own_norm: float | None = None  # of the last trained model
        self._round_s: deque[float] = deque(maxlen=AHEAD)
        self._heard: dict[PeerId, int] = {}
        self._ahead: dict[PeerId, int] = {}  # the latest round offered before its time, until its peer tells another
        self._left_behind: set[PeerId] = set()  # was waited for in vain, and is until it catches up
        self._snapshots = Snapshots()
        self._neighborhood = Neighborhood(me, prepared.rules)
        self._last_view = ""
        self._warned: set[str] = set()
        self.listeners: tuple[PeerId, ...] = ()  # who may wait for word of the round that begins
        self.round = prepared.round
        self.finished = False

    # Beginning

    def begin(self, round: int, vector: Vector, now: float) -> list[Effect]:
        """Begin a round with a model, or finish where there are no more rounds."""
        self.round, self.model = round, vector
        if self._current is not None:
            last = self._current
            self._counted.append(last.offers)
            for peer in last.sources:
                self._served.passed(peer, last.number)  # offered the round, or is given up
            self.listeners = self._neighborhood.listeners(last.view, last.number, round)
        self._current = None
        effects: list[Effect] = [*self._served.done()]
        for drop in self._served.forget_snapshots(before=round - 1):
            self._snapshots.drop(drop.token)
            effects.append(drop)
        effects += self._offer_snapshots()
        if self._rules.rounds and round >= self._rules.rounds:
            self.finished = True
            return effects
        view = self._view(round)
        neighbors = self._neighborhood.at(view, round)
        current = self._current = Gathering(round, view, neighbors, now, self._own_norm)
        if view.digest != self._last_view:
            effects += self._take(view, neighbors)
        effects += self._warn(neighbors.warning)
        if self._awaited(current):
            effects.append(Emit(StateChanged(peer=self._me, state="waiting", round=round)))
        effects += self._train(current, now)
        for peer, offer in self._early.due(round).items():
            effects += self.offered(peer, offer, now)
        return effects

    def _take(self, view: View, neighbors: Neighbors) -> list[Effect]:
        """Members came or went: what was usual among the former neighbors is so no more."""
        self._last_view = view.digest
        self._misses.clear()
        self._arrived_s.keep(())
        self._train_s.keep(view.positions)
        name, drift = self._neighborhood.described(view, neighbors)
        taken = Emit(ViewTaken(peer=self._me, round=self.round, members=view.names, topology=name))
        return [taken, *self._warn(drift)]

    def _warn(self, text: str) -> list[Effect]:
        """Say something once."""
        if not text or text in self._warned:
            return []
        self._warned.add(text)
        return [Emit(Warned(peer=self._me, text=text))]

    def _train(self, current: Gathering, now: float) -> list[Effect]:
        """Train, unless somebody would be left behind who may catch up yet."""
        awaited = self._awaited(current)
        if awaited and now < self._step_deadline(current):
            return []
        self._left_behind |= awaited
        late, self._late_for = self._late_for, set()
        budget = budget_s(self._rules, self._own_full_s, self._train_s.but(()), self._last_share[1], len(late))
        current.phase, current.began, current.reduced = "training", now, budget is not None
        assert self.model is not None  # a round begins with it
        return [
            Emit(StateChanged(peer=self._me, state="training", round=current.number)),
            Train(current.number, self.model, budget),
        ]

    def _awaited(self, current: Gathering) -> set[PeerId]:
        """Who needs a share of so long ago that this peer would be too far ahead, and is expected to catch up."""
        behind = self._served.needed_before(current.number)
        return {p for p in behind if p in self._heard and p not in self._left_behind and self._reachable(p)}

    def _step_deadline(self, current: Gathering) -> float:
        """Who does not finish a round in the time that a few take here is left behind."""
        return current.began + wait_s(self._rules, tuple(self._round_s), len(self._round_s))

    def linger_s(self) -> float:
        """Seconds in which who was `AHEAD` rounds behind at the end, and not left behind, should be done too."""
        if not self._served.needed():
            return 0.0
        few_rounds_s = AHEAD * wait_s(self._rules, tuple(self._round_s), len(self._round_s))
        return min(few_rounds_s, self._rules.max_wait_s)

    # Events

    def trained(self, event: Trained, now: float) -> list[Effect]:
        """Local training is done: offer the result to the neighbors."""
        current = self._current
        if current is None or event.round != current.number or current.phase != "training":
            return []
        current.trained, current.phase, current.gathering_since = event, "gathering", now
        current.arrivals.append(now - current.began)
        self._own_full_s = event.seconds * event.full_steps / max(1, event.steps)
        self._own_norm = event.norm
        effects: list[Effect] = [Emit(StateChanged(peer=self._me, state="gathering", round=current.number))]
        for peer in current.too_large(event):
            del current.received[peer]
            current.given_up.add(peer)
            effects += self._refuse(peer, current.offers[peer], "absurd norm")
        if not current.targets:
            others = self._neighborhood.pacer(current.view) if not current.sources else ()
            step = self._served.keep_step(current.number, self._still_in(current.number, others))
            return [*effects, *step, *self.advance(now)]
        token = f"{current.number}.{self._instance}"
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
            payload=event.payload,
        )
        self._last_share = (token, len(current.targets))
        pending = self._still_in(current.number, current.targets)
        effects += self._served.share(offer, event.vector, current.targets, pending)
        for peer in current.targets:
            effects += self._send(peer, offer)
        return effects + self.advance(now)

    def _still_in(self, round: int, peers: Iterable[PeerId]) -> set[PeerId]:
        """Those of the peers that are not known to be past a round."""
        return {peer for peer in peers if self._round_of(peer) <= round}

    def relinked(self, peer: PeerId) -> list[Effect]:
        """A connection to a neighbor is there again: what was offered meanwhile may be lost."""
        return [effect for offer in self._served.offers_to(peer) for effect in self._send(peer, offer)]

    def declined(self, peer: PeerId, answer: Declined) -> None:
        """A neighbor will not fetch what was offered."""
        self._served.declined(peer, answer.token)
        if answer.reason == "late" and answer.token == self._last_share[0]:
            self._late_for.add(peer)

    def heard(self, peer: PeerId, round: int) -> None:
        """A peer tells its round; what it had to offer for earlier ones it has offered before."""
        self._heard[peer] = round
        self._ahead.pop(peer, None)
        self._passed(peer, round)

    def forget(self, peer: PeerId) -> None:
        """There is no connection to a peer any more; on the next one it says anew where it is, and what it offers."""
        for known in (self._heard, self._ahead, self._differed_at):
            known.pop(peer, None)
        self._snapshots.forget(peer)
        self._early.forget(peer)

    def _passed(self, peer: PeerId, round: int) -> None:
        self._served.passed(peer, round)
        if round > self.round - AHEAD:
            self._left_behind.discard(peer)

    def offered(self, peer: PeerId, offer: Offer, now: float) -> list[Effect]:
        """A neighbor offers its share."""
        current = self._current
        if any(offer == counted.get(peer) for counted in self._counted):
            return []
        if self.finished or (current is None and offer.round < self.round):
            return self._refuse(peer, offer, "late")
        if current is None or offer.round > current.number:
            reason = mismatch(offer, self._prepared)
            if not reason and not self._takes_part(peer, offer.round):
                reason = "foreign"
            if reason:
                return self._refuse(peer, offer, reason)
            if offer.round <= self._furthest():
                self._early.hold(peer, offer)
            self._ahead[peer] = max(self._ahead.get(peer, 0), offer.round)
            self._passed(peer, offer.round)
            return self.advance(now)
        reason = current.objection(peer, offer, self._prepared)
        if reason == "duplicate":
            return []
        if reason:
            effects = self._refuse(peer, offer, reason)
            if reason == "late" and offer.round + 1 >= current.number:
                self._misses[peer] = 0  # only just: waited for once more, it falls into step
            if reason == "view mismatch" and now - self._differed_at.get(peer, -_BETWEEN_TABLES_S) >= _BETWEEN_TABLES_S:
                self._differed_at[peer] = now
                effects += self._views_differ(peer)
            if reason not in ("late", "foreign"):
                current.given_up.add(peer)
            return effects + self.advance(now)
        current.offers[peer] = offer
        self._train_s.note(peer, offer.train_s, len(current.sources))
        # Who offers this round is done with the last: its share makes room before the next one comes.
        self._passed(peer, offer.round)
        return [*self._served.done(), self._fetch(current, peer, offer)]

    def _fetch(self, current: Gathering, peer: PeerId, offer: Offer) -> Fetch:
        current.tries[peer] = current.tries.get(peer, 0) + 1
        member = current.view.members[current.view.positions[peer]]
        return Fetch(peer, member.addresses, offer)

    def fetched(self, event: Fetched, now: float) -> list[Effect]:
        """A neighbor's share is here."""
        current = self._current
        if current is None or current.offers.get(event.peer) != event.offer or current.phase == "mixing":
            return [Emit(self._rejected(event.peer, event.offer.round, "late"))]
        reason = current.flaw(event)
        if reason:
            current.given_up.add(event.peer)
            return self._refuse(event.peer, event.offer, reason) + self.advance(now)
        current.received[event.peer], current.norms[event.peer] = event.vector, event.norm
        self._misses[event.peer] = 0
        arrived_s = now - current.began
        current.arrivals.append(arrived_s)
        self._arrived_s.note(event.peer, arrived_s, len(current.sources))
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
        self._round_s.append(now - current.began)
        following = next_round(
            current.number,
            lambda round: self._neighborhood.at(current.view, round).targets,
            self._round_of,
            self._furthest(),
        )
        if following > current.number + 1:
            effects.append(Emit(RoundsSkipped(peer=self._me, after=current.number, next=following)))
        effects.append(Save(following, event.vector))
        return effects + self.begin(following, event.vector, now)

    def snapshot_wanted(self, peer: PeerId, round: int) -> list[Effect]:
        """A newcomer asks for the model with which a round begins; it gets that of the first one not before it."""
        self._snapshots.wanted[peer] = round
        return self._offer_snapshots() if self._current is not None or self.finished else []

    def hashed(self, event: Hashed) -> list[Effect]:
        """The hash of a snapshot is known, and it can be offered."""
        return self._snapshots.hashed(event.token, event.payload, self._send)

    # Going on

    def advance(self, now: float) -> list[Effect]:
        """Train or mix if the time has come; called whenever something this peer waits for may have changed."""
        effects = self._served.done()
        current = self._current
        if current is None:
            return effects
        if current.phase == "waiting":
            return effects + self._train(current, now)
        if current.phase != "gathering" or (self._waiting(current) and now < self._deadline(current)):
            return effects
        for peer in current.open():
            self._misses[peer] = self._misses.get(peer, 0) + 1
            effects.append(Emit(self._rejected(peer, current.number, "missing")))
            if peer in current.offers:
                effects.append(Abandon(peer, current.offers[peer].token))
        mix = current.mix()
        current.phase, current.mixing_since = "mixing", now
        return [*effects, Emit(StateChanged(peer=self._me, state="mixing", round=current.number)), mix]

    def next_deadline(self) -> float | None:
        """When the running round stops waiting."""
        current = self._current
        if current is None:
            return None
        if current.phase == "waiting":
            return self._step_deadline(current)
        return self._deadline(current) if current.phase == "gathering" else None

    def _waiting(self, current: Gathering) -> list[PeerId]:
        """Neighbors whose share may still come in time."""
        return [
            peer
            for peer in current.open()
            if self._reachable(peer)
            and self._waited_for(peer)
            and (peer in current.offers or self._round_of(peer) <= current.number)
        ]

    def _waited_for(self, peer: PeerId) -> bool:
        """Not after two misses in a row, but for a try every few rounds; its share still counts if it comes in time."""
        misses = self._misses.get(peer, 0)
        return misses < _MISSES_BEFORE_NOT_WAITED_FOR or misses % _ROUNDS_BETWEEN_TRIES == 0

    def _round_of(self, peer: PeerId) -> int:
        """The latest round in which a peer is known to be."""
        return max(self._heard.get(peer, 0), self._ahead.get(peer, 0))

    def _furthest(self) -> int:
        """The latest round in which another is believed to be."""
        view = self._current.view if self._current is not None else self._view(self.round)
        return furthest(self.round, len(view) - 1)

    def _deadline(self, current: Gathering) -> float:
        parties = 1 + sum(self._reachable(peer) for peer in current.sources)
        before = self._arrived_s.but(current.sources)
        usual_s = sorted(before)[len(before) // 2] if before else None
        return current.began + wait_s(self._rules, current.arrivals, parties, usual_s)

    # Small pieces

    def _refuse(self, peer: PeerId, offer: Offer, reason: str) -> list[Effect]:
        return [
            Emit(self._rejected(peer, offer.round, reason)),
            *self._send(peer, Declined(token=offer.token, reason=reason)),
        ]

    def _rejected(self, peer: PeerId, round: int, reason: str) -> ShareRejected:
        return ShareRejected(peer=self._me, round=round, other=peer, reason=reason)

    def _offer_snapshots(self) -> list[Effect]:
        effects: list[Effect] = []
        token = f"snapshot-{self.round}.{self._instance}"
        for peer in self._snapshots.due(self.round):
            assert self.model is not None  # only asked of a peer that has begun
            effects += self._served.snapshot(self.round, token, self.model)
            offer = Offer(
                kind="snapshot",
                round=self.round,
                token=token,
                bytes=self._prepared.bytes,
                layout=self._prepared.layout,
                recipe=self._prepared.fingerprint,
            )
            effects += self._snapshots.offer(peer, offer, self._send)
        return effects

    def drop(self) -> list[Effect]:
        """These rounds are given up: nothing of them is served any more."""
        return self._served.drop()
