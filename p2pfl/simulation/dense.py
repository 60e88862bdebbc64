"""Dense networks trained peer by peer with a backward pass written by hand: the matrix engine's fastest path.

Few peers' worth of weights fit a core's cache, so one peer is trained for a whole round before the next. No autograd:
the gradient of the weights is never formed, one product adds it to them, scaled by the learning rate. Each bias is a
column of its layer's weights and meets a row of ones, so no operation is spent on it. All lies as [features, batch],
in which products with few outputs are twice as fast, and in buffers that stay.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from p2pfl.learning.learner import default_loss
from p2pfl.simulation.batches import Gatherer, batch_positions, longest_piece, steps_of
from p2pfl.simulation.problem import Problem

Activation: TypeAlias = Literal["relu", "tanh", "sigmoid", "none"]

_ALIGNED = 8  # floats: rows of the buffers begin where a vector register's worth does
_KINDS: dict[type[nn.Module], Activation] = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid"}
FORWARD: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu_,
    "tanh": torch.tanh_,
    "sigmoid": torch.sigmoid_,
    "none": lambda values: values,
}
_aten: Any = torch.ops.aten  # what autograd itself calls, written into buffers that are there
BACKWARD: dict[Activation, Callable[[torch.Tensor, torch.Tensor], object]] = {
    "relu": lambda gradient, output: _aten.threshold_backward.grad_input(gradient, output, 0, grad_input=gradient),
    "tanh": lambda gradient, output: _aten.tanh_backward.grad_input(gradient, output, grad_input=gradient),
    "sigmoid": lambda gradient, output: _aten.sigmoid_backward.grad_input(gradient, output, grad_input=gradient),
    "none": lambda gradient, output: None,
}


@dataclass(frozen=True)
class DenseLayer:
    """outputs = activation(weight · inputs + bias)."""

    inputs: int
    outputs: int
    bias: bool
    activation: Activation


def dense_layers(module: nn.Module, problem: Problem) -> tuple[DenseLayer, ...] | str:
    """The module as dense layers, or in words what it has that they do not cover."""
    loss = problem.loss
    if loss is not None and loss not in (default_loss, nn.functional.cross_entropy, nn.functional.mse_loss):
        return "a loss of one's own"
    if not all(parameter.requires_grad for parameter in module.parameters()):
        return "parameters that are not trained"
    inputs = problem.data.train.inputs
    flat = inputs.ndim == 2
    layers: list[DenseLayer] = []
    met: set[int] = set()
    for part in _parts(module):
        if isinstance(part, str):
            return part
        if isinstance(part, nn.Flatten):
            flat = flat or not layers
        elif isinstance(part, nn.Linear):
            if not flat or part.in_features != (layers[-1].outputs if layers else inputs[0].numel()):
                return "a Linear over more than the flat inputs"
            if id(part.weight) in met or (part.bias is not None and id(part.bias) in met):
                return "tied weights"
            met |= {id(part.weight), id(part.bias)}
            layers.append(DenseLayer(part.in_features, part.out_features, part.bias is not None, "none"))
        elif not layers or layers[-1].activation != "none":
            return "an activation that follows no Linear"
        else:
            last = layers[-1]
            layers[-1] = DenseLayer(last.inputs, last.outputs, last.bias, _KINDS[type(part)])
    if not layers or layers[-1].activation != "none":
        return "an end other than a Linear"
    targets = problem.data.train.targets
    if targets.is_floating_point() and (loss is nn.functional.cross_entropy or targets.shape[1] != layers[-1].outputs):
        return "a loss of one's own"
    if not targets.is_floating_point() and loss is nn.functional.mse_loss:
        return "a loss of one's own"
    return tuple(layers)


def _parts(module: nn.Module) -> list[nn.Module | str]:
    """Layers in their order, Sequentials taken apart; a word where one is of another kind, or hooked."""
    hooks = any(getattr(module, name) for name in vars(module) if name.endswith("_hooks"))
    if hooks:
        return ["hooks"]
    if type(module) is nn.Sequential:
        return [part for child in module for part in _parts(child)]
    if type(module) is nn.Identity or (type(module) is nn.Dropout and module.p == 0):
        return []
    if type(module) is nn.Flatten and (module.start_dim, module.end_dim) != (1, -1):
        return ["an unusual Flatten"]
    known = type(module) in (nn.Flatten, nn.Linear, *_KINDS)
    return [module if known else f"a {type(module).__name__}"]


@dataclass(frozen=True)
class _Hidden:
    """Buffers between the layers for batches of one size; of each list, entry k belongs to layer k's outputs."""

    inputs: list[torch.Tensor]  # [outputs, padded · batch], with the row of ones: what the next layer takes
    outputs: list[torch.Tensor]  # the same without it
    gradients: list[torch.Tensor]
    last_gradient: torch.Tensor


_Forward: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]
_Down: TypeAlias = tuple[
    torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Callable[[torch.Tensor, torch.Tensor], object]
]


@dataclass(frozen=True)
class _Slot:
    """One batch's place in the buffers, and all that a step there takes, laid out: a step is a few microseconds."""

    forward: tuple[_Forward, ...]  # weights, what comes from below, outputs, activation: of all layers but the last
    last: tuple[torch.Tensor, torch.Tensor]  # weights, what comes from below
    scores: torch.Tensor  # [outputs, batch]
    wanted: torch.Tensor  # [outputs, batch]
    gradient: torch.Tensor  # of the scores
    down: tuple[_Down, ...]  # from the last layer to the second: see `_step`
    first: tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # weights, gradient of the outputs, x [batch, inputs]
    scale: float  # of the last gradient: -learning rate over what the loss is a mean of


class DenseStepper:
    """Trains peers in turn; see `Stepper`."""

    def __init__(
        self, problem: Problem, layers: Sequence[DenseLayer], dtype: torch.dtype, device: torch.device
    ) -> None:
        recipe, train = problem.recipe, problem.data.train
        self._recipe = recipe
        self._parts = [torch.from_numpy(part) for part in problem.parts]
        self._layers = layers
        self._dtype, self._device = dtype, device
        self._targets = train.targets
        self._classes = not train.targets.is_floating_point()
        self._batch = recipe.batch_size
        longest = longest_piece(recipe, self._parts)
        slots = -(-longest // self._batch)
        last = layers[-1].outputs
        self._gatherer = Gatherer(train, longest, dtype, device)
        self._prepared = self._gatherer.prepared(_padded(layers[0]))
        if self._prepared is not None:
            self._prepared[:, layers[0].inputs :] = _ones(layers[0], self._prepared)
        self._inputs = self._new(slots * self._batch, _padded(layers[0]))
        self._inputs[:, layers[0].inputs :] = _ones(layers[0], self._inputs)
        self._scores = self._new(slots, last, self._batch)
        self._labels = torch.zeros(slots * self._batch, dtype=torch.int64, device=device)
        if self._classes:
            self._wanted = self._new(slots, last, self._batch)
        else:
            self._numbers = self._new(slots * self._batch, last)
            self._wanted = self._numbers.view(slots, self._batch, last).transpose(1, 2)
        self._each_class = torch.arange(last, device=device).view(1, last, 1)
        self._weights = [self._new(layer.outputs, _padded(layer)) for layer in layers]
        self._hidden_of: dict[int, _Hidden] = {}
        self._full = [self._slot(index, self._batch) for index in range(slots)]

    @property
    def peers_at_once(self) -> int:
        """Peers a block has; each is trained by itself, so it is a matter of pace alone."""
        return 1

    def train(self, round: int, peers: Sequence[int], rows: Sequence[torch.Tensor]) -> list[float]:
        """See `Stepper`."""
        with torch.inference_mode():
            return [self._train(round, peer, row) for peer, row in zip(peers, rows, strict=True)]

    def _train(self, round: int, peer: int, row: torch.Tensor) -> float:
        places = self._places(row)
        for buffer, place in places:
            buffer.copy_(place)
        part = self._parts[peer]
        total = 0.0
        for positions in batch_positions(self._recipe, part, str(peer), round):
            self._take(positions)
            whole, rest = divmod(len(positions), self._batch)
            for slot in self._full[:whole]:
                self._step(slot)
            if whole:
                total += self._loss(self._scores[:whole], 0, self._batch)
            if rest:
                slot = self._slot(whole, rest)
                self._step(slot)
                total += self._loss(slot.scores.unsqueeze(0), whole, rest)
        for buffer, place in places:
            place.copy_(buffer)
        return total / steps_of(self._recipe, len(part))

    def _take(self, positions: torch.Tensor) -> None:
        """Gather inputs and targets into the buffers."""
        count = len(positions)
        if self._prepared is not None:
            torch.index_select(self._prepared, 0, positions, out=self._inputs[:count])
        else:
            self._gatherer.gather(positions, self._inputs[:count, : self._layers[0].inputs])
        targets = self._targets[positions]
        if self._classes:
            self._labels[:count] = targets
            torch.eq(self._labels.view(-1, 1, self._batch), self._each_class, out=self._wanted)
        else:
            self._numbers[:count] = targets

    def _step(self, slot: _Slot) -> None:
        for weight, below, outputs, activate in slot.forward:
            activate(torch.mm(weight, below, out=outputs))
        gradient, scale = slot.gradient, slot.scale
        torch.mm(*slot.last, out=slot.scores)
        if self._classes:
            torch.softmax(slot.scores, 0, out=gradient).sub_(slot.wanted)
        else:
            torch.sub(slot.scores, slot.wanted, out=gradient)
        for weight, turned_weight, turned_below, outputs, lower, activated in slot.down:
            torch.mm(turned_weight, gradient, out=lower)
            weight.addmm_(gradient, turned_below, alpha=scale)
            activated(lower, outputs)
            gradient = lower
        weight, gradient, x = slot.first
        weight.addmm_(gradient, x, alpha=scale)

    def _loss(self, scores: torch.Tensor, begin: int, size: int) -> float:
        """The sum of the mean losses of batches [batches, outputs, size] from slot `begin` on."""
        count = len(scores)
        if self._classes:
            start = begin * self._batch
            labels = self._labels[start : start + count * size].view(count, 1, size)
            return -float(torch.log_softmax(scores, 1).gather(1, labels).mean(dim=(1, 2)).sum())
        return float((scores - self._wanted[begin : begin + count, :, :size]).square_().mean(dim=(1, 2)).sum())

    def _places(self, row: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Each buffer of weights and biases, beside its place in a peer's vector."""
        places, begin = [], 0
        for layer, weight in zip(self._layers, self._weights, strict=True):
            size = layer.inputs * layer.outputs
            places.append((weight[:, : layer.inputs], row[begin : begin + size].view(layer.outputs, layer.inputs)))
            begin += size
            if layer.bias:
                places.append((weight[:, layer.inputs], row[begin : begin + layer.outputs]))
                begin += layer.outputs
        return places

    def _slot(self, index: int, size: int) -> _Slot:
        start = index * self._batch
        x = self._inputs[start : start + size]
        hidden, weights, layers = self._hidden(size), self._weights, self._layers
        below = [x.t(), *hidden.inputs]
        kinds = [layer.activation for layer in layers]
        averaged = size if self._classes else size * layers[-1].outputs / 2
        return _Slot(
            tuple((weights[k], below[k], hidden.outputs[k], FORWARD[kinds[k]]) for k in range(len(layers) - 1)),
            (weights[-1], below[-1]),
            self._scores[index, :, :size],
            self._wanted[index, :, :size],
            hidden.last_gradient,
            tuple(
                (
                    weights[k],
                    weights[k].t()[: layers[k].inputs],
                    below[k].t(),
                    hidden.outputs[k - 1],
                    hidden.gradients[k - 1],
                    BACKWARD[kinds[k - 1]],
                )
                for k in range(len(layers) - 1, 0, -1)
            ),
            (weights[0], [*hidden.gradients, hidden.last_gradient][0], x),
            -self._recipe.lr / averaged,
        )

    def _hidden(self, size: int) -> _Hidden:
        if size not in self._hidden_of:
            inputs, outputs = [], []
            for layer, above in zip(self._layers[:-1], self._layers[1:], strict=True):
                buffer = self._new(_padded(above), size)
                buffer[layer.outputs :] = _ones(above, buffer.t()).unsqueeze(1)
                inputs.append(buffer)
                outputs.append(buffer[: layer.outputs])
            gradients = [torch.empty_like(output) for output in outputs]
            last = self._new(self._layers[-1].outputs, size)
            self._hidden_of[size] = _Hidden(inputs, outputs, gradients, last)
        return self._hidden_of[size]

    def _new(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=self._dtype, device=self._device)


def _padded(layer: DenseLayer) -> int:
    """Columns of the layer's buffer: its inputs, one of biases, and zeros, which stay zeros."""
    return math.ceil((layer.inputs + layer.bias) / _ALIGNED) * _ALIGNED


def _ones(layer: DenseLayer, buffer: torch.Tensor) -> torch.Tensor:
    """What stands behind the inputs: a one where the biases are, then zeros."""
    behind = torch.zeros(buffer.shape[1] - layer.inputs, dtype=buffer.dtype, device=buffer.device)
    behind[: int(layer.bias)] = 1
    return behind
