"""Mixing weights: what each node puts on the models it has, its own included.

Invariant: a node's own weight is 1 minus the others', added one by one in sorted order. So every row sums to 1, a row
of `mixing_csr` is bit for bit what a live peer uses, and `with_missing` of nothing changes no bit.
"""

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from p2pfl.errors import TopologyError
from p2pfl.graphs.topology import Topology


def metropolis(degree: int, neighbor_degrees: Mapping[int, int]) -> dict[int, float]:
    """Weight each neighbor by 1 / (1 + the larger degree); self keeps the rest, which is not in the result.

    Needs only local knowledge, and gives a symmetric, doubly stochastic matrix on any
    connected graph, so the network's average is preserved.

    Args:
        degree: this peer's degree, not below the number of neighbors given.
        neighbor_degrees: degree of each neighbor, as carried in its share.

    Raises:
        TopologyError: more neighbors than the degree.

    Source: Xiao and Boyd, "Fast linear iterations for distributed averaging", 2004, section 4.
    """
    if len(neighbor_degrees) > degree:
        raise TopologyError(
            f"{len(neighbor_degrees)} neighbors, but degree {degree}: give the degree of the whole view"
        )
    return {neighbor: 1 / (1 + max(degree, neighbor_degrees[neighbor])) for neighbor in sorted(neighbor_degrees)}


def mixing_weights(topology: Topology, node: int) -> dict[int, float]:
    """The node's row of the mixing matrix: itself first, then its sources in order.

    The topology's own weights if it has any; Metropolis–Hastings if it is undirected; else 1 / (1 + in-degree) each.

    Raises:
        TopologyError: no such node, or directed, without weights, and of unequal degrees.
    """
    sources = topology.sources(node)
    if topology.link_weights is not None:
        return _with_self(node, topology.weights_on(node))
    if not topology.directed:
        return _with_self(node, metropolis(len(sources), {source: topology.degree(source) for source in sources}))
    _keeps_average(topology)
    return _with_self(node, {source: 1 / (1 + len(sources)) for source in sources})


def with_missing(weights: Mapping[int, float], node: int, missing: Collection[int]) -> dict[int, float]:
    """Give the weight of missing neighbors to self; the others keep theirs, nothing is renormalized.

    Rows still sum to 1, columns do not: under loss the network's average drifts.

    Args:
        weights: the node's, as `mixing_weights` gives them.
        node: whose they are.
        missing: neighbors of whom nothing came this round.

    Raises:
        TopologyError: one of the missing is no neighbor.
    """
    strangers = sorted(set(missing) - (set(weights) - {node}))
    if strangers:
        raise TopologyError(f"node {strangers[0]} cannot be missing at node {node}: it is no neighbor")
    return _with_self(
        node, {other: weight for other, weight in weights.items() if other != node and other not in missing}
    )


def mixing_csr(topology: Topology) -> csr_array:
    """The weights of all nodes, rows as `mixing_weights` gives them to the bit, columns sorted; [nodes, nodes].

    The diagonal is stored even where it is 0.

    Raises:
        TopologyError: directed, without weights, and of unequal degrees.
    """
    nodes, links = topology.nodes, topology.links
    receivers, senders = links[:, 0], links[:, 1]
    values = topology.link_weights
    if values is None and not topology.directed:
        values = 1 / (1 + np.maximum(topology.degrees[receivers], topology.degrees[senders]))
    elif values is None:
        _keeps_average(topology)
        values = 1 / (1 + topology.degrees[receivers])
    # bincount adds one by one in order, as `_with_self` does; a sum of an array would add in pairs, to other bits.
    own = 1 - np.bincount(receivers, weights=values, minlength=nodes)
    before = np.bincount(receivers[senders < receivers], minlength=nodes)
    starts = np.concatenate([[0], np.cumsum(topology.degrees + 1)])
    at_own = starts[:-1] + before
    at_link = np.arange(len(links)) + receivers + (senders > receivers)
    data, columns = np.empty(starts[-1]), np.empty(starts[-1], dtype=np.int64)
    data[at_own], columns[at_own] = own, np.arange(nodes)
    data[at_link], columns[at_link] = values, senders
    matrix = csr_array((data, columns, starts), shape=(nodes, nodes))
    matrix.has_sorted_indices = True
    return matrix


def mixing_matrix(topology: Topology) -> npt.NDArray[np.float64]:
    """The weights of all nodes: row i is what node i puts on each; [nodes, nodes]."""
    matrix: npt.NDArray[np.float64] = mixing_csr(topology).toarray()
    return matrix


def _keeps_average(topology: Topology) -> None:
    """Refuse equal weights on a directed topology of unequal degrees, unless it says that its average may drift."""
    if not (topology.regular or topology.drifting):
        raise TopologyError(
            f"topology {topology.name!r} is directed and its degrees differ, so equal weights would not be doubly "
            "stochastic and the average would drift: let every node receive and send the same number, give weights, "
            "or make it undirected"
        )


def _with_self(node: int, others: Mapping[int, float]) -> dict[int, float]:
    rest = 0.0
    for other in sorted(others):  # not sum(): from Python 3.12 on it compensates, and peers would differ in a bit
        rest += others[other]
    return {node: 1 - rest, **{other: others[other] for other in sorted(others)}}
