import dataclasses
import pickle

import networkx as nx
import numpy as np
import pytest

from p2pfl.errors import TopologyError
from p2pfl.graphs import named
from p2pfl.graphs.mixing import mixing_matrix, mixing_weights
from p2pfl.graphs.topology import Topology

THIRD = 1 / 3


def test_edges_are_turned_and_sorted_so_that_equal_topologies_are_equal() -> None:
    one = Topology("t", 3, ((2, 1), (1, 0)))
    other = Topology("t", 3, ((0, 1), (1, 2)))
    assert one.edges == ((0, 1), (1, 2))
    assert one == other
    assert hash(one) == hash(other)


def test_topology_is_frozen_and_survives_pickle() -> None:
    topology = Topology("t", 2, ((0, 1),))
    assert topology.sources(0) == (1,)
    assert pickle.loads(pickle.dumps(topology)) == topology
    with pytest.raises(dataclasses.FrozenInstanceError):
        topology.nodes = 3  # type: ignore[misc]


def test_undirected_neighbors_are_sources_and_targets() -> None:
    topology = Topology("t", 4, ((3, 1), (0, 1), (1, 2)))
    assert topology.sources(1) == topology.targets(1) == (0, 2, 3)
    assert topology.sources(3) == (1,)
    assert [topology.degree(node) for node in range(4)] == [1, 3, 1, 1]
    assert topology.arcs == ((0, 1), (1, 0), (1, 2), (1, 3), (2, 1), (3, 1))


def test_arcs_run_from_sender_to_receiver() -> None:
    topology = Topology("t", 3, ((2, 0), (1, 0), (0, 1)), directed=True)
    assert topology.edges == topology.arcs == ((0, 1), (1, 0), (2, 0))
    assert topology.sources(0) == (1, 2)
    assert topology.targets(0) == (1,)
    assert topology.targets(2) == (0,)
    assert topology.sources(2) == ()
    assert topology.degree(0) == 2


def test_both_directions_are_two_arcs() -> None:
    assert Topology("t", 2, ((0, 1), (1, 0)), directed=True).edges == ((0, 1), (1, 0))


def test_one_node_alone_is_connected_and_regular() -> None:
    alone = Topology("t", 1, ())
    assert alone.connected
    assert alone.regular
    assert alone.sources(0) == ()


def test_components_stand_largest_first() -> None:
    topology = Topology("t", 6, ((4, 5), (1, 2), (2, 3)))
    assert topology.components == ((1, 2, 3), (4, 5), (0,))
    assert not topology.connected


def test_directed_is_connected_only_if_every_node_reaches_every_other() -> None:
    there = Topology("t", 3, ((0, 1), (1, 2)), directed=True)
    round_trip = Topology("t", 3, ((0, 1), (1, 2), (2, 0)), directed=True)
    assert there.components == ((0,), (1,), (2,))
    assert not there.connected
    assert round_trip.connected


def test_regular_counts_received_and_sent() -> None:
    assert Topology("t", 3, ((0, 1), (1, 2), (2, 0)), directed=True).regular
    assert not Topology("t", 3, ((0, 1), (1, 2), (0, 2)), directed=True).regular
    assert not Topology("t", 3, ((0, 1), (1, 2))).regular


@pytest.mark.parametrize(
    ("nodes", "edges", "directed", "says"),
    [
        (0, (), False, "at least 1"),
        (2, ((0, 2),), False, "nodes 0 to 1, no node 2"),
        (2, ((-1, 0),), False, "no node -1"),
        (2, ((1, 1),), False, "self-loop at 1"),
        (2, ((0, 1), (1, 0)), False, "twice"),
        (2, ((0, 1), (0, 1)), True, "twice"),
    ],
)
def test_bad_edges_are_refused(nodes: int, edges: tuple[tuple[int, int], ...], directed: bool, says: str) -> None:
    with pytest.raises(TopologyError, match=says):
        Topology("t", nodes, edges, directed)


@pytest.mark.parametrize("node", [-1, 2])
def test_asking_for_a_node_that_is_not_there_is_refused(node: int) -> None:
    with pytest.raises(TopologyError, match="no node"):
        Topology("t", 2, ((0, 1),)).sources(node)


def test_explicit_weights_are_sorted_and_looked_up_by_receiver() -> None:
    weights = ((1, 1, 0.75), (1, 0, 0.25), (0, 1, 0.25), (0, 0, 0.75))
    topology = Topology("t", 2, ((0, 1),), weights=weights)
    assert topology.weights == ((0, 0, 0.75), (0, 1, 0.25), (1, 0, 0.25), (1, 1, 0.75))
    assert topology.weights_on(1) == {0: 0.25}
    assert Topology("t", 2, ((0, 1),)).weights_on(1) == {}


def test_weights_may_be_negative_and_self_may_be_zero() -> None:
    ring = ((0, 1), (1, 2), (2, 0))
    assert Topology("t", 3, ring, True, ((1, 0, 1.0), (2, 1, 1.0), (0, 2, 1.0))).weights is not None
    assert (
        Topology("t", 2, ((0, 1),), weights=((0, 0, -0.5), (0, 1, 1.5), (1, 0, 1.5), (1, 1, -0.5))).weights is not None
    )


@pytest.mark.parametrize(
    ("edges", "directed", "weights", "says"),
    [
        (((0, 1),), False, ((0, 0, 0.5), (0, 1, 0.5), (1, 1, 1.0)), "an edge but no weight for what 1 receives from 0"),
        (
            ((0, 1),),
            True,
            ((0, 0, 0.5), (0, 1, 0.5), (1, 0, 0.5), (1, 1, 0.5)),
            "a weight but no edge for what 0 receives from 1",
        ),
        (((0, 1),), False, ((0, 0, 0.5), (0, 1, 0.5), (1, 0, 0.4), (1, 1, 0.6)), "not symmetric"),
        (((0, 1),), False, ((0, 0, 0.6), (0, 1, 0.5), (1, 0, 0.5), (1, 1, 0.5)), "sum to 1.1 in row 0"),
        (((0, 1),), False, ((0, 1, 0.5), (0, 1, 0.5), (1, 0, 1.0)), "twice"),
        (((0, 1),), False, ((0, 1, float("nan")), (1, 0, 1.0)), "finite"),
        (((0, 1),), False, ((0, 2, 1.0), (1, 0, 1.0)), "no node 2"),
        (
            ((0, 1), (1, 0), (0, 2), (2, 0)),
            True,
            ((0, 0, THIRD), (0, 1, THIRD), (0, 2, THIRD), (1, 0, 0.5), (1, 1, 0.5), (2, 0, 0.5), (2, 2, 0.5)),
            "in column 0",
        ),
    ],
)
def test_bad_weights_are_refused(
    edges: tuple[tuple[int, int], ...], directed: bool, weights: tuple[tuple[int, int, float], ...], says: str
) -> None:
    nodes = 1 + max(max(edge) for edge in edges)
    with pytest.raises(TopologyError, match=says):
        Topology("t", nodes, edges, directed, weights)


def test_drifting_weights_need_rows_of_one_only() -> None:
    rows = ((0, 0, 0.5), (0, 1, 0.25), (0, 2, 0.25), (1, 0, 0.5), (1, 1, 0.5), (2, 0, 0.5), (2, 2, 0.5))
    edges = ((0, 1), (0, 2))
    with pytest.raises(TopologyError, match="not symmetric between 0 and 1"):
        Topology("t", 3, edges, weights=rows)
    topology = Topology("t", 3, edges, weights=rows, drifting=True)
    assert topology.weights == rows
    assert not topology.doubly_stochastic  # column 0 sums to 1.5
    with pytest.raises(TopologyError, match=r"sum to 1\.5 in row 0: rows must sum to 1$"):
        Topology("t", 3, edges, weights=((0, 0, 1.0), *rows[1:]), drifting=True)


def test_doubly_stochastic_is_what_keeps_the_average() -> None:
    assert Topology("t", 3, ((0, 1), (0, 2))).doubly_stochastic
    assert Topology("t", 3, ((0, 1), (1, 2), (2, 0)), directed=True).doubly_stochastic
    assert not Topology("t", 3, ((0, 1), (1, 2), (2, 0), (0, 2)), directed=True).doubly_stochastic
    even = ((0, 0, 0.5), (0, 1, 0.5), (1, 0, 0.5), (1, 1, 0.5))
    assert Topology("t", 2, ((0, 1),), weights=even).doubly_stochastic
    assert Topology("t", 2, ((0, 1),), weights=even, drifting=True).doubly_stochastic


def test_arrays_make_the_same_topology_as_tuples() -> None:
    pairs = np.array([[2, 1], [1, 0]])
    weights = np.array([[0, 0, 0.5], [0, 1, 0.5], [1, 0, 0.5], [1, 2, 0.5], [2, 1, 0.5], [2, 2, 0.5]])
    one = Topology("t", 3, pairs, weights=weights)
    other = Topology("t", 3, ((0, 1), (1, 2)), weights=[(int(i), int(j), value) for i, j, value in weights])
    assert one == other
    assert hash(one) == hash(other)
    assert one != Topology("t", 3, pairs)
    assert one.pairs.tolist() == [[0, 1], [1, 2]]
    assert one.arc_array.tolist() == [[0, 1], [1, 0], [1, 2], [2, 1]]
    assert one.link_weights is not None
    assert one.link_weights.tolist() == [0.5] * 4


def test_arrays_are_read_only_and_the_caller_keeps_its_own() -> None:
    pairs = np.array([[0, 1]])
    topology = Topology("t", 2, pairs)
    pairs[0] = 5
    assert topology.edges == ((0, 1),)
    for array in (topology.pairs, topology.arc_array, topology.links, topology.degrees, topology.out_degrees):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_links_are_receiver_and_sender() -> None:
    topology = Topology("t", 3, ((2, 0), (1, 0), (0, 1)), directed=True)
    assert topology.links.tolist() == [[0, 1], [0, 2], [1, 0]]
    assert topology.degrees.tolist() == [2, 1, 0]
    assert topology.out_degrees.tolist() == [1, 1, 1]


def test_links_leave_the_rest_to_self() -> None:
    pairs, values = np.array([[0, 1], [1, 2]]), np.array([0.25, 0.5])
    topology = Topology.of_links("t", 3, pairs, values)
    assert topology.weights == (
        (0, 0, 0.75), (0, 1, 0.25), (1, 0, 0.25), (1, 1, 0.25), (1, 2, 0.5), (2, 1, 0.5), (2, 2, 0.5),
    )  # fmt: skip
    both_ways = Topology.of_links("t", 3, pairs, np.array([[0.25, 0.5], [0.5, 0.125]]), drifting=True)
    assert both_ways.weights_on(1) == {0: 0.25, 2: 0.125}
    assert both_ways.weights_on(0) == {1: 0.5}
    ring = Topology.of_links("t", 3, np.array([[0, 1], [1, 2], [2, 0]]), np.full(3, 0.25), directed=True)
    assert ring.weights_on(0) == {2: 0.25}
    assert ring.doubly_stochastic


def test_a_node_too_large_for_an_array_is_out_of_range() -> None:
    with pytest.raises(TopologyError, match="no node 100000000000000000000"):
        Topology("t", 2, ((0, 10**20),))


def test_an_edge_is_two_whole_numbers() -> None:
    with pytest.raises(TopologyError, match="names a node that is no whole number"):
        Topology("t", 2, ((0, 1.5),))  # type: ignore[arg-type]  # what a caller without mypy may do
    with pytest.raises(TopologyError, match=r"name a node 1\.9: nodes are whole numbers"):
        Topology("t", 4, np.array([[0, 1.9]]))
    places = np.array([[0, 0, 0.5], [0, 1.9, 0.5], [1, 0, 0.5], [1, 1, 0.5]])
    with pytest.raises(TopologyError, match=r"the weights of topology 't' name a node 1\.9"):
        Topology("t", 2, ((0, 1),), weights=places)


def test_arrays_of_another_shape_are_refused_and_not_read_in_another_order() -> None:
    with pytest.raises(TopologyError, match=r"an array \[2, 3\], not \[edges, 2\]; turn an .* as edge_index\.T"):
        Topology("t", 4, np.array([[0, 1, 2], [1, 2, 3]]))
    assert Topology("t", 4, np.array([[0, 1, 2], [1, 2, 3]]).T).edges == ((0, 1), (1, 2), (2, 3))
    rows = np.array([[0, 0, 0.5], [0, 1, 0.5], [1, 0, 0.5], [1, 1, 0.5]])
    with pytest.raises(TopologyError, match=r"are an array \[3, 4\], not \[weights, 3\]"):
        Topology("t", 2, ((0, 1),), weights=rows.T)


def test_unequal_degrees_that_come_out_even_keep_the_average() -> None:
    drawn = named.build("epidemic-local:s=2", 4, round=8)
    assert not drawn.regular
    assert drawn.doubly_stochastic
    assert np.abs(mixing_matrix(drawn).sum(axis=0) - 1).max() < 1e-15


def test_a_row_of_weights_makes_no_tuple_of_all() -> None:
    topology = named.build("equi-dynamic", 9)
    assert mixing_weights(topology, 3)
    assert "weights" not in vars(topology)


def test_weights_within_a_billionth_pass() -> None:
    Topology("t", 2, ((0, 1),), weights=((0, 0, 0.5), (0, 1, 0.5 + 5e-10), (1, 0, 0.5), (1, 1, 0.5)))
    with pytest.raises(TopologyError):
        Topology("t", 2, ((0, 1),), weights=((0, 0, 0.5), (0, 1, 0.5 + 5e-9), (1, 0, 0.5 + 5e-9), (1, 1, 0.5)))


@pytest.mark.parametrize("directed", [False, True])
def test_networkx_and_back_is_the_same(directed: bool) -> None:
    topology = Topology("t", 5, ((0, 1), (3, 2)), directed)
    graph = topology.to_networkx()
    assert graph.is_directed() == directed
    assert graph.number_of_nodes() == 5
    assert Topology.from_networkx(graph) == topology


def test_networkx_nodes_are_numbered_as_seats_are_ordered() -> None:
    graph = nx.Graph([("10", "9"), ("9", "b"), ("b", "a")])
    assert Topology.from_networkx(graph, "t") == Topology("t", 4, ((0, 1), (0, 3), (2, 3)))  # 9, 10, a, b
    assert Topology.from_networkx(nx.grid_2d_graph(1, 11), "t").edges == tuple((i, i + 1) for i in range(10))


def test_networkx_multigraph_passes_without_parallel_edges() -> None:
    assert Topology.from_networkx(nx.MultiGraph([(0, 1)]), "t").edges == ((0, 1),)


@pytest.mark.parametrize(
    ("graph", "says"),
    [
        (nx.Graph([("a", "b"), ("b", "b")]), "self-loop at b"),
        (nx.MultiGraph([("a", "b"), ("b", "a")]), "parallel edges"),
        (nx.MultiDiGraph([("a", "b"), ("a", "b")]), "parallel edges between a and b"),
        (nx.Graph([(0, "a")]), "cannot be sorted"),
        (nx.Graph(), "at least 1"),
    ],
)
def test_bad_graphs_are_refused(graph: nx.Graph, says: str) -> None:
    with pytest.raises(TopologyError, match=says):
        Topology.from_networkx(graph)
