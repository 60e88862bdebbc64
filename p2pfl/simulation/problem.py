"""What a simulation works on: a recipe, resolved to data, parts, a model and a topology for every round."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from p2pfl.graphs.schedule import Schedule
from p2pfl.learning.examples import Data, Examples
from p2pfl.learning.learner import Loss
from p2pfl.partition import Indices
from p2pfl.recipe import Recipe


@dataclass(frozen=True)
class Problem:
    """Everything an engine needs. Peer i has seat str(i), is node i of the topology, and holds the examples parts[i].

    Attributes:
        recipe: as it runs, every setting resolved.
        data: the whole; peers' examples are positions in `data.train`, so that thousands of peers share one copy.
        parts: positions of each peer's examples, ascending; a position may stand twice where `samples` says so.
        test: what every peer is evaluated on; None evaluates nothing.
        schedule: the topology of every round, weights included.
        build: a new module with the initial weights, the same each time it is called.
        loss: (outputs, targets) -> scalar mean; None takes the learner's own choice by task.
        names: of the peers, for the files of the run.
        optimum: the lowest loss there is, where it is known and all peers have as many examples.
    """

    recipe: Recipe
    data: Data
    parts: tuple[Indices, ...]
    test: Examples | None
    schedule: Schedule
    build: Callable[[], nn.Module]
    loss: Loss | None
    names: tuple[str, ...]
    optimum: float | None = None

    @property
    def peers(self) -> int:
        """How many peers there are."""
        return len(self.parts)

    def examples(self, peer: int) -> Examples:
        """A copy of one peer's training examples."""
        import torch

        return self.data.train.subset(torch.from_numpy(self.parts[peer]))
