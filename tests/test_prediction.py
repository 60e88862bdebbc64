"""What is expected of a schedule before training: floors, contraction, exact rounds, mixing time, and the ranking."""

import numpy as np
import pytest

from p2pfl.graphs.links import links
from p2pfl.graphs.mixing import mixing_matrix
from p2pfl.graphs.named import schedule
from p2pfl.graphs.noise import rounds_to_simulate, simulate
from p2pfl.graphs.prediction import MIXED, Prediction, contraction, exact_rounds, noise_floor, predict
from p2pfl.graphs.schedule import Schedule
from p2pfl.graphs.schedules import in_turn
from p2pfl.graphs.topology import Topology
from p2pfl.graphs.weighting import weighted
from p2pfl.topology_files import load_schedule


@pytest.mark.parametrize(
    ("name", "floor", "how"),
    [
        ("ring", 2.583, "formula"),
        ("star", 10.815, "formula"),
        ("torus", 0.2691, "formula"),
        ("chain", 5.693, "formula"),
        ("exponential", 0.1562, "formula"),
    ],
)
def test_floors_by_formula(name: str, floor: float, how: str) -> None:  # theory.md §6, n = 25
    found = noise_floor(schedule(name, 25))
    assert found is not None
    assert (found.how, found.standard_error) == (how, 0)
    assert found.value == pytest.approx(floor, abs=5.1e-4)


@pytest.mark.parametrize(
    ("name", "floor", "how"),
    [
        ("one-peer-exponential", 0.803, "exact"),
        ("base:k=1", 1.116, "exact"),
        ("base:k=2", 0.637, "exact"),
        ("base:k=4", 0.161, "exact"),
        ("epidemic-local:s=1", 1.48, "monte carlo"),
        ("epidemic-oracle:s=4", 0.192, "monte carlo"),
    ],
)
def test_floors_of_schedules(name: str, floor: float, how: str) -> None:  # theory.md §6, n = 25, known to 3 %
    found = noise_floor(schedule(name, 25))
    assert found is not None
    assert found.how == how
    assert (found.standard_error > 0) == (how == "monte carlo")
    assert found.standard_error < 0.015 * floor
    assert found.value == pytest.approx(floor, rel=0.03)


@pytest.mark.parametrize(("k", "floor"), [(1, 1.1191), (2, 0.6386), (3, 0.4916), (4, 0.16)])
def test_floors_of_base_graphs_are_those_of_the_authors_matrices(k: int, floor: float) -> None:
    # Who is linked with whom tells, not the number of rounds alone.
    found = noise_floor(schedule(f"base:k={k}", 25))
    assert found is not None
    assert found.value == pytest.approx(floor, abs=1e-4)


def test_a_law_that_treats_all_alike_has_a_floor_in_closed_form() -> None:
    found = noise_floor(schedule("epidemic-oracle:s=4", 25))
    assert found is not None
    kept = 1 / 5 * (1 - 4 / 24)
    assert abs(found.value - kept / (1 - kept) * 24 / 25) < 4 * found.standard_error


@pytest.mark.parametrize(
    ("name", "nodes", "factor"),
    [
        ("random-matching", 16, 0.46667),
        ("random-matching", 64, 0.49206),
        ("epidemic-oracle:s=4", 16, 0.14667),
        ("epidemic-oracle:s=4", 25, 0.16667),
        ("epidemic-oracle:s=6", 64, 0.12925),
        ("epidemic-local:s=1", 16, 0.60175),
        ("epidemic-local:s=4", 16, 0.18158),
        ("epidemic-local:s=4", 25, 0.20571),
        ("epidemic-local:s=6", 64, 0.15052),
        ("equi-dynamic", 16, 0.46875),
        ("equi-dynamic", 25, 0.48),
        ("equi-dynamic", 64, 0.49219),
    ],
)
def test_expected_contraction(name: str, nodes: int, factor: float) -> None:  # theory.md §3
    found = contraction(schedule(name, nodes))
    assert found is not None
    assert abs(found.value - factor) < 4 * found.standard_error + 6e-6  # the factors are rounded to five digits
    assert found.standard_error < 0.01


def test_contraction_of_one_topology_is_that_of_the_worst_direction() -> None:
    found = contraction(schedule("ring", 16))
    assert found is not None
    assert (found.value, found.how) == (pytest.approx((1 - 0.05074697832580877) ** 2, rel=1e-12), "exact")


@pytest.mark.parametrize(
    ("name", "nodes", "rounds"),
    [
        ("complete", 9, 1),
        ("ring", 1, 0),
        ("ring", 16, None),
        ("exponential", 16, None),
        ("one-peer-exponential", 4, 2),
        ("one-peer-exponential", 64, 6),
        ("one-peer-exponential", 25, None),
        ("one-peer-hypercube", 32, 5),
        ("base:k=1", 25, 9),
        ("base:k=2", 25, 6),
        ("base:k=3", 25, 5),
        ("base:k=4", 25, 2),
        ("base:k=1", 65, 13),
        ("moshpit:dims=2", 1024, 2),
        ("moshpit:dims=3", 512, 3),
        ("random-matching", 16, None),
    ],
)
def test_exact_rounds(name: str, nodes: int, rounds: int | None) -> None:  # theory.md §2
    assert exact_rounds(schedule(name, nodes)) == rounds


@pytest.mark.parametrize(
    ("name", "nodes", "rounds"), [("star", 16, 2), ("hypercube", 16, 4), ("ring", 16, 8), ("torus", 25, 5)]
)
def test_finite_time_weights_are_exact_when_they_should_be(name: str, nodes: int, rounds: int) -> None:
    prediction = Prediction(weighted(schedule(name, nodes), "finite-time"))
    assert (prediction.exact_rounds, prediction.mixing_time) == (rounds, rounds)
    assert (prediction.spectral_gap, prediction.singular_gap) == (1, 1)


def test_exact_rounds_are_found_where_the_schedule_does_not_tell() -> None:
    told = schedule("one-peer-exponential", 16)
    untold = Schedule("untold", 16, told.period, told.at)
    assert untold.settled_after is None
    assert exact_rounds(untold) == 4
    again = Schedule("again", 16, 8, lambda round: told.at(round))
    assert exact_rounds(again) == 4  # of a longer period, as soon as it is


def test_a_fixed_graph_can_be_exact_after_several_rounds() -> None:
    prediction = Prediction(load_schedule("de-bruijn", None))
    assert (prediction.exact_rounds, prediction.mixing_time, prediction.spectral_gap) == (3, 3, 1)
    assert prediction.singular_gap == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", ["ring", "torus", "star", "exponential", "one-peer-exponential", "base:k=2"])
def test_mixing_time_is_when_the_distance_has_shrunk_to_a_thousandth(name: str) -> None:
    turns = schedule(name, 12)
    time = Prediction(turns).mixing_time
    assert time is not None
    left, norms = np.eye(12) - 1 / 12, []
    for round in range(time):
        left = mixing_matrix(turns.at(round)) @ left
        norms.append(np.linalg.norm(left, 2))
    assert norms[-1] <= MIXED
    assert time == 1 or turns.period != 1 or norms[-2] > MIXED  # over periods it is an upper bound


def test_gaps_of_what_repeats_are_a_rounds_share_of_the_periods() -> None:
    prediction = Prediction(schedule("one-peer-exponential", 25))  # theory.md §2: ‖P − J‖₂ = .1921 after 5 rounds
    assert prediction.singular_gap == pytest.approx(1 - 0.1921 ** (1 / 5), abs=1e-4)
    assert prediction.spectral_gap == pytest.approx(prediction.singular_gap, abs=1e-9)


@pytest.mark.parametrize(("nodes", "left"), [(5, 0.2023), (6, 0.2165), (7, 0.125), (10, 0.1924), (63, 0.0156)])
def test_one_peer_exponential_is_not_exact_between_powers_of_two(nodes: int, left: float) -> None:
    prediction = Prediction(schedule("one-peer-exponential", nodes))
    assert prediction.exact_rounds is None
    assert prediction.singular_gap is not None
    assert (1 - prediction.singular_gap) ** (prediction.schedule.period or 0) == pytest.approx(left, abs=5.1e-5)


def test_gaps_of_draws_are_those_of_the_mean_square() -> None:
    prediction = Prediction(schedule("random-matching", 16))
    assert prediction.spectral_gap == prediction.singular_gap == pytest.approx(1 - (14 / 30) ** 0.5, rel=1e-9)
    assert prediction.how == "monte carlo"


def test_effective_neighbors_by_formula_by_solving_and_by_draws() -> None:
    found = {name: Prediction(schedule(name, 16)) for name in ("ring", "one-peer-exponential", "epidemic-oracle:s=4")}
    at_9 = {name: one.effective_neighbors(0.9) for name, one in found.items()}
    assert [one.how for one in at_9.values() if one] == ["formula", "exact", "monte carlo"]
    assert at_9["ring"] is not None
    assert at_9["ring"].value == pytest.approx(6.60, abs=5.1e-3)
    drawn, kept = at_9["epidemic-oracle:s=4"], 0.14667
    assert drawn is not None
    closed = 10 / (10 / 16 + kept / (1 - 0.9 * kept) * 15 / 16)
    assert abs(drawn.value - closed) < 4 * drawn.standard_error + 1e-3
    other = found["epidemic-oracle:s=4"].effective_neighbors(0.5)  # a γ nobody asked for before
    assert other is not None
    assert 1 < other.value < drawn.value


def test_networks_in_parts_have_no_floor_and_never_mix() -> None:
    prediction = Prediction(Schedule.of(Topology("parts", 4, ((0, 1), (2, 3)))))
    assert (prediction.noise_floor, prediction.mixing_time, prediction.exact_rounds) == (None, None, None)
    assert prediction.spectral_gap == pytest.approx(0, abs=1e-12)


def test_weights_that_let_the_average_drift_are_told() -> None:
    assert Prediction(schedule("star", 9)).doubly_stochastic
    drifting = Prediction(weighted(schedule("star", 9), "uniform"))
    assert not drifting.doubly_stochastic
    assert drifting.noise_floor is not None
    assert drifting.noise_floor.how == "exact"
    assert not Prediction(schedule("epidemic-local", 16)).doubly_stochastic


def test_topologies_are_ranked_by_floor() -> None:
    # The order in which they trained, theory.md §5; chain and base:k=2 between.
    names = ["star", "one-peer-exponential", "complete", "chain", "ring", "torus", "exponential", "base:k=2"]
    ranked = [one.schedule.name.partition(":rows")[0] for one in predict([schedule(name, 25) for name in names])]
    assert ranked == ["complete", "exponential", "torus", "base:k=2", "one-peer-exponential", "ring", "chain", "star"]


def test_what_has_no_floor_comes_last() -> None:
    parts = Schedule.of(Topology("parts", 4, ((0, 1), (2, 3))))
    assert [one.schedule.name for one in predict([parts, schedule("star", 4)])] == ["star", "parts"]


def test_large_networks_leave_out_what_would_take_minutes() -> None:
    chain = Prediction(schedule("chain", 5000))
    assert chain.spectral_gap == pytest.approx(1.3159472e-07, rel=1e-4)
    assert (chain.noise_floor, chain.eigenvalues, chain.effective_neighbors(0.9)) == (None, None, None)
    regular = Prediction(schedule("random-regular:k=8", 4200))  # mixes quickly, so it can be simulated
    assert regular.noise_floor is not None
    assert regular.noise_floor.how == "monte carlo"
    assert regular.noise_floor.value == pytest.approx(0.148, rel=0.03)
    torus = Prediction(schedule("torus", 4096))
    assert torus.noise_floor is not None
    assert (torus.noise_floor.how, torus.noise_floor.value) == ("formula", pytest.approx(1.2569, abs=1e-4))


def test_one_peer_has_nothing_to_agree_on() -> None:
    for name in ("ring", "one-peer-exponential", "random-matching"):
        prediction = Prediction(schedule(name, 1))
        assert prediction.noise_floor is not None
        assert prediction.noise_floor.value == 0
        assert (prediction.exact_rounds, prediction.mixing_time) == (0, 0)
        neighbors = prediction.effective_neighbors(0.9)
        assert neighbors is not None
        assert neighbors.value == pytest.approx(1)


def test_slow_draws_are_simulated_from_near_their_stationary_state() -> None:
    slow = schedule("equi-dynamic:eta=.002", 25)
    weight = 0.002 * 24 / 25
    left = 1 - 2 * weight * (1 - weight) * (1 + 1 / 24)
    floor = left / (1 - left) * 24 / 25
    assert floor == pytest.approx(239.5, abs=0.06)
    assert simulate(slow, rounds=20, burn_in=0).noise_floor.value == pytest.approx(floor, rel=0.03)


def test_rounds_to_simulate_grow_with_how_long_noise_lasts() -> None:
    assert rounds_to_simulate(25, 0.5) == 600
    assert rounds_to_simulate(25, 0.98) == 4900
    assert rounds_to_simulate(100_000, 0.2) == 40
    assert rounds_to_simulate(100_000, 0.9) is None
    assert rounds_to_simulate(25, 0.996) is None
    assert rounds_to_simulate(4, 1.0) is None


def test_draws_too_slow_to_simulate_have_no_floor_rather_than_a_wrong_one() -> None:
    for slow in (schedule("equi-dynamic:eta=.002", 25), weighted(schedule("random-matching", 26), "lazy:keep=.995")):
        prediction = Prediction(slow)
        assert (prediction.noise_floor, prediction.effective_neighbors(0.9)) == (None, None)


def test_each_round_drawn_anew_is_drawn_once_for_links_and_contraction() -> None:
    drawn: list[int] = []
    told = schedule("random-matching", 26)
    counting = Schedule("counting", 26, None, lambda round: drawn.append(round) or told.at(round))  # type: ignore[func-returns-value]  # append gives None
    prediction = Prediction(counting)
    assert prediction.links == links(told)
    assert prediction.contraction == contraction(told)
    assert prediction.doubly_stochastic
    assert drawn == list(range(400))


def test_exact_consensus_of_many_nodes_is_found_or_said_to_be_unknown() -> None:
    hypercube = [schedule("one-peer-hypercube", 2048).at(round) for round in range(11)]
    found = Prediction(in_turn("turns", hypercube))
    assert (found.exact_rounds, found.exact_unknown) == (11, False)
    nodes = np.arange(2048)  # a de Bruijn graph, exact after 11 rounds
    arcs = np.concatenate([np.stack([nodes, (2 * nodes + bit) % 2048], axis=1) for bit in (0, 1)])
    arcs = arcs[arcs[:, 0] != arcs[:, 1]]
    bruijn = Topology.of_links("de-bruijn", 2048, arcs, np.full(len(arcs), 0.5), directed=True)
    unknown = Prediction(Schedule.of(bruijn))
    assert (unknown.exact_rounds, unknown.exact_unknown) == (None, True)
    for name in ("ring", "exponential", "random-regular"):
        never = Prediction(schedule(name, 2048))
        assert (never.exact_rounds, never.exact_unknown) == (None, False)
    assert Prediction(schedule("one-peer-exponential", 5000)).exact_unknown
