"""The core of a peer, many of them on a virtual network: coming, going, and the end."""

import random
from collections import Counter

import pytest
import torch
from cores import digests, net_found, net_received, record
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from virtual import Node, fingerprint, network

from p2pfl.events import Finished, PeerGone, RoundFinished, Started, StateChanged, ViewTaken, Warned
from p2pfl.layout import Vector
from p2pfl.protocol.messages import (
    Goodbye,
    Hello,
    Join,
    Member,
    Message,
    Offer,
    Refused,
    Running,
    Start,
    Status,
    Update,
)
from p2pfl.protocol.participant import LinkOpened, Received, Send

# Coming and going


@pytest.mark.parametrize("silent", [False, True])
def test_a_peer_killed_in_a_round_leaves_a_smaller_ring(silent: bool) -> None:
    net = network(5, rounds=30)
    net.run_to_round(3)
    net.run(until=net.now + 0.5)
    net.kill(net[2], silent=silent)
    net.run(until=net.now + 30.0)
    survivors = net.living
    assert len(survivors) == 4
    assert len(digests(net)) == 1
    taken = {(view.round, view.members) for node in survivors for view in node.of(ViewTaken)[1:]}
    [(round, members)] = taken  # all at the same, announced, later round
    assert members == ("n0", "n1", "n3", "n4")
    assert round > 4
    assert [gone.reason for node in survivors for gone in node.of(PeerGone)] == ["dead"] * 4
    assert net[1].mixes[round].parties == (net[0].peer, net[3].peer)
    net.run()
    for node in survivors:
        assert node.rounds() == list(range(30))
        assert {reason for _, _, reason in node.rejected()} <= {"missing", "broken off", "late"}


def test_a_joiner_takes_a_snapshot_and_takes_part_and_nobody_goes_back() -> None:
    net = network(3, rounds=15)
    net.run_to_round(5)
    late = net.add(3, at=net.now, asked={})
    net.run()
    first = late.of(Started)[0].round
    assert first in (7, 8)
    assert late.rounds() == list(range(first, 15))
    assert late.trains[first].vector.tolist() in [node.saves[first].tolist() for node in net.nodes[:3]]
    for node in net.nodes[:3]:
        assert node.rounds() == list(range(15))
        [view] = node.of(ViewTaken)[1:]
        assert (view.round, view.members) == (first, ("n0", "n1", "n2", "n3"))
    assert all(not node.rejected() for node in net.nodes)
    assert late.peer in net[0].mixes[first].parties


def test_a_joiner_waits_for_its_round_however_long_rounds_are() -> None:
    net = network(3, rounds=12)
    for node in net.nodes:
        node.train_s = lambda round: 60.0
    net.run_to_round(2)
    late = net.add(3, at=net.now + 1.0, asked={}, train_s=lambda round: 60.0)
    net.run()
    assert late.rounds() == list(range(4, 12))
    assert [node.of(ViewTaken)[1].round for node in net.nodes[:3]] == [4, 4, 4]
    assert all(not node.rejected() for node in net.nodes)


def test_a_joiner_whose_helper_dies_asks_somebody_else() -> None:
    net = network(3, rounds=30)
    net.run_to_round(3)
    late = net.add(3, at=net.now, asked={})
    asked: list[Node] = []

    def mark(sender: Node, receiver: Node, message: Message) -> Message | None:
        if sender is late and isinstance(message, Join) and not asked:
            asked.append(receiver)
            net.at(net.now, lambda: net.kill(receiver))
        return message

    net.alter.append(mark)
    net.run()
    assert late.rounds()[-1] == 29
    assert late.of(Started)[0].round < 20


def test_a_snapshot_that_is_not_finite_is_asked_for_elsewhere() -> None:
    net = network(3, rounds=60)

    def spoil(owner: Node, fetcher: Node, offer: Offer, vector: Vector) -> Vector | str:
        bad = offer.kind == "snapshot" and owner is not net[1]
        return torch.tensor([float("nan")] * 3) if bad else vector

    net.spoil.append(spoil)
    net.run_to_round(3)
    late = net.add(3, at=net.now, asked={})
    net.run()
    assert late.done is not None
    assert late.done.error == ""
    assert all(torch.isfinite(vector).all() for vector in late.saves.values())
    assert late.rounds()


def test_a_joiner_at_the_very_end_leaves_with_the_final_model() -> None:
    net = network(3, rounds=6)
    net.run_to_round(5)
    late = net.add(3, at=net.now, asked={})
    net.run()
    assert late.rounds() == []
    assert late.done is not None
    assert (late.done.round, late.done.error) == (6, "")
    assert late.numbers() in [node.numbers() for node in net.nodes[:3]]


def test_a_joiner_without_anybody_left_gives_up() -> None:
    net = network(2, rounds=50)
    net.run_to_round(2)
    late = net.add(2, at=net.now, asked={}, prepare_s=5.0)
    net.run(until=net.now + 2.0)
    for node in net.nodes[:2]:
        net.kill(node)
    net.run()
    assert late.done is not None
    assert "the run has ended without this peer" in late.done.error


def test_leaving_is_seen_as_leaving_and_not_as_death() -> None:
    net = network(4, rounds=12)
    net.run_to_round(4)
    net.stop(net[3])
    net.run()
    assert net[3].of(Finished)[0].reason == "stopped"
    for node in net.nodes[:3]:
        assert node.rounds() == list(range(12))
        assert next((gone.name, gone.reason) for gone in node.of(PeerGone)) == ("n3", "left")
        assert all(event.wait_s < 1.0 for event in node.of(RoundFinished))


def test_who_left_can_come_back_from_the_same_folder() -> None:
    net = network(3, rounds=25)
    net.run_to_round(4)
    net.stop(net[2])
    again = net.add(2, at=net.now + 3.0, asked={})
    net.run()
    assert again.rounds() == list(range(again.rounds()[0], 25))
    assert net[0].of(ViewTaken)[-1].members == ("n0", "n1", "n2")
    assert again.peer in net[0].mixes[24].parties


@pytest.mark.parametrize("waits_in", ["lobby", "joining"])
def test_who_waits_takes_no_round_that_the_run_cannot_have_reached(waits_in: str) -> None:
    net = network(3, rounds=0)
    net.run_to_round(4)
    late = net.add(3, at=net.now, asked={}, prepare_s=2.0 if waits_in == "lobby" else 0.1)
    net.run(when=lambda: late.core.state == waits_in and len(late.core._links.peers) == 3)
    net.tell(net[1], late, Update((record(late, state="member", since=1 << 39),)))
    net.run(until=net.now + 10.0)
    assert late.core.state == "running"
    assert late.rounds()[0] < 20
    assert late.peer in net[0].mixes[net[0].core.round - 1].parties


def test_a_partition_heals_into_one_view() -> None:
    net = network(6, rounds=0)
    net.run_to_round(3)
    net.partition(net[4], net[5])
    net.run(until=net.now + 30.0)
    assert {node.of(ViewTaken)[-1].members for node in net.nodes[:4]} == {("n0", "n1", "n2", "n3")}
    assert {node.of(ViewTaken)[-1].members for node in net.nodes[4:]} == {("n4", "n5")}
    net.heal()
    net.run(until=net.now + 60.0)
    assert len(digests(net)) == 1
    assert {node.of(ViewTaken)[-1].members for node in net.nodes} == {("n0", "n1", "n2", "n3", "n4", "n5")}
    rounds = [node.core.round for node in net.nodes]
    assert max(rounds) - min(rounds) <= 2
    assert all(len(node.mixes[node.rounds()[-1]].parties) == 2 for node in net.nodes)


RUN_OVER = "the run has ended without this peer: for 60 s no member could be reached"


@settings(max_examples=25, deadline=None, phases=(Phase.explicit, Phase.generate))
@example(162, 3, ["j", "k", "m"])
@given(st.integers(0, 1 << 30), st.integers(3, 6), st.lists(st.sampled_from("kmsfj"), max_size=3))
def test_views_are_equal_once_it_is_quiet(seed: int, peers: int, fates: list[str]) -> None:
    rng = random.Random(seed)
    net = network(peers, lambda r: r.expovariate(20), seed, rounds=0, min_peers=2)
    for node in net.nodes:
        node.train_s = lambda round: 1.0 + round % 3
    net.run(until=10.0)
    assert any(node.core.state == "running" for node in net.nodes)
    for count, fate in enumerate(fates):
        if not net.living:
            break
        node = rng.choice(net.living)
        if fate == "k":
            net.kill(node)
        elif fate == "m":
            net.kill(node, silent=True)
        elif fate == "s":
            net.stop(node)
        elif fate == "f":
            dead = record(node, state="dead", until=node.core.round + 1)
            for other in list(net.living):
                if other is not node:
                    net.later(other, net_received(other, Update((dead,))))
        else:
            net.add(peers + count, at=net.now, asked={}, train_s=net[0].train_s)
        net.run(until=net.now + rng.uniform(0, 5))
    net.run(until=net.now + 150.0)
    if not any(node.core.state == "running" for node in net.living):
        # Whoever had the model is gone, and with them the run: those who came later say so and end.
        assert all(node.done is not None or not node.alive for node in net.nodes)
        assert {node.done.error for node in net.nodes if node.done is not None} <= {"", RUN_OVER}
        return
    assert len(digests(net)) == 1
    assert {node.core.state for node in net.living} == {"running"}
    assert {len(node.of(ViewTaken)[-1].members) for node in net.living} == {len(net.living)}
    assert all(not node.rejected() or max(node.rejected())[0] < node.core.round - 8 for node in net.living)


# Observers and the end


def test_a_peer_with_another_model_stays_visible_is_told_and_ends_with_the_network() -> None:
    net = network(3, rounds=8)
    other = net.add(3, at=2.0, asked={}, layout="four")
    net.run(until=5.0)
    assert other.core.state == "observer"
    assert net[0].state_of(other) == "observer"
    [warning] = other.of(Warned)
    assert warning.text == (
        "this peer's model differs from the network's (this peer's four [3] float32, the network's three [3] float32): "
        "it stays visible and is not averaged"
    )
    net.tell(net[1], other, Update((record(other, state="dead"),)))
    net.run(until=6.0)
    assert net[0].state_of(other) == "observer"
    net.run()
    assert other.rounds() == []
    assert other.done is not None
    assert other.done.error == ""
    assert all(node.rounds() == list(range(8)) for node in net.nodes[:3])
    assert net.now < 700


def test_a_finished_peer_serves_its_last_share_until_its_neighbors_are_done() -> None:
    net = network(3, rounds=2, patience=100.0)
    net[2].train_s = lambda round: 30.0
    fetches: list[float] = []

    def slow(owner: Node, fetcher: Node, offer: Offer, vector: Vector) -> Vector | str:
        if fetcher is net[2] and owner is net[0] and offer.round == 1 and len(fetches) < 2:
            fetches.append(net.now)
            return "broken off"
        return vector

    net.spoil.append(slow)
    net.run()
    left = {node.name: time for node in net.nodes for time, e in node.events if isinstance(e, Finished)}
    assert fetches
    assert all(not node.rejected() for node in net.nodes)
    assert left["n0"] >= max(t for t, e in net[2].events if isinstance(e, RoundFinished))


def test_a_finished_peer_leaves_after_a_minute_at_most() -> None:
    net = network(3, rounds=1)
    net[2].train_s = lambda round: 500.0
    net.run()
    for node in net.nodes[:2]:
        states = {e.state: time for time, e in node.events if isinstance(e, StateChanged)}
        assert states["left"] - states["finished"] == pytest.approx(60.0)


def test_nothing_follows_the_end() -> None:
    net = network(3, rounds=0)
    net.run_to_round(3)
    net.run(until=net.now + 0.9)
    core = net[0].core
    net.stop(net[0])  # the driver asserts that Done is the last effect
    assert core.state == "left"
    assert core.next_deadline() is None
    assert core.handle(net_found(net[1]), net.now) == []  # type: ignore[arg-type]


# What others say


def test_one_who_introduces_a_crowd_with_many_addresses_makes_no_message_too_long() -> None:
    net = network(3, rounds=8)
    net.run_to_round(2)
    crowd = [Member(f"crowd{number:05d}", f"x{number}", "n", ("h" * 120,) * 16) for number in range(300)]
    for begin in range(0, 300, 100):
        net.tell(net[2], net[0], Update(tuple(crowd[begin : begin + 100])))
    late = net.add(3, at=net.now + 0.1, asked={})
    net.run()
    assert [node.rounds() for node in net.nodes[:3]] == [list(range(8))] * 3
    assert late.rounds()[-1] == 7


@pytest.mark.parametrize(
    "message",
    [
        Refused("duplicate seat", "whatever"),
        Refused("no such reason", "whatever"),
        Start(Running({"rounds": 99}, "f", "l", (), 0), "init", ()),
        Join("four", "data"),
        Offer("snapshot", 3, "x", 100, "three", fingerprint({})),
        Goodbye(Member("somebody0", "9", "n9", state="left")),
        Status(3, True),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_message_out_of_turn_harms_nobody(message: Message) -> None:
    net, plain = network(4, rounds=8), network(4, rounds=8)
    net.run_to_round(3)
    net.tell(net[3], net[0], message)
    net.run()
    plain.run()
    assert [node.numbers() for node in net.nodes[:3]] == [node.numbers() for node in plain.nodes[:3]]
    assert all(node.rounds() == list(range(8)) for node in net.nodes[:3])


def test_whoever_does_not_begin_with_a_hello_is_refused() -> None:
    net = network(1)
    core = net.add(5, meets="nobody").core
    core.handle(LinkOpened(900), 0.0)
    effects = core.handle(Received(900, Status(0)), 0.0)
    assert effects[1] == Send(900, Refused("no hello", ""))
    core.handle(LinkOpened(901), 0.0)
    future = Hello((7, 9), "test", "i", Member("somebody0", "9", "n9"), 0, {})
    reasons = [e.message.reason for e in core.handle(Received(901, future), 0.0) if isinstance(e, Send)]  # type: ignore[union-attr]
    assert reasons == ["no common version"]


def test_rejections_are_counted_by_few_fixed_phrases() -> None:
    net = network(6, lambda rng: rng.expovariate(2), 4, rounds=20)
    net.at(15.0, lambda: net.kill(net[3]))
    net.at(20.0, lambda: net.partition(net[1]))
    net.at(30.0, net.heal)
    net.run()
    reasons: Counter[str] = Counter()
    for node in net.nodes:
        reasons += Counter(reason for _, _, reason in node.rejected().elements())
    assert set(reasons) <= {"missing", "late", "view mismatch", "broken off", "gone", "foreign"}
