from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.graphs.builders import ring
from p2pfl.protocol.pace import Recent, budget_s, next_round, wait_s
from p2pfl.protocol.participant import Rules
from p2pfl.protocol.progress import furthest

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
    ("known", "neighbors", "expected"),
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
        ([10**6, 10**6], 2, 70),  # no further than others can be
        ([69], 1, 69),
        ([71], 1, 70),
        ([3, 3], 2, 5),  # never back
        ([60, 70], 2, 60),
        ([60, 70, 80], 4, 70),
        ([1 << 40], 1, 70),
    ],
)
def test_after_round_4_it_goes_on_where_most_neighbors_are(known: list[int], neighbors: int, expected: int) -> None:
    rounds = dict(enumerate(known))
    peers = [str(index) for index in range(neighbors)]
    assert next_round(4, lambda round: peers, lambda peer: rounds.get(int(peer), 0), furthest=70) == expected


@pytest.mark.parametrize(
    ("partners", "expected"),
    [
        ({5: "a", 6: "b"}, 5),  # a is in round 5, and waits
        ({5: "b", 6: "a"}, 6),  # b is past 5, a not past 6
        ({5: "b", 6: "b", 7: "", 8: "a"}, 8),  # nor is a round without anybody of use on the way there
        ({5: "", 6: "b"}, 5),
        ({5: "b", 6: "b", 7: "c"}, 7),
        ({5: "ba", 6: "a"}, 5),  # of two one needs it
        (dict.fromkeys(range(5, 99), "b"), 20),
        ({round: "b" if round % 2 else "d" for round in range(5, 99)}, 20),
        ({round: "bdd"[round % 3] for round in range(5, 99)}, 20),
    ],
)
def test_where_neighbors_change_it_goes_on_with_the_first_round_that_somebody_needs(
    partners: dict[int, str], expected: int
) -> None:
    rounds = {"a": 5, "b": 20, "c": 7, "d": 30}
    assert next_round(4, lambda round: partners[round], rounds.__getitem__, furthest=70) == expected


def test_who_is_fifty_rounds_behind_catches_up_in_several_steps() -> None:
    rounds = [4]
    while rounds[-1] < 54:
        rounds.append(next_round(rounds[-1], lambda round: ["a"], lambda peer: 54, furthest(rounds[-1], others=3)))
    assert rounds == [4, 12, 20, 28, 36, 44, 52, 54]


@given(st.integers(0, 99), st.lists(st.integers(0, 999)), st.integers(0, 9), st.integers(8, 99))
def test_next_round_is_always_later_and_nobody_runs_ahead_of_all(
    number: int, known: list[int], more: int, most: int
) -> None:
    peers = [str(index) for index in range(len(known) + more)]
    rounds = dict(enumerate(known))
    following = next_round(number, lambda round: peers, lambda peer: rounds.get(int(peer), 0), number + most)
    assert number < following <= min(max([number + 1, *known]), number + most)


def test_what_is_usual_is_known_of_all_neighbors_that_stay_and_of_the_last_few_that_change() -> None:
    recent = Recent()
    for index in range(20):
        recent.note(f"p{index}", float(index), neighbors=1)
    assert recent.but(("p19",)) == [12.0, 13.0, 14.0, 15.0, 16.0, 17.0, 18.0]
    recent.note("p12", 1.0, neighbors=1)
    recent.note("p20", 20.0, neighbors=1)
    assert 1.0 in recent.but(())  # heard of again, so another one went
    for index in range(20):
        recent.note(f"q{index}", 0.5, neighbors=20)
    recent.keep(("q1", "q2", "p0"))
    assert recent.but(()) == [0.5, 0.5]


@pytest.mark.parametrize(
    ("arrivals", "usual_s", "expected_s"),
    [
        ([1.0], 1.5, 4.5),
        ([4.0], 1.5, 12.0),  # as slow as it is itself
        ([0.1], 0.1, 2.0),
        ([1.0], 500.0, 600.0),
        ([1.0], None, 600.0),
        ([1.0, 5.0], 100.0, 15.0),  # a majority is there
    ],
)
def test_where_neighbors_change_those_before_stand_in_for_a_majority(
    arrivals: list[float], usual_s: float | None, expected_s: float
) -> None:
    assert wait_s(RULES, arrivals, 2, usual_s) == expected_s
