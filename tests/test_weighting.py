import math

import networkx as nx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.errors import TopologyError, UsageError
from p2pfl.graphs.links import finite_time_rounds
from p2pfl.graphs.mixing import mixing_csr, mixing_matrix, mixing_weights
from p2pfl.graphs.named import schedule
from p2pfl.graphs.schedule import Schedule
from p2pfl.graphs.topology import Topology
from p2pfl.graphs.weighting import WEIGHTINGS, drift_warning, leja, serves_finite_time, weighted
from p2pfl.topology_files import load_schedule

THIRD = 1 / 3
ONE_WAY = Topology("one-way", 3, ((0, 1), (1, 2), (2, 0), (0, 2)), directed=True)


def matrix(spec: str, nodes: int, mixing: str, round: int = 0) -> npt.NDArray[np.float64]:
    return mixing_matrix(weighted(schedule(spec, nodes), mixing).at(round))


def gap(of: npt.NDArray[np.float64]) -> float:
    return 1 - float(np.sort(np.abs(np.linalg.eigvalsh(of)))[-2])


@st.composite
def connected(draw: st.DrawFn) -> Topology:
    nodes = draw(st.integers(2, 12))
    tree = [(draw(st.integers(0, node - 1)), node) for node in range(1, nodes)]
    more = [(i, j) for i in range(nodes) for j in range(i + 1, nodes) if (i, j) not in tree and draw(st.booleans())]
    return Topology("drawn", nodes, (*tree, *more))


def test_the_weightings_are_these() -> None:
    assert WEIGHTINGS == ("auto", "metropolis", "max-degree", "uniform", "lazy", "best-constant", "finite-time")


def test_weights_of_a_chain_of_three_by_every_rule() -> None:
    two = 2 * THIRD
    assert matrix("chain", 3, "metropolis") == pytest.approx(
        np.array([[two, THIRD, 0], [THIRD, THIRD, THIRD], [0, THIRD, two]]), abs=1e-15
    )
    assert np.array_equal(matrix("chain", 3, "max-degree"), matrix("chain", 3, "metropolis"))
    assert matrix("chain", 3, "uniform") == pytest.approx(
        np.array([[0.5, 0.5, 0], [THIRD, THIRD, THIRD], [0, 0.5, 0.5]]), abs=1e-15
    )
    assert matrix("chain", 3, "lazy") == pytest.approx((np.eye(3) + matrix("chain", 3, "metropolis")) / 2, abs=1e-15)
    # The Laplacian has 0, 1 and 3: α = 2 / (1 + 3).
    assert matrix("chain", 3, "best-constant") == pytest.approx(
        np.array([[0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]), abs=1e-15
    )
    assert matrix("chain", 3, "finite-time", round=0) == pytest.approx(
        np.array([[two, THIRD, 0], [THIRD, THIRD, THIRD], [0, THIRD, two]]), abs=1e-15
    )
    assert matrix("chain", 3, "finite-time", round=1) == pytest.approx(
        np.array([[0, 1, 0], [1, -1, 1], [0, 1, 0]]), abs=1e-14
    )


def test_max_degree_looks_at_the_largest_of_all() -> None:
    star = matrix("star", 5, "max-degree")
    assert star[1].tolist() == [0.2, 0.8, 0, 0, 0]
    assert star[0] == pytest.approx([0.2] * 5, abs=1e-15)


def test_auto_is_the_schedule_itself() -> None:
    ring = schedule("ring", 8)
    assert weighted(ring, "auto") is ring


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("ring", (0.0733, 0.0311, 0.0048)),
        ("star", (0.1176, 0.0769, 0.0308)),
        ("torus", (0.4000, 0.3207, 0.1365)),
        ("grid", (0.1580, 0.1003, 0.0388)),
    ],
)
def test_gaps_of_the_best_constant_weight(name: str, printed: tuple[float, float, float]) -> None:
    gaps = [gap(matrix(name, nodes, "best-constant")) for nodes in (16, 25, 64)]
    assert gaps == pytest.approx(printed, abs=5.1e-5)


@pytest.mark.parametrize("nodes", [3, 5, 16, 25])
def test_best_constant_gap_of_a_star_by_formula(nodes: int) -> None:
    # Its Laplacian has 0, 1 and n.
    assert gap(matrix("star", nodes, "best-constant")) == pytest.approx(2 / (nodes + 1), abs=1e-12)


@pytest.mark.parametrize("r", [3, 4, 5, 8])
def test_lazy_halves_the_spectrum_towards_one(r: int) -> None:
    usual = np.linalg.eigvalsh(matrix("torus", r * r, "metropolis"))
    assert np.linalg.eigvalsh(matrix("torus", r * r, "lazy")) == pytest.approx((1 + usual) / 2, abs=1e-12)
    assert np.linalg.eigvalsh(matrix("torus", r * r, "lazy")).min() >= 0


def test_lazy_keeps_as_much_as_it_is_told() -> None:
    usual = matrix("ring", 7, "metropolis")
    assert matrix("ring", 7, "lazy:keep=.25") == pytest.approx(0.25 * np.eye(7) + 0.75 * usual, abs=1e-15)
    assert matrix("ring", 7, "lazy:keep=0") == pytest.approx(usual, abs=1e-15)


@pytest.mark.parametrize(
    ("spec", "nodes", "rounds"),
    [
        ("complete", 9, 1),
        ("star", 9, 2),
        ("star", 64, 2),
        ("ring", 16, 8),
        ("ring", 25, 12),
        ("ring", 64, 32),
        ("torus", 16, 4),
        ("torus", 25, 5),
        ("torus", 64, 12),
        ("hypercube", 8, 3),
        ("hypercube", 64, 6),
        ("hypercube", 128, 7),
        ("chain", 12, 11),
    ],
)
def test_finite_time_is_exact_after_as_many_rounds_as_distinct_eigenvalues(spec: str, nodes: int, rounds: int) -> None:
    finite = weighted(schedule(spec, nodes), "finite-time")
    assert finite.period == finite.settled_after == rounds
    values = np.random.default_rng(1).normal(size=(nodes, 4))
    mean = values.mean(axis=0)
    for round in range(rounds):
        assert np.abs(values - mean).max() > 1e-3
        values = mixing_csr(finite.at(round)) @ values
    assert np.abs(values - mean).max() < 1e-10


def test_finite_time_finds_as_many_eigenvalues_as_petersen_has() -> None:
    petersen = Topology.from_networkx(nx.petersen_graph())
    finite = weighted(Schedule.of(petersen), "finite-time")
    assert finite.period == 2  # 2 and 5
    assert np.abs(mixing_matrix(finite.at(1)) @ mixing_matrix(finite.at(0)) - 0.1).max() < 1e-14


def test_finite_time_is_refused_where_rounding_would_spoil_it() -> None:
    says = "would not be exact on 'barabasi-albert:m=2,seed=0': its 46 rounds blow rounding up.*take 'best-constant'"
    with pytest.raises(TopologyError, match=says):
        weighted(schedule("barabasi-albert", 50), "finite-time")
    finite = weighted(schedule("barabasi-albert", 20), "finite-time")  # 2e-9 off
    values = np.random.default_rng(0).normal(size=20)
    mean = values.mean()
    for round in range(finite.period or 0):
        values = mixing_csr(finite.at(round)) @ values
    assert np.abs(values - mean).max() < 1e-7


def test_leja_order_takes_the_ends_first() -> None:
    assert leja([]) == []
    assert leja([1.0, 2.0, 3.0, 4.0, 5.0]) == [5.0, 1.0, 3.0, 2.0, 4.0]
    assert leja([0.0, 10.0, 6.0, 4.0, 1.0]) == [10.0, 0.0, 4.0, 6.0, 1.0]


@settings(max_examples=80, deadline=None)
@given(connected(), st.sampled_from(["metropolis", "max-degree", "lazy", "best-constant", "finite-time"]))
def test_weights_are_symmetric_and_keep_the_average(topology: Topology, mixing: str) -> None:
    of = weighted(Schedule.of(topology), mixing)
    for round in range(of.period or 0):
        rows = mixing_matrix(of.at(round))
        assert np.array_equal(rows - np.diag(np.diag(rows)), (rows - np.diag(np.diag(rows))).T)
        assert np.abs(rows.sum(axis=1) - 1).max() < 1e-12
        assert of.at(round).doubly_stochastic
        assert of.at(round).edges == topology.edges
    assert drift_warning(of) == ""


@settings(max_examples=80, deadline=None)
@given(connected())
def test_uniform_drifts_where_degrees_differ_and_says_so(topology: Topology) -> None:
    of = weighted(Schedule.of(topology), "uniform")
    rows = mixing_matrix(of.at(0))
    for node in range(topology.nodes):
        assert set(rows[node, list(topology.sources(node))]) == {1 / (1 + topology.degree(node))}
    even = bool(np.abs(rows.sum(axis=0) - 1).max() < 1e-9)
    assert of.at(0).doubly_stochastic == even == topology.regular
    assert of.at(0).drifting != topology.regular
    assert (drift_warning(of) == "") == topology.regular


def test_drift_warning_is_one_plain_sentence() -> None:
    assert drift_warning(weighted(schedule("star", 5), "uniform")) == (
        "the weights of 'star' do not keep the network's average: in round 0 they give some nodes 2.2 of a say and "
        "others 0.7, so what all agree on drifts away from the mean"
    )
    assert "do not keep the network's average" in drift_warning(schedule("epidemic-local", 20))
    for spec in ("ring", "exponential", "base", "equi-dynamic", "random-matching", "equi-static:directed=true"):
        assert drift_warning(schedule(spec, 20)) == ""


def test_uniform_fixed_point_is_the_mean_weighted_by_degree() -> None:
    chain = weighted(schedule("chain", 4), "uniform")
    values = np.array([4.0, 0.0, 0.0, 0.0])
    for _ in range(400):
        values = mixing_csr(chain.at(0)) @ values
    assert values == pytest.approx([4 * 2 / 10] * 4, abs=1e-12)  # degrees and one: 2, 3, 3, 2


def test_uniform_makes_a_directed_graph_of_unequal_degrees_mix() -> None:
    with pytest.raises(TopologyError, match="the average would drift"):
        drift_warning(Schedule.of(ONE_WAY))
    of = weighted(Schedule.of(ONE_WAY), "uniform")
    assert mixing_weights(of.at(0), 2) == {2: 1 - (THIRD + THIRD), 0: THIRD, 1: THIRD}
    assert drift_warning(of) != ""


def test_weights_of_a_file_are_kept_by_auto_and_replaced_by_others() -> None:
    own = Topology("own", 2, ((0, 1),), weights=((0, 0, 0.9), (0, 1, 0.1), (1, 0, 0.1), (1, 1, 0.9)))
    assert mixing_matrix(weighted(Schedule.of(own), "auto").at(0))[0, 1] == 0.1
    assert mixing_matrix(weighted(Schedule.of(own), "metropolis").at(0))[0, 1] == 0.5
    assert mixing_matrix(weighted(Schedule.of(own), "lazy").at(0))[0, 1] == 0.05


def test_every_round_of_a_schedule_is_weighed() -> None:
    base = schedule("base", 6)
    of = weighted(base, "lazy")
    assert (of.name, of.period, of.settled_after) == (base.name, base.period, None)
    for round in range(base.period or 0):
        assert mixing_matrix(of.at(round)) == pytest.approx((np.eye(6) + mixing_matrix(base.at(round))) / 2, abs=1e-15)
    drawn = weighted(schedule("random-matching", 6), "lazy")
    assert drawn.period is None
    assert drawn.at(5).edges == schedule("random-matching", 6).at(5).edges


@pytest.mark.parametrize(
    ("spec", "nodes", "mixing", "settled"),
    [
        ("one-peer-hypercube", 8, "metropolis", 3),
        ("one-peer-hypercube", 8, "uniform", 3),
        ("one-peer-exponential", 8, "max-degree", 3),
        ("moshpit", 16, "metropolis", 2),
        ("base", 5, "metropolis", None),
        ("base", 5, "lazy", None),
        ("complete", 5, "best-constant", 1),
        ("complete", 5, "lazy", None),
        ("star", 5, "best-constant", None),
        ("ring", 4, "metropolis", None),
    ],
)
def test_weights_that_stay_as_they_were_settle_as_before(
    spec: str, nodes: int, mixing: str, settled: int | None
) -> None:
    assert weighted(schedule(spec, nodes), mixing).settled_after == settled


@pytest.mark.parametrize("mixing", WEIGHTINGS)
def test_one_node_keeps_its_own(mixing: str) -> None:
    assert mixing_matrix(weighted(schedule("ring", 1), mixing).at(0)).tolist() == [[1.0]]


@pytest.mark.parametrize(
    ("spec", "nodes", "mixing", "says"),
    [
        (
            "ring",
            5,
            "metropolitan",
            "no weighting 'metropolitan'; did you mean 'metropolis'.* there are: auto, metropolis",
        ),
        ("ring", 5, "zzz", "no weighting 'zzz'; there are: auto"),
        ("ring", 5, "lazy:part=1", "weighting 'lazy' has no option 'part': its options are keep"),
        ("ring", 5, "uniform:k=1", "weighting 'uniform' has no option 'k': it has none"),
        ("ring", 5, "lazy:keep=much", "option 'keep' of weighting 'lazy' cannot be 'much'"),
        ("ring", 5, "lazy:keep=1", "take keep from 0 to below 1, as 0.5"),
        ("ring", 5, "lazy:keep=-1", "take keep from 0"),
        ("exponential", 5, "metropolis", "needs an undirected topology, and 'exponential' is directed: take 'auto' or"),
        ("exponential", 5, "best-constant", "needs an undirected topology"),
        ("exponential", 5, "finite-time", "needs an undirected topology"),
        ("one-peer-hypercube", 4, "finite-time", "needs one topology for all rounds, and 'one-peer-hypercube' changes"),
        ("one-peer-hypercube", 4, "best-constant", "needs a connected topology, and a round of .* is not: take 'auto'"),
        (
            "epidemic-oracle:s=2,seed=0",
            12,
            "best-constant",
            "needs every round connected.* draws each anew, .* take",
        ),
        # Whose first rounds would do, by chance.
        ("epidemic-local:s=1,seed=2", 3, "max-degree", "would let the average drift"),
        ("ring", 3000, "finite-time", "too slow for 3000 nodes: take at most 2048, or 'metropolis'"),
        ("epidemic-local", 20, "max-degree", "would let the average drift .* take 'uniform', which says so, or an"),
    ],
)
def test_a_weighting_that_does_not_fit_is_refused_with_the_mend(spec: str, nodes: int, mixing: str, says: str) -> None:
    with pytest.raises(TopologyError, match=says):
        weighted(schedule(spec, nodes), mixing)


def test_text_of_another_form_is_refused() -> None:
    with pytest.raises(UsageError, match="'lazy:' is not of the form"):
        weighted(schedule("ring", 5), "lazy:")


def test_closed_form_of_the_best_constant_weight_on_a_ring() -> None:
    # λ₂ = 2 − 2 cos 2π/n, λₙ = 4 for even n: ρ = (λₙ − λ₂)/(λₙ + λ₂).
    for nodes in (4, 8, 16, 64):
        second = 2 - 2 * math.cos(2 * math.pi / nodes)
        expected = 1 - (4 - second) / (4 + second)
        assert gap(matrix("ring", nodes, "best-constant")) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "nodes", "served"),
    [("torus", 25, True), ("star", 16, True), ("barabasi-albert", 50, False), ("exponential", 8, False)],
)
def test_finite_time_serves_what_it_takes(name: str, nodes: int, served: bool) -> None:
    assert serves_finite_time(schedule(name, nodes).at(0)) == served
    try:
        weighted(schedule(name, nodes), "finite-time")
    except TopologyError:
        assert not served


def test_the_weighting_takes_as_many_rounds_as_are_told() -> None:
    for name, nodes in (("torus", 25), ("star", 16), ("ring", 12), ("petersen", 10)):
        of = load_schedule(name, nodes)
        assert weighted(of, "finite-time").period == finite_time_rounds(of.at(0))
