"""Rounds whose neighbors change, or whose links go one way: whole networks in virtual time."""

import random
from contextlib import suppress
from functools import partial

import msgspec
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from virtual import HAND_MADE, Network, Node, network, scheduled

from p2pfl.errors import TopologyError
from p2pfl.events import RoundFinished, RoundsSkipped, ViewTaken, Warned
from p2pfl.graphs.mixing import mixing_matrix
from p2pfl.protocol.messages import Message, Offer, Status
from p2pfl.protocol.served import AHEAD
from p2pfl.types import Setting

SCHEDULES = (
    "one-peer-exponential",
    "one-peer-hypercube",
    "base",
    "base:k=2",
    "random-matching",
    "epidemic-oracle",
    "epidemic-local",
    "equi-dynamic",
    "moshpit",
    "exponential",
)
ALL = [*(spec for spec in HAND_MADE if spec != "pairs"), *SCHEDULES]
SOME = ["one-way-ring", "matchings", "one-peer-exponential", "base", "epidemic-local", "moshpit"]


def dense(spec: str, net: Network, rounds: int) -> np.ndarray:
    """X ← W_t (X − 0.3 (X − goal)) in float64."""
    goal = np.stack([node.target.numpy() for node in net.nodes]).astype(np.float64)
    models = np.zeros_like(goal)
    schedule = scheduled(spec, len(net.nodes))
    for round in range(rounds):
        models = mixing_matrix(schedule.at(round)) @ (models - 0.3 * (models - goal))
    return models


def restless(net: Network, seed: int, mean_s: float = 1.0) -> None:
    """Every training takes another time."""
    law = random.Random(seed)
    for node in net.nodes:
        node.train_s = partial(lambda own, round: own.expovariate(1 / mean_s), random.Random(law.random()))


def begun(spec: str, peers: int, latency_s: float, seed: int, **more: Setting) -> Network:
    """A network in its first round, in which from now on every message and every training takes another time."""
    calm = [0.01]
    net = network(peers, lambda rng: calm[0] if calm else rng.expovariate(1 / latency_s), seed, topology=spec, **more)
    restless(net, seed)
    net.run(when=lambda: all(node.core.state == "running" for node in net.nodes))
    calm.clear()
    return net


def sizes(spec: str) -> tuple[int, ...]:
    """The numbers of peers to try a schedule with."""
    return (2, 4, 8) if spec == "one-peer-hypercube" else tuple(range(2, 10))


@pytest.mark.parametrize("spec", ALL)
def test_the_sizes_tried_are_those_that_the_schedule_serves(spec: str) -> None:
    served = []
    for peers in range(2, 10):
        with suppress(TopologyError):
            scheduled(spec, peers)
            served.append(peers)
    assert tuple(served) == sizes(spec)


@settings(max_examples=80, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(
    st.sampled_from([(spec, peers) for spec in ALL for peers in sizes(spec)]),
    st.integers(0, 1 << 30),
    st.sampled_from(
        [0.001, 0.02, 0.1]
    ),  # the mean one way; of a second and more the detector takes the living for dead
    st.integers(1, 14),
)
def test_whatever_the_delays_every_share_counts_and_the_run_is_the_dense_product(
    case: tuple[str, int], seed: int, latency_s: float, rounds: int
) -> None:
    spec, peers = case
    net = begun(spec, peers, latency_s, seed, rounds=rounds, patience=1e6, max_wait_s=1e6)
    net.run()
    schedule = scheduled(spec, peers)
    for position, node in enumerate(net.nodes):
        assert node.rounds() == list(range(rounds))
        assert node.rejected() == {}
        expected = [len(schedule.at(round).sources(position)) for round in range(rounds)]
        assert [len(node.mixes[round].parties) for round in range(rounds)] == expected
        assert node.most_bodies <= AHEAD
        assert node.done is not None
        assert node.done.error == ""
    assert np.abs(dense(spec, net, rounds) - np.array([node.numbers() for node in net.nodes])).max() < 1e-5


@pytest.mark.parametrize(("spec", "peers"), [(spec, 5 if 5 in sizes(spec) else 8) for spec in ALL])
def test_bodies_do_not_pile_up_for_a_peer_that_takes_its_time(spec: str, peers: int) -> None:
    net = network(peers, rounds=12, topology=spec, patience=1e6, max_wait_s=1e6)
    net[2].train_s = lambda round: 60.0 if round == 3 else 1.0
    ahead = [0]

    def look(sender: Node, receiver: Node, message: Message) -> Message:
        ahead[0] = max(ahead[0], max(node.core.round for node in net.nodes) - net[2].core.round)
        return message

    net.alter.append(look)
    net.run()
    assert all(node.rounds() == list(range(12)) and node.rejected() == {} for node in net.nodes)
    assert max(node.most_bodies for node in net.nodes) <= AHEAD
    assert ahead[0] <= 2 * AHEAD


def test_nobody_goes_further_ahead_of_its_target_than_it_keeps_shares_for() -> None:
    net = network(9, rounds=20, topology="one-way-ring", patience=1e6, max_wait_s=1e6)
    net[4].train_s = lambda round: 100.0 if round == 2 else 1.0
    net.run(until=50.0)
    # The one after it has no share of round 2; each further one goes a round further, but not 4 ahead of the next.
    assert [node.core.round for node in net.nodes] == [6, 7, 8, 6, 2, 2, 3, 4, 5]
    assert net[3].core._course.rounds._current.phase == "waiting"
    assert net[3].most_bodies == AHEAD
    net.run()
    assert all(node.rounds() == list(range(20)) and node.rejected() == {} for node in net.nodes)


def test_a_peer_left_over_by_the_matching_trains_alone_and_goes_on() -> None:
    net = network(3, rounds=8, topology="matchings")
    net.run()
    alone = [(node.name, round) for node in net.nodes for round in range(8) if not node.mixes[round].parties]
    assert len(alone) == 8
    for node in net.nodes:
        assert node.rounds() == list(range(8))
        finished = {event.round: event for event in node.of(RoundFinished)}
        for name, round in alone:
            if name == node.name:
                assert (finished[round].neighbors, finished[round].missing) == (0, 0)
                assert node.mixes[round].own_weight == 1.0


def test_peers_without_neighbors_for_many_rounds_stay_together() -> None:
    net = network(4, rounds=14, topology="blinking", patience=1e6, max_wait_s=1e6)
    net[1].train_s = lambda round: 10.0
    net.run(until=30.0)
    # Each keeps step with the next by seat.
    assert [node.core.round for node in net.nodes] == [6, 2, 7, 7]
    net.run()
    assert all(node.rounds() == list(range(14)) and node.rejected() == {} for node in net.nodes)


def test_a_view_is_told_with_the_name_of_the_schedule() -> None:
    net = network(4, rounds=5, topology="matchings")
    net.run()
    assert [[view.topology for view in node.of(ViewTaken)] for node in net.nodes] == [["matchings"]] * 4


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("spec", SOME)
def test_a_peer_killed_in_a_round_holds_up_nobody_for_long(spec: str, silent: bool) -> None:
    net = network(5, rounds=40, topology=spec)
    net.run_to_round(3)
    net.run(until=net.now + 0.5)
    net.kill(net[2], silent=silent)
    net.run()
    for node in net.nodes:
        if node is not net[2]:
            assert node.rounds() == list(range(40))
            assert node.of(ViewTaken)[-1].members == ("n0", "n1", "n3", "n4")
            assert {reason for _, _, reason in node.rejected()} <= {"missing", "broken off", "late", "view mismatch"}
            assert max(round for round, _, _ in [*node.rejected(), (0, "", "")]) < 30
            assert node.most_bodies <= AHEAD


@pytest.mark.parametrize("spec", SOME)
def test_a_slow_peer_trains_as_much_as_fits_and_the_others_keep_their_pace(spec: str) -> None:
    net, even = (network(5, rounds=60, topology=spec) for _ in range(2))
    net[2].train_s = lambda round: 12.0
    net.run()
    even.run()
    assert net.now < 3 * even.now + 60
    slow = net[2].of(RoundFinished)[-10:]
    assert {event.reduced for event in slow} == {True}
    late = [node.rejected() for node in net.nodes if node is not net[2]]
    assert sum(count for one in late for (round, _, _), count in one.items() if round >= 40) <= 6
    for node in net.nodes:
        assert node.rounds()[-1] == 59
        assert node.most_bodies <= AHEAD
        if node is not net[2]:  # who waited for the slow one at first, not knowing, skips a little like it
            assert len(node.rounds()) >= 44
            assert node.rounds()[-20:] == list(range(40, 60))


@pytest.mark.parametrize("spec", SOME)
def test_a_newcomer_takes_part_from_a_later_round_on_and_nobody_misses_anything(spec: str) -> None:
    net = network(4, rounds=20, topology=spec)
    net.run_to_round(5)
    late = net.add(4, at=net.now, asked={})
    net.run()
    first = late.of(ViewTaken)[0].round
    assert late.rounds() == list(range(first, 20))
    assert first <= 5 + AHEAD + 3
    for node in net.nodes[:4]:
        assert node.rounds() == list(range(20))
        assert node.of(ViewTaken)[-1].members == ("n0", "n1", "n2", "n3", "n4")
    assert all(node.rejected() == {} for node in net.nodes)


@pytest.mark.parametrize("spec", SOME)
def test_a_peer_that_was_suspended_catches_up(spec: str) -> None:
    net = network(6, rounds=80, topology=spec, max_wait_s=20.0)
    net[2].train_s = lambda round: 60.0 if round == 5 else 1.0
    net.run()
    assert [event.after for event in net[2].of(RoundsSkipped)][:1] != []
    assert net[2].of(RoundsSkipped)[-1].next < 79
    for node in net.nodes:
        assert node.rounds()[-20:] == list(range(60, 80))
        assert node.most_bodies <= AHEAD
        assert sum(event.reduced for event in node.of(RoundFinished)[-20:]) <= 2
        # Those who had given it up wait for it again once it was only just late for each.
        assert all(reason in ("missing", "late") for round, _, reason in node.rejected() if round >= 60)
    assert sum(event.missing for node in net.nodes for event in node.of(RoundFinished)[-20:]) <= 5


def claim(liar: Node, round: int, until_s: tuple[float, float], net: Network, kind: type[Message]) -> None:
    """For a while every message of a kind from a peer tells of a round that is far away."""

    def alter(sender: Node, receiver: Node, message: Message) -> Message | None:
        if sender is liar and isinstance(message, kind) and until_s[0] < net.now < until_s[1]:
            lies[0] += 1
            return msgspec.structs.replace(message, round=round)
        return message

    lies = [0]
    net.alter.append(alter)


@pytest.mark.parametrize("kind", [Status, Offer])
@pytest.mark.parametrize(
    ("spec", "peers", "liar"),
    [
        ("one-way-ring", 9, 4),
        ("chain", 5, 1),
        ("ring", 2, 1),
        ("random-matching", 2, 1),
        ("one-peer-exponential", 6, 4),
    ],
)
def test_a_lie_about_a_round_costs_a_few_rounds_and_not_the_run(
    spec: str, peers: int, liar: int, kind: type[Message]
) -> None:
    net = network(peers, rounds=120, topology=spec)
    claim(net[liar], 10**6, (20.0, 21.5), net, kind)
    net.run()
    for node in net.nodes:
        assert node.core.round == 120
        assert node.rounds()[-1] == 119
        assert len(node.rounds()) >= 80
        assert node.rounds()[-40:] == list(range(80, 120))
        assert all(event.next - event.after <= max(peers, 2 * AHEAD) for event in node.of(RoundsSkipped))


def test_a_view_of_a_size_that_the_schedule_cannot_serve_falls_back_to_a_ring_and_says_so() -> None:
    net = network(4, rounds=12, topology="pairs")
    net.run_to_round(3)
    net.add(4, at=net.now, asked={})
    net.run()
    for node in net.nodes:
        assert node.of(ViewTaken)[-1].topology == "ring"
        assert [warned.text for warned in node.of(Warned)] == [
            "pairs need an even number, not 5; the 5 peers go on as a ring"
        ]
        assert node.rejected() == {}


@pytest.mark.parametrize("spec", ["matchings", "one-peer-exponential"])
def test_who_was_cut_off_and_got_further_waits_for_the_others_and_is_served_again(spec: str) -> None:
    net = network(6, rounds=0, topology=spec)
    net.run_to_round(3)
    net[4].train_s = net[5].train_s = lambda round: 0.2  # the smaller part gets further, and waits until the others do
    net.partition(net[4], net[5])
    net.run(until=net.now + 40.0)
    ahead = [node.core.round for node in net.nodes[4:]]
    assert min(ahead) > max(node.core.round for node in net.nodes[:4]) + 10
    net.heal()
    net.run(until=net.now + 20.0)
    assert [node.core.state for node in net.nodes[4:]] == ["joining"] * 2
    net.run(until=net.now + 300.0)
    assert {node.of(ViewTaken)[-1].members for node in net.nodes} == {("n0", "n1", "n2", "n3", "n4", "n5")}
    last = min(node.core.round for node in net.nodes)
    assert last > max(ahead) + 20
    for node in net.nodes:
        assert node.rounds() == sorted(set(node.rounds()))  # no round twice, none backwards
        assert all(round < last - 10 for round, _, _ in node.rejected())
        assert node.most_bodies <= AHEAD + 2  # snapshots of two rounds
