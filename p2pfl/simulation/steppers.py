"""How peers' rows are trained: the paths of the matrix engine, and which one a problem takes."""

from collections.abc import Sequence
from typing import Protocol

import torch

from p2pfl.errors import TrainingError
from p2pfl.learning.learner import TorchLearner
from p2pfl.simulation.dense import DenseStepper, dense_layers
from p2pfl.simulation.problem import Problem
from p2pfl.simulation.stacked import StackedStepper, worth_stacking
from p2pfl.simulation.vectorized import VectorizedStepper, why_not

PATHS = {
    "stacked": "a backward pass written by hand, a block of peers at once",
    "dense": "a backward pass written by hand, peer by peer in the cache",
    "vectorized": "torch.func, a block of peers at once",
    "learners": "a learner a peer, one after the other",
}


class Stepper(Protocol):
    """Trains some peers for a round."""

    @property
    def peers_at_once(self) -> int:
        """How many peers a call should be about; a matter of pace, and of bits where they are trained as one."""
        ...

    def train(self, round: int, peers: Sequence[int], rows: Sequence[torch.Tensor]) -> list[float]:
        """Train the peers' vectors [size] in place; the mean loss of each over its batches."""
        ...


class LearnerStepper:
    """A `TorchLearner` for each peer, made when it is first trained and kept: whatever a live peer can train."""

    def __init__(self, problem: Problem, dtype: torch.dtype, device: torch.device) -> None:
        self._problem = problem
        self._dtype, self._device = dtype, device
        self._learners: dict[int, TorchLearner] = {}

    @property
    def peers_at_once(self) -> int:
        return 1

    def train(self, round: int, peers: Sequence[int], rows: Sequence[torch.Tensor]) -> list[float]:
        """See `Stepper`. Raises TrainingError, ModelError."""
        return [self._train(round, peer, row) for peer, row in zip(peers, rows, strict=True)]

    def _train(self, round: int, peer: int, row: torch.Tensor) -> float:
        learner = self._learners.get(peer)
        if learner is None:
            learner = self._learners[peer] = self._learner(peer)
        learner.load(row)
        loss = learner.train(round, None, lambda: False).loss
        learner.parameters(row)
        return float("nan") if loss is None else loss

    def _learner(self, peer: int) -> TorchLearner:
        recipe = self._problem.recipe
        return TorchLearner(
            self._problem.build().to(self._dtype),
            self._problem.examples(peer),
            loss=self._problem.loss,
            seat=str(peer),
            **recipe.training,
            device=self._device,
        )


def best_path(problem: Problem, dtype: torch.dtype, device: torch.device) -> tuple[str, str]:
    """The fastest of `PATHS` that trains this problem, and what keeps the faster ones away, if anything."""
    layers = dense_layers(problem.build(), problem)
    if not isinstance(layers, str):
        return ("stacked" if worth_stacking(problem, layers) else "dense"), ""
    try:
        VectorizedStepper(problem, dtype, device)
    except Exception as error:  # whatever a user's own module raises when it is vectorized: it may still run alone
        return "learners", why_not(error)
    return "vectorized", layers


def stepper_for(path: str, problem: Problem, dtype: torch.dtype, device: torch.device) -> Stepper:
    """The stepper of a path that fits the problem."""
    if path in ("dense", "stacked"):
        layers = dense_layers(problem.build(), problem)
        assert not isinstance(layers, str)  # best_path looked
        kind = DenseStepper if path == "dense" else StackedStepper
        return kind(problem, layers, dtype, device)
    if path == "vectorized":
        return VectorizedStepper(problem, dtype, device)
    return LearnerStepper(problem, dtype, device)


def diverged(loss: float, peer: int, round: int) -> TrainingError:
    """What to say of a loss that is no number any more."""
    return TrainingError(
        f"the training loss of peer {peer} became {loss} in round {round}; lower --lr, or look at the data"
    )
