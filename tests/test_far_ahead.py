"""Who comes with a model of a round that the others have not reached: after a split, or from a checkpoint."""

import re

import pytest
from virtual import Node, network

from p2pfl.events import RoundFinished, Started, Warned


def waits(node: Node) -> list[float]:
    """When the person was told that this peer waits for the others."""
    pattern = re.compile(r"this peer has been as far as round \d+ and waits until the others are; they are at \d+")
    return [time for time, event in node.events if isinstance(event, Warned) and pattern.fullmatch(event.text)]


def test_who_resumes_far_ahead_of_the_others_says_that_it_waits_and_takes_part_once_they_are_there() -> None:
    net = network(3, rounds=0)
    net.run_to_round(3)
    began = net.now
    late = net.add(3, at=began, asked={}, start_round=700)
    net.run(until=began + 100.0)
    [first] = waits(late)
    assert first < began + 1.0
    assert late.core.state == "joining"
    net.run_to_round(705)
    assert [time - first >= 600.0 for time in waits(late)[1:]] == [True]
    assert late.rounds()[0] == 700
    assert not any(event.missing for node in net.nodes[:3] for event in node.of(RoundFinished)[:700])


def test_the_part_that_is_further_after_a_split_says_that_it_waits() -> None:
    net = network(5, rounds=0)
    net.run_to_round(3)
    for node in net.nodes[3:]:
        node.train_s = lambda round: 0.2
    net.partition(*net.nodes[3:])
    net.run(until=net.now + 60.0)
    assert net[4].core.round > net[0].core.round + 50
    net.heal()
    net.run(until=net.now + 20.0)
    assert [node.core.state for node in net.nodes] == ["running"] * 3 + ["joining"] * 2
    assert [len(waits(node)) for node in net.nodes] == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("round", [20, 30])
def test_who_has_been_as_far_as_the_last_round_ends_with_its_own_model(round: int) -> None:
    net = network(3, rounds=20)
    net.run_to_round(3)
    late = net.add(3, at=net.now, asked={}, start_round=round, init=[7.0, 8.0, 9.0])
    net.run(until=net.now + 2.0)
    assert late.done is not None
    assert (late.done.round, late.done.error) == (round, "")
    assert late.numbers() == [7.0, 8.0, 9.0]
    text = "the run ends with round 20, and this peer's model has been as far: it stays as it is"
    assert [event.text for event in late.of(Warned)] == [text]
    assert not late.of(Started)
    net.run()
    assert [node.rounds() for node in net.nodes[:3]] == [list(range(20))] * 3
    assert not any(event.missing for node in net.nodes[:3] for event in node.of(RoundFinished))


def test_a_newcomer_that_nobody_has_to_catch_up_with_says_nothing_of_a_wait() -> None:
    net = network(3, rounds=0)
    net.run_to_round(3)
    late = net.add(3, at=net.now, asked={})
    net.run_to_round(10)
    assert late.of(Warned) == []
