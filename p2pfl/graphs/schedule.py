"""A topology for every round: one that stays, one that repeats, or one drawn anew each round."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import ParamSpec

import numpy as np

from p2pfl.errors import TopologyError
from p2pfl.graphs.mixing import mixing_csr
from p2pfl.graphs.topology import Topology

_DRAWN_KEPT = 8  # topologies of late rounds that stay at hand; peers are a few rounds apart
_LARGE = 10**5  # nodes from which the rounds of a schedule take hundreds of MB
_FEW = 256  # nodes for which multiplying matrices is quick
_EXACT = 1e-12  # how far from the average a settled node may be, for rounding
_JUMP = 1e-6  # and how far it must have been a round before
_POWERS = 64  # rounds in which a directed topology that stays has settled, or never does

_Given = ParamSpec("_Given")


def kept(make: Callable[_Given, "Schedule"]) -> Callable[[int], Callable[_Given, "Schedule"]]:
    """For a number of nodes, the function with its last results at hand: 16, but of the large ones only the last."""
    some, one = lru_cache(maxsize=16)(make), lru_cache(maxsize=1)(make)
    return lambda nodes: one if nodes > _LARGE else some  # type: ignore[return-value]  # lru_cache hides parameters


@dataclass(frozen=True, eq=False)
class Schedule:
    """A pure function of the round: every peer computes the same topology without asking anyone.

    Attributes:
        name: as it is spelled on the command line.
        nodes: how many, the same in every round.
        period: rounds after which it repeats, 1 for a topology that stays; None where each round is drawn anew.
        draw: the topology of a round, from 0; with a period it is asked for rounds below that only.
        settled_after: rounds after which all nodes hold the exact average whatever they began with; None for never, or
            where it is not known.
        origin: a function and what it makes this schedule of. Two of one origin are equal, and a process that is sent
            one (by multiprocessing or Ray) makes it anew. None where `draw` is all there is: then it cannot be sent.
    """

    name: str
    nodes: int
    period: int | None
    draw: Callable[[int], Topology]
    settled_after: int | None = None
    origin: tuple[Callable[..., "Schedule"], tuple[object, ...]] | None = field(default=None, repr=False)
    _kept: Callable[[int], Topology] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_kept", lru_cache(self.period or _DRAWN_KEPT)(self.draw))

    def __eq__(self, other: object) -> bool:
        return self._value == other._value if isinstance(other, Schedule) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> tuple[Callable[..., "Schedule"], tuple[object, ...]]:
        if self.origin is None:
            raise TopologyError(
                f"schedule {self.name!r} cannot be sent to another process, as it is a function of this one: make it "
                "there, or by name"
            )
        return self.origin

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
        return cls(topology.name, topology.nodes, 1, lambda _: topology, origin=(cls.of, (topology,))).settled()

    def settled(self) -> "Schedule":
        """The same, with `settled_after` told by multiplying matrices where there are few nodes.

        An undirected topology for all rounds is told at any size: it settles in the first, if it is complete, or never.
        """
        return replace(self, settled_after=self._settles())

    @property
    def _value(self) -> tuple[object, ...]:
        return self.origin or (self.name, self.nodes, self.period, self.draw, self.settled_after)

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
