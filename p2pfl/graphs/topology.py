"""Who shares with whom: a frozen value to compare, hash, save and plot."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from operator import index
from typing import Any, Self, TypeAlias, TypeVar

import networkx as nx
import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from p2pfl.errors import TopologyError
from p2pfl.types import seat_order

SUM_TOLERANCE = 1e-9  # how far explicit weights may be from rows and columns of 1, and from symmetry

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]
_Array = TypeVar("_Array", Ints, Floats)


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Topology:
    """Nodes 0 … nodes−1, each the position of a member among the members sorted by seat, and their links.

    Edges may be given in any order and either way around; they are kept sorted, so equal topologies compare equal.

    Attributes:
        name: as it is spelled on the command line.
        nodes: how many, at least 1.
        pairs: the edges (i, j) with i < j; if directed, arcs (sender, receiver). Sorted, read-only; [edges, 2].
        directed: whether the edges are arcs.
        drifting: whether the weights may let the network's average drift: rows sum to 1, columns need not, and both
            directions of an edge may weigh differently. Where directed and without explicit weights they are
            1 / (1 + in-degree), however the degrees differ.
    """

    name: str
    nodes: int
    pairs: Ints
    directed: bool
    drifting: bool
    _places: Ints | None  # (receiver, sender) of each explicit weight, sorted; [weights, 2]
    _values: Floats | None  # the explicit weights; [weights]

    def __init__(
        self,
        name: str,
        nodes: int,
        edges: Iterable[tuple[int, int]] | Ints,
        directed: bool = False,
        weights: Iterable[tuple[int, int, float]] | Floats | None = None,
        drifting: bool = False,
    ) -> None:
        """Check and sort.

        Args:
            name: as it is spelled on the command line.
            nodes: how many, at least 1.
            edges: pairs (i, j), either way around; if directed, arcs (sender, receiver). Or an array [edges, 2].
            directed: whether `edges` are arcs.
            weights: (receiver, sender, weight) for every arc, and (i, i, weight) for what i keeps of its own where that
                is not 0. Or an array [weights, 3]. None leaves the weights to `mixing.mixing_weights`. Negative weights
                are allowed.
            drifting: whether the columns of the weights may sum to something other than 1.

        Raises:
            TopologyError: a node out of range, a self-loop, an edge that stands twice, or weights that do not belong to
                the edges or would not keep the network's average.
        """
        if nodes < 1:
            raise TopologyError(f"topology {name!r} has {nodes} nodes; it needs at least 1")
        for attribute, value in (("name", name), ("nodes", nodes), ("directed", directed), ("drifting", drifting)):
            object.__setattr__(self, attribute, value)
        object.__setattr__(self, "pairs", self._checked_pairs(edges))
        places, values = (None, None) if weights is None else self._checked_weights(weights)
        object.__setattr__(self, "_places", places)
        object.__setattr__(self, "_values", values)

    @classmethod
    def of_links(
        cls, name: str, nodes: int, pairs: Ints, values: Floats, directed: bool = False, drifting: bool = False
    ) -> Self:
        """With a weight on every link; every node keeps what its links leave.

        Args:
            name: as it is spelled on the command line.
            nodes: how many, at least 1.
            pairs: as `edges`; [edges, 2].
            values: the weight of each link, [edges]; or, undirected, [edges, 2]: what the second puts on the first, and
                what the first puts on the second.
            directed: whether `pairs` are arcs.
            drifting: whether the columns of the weights may sum to something other than 1.

        Raises:
            TopologyError: as the constructor.
        """
        if not directed:
            there, back = (values, values) if values.ndim == 1 else (values[:, 0], values[:, 1])
            pairs, values = np.concatenate([pairs, pairs[:, ::-1]]), np.concatenate([there, back])
        senders, receivers = pairs.reshape(-1, 2).T
        everyone = np.arange(nodes)
        rows = np.stack([receivers.astype(np.float64), senders, values], axis=1)
        own = np.stack([everyone, everyone, 1 - np.bincount(receivers, weights=values, minlength=nodes)], axis=1)
        edges = pairs if directed else pairs[: len(pairs) // 2]
        return cls(name, nodes, edges, directed, np.concatenate([rows, own]), drifting)

    def __repr__(self) -> str:
        kind = "directed " if self.directed else ""
        weighted = "" if self._values is None else ", explicit weights"
        return f"<{kind}topology {self.name!r}: {self.nodes} nodes, {len(self.pairs)} edges{weighted}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Topology):
            return NotImplemented
        mine = (self.name, self.nodes, self.directed, self.drifting, self._values is None)
        return (
            mine == (other.name, other.nodes, other.directed, other.drifting, other._values is None)
            and np.array_equal(self.pairs, other.pairs)
            and (self._values is None or other._values is None or np.array_equal(self._values, other._values))
            and (self._places is None or other._places is None or np.array_equal(self._places, other._places))
        )

    def __hash__(self) -> int:
        return self._hash

    def sources(self, node: int) -> tuple[int, ...]:
        """Whose shares the node receives, sorted; itself not among them."""
        starts, senders = self._received
        at = self._position(node)
        return tuple(senders[starts[at] : starts[at + 1]].tolist())

    def targets(self, node: int) -> tuple[int, ...]:
        """To whom the node sends its share, sorted; the same as its sources where undirected."""
        starts, receivers = self._sent
        at = self._position(node)
        return tuple(receivers[starts[at] : starts[at + 1]].tolist())

    def degree(self, node: int) -> int:
        """How many shares the node receives."""
        return int(self.degrees[self._position(node)])

    def weights_on(self, node: int) -> dict[int, float]:
        """The explicit weights the node puts on its sources, without its own; empty where there are none."""
        at = self._position(node)
        if self._places is None or self._values is None:
            return {}
        start, end = np.searchsorted(self._places[:, 0], [at, at + 1])
        row = zip(self._places[start:end, 1].tolist(), self._values[start:end].tolist(), strict=True)
        return {sender: weight for sender, weight in row if sender != at}

    @cached_property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """`pairs` as tuples."""
        return tuple((i, j) for i, j in self.pairs.tolist())

    @cached_property
    def arc_array(self) -> Ints:
        """Every (sender, receiver), sorted; an undirected edge is two of them. Read-only; [arcs, 2]."""
        return self.pairs if self.directed else self._ordered(np.concatenate([self.pairs, self.pairs[:, ::-1]]))

    @cached_property
    def arcs(self) -> tuple[tuple[int, int], ...]:
        """`arc_array` as tuples."""
        return self.edges if self.directed else tuple((i, j) for i, j in self.arc_array.tolist())

    @cached_property
    def links(self) -> Ints:
        """Every (receiver, sender), sorted: the places of the mixing matrix beside its diagonal. Read-only; [arcs, 2].

        Undirected, these are the same rows as `arc_array`.
        """
        return self._ordered(self.pairs[:, ::-1]) if self.directed else self.arc_array

    @cached_property
    def link_weights(self) -> Floats | None:
        """The explicit weight at each of `links`; None where there are none. Read-only; [arcs]."""
        if self._places is None or self._values is None:
            return None
        beside: Floats = self._values[self._places[:, 0] != self._places[:, 1]]
        return _frozen(beside)

    @cached_property
    def weights(self) -> tuple[tuple[int, int, float], ...] | None:
        """The explicit (receiver, sender, weight), sorted; (i, i, weight) is what i keeps. None without."""
        if self._places is None or self._values is None:
            return None
        return tuple((i, j, value) for (i, j), value in zip(self._places.tolist(), self._values.tolist(), strict=True))

    @cached_property
    def degrees(self) -> Ints:
        """How many shares each node receives. Read-only; [nodes]."""
        return _frozen(np.bincount(self.links[:, 0], minlength=self.nodes))

    @cached_property
    def out_degrees(self) -> Ints:
        """To how many each node sends. Read-only; [nodes]."""
        return _frozen(np.bincount(self.arc_array[:, 0], minlength=self.nodes))

    @cached_property
    def regular(self) -> bool:
        """Whether all nodes have one degree, received and sent."""
        first = self.degrees[0]
        return bool((self.degrees == first).all() and (self.out_degrees == first).all())

    @cached_property
    def doubly_stochastic(self) -> bool:
        """Whether the columns of the mixing matrix sum to 1 as its rows do, so that mixing keeps the network's average.

        Negative weights count as any other.
        """
        if self._places is None or self._values is None:
            if self.regular or not self.directed:
                return True
            # Of unequal degrees they may come out even by chance.
            received = 1 / (1 + self.degrees)
            sent = np.bincount(self.links[:, 1], received[self.links[:, 0]], minlength=self.nodes)
            return self.drifting and bool((np.abs(received + sent - 1) <= SUM_TOLERANCE).all())
        columns = np.bincount(self._places[:, 1], weights=self._values, minlength=self.nodes)
        return bool((np.abs(columns - 1) <= SUM_TOLERANCE).all())

    @cached_property
    def components(self) -> tuple[tuple[int, ...], ...]:
        """The parts within which every node reaches every other, the largest first, ties by their lowest node."""
        parts: dict[int, list[int]] = {}
        for node, label in enumerate(self._labels.tolist()):
            parts.setdefault(label, []).append(node)
        return tuple(sorted((tuple(part) for part in parts.values()), key=lambda part: (-len(part), part[0])))

    @property
    def connected(self) -> bool:
        """Whether every node reaches every other, along the arcs if directed."""
        return not self._labels.any()

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
        return cls(name, len(labels), [(at[i], at[j]) for i, j in graph.edges()], directed=graph.is_directed())

    @cached_property
    def _hash(self) -> int:
        return hash((self.name, self.nodes, self.directed, self.drifting, self.pairs.tobytes()))

    @cached_property
    def _received(self) -> tuple[Ints, Ints]:
        """Where each node's senders start, and all senders."""
        return _starts(self.degrees), self.links[:, 1]

    @cached_property
    def _sent(self) -> tuple[Ints, Ints]:
        """Where each node's receivers start, and all receivers."""
        return _starts(self.out_degrees), self.arc_array[:, 1]

    @cached_property
    def _labels(self) -> Ints:
        """The strongly connected component of each node, from 0; [nodes]."""
        ones = np.ones(len(self.arc_array), dtype=np.int8)
        links = coo_array((ones, (self.arc_array[:, 0], self.arc_array[:, 1])), shape=(self.nodes, self.nodes))
        _, labels = connected_components(links.tocsr(), directed=self.directed, connection="strong")
        return np.asarray(labels, dtype=np.int64)

    def _position(self, node: int) -> int:
        if not 0 <= node < self.nodes:
            raise TopologyError(f"topology {self.name!r} has nodes 0 to {self.nodes - 1}, no node {node}")
        return node

    def _ordered(self, pairs: Ints) -> Ints:
        """The pairs sorted, read-only."""
        keys = np.sort(pairs[:, 0] * self.nodes + pairs[:, 1])
        return _frozen(np.stack([keys // self.nodes, keys % self.nodes], axis=1))

    def _in_range(self, pairs: Ints) -> None:
        wrong = (pairs < 0) | (pairs >= self.nodes)
        if wrong.any():
            self._position(int(pairs[wrong][0]))

    def _whole(self, nodes: Iterable[int]) -> list[int]:
        # One that is too large for an array is out of range as well.
        try:
            return [node if abs(node) < 1 << 62 else self._position(node) for node in map(index, nodes)]
        except TypeError as error:
            raise TopologyError(f"topology {self.name!r} names a node that is no whole number: {error}") from error

    def _integral(self, places: npt.NDArray[Any], what: str) -> Ints:
        """Whole numbers as such; a fraction, NaN or infinity is no node."""
        if np.issubdtype(places.dtype, np.integer):
            return places.astype(np.int64)
        if not np.issubdtype(places.dtype, np.floating):
            raise TopologyError(f"the {what} of topology {self.name!r} are an array of {places.dtype}: give integers")
        # 2^53: from there on a float is not one integer.
        wrong = ~(np.abs(places) < 2.0**53) | (np.mod(places, 1) != 0)
        if wrong.any():
            raise TopologyError(
                f"the {what} of topology {self.name!r} name a node {places[wrong][0]:g}: nodes are whole numbers"
            )
        return places.astype(np.int64)

    def _checked_pairs(self, edges: Iterable[tuple[int, int]] | Ints) -> Ints:
        if isinstance(edges, np.ndarray):
            if edges.size and (edges.ndim != 2 or edges.shape[1] != 2):
                turned = "; turn an edge_index [2, edges] around, as edge_index.T" if edges.shape[0] == 2 else ""
                raise TopologyError(
                    f"the edges of topology {self.name!r} are an array {list(edges.shape)}, not [edges, 2]{turned}"
                )
            pairs = self._integral(edges, "edges").reshape(-1, 2)
        else:
            pairs = np.array([self._whole((i, j)) for i, j in edges], dtype=np.int64).reshape(-1, 2)
        self._in_range(pairs)
        loops = pairs[:, 0] == pairs[:, 1]
        if loops.any():
            node = int(pairs[loops][0, 0])
            raise TopologyError(f"topology {self.name!r} has a self-loop at {node}: leave it out, each keeps its own")
        i, j = pairs[:, 0], pairs[:, 1]
        keys = i * self.nodes + j if self.directed else np.minimum(i, j) * self.nodes + np.maximum(i, j)
        ordered = keys if (keys[1:] > keys[:-1]).all() else np.sort(keys)
        if (ordered[1:] == ordered[:-1]).any():
            _, first = np.unique(keys, return_index=True)
            again = np.delete(pairs, first, axis=0)[0].tolist()
            raise TopologyError(f"topology {self.name!r} has the edge {again[0]}, {again[1]} twice: keep one")
        return _frozen(np.stack([ordered // self.nodes, ordered % self.nodes], axis=1))

    def _checked_weights(self, weights: Iterable[tuple[int, int, float]] | Floats) -> tuple[Ints, Floats]:
        wrong = f"the weights of topology {self.name!r} "
        if isinstance(weights, np.ndarray):
            if weights.size and (weights.ndim != 2 or weights.shape[1] != 3):
                raise TopologyError(f"{wrong}are an array {list(weights.shape)}, not [weights, 3]")
            table = weights.astype(np.float64).reshape(-1, 3)
            places, values = self._integral(table[:, :2], "weights"), table[:, 2]
        else:
            rows = [(self._whole((i, j)), float(weight)) for i, j, weight in weights]
            places = np.array([place for place, _ in rows], dtype=np.int64).reshape(-1, 2)
            values = np.array([weight for _, weight in rows], dtype=np.float64)
        self._in_range(places)
        keys = places[:, 0] * self.nodes + places[:, 1]
        order = np.argsort(keys, kind="stable")
        keys, places, values = keys[order], places[order], values[order]
        if (keys[1:] == keys[:-1]).any():
            raise TopologyError(f"{wrong}name an edge twice: keep one")
        if not np.isfinite(values).all():
            raise TopologyError(f"{wrong}are not all finite numbers")
        beside = places[:, 0] != places[:, 1]
        links, linked = self.links[:, 0] * self.nodes + self.links[:, 1], keys[beside]
        if not np.array_equal(links, linked):
            receiver, sender = divmod(int(np.setxor1d(links, linked)[0]), self.nodes)
            have = "an edge but no weight" if receiver * self.nodes + sender in links else "a weight but no edge"
            raise TopologyError(f"{wrong}do not fit its edges: {have} for what {receiver} receives from {sender}")
        if not self.directed and not self.drifting:
            # The same links turned around stand in the order of their sender.
            turned = np.lexsort((self.links[:, 0], self.links[:, 1]))
            uneven = np.abs(values[beside] - values[beside][turned]) > SUM_TOLERANCE
            if uneven.any():
                receiver, sender = self.links[uneven][0].tolist()
                raise TopologyError(
                    f"{wrong}are not symmetric between {receiver} and {sender}, but the edge is undirected"
                )
        for axis, what in ((0, "row"), *(() if self.drifting else ((1, "column"),))):
            sums = np.bincount(places[:, axis], weights=values, minlength=self.nodes)
            off = np.abs(sums - 1) > SUM_TOLERANCE
            if off.any():
                node = int(np.flatnonzero(off)[0])
                must = "rows must sum to 1" if self.drifting else "rows and columns must sum to 1"
                raise TopologyError(f"{wrong}sum to {sums[node]:.9g} in {what} {node}: {must}")
        kept = beside | (values != 0)  # so that topologies of equal weights are equal
        return _frozen(places[kept]), _frozen(values[kept])


def _frozen(array: _Array) -> _Array:
    array.setflags(write=False)
    return array


def distinct(keys: Ints) -> Ints:
    """Each key once, sorted: as numpy.unique, whose table of hashes takes 20 times as long for a million."""
    ordered = np.sort(keys)
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])] if len(ordered) else ordered


def _starts(counts: Ints) -> Ints:
    return np.concatenate([[0], np.cumsum(counts)])
