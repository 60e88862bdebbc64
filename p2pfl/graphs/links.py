"""What the links of a schedule cost, and how far they reach.

Of a schedule that repeats all rounds count; of one drawn anew each round the first 40 stand for the rest.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import dijkstra

from p2pfl.graphs.schedule import Schedule
from p2pfl.graphs.spectra import distinct_values, looks_the_same_everywhere, spectrum
from p2pfl.graphs.topology import Topology

DRAWS = 40
_DENSE_NODES = 2048  # all eigenvalues of a Laplacian, and what weights it: `weighting` takes no more either
_MOST_STEPS = 2 * 10**9  # of a search from every node: some seconds
_HEAP = 20  # steps that a node costs a search beyond its arcs
_BLOCK = 256  # sources whose distances are held at once


@dataclass(frozen=True)
class Links:
    """The links of a round.

    Attributes:
        edges: undirected edges or, directed, arcs; the mean of the rounds.
        degree_min, degree_max: shares a node receives in a round, over nodes and rounds.
        shares: models sent over the whole network in a round; the mean of the rounds.
        busiest: models sent by the node that sends most, a round; the mean of the rounds.
        directed: whether some edges go one way.
    """

    edges: float
    degree_min: int
    degree_max: int
    shares: float
    busiest: float
    directed: bool


def links(schedule: Schedule) -> Links:
    """Count the links of a round; exact where the schedule repeats."""
    return counted(_rounds(schedule))


def counted(topologies: Iterable[Topology]) -> Links:
    """The links of these rounds, at least one, of the same nodes; each round is let go before the next."""
    edges, fewest, most, directed, sent = [], [], [], False, np.zeros(1, dtype=np.int64)
    for topology in topologies:
        edges.append(len(topology.pairs))
        fewest.append(int(topology.degrees.min()))
        most.append(int(topology.degrees.max()))
        sent = sent + topology.out_degrees
        directed = directed or topology.directed
    rounds = len(edges)
    return Links(sum(edges) / rounds, min(fewest), max(most), sent.sum() / rounds, sent.max() / rounds, directed)


def bytes_per_round(schedule: Schedule, model_bytes: int) -> float:
    """What all nodes together send in a round, without headers; exact where the schedule repeats.

    Args:
        model_bytes: of one model as it travels: 4 for each parameter in float32.
    """
    return links(schedule).shares * model_bytes


def diameter(schedule: Schedule) -> int | None:
    """Links between the two nodes furthest apart, along the arcs, over all edges that a period has. Exact.

    None where rounds are drawn anew, nodes do not reach each other, or a search from every node is too much.
    """
    if schedule.period is None:
        return None
    nodes = schedule.nodes
    senders, receivers = np.unique(np.concatenate([topology.arc_array for topology in _rounds(schedule)]), axis=0).T
    graph = csr_array(coo_array((np.ones(len(senders)), (senders, receivers)), shape=(nodes, nodes)))
    if looks_the_same_everywhere(graph):
        furthest = float(dijkstra(graph, unweighted=True, indices=0).max())
    elif nodes * (len(senders) + _HEAP * nodes) <= _MOST_STEPS:
        blocks = (np.arange(first, min(first + _BLOCK, nodes)) for first in range(0, nodes, _BLOCK))
        furthest = max(float(dijkstra(graph, unweighted=True, indices=block).max()) for block in blocks)
    else:
        return None
    return int(furthest) if np.isfinite(furthest) else None


def finite_time_rounds(topology: Topology) -> int | None:
    """D, after how many rounds the weights `finite-time` (I − L/λ_k) reach the exact average on an undirected topology.

    It is the number of distinct nonzero eigenvalues of the Laplacian, so exact but for eigenvalues closer than 1e-9 of
    the largest. None if directed, in parts, or too large for all eigenvalues. Whether rounding lets the weighting be
    used, `weighting.serves_finite_time` tells.
    """
    if topology.directed or not topology.connected:
        return None
    nodes = topology.nodes
    senders, receivers = topology.arc_array.T
    every = np.arange(nodes)
    values = np.concatenate([topology.degrees, -np.ones(len(senders))])
    places = (np.concatenate([every, senders]), np.concatenate([every, receivers]))
    laplacian = csr_array(coo_array((values, places), shape=(nodes, nodes)))
    if nodes > _DENSE_NODES and not looks_the_same_everywhere(laplacian):
        return None
    return len(distinct_values(np.sort(np.abs(spectrum(laplacian))))) - 1


def _rounds(schedule: Schedule) -> Iterator[Topology]:
    return (schedule.at(round) for round in range(schedule.period or DRAWS))
