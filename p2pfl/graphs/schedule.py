"""A topology for every round: one that stays, one that repeats, or one drawn anew each round."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from p2pfl.graphs.mixing import mixing_csr
from p2pfl.graphs.topology import Topology

_DRAWN_KEPT = 8  # topologies of late rounds that stay at hand; peers are a few rounds apart
_FEW = 256  # nodes for which multiplying matrices is quick
_EXACT = 1e-12  # how far from the average a settled node may be, for rounding
_JUMP = 1e-6  # and how far it must have been a round before
_POWERS = 64  # rounds in which a directed topology that stays has settled, or never does


@dataclass(frozen=True)
class Schedule:
    """A pure function of the round: every peer computes the same topology without asking anyone.

    Attributes:
        name: as it is spelled on the command line.
        nodes: how many, the same in every round.
        period: rounds after which it repeats, 1 for a topology that stays; None where each round is drawn anew.
        draw: the topology of a round, from 0; with a period it is asked for rounds below that only.
        settled_after: rounds after which all nodes hold the exact average whatever they began with; None for never.
    """

    name: str
    nodes: int
    period: int | None
    draw: Callable[[int], Topology]
    settled_after: int | None = None
    _kept: Callable[[int], Topology] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_kept", lru_cache(self.period or _DRAWN_KEPT)(self.draw))

    def at(self, round: int) -> Topology:
        """The topology of a round, from 0."""
        return self._kept(round % self.period if self.period else round)

    @property
    def static(self) -> bool:
        """Whether it is one topology for all rounds."""
        return self.period == 1

    @classmethod
    def of(cls, topology: Topology) -> "Schedule":
        """The schedule that stays with one topology."""
        return cls(topology.name, topology.nodes, 1, lambda _: topology).settled()

    def settled(self) -> "Schedule":
        """The same, with `settled_after` told by multiplying matrices where there are few nodes.

        An undirected topology for all rounds is told at any size: it settles in the first, if it is complete, or never.
        """
        return replace(self, settled_after=self._settles())

    def _settles(self) -> int | None:
        if self.nodes == 1:
            return 0
        topologies = [self.at(round) for round in range(self.period or 0)]
        if not topologies or not all(topology.doubly_stochastic for topology in topologies):
            return None
        if self.static and len(topologies[0].links) == self.nodes * (self.nodes - 1):
            return 1 if np.abs(mixing_csr(topologies[0]).data - 1 / self.nodes).max() < _EXACT else None
        # A symmetric matrix that stays settles at once or never; one that is not may take a few powers.
        if self.nodes > _FEW or (self.static and not topologies[0].directed):
            return None
        off = np.eye(self.nodes) - 1 / self.nodes
        for round in range(_POWERS if self.static else len(topologies)):
            before = np.abs(off).max()
            off = mixing_csr(self.at(round)) @ off
            if np.abs(off).max() < _EXACT:
                return round + 1 if before > _JUMP else None  # else it only came near, step by step
        return None
