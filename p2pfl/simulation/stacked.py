"""Small dense networks trained for many peers at once: every operation is one on arrays [peers, …].

Where a step's arithmetic is less than what calling its operations costs, a block of peers shares the calls. The
backward pass is that of `dense`, and so are the batches; a peer whose batch is smaller than others' has examples of
weight 0 behind it, and one that has no more steps is left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from p2pfl.simulation.batches import Gatherer, epoch_positions, steps_of
from p2pfl.simulation.dense import BACKWARD, FORWARD, DenseLayer
from p2pfl.simulation.problem import Problem

_MOST = 32  # peers at once: what a call costs weighs little then
_LEAST = 8  # below which calls are not shared by enough to be worth the cache they give up
_WORTH_PEERS = 16  # in all
_BLOCK_BYTES = 4 << 20  # of a block's parameters and a step's inputs
_FEW_STEPS = 256  # of all peers in a round, which no second worker would be worth
_CHUNK = 16  # steps whose targets and scores are laid out together


def worth_stacking(problem: Problem, layers: Sequence[DenseLayer]) -> bool:
    """Whether blocks of peers are trained faster than one peer after the other.

    Measured on a core of an AMD EPYC, in microseconds a peer and round, one by one against blocks of 32, 16 and 8:
    64-32-10 with a step of 16: 357, 53, 75, 86. Logistic regression of 784 with 19 steps of 32: 1770, 1020, 1100,
    1280. 784-100-10 with these: 5340, 4590, 4370, 4360. 784-256-10 with 4 steps of 128: 6180, 6880, 6960, 6820. So
    blocks are as large as 4 MB hold, and where that is fewer than 8 peers, each is trained by itself.
    """
    return problem.peers >= _WORTH_PEERS and _fit(problem, layers) >= _LEAST


def peers_stacked(problem: Problem, layers: Sequence[DenseLayer]) -> int:
    """Peers of a block. It depends on the problem alone: as many workers as you like give the same bits."""
    few = sum(steps_of(problem.recipe, len(part)) for part in problem.parts) <= _FEW_STEPS
    most = problem.peers if few else max(_LEAST, problem.peers // 16)  # blocks enough for several workers
    return max(1, min(_fit(problem, layers), _MOST, most))


def _fit(problem: Problem, layers: Sequence[DenseLayer]) -> int:
    """Peers whose parameters and inputs of a step stay in the cache."""
    parameters = sum(layer.outputs * (layer.inputs + layer.bias) for layer in layers)
    numbers = parameters + problem.recipe.batch_size * layers[0].inputs
    return _BLOCK_BYTES // (numbers * (8 if problem.recipe.dtype == "float64" else 4))


_Function: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
_Backward: TypeAlias = Callable[[torch.Tensor, torch.Tensor], object]


@dataclass(frozen=True)
class _Layer:
    """A layer's parameters and buffers for a stack of peers; a slice of each is a smaller stack."""

    weights: torch.Tensor  # [peers, outputs, inputs]
    bias: torch.Tensor | None  # [peers, outputs, 1]
    outputs: torch.Tensor  # [peers, outputs, batch]
    gradient: torch.Tensor  # of the outputs
    activate: _Function
    activated: _Backward

    def of(self, peers: int) -> "_Layer":
        """The first so many peers'."""
        bias = None if self.bias is None else self.bias[:peers]
        tensors = (self.weights[:peers], bias, self.outputs[:peers], self.gradient[:peers])
        return _Layer(*tensors, self.activate, self.activated)

    def forward(self, below: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        """Its outputs, before the activation, of what is below [peers, inputs, batch]."""
        if self.bias is None:
            return torch.bmm(self.weights, below, out=outputs)
        return torch.baddbmm(self.bias, self.weights, below, out=outputs)

    def descend(self, gradient: torch.Tensor, turned_below: torch.Tensor) -> None:
        """Add the gradient of its outputs, scaled already, to weights and biases."""
        self.weights.baddbmm_(gradient, turned_below)
        if self.bias is not None:
            self.bias.add_(gradient.sum(2, keepdim=True))


class _Stack:
    """Buffers for blocks of so many peers with batches of up to so many examples."""

    def __init__(
        self, layers: Sequence[DenseLayer], peers: int, width: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        def new(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        last = layers[-1].outputs
        self.inputs = new(peers * width, layers[0].inputs)
        self.scores = new(_CHUNK, peers, last, width)
        self.wanted = new(_CHUNK, peers, last, width)
        self._layers = [
            _Layer(
                new(peers, layer.outputs, layer.inputs),
                new(peers, layer.outputs, 1) if layer.bias else None,
                new(peers, layer.outputs, width),
                new(peers, layer.outputs, width),
                FORWARD[layer.activation],
                BACKWARD[layer.activation],
            )
            for layer in layers
        ]
        every = [values for layer in self._layers for values in (layer.weights, layer.bias)]
        parameters = [values for values in every if values is not None]
        sizes = [values[0].numel() for values in parameters]
        self._flat = new(peers, sum(sizes))
        places = torch.split(self._flat, sizes, dim=1)
        self._places = [(values, place.view_as(values)) for values, place in zip(parameters, places, strict=True)]
        self._rows = list(self._flat.unbind())
        self._of: dict[int, tuple[torch.Tensor, tuple[_Layer, ...]]] = {}
        self._width = width

    def load(self, rows: Sequence[torch.Tensor]) -> None:
        """Take peers' vectors, as a vector has them."""
        torch._foreach_copy_(self._rows, list(rows))
        for values, place in self._places:
            values.copy_(place)

    def store(self, rows: Sequence[torch.Tensor]) -> None:
        """Give them back."""
        for values, place in self._places:
            place.copy_(values)
        torch._foreach_copy_(list(rows), self._rows)

    def of(self, peers: int) -> tuple[torch.Tensor, tuple[_Layer, ...]]:
        """Inputs [peers, batch, inputs] and layers of the first so many peers."""
        if peers not in self._of:
            inputs = self.inputs[: peers * self._width].view(peers, self._width, -1)
            self._of[peers] = inputs, tuple(layer.of(peers) for layer in self._layers)
        return self._of[peers]


class StackedStepper:
    """Trains blocks of peers; see `Stepper`."""

    def __init__(
        self, problem: Problem, layers: Sequence[DenseLayer], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._recipe = problem.recipe
        self._parts = problem.parts
        self._layers = layers
        self._dtype, self._device = dtype, device
        self._peers_at_once = peers_stacked(problem, layers)
        train = problem.data.train
        self._targets = train.targets.to(device)
        self._classes = not train.targets.is_floating_point()
        self._each_class = torch.arange(layers[-1].outputs, device=device).view(-1, 1)
        # What the loss of a batch is a mean of, and the factor of its derivative
        self._spread, self._slope = (1, 1) if self._classes else (layers[-1].outputs, 2)
        self._gatherer = Gatherer(train, self._peers_at_once * problem.recipe.batch_size, dtype, device)
        self._prepared = self._gatherer.prepared(layers[0].inputs)
        self._stacks: dict[tuple[int, int], _Stack] = {}

    @property
    def peers_at_once(self) -> int:
        """Peers of a block."""
        return self._peers_at_once

    def train(self, round: int, peers: Sequence[int], rows: Sequence[torch.Tensor]) -> list[float]:
        """See `Stepper`."""
        steps = [steps_of(self._recipe, len(self._parts[peer])) for peer in peers]
        order = sorted(range(len(peers)), key=steps.__getitem__, reverse=True)
        width = min(self._recipe.batch_size, max(len(self._parts[peer]) for peer in peers))
        with torch.inference_mode():
            stack = self._stack(len(peers), width)
            stack.load([rows[k] for k in order])
            totals = self._train(round, [peers[k] for k in order], [steps[k] for k in order], width, stack)
            stack.store([rows[k] for k in order])
        losses = [0.0] * len(peers)
        for k, total in zip(order, totals.tolist(), strict=True):
            losses[k] = total / steps[k]
        return losses

    def _train(self, round: int, peers: Sequence[int], steps: Sequence[int], width: int, stack: _Stack) -> torch.Tensor:
        """[peers] sums of the batches' losses. Those with more steps come first."""
        positions, sizes = self._batches(round, peers, steps, width)
        active = (sizes > 0).sum(axis=1).tolist()
        weights = (np.arange(width) < sizes[:, :, None]) / np.maximum(sizes, 1)[:, :, None] / self._spread
        totals = torch.zeros(len(peers), dtype=torch.float64, device=self._device)
        for begin in range(0, len(positions), _CHUNK):
            chunk = slice(begin, begin + _CHUNK)
            chosen = torch.from_numpy(positions[chunk])
            weight = torch.from_numpy(weights[chunk]).to(self._device, self._dtype).unsqueeze(2)
            targets = self._targets[chosen.to(self._device)]
            wanted = self._wanted(stack, targets)
            scales = weight * (-self._recipe.lr * self._slope)
            for k, count in enumerate(active[chunk]):
                self._step(stack, k, count, chosen[k, :count], scales[k, :count])
            totals += self._losses(stack.scores[: len(chosen)], targets, wanted, weight)
        return totals

    def _batches(
        self, round: int, peers: Sequence[int], steps: Sequence[int], width: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Positions [steps, peers, width] in the data, and how many of them each batch has, 0 after a peer's last.

        Behind a smaller batch stands its peer's first example: numbers that it has anyway.
        """
        positions = np.empty((max(steps), len(peers), width), dtype=np.int64)
        sizes = np.zeros((max(steps), len(peers)), dtype=np.int64)
        size = self._recipe.batch_size
        for k, peer in enumerate(peers):
            part = self._parts[peer]
            positions[:, k] = part[0]
            step = 0
            for piece in epoch_positions(self._recipe, part, str(peer), round):
                whole, rest = divmod(len(piece), size)
                if whole:
                    positions[step : step + whole, k] = piece[: whole * size].reshape(whole, size)
                    sizes[step : step + whole, k] = size
                    step += whole
                if rest:
                    positions[step, k, :rest] = piece[whole * size :]
                    sizes[step, k] = rest
                    step += 1
        return positions, sizes

    def _step(self, stack: _Stack, k: int, count: int, positions: torch.Tensor, scale: torch.Tensor) -> None:
        """Step k of a chunk, of the first peers [count]; `scale` [count, 1, batch] of the derivatives of the loss."""
        x, layers = stack.of(count)
        flat = x.view(-1, x.shape[2])
        if self._prepared is not None:
            torch.index_select(self._prepared, 0, positions.reshape(-1), out=flat)
        else:
            self._gatherer.gather(positions.reshape(-1), flat)
        below = [x.transpose(1, 2)]
        for layer in layers[:-1]:
            below.append(layer.activate(layer.forward(below[-1], layer.outputs)))
        scores = layers[-1].forward(below[-1], stack.scores[k, :count])
        wanted, gradient = stack.wanted[k, :count], layers[-1].gradient
        if self._classes:
            torch.softmax(scores, 1, out=gradient).sub_(wanted)
        else:
            torch.sub(scores, wanted, out=gradient)
        gradient.mul_(scale)
        for layer, lower, values in zip(layers[:0:-1], layers[-2::-1], below[:0:-1], strict=True):
            torch.bmm(layer.weights.transpose(1, 2), gradient, out=lower.gradient)
            layer.descend(gradient, values.transpose(1, 2))
            gradient = lower.gradient
            lower.activated(gradient, values)
        layers[0].descend(gradient, x)

    def _wanted(self, stack: _Stack, targets: torch.Tensor) -> torch.Tensor:
        """[steps, peers, outputs, batch]: ones at the classes, or the numbers."""
        wanted = stack.wanted[: len(targets)]
        if self._classes:
            return torch.eq(targets.unsqueeze(2), self._each_class, out=wanted)
        return wanted.copy_(targets.transpose(2, 3))

    def _losses(
        self, scores: torch.Tensor, targets: torch.Tensor, wanted: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """[peers] sums of the mean losses of a chunk's batches; what has no weight is none, even if it is no number."""
        if self._classes:
            losses = torch.log_softmax(scores, 2).gather(2, targets.unsqueeze(2)).neg_()
        else:
            losses = (scores - wanted).square_().sum(dim=2, keepdim=True)
        return losses.mul_(weight).masked_fill_(weight == 0, 0).double().sum(dim=(0, 2, 3))

    def _stack(self, peers: int, width: int) -> _Stack:
        key = (peers, width)
        if key not in self._stacks:
            self._stacks[key] = _Stack(self._layers, *key, self._dtype, self._device)
        return self._stacks[key]
