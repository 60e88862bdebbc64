"""Averaging numbers: published and closed-form figures, what is conserved, and failures."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from p2pfl.cli.app import app
from p2pfl.errors import TopologyError, UsageError
from p2pfl.graphs import named
from p2pfl.graphs.mixing import mixing_matrix, mixing_weights, with_missing
from p2pfl.graphs.schedule import Schedule
from p2pfl.graphs.topology import Topology
from p2pfl.recipe import Recipe
from p2pfl.simulation import schemes
from p2pfl.simulation.scalars import average, run_scalars

SCHEMES = ("gossip", "push-sum", "groups:size=3", "moshpit:size=4", "all-reduce")
EXAMPLE = Path(__file__).parent.parent / "examples" / "averaging_with_failures.py"

# theory.md, section 7: rounds below 1e-9 and below 1e-4.
PUBLISHED = [
    ("groups:size=32", 512, 0.0, 6.1, 3.0),
    ("groups:size=32", 512, 0.005, 6.3, 3.0),
    ("groups:size=32", 768, 0.0, 6.2, 3.0),
    ("groups:size=32", 900, 0.0, 6.4, 3.0),
    ("groups:size=32", 900, 0.01, 7.0, 3.1),
    ("moshpit:size=32", 512, 0.0, 8.2, 3.6),
    ("moshpit:size=32", 512, 0.005, 8.8, 3.9),
    ("moshpit:size=32", 768, 0.0, 6.0, 3.0),
    ("moshpit:size=32", 900, 0.0, 5.0, 2.9),
    ("moshpit:size=32", 900, 0.01, 6.5, 3.0),
]


def ring_and_tree(nodes: int) -> Topology:
    """Directed and strongly connected, with in- and out-degrees that differ."""
    ring = {(i, (i + 1) % nodes) for i in range(nodes)}
    tree = {(i, (i - 1) // 2) for i in range(1, nodes)}
    return Topology("ring-and-tree", nodes, tuple(ring | tree), directed=True)


def within_errors(sample: np.ndarray, expected: float, errors: float = 4.0) -> bool:
    """Whether the mean is as expected within so many standard errors."""
    return abs(sample.mean() - expected) <= errors * sample.std(ddof=1) / np.sqrt(len(sample))


@pytest.mark.parametrize(("peers", "failure"), [(512, 0.005), (512, 0.001), (900, 0.01)])
def test_all_reduce_takes_as_long_as_its_closed_form(peers: int, failure: float) -> None:
    result = average("all-reduce", peers=peers, rounds=50, failure=failure, restarts=1000, until=1e-9)
    q = (1 - failure) ** peers
    assert within_errors(result.rounds_below(1e-9), (1 - (1 - q) ** 50) / q)
    assert np.array_equal(result.rounds_below(1e-9), result.rounds_below(1e-4))


def test_all_reduce_without_failures_takes_one_round() -> None:
    assert set(average("all-reduce", peers=512, rounds=50, restarts=20).rounds_below(1e-9)) == {1}


@pytest.mark.parametrize(("scheme", "peers", "failure", "exact", "rough"), PUBLISHED)
def test_groups_and_moshpit_are_as_published(
    scheme: str, peers: int, failure: float, exact: float, rough: float
) -> None:
    result = average(scheme, peers=peers, rounds=50, failure=failure, restarts=100, until=1e-9)
    for threshold, published in ((1e-9, exact), (1e-4, rough)):
        rounds = result.rounds_below(threshold)
        assert abs(rounds.mean() - published) <= max(0.1 * published, rounds.std() / np.sqrt(10))


def test_gossip_on_a_ring_does_not_get_there_in_fifty_rounds() -> None:
    result = average("gossip", "ring", peers=512, rounds=50, restarts=3)
    assert set(result.rounds_below(1e-4)) == {50}
    assert result.variance[:, -1].min() > 1e-2


# theory.md, section 3: random equal groups contract by (r − 1)/(n − 1); a perfect matching is groups of two.
@pytest.mark.parametrize(
    ("peers", "size", "factor"),
    [(16, 4, 0.2), (25, 5, 0.16667), (64, 8, 0.11111), (16, 2, 0.46667), (64, 2, 0.49206)],
)
def test_random_groups_contract_as_predicted(peers: int, size: int, factor: float) -> None:
    result = average(f"groups:size={size}", peers=peers, rounds=1, restarts=3000)
    assert within_errors(result.contraction(), factor)


@pytest.mark.parametrize(("peers", "size", "dims"), [(1024, 32, 2), (512, 8, 3), (16, 2, 4)])
def test_moshpit_on_a_full_grid_is_exact_after_one_round_an_axis(peers: int, size: int, dims: int) -> None:
    result = average(f"moshpit:size={size},dims={dims}", peers=peers, rounds=dims, restarts=2)
    assert result.variance[:, dims].max() < 1e-30
    assert result.error[:, dims].max() < 1e-30
    assert result.variance[:, dims - 1].min() > 1e-4


def test_a_grid_is_as_small_as_can_be_unless_told() -> None:
    assert average("moshpit", peers=1000, rounds=1).scheme == "moshpit:size=32,dims=2"
    assert average("moshpit:dims=3", peers=1000, rounds=1).scheme == "moshpit:size=10,dims=3"
    assert average("moshpit:dims=3", peers=1001, rounds=1).scheme == "moshpit:size=11,dims=3"
    assert average("moshpit:dims=5", peers=243, rounds=1).scheme == "moshpit:size=3,dims=5"


@pytest.mark.parametrize(("peers", "size", "groups"), [(5, 2, [2, 3]), (8, 3, [4, 4]), (3, 4, [3]), (6, 3, [3, 3])])
def test_the_rest_joins_the_groups_one_each(peers: int, size: int, groups: list[int]) -> None:
    values = 10.0 ** np.arange(peers)
    after = average(f"groups:size={size}", peers=peers, rounds=1, values=values).values[0]
    assert sorted(list(after).count(value) for value in set(after)) == groups
    assert after.sum() == pytest.approx(values.sum())


def test_gossip_is_the_mixing_matrix_times_the_values() -> None:
    topology = named.build("star", 7)
    values = np.arange(7.0)
    result = average("gossip", topology, peers=7, rounds=3, values=values)
    expected = np.linalg.matrix_power(mixing_matrix(topology), 3) @ values
    np.testing.assert_allclose(result.values[0], expected, atol=1e-14)
    np.testing.assert_allclose(result.variance[0, 3], expected.var(), atol=1e-14)
    np.testing.assert_allclose(result.error[0, 3], ((expected - 3) ** 2).mean(), atol=1e-14)


def test_one_restart_and_many_take_the_same_steps() -> None:
    for scheme in SCHEMES:
        many = average(scheme, "torus", peers=12, rounds=5, failure=0.2, restarts=4, seed=3)
        one = average(scheme, "torus", peers=12, rounds=5, failure=0.2, restarts=1, seed=3)
        np.testing.assert_allclose(many.values[0], one.values[0], atol=1e-14)
        assert not np.allclose(many.values[0], many.values[1])


def test_restarts_that_end_early_leave_the_others_alone() -> None:
    for scheme in SCHEMES:
        ending = average(scheme, "torus", peers=12, rounds=8, failure=0.1, restarts=6, until=0.02)
        going_on = average(scheme, "torus", peers=12, rounds=8, failure=0.1, restarts=6)
        ran = np.isfinite(ending.variance)
        assert not ran.all()
        assert ran[:, 0].all()
        np.testing.assert_allclose(ending.variance[ran], going_on.variance[ran], atol=1e-14)
        assert np.array_equal(ending.rounds_below(0.02), going_on.rounds_below(0.02))
        assert len(ending.metrics) == ran.sum()


def test_missing_weight_goes_to_self_as_in_live_peers() -> None:
    topology = named.build("star", 6)
    alive = np.array([True, True, False, True, False, True])
    scheme = schemes.gossip(Schedule.of(topology))
    values = np.array([[1.0, 2.0, 4.0, 8.0, 16.0, 32.0]])
    mixed = scheme.read(scheme.step({"x": values}, 0, alive[None], []))[0]
    for node in range(6):
        expected = values[0, node]
        if alive[node]:
            missing = [other for other in topology.sources(node) if not alive[other]]
            row = with_missing(mixing_weights(topology, node), node, missing)
            expected = sum(weight * values[0, other] for other, weight in row.items())
        assert mixed[node] == pytest.approx(expected, abs=1e-14)


def test_push_sum_finds_the_average_where_plain_sums_do_not() -> None:
    values = np.arange(25.0)
    result = average("push-sum", ring_and_tree(25), peers=25, rounds=400, values=values)
    np.testing.assert_allclose(result.values[0], 12.0, atol=1e-12)
    scheme = schemes.push_sum(Schedule.of(ring_and_tree(25)))
    state = scheme.begin(values[None], [])
    for round in range(400):
        state = scheme.step(state, round, None, [])
    assert np.abs(np.asarray(state["x"]) - 12).max() > 1  # biased by the stationary weights


@pytest.mark.parametrize("failure", [0.0, 0.3])
def test_push_sum_conserves_sum_and_weight_in_every_round(failure: float) -> None:
    draw = np.random.default_rng(0)
    scheme = schemes.push_sum(Schedule.of(ring_and_tree(25)))
    values = draw.standard_normal((2, 25))
    state = scheme.begin(values, [])
    for round in range(60):
        alive = draw.random((2, 25)) >= failure if failure else None
        state = scheme.step(state, round, alive, [])
        np.testing.assert_allclose(np.sum(state["w"], axis=1), 25, rtol=1e-13)
        np.testing.assert_allclose(np.sum(state["x"], axis=1), values.sum(axis=1), atol=1e-12)
        assert np.min(np.asarray(state["w"])) > 0
    assert np.var(scheme.read(state)) < np.var(values)


def test_a_schedule_mixes_by_the_topology_of_each_round() -> None:
    rounds = (Topology("first", 4, ((0, 1), (2, 3))), Topology("second", 4, ((0, 2), (1, 3))))
    pairs = Schedule("pairs", 4, 2, lambda round: rounds[round])
    result = average("gossip", pairs, peers=4, rounds=3, values=[0.0, 4.0, 8.0, 12.0])
    assert result.topology == "pairs"
    assert result.variance[0].tolist() == [20.0, 16.0, 0.0, 0.0]
    fresh = Schedule("fresh", 4, None, lambda round: rounds[round % 2])
    assert average("gossip", fresh, peers=4, rounds=3, values=[0.0, 4.0, 8.0, 12.0]).variance[0, 2] == 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_where_all_fail_nothing_happens(scheme: str) -> None:
    values = np.arange(12.0)
    result = average(scheme, "torus", peers=12, rounds=3, values=values, failure=1.0)
    assert np.array_equal(result.values[0], values)


@settings(deadline=None, max_examples=60)
@given(
    scheme=st.sampled_from(SCHEMES),
    peers=st.integers(2, 16),
    failure=st.sampled_from([0.0, 0.1, 0.5]),
    seed=st.integers(0, 1000),
)
def test_every_scheme_keeps_the_average_and_never_spreads(scheme: str, peers: int, failure: float, seed: int) -> None:
    result = average(scheme, "ring", peers=peers, rounds=6, failure=failure, seed=seed, restarts=2)
    began = average(scheme, "ring", peers=peers, rounds=1, failure=1.0, seed=seed, restarts=2).values
    assert result.values.min() >= began.min() - 1e-12
    assert result.values.max() <= began.max() + 1e-12
    if scheme != "push-sum":  # whose weights, not whose quotients, keep the sum
        np.testing.assert_allclose(result.values.mean(axis=1), began.mean(axis=1), atol=1e-12)
        assert (np.diff(result.variance, axis=1) <= 1e-12).all()


def test_figures_of_two_peers() -> None:
    result = average("gossip", "ring", peers=2, rounds=2, values=[[1.0, -1.0], [0.0, 0.0]], restarts=2)
    assert result.variance.tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert result.rounds_below(1e-4).tolist() == [1, 0]
    assert result.contraction()[0] == 0
    assert np.isnan(result.contraction()[1])
    assert result.metrics.to_dict("list")["round"] == [0, 1, 2, 0, 1, 2]
    assert result.summary["rounds_below"]["1e-09"] == {"mean": 0.5, "standard_error": 0.5, "reached": 1.0}
    assert result.summary["consensus_distance"] == 0


def test_a_recipe_runs_with_nothing_to_train() -> None:
    recipe = Recipe(topology="random-regular:k=4", peers=40, rounds=7, seed=5, topology_seed=1)
    result = run_scalars(recipe, failure=0.1, restarts=2)
    assert result.topology == "random-regular:k=4,seed=1"
    assert result.variance.shape == (2, 8)
    direct = average("gossip", "random-regular:k=4,seed=1", peers=40, rounds=7, failure=0.1, restarts=2, seed=5)
    assert np.array_equal(result.variance, direct.variance)


def test_progress_counts_to_the_end() -> None:
    told: list[tuple[int, int]] = []
    average("groups", peers=600_000, rounds=3, restarts=2, progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 6), (1, 6), (2, 6), (3, 6), (3, 6), (4, 6), (5, 6), (6, 6)]


def test_a_million_peers_average_on_a_torus() -> None:
    result = average("gossip", "torus", peers=1_000_000, rounds=2)
    # W = A/5 + I/5 on white noise: Σ W² = 1/5 of the variance is left after a round, Σ (W²)² after two.
    assert result.variance[0, 1] / result.variance[0, 0] == pytest.approx(0.2, rel=0.02)
    assert result.variance[0, 2] / result.variance[0, 0] == pytest.approx(61 / 625, rel=0.02)


@pytest.mark.parametrize(
    ("scheme", "topology", "peers", "options", "message"),
    [
        ("gosip", "ring", 4, {}, "there is no scheme 'gosip'. There are: gossip, push-sum, groups, moshpit, all-re"),
        ("groups:sise=2", "ring", 4, {}, "scheme 'groups' has no option 'sise': its options are size"),
        ("groups:size=1", "ring", 4, {}, "groups:size=1 average nothing; give a size of at least 2"),
        ("groups:size=two", "ring", 4, {}, "option 'size' of scheme 'groups' is a whole number, not 'two'"),
        ("all-reduce:size=1", "ring", 4, {}, "scheme 'all-reduce' has no option 'size': it has none"),
        ("gossip:size=1", "ring", 4, {}, "gossip has no options: who shares with whom is the topology's"),
        ("moshpit:size=2", "ring", 5, {}, "a grid of 2^2 cells cannot hold 5 peers; give size="),
        ("moshpit:dims=0", "ring", 5, {}, "moshpit:dims=0 is no grid; give at least 1"),
        ("moshpit:size=99,dims=9", "ring", 5, {}, "a grid of 99^9 cells cannot hold 5 peers"),
        ("gossip", "ring", 4, {"failure": 1.5}, "failure is 1.5; it is a probability, from 0 to 1"),
        ("gossip", "ring", 4, {"failure": float("nan")}, "failure is nan"),
        ("gossip", "ring", 0, {}, "peers is 0; give at least 1"),
        ("gossip", "ring", 4, {"rounds": 0}, "rounds is 0; give at least 1"),
        ("gossip", "ring", 4, {"until": -1.0}, "until is -1; it is a variance"),
        ("gossip", "ring", 4, {"values": [1.0, 2.0]}, "values have the shape [2]; give [4] or [1, 4]"),
        ("gossip", "ring", 2, {"values": [1.0, np.inf]}, "values are not all finite numbers"),
        ("gossip", Schedule.of(named.build("ring", 5)), 4, {}, "the network 4 peers"),
    ],
)
def test_what_cannot_be_is_told(
    scheme: str, topology: str | Schedule, peers: int, options: dict[str, float], message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        average(scheme, topology, peers=peers, **options)


def test_gossip_refuses_arcs_that_push_sum_takes() -> None:
    with pytest.raises(TopologyError, match="directed"):
        average("gossip", ring_and_tree(9), peers=9)
    assert average("push-sum", ring_and_tree(9), peers=9).variance[0, -1] < 1e-20


def command(*arguments: str) -> str:
    """What `p2pfl average` prints on stdout."""
    done = CliRunner().invoke(app, ["average", *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_the_command_prints_a_table_of_rounds(tmp_path: Path) -> None:
    file = tmp_path / "rounds.csv"
    output = command("--topology", "torus", "--peers", "100", "--rounds", "60", "--csv", str(file))
    assert "gossip on torus:rows=10,cols=10: 100 peers" in output
    assert "variance below 0.0001: after 40 rounds" in output
    assert "variance below 1e-09: not within 60 rounds" in output
    assert pd.read_csv(file)["round"].tolist() == list(range(61))


def test_the_command_prints_one_object() -> None:
    summary = json.loads(command("--scheme", "moshpit:size=8,dims=2", "--peers", "64", "--rounds", "2", "--json"))
    assert (summary["algorithm"], summary["peers"], summary["topology"]) == ("moshpit:size=8,dims=2", 64, None)
    assert summary["rounds_below"]["1e-09"] == {"mean": 2.0, "standard_error": None, "reached": 1.0}
    assert summary["engine"] == "scalars"


def test_the_command_takes_a_ready_file() -> None:
    summary = json.loads(command("--topology", "petersen", "--peers", "10", "--rounds", "30", "--json"))
    assert summary["consensus_distance"] < 1e-6


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be written: Is a directory; give another --csv"):
        command("--peers", "4", "--rounds", "1", "--csv", str(tmp_path))


def test_the_example_reproduces_the_published_table() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLE), "100"], capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    largest = re.search(r"largest distance of groups and Moshpit: (\d\.\d\d) ", done.stdout)
    assert largest is not None
    assert float(largest[1]) <= 1
    assert [float(z) for z in re.findall(r" ([+-]\d\.\d) ", done.stdout)] == pytest.approx([0] * 5, abs=4)
