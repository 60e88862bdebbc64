"""Topologies by formula: each function takes the number of nodes and its own few options.

The first line of a docstring is what `named.describe` shows; a name with its options, given to `named.build`, makes the
same topology again.
"""

import math
from itertools import count

import numpy as np

from p2pfl.errors import TopologyError
from p2pfl.graphs.draws import Draws, regular_pairs
from p2pfl.graphs.topology import Ints, Topology, distinct

_MOST_EDGES = 3 * 10**7  # of one round: some GB while it is built; the exponential graph of a million has 2·10^7
_LONGEST_NUMBER = 18  # digits of a node: more fit no array


def ring(nodes: int) -> Topology:
    """Each node linked with the next, the last with the first."""
    everyone = _everyone(nodes)
    return _undirected("ring", nodes, (everyone, (everyone + 1) % max(nodes, 1)))


def chain(nodes: int) -> Topology:
    """Each node linked with the next."""
    everyone = _everyone(nodes)
    return _undirected("chain", nodes, (everyone[:-1], everyone[1:]))


def star(nodes: int) -> Topology:
    """Node 0 linked with all others."""
    others = _everyone(nodes)[1:]
    return _undirected("star", nodes, (np.zeros_like(others), others))


def complete(nodes: int) -> Topology:
    """Every node linked with every other."""
    require_edges("complete", nodes, nodes * (nodes - 1) // 2)
    return _undirected("complete", nodes, np.triu_indices(max(nodes, 0), 1))


def grid(nodes: int, rows: int | None = None, cols: int | None = None) -> Topology:
    """Rows and columns, linked to the right and down; as square as can be unless told."""
    name, rows, cols = _fold("grid", nodes, rows, cols)
    everyone = _everyone(nodes)
    right = everyone[(everyone + 1) % cols != 0]
    return _undirected(name, nodes, (right, right + 1), (everyone[:-cols], everyone[cols:]))


def torus(nodes: int, rows: int | None = None, cols: int | None = None) -> Topology:
    """A grid whose rows and columns close into rings; as square as can be unless told.

    With two rows (or columns) the link down and the link back up are one edge; with one there is none.
    """
    name, rows, cols = _fold("torus", nodes, rows, cols)
    everyone = _everyone(nodes)
    right = everyone - everyone % cols + (everyone + 1) % cols
    return _undirected(name, nodes, (everyone, right), (everyone, (everyone + cols) % max(nodes, 1)))


def hypercube(nodes: int) -> Topology:
    """Nodes numbered in binary, linked where one digit differs; a power of two of them."""
    require_power_of_two("hypercube", nodes)
    everyone = _everyone(nodes)
    return _undirected("hypercube", nodes, *((everyone, everyone ^ hop) for hop in hops(nodes)))


def exponential(nodes: int) -> Topology:
    """Each node sends to those 1, 2, 4, 8, … places on: about log2 of the nodes, directed.

    Source: Ying et al., "Exponential graph is provably efficient for decentralized deep training", 2021, section 3.
    """
    everyone = _everyone(nodes)
    arcs = [np.stack([everyone, (everyone + hop) % nodes], axis=1) for hop in hops(nodes)]
    return Topology("exponential", nodes, _joined(arcs), directed=True)


def exponential_symmetric(nodes: int) -> Topology:
    """Each node linked with those 1, 2, 4, 8, … places on and back, undirected."""
    everyone = _everyone(nodes)
    return _undirected("exponential-symmetric", nodes, *((everyone, (everyone + hop) % nodes) for hop in hops(nodes)))


def tree(nodes: int, k: int = 2) -> Topology:
    """A tree in which each node has k nodes below it, filled level by level from node 0."""
    if k < 1:
        raise TopologyError(f"a tree with k={k} nodes below each cannot be: take k=1 (a chain) or more")
    below = _everyone(nodes)[1:]
    return _undirected(f"tree:k={k}", nodes, ((below - 1) // min(k, max(nodes, 1)), below))


def barbell(nodes: int) -> Topology:
    """Two halves, all linked within, and one link between them; an odd node sits on that link."""
    half = max(nodes, 0) // 2
    require_edges("barbell", nodes, half * half)
    first, second = np.triu_indices(half, 1)
    bridge = _everyone(nodes)[max(half - 1, 0) : nodes - half + 1]
    far = nodes - half
    return _undirected("barbell", nodes, (first, second), (first + far, second + far), (bridge[:-1], bridge[1:]))


def random_regular(nodes: int, k: int = 4, seed: int = 0) -> Topology:
    """Each node linked with k others drawn at random, redrawn until connected.

    Args:
        nodes: how many; times k it must be even.
        k: below `nodes`; more means faster mixing and more bytes.
        seed: the same seed gives the same graph.
    """
    if nodes < 1:
        raise TopologyError(f"a random-regular of {nodes} peers cannot be: it needs at least 1")
    if not min(2, nodes - 1) <= k < nodes or nodes * k % 2:
        raise TopologyError(_no_regular(nodes, k))
    name = f"random-regular:k={k},seed={seed}"
    require_edges("random-regular", nodes, nodes * k // 2)
    draws = (Draws(seed, "random-regular", attempt) for attempt in count())
    drawn = (Topology(name, nodes, regular_pairs(each, nodes, k)) for each in draws)
    return next(topology for topology in drawn if topology.connected)


def graph(
    nodes: int, edges: str = "-", directed: bool = False, of: int | None = None, drifting: bool = False
) -> Topology:
    """The edges written out, as `0-1/1-2`: how a topology from a file travels in a recipe.

    Args:
        nodes: how many.
        edges: two nodes each, sender and receiver if directed, and behind a colon the weight that the second puts on
            the first, as `0-1:0.25`; of an undirected edge also the other way around, `0-1:0.25:0.5`, if it differs.
        directed: whether they are arcs.
        of: the number of nodes that it is for; None for any.
        drifting: whether the weights may let the network's average drift.
    """
    if of is not None and of != nodes:
        raise TopologyError(
            f"the topology has {of} nodes, the network {nodes} peers: use {of} peers, or a topology for any number"
        )
    name = f"graph:{graph_options(edges, directed, of, drifting)}"
    pairs: list[tuple[int, int]] = []
    weights: list[list[float]] = []
    for edge in edges.split("/") if edges != "-" else []:
        pair, *numbers = edge.split(":")
        first, dash, second = pair.partition("-")
        if not (dash and _is_number(first) and _is_number(second)):
            raise TopologyError(f"{pair!r} is no edge: write edges as 0-1/1-2")
        try:
            weights.append([float(number) for number in numbers])
        except ValueError:
            raise TopologyError(f"{edge!r} has no weight that is a number: write edges as 0-1:0.25/1-2:0.5") from None
        pairs.append((int(first), int(second)))
    counts = {len(numbers) for numbers in weights}
    if counts <= {0}:
        return Topology(name, nodes, pairs, directed, drifting=drifting)
    if not counts <= ({1} if directed else {1, 2}):
        most = "a weight" if directed else "a weight, or one for each way"
        raise TopologyError(f"in {edges!r} some edges have another number of weights: give {most} to all or none")
    there_and_back = np.array([[numbers[0], numbers[-1]] for numbers in weights])
    checked = Topology(name, nodes, pairs, directed)  # says what is wrong with the pairs before they are weighed
    values = there_and_back[:, 0] if directed else there_and_back
    return Topology.of_links(name, checked.nodes, np.array(pairs, dtype=np.int64), values, directed, drifting)


def graph_options(edges: str, directed: bool, of: int | None, drifting: bool) -> str:
    """The options of `graph` as they are spelled."""
    text = f"edges={edges},directed={str(directed).lower()}" + (f",of={of}" if of is not None else "")
    return f"{text},drifting=true" if drifting else text


def _undirected(name: str, nodes: int, *links: tuple[Ints, Ints]) -> Topology:
    """Drop self-loops and the second of double edges, which small rings have."""
    one, other = (np.concatenate([ends[side] for ends in links]) if links else _everyone(0) for side in (0, 1))
    keys = np.minimum(one, other) * max(nodes, 1) + np.maximum(one, other)
    keys = distinct(keys[one != other])
    return Topology(name, nodes, np.stack([keys // max(nodes, 1), keys % max(nodes, 1)], axis=1))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _LONGEST_NUMBER


def _everyone(nodes: int) -> Ints:
    return np.arange(max(nodes, 0))  # Topology itself refuses fewer than 1


def _joined(parts: list[Ints]) -> Ints:
    return np.concatenate([np.empty((0, 2), dtype=np.int64), *parts])


def hops(nodes: int) -> list[int]:
    """1, 2, 4, … below `nodes`: ⌈log2 nodes⌉ of them, without the rounding of a logarithm."""
    return [2**k for k in range((nodes - 1).bit_length())]


def require_edges(name: str, nodes: int, edges: int) -> None:
    """Refuse a round of more edges than memory is good for, before any is made: the spec may be another peer's."""
    if edges > _MOST_EDGES:
        raise TopologyError(
            f"a {name} of {nodes} peers would have {edges:.3g} edges in a round, more than the {_MOST_EDGES:.0e} that "
            "one machine holds: take fewer neighbors or fewer peers, or 'exponential' or 'base', whose edges are few"
        )


def require_power_of_two(name: str, nodes: int) -> None:
    """Refuse any other number of nodes than 1, 2, 4, 8, …, and name the nearest that will do."""
    if nodes > 0 and nodes & (nodes - 1):
        above = 1 << nodes.bit_length()
        raise TopologyError(
            f"there is no {name} of {nodes} peers: it needs a power of two; make it {above // 2} or {above} peers, "
            "or take 'exponential-symmetric' or 'base', which serve any number"
        )


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
        return f"{kind}:rows={rows},cols={nodes // rows}", rows, nodes // rows
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
