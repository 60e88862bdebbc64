"""A topology for every round: one that stays, one that repeats, or one drawn anew each round."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from p2pfl.graphs.topology import Topology

_DRAWN_KEPT = 4  # topologies of late rounds that stay at hand; peers are at most a round or two apart


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
        return cls(topology.name, topology.nodes, 1, lambda _: topology)
