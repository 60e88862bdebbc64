"""Topologies drawn at random once, for all rounds, each connected: the same on every machine for the same seed."""

import math
from collections.abc import Callable, Iterator
from itertools import count, islice

import numpy as np

from p2pfl.errors import TopologyError
from p2pfl.graphs.builders import require_edges
from p2pfl.graphs.draws import Draws
from p2pfl.graphs.topology import Ints, Topology

_ATTEMPTS = 100  # draws before a graph is held to be never connected
_FEW = 50  # nodes that may come out connected against all odds


def erdos_renyi(nodes: int, p: float | None = None, seed: int = 0) -> Topology:
    """Any two nodes linked with probability p (2 ln n / n unless told), redrawn until connected.

    Args:
        nodes: how many.
        p: more means faster mixing and more bytes; below ln n / n a connected draw is rare.
        seed: the same seed gives the same graph.

    Source: P. Erdős and A. Rényi, "On random graphs I", 1959; E. Gilbert, "Random graphs", 1959.
    """
    if p is None:
        p = float(f"{min(1.0, 2 * math.log(nodes) / nodes):.6g}") if nodes > 1 else 0.0
    if not 0 <= p <= 1:
        raise TopologyError(f"erdos-renyi cannot link with probability p={p}: take p between 0 and 1")
    likely = min(1.0, 2 * math.log(max(nodes, 2)) / max(nodes, 2))
    hopeless = TopologyError(
        f"an erdos-renyi of {nodes} peers with p={p} is hardly ever connected: take p={likely:.2g} or more"
    )
    if p * nodes < 1 and nodes > _FEW:  # half as many edges as a tree has
        raise hopeless
    require_edges("erdos-renyi", nodes, int(p * nodes * (nodes - 1) / 2))
    name = f"erdos-renyi:p={p},seed={seed}"
    draws = _connected(name, nodes, lambda attempt: _each_with(nodes, p, Draws(seed, "erdos-renyi", attempt)))
    drawn = next(filter(None, islice(draws, _ATTEMPTS)), None)
    if drawn is None:
        raise hopeless
    return drawn


def small_world(nodes: int, k: int = 4, p: float = 0.1, seed: int = 0) -> Topology:
    """A ring linked with the k nearest, of whose links a part p is led elsewhere at random; redrawn until connected.

    Args:
        nodes: how many, more than k.
        k: even; more means faster mixing and more bytes.
        p: 0 leaves the ring as it is, 1 makes it nearly random.
        seed: the same seed gives the same graph.

    Source: D. Watts and S. Strogatz, "Collective dynamics of small-world networks", 1998.
    """
    if nodes >= 1 and (k % 2 or not 2 <= k < nodes):
        best = max(2, min(k - k % 2, (nodes - 1) // 2 * 2))
        mend = f"take k={best}" if nodes > 2 else "take 'chain'"
        raise TopologyError(
            f"there is no small-world of {nodes} peers with k={k}: k must be even, at least 2 and below the peers; "
            f"{mend}"
        )
    if not 0 <= p <= 1:
        raise TopologyError(f"small-world cannot rewire with probability p={p}: take p between 0 and 1")
    require_edges("small-world", nodes, nodes * k // 2)
    name = f"small-world:k={k},p={p},seed={seed}"
    draws = _connected(name, nodes, lambda attempt: _rewired(nodes, k, p, Draws(seed, "small-world", attempt)))
    return next(filter(None, draws))  # at worst, k=2 and p=1, about one in √n is connected


def barabasi_albert(nodes: int, m: int = 2, seed: int = 0) -> Topology:
    """Each node links with m before it, the likelier the more links they have: a few hubs, many with few links.

    It begins with a star of m + 1 nodes.

    Args:
        nodes: how many, more than m.
        m: at least 1; more means faster mixing and more bytes.
        seed: the same seed gives the same graph.

    Source: A.-L. Barabási and R. Albert, "Emergence of scaling in random networks", 1999.
    """
    if nodes >= 1 and not 1 <= m < nodes:
        mend = f"take m={max(1, min(m, nodes - 1))}" if nodes > 1 else "take 'ring'"
        raise TopologyError(
            f"there is no barabasi-albert of {nodes} peers with m={m}: m must be at least 1 and below the peers; {mend}"
        )
    require_edges("barabasi-albert", nodes, m * (nodes - m))
    draws = Draws(seed, "barabasi-albert")
    pairs = [(0, leaf) for leaf in range(1, m + 1)]
    ends = [end for pair in pairs for end in pair]  # as often as it has links
    for node in range(m + 1, nodes):
        chosen: set[int] = set()
        while len(chosen) < m:
            chosen.update(ends[at] for at in draws.below(len(ends), m - len(chosen)).tolist())
        linked = sorted(chosen)
        pairs.extend((other, node) for other in linked)
        ends.extend(linked)
        ends.extend([node] * m)
    return Topology(f"barabasi-albert:m={m},seed={seed}", nodes, np.array(pairs, dtype=np.int64).reshape(-1, 2))


def equi_static(nodes: int, m: int | None = None, directed: bool = False, seed: int = 0) -> Topology:
    """The mean of m random shifts of all nodes (log2 of the nodes unless told), redrawn until connected.

    D-EquiStatic if directed, else U-EquiStatic, which adds each shift's way back. A shift by u lets every node put
    (n − 1) / n on the node u places on, and 1 / n on itself; drawn with repetition, a shift may count twice.

    Args:
        nodes: how many.
        m: shifts, at most as many as nodes; more means faster mixing, whatever their number, and more bytes.
        directed: each node receives from at most m others, else from at most 2 m.
        seed: the same seed gives the same graph.

    Source: Song et al., "Communication-efficient topologies for decentralized learning with O(1) consensus rate",
        2022, section 3.
    """
    m = max(1, (nodes - 1).bit_length()) if m is None else m
    if m < 1:
        raise TopologyError(f"an equi-static of m={m} shifts links nobody: take m=1 or more")
    if m > nodes >= 1:
        raise TopologyError(
            f"an equi-static of {nodes} peers has no use for m={m} shifts, as there are no more than the peers: take "
            f"m={max(1, nodes - 1)} or fewer"
        )
    require_edges("equi-static", nodes, nodes * m)
    name = f"equi-static:m={m},directed={str(directed).lower()},seed={seed}"
    if nodes <= 1:
        return Topology(name, nodes, (), directed)
    for attempt in count():
        shifts = 1 + Draws(seed, "equi-static", attempt).below(nodes - 1, m)
        if math.gcd(nodes, *shifts.tolist()) == 1:  # else the shifts never leave some of the nodes' remainders
            break
    everyone = np.arange(nodes)
    if not directed:
        shifts = np.concatenate([shifts, nodes - shifts])
    steps, times = np.unique(shifts, return_counts=True)
    arcs = np.concatenate([np.stack([(everyone + step) % nodes, everyone], axis=1) for step in steps])
    values = np.repeat(times / len(shifts) * ((nodes - 1) / nodes), nodes)
    if directed:
        return Topology.of_links(name, nodes, arcs, values, directed=True)
    once = arcs[:, 0] < arcs[:, 1]
    return Topology.of_links(name, nodes, arcs[once], values[once])


def _connected(name: str, nodes: int, draw: Callable[[int], Ints]) -> Iterator[Topology | None]:
    """One draw after the other, None for those that are not connected."""
    for attempt in count():
        topology = Topology(name, nodes, draw(attempt))
        yield topology if topology.connected else None


def _each_with(nodes: int, p: float, draws: Draws) -> Ints:
    """Each pair of nodes with probability p; [edges, 2]."""
    if p == 0:
        return np.empty((0, 2), dtype=np.int64)
    pairs = nodes * (nodes - 1) // 2
    if p == 1 or nodes < 2:
        return np.argwhere(np.triu(np.ones((max(nodes, 0), max(nodes, 0)), dtype=np.bool_), 1))
    # Pairs passed over before the next one follow (1 − p)^k. Its powers by multiplication are the same on every
    # machine, as logarithms are not; beyond 2⁻⁵³ no draw reaches.
    longest = min(pairs, math.ceil(37 / p)) + 1
    beyond = 1 - np.multiply.accumulate(np.full(longest, 1 - p))
    chosen = np.empty(0, dtype=np.int64)
    last = -1
    while last < pairs:
        gaps = np.searchsorted(beyond, draws.unit(int(pairs * p) + 16), side="right")
        places = last + np.cumsum(gaps + 1)
        last = int(places[-1])
        chosen = np.concatenate([chosen, places[places < pairs]])
    # Pair number t stands in the row i where i·(2n − i − 1)/2 pairs stand before it.
    rows = np.arange(nodes)
    starts = rows * (2 * nodes - rows - 1) // 2
    first = np.searchsorted(starts, chosen, side="right") - 1
    return np.stack([first, chosen - starts[first] + first + 1], axis=1)


def _rewired(nodes: int, k: int, p: float, draws: Draws) -> Ints:
    neighbors: list[set[int]] = [set() for _ in range(nodes)]
    for node in range(nodes):
        for hop in range(1, k // 2 + 1):
            neighbors[node].add((node + hop) % nodes)
            neighbors[(node + hop) % nodes].add(node)
    for hop in range(1, k // 2 + 1):
        for node in np.flatnonzero(draws.unit(max(nodes, 0)) < p).tolist():
            other = (node + hop) % nodes
            if other not in neighbors[node] or len(neighbors[node]) == nodes - 1:
                continue
            elsewhere = node
            while elsewhere == node or elsewhere in neighbors[node]:
                elsewhere = int(draws.below(nodes, 1)[0])
            neighbors[node].remove(other)
            neighbors[other].remove(node)
            neighbors[node].add(elsewhere)
            neighbors[elsewhere].add(node)
    pairs = [(node, other) for node in range(nodes) for other in neighbors[node] if node < other]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)
