import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from virtual import Network, Node, network

from p2pfl.events import RoundFinished, RoundsSkipped, ShareReceived, Started, ViewTaken
from p2pfl.graphs.mixing import mixing_matrix
from p2pfl.graphs.named import build
from p2pfl.layout import Vector
from p2pfl.protocol.messages import Message, Offer, SnapshotWanted, Status
from p2pfl.protocol.served import AHEAD

AXES = [[10.0, 0.0, 0.0], [0.0, 10.0, 0.0], [0.0, 0.0, 10.0]]  # one training step from 0 is 3 along the axis


def three(**settings: int | float | str) -> Network:
    """Three peers on a ring, each drawn along an axis of its own."""
    net = Network(min_peers=3, **settings)
    for index in range(3):
        net.add(index, target=AXES[index])
    return net


def share(sender: Node, message: Message, round: int) -> bool:
    return isinstance(message, Offer) and message.kind == "share" and message.round == round


def lose(loser: Node, *rounds: int) -> Callable[[Node, Node, Message], Message | None]:
    """Drop a peer's offers of some rounds."""

    def alter(sender: Node, receiver: Node, message: Message) -> Message | None:
        return None if sender is loser and any(share(sender, message, round) for round in rounds) else message

    return alter


def change(liar: Node, round: int, **fields: object) -> Callable[[Node, Node, Message], Message | None]:
    """Change fields of a peer's offer of one round."""

    def alter(sender: Node, receiver: Node, message: Message) -> Message | None:
        if sender is liar and share(sender, message, round):
            return msgspec.structs.replace(message, **fields)
        return message

    return alter


def waits(node: Node) -> list[float]:
    return [round(event.wait_s, 1) for event in node.of(RoundFinished)]


def bits(net: Network) -> list[bytes]:
    return [node.core.model.numpy().tobytes() for node in net.nodes if node.core.model is not None]


def test_three_peers_on_a_ring_average_what_each_learned() -> None:
    net = three(rounds=1)
    net.run()
    for node in net.nodes:
        assert node.numbers() == [1.0, 1.0, 1.0]
        assert node.rounds() == [0]
        assert node.saves[1].tolist() == [1.0, 1.0, 1.0]
        [finished] = node.of(RoundFinished)
        assert (finished.steps, finished.neighbors, finished.missing, finished.reduced) == (10, 2, 0, False)
        assert finished.neighbor_distance == 18.0
        assert finished.train_s == 1.0
        assert node.done is not None
        assert node.done.error == ""


def test_latency_changes_no_bit() -> None:
    results, apart = [], []
    for latency, seed in ((lambda rng: rng.expovariate(100), 1), (lambda rng: rng.expovariate(4), 99)):
        net = network(8, latency, seed, rounds=12, patience=1000.0)
        for node in net.nodes:
            node.train_s = lambda round: 0.05
        net.run()
        assert all(node.rounds() == list(range(12)) and not node.rejected() for node in net.nodes)
        results.append(bits(net))
        apart.append(net.apart)
    assert results[0] == results[1]
    assert max(apart) >= 1  # otherwise nothing was shown
    assert len(results[0]) == 8


@pytest.mark.parametrize(("spec", "peers"), [("ring", 7), ("torus", 9), ("star", 5), ("exponential", 8), ("chain", 4)])
def test_a_run_is_the_dense_product(spec: str, peers: int) -> None:
    net = network(peers, lambda rng: rng.expovariate(10), 3, rounds=6, topology=spec, patience=1000.0)
    net.run()
    matrix = mixing_matrix(build(spec, peers))
    goal = np.stack([node.target.numpy() for node in net.nodes]).astype(np.float64)
    dense = np.zeros((peers, 3))
    for _ in range(6):
        dense = matrix @ (dense - 0.3 * (dense - goal))
    assert np.abs(dense - np.array([node.numbers() for node in net.nodes])).max() < 1e-6
    assert np.abs(dense).max() > 1


def test_order_of_seats_not_of_ids_or_arrival_decides_the_ring() -> None:
    net = Network(min_peers=4, rounds=1, network="seats")
    for index, seat in enumerate(["10", "9", "lab", "2"]):
        net.add(index, seat=seat)
    net.run()
    assert net[0].of(ViewTaken)[0].members == ("n3", "n1", "n0", "n2")
    assert net[0].mixes[0].parties == (net[1].peer, net[2].peer)


def test_missing_neighbor_weight_goes_to_self() -> None:
    net = three(rounds=1)
    net.alter.append(lose(net[2], 0))
    net.run()
    assert net[0].numbers() == [2.0, 1.0, 0.0]
    assert net[1].numbers() == [1.0, 2.0, 0.0]
    assert net[2].numbers() == [1.0, 1.0, 1.0]
    assert net[0].mixes[0].own_weight == pytest.approx(2 / 3, abs=1e-15)
    assert net[0].rejected() == {(0, net[2].peer, "missing"): 1}
    assert net[0].of(RoundFinished)[0].missing == 1


@pytest.mark.parametrize(("usual", "slow", "waited"), [(1.0, 50.0, 2.1), (10.0, 500.0, 20.1), (0.1, 50.0, 1.9)])
def test_deadline_follows_the_median_neighbor(usual: float, slow: float, waited: float) -> None:
    net = three(rounds=1)
    for node, seconds in zip(net.nodes, (usual, usual, slow), strict=True):
        node.train_s = lambda round, seconds=seconds: seconds
    net.run()
    assert waits(net[0]) == [waited]  # patience 3 times the median, at least 2 s, its own training not among the wait
    assert net[0].rejected()[0, net[2].peer, "missing"] == 1


def test_a_neighborhood_that_is_slow_as_a_whole_is_waited_for_until_the_longest_wait() -> None:
    net = three(rounds=1, max_wait_s=60.0)
    net[1].train_s = net[2].train_s = lambda round: 500.0
    net.run()
    assert waits(net[0]) == [59.0]


def test_a_peer_that_misses_twice_is_not_waited_for_until_it_offers_in_time() -> None:
    net = three(rounds=8)
    net[2].train_s = lambda round: 0.5
    net.alter.append(lose(net[2], 0, 1, 2, 3, 5))
    # Nor does it say that it is ahead, which would end the waiting.
    net.alter.append(lambda sender, _, message: None if sender is net[2] and isinstance(message, Status) else message)
    net.run()
    # In round 5 only until it offers a share of round 6.
    assert [seconds > 0.5 for seconds in waits(net[0])] == [True, True, False, False, False, True, False, False]
    received = [event.round for event in net[0].of(ShareReceived) if event.other == net[2].peer]
    assert received == [4, 6, 7]
    assert [round for round, peer, reason in net[0].rejected() if reason == "missing"] == [0, 1, 2, 3, 5]


def test_a_slow_peer_skips_to_its_neighbors_round_trains_as_much_as_fits_and_counts() -> None:
    net = three(rounds=30)
    net[2].train_s = lambda round: 8.0
    net.run()
    slow = net[2]
    assert [event.after for event in slow.of(RoundsSkipped)] == [0]
    assert slow.rounds() == [0, *range(slow.rounds()[1], 30)]
    assert slow.rounds()[1] >= 2
    assert {(event.steps, event.reduced) for event in slow.of(RoundFinished)[1:]} == {(1, True)}
    counted = [event.round for event in net[0].of(ShareReceived) if event.other == slow.peer]
    assert counted[-15:] == list(range(15, 30))
    assert net[0].rounds() == list(range(30))
    assert not any(event.reduced for event in net[0].of(RoundFinished))


def test_a_peer_a_little_slower_than_its_neighbors_catches_up_after_a_mishap() -> None:
    net = three(rounds=30)
    net[2].train_s = lambda round: 10.0 if round == 0 else 1.2
    net.run()
    counted = [event.round for event in net[0].of(ShareReceived) if event.other == net[2].peer]
    assert counted[-20:] == list(range(10, 30))
    assert not any(event.reduced for event in net[2].of(RoundFinished) if event.round >= 10)


REFUSALS: dict[str, dict[str, object]] = {
    "wrong size": {"bytes": 101},
    "schema mismatch": {"layout": "other"},
    "recipe mismatch": {"recipe": "other"},
    "view mismatch": {"view": "0" * 16},
    "gone": {"token": "nowhere.at all"},
}


@pytest.fixture(scope="module")
def without() -> list[list[float]]:
    """Models of the first two peers when nothing of the third one's share of round 1 comes."""
    net = three(rounds=3)
    net.alter.append(lose(net[2], 1))
    net.run()
    assert net[0].rejected() == {(1, net[2].peer, "missing"): 1}
    return [node.saves[round].tolist() for node in net.nodes[:2] for round in (1, 2, 3)]


def compare(net: Network, reason: str, without: list[list[float]]) -> None:
    net.run()
    for node in net.nodes[:2]:
        assert node.rejected() == {(1, net[2].peer, reason): 1}
    assert net[2].rejected() == Counter()
    assert waits(net[0]) == [0.0, 0.0, 0.0]  # a share that was refused is not waited for
    assert [node.saves[round].tolist() for node in net.nodes[:2] for round in (1, 2, 3)] == without


@pytest.mark.parametrize("reason", REFUSALS)
def test_a_share_that_does_not_fit_is_refused_and_changes_nothing(reason: str, without: list[list[float]]) -> None:
    net = three(rounds=3)
    net.alter.append(change(net[2], 1, **REFUSALS[reason]))
    compare(net, reason, without)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_share_that_is_not_finite_is_refused_and_changes_nothing(value: float, without: list[list[float]]) -> None:
    def poison(owner: Node, fetcher: Node, offer: Offer, vector: Vector) -> Vector | str:
        return torch.tensor([0.0, value, 0.0]) if owner is net[2] and offer.round == 1 else vector

    net = three(rounds=3)
    net.spoil.append(poison)
    compare(net, "not finite", without)


def test_a_fetch_that_breaks_off_is_tried_three_times(without: list[list[float]]) -> None:
    tries: Counter[str] = Counter()

    def cut(owner: Node, fetcher: Node, offer: Offer, vector: Vector) -> Vector | str:
        if owner is net[2] and offer.round == 1:
            tries[fetcher.name] += 1
            return "broken off"
        return vector

    net = three(rounds=3)
    net.spoil.append(cut)
    compare(net, "broken off", without)
    assert tries == {"n0": 3, "n1": 3}


def test_a_fetch_that_breaks_off_once_costs_nothing() -> None:
    cuts = ["broken off"]
    net = three(rounds=1)
    net.spoil.append(lambda owner, fetcher, offer, vector: cuts.pop() if cuts else vector)
    net.run()
    assert [node.numbers() for node in net.nodes] == [[1.0, 1.0, 1.0]] * 3
    assert not cuts


def caught(net: Network) -> dict[tuple[str, int], Offer]:
    """The offers of every peer by name and round, filled while the network runs."""
    offers: dict[tuple[str, int], Offer] = {}

    def look(sender: Node, receiver: Node, message: Message) -> Message | None:
        if isinstance(message, Offer) and message.kind == "share":
            offers[sender.name, message.round] = message
        return message

    net.alter.append(look)
    return offers


def test_a_late_share_is_refused_once_and_changes_nothing() -> None:
    net, plain = three(rounds=4), three(rounds=4)
    offers = caught(net)
    net.run_to_round(2)
    net.tell(net[2], net[0], offers["n2", 1])  # has counted, and is repeated on every new connection
    net.tell(net[2], net[0], msgspec.structs.replace(offers["n2", 1], token="other"))
    net.run()
    plain.run()
    assert net[0].rejected() == {(1, net[2].peer, "late"): 1}
    assert bits(net) == bits(plain)


def test_an_offer_that_comes_again_is_no_second_share() -> None:
    net, plain = three(rounds=3), three(rounds=3)

    def twice(sender: Node, receiver: Node, message: Message) -> Message | None:
        if sender is net[2] and share(sender, message, 1):
            net.alter.remove(twice)
            net.tell(sender, receiver, message)
            net.alter.append(twice)
        return message

    net.alter.append(twice)
    net.run()
    plain.run()
    assert net[0].rejected() == Counter()
    assert len([e for e in net[0].of(ShareReceived) if e.round == 1]) == 2
    assert bits(net) == bits(plain)


def test_a_second_share_of_a_round_is_refused_and_the_first_counts() -> None:
    net, plain = three(rounds=3), three(rounds=3)

    def other_too(sender: Node, receiver: Node, message: Message) -> Message | None:
        if sender is net[2] and receiver is net[0] and share(sender, message, 1):
            net.alter.remove(other_too)
            net.at(net.now + 0.005, lambda: net.tell(sender, receiver, msgspec.structs.replace(message, token="b")))
        return message

    net.alter.append(other_too)
    net[2].train_s = lambda round: 0.5
    net.run()
    plain.run()
    assert net[0].rejected() == {(1, net[2].peer, "second share"): 1}
    assert bits(net) == bits(plain)


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_share_of_a_peer_that_is_no_neighbor_is_refused(ahead: int) -> None:
    net, plain = network(5, rounds=4), network(5, rounds=4)
    offers = caught(net)
    net.run_to_round(2)
    foreign = msgspec.structs.replace(offers["n2", 1], round=2 + ahead, token="x")
    net.tell(net[2], net[0], foreign)
    net.run()
    plain.run()
    assert net[0].rejected() == {(2 + ahead, net[2].peer, "foreign"): 1}
    assert bits(net) == bits(plain)


def test_a_share_one_round_ahead_is_held_until_its_round() -> None:
    net = three(rounds=3)
    for node, seconds in zip(net.nodes, (0.1, 0.1, 1.0), strict=True):
        node.train_s = lambda round, seconds=seconds: seconds
    net[0].bodies["1.instance0"] = torch.tensor([9.0, 9.0, 9.0])

    def ahead(sender: Node, receiver: Node, message: Message) -> Message | None:
        if sender is net[0] and receiver is net[2] and share(sender, message, 0):
            net.alter.clear()
            net.tell(net[0], net[2], msgspec.structs.replace(message, round=1, token="1.instance0"))
            net.alter.append(lose(net[0], 1))
        return message

    net.alter.append(ahead)
    net.run_to_round(2, net[2])
    assert net[2].mixes[0].parties == (net[0].peer, net[1].peer)
    assert net[2].mixes[1].parties == (net[0].peer, net[1].peer)
    assert net[2].rejected() == Counter()


def test_offers_of_absurd_rounds_are_kept_within_bounds() -> None:
    net = three(rounds=30)
    offers = caught(net)
    net.run_to_round(1)
    for number in (*range(2, 8), *range(1000, 1050)):
        net.tell(net[2], net[0], msgspec.structs.replace(offers["n2", 0], round=number, token=f"{number}.x"))
    net.run(until=net.now + 0.1)
    rounds = net[0].core._course.rounds
    assert [offer.round for _, offer in rounds._early.all()] == [4, 5, 6, 7]
    assert rounds._round_of(net[2].peer) == 1049
    net.tell(net[2], net[0], Status(1))
    net.run(until=net.now + 0.1)
    assert rounds._round_of(net[2].peer) == 1  # whatever it said before
    net.run()
    assert net[0].rounds()[-5:] == list(range(25, 30))


def test_what_a_peer_told_of_itself_is_forgotten_when_it_leaves() -> None:
    net = three(rounds=30)
    offers = caught(net)
    net.run_to_round(2)
    leaver = net[2].peer
    net.tell(net[2], net[0], msgspec.structs.replace(offers["n2", 1], round=7, token="7.x"))
    net.tell(net[2], net[0], SnapshotWanted(1 << 40))
    net.run(until=net.now + 0.1)
    core, rounds = net[0].core, net[0].core._course.rounds
    told = (rounds._heard, rounds._ahead, rounds._early.counts(), rounds._snapshots.wanted, core._progress._round_of)
    assert [leaver in known for known in told] == [True] * 5
    net.stop(net[2])
    net.run(until=net.now + 1.0)
    told = (rounds._heard, rounds._ahead, rounds._early.counts(), rounds._snapshots.wanted, core._progress._round_of)
    assert [leaver in known for known in told] == [False] * 5


def test_no_offer_of_one_who_is_no_member_is_kept() -> None:
    net = three(rounds=12)
    offers = caught(net)
    net.run_to_round(2)
    watcher = net.add(3, at=net.now, layout="other")
    net.run(until=net.now + 1.0)
    assert watcher.core.state == "observer"
    net.tell(watcher, net[0], msgspec.structs.replace(offers["n2", 1], round=5, token="5.x"))
    net.run(until=net.now + 0.1)
    assert net[0].core._course.rounds._early.counts().get(watcher.peer) is None
    assert net[0].rejected() == {(5, watcher.peer, "foreign"): 1}


def test_one_peer_alone_trains_and_keeps_its_weight() -> None:
    net = network(1, rounds=2)
    net.run()
    assert net[0].mixes[0].own_weight == 1.0
    assert net[0].rounds() == [0, 1]


def test_bodies_are_dropped_two_rounds_later() -> None:
    net = network(4, rounds=10)
    net.run()
    for node in net.nodes:
        assert node.most_bodies <= 3
        assert set(node.bodies) <= {f"{round}.{node.core._course._instance}" for round in (9, 10)}


@settings(max_examples=40, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(data=st.data())
def test_any_order_of_delivery_ends_well(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 1 << 30))
    peers = data.draw(st.integers(2, 6))
    rounds = data.draw(st.integers(1, 8))
    mean = data.draw(st.sampled_from([0.001, 0.05, 0.5, 2.0]))
    rng = random.Random(seed)
    spec = data.draw(st.sampled_from(["ring", "one-way-ring", "matchings", "strides", "blinking", "epidemic-local"]))
    net = network(peers, lambda r: r.expovariate(1 / mean), seed, 300.0, rounds=rounds, min_peers=2, topology=spec)
    for node in net.nodes:
        node.train_s = partial(lambda law, round: law.expovariate(1.0), random.Random(rng.random()))
    if data.draw(st.booleans()):
        net.add(peers, at=rng.uniform(0, 20), asked={}, wait_s=300.0)
    for _ in range(data.draw(st.integers(0, 2))):
        fate = data.draw(st.sampled_from(["kill", "mute", "stop", "cut"]))
        node = net[data.draw(st.integers(0, peers - 1))]
        when = rng.uniform(0, 20)
        if fate == "kill":
            net.at(when, lambda node=node: net.kill(node))
        elif fate == "mute":
            net.at(when, lambda node=node: net.kill(node, silent=True))
        elif fate == "stop":
            net.at(when, lambda node=node: net.stop(node))
        else:
            net.at(when, lambda node=node: net.partition(node))
            net.at(when + rng.uniform(0, 10), net.heal)
    net.run(until=5000.0)
    for node in net.nodes:
        if len(node.of(Started)) <= 1:  # who was cut off may come back to a round it has been in
            assert all(a < b for a, b in pairwise(node.rounds()))
        assert node.most_bodies <= AHEAD + 2  # snapshots of two rounds
        for mix in node.mixes.values():
            assert abs(mix.own_weight + sum(weight for weight, _ in mix.received) - 1) < 1e-12
        if node.core._course.rounds is not None:
            assert all(count <= AHEAD for count in node.core._course.rounds._early.counts().values())
    assert not net.living, [(node.name, node.core.state, node.core.round) for node in net.living]
