"""Facts of the simulated world: laws, latencies, bandwidths, losses, who comes and goes, and virtual time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2pfl.errors import RecipeError
from p2pfl.protocol.messages import Member
from p2pfl.recipe import Recipe
from p2pfl.simulation.churn import Change, absent_at_first, parse_churn
from p2pfl.simulation.laws import parse_law
from p2pfl.simulation.oracle import Oracle
from p2pfl.simulation.virtual_time import VirtualTime
from p2pfl.simulation.world import World, steps_within

NAMES = ("0", "1", "2", "3")


def world(**settings: Any) -> World:
    return World(Recipe(**settings), NAMES)


# Laws


@pytest.mark.parametrize(
    ("text", "median", "mean"),
    [
        ("uniform:low=1,high=3", 2.0, 2.0),
        ("lognormal:median=2,sigma=0.5", 2.0, 2.0 * np.exp(0.125)),
        ("exponential:mean=2", 2.0 * np.log(2), 2.0),
    ],
)
def test_a_law_has_the_middle_it_says(text: str, median: float, mean: float) -> None:
    drawn = parse_law(text, "step_s").draw(np.random.default_rng(1), 40_000)
    assert drawn.min() >= 0
    assert np.median(drawn) == pytest.approx(median, rel=0.03)
    assert drawn.mean() == pytest.approx(mean, abs=4 * drawn.std() / 200)


@pytest.mark.parametrize("text", ["0.25", "constant:0.25", "constant:value=0.25", " 2.5e-1 "])
def test_a_number_is_a_law_that_does_not_draw(text: str) -> None:
    assert parse_law(text, "step_s").constant == 0.25


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("soon", "write 0.01"),
        ("-1", "at least 0"),
        ("nan", "finite"),
        ("", "write a number or a law"),
        ("lognorml:median=1,sigma=1", "did you mean lognormal?"),
        ("uniform:low=1", "write uniform:low=…,high=…"),
        ("uniform:low=1,high=2,mid=1", "low and high"),
        ("uniform:low=3,high=2", "high must not be below low"),
        ("lognormal:median=0,sigma=1", "median must be above 0"),
        ("exponential:mean=x", "mean must be a finite number"),
    ],
)
def test_a_law_that_cannot_be_says_the_setting_and_the_mend(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match="latency is ") as caught:
        parse_law(text, "latency")
    assert message in str(caught.value)


# Speeds, latencies, bandwidths, losses


def test_every_peer_has_a_speed_of_its_own_that_no_other_peer_changes() -> None:
    law = "lognormal:median=0.01,sigma=1"
    four = world(step_s=law).step_s
    assert len(set(four)) == 4
    assert World(Recipe(step_s=law), NAMES[:2]).step_s == four[:2]
    assert world(step_s=law, seed=1).step_s != four


def test_latency_is_drawn_for_each_message() -> None:
    drawn = world(latency="uniform:low=1,high=2")
    times = [drawn.latency_s(0, 1) for _ in range(5000)]
    assert len(set(times)) == 5000
    assert 1 <= min(times) < max(times) <= 2
    assert not drawn.ordered
    assert world(latency="0.5").latency_s(0, 1) == 0.5


def test_a_transfer_takes_its_bytes_over_the_bandwidth_of_the_edge() -> None:
    assert world().transfer_s(0, 1, 10**9) == 0.0
    assert world(bandwidth="2").transfer_s(0, 1, 3_000_000) == 1.5
    drawn = world(bandwidth="uniform:low=1,high=2")
    assert drawn.transfer_s(0, 1, 1000) == drawn.transfer_s(0, 1, 1000) != drawn.transfer_s(1, 0, 1000)


def test_a_share_is_lost_by_its_round_and_edge_with_the_rate() -> None:
    lossy = world(loss_rate=0.25)
    lost = [lossy.lost(round, a, b) for round in range(1000) for a, b in ((0, 1), (1, 0), (2, 3))]
    assert np.mean(lost) == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 3000))
    assert lost == [lossy.lost(round, a, b) for round in range(1000) for a, b in ((0, 1), (1, 0), (2, 3))]
    assert not any(world().lost(round, 0, 1) for round in range(100))


def test_a_file_gives_the_latency_and_bandwidth_of_each_edge(tmp_path: Path) -> None:
    (tmp_path / "lan.csv").write_text("from,to,latency_s\n0,1,0.5\n0,*,0.25\n*,3,0.125\n")
    (tmp_path / "wan.csv").write_text("from,to,mb_per_s\n0,1,2\n*,*,4\n")
    filed = world(latency=str(tmp_path / "lan.csv"), bandwidth=str(tmp_path / "wan.csv"))
    assert (filed.latency_s(0, 1), filed.latency_s(0, 2), filed.latency_s(1, 3)) == (0.5, 0.25, 0.125)
    assert (filed.transfer_s(0, 1, 4_000_000), filed.transfer_s(1, 0, 4_000_000)) == (2.0, 1.0)
    with pytest.raises(RecipeError, match=r"no row from 1 to 2; add it, or a row \*,\*"):
        filed.latency_s(1, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("from,to,seconds\n0,1,1\n", "needs a first line from,to,latency_s"),
        ("", "needs a first line"),
        ("from,to,latency_s\n0,7,1\n", "line 2: there is no peer '7'; there are 0 to 3"),
        ("from,to,latency_s\n0,1,1\n0,2,fast\n", "line 3: 'fast' is no number"),
        ("from,to,latency_s\n0,1,-1\n", "line 2: '-1' is no number of at least 0"),
        ("from,to,latency_s\n0,1\n", "line 2: None is no number"),
        ("from,to,latency_s\n0,1,1,9\n", "line 2: more than three columns"),
    ],
)
def test_a_file_that_cannot_be_read_says_the_line_and_the_mend(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "lan.csv").write_text(text)
    with pytest.raises(RecipeError) as caught:
        world(latency=str(tmp_path / "lan.csv"))
    assert message in str(caught.value)
    assert str(caught.value).startswith("latency: ")


def test_a_file_that_is_not_there_is_told() -> None:
    with pytest.raises(RecipeError, match=r"bandwidth: nowhere\.csv cannot be read"):
        world(bandwidth="nowhere.csv")


# Budgets


@pytest.mark.parametrize(
    ("budget", "step", "full", "steps"),
    [
        (None, 0.1, 7, 7),
        (0.5, 0.0, 7, 7),
        (1.0, 0.25, 10, 4),
        (1.0, 0.3, 10, 3),  # .9 is nearer than 1.2
        (1.0, 0.7, 10, 1),  # .7 is nearer than 1.4
        (1.0, 0.6, 10, 2),  # 1.2 is nearer than .6
        (0.001, 5.0, 10, 1),  # one at least
        (100.0, 0.1, 10, 10),
    ],
)
def test_steps_end_nearest_to_the_budget(budget: float | None, step: float, full: int, steps: int) -> None:
    assert steps_within(budget, step, full) == steps


# Churn


def test_events_are_read_in_order_of_time() -> None:
    assert parse_churn("leave@7=2+3; crash@3.5=1;join@9=2", NAMES, 0) == (
        Change(3.5, 1, "crash"),
        Change(7.0, 2, "leave"),
        Change(7.0, 3, "leave"),
        Change(9.0, 2, "join"),
    )
    assert parse_churn("", NAMES, 0) == ()


def test_who_joins_first_of_all_is_not_there_before() -> None:
    changes = parse_churn("join@1=2;leave@3=2;crash@2=1;join@4=1", NAMES, 0)
    assert absent_at_first(changes) == {2}


def test_a_rate_draws_an_exponential_time_for_each_peer() -> None:
    names = tuple(map(str, range(4000)))
    changes = parse_churn("crash:rate=0.5", names, 3)
    times = np.array([change.time_s for change in changes])
    assert sorted(change.peer for change in changes) == list(range(4000))
    assert times.mean() == pytest.approx(2.0, abs=4 * 2.0 / np.sqrt(4000))
    assert parse_churn("crash:rate=0.5", names, 3) == changes != parse_churn("crash:rate=0.5", names, 4)


def test_the_last_peers_join_at_a_rate() -> None:
    changes = parse_churn("join:rate=2,peers=3", NAMES, 0)
    assert [(change.peer, change.kind) for change in changes] == [(1, "join"), (2, "join"), (3, "join")]
    assert absent_at_first(changes) == {1, 2, 3}


@pytest.mark.parametrize("seed", range(5))
def test_a_crash_that_is_drawn_before_its_peer_joins_is_passed_over(seed: int) -> None:
    names = tuple(map(str, range(12)))
    changes = parse_churn("crash:rate=1;join:rate=.1,peers=4;join@50=3", names, seed)
    assert absent_at_first(changes) == {3, 8, 9, 10, 11}
    assert {change.peer for change in changes if change.kind == "crash"} >= {0, 1, 2, 4, 5, 6, 7}


def test_a_crash_that_is_drawn_after_its_peer_joined_holds() -> None:
    changes = parse_churn("crash:rate=.01;join:rate=1000,peers=1", NAMES, 0)
    assert [change.kind for change in changes if change.peer == 3] == ["join", "crash"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("crash@soon=1", "'crash@soon=1' is no event; write events as crash@3.5=4"),
        ("crash@-1=1", "is no event"),
        ("crash@1", "is no event"),
        ("explode@1=1", "is no event"),
        ("crash@1=9", "there is no peer '9'; there are 0 to 3"),
        ("crash", "crash has rate; write crash:rate=.01"),
        ("crash:speed=1", "crash has rate; write crash:rate=.01"),
        ("join:rate=1", "join has rate and peers; write join:rate=.01,peers=8"),
        ("crash:rate=0", "rate must be a number above 0"),
        ("join:rate=1,peers=4", "let some be there before"),
        ("join:rate=1,peers=x", "peers must be a whole number above 0"),
        ("flood:rate=1", "there is no 'flood'"),
        ("crash:", "cannot be read"),
        ("leave@1=1;join@2=1;join@3=1", "peer 1 joins at 3 s and is there already"),
        ("join@1=0+1+2+3", "let at least one be there at the beginning"),
    ],
)
def test_churn_that_cannot_be_says_the_mend(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=r"^churn: ") as caught:
        parse_churn(text, NAMES, 0)
    assert message in str(caught.value)


# Membership, and time


def oracle(there: tuple[int, ...] = (0, 1, 2)) -> Oracle:
    return Oracle(tuple(Member(f"peer{i:06d}", str(i), str(i), state="member") for i in range(4)), there, 0)


def test_a_change_of_members_holds_from_its_round_on() -> None:
    table = oracle()
    before = table.view(3)
    table.end(1, 5)
    table.admit(3, 7)
    assert [len(table.view(round)) for round in (0, 4, 5, 6, 7, 90)] == [3, 3, 2, 2, 3, 3]
    assert table.view(90).names == ("0", "2", "3")
    assert table.view(4).digest == before.digest
    assert table.view(5) is table.view(6)


def test_who_comes_back_is_a_member_again() -> None:
    table = oracle()
    table.end(1, 4)
    table.admit(1, 9)
    assert [1 in [int(m.seat) for m in table.view(round).members] for round in (3, 4, 8, 9)] == [
        True,
        False,
        False,
        True,
    ]


def test_who_never_took_part_leaves_no_trace() -> None:
    table = oracle()
    table.admit(3, 6)
    table.end(3, 6)
    assert len(table.view(6)) == len(table.view(0)) == 3


def test_things_happen_in_order_of_time_and_then_of_their_putting_down() -> None:
    clock = VirtualTime()
    happened: list[object] = []
    clock.at(2.0, happened.append, "late")
    clock.at(1.0, happened.append, "first")
    clock.at(1.0, lambda: clock.at(0.5, happened.append, "past comes at once"))
    clock.at(1.0, happened.append, "second")
    clock.run(lambda: False)
    assert happened == ["first", "second", "past comes at once", "late"]
    assert clock.now == 2.0


def test_time_stops_where_it_is_told() -> None:
    clock = VirtualTime()
    happened: list[object] = []
    for time in range(5):
        clock.at(float(time), happened.append, time)
    clock.run(lambda: len(happened) == 2)
    assert (happened, clock.now) == ([0, 1], 1.0)
