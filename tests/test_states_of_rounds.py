"""Rounds, early offers and shares that are served, as hypothesis's state machines: any sequence of what others may say.

What this peer's own driver says is true: it answers each request once, in any order. What others say is anything.
"""

from typing import Any

import msgspec
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from p2pfl.events import RoundFinished, ShareReceived
from p2pfl.graphs.named import build
from p2pfl.protocol.early import EarlyOffers
from p2pfl.protocol.membership import View
from p2pfl.protocol.messages import Declined, Member, Offer
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
    Send,
    Serve,
    Train,
    Trained,
)
from p2pfl.protocol.rounds import SynchronousRound
from p2pfl.protocol.served import AHEAD, Served
from p2pfl.types import PeerId

ME, OUTSIDER = "me000000", "outsider"
OTHERS = tuple(f"peer{number:04}" for number in range(5))
TALKERS = (*OTHERS, OUTSIDER)
ROUNDS = 12
BYTES = 100
SPOILED = ("not finite", "absurd", "broken off", "gone", "wrong payload")
FEW = settings(max_examples=80, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def member(peer: PeerId, seat: int) -> Member:
    return Member(peer, str(seat), peer, (f"10.0.0.{seat + 1}:7470",), 1, "member", 0)


ALL = tuple(member(peer, seat) for seat, peer in enumerate((ME, *OTHERS)))


class Rounds(RuleBasedStateMachine):
    """One peer's rounds, among peers of whom some lie."""

    @initialize(topology=st.sampled_from(["ring", "complete", "star", "exponential", "chain"]))
    def begin(self, topology: str) -> None:
        self.now = 0.0
        self.members = set(OTHERS)
        self.silent: set[PeerId] = set()
        self.training: Train | None = None
        self.mixing: Mix | None = None
        self.fetching: list[Fetch] = []
        self.abandoned: list[Fetch] = []
        self.hashing: list[str] = []
        self.serving: set[str] = set()
        self.good: dict[int, tuple[PeerId, int]] = {}  # a vector that may be mixed -> of whom, and in which round
        self.kept: list[torch.Tensor] = []  # so that no id is given twice
        self.counted: set[tuple[int, PeerId]] = set()
        self.last_mixed = -1
        rules = Rules(topology=lambda nodes, round: build(topology, nodes), rounds=ROUNDS, min_peers=2, max_wait_s=60.0)
        prepared = Prepared({}, "recipe", rules, "layout", (), BYTES, "", torch.zeros(3), "init")
        self.rounds = SynchronousRound(
            ME,
            "instance",
            prepared,
            self.view,
            lambda peer, message: [] if peer in self.silent else [Send(TALKERS.index(peer), message)],
            lambda peer: peer not in self.silent,
            lambda peer: [],
            lambda peer, round: peer in self.members,
        )
        self.take(self.rounds.begin(0, torch.zeros(3), self.now))

    def view(self, round: int) -> View:
        return View(tuple(one for one in ALL if one.peer == ME or one.peer in self.members))

    # What is asked of the driver

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Train():
                    assert self.training is None
                    self.training = effect
                case Mix():
                    self.mixes(effect)
                case Fetch(peer=peer, offer=offer):
                    assert peer in self.members | self.gone_now()
                    assert (offer.layout, offer.recipe, offer.bytes) == ("layout", "recipe", BYTES)
                    assert offer.round == self.rounds.round
                    self.fetching.append(effect)
                case Abandon(peer=peer, token=token):
                    given_up = [one for one in self.fetching if (one.peer, one.offer.token) == (peer, token)]
                    self.abandoned += given_up
                    self.fetching = [one for one in self.fetching if one not in given_up]
                case Serve(token=token):
                    self.serving.add(token)
                case Drop(token=token):
                    assert token in self.serving
                    self.serving.discard(token)
                case Hash(token=token):
                    self.hashing.append(token)
                case Emit(event=ShareReceived(round=round, other=other)):
                    assert (round, other) not in self.counted  # never twice
                    self.counted.add((round, other))
                case Emit(event=RoundFinished(round=round)):
                    assert round == self.last_mixed

    def gone_now(self) -> set[PeerId]:
        """Members of the round under way that have left the network since it began."""
        current: Any = self.rounds._current
        return set() if current is None else {one.peer for one in current.view.members}

    def mixes(self, mix: Mix) -> None:
        assert self.mixing is None
        assert mix.round > self.last_mixed  # no round goes backwards, none is mixed twice
        self.last_mixed = mix.round
        weights = [mix.own_weight, *(weight for weight, _ in mix.received)]
        assert abs(sum(weights) - 1.0) < 1e-12
        assert all(0.0 <= weight <= 1.0 for weight in weights)
        assert len(set(mix.parties)) == len(mix.parties) == len(mix.received)
        for party, (_, vector) in zip(mix.parties, mix.received, strict=True):
            assert self.good.get(id(vector)) == (party, mix.round)  # nothing that was refused, or is of another round
        self.mixing = mix

    # The driver's answers, in any order

    @precondition(lambda self: self.training is not None)
    @rule(seconds=st.sampled_from([0.1, 1.0, 30.0]), norm=st.sampled_from([0.0, 1.0]))
    def trained(self, seconds: float, norm: float) -> None:
        assert self.training is not None
        training, self.training = self.training, None
        self.now += seconds
        event = Trained(training.round, torch.ones(3), 10, 10, 0.5, seconds, b"h" * 32, norm)
        self.take(self.rounds.trained(event, self.now))

    @precondition(lambda self: self.mixing is not None)
    @rule()
    def mixed(self) -> None:
        assert self.mixing is not None
        mixing, self.mixing = self.mixing, None
        self.take(self.rounds.mixed(Mixed(mixing.round, torch.ones(3), 0.0, 0.01), self.now))

    @precondition(lambda self: self.fetching or self.abandoned)
    @rule(
        data=st.data(),
        kind=st.sampled_from(["good", "good", "not finite", "absurd", "broken off", "gone", "wrong payload"]),
    )
    def fetched(self, data: st.DataObject, kind: str) -> None:
        fetch = data.draw(st.sampled_from([*self.fetching, *self.abandoned]))
        (self.fetching if fetch in self.fetching else self.abandoned).remove(fetch)
        if kind in ("broken off", "gone", "wrong payload"):
            self.take(self.rounds.fetch_failed(FetchFailed(fetch.peer, fetch.offer, kind), self.now))
            return
        self.arrives(fetch, kind)

    def arrives(self, fetch: Fetch, kind: str) -> None:
        vector = torch.full((3,), {"good": 2.0, "not finite": float("nan"), "absurd": 1e30}[kind])
        self.kept.append(vector)
        if kind == "good":
            self.good[id(vector)] = (fetch.peer, fetch.offer.round)
        norm = float(vector.norm()) if kind != "not finite" else float("nan")
        event = Fetched(fetch.peer, fetch.offer, vector, kind != "not finite", norm)
        self.take(self.rounds.fetched(event, self.now))

    @precondition(lambda self: self.hashing)
    @rule()
    def hashed(self) -> None:
        self.take(self.rounds.hashed(Hashed(self.hashing.pop(), b"h" * 32)))

    @rule(seconds=st.sampled_from([0.0, 0.5, 5.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.rounds.advance(self.now))

    @rule(spoiled=st.sampled_from(["", "", "not finite", "absurd"]))
    def everybody_shares(self, spoiled: str) -> None:
        """As in most rounds: all offer, train and are fetched from; one share may be spoiled."""
        for peer in OTHERS:
            self.take(self.rounds.offered(peer, self.honest(peer, self.rounds.round, 0.1), self.now))
        if self.training is not None:
            self.trained(0.1, 1.0)
        for number, fetch in enumerate(self.fetching.copy()):
            if fetch in self.fetching:
                self.fetching.remove(fetch)
                self.arrives(fetch, "good" if number or not spoiled else spoiled)

    # What others say, true or not

    @rule(peer=st.sampled_from(OTHERS), train_s=st.sampled_from([0.1, 1.0]))
    def offers(self, peer: PeerId, train_s: float) -> None:
        """As an honest neighbor does."""
        self.take(self.rounds.offered(peer, self.honest(peer, self.rounds.round, train_s), self.now))

    @rule(
        peer=st.sampled_from(TALKERS),
        ahead=st.sampled_from([-5, -1, 0, 0, 1, 2, 4, 5, 1 << 39]),
        change=st.sampled_from(["", "", "layout", "recipe", "bytes", "view", "token"]),
        train_s=st.sampled_from([0.0, 1e9]),
    )
    def lies(self, peer: PeerId, ahead: int, change: str, train_s: float) -> None:
        offer = self.honest(peer, max(0, self.rounds.round + ahead), train_s)
        wrong: dict[str, Any] = {"bytes": 1 << 44}
        if change:
            offer = msgspec.structs.replace(offer, **{change: wrong.get(change, "another")})
        self.take(self.rounds.offered(peer, offer, self.now))

    def honest(self, peer: PeerId, round: int, train_s: float) -> Offer:
        view = self.view(round).digest
        return Offer("share", round, f"{round}.{peer}", BYTES, "layout", "recipe", view, train_s=train_s)

    @rule(peer=st.sampled_from(TALKERS), round=st.sampled_from([0, 1, 3, 8, 1 << 40]))
    def tells_a_round(self, peer: PeerId, round: int) -> None:
        self.rounds.heard(peer, round)
        self.take(self.rounds.advance(self.now))

    @rule(peer=st.sampled_from(TALKERS), back=st.integers(0, 5), reason=st.sampled_from(["late", "wrong size", "?"]))
    def declines(self, peer: PeerId, back: int, reason: str) -> None:
        token = f"{max(0, self.rounds.round - back)}.instance"
        self.rounds.declined(peer, Declined(token, reason))
        self.take(self.rounds.advance(self.now))

    @rule(peer=st.sampled_from(TALKERS), ahead=st.sampled_from([-1, 0, 1, 1 << 39]))
    def wants_a_snapshot(self, peer: PeerId, ahead: int) -> None:
        self.take(self.rounds.snapshot_wanted(peer, max(0, self.rounds.round + ahead)))

    @rule(peer=st.sampled_from(OTHERS))
    def is_gone(self, peer: PeerId) -> None:
        self.silent.add(peer)
        self.rounds.forget(peer)
        self.take(self.rounds.advance(self.now))

    @rule(peer=st.sampled_from(OTHERS))
    def is_back(self, peer: PeerId) -> None:
        self.silent.discard(peer)
        self.take(self.rounds.relinked(peer))

    @rule(peer=st.sampled_from(OTHERS))
    def leaves_or_joins(self, peer: PeerId) -> None:
        self.members ^= {peer}

    # What always holds

    @invariant()
    def no_more_is_kept_than_allowed(self) -> None:
        rounds: Any = getattr(self, "rounds", None)
        if rounds is None:
            return
        shares = {token for token in self.serving if not token.startswith("snapshot")}
        assert len(shares) <= AHEAD
        assert len(self.serving - shares) <= 3
        assert all(count <= AHEAD for count in rounds._early.counts().values())
        for known in (rounds._misses, rounds._heard, rounds._ahead, rounds._snapshots.wanted):
            assert set(known) <= set(TALKERS)

    @invariant()
    def somebody_is_to_act(self) -> None:
        """A round waits for its driver, or for a time: it never stands still for ever."""
        rounds = getattr(self, "rounds", None)
        if rounds is None or rounds.finished:
            return
        assert self.training is not None or self.mixing is not None or rounds.next_deadline() is not None

    def teardown(self) -> None:
        """Whatever was said before: if nobody speaks any more, it goes on to the last round."""
        rounds = getattr(self, "rounds", None)
        for _ in range(20 * ROUNDS if rounds is not None else 0):
            if rounds.finished:
                break
            if self.training is not None:
                self.trained(0.1, 1.0)
            elif self.mixing is not None:
                self.mixed()
            else:
                deadline = rounds.next_deadline()
                assert deadline is not None
                self.now = max(self.now, deadline)
                self.take(rounds.advance(self.now))
        assert rounds is None or rounds.finished


class Mailbox(RuleBasedStateMachine):
    """Offers of rounds to come, against a plain account of them."""

    def __init__(self) -> None:
        super().__init__()
        self.early = EarlyOffers()
        self.held: dict[PeerId, dict[int, Offer]] = {}

    @rule(peer=st.sampled_from(OTHERS), round=st.integers(0, 9), token=st.sampled_from("abc"))
    def hold(self, peer: PeerId, round: int, token: str) -> None:
        offer = Offer("share", round, token, BYTES, "layout", "recipe")
        self.early.hold(peer, offer)
        held = self.held.setdefault(peer, {})
        held[round] = offer
        while len(held) > AHEAD:
            del held[min(held)]

    @rule(round=st.integers(0, 9))
    def due(self, round: int) -> None:
        expected = {peer: held[round] for peer, held in self.held.items() if round in held}
        assert self.early.due(round) == expected
        self.held = {peer: {of: one for of, one in held.items() if of > round} for peer, held in self.held.items()}

    @rule(peer=st.sampled_from(OTHERS))
    def forget(self, peer: PeerId) -> None:
        self.early.forget(peer)
        self.held.pop(peer, None)

    @invariant()
    def agrees(self) -> None:
        expected = [(peer, held[round]) for peer, held in self.held.items() for round in sorted(held)]
        assert sorted(self.early.all(), key=str) == sorted(expected, key=str)
        assert self.early.counts() == {peer: len(held) for peer, held in self.held.items() if held}


class Shelf(RuleBasedStateMachine):
    """Shares that are served, against a plain account of who may still need them."""

    def __init__(self) -> None:
        super().__init__()
        self.served = Served()
        self.round = 0
        self.needed: dict[int, set[PeerId]] = {}
        self.out: set[str] = set()

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Serve(token=token):
                    assert token not in self.out
                    self.out.add(token)
                case Drop(token=token):
                    self.out.remove(token)  # KeyError: dropped twice, or never served

    def tidy(self) -> None:
        self.take(self.served.done())
        self.needed = {round: peers for round, peers in self.needed.items() if peers}

    @rule(peers=st.sets(st.sampled_from(OTHERS)), skip=st.sampled_from([1, 1, 1, 2, 9]))
    def share(self, peers: set[PeerId], skip: int) -> None:
        self.round += skip
        offer = Offer("share", self.round, f"{self.round}.me", BYTES, "layout", "recipe")
        self.take(self.served.share(offer, torch.zeros(1), tuple(sorted(peers)), set(peers)))
        self.needed = {round: some for round, some in self.needed.items() if round > self.round - AHEAD}
        self.needed[self.round] = set(peers)

    @rule(peer=st.sampled_from(TALKERS), round=st.sampled_from([0, 1, 2, 5, 10, 1 << 40]))
    def passed(self, peer: PeerId, round: int) -> None:
        self.served.passed(peer, round)
        for number, peers in self.needed.items():
            if number < round:
                peers.discard(peer)
        self.tidy()

    @rule(peer=st.sampled_from(TALKERS), back=st.integers(-1, 5))
    def declined(self, peer: PeerId, back: int) -> None:
        self.served.declined(peer, f"{self.round - back}.me")
        self.needed.get(self.round - back, set()).discard(peer)
        self.tidy()

    @rule(round=st.integers(0, 3))
    def snapshot(self, round: int) -> None:
        self.take(self.served.snapshot(round, f"snapshot-{round}", torch.zeros(1)))

    @rule(before=st.integers(0, 4))
    def forget(self, before: int) -> None:
        self.take(self.served.forget_snapshots(before))
        assert not {token for token in self.out if token.startswith("s") and int(token[-1]) < before}

    @invariant()
    def agrees(self) -> None:
        shares = {token for token in self.out if not token.startswith("snapshot")}
        assert shares == {f"{round}.me" for round in self.needed}
        assert len(shares) <= AHEAD
        for peer in OTHERS:
            offered = [offer.round for offer in self.served.offers_to(peer)]
            assert offered == sorted(round for round, peers in self.needed.items() if peer in peers)

    def teardown(self) -> None:
        self.take(self.served.drop())
        assert self.out == set()


for machine in (Rounds, Mailbox, Shelf):
    machine.TestCase.settings = FEW
TestRounds, TestMailbox, TestShelf = Rounds.TestCase, Mailbox.TestCase, Shelf.TestCase
