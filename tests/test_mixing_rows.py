"""Mixing all rows at once is the mixing matrix times them, whichever way the product takes."""

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.graphs.mixing import mixing_matrix
from p2pfl.graphs.topology import Topology
from p2pfl.simulation.mixing_rows import RowMixing, spread

GRAPHS = {
    "ring": nx.cycle_graph(12),
    "star": nx.star_graph(11),
    "complete": nx.complete_graph(12),  # dense
    "barbell": nx.barbell_graph(6, 0),  # dense, and irregular
    "lonely": nx.disjoint_union(nx.path_graph(3), nx.empty_graph(9)),
}


def rows_of(nodes: int, size: int, offset: float = 0.0) -> torch.Tensor:
    return torch.rand(nodes, size, generator=torch.Generator().manual_seed(4), dtype=torch.float64) + offset


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("size", [3, 9000])
def test_rows_are_the_mixing_matrix_times_rows(graph: str, size: int) -> None:
    topology = Topology.from_networkx(GRAPHS[graph], graph)
    rows, out = rows_of(12, size), torch.zeros(12, size, dtype=torch.float64)
    mixing = RowMixing(topology, torch.float64)
    for begin, end in ((0, 5), (5, 6), (6, 12)):
        mixing.mix(rows, out, begin, end)
    np.testing.assert_allclose(out, mixing_matrix(topology) @ rows.numpy(), rtol=1e-14)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("size", [3, 9000])
def test_distances_are_mean_squares_to_those_that_are_heard(graph: str, size: int) -> None:
    topology = Topology.from_networkx(GRAPHS[graph], graph)
    rows = rows_of(12, size, offset=1000.0)  # far from 0 and near each other, as trained models are
    mixing = RowMixing(topology, torch.float64)
    found = np.concatenate([mixing.distances(rows, 0, 7), mixing.distances(rows, 7, 12)])
    for node in range(12):
        heard = list(topology.sources(node))
        wanted = (rows[heard] - rows[node]).square().sum(dim=1).mean() if heard else torch.tensor(np.nan)
        assert found[node] == pytest.approx(float(wanted), rel=1e-9, nan_ok=True)


@pytest.mark.parametrize("nodes", [9, 25, 130])
def test_pieces_of_dense_mixing_are_blocks_and_each_row_is_in_one(nodes: int) -> None:
    mixing = RowMixing(Topology.from_networkx(nx.complete_graph(nodes), "complete"), torch.float32)
    for pieces in (1, 2, 3, 8, nodes):
        ends = np.linspace(0, nodes, pieces + 1).astype(int).tolist()
        found = [mixing.whole_blocks(*ends[at : at + 2]) for at in range(pieces)]
        assert [row for begin, end in found for row in range(begin, end)] == list(range(nodes))
        assert {begin % min(64, max(8, nodes // 8)) for begin, end in found if begin < end} == {0}


def test_distances_in_pieces_are_those_of_the_whole() -> None:
    mixing = RowMixing(Topology.from_networkx(nx.complete_graph(24), "complete"), torch.float64)
    rows = rows_of(24, 40, offset=1000.0)
    centered, whole = mixing.centered(rows), mixing.distances(rows, 0, 24)
    pieces = [mixing.distances(rows, begin, begin + 8, centered) for begin in (0, 8, 16)]
    assert np.concatenate(pieces).tolist() == whole.tolist()
    assert RowMixing(Topology.from_networkx(nx.cycle_graph(24), "ring"), torch.float64).centered(rows) is None


def test_mixing_where_there_is_no_sparse_product_gives_the_same() -> None:
    topology = Topology.from_networkx(GRAPHS["star"], "star")
    rows = rows_of(12, 40)
    mixing = RowMixing(topology, torch.float64)
    plain, gathered = torch.zeros_like(rows), torch.zeros_like(rows)
    mixing.mix(rows, plain, 0, 12)
    mixing._mix_on_device(rows, gathered)
    assert (plain - gathered).abs().max() < 1e-15


def test_directed_weights_are_by_receiver() -> None:
    topology = Topology("arrows", 3, ((0, 1), (1, 2), (2, 0)), directed=True)
    rows, out = torch.eye(3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
    RowMixing(topology, torch.float64).mix(rows, out, 0, 3)
    assert out.tolist() == [[0.5, 0.0, 0.5], [0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]


@settings(deadline=None, max_examples=30)
@given(nodes=st.integers(1, 40), size=st.integers(1, 300), cut=st.floats(0, 1))
def test_spread_is_the_mean_and_the_squares_about_it(nodes: int, size: int, cut: float) -> None:
    rows, mean = rows_of(nodes, size), torch.zeros(size, dtype=torch.float64)
    at = int(cut * size)
    parts = [spread(rows, mean, begin, end) for begin, end in ((0, at), (at, size))]
    apart, norm = np.sum(parts, axis=0)
    wanted = rows.numpy().mean(axis=0)
    np.testing.assert_allclose(mean, wanted, rtol=1e-13)
    assert apart == pytest.approx(((rows.numpy() - wanted) ** 2).sum(), rel=1e-10, abs=1e-25)
    assert norm == pytest.approx((wanted**2).sum(), rel=1e-12)
