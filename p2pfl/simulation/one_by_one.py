"""Peers trained one after the other, each by a learner of its own: the bits of live peers."""

from collections.abc import Mapping, Sequence
from itertools import count

import torch

from p2pfl.layout import Layout
from p2pfl.learning.learner import Evaluation, Metric, TorchLearner
from p2pfl.simulation.deferred import Task
from p2pfl.simulation.problem import Problem


class OneByOne:
    """A `TorchLearner` for each peer, made as live peers make theirs."""

    def __init__(self, problem: Problem, metrics: Mapping[str, Metric]) -> None:
        recipe = problem.recipe
        dtype = torch.float64 if recipe.dtype == "float64" else torch.float32
        self._learners = [
            TorchLearner(
                problem.build().to(dtype),
                problem.examples(peer),
                problem.test,
                loss=problem.loss,
                metrics=metrics,
                seat=str(peer),
                **recipe.training,
            )
            for peer in range(problem.peers)
        ]

    @property
    def layout(self) -> Layout:
        """How a model lies in its vector."""
        return self._learners[0].layout

    def train(self, round: int, tasks: Sequence[Task]) -> list[float]:
        """See `Trainer`."""
        return [self._train(round, task) for task in tasks]

    def _train(self, round: int, task: Task) -> float:
        learner = self._learners[task.peer]
        learner.load(task.vector)
        taken = count(1)
        result = learner.train(round, None, lambda: next(taken) >= task.steps)
        learner.parameters(task.out)
        return float("nan") if result.loss is None else result.loss

    def evaluate(self, peers: Sequence[int], vectors: torch.Tensor) -> list[Evaluation]:
        """See `Trainer`."""
        return [self._evaluate(peer, vector) for peer, vector in zip(peers, vectors, strict=True)]

    def _evaluate(self, peer: int, vector: torch.Tensor) -> Evaluation:
        self._learners[peer].load(vector)
        return self._learners[peer].evaluate()
