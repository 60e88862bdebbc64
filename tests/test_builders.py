import inspect
import tracemalloc

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.errors import TopologyError, UsageError
from p2pfl.graphs import builders, named
from p2pfl.graphs.draws import Draws, regular_pairs
from p2pfl.graphs.mixing import mixing_matrix, mixing_weights
from p2pfl.graphs.named import NAMES, build, describe, inline, schedule
from p2pfl.graphs.topology import Topology
from p2pfl.topology_files import list_files, load_topology

WITHOUT_OPTIONS = ["ring", "chain", "star", "complete", "exponential", "exponential-symmetric", "hypercube", "barbell"]
WITH_DEFAULTS = ["grid", "torus", "tree", "erdos-renyi", "equi-static", "equi-static:directed=true"]
STATIC = [
    "ring",
    "chain",
    "star",
    "complete",
    "grid",
    "torus",
    "hypercube",
    "exponential",
    "exponential-symmetric",
    "random-regular",
    "erdos-renyi",
    "small-world",
    "barabasi-albert",
    "tree",
    "barbell",
    "equi-static",
]

PINNED = {
    "erdos-renyi": ((0, 5), (1, 2), (1, 3), (2, 3), (2, 5), (4, 5)),
    "small-world": ((0, 1), (0, 2), (0, 6), (1, 4), (1, 7), (3, 4), (3, 5), (3, 7)),
    "barabasi-albert": ((0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (2, 3), (2, 5), (3, 4)),
    "equi-static": (
        (0, 2), (0, 3), (1, 3), (1, 4), (2, 4), (2, 5), (3, 5),
        (3, 6), (4, 0), (4, 6), (5, 0), (5, 1), (6, 1), (6, 2),
    ),
}  # fmt: skip


def test_the_static_names_are_these() -> None:
    assert NAMES[: len(STATIC)] == tuple(STATIC)


@pytest.mark.parametrize("name", [*WITHOUT_OPTIONS, *WITH_DEFAULTS, "random-regular:k=0"])
def test_one_node_has_no_edges(name: str) -> None:
    assert build(name, 1).edges == ()


@pytest.mark.parametrize("name", [*WITHOUT_OPTIONS, *WITH_DEFAULTS, "random-regular:k=1", "barabasi-albert:m=1"])
def test_two_nodes_are_linked_once(name: str) -> None:
    topology = build(name, 2)
    assert topology.edges == (((0, 1), (1, 0)) if topology.directed else ((0, 1),))


@pytest.mark.parametrize(
    ("spec", "nodes", "edges"),
    [
        ("ring", 3, ((0, 1), (0, 2), (1, 2))),
        ("ring", 4, ((0, 1), (0, 3), (1, 2), (2, 3))),
        ("chain", 4, ((0, 1), (1, 2), (2, 3))),
        ("star", 4, ((0, 1), (0, 2), (0, 3))),
        ("complete", 4, ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))),
        ("grid", 6, ((0, 1), (0, 3), (1, 2), (1, 4), (2, 5), (3, 4), (4, 5))),
        ("grid:cols=2", 6, ((0, 1), (0, 2), (1, 3), (2, 3), (2, 4), (3, 5), (4, 5))),
        ("torus", 4, ((0, 1), (0, 2), (1, 3), (2, 3))),
        ("torus", 6, ((0, 1), (0, 2), (0, 3), (1, 2), (1, 4), (2, 5), (3, 4), (3, 5), (4, 5))),
        ("torus:rows=1", 5, ((0, 1), (0, 4), (1, 2), (2, 3), (3, 4))),
        ("torus:cols=1", 5, ((0, 1), (0, 4), (1, 2), (2, 3), (3, 4))),
        ("exponential", 3, ((0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1))),
        ("exponential", 4, ((0, 1), (0, 2), (1, 2), (1, 3), (2, 0), (2, 3), (3, 0), (3, 1))),
        ("exponential-symmetric", 4, ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))),
        (
            "hypercube",
            8,
            ((0, 1), (0, 2), (0, 4), (1, 3), (1, 5), (2, 3), (2, 6), (3, 7), (4, 5), (4, 6), (5, 7), (6, 7)),
        ),
        ("tree", 6, ((0, 1), (0, 2), (1, 3), (1, 4), (2, 5))),
        ("tree:k=3", 6, ((0, 1), (0, 2), (0, 3), (1, 4), (1, 5))),
        ("tree:k=1", 4, ((0, 1), (1, 2), (2, 3))),
        ("barbell", 6, ((0, 1), (0, 2), (1, 2), (2, 3), (3, 4), (3, 5), (4, 5))),
        ("barbell", 7, ((0, 1), (0, 2), (1, 2), (2, 3), (3, 4), (4, 5), (4, 6), (5, 6))),
        ("barbell", 3, ((0, 1), (1, 2))),
        ("small-world:k=2,p=0", 5, ((0, 1), (0, 4), (1, 2), (2, 3), (3, 4))),
        ("erdos-renyi:p=1", 4, ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))),
    ],
)
def test_small_topologies_edge_by_edge(spec: str, nodes: int, edges: tuple[tuple[int, int], ...]) -> None:
    assert build(spec, nodes).edges == edges


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("ring", (16, 25, 64)),
        ("chain", (15, 24, 63)),
        ("star", (15, 24, 63)),
        ("complete", (120, 300, 2016)),
        ("torus", (32, 50, 128)),
        ("grid", (24, 40, 112)),
        ("exponential", (64, 125, 384)),
        ("exponential-symmetric", (56, 125, 352)),
        ("random-regular", (32, 50, 128)),
        ("small-world", (32, 50, 128)),
        ("barabasi-albert", (28, 46, 124)),
        ("tree", (15, 24, 63)),
        ("barbell", (57, 134, 993)),
    ],
)
def test_edge_counts(name: str, counts: tuple[int, int, int]) -> None:
    assert tuple(len(build(name, nodes).edges) for nodes in (16, 25, 64)) == counts


def test_torus_and_grid_agree_with_networkx() -> None:
    for rows, cols in ((1, 4), (2, 2), (2, 5), (3, 3), (3, 4), (5, 2)):
        torus = builders.torus(rows * cols, rows, cols).to_networkx()
        grid = builders.grid(rows * cols, rows, cols).to_networkx()
        number = {(i, j): i * cols + j for i in range(rows) for j in range(cols)}
        right = nx.relabel_nodes(nx.grid_2d_graph(rows, cols), number)
        assert set(map(frozenset, grid.edges)) == set(map(frozenset, right.edges))
        closed = nx.relabel_nodes(nx.grid_2d_graph(rows, cols, periodic=True), number)
        assert set(map(frozenset, torus.edges)) == {frozenset(edge) for edge in closed.edges if edge[0] != edge[1]}


def test_two_rows_have_no_double_edges() -> None:
    assert [builders.torus(10, rows=2).degree(node) for node in range(10)] == [3] * 10
    assert [builders.torus(4).degree(node) for node in range(4)] == [2] * 4


def is_prime(number: int) -> bool:
    return number > 1 and all(number % d for d in range(2, number))


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(STATIC), st.integers(1, 48))
def test_every_topology_is_connected_where_there_is_one(name: str, nodes: int) -> None:
    if (
        (name in ("grid", "torus") and nodes > 2 and is_prime(nodes))
        or (name in ("random-regular", "small-world") and nodes <= 4)
        or (name == "barabasi-albert" and nodes <= 2)
        or (name == "hypercube" and nodes & (nodes - 1))
    ):
        with pytest.raises(TopologyError):
            build(name, nodes)
        return
    topology = build(name, nodes)
    assert topology.nodes == nodes
    assert topology.connected


@pytest.mark.parametrize("nodes", [1, 2, 3, 4])
def test_the_mend_of_a_small_random_regular_works(nodes: int) -> None:
    with pytest.raises(TopologyError) as caught:
        build("random-regular", nodes)
    assert build(f"random-regular:{str(caught.value).split()[-1]}", nodes).connected


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1))), st.integers(0, 99))
def test_random_regular_is_regular_and_repeats(nodes_k: tuple[int, int], seed: int) -> None:
    nodes, k = nodes_k
    if nodes * k % 2 or k < min(2, nodes - 1):
        with pytest.raises(TopologyError, match="take k="):
            builders.random_regular(nodes, k, seed)
        return
    topology = builders.random_regular(nodes, k, seed)
    assert [topology.degree(node) for node in range(nodes)] == [k] * nodes
    assert topology.connected
    assert topology == builders.random_regular(nodes, k, seed)


def test_random_regular_draws_are_pinned() -> None:
    # Every peer draws its own: another version must draw the same, or peers of two would not fit together.
    assert builders.random_regular(8, k=3, seed=1).edges == (
        (0, 5),
        (0, 6),
        (0, 7),
        (1, 2),
        (1, 3),
        (1, 4),
        (2, 3),
        (2, 6),
        (3, 4),
        (4, 7),
        (5, 6),
        (5, 7),
    )
    assert builders.random_regular(6, k=4, seed=0).edges == (
        (0, 1),
        (0, 3),
        (0, 4),
        (0, 5),
        (1, 2),
        (1, 4),
        (1, 5),
        (2, 3),
        (2, 4),
        (2, 5),
        (3, 4),
        (3, 5),
    )


def test_random_regular_redraws_until_connected() -> None:
    first = Topology("first", 64, regular_pairs(Draws(0, "random-regular", 0), 64, 2))
    assert not first.connected
    drawn = builders.random_regular(64, k=2, seed=0)
    assert drawn.connected
    assert drawn.edges != builders.random_regular(64, k=2, seed=1).edges  # another seed, another graph
    assert drawn.name == "random-regular:k=2,seed=0"


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("torus", "torus:rows=3,cols=4"),
        ("grid", "grid:rows=3,cols=4"),
        ("tree", "tree:k=2"),
        ("erdos-renyi", "erdos-renyi:p=0.414151,seed=0"),
        ("erdos-renyi:p=.5,seed=2", "erdos-renyi:p=0.5,seed=2"),
        ("small-world", "small-world:k=4,p=0.1,seed=0"),
        ("barabasi-albert:seed=3", "barabasi-albert:m=2,seed=3"),
        ("equi-static", "equi-static:m=4,directed=false,seed=0"),
        ("equi-static:m=2,directed=true", "equi-static:m=2,directed=true,seed=0"),
        ("torus:rows=2", "torus:rows=2,cols=6"),
        ("grid:cols=3", "grid:rows=4,cols=3"),
        ("random-regular", "random-regular:k=4,seed=0"),
        ("random-regular:seed=7", "random-regular:k=4,seed=7"),
        (" ring ", "ring"),
    ],
)
def test_the_name_makes_the_same_topology_again(spec: str, name: str) -> None:
    topology = build(spec, 12)
    assert topology.name == name
    assert build(name, 12) == topology


@pytest.mark.parametrize(
    ("spec", "nodes", "says"),
    [
        ("tours", 9, "did you mean 'torus'"),
        ("random_regular", 9, "did you mean 'random-regular'"),
        ("zzz", 9, r"no topology 'zzz'\. There are: ring, chain,"),
        ("ring:k=3", 9, "no option 'k': it has none"),
        ("torus:r=3", 9, "its options are rows, cols"),
        ("random-regular:nodes=3", 9, "its options are k, seed"),
        ("random-regular:k=four", 9, "cannot be 'four'"),
        ("torus:rows=1.5", 9, "cannot be '1.5'"),
        ("torus", 7, "7 is prime.*6 or 8 peers.*'ring'"),
        ("grid", 3, "3 is prime.*2 or 4 peers.*'chain'"),
        ("torus:rows=3", 8, "one of 1, 2, 4, 8"),
        ("torus:rows=2,cols=3", 8, "2 x 3"),
        ("grid:rows=0", 8, "come out even with 0"),
        ("grid:rows=-2,cols=-4", 8, "one of 1, 2, 4, 8"),
        ("random-regular:k=3", 5, "even; take k=2 or k=4, or one peer more or less"),
        ("random-regular:k=1", 6, "k must be 2 to 5; take k=2"),
        ("random-regular", 4, "k must be 2 to 3; take k=2 or k=3"),
        ("random-regular", 3, "k must be 2; take k=2"),
        ("hypercube", 12, "no hypercube of 12 peers: it needs a power of two; make it 8 or 16 peers, or take"),
        ("erdos-renyi:p=1.5", 9, "take p between 0 and 1"),
        ("erdos-renyi:p=nan", 9, "take p between 0 and 1"),
        ("erdos-renyi:p=0", 9, "p=0.0 is hardly ever connected: take p=0.49 or more"),
        ("erdos-renyi:p=0.001", 900, "p=0.001 is hardly ever connected: take p=0.015 or more"),
        ("erdos-renyi:p=0.002", 900, "hardly ever connected"),
        ("small-world:k=3", 9, "k must be even, at least 2 and below the peers; take k=2"),
        ("small-world:k=9", 8, "take k=6"),
        ("small-world:k=0", 8, "take k=2"),
        ("small-world", 4, "take k=2"),
        ("small-world", 2, "take 'chain'"),
        ("small-world:p=-0.1", 9, "take p between 0 and 1"),
        ("barabasi-albert:m=9", 9, "m must be at least 1 and below the peers; take m=8"),
        ("barabasi-albert:m=0", 9, "take m=1"),
        ("tree:k=0", 9, r"take k=1 \(a chain\) or more"),
        ("equi-static:m=0", 9, "take m=1 or more"),
        ("equi-static:directed=maybe", 9, "cannot be 'maybe'"),
        *((name, 0, "at least 1") for name in NAMES),
        *((name, -3, "at least 1") for name in NAMES),
    ],
)
def test_bad_specs_are_refused_with_the_mend(spec: str, nodes: int, says: str) -> None:
    with pytest.raises(TopologyError, match=says):
        build(spec, nodes)


@pytest.mark.parametrize("spec", ["", "torus:", "torus:rows", "torus:rows=2,rows=2", "os:system"])
def test_text_of_another_form_is_refused(spec: str) -> None:
    with pytest.raises(UsageError):
        build(spec, 4)


def test_a_topology_already_made_is_only_checked_to_fit() -> None:
    topology = Topology("mine", 3, ((0, 1), (1, 2)))
    assert build(topology, 3) is topology
    with pytest.raises(TopologyError, match="'mine' has 3 nodes, the network 4 peers: use 3 peers"):
        build(topology, 4)


def test_edges_written_out_are_the_topology() -> None:
    assert build("graph:edges=0-1/1-2,directed=false", 3).edges == ((0, 1), (1, 2))
    assert build("graph:edges=2-1/1-0", 3).edges == ((0, 1), (1, 2))
    assert build("graph:edges=2-1/1-0,directed=true", 3).arcs == ((1, 0), (2, 1))
    assert build("graph", 3).edges == build("graph:edges=-", 3).edges == ()


@pytest.mark.parametrize("name", list_files())
def test_ready_file_travels_as_its_edges_and_only_among_as_many(name: str) -> None:
    topology = load_topology(name, None)
    spec = inline(topology)
    built = build(spec, topology.nodes)
    assert (built.edges, built.directed, built.weights) == (topology.edges, topology.directed, topology.weights)
    assert built.name == spec
    for nodes in (topology.nodes - 1, topology.nodes + 1):
        says = f"has {topology.nodes} nodes, the network {nodes} peers: use {topology.nodes} peers, or a topology for"
        with pytest.raises(TopologyError, match=says):
            build(spec, nodes)


@pytest.mark.parametrize(
    ("topology", "spec"),
    [
        (Topology("arcs", 3, ((1, 0), (0, 2)), directed=True), "graph:edges=0-2/1-0,directed=true,of=3"),
        (Topology("apart", 2, ()), "graph:edges=-,directed=false,of=2"),
    ],
)
def test_topology_written_out_is_read_back(topology: Topology, spec: str) -> None:
    assert inline(topology) == spec
    built = build(spec, topology.nodes)
    assert (built.arcs, built.directed) == (topology.arcs, topology.directed)
    assert build(built.name, topology.nodes) == built


def test_explicit_weights_travel_with_every_bit() -> None:
    third = 1 / 3
    weights = ((0, 0, 1 - third), (0, 1, third), (1, 0, third), (1, 1, 1 - third))
    spec = inline(Topology("mine", 2, ((0, 1),), weights=weights))
    assert spec == "graph:edges=0-1:0.3333333333333333,directed=false,of=2"
    assert build(spec, 2).weights == weights


@pytest.mark.parametrize("spec", ["equi-static", "equi-static:directed=true", "base:k=2", "epidemic-local"])
def test_what_a_live_peer_mixes_with_travels_to_the_bit(spec: str) -> None:
    topology = build(spec, 23, round=1)
    built = build(inline(topology), 23)
    assert [mixing_weights(built, node) for node in range(23)] == [mixing_weights(topology, node) for node in range(23)]
    assert built.drifting == topology.drifting == (spec == "epidemic-local")


def test_weights_of_the_two_ways_travel_apart() -> None:
    uneven = Topology.of_links(
        "mine", 3, np.array([[0, 1], [1, 2]]), np.array([[0.25, 0.5], [0.5, 0.5]]), drifting=True
    )
    spec = inline(uneven)
    assert spec == "graph:edges=0-1:0.25:0.5/1-2:0.5,directed=false,of=3,drifting=true"
    assert build(spec, 3).weights == uneven.weights


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("edges=0-1:x", "'0-1:x' has no weight that is a number: write edges as 0-1:0.25/1-2:0.5"),
        ("edges=0-1:", "no weight that is a number"),
        ("edges=0-1:.5/1-2", "another number of weights: give a weight, or one for each way to all or none"),
        ("edges=0-1:.5:.5:.5", "another number of weights"),
        ("edges=0-1:.5:.5/1-0,directed=true", "give a weight to all or none"),
        ("edges=0-1:.5:.4", "not symmetric between 0 and 1"),
        ("edges=0-1:nan", "not all finite"),
        ("edges=0-1:.5/1-2:.5/0-2:.5,directed=true", "sum to 2 in column 0: rows and columns must"),
        ("edges=0-9:.5", "no node 9"),
    ],
)
def test_malformed_weights_are_refused_with_the_mend(options: str, says: str) -> None:
    with pytest.raises(TopologyError, match=says):
        build(f"graph:{options}", 3)


def test_random_draws_are_pinned() -> None:
    # As every peer draws its own: made of PCG64's own numbers, they must never change, nor differ between machines.
    assert build("erdos-renyi:p=0.4", 6).edges == PINNED["erdos-renyi"]
    assert build("small-world:k=2,p=0.5", 8).edges == PINNED["small-world"]
    assert build("barabasi-albert", 6).edges == PINNED["barabasi-albert"]
    assert build("equi-static:m=2,directed=true", 7).edges == PINNED["equi-static"]


@pytest.mark.parametrize("name", ["erdos-renyi", "small-world", "barabasi-albert", "equi-static"])
def test_another_seed_is_another_graph(name: str) -> None:
    assert build(f"{name}:seed=1", 40).edges != build(f"{name}:seed=2", 40).edges
    assert build(name, 40, seed=1) == build(f"{name}:seed=1", 40)


def test_erdos_renyi_has_as_many_edges_as_expected() -> None:
    # 40 draws of 1225 pairs with p = 0.3: mean 14700, standard deviation √(14700 · 0.7) = 101.4.
    counts = [len(build("erdos-renyi:p=0.3", 50, seed=seed).pairs) for seed in range(40)]
    assert abs(sum(counts) - 14700) < 4 * 101.4
    ends = np.concatenate([build("erdos-renyi:p=0.3", 50, seed=seed).pairs.ravel() for seed in range(40)])
    degrees = np.bincount(ends, minlength=50) / 40  # mean 14.7, standard deviation √(49 · 0.21 / 40) = 0.507
    assert np.abs(degrees - 14.7).max() < 5 * 0.507


def test_erdos_renyi_is_redrawn_until_connected() -> None:
    assert all(build("erdos-renyi:p=0.12", 30, seed=seed).connected for seed in range(20))


def test_small_world_moves_about_a_part_p_of_the_links() -> None:
    ring = set(build("small-world:k=4,p=0", 400).edges)
    kept = [len(ring & set(build("small-world:k=4,p=0.25", 400, seed=seed).edges)) for seed in range(5)]
    # 5 · 800 links moved with p = 0.25: 1000 of them, standard deviation 27.4; hardly one comes back by chance.
    assert abs(4000 - sum(kept) - 1000) < 4 * 27.4 + 10
    assert len(build("small-world:k=4,p=1", 400).edges) == 800


def test_small_world_is_redrawn_until_connected() -> None:
    assert all(build("small-world:k=2,p=1", 60, seed=seed).connected for seed in range(10))


def test_barabasi_albert_prefers_those_with_links() -> None:
    topology = build("barabasi-albert", 500)
    assert topology.degrees.min() >= 1
    assert topology.degrees.max() > 30  # a random graph of as many edges has about 12
    assert (topology.degrees[3:] >= 2).all()


@pytest.mark.parametrize(("nodes", "m"), [(7, 1), (16, 3), (25, 9)])
def test_equi_static_is_the_mean_of_shifts(nodes: int, m: int) -> None:
    directed = mixing_matrix(build(f"equi-static:m={m},directed=true", nodes))
    assert directed.sum(axis=0) == pytest.approx(np.ones(nodes), abs=1e-14)
    assert np.diag(directed) == pytest.approx(np.full(nodes, 1 / nodes), abs=1e-14)
    counts = directed[0] * m * nodes / (nodes - 1)  # how often each shift was drawn
    assert np.delete(counts, 0) == pytest.approx(np.round(np.delete(counts, 0)), abs=1e-12)
    assert directed == pytest.approx(np.stack([np.roll(directed[0], node) for node in range(nodes)]), abs=1e-14)
    undirected = mixing_matrix(build(f"equi-static:m={m}", nodes))
    assert undirected == pytest.approx((directed + directed.T) / 2, abs=1e-14)


def test_equi_static_is_redrawn_until_connected() -> None:
    assert all(build("equi-static:m=1", 12, seed=seed).connected for seed in range(20))


@pytest.mark.parametrize(
    ("edges", "says"),
    [
        *(
            (edges, f"{wrong!r} is no edge: write edges as 0-1/1-2")
            for edges, wrong in [
                ("01", "01"),
                ("0-1/", ""),
                ("0-1//1-2", ""),
                ("0-", "0-"),
                ("-1", "-1"),
                ("0--1", "0--1"),
                ("0-1-2", "0-1-2"),
                ("0-b", "0-b"),
                ("0-1.0", "0-1.0"),
                ("0-²", "0-²"),
            ]
        ),
        ("0-3", "has nodes 0 to 2, no node 3"),
        ("1-1", "has a self-loop at 1: leave it out"),
        ("0-1/1-0", "has the edge 1, 0 twice: keep one"),
    ],
)
def test_malformed_edges_are_refused_with_the_mend(edges: str, says: str) -> None:
    with pytest.raises(TopologyError, match=says):
        build(f"graph:edges={edges}", 3)


def test_each_name_is_described_in_one_line_with_its_defaults() -> None:
    assert describe("ring") == "Each node linked with the next, the last with the first."
    assert describe("random-regular").endswith("Options: k=4, seed=0.")
    assert describe("torus").endswith("Options: rows, cols.")
    assert describe("equi-static").endswith("Options: m, directed=false, seed=0.")
    assert describe("base").endswith("Options: k=1.")
    for name in NAMES:
        assert "\n" not in describe(name)
    with pytest.raises(TopologyError, match="did you mean 'ring'"):
        describe("rings")


def _counts() -> list[tuple[str, str]]:
    return [
        (name, option.name)
        for name in NAMES
        for option in inspect.signature(named._BUILDERS[name]).parameters.values()
        if option.name != "nodes" and "int" in str(option.annotation)
    ]


@pytest.mark.parametrize("nodes", [1, 2, 20])
@pytest.mark.parametrize("value", [10**12, 10**20, -(10**20), int("9" * 4000)])
@pytest.mark.parametrize(("name", "option"), _counts())
def test_a_huge_number_from_another_peer_is_refused_or_built_at_once(
    name: str, option: str, value: int, nodes: int
) -> None:
    tracemalloc.start()  # instead of a clock: what loops up to such a number or holds so many takes memory
    try:
        built = schedule(f"{name}:{option}={value}", nodes)
        assert len(built.at(0).pairs) <= nodes * (nodes - 1)
    except TopologyError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 10**7


def test_a_base_graph_of_more_neighbors_than_there_are_is_complete() -> None:
    assert schedule("base:k=1000000000000", 5).at(0).pairs.tolist() == build("complete", 5).pairs.tolist()
    assert build("tree:k=100000000000000000000", 5).pairs.tolist() == build("star", 5).pairs.tolist()


def test_a_node_of_thousands_of_digits_is_no_edge() -> None:
    with pytest.raises(TopologyError, match="is no edge: write edges as 0-1/1-2"):
        build(f"graph:edges=0-{'9' * 5000}", 3)


@pytest.mark.parametrize(
    ("spec", "nodes"),
    [
        ("complete", 10**6),
        ("barbell", 10**6),
        ("moshpit", 10**6),
        ("moshpit:dims=1", 10**5),
        ("base:k=99999", 10**5),
        ("random-regular:k=50000", 10**5),
        ("erdos-renyi:p=.5", 10**5),
        ("small-world:k=50000", 10**5),
        ("barabasi-albert:m=50000", 10**5),
        ("equi-static:m=50000", 10**5),
        ("epidemic-oracle:s=50000", 10**5),
        ("epidemic-local:s=50000", 10**5),
    ],
)
def test_more_edges_than_memory_holds_are_refused_before_any_is_made(spec: str, nodes: int) -> None:
    with pytest.raises(TopologyError, match=r"edges in a round, more than the 3e\+07 .* take fewer neighbors"):
        schedule(spec, nodes)
