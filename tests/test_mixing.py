import math
from collections.abc import Callable

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.errors import TopologyError
from p2pfl.graphs.mixing import metropolis, mixing_csr, mixing_matrix, mixing_weights, with_missing
from p2pfl.graphs.named import build
from p2pfl.graphs.spectra import spectral_gap
from p2pfl.graphs.topology import Topology

THIRD = 1 / 3


def gap(spec: str, nodes: int) -> float:
    return spectral_gap(mixing_matrix(build(spec, nodes)))


def torus_gap(nodes: int) -> float:
    r = math.isqrt(nodes)
    lowest = -3 / 5 if r % 2 == 0 else 1 / 5 + 4 / 5 * math.cos(math.pi * (r - 1) / r)
    return min(2 / 5 * (1 - math.cos(2 * math.pi / r)), 1 - abs(lowest))


@st.composite
def undirected(draw: st.DrawFn) -> Topology:
    nodes = draw(st.integers(1, 12))
    pairs = [(i, j) for i in range(nodes) for j in range(i + 1, nodes)]
    return Topology("drawn", nodes, tuple(pair for pair in pairs if draw(st.booleans())))


@st.composite
def circulant(draw: st.DrawFn) -> Topology:
    nodes = draw(st.integers(2, 15))
    hops = draw(st.sets(st.integers(1, nodes - 1)))
    return Topology("drawn", nodes, tuple((i, (i + hop) % nodes) for i in range(nodes) for hop in hops), directed=True)


# One by one, in order, as the package adds: sum() compensates from Python 3.12 on.
def added(weights: dict[int, float], node: int) -> float:
    total = 0.0
    for other in sorted(set(weights) - {node}):
        total += weights[other]
    return total


def test_metropolis_divides_by_one_plus_the_larger_degree() -> None:
    assert metropolis(2, {5: 1, 3: 4}) == {3: 1 / 5, 5: 1 / 3}
    assert list(metropolis(2, {5: 1, 3: 4})) == [3, 5]
    assert metropolis(1, {0: 1}) == {0: 0.5}
    assert metropolis(0, {}) == {}


def test_metropolis_of_a_view_that_is_partly_known_keeps_the_whole_degree() -> None:
    assert metropolis(3, {7: 1}) == {7: 0.25}
    with pytest.raises(TopologyError, match="2 neighbors, but degree 1"):
        metropolis(1, {0: 1, 2: 1})


def test_weights_of_a_chain_of_three() -> None:
    chain = build("chain", 3)
    assert mixing_weights(chain, 0) == {0: 1 - THIRD, 1: THIRD}
    assert mixing_weights(chain, 1) == {1: 1 - (THIRD + THIRD), 0: THIRD, 2: THIRD}


def test_self_stands_first_then_the_sources_in_order() -> None:
    weights = mixing_weights(build("complete", 5), 3)
    assert list(weights) == [3, 0, 1, 2, 4]
    assert all(type(weight) is float for weight in weights.values())


def test_one_node_keeps_its_own() -> None:
    assert mixing_weights(build("ring", 1), 0) == {0: 1.0}
    assert spectral_gap(mixing_matrix(build("ring", 1))) == 1.0


def test_directed_weights_are_equal_over_what_a_node_receives() -> None:
    weights = mixing_weights(build("exponential", 8), 0)
    assert list(weights) == [0, 4, 6, 7]
    assert weights == {0: 0.25, 4: 0.25, 6: 0.25, 7: 0.25}


def test_directed_with_unequal_degrees_is_refused() -> None:
    ring_and_tree = Topology("mine", 3, ((0, 1), (1, 2), (2, 0), (0, 2)), directed=True)
    with pytest.raises(TopologyError, match=r"not be doubly stochastic.*or make it undirected"):
        mixing_weights(ring_and_tree, 0)


def test_explicit_weights_are_used_and_self_is_what_they_leave() -> None:
    weights = ((0, 0, 0.7 + 4e-10), (0, 1, 0.3), (1, 0, 0.3), (1, 1, 0.7))
    topology = Topology("mine", 2, ((0, 1),), weights=weights)
    assert mixing_weights(topology, 0) == {0: 1 - 0.3, 1: 0.3}


def test_explicit_weights_give_an_irregular_directed_graph_a_way() -> None:
    arcs = ((0, 1), (1, 0), (1, 2), (2, 1))
    weights = ((0, 0, 0.5), (0, 1, 0.5), (1, 0, 0.5), (1, 2, 0.5), (2, 1, 0.5), (2, 2, 0.5))
    assert mixing_weights(Topology("mine", 3, arcs, True, weights), 1) == {1: 0.0, 0: 0.5, 2: 0.5}


@pytest.mark.parametrize("node", [-1, 4])
def test_a_node_that_is_not_there_has_no_weights(node: int) -> None:
    with pytest.raises(TopologyError, match="no node"):
        mixing_weights(build("ring", 4), node)


@pytest.mark.parametrize(
    ("missing", "left"),
    [
        ((), {1: 0.25, 0: 0.25, 2: 0.25, 3: 0.25}),
        ((2,), {1: 0.5, 0: 0.25, 3: 0.25}),
        ((3, 0), {1: 0.75, 2: 0.25}),
        ((0, 2, 3), {1: 1.0}),
    ],
)
def test_missing_neighbor_weight_goes_to_self(missing: tuple[int, ...], left: dict[int, float]) -> None:
    got = with_missing({1: 0.25, 0: 0.25, 2: 0.25, 3: 0.25}, 1, missing)
    assert got == left
    assert list(got) == list(left)


def test_missing_self_or_a_stranger_is_refused() -> None:
    with pytest.raises(TopologyError, match="node 1 cannot be missing"):
        with_missing({1: 0.5, 0: 0.5}, 1, {1})
    with pytest.raises(TopologyError, match="node 7 cannot be missing"):
        with_missing({1: 0.5, 0: 0.5}, 1, {0, 7})


def test_loss_on_one_side_leaves_the_columns_uneven() -> None:
    matrix = mixing_matrix(build("ring", 3))
    matrix[0] = 0
    for source, weight in with_missing(mixing_weights(build("ring", 3), 0), 0, {1}).items():
        matrix[0, source] = weight
    assert matrix.sum(axis=1) == pytest.approx([1, 1, 1], abs=1e-15)
    assert matrix.sum(axis=0) == pytest.approx([4 / 3, 2 / 3, 1], abs=1e-15)


@settings(max_examples=100, deadline=None)
@given(undirected())
def test_undirected_is_symmetric_to_the_bit_and_rows_sum_to_one(topology: Topology) -> None:
    matrix = mixing_matrix(topology)
    assert matrix.dtype == np.float64
    assert np.array_equal(matrix, matrix.T)
    assert np.abs(matrix.sum(axis=1) - 1).max() < 1e-15 * (topology.nodes + 1)
    assert matrix.min() >= 0
    assert (spectral_gap(matrix) > 1e-9) == topology.connected  # Metropolis keeps every eigenvalue above -1


@settings(max_examples=60, deadline=None)
@given(circulant())
def test_directed_of_equal_degrees_is_doubly_stochastic(topology: Topology) -> None:
    matrix = mixing_matrix(topology)
    assert np.abs(matrix.sum(axis=1) - 1).max() < 1e-14
    assert np.abs(matrix.sum(axis=0) - 1).max() < 1e-14


def assert_rows_as_a_live_peer_has_them(topology: Topology) -> None:
    matrix = mixing_csr(topology)
    assert matrix.has_sorted_indices
    for node in range(topology.nodes):
        row = slice(matrix.indptr[node], matrix.indptr[node + 1])
        stored = dict(zip(matrix.indices[row].tolist(), matrix.data[row].tolist(), strict=True))
        assert list(stored) == sorted(stored)
        assert stored == mixing_weights(topology, node)  # equal floats: the same bits


@settings(max_examples=60, deadline=None)
@given(st.one_of(undirected(), circulant()))
def test_sparse_matrix_has_the_rows_of_a_live_peer_to_the_bit(topology: Topology) -> None:
    assert_rows_as_a_live_peer_has_them(topology)


@pytest.mark.parametrize(
    ("spec", "nodes"),
    [
        ("star", 40),
        ("barbell", 61),
        ("barabasi-albert:m=9", 60),
        ("equi-static", 50),
        ("equi-static:directed=true", 50),
        ("base:k=3", 23),
        ("epidemic-local", 50),
    ],
)
def test_sparse_matrix_of_many_neighbors_adds_one_by_one(spec: str, nodes: int) -> None:
    assert_rows_as_a_live_peer_has_them(build(spec, nodes, round=3))


def test_sparse_matrix_keeps_a_diagonal_of_zero() -> None:
    swap = Topology("swap", 2, ((0, 1),), weights=((0, 1, 1.0), (1, 0, 1.0)))
    assert mixing_csr(swap).indices.tolist() == [0, 1, 0, 1]
    assert mixing_csr(swap).data.tolist() == [0.0, 1.0, 1.0, 0.0]


def test_a_million_nodes_are_mixed_without_a_dense_matrix() -> None:
    torus = build("torus", 10**6)
    matrix = mixing_csr(torus)
    assert torus.name == "torus:rows=1000,cols=1000"
    assert matrix.nnz == 5 * 10**6
    assert np.abs(matrix @ np.ones(10**6) - 1).max() < 1e-15
    assert matrix.indices[:5].tolist() == [0, 1, 999, 1000, 999000]


def test_sparse_matrix_refuses_what_would_drift_unsaid() -> None:
    arcs = ((0, 1), (1, 2), (2, 0), (0, 2))
    with pytest.raises(TopologyError, match="the average would drift"):
        mixing_csr(Topology("mine", 3, arcs, directed=True))
    said = Topology("mine", 3, arcs, directed=True, drifting=True)
    assert mixing_weights(said, 2) == {2: 1 - (THIRD + THIRD), 0: THIRD, 1: THIRD}
    assert mixing_matrix(said).sum(axis=1) == pytest.approx([1, 1, 1], abs=1e-15)


@settings(max_examples=60, deadline=None)
@given(undirected(), st.data())
def test_without_anyone_missing_no_bit_changes_and_self_is_always_what_is_left(
    topology: Topology, data: st.DataObject
) -> None:
    node = data.draw(st.integers(0, topology.nodes - 1))
    weights = mixing_weights(topology, node)
    assert with_missing(weights, node, ()) == weights
    missing = data.draw(st.sets(st.sampled_from(topology.sources(node)))) if topology.sources(node) else set()
    left = with_missing(weights, node, missing)
    assert left[node] == 1 - added(left, node)
    assert {other: left[other] for other in left if other != node} == {
        other: weight for other, weight in weights.items() if other != node and other not in missing
    }


@pytest.mark.parametrize("nodes", [16, 25, 64])
@pytest.mark.parametrize(
    ("name", "closed_form"),
    [
        ("ring", lambda n: 2 / 3 * (1 - math.cos(2 * math.pi / n))),
        ("chain", lambda n: 2 / 3 * (1 - math.cos(math.pi / n))),
        ("star", lambda n: 1 / n),
        ("complete", lambda n: 1.0),
        ("torus", torus_gap),
    ],
)
def test_gaps_are_the_closed_forms(name: str, closed_form: Callable[[int], float], nodes: int) -> None:
    assert gap(name, nodes) == pytest.approx(closed_form(nodes), abs=1e-12)


@pytest.mark.parametrize("nodes", [2, 4, 6, 10, 16, 22, 64, 100])
def test_gap_of_the_directed_exponential_is_two_over_one_plus_its_degree_for_even_nodes(nodes: int) -> None:
    assert gap("exponential", nodes) == pytest.approx(2 / (1 + math.ceil(math.log2(nodes))), abs=1e-12)


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("ring", (0.050747, 0.020945, 0.003210)),
        ("chain", (0.012810, 0.005257, 0.000803)),
        ("star", (0.062500, 0.040000, 0.015625)),
        ("torus", (0.400000, 0.276393, 0.117157)),
        ("grid", (0.131359, 0.083787, 0.032295)),
        ("complete", (1.0, 1.0, 1.0)),
        ("tree", (0.022040, 0.013371, 0.004448)),
        ("barbell", (0.022685, 0.005953, 0.001786)),
        ("exponential", (0.400000, 0.489139, 0.285714)),
        ("exponential-symmetric", (0.500000, 0.610085, 0.333333)),
    ],
)
def test_gaps_to_the_printed_digits(name: str, printed: tuple[float, float, float]) -> None:
    assert [gap(name, nodes) for nodes in (16, 25, 64)] == pytest.approx(printed, abs=5.1e-7)


@pytest.mark.parametrize(
    ("graph", "expected", "tolerance"),
    [
        (nx.hypercube_graph(4), 2 / 5, 1e-12),
        (nx.hypercube_graph(6), 2 / 7, 1e-12),
        (nx.full_rary_tree(2, 16), 0.022040, 5.1e-7),
        (nx.full_rary_tree(2, 64), 0.004448, 5.1e-7),
        (nx.barbell_graph(8, 0), 0.022685, 5.1e-7),
        (nx.barbell_graph(12, 1), 0.005953, 5.1e-7),
    ],
)
def test_gaps_of_graphs_out_of_networkx(graph: nx.Graph, expected: float, tolerance: float) -> None:
    assert spectral_gap(mixing_matrix(Topology.from_networkx(graph, "t"))) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("r", [3, 4, 5, 8])
def test_gap_of_a_grid_with_constant_weights(r: int) -> None:
    grid = build("grid", r * r)
    links = [(receiver, sender, 0.2) for sender, receiver in grid.arcs]
    own = [(node, node, 1 - grid.degree(node) / 5) for node in range(r * r)]
    weighted = Topology("grid", r * r, grid.edges, weights=(*links, *own))
    assert spectral_gap(mixing_matrix(weighted)) == pytest.approx(2 / 5 * (1 - math.cos(math.pi / r)), abs=1e-12)


@pytest.mark.parametrize("nodes", [3, 4, 7, 16, 25, 64])
def test_full_spectrum_of_the_ring(nodes: int) -> None:
    expected = sorted(1 / 3 + 2 / 3 * math.cos(2 * math.pi * k / nodes) for k in range(nodes))
    assert np.linalg.eigvalsh(mixing_matrix(build("ring", nodes))) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("rows", "cols"), [(3, 3), (4, 4), (5, 5), (3, 5), (8, 8)])
def test_full_spectrum_of_the_torus(rows: int, cols: int) -> None:
    angles = [(2 * math.pi * a / rows, 2 * math.pi * b / cols) for a in range(rows) for b in range(cols)]
    expected = sorted(1 / 5 + 2 / 5 * (math.cos(a) + math.cos(b)) for a, b in angles)
    matrix = mixing_matrix(build(f"torus:rows={rows},cols={cols}", rows * cols))
    assert np.linalg.eigvalsh(matrix) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("nodes", [3, 9, 16, 25, 64])
def test_full_spectrum_of_the_star(nodes: int) -> None:
    expected = [0, *[1 - 1 / nodes] * (nodes - 2), 1]
    assert np.linalg.eigvalsh(mixing_matrix(build("star", nodes))) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 6, 7])
def test_full_spectrum_of_the_hypercube(d: int) -> None:
    expected = sorted(1 - 2 * k / (d + 1) for k in range(d + 1) for _ in range(math.comb(d, k)))
    assert np.linalg.eigvalsh(mixing_matrix(build("hypercube", 2**d))) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("nodes", [3, 10, 33])
def test_full_spectrum_of_the_chain(nodes: int) -> None:
    expected = sorted(1 / 3 + 2 / 3 * math.cos(math.pi * k / nodes) for k in range(nodes))
    assert np.linalg.eigvalsh(mixing_matrix(build("chain", nodes))) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("d", "gap_of_both"), [(4, 2 / 5), (6, 2 / 7)])
def test_hypercube_and_static_exponential_have_one_gap(d: int, gap_of_both: float) -> None:
    assert gap("hypercube", 2**d) == pytest.approx(gap_of_both, abs=1e-12)
    assert gap("exponential", 2**d) == pytest.approx(gap_of_both, abs=1e-12)


def test_gap_is_nothing_where_nothing_is_shared() -> None:
    assert spectral_gap(np.eye(3)) == 0
    assert spectral_gap(np.array([[0.0, 1.0], [1.0, 0.0]])) == pytest.approx(0, abs=1e-15)  # swaps for ever
