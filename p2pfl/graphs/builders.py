"""Topologies by formula: each function takes the number of nodes and its own few options.

The first line of a docstring is what `named.describe` shows; a name with its options, given to `named.build`, makes the
same topology again.
"""

import math
from collections.abc import Iterable
from itertools import combinations

import networkx as nx

from p2pfl.errors import TopologyError
from p2pfl.graphs.topology import Topology


def ring(nodes: int) -> Topology:
    """Each node linked with the next, the last with the first."""
    return _undirected("ring", nodes, ((i, (i + 1) % nodes) for i in range(nodes)))


def chain(nodes: int) -> Topology:
    """Each node linked with the next."""
    return _undirected("chain", nodes, ((i, i + 1) for i in range(nodes - 1)))


def star(nodes: int) -> Topology:
    """Node 0 linked with all others."""
    return _undirected("star", nodes, ((0, i) for i in range(1, nodes)))


def complete(nodes: int) -> Topology:
    """Every node linked with every other."""
    return _undirected("complete", nodes, combinations(range(nodes), 2))


def grid(nodes: int, rows: int | None = None, cols: int | None = None) -> Topology:
    """Rows and columns, linked to the right and down; as square as can be unless told."""
    name, rows, cols = _fold("grid", nodes, rows, cols)
    right = ((i, i + 1) for i in range(nodes) if (i + 1) % cols)
    down = ((i, i + cols) for i in range(nodes - cols))
    return _undirected(name, nodes, (*right, *down))


def torus(nodes: int, rows: int | None = None, cols: int | None = None) -> Topology:
    """A grid whose rows and columns close into rings; as square as can be unless told.

    With two rows (or columns) the link down and the link back up are one edge; with one there is none.
    """
    name, rows, cols = _fold("torus", nodes, rows, cols)
    right = ((i, i - i % cols + (i + 1) % cols) for i in range(nodes))
    down = ((i, (i + cols) % nodes) for i in range(nodes))
    return _undirected(name, nodes, (*right, *down))


def exponential(nodes: int) -> Topology:
    """Each node sends to those 1, 2, 4, 8, … places on: about log2 of the nodes, directed.

    Source: Ying et al., "Exponential graph is provably efficient for decentralized deep training", 2021, section 3.
    """
    arcs = tuple((i, (i + hop) % nodes) for i in range(nodes) for hop in _hops(nodes))
    return Topology("exponential", nodes, arcs, directed=True)


def exponential_symmetric(nodes: int) -> Topology:
    """Each node linked with those 1, 2, 4, 8, … places on and back, undirected."""
    return _undirected(
        "exponential-symmetric", nodes, ((i, (i + hop) % nodes) for i in range(nodes) for hop in _hops(nodes))
    )


def random_regular(nodes: int, k: int = 4, seed: int = 0) -> Topology:
    """Each node linked with k others drawn at random, redrawn until connected.

    Args:
        nodes: how many; times k it must be even.
        k: below `nodes`; more means faster mixing and more bytes.
        seed: the same seed gives the same graph; an unconnected draw is followed by the next seed's.
    """
    if nodes < 1:
        raise TopologyError(f"a random-regular of {nodes} peers cannot be: it needs at least 1")
    if not min(2, nodes - 1) <= k < nodes or nodes * k % 2:
        raise TopologyError(_no_regular(nodes, k))
    name = f"random-regular:k={k},seed={seed}"
    dense = k > (nodes - 1) / 2  # networkx draws dense graphs for ever; the links left out are as random and quick
    while True:
        # All peers must draw one graph: tests/test_builders.py pins a draw, should networkx ever change its own.
        graph = nx.random_regular_graph(nodes - 1 - k if dense else k, nodes, seed=seed)
        if dense:
            graph = nx.complement(graph)
        if nx.is_connected(graph):
            return Topology(name, nodes, tuple(graph.edges()))
        seed += 1


def graph(nodes: int, edges: str = "-", directed: bool = False, of: int | None = None) -> Topology:
    """The edges written out, as `0-1/1-2`: how a topology from a file travels in a recipe."""
    pairs = []
    for pair in edges.split("/") if edges != "-" else []:
        first, dash, second = pair.partition("-")
        if not (dash and first.isascii() and first.isdigit() and second.isascii() and second.isdigit()):
            raise TopologyError(f"{pair!r} is no edge: write edges as 0-1/1-2")
        pairs.append((int(first), int(second)))
    if of is not None and of != nodes:
        raise TopologyError(
            f"the topology has {of} nodes, the network {nodes} peers: use {of} peers, or a topology for any number"
        )
    name = f"graph:edges={edges},directed={str(directed).lower()}" + (f",of={of}" if of is not None else "")
    return Topology(name, nodes, tuple(pairs), directed=directed)


def _undirected(name: str, nodes: int, pairs: Iterable[tuple[int, int]]) -> Topology:
    """Drop self-loops and the second of double edges, which small rings have."""
    return Topology(name, nodes, tuple({(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]}))


def _hops(nodes: int) -> list[int]:
    return [2**k for k in range((nodes - 1).bit_length())]  # ⌈log2 nodes⌉ of them, without the rounding of log2


def _fold(kind: str, nodes: int, rows: int | None, cols: int | None) -> tuple[str, int, int]:
    """The name, rows and columns of a grid or torus."""
    if rows is None and cols is None:
        rows = max((r for r in range(1, math.isqrt(max(nodes, 1)) + 1) if nodes % r == 0), default=1)
        if rows == 1 and nodes > 2:  # up to 2 there is only one way to lie
            line = "chain" if kind == "grid" else "ring"
            raise TopologyError(
                f"{nodes} is prime, so there is no {kind} of {nodes} peers: make it {nodes - 1} or {nodes + 1} peers, "
                f"or take {line!r} or 'exponential-symmetric'"
            )
        return kind, rows, nodes // rows
    given = [size for size in (rows, cols) if size is not None]
    if min(given) < 1 or nodes % given[0] or (len(given) == 2 and math.prod(given) != nodes):
        divisors = ", ".join(str(size) for size in range(1, nodes + 1) if nodes % size == 0)
        raise TopologyError(
            f"a {kind} of {nodes} peers does not come out even with {' x '.join(map(str, given))}: "
            f"give rows or cols as one of {divisors}, or neither"
        )
    rows, cols = rows or nodes // given[0], cols or nodes // given[0]
    return f"{kind}:rows={rows},cols={cols}", rows, cols


def _no_regular(nodes: int, k: int) -> str:
    lowest = min(2, nodes - 1)
    odd = lowest <= k < nodes
    span = f"{lowest}" if lowest == nodes - 1 else f"{lowest} to {nodes - 1}"
    why = "peers times k must be even" if odd else f"k must be {span}"
    possible = [d for d in range(lowest, nodes) if nodes * d % 2 == 0]
    nearest = sorted(sorted(possible, key=lambda d: abs(d - k))[:2])
    mend = f"take k={' or k='.join(map(str, nearest))}{', or one peer more or less' if odd else ''}"
    return f"there is no connected random-regular of {nodes} peers with k={k}: {why}; {mend}"
