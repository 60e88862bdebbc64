"""What one process does to the array of all peers' parameters: train, mix, measure and evaluate a share of it.

The arrays are shared: every process has a station of its own over the same memory, and one of them says who does what.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import lru_cache

import numpy as np
import torch

from p2pfl.layout import Layout, layout_of
from p2pfl.learning.examples import Examples
from p2pfl.learning.learner import GENERATOR, default_loss, is_classes
from p2pfl.simulation.mixing_rows import Centered, RowMixing, level, spread
from p2pfl.simulation.problem import Problem
from p2pfl.simulation.steppers import Stepper, stepper_for
from p2pfl.simulation.vectorized import blocks_of
from p2pfl.simulation.workers import Answer

FIGURES = ("train_loss", "train_s", "mix_s", "neighbor_distance", "test_loss", "test_accuracy")
_BATCH = 1000  # test examples at once
_HELD_BYTES = 256 << 20  # up to which the test examples are kept as the numbers the module takes


class Station:
    """Methods that a worker is asked for by name; all peers' vectors stand in one of two arrays, the sides."""

    def __init__(
        self,
        problem: Problem,
        path: str,
        sides: tuple[torch.Tensor, torch.Tensor],
        mean: torch.Tensor,
        figures: torch.Tensor,
        peers_at_once: int,
    ) -> None:
        """Take what there is.

        Args:
            sides: [peers, size] each; where nothing is mixed, the same twice.
            mean: [size], the averaged model.
            figures: [peers, len(FIGURES)] float64, of the last round.
            peers_at_once: how many a task trains, where the stepper does not care.
        """
        self._problem = problem
        self._path = path
        self._sides = sides
        self._rows = [list(side.unbind()) for side in sides]
        self._mean = mean
        self._figures = {name: figures[:, column] for column, name in enumerate(FIGURES)}
        self._dtype, self._device = mean.dtype, mean.device
        self._stepper_made: Stepper | None = None
        self._centered: tuple[int, Centered | None] = (-1, None)  # of the round that is mixed
        self._mixing = lru_cache(problem.schedule.period or 1)(self._mixing_at)
        self._examiner: Examiner | None = None
        own = self._stepper().peers_at_once
        if own > 1:
            self.blocks = blocks_of([len(part) for part in problem.parts], own)
        else:
            self.blocks = [
                list(range(begin, min(begin + peers_at_once, problem.peers)))
                for begin in range(0, problem.peers, peers_at_once)
            ]

    @property
    def methods(self) -> Mapping[str, Callable[..., Answer]]:
        """What there is to ask for."""
        return {
            "train": self.train,
            "mix": self.mix,
            "level": self.level,
            "measure": self.measure,
            "evaluate": self.evaluate,
            "evaluate_mean": self.evaluate_mean,
        }

    def prepare(self, round: int) -> None:
        """Work out what every process needs, before they part."""
        self._mixing(self._which(round))
        if self._problem.test is not None:
            self._examine()

    def train(self, round: int, side: int, block: int) -> Answer:
        """Train a block of peers on a side."""
        peers = self.blocks[block]
        rows = [self._rows[side][peer] for peer in peers]
        begun = time.perf_counter()
        with GENERATOR if self._path == "learners" else nullcontext():  # they draw, and are built as they come
            losses = self._stepper().train(round, peers, rows)
        seconds = (time.perf_counter() - begun) / len(peers)
        self._figures["train_loss"][peers] = torch.tensor(losses, dtype=torch.float64)
        self._figures["train_s"][peers] = seconds
        return ()

    def mix(self, round: int, side: int, begin: int, end: int) -> Answer:
        """Mix the vectors of a side into some rows of the other: of the blocks that begin among those given."""
        begun = time.perf_counter()
        mixing = self._mixing(self._which(round))
        begin, end = mixing.whole_blocks(begin, end)
        if begin == end:
            return ()
        rows = self._sides[side]
        if self._centered[0] != round:
            self._centered = round, mixing.centered(rows)
        distances = mixing.distances(rows, begin, end, self._centered[1])
        self._figures["neighbor_distance"][begin:end] = torch.from_numpy(distances)
        mixing.mix(rows, self._sides[1 - side], begin, end)
        self._figures["mix_s"][begin:end] = (time.perf_counter() - begun) / (end - begin)
        return ()

    def level(self, side: int, begin: int, end: int) -> Answer:
        """Give all peers the exact average, in some columns."""
        level(self._sides[side], begin, end)
        return ()

    def measure(self, side: int, begin: int, end: int) -> Answer:
        """Average some columns; Σ‖x_i − x̄‖² and ‖x̄‖² of them."""
        return spread(self._sides[side], self._mean, begin, end)

    def evaluate(self, side: int, begin: int, end: int) -> Answer:
        """Evaluate some peers."""
        for peer in range(begin, end):
            loss, accuracy = self._examine().examine(self._sides[side][peer])
            self._figures["test_loss"][peer] = loss
            self._figures["test_accuracy"][peer] = accuracy
        return ()

    def evaluate_mean(self) -> Answer:
        """Loss and accuracy of the averaged model."""
        return self._examine().examine(self._mean)

    def _stepper(self) -> Stepper:
        if self._stepper_made is None:
            self._stepper_made = stepper_for(self._path, self._problem, self._dtype, self._device)
        return self._stepper_made

    def _examine(self) -> "Examiner":
        if self._examiner is None:
            self._examiner = Examiner(self._problem, self._dtype, self._device)
        return self._examiner

    def _which(self, round: int) -> int:
        """Rounds of a schedule that repeats are the same for `_mixing`."""
        period = self._problem.schedule.period
        return round % period if period else round

    def _mixing_at(self, round: int) -> RowMixing:
        return RowMixing(self._problem.schedule.at(round), self._dtype)


class Examiner:
    """Evaluates vectors on the test part, as `TorchLearner.evaluate` does."""

    def __init__(self, problem: Problem, dtype: torch.dtype, device: torch.device) -> None:
        assert problem.test is not None
        self._test: Examples = problem.test
        self._module = problem.build().to(device, dtype).eval()
        self._layout: Layout = layout_of(self._module)
        self._loss = problem.loss or default_loss
        self._dtype, self._device = dtype, device
        self._targets = self._test.targets.to(device)
        positions = torch.split(torch.arange(len(self._test)), _BATCH)
        self._positions = positions
        held = self._test.inputs.numel() * dtype.itemsize <= _HELD_BYTES
        self._batches = [self._batch(some) for some in positions] if held else None

    def examine(self, vector: torch.Tensor) -> tuple[float, float]:
        """Loss and accuracy; NaN where there is none. The vector is not copied."""
        views = self._layout.views(vector)
        for name, parameter in self._module.named_parameters():
            parameter.data = views[name]
        with torch.inference_mode():
            batches = self._batches or map(self._batch, self._positions)
            output = torch.cat([self._module(inputs) for inputs in batches])
            loss = float(self._loss(output, self._targets))
            accuracy = np.nan
            if is_classes(output, self._targets):
                accuracy = float((output.argmax(1) == self._targets).double().mean())
        return loss if np.isfinite(loss) else np.nan, accuracy

    def _batch(self, positions: torch.Tensor) -> torch.Tensor:
        inputs, _ = self._test.batch(positions)
        return inputs.to(self._device, self._dtype)
