"""A run that begins while its peers are still meeting."""

import pytest
from virtual import network

from p2pfl.events import RoundFinished, Started
from p2pfl.protocol.together import HOLD_S


@pytest.mark.parametrize("seed", range(12))
def test_who_has_not_met_everybody_yet_waits_with_the_first_round_and_misses_nobody_in_it(seed: int) -> None:
    net = network(8, lambda rng: rng.expovariate(50), seed, rounds=3, topology="complete")
    net.run()
    for node in net.nodes:
        assert not node.rejected()
        assert [(event.round, event.missing) for event in node.of(RoundFinished)] == [(0, 0), (1, 0), (2, 0)]


def test_the_wait_for_one_who_cannot_be_met_ends() -> None:
    net = network(4, rounds=3)
    net.wall(net[2], net[3])
    net.run()
    assert [node.rounds() for node in net.nodes] == [[0, 1, 2]] * 4
    began = [next(time for time, event in node.events if isinstance(event, Started)) for node in net.nodes]
    assert HOLD_S <= max(began) - min(began) < HOLD_S + 1.0
