from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.graphs.builders import ring
from p2pfl.protocol.pace import budget_s, next_round, wait_s
from p2pfl.protocol.participant import Rules

RULES = Rules(
    topology=lambda nodes, round: ring(nodes),
    rounds=10,
    min_peers=2,
    patience=3.0,
    min_deadline_s=2.0,
    max_wait_s=600.0,
)


@pytest.mark.parametrize(
    ("arrivals", "parties", "expected_s"),
    [
        ([], 1, 600.0),
        ([4.0], 1, 12.0),
        ([4.0], 2, 600.0),  # half is no majority
        ([4.0, 1.0], 2, 12.0),
        ([4.0, 1.0], 4, 600.0),
        ([1.0, 2.0, 3.0], 5, 9.0),
        ([3.0, 1.0, 2.0], 5, 9.0),
        ([1.0, 2.0, 3.0, 50.0, 60.0], 5, 9.0),  # who comes after the majority prolongs nothing
        ([0.1, 0.2, 0.3], 5, 2.0),
    ],
)
def test_round_waits_three_times_the_median_party(arrivals: list[float], parties: int, expected_s: float) -> None:
    assert wait_s(RULES, arrivals, parties) == expected_s


@pytest.mark.parametrize(
    ("own_full_s", "times", "neighbors", "late_for", "expected_s"),
    [
        (None, [1.0], 1, 0, None),
        (None, [1.0], 1, 1, None),
        (10.0, [], 3, 0, None),
        (10.0, [], 3, 3, None),
        (3.0, [1.0], 1, 0, None),  # no slower than they wait
        (3.1, [1.0], 1, 0, 1.0),
        (10.0, [2.0, 1.0, 9.0], 3, 0, 2.0),
        (10.0, [1.0, 9.0], 2, 0, 1.0),  # of two in the middle the lower one
        (2.0, [0.1], 1, 0, None),  # they wait for two seconds in any case
        (2.1, [0.1], 1, 0, 0.1),
        (1.0, [1.0], 1, 1, 0.5),  # late though it is not slow: it began late
        (10.0, [1.0, 1.0], 2, 1, 0.5),
        (1.0, [1.0, 1.0, 1.0], 3, 1, None),
        (10.0, [1.0, 1.0, 1.0], 3, 1, 1.0),
    ],
)
def test_slow_peer_trains_as_long_as_the_median_and_a_late_one_half(
    own_full_s: float | None, times: Sequence[float], neighbors: int, late_for: int, expected_s: float | None
) -> None:
    assert budget_s(RULES, own_full_s, times, neighbors, late_for) == expected_s


@pytest.mark.parametrize(
    ("ahead", "neighbors", "expected"),
    [
        ([], 0, 5),
        ([], 3, 5),
        ([9], 1, 9),
        ([9], 2, 5),  # half of them are not most
        ([9], 3, 5),
        ([5, 9], 3, 5),
        ([9, 7], 3, 7),
        ([9, 7, 8], 3, 8),
        ([7, 1 << 40], 2, 7),
        ([3, 3], 2, 5),  # never back
    ],
)
def test_after_round_4_it_goes_on_where_most_neighbors_are(ahead: list[int], neighbors: int, expected: int) -> None:
    assert next_round(4, ahead, neighbors) == expected


@given(st.integers(0, 99), st.lists(st.integers(0, 99)), st.integers(0, 9))
def test_next_round_is_always_later_and_nobody_runs_ahead_of_all(number: int, ahead: list[int], neighbors: int) -> None:
    assert number < next_round(number, ahead, neighbors) <= max([number + 1, *ahead])
