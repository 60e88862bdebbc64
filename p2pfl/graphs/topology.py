"""Who shares with whom: a frozen value to compare, hash, save and plot."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from operator import index
from typing import Self

import networkx as nx
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from p2pfl.errors import TopologyError
from p2pfl.types import seat_order

SUM_TOLERANCE = 1e-9  # how far explicit weights may be from rows and columns of 1, and from symmetry


@dataclass(frozen=True)
class Topology:
    """Nodes 0 … nodes−1, each the position of a member among the members sorted by seat, and their links.

    Edges may be given in any order and either way around; they are kept sorted, so equal topologies compare equal.

    Attributes:
        name: as it is spelled on the command line.
        nodes: how many, at least 1.
        edges: pairs (i, j) with i < j; if directed, arcs (sender, receiver).
        directed: whether `edges` are arcs.
        weights: (receiver, sender, weight) for every arc, and (i, i, weight) for what i keeps of its own where that is
            not 0. None leaves the weights to `mixing.mixing_weights`. Negative weights are allowed.

    Raises:
        TopologyError: a node out of range, a self-loop, an edge that stands twice, or weights that do not belong to the
            edges or would not keep the network's average.
    """

    name: str
    nodes: int
    edges: tuple[tuple[int, int], ...]
    directed: bool = False
    weights: tuple[tuple[int, int, float], ...] | None = None

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise TopologyError(f"topology {self.name!r} has {self.nodes} nodes; it needs at least 1")
        object.__setattr__(self, "edges", self._checked_edges(self.edges))
        if self.weights is not None:
            object.__setattr__(self, "weights", self._checked_weights(self.weights))

    def sources(self, node: int) -> tuple[int, ...]:
        """Whose shares the node receives, sorted; itself not among them."""
        return self._adjacency[0][self._position(node)]

    def targets(self, node: int) -> tuple[int, ...]:
        """To whom the node sends its share, sorted; the same as its sources where undirected."""
        return self._adjacency[1][self._position(node)]

    def degree(self, node: int) -> int:
        """How many shares the node receives."""
        return len(self.sources(node))

    def weights_on(self, node: int) -> dict[int, float]:
        """The explicit weights the node puts on its sources, without its own; empty where there are none."""
        return dict(self._weights_by_receiver[self._position(node)])

    @cached_property
    def arcs(self) -> tuple[tuple[int, int], ...]:
        """Every (sender, receiver), sorted; an undirected edge is two of them."""
        return self.edges if self.directed else tuple(sorted([*self.edges, *((j, i) for i, j in self.edges)]))

    @cached_property
    def regular(self) -> bool:
        """Whether all nodes have one degree, received and sent."""
        sources, targets = self._adjacency
        return len({len(others) for others in sources + targets}) == 1

    @cached_property
    def components(self) -> tuple[tuple[int, ...], ...]:
        """The parts within which every node reaches every other, the largest first, ties by their lowest node."""
        senders, receivers = np.array(self.arcs, dtype=np.int64).reshape(-1, 2).T
        links = coo_array((np.ones(len(senders), dtype=np.int8), (senders, receivers)), shape=(self.nodes, self.nodes))
        _, labels = connected_components(links.tocsr(), directed=True, connection="strong")
        parts: dict[int, list[int]] = {}
        for node, label in enumerate(labels.tolist()):
            parts.setdefault(label, []).append(node)
        return tuple(sorted((tuple(part) for part in parts.values()), key=lambda part: (-len(part), part[0])))

    @property
    def connected(self) -> bool:
        """Whether every node reaches every other, along the arcs if directed."""
        return len(self.components) == 1

    def to_networkx(self) -> nx.Graph:
        """A `networkx.Graph`, or `DiGraph` if directed, of the same nodes and edges, without weights."""
        graph = nx.DiGraph(name=self.name) if self.directed else nx.Graph(name=self.name)
        graph.add_nodes_from(range(self.nodes))
        graph.add_edges_from(self.edges)
        return graph

    @classmethod
    def from_networkx(cls, graph: nx.Graph, name: str | None = None) -> Self:
        """Number the graph's nodes in sorted order: text as seats are, anything else as Python sorts it.

        Args:
            graph: directed or not; attributes of nodes and edges are not read.
            name: the topology's; by default the graph's own.

        Raises:
            TopologyError: a self-loop, parallel edges, no nodes, or nodes that cannot be sorted.
        """
        name = name or graph.name or "unnamed"
        labels = list(graph.nodes)
        try:
            ordered = sorted(labels, key=seat_order if all(isinstance(label, str) for label in labels) else None)
        except TypeError as error:
            raise TopologyError(f"the nodes of graph {name!r} cannot be sorted: relabel them with numbers") from error
        at = {label: position for position, label in enumerate(ordered)}
        # Named here, by the graph's own labels: the constructor knows only positions.
        twice = [pair for pair, times in Counter(list(graph.edges())).items() if times > 1]
        if twice:
            raise TopologyError(f"graph {name!r} has parallel edges between {twice[0][0]} and {twice[0][1]}: keep one")
        loops = [i for i, j in graph.edges() if i == j]
        if loops:
            raise TopologyError(f"graph {name!r} has a self-loop at {loops[0]}: leave it out, each node keeps its own")
        return cls(name, len(labels), tuple((at[i], at[j]) for i, j in graph.edges()), directed=graph.is_directed())

    @cached_property
    def _adjacency(self) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
        sources: list[list[int]] = [[] for _ in range(self.nodes)]
        targets: list[list[int]] = [[] for _ in range(self.nodes)]
        for sender, receiver in self.arcs:  # sorted, so both lists come out sorted
            targets[sender].append(receiver)
            sources[receiver].append(sender)
        return tuple(map(tuple, sources)), tuple(map(tuple, targets))

    @cached_property
    def _weights_by_receiver(self) -> tuple[dict[int, float], ...]:
        rows: tuple[dict[int, float], ...] = tuple({} for _ in range(self.nodes))
        for receiver, sender, weight in self.weights or ():
            if sender != receiver:
                rows[receiver][sender] = weight
        return rows

    def _position(self, node: int) -> int:
        if not 0 <= node < self.nodes:
            raise TopologyError(f"topology {self.name!r} has nodes 0 to {self.nodes - 1}, no node {node}")
        return node

    def _checked_edges(self, edges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        seen: set[tuple[int, int]] = set()
        for i, j in edges:
            i, j = self._position(index(i)), self._position(index(j))
            if i == j:
                raise TopologyError(f"topology {self.name!r} has a self-loop at {i}: leave it out, each keeps its own")
            edge = (i, j) if self.directed or i < j else (j, i)
            if edge in seen:
                raise TopologyError(f"topology {self.name!r} has the edge {i}, {j} twice: keep one")
            seen.add(edge)
        return tuple(sorted(seen))

    def _checked_weights(self, weights: Iterable[tuple[int, int, float]]) -> tuple[tuple[int, int, float], ...]:
        wrong = f"the weights of topology {self.name!r} "
        triples = sorted(
            (self._position(index(i)), self._position(index(j)), float(weight)) for i, j, weight in weights
        )
        of = {(receiver, sender): weight for receiver, sender, weight in triples}
        if len(of) < len(triples):
            raise TopologyError(f"{wrong}name an edge twice: keep one")
        if not all(map(math.isfinite, of.values())):
            raise TopologyError(f"{wrong}are not all finite numbers")
        links = {(receiver, sender) for sender, receiver in self.arcs}
        for receiver, sender in sorted(links ^ {(i, j) for i, j in of if i != j}):
            have = "an edge but no weight" if (receiver, sender) in links else "a weight but no edge"
            raise TopologyError(f"{wrong}do not fit its edges: {have} for what {receiver} receives from {sender}")
        rows, columns = [0.0] * self.nodes, [0.0] * self.nodes
        for (receiver, sender), weight in of.items():
            rows[receiver] += weight
            columns[sender] += weight
            if not self.directed and abs(weight - of[sender, receiver]) > SUM_TOLERANCE:
                raise TopologyError(
                    f"{wrong}are not symmetric between {receiver} and {sender}, but the edge is undirected"
                )
        for sums, what in ((rows, "row"), (columns, "column")):
            for node, total in enumerate(sums):
                if abs(total - 1) > SUM_TOLERANCE:
                    raise TopologyError(f"{wrong}sum to {total:.9g} in {what} {node}: rows and columns must sum to 1")
        return tuple(triples)
