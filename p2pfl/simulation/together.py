"""Many peers trained as one batch by `torch.func`: what each would do alone, with other bits.

The order of the examples is that of live peers. Dropout is drawn for all peers of a block at once.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby

import torch
from torch.func import functional_call, grad_and_value, vmap

from p2pfl.keys import random_key
from p2pfl.layout import Layout, layout_of
from p2pfl.learning.learner import GENERATOR, Evaluation, Loss, Metric, default_loss, is_classes, order_generator
from p2pfl.simulation.deferred import Task
from p2pfl.simulation.problem import Problem

_BLOCK = 1 << 20  # parameters trained at a time: with their gradients they stay in the last cache
_TESTED_AT_ONCE = 1000
_LOOSE = {torch.float32: 1e-3, torch.float64: 1e-9}  # relative error of a gradient that is the same but for rounding


class Together:
    """Blocks of peers as one stack of parameters; see `Trainer`."""

    def __init__(self, problem: Problem, metrics: Mapping[str, Metric]) -> None:
        """Raises whatever the module raises where it cannot be vectorized."""
        recipe = problem.recipe
        self._problem = problem
        self._metrics = metrics
        self._dtype = torch.float64 if recipe.dtype == "float64" else torch.float32
        self._module = problem.build().to(self._dtype)
        self.layout: Layout = layout_of(self._module)
        self._block = max(4, min(512, _BLOCK // self.layout.size))
        self._trained = {name for name, parameter in self._module.named_parameters() if parameter.requires_grad}
        self._buffers = dict(self._module.named_buffers())
        self._parts = [torch.from_numpy(part) for part in problem.parts]
        self._loss: Loss = problem.loss or default_loss
        self._gradients = vmap(grad_and_value(self._loss_of), in_dims=(0, 0, 0, 0), randomness="different")
        self._outputs = vmap(self._output_of, in_dims=(0, None))
        self._test_losses = vmap(self._loss, in_dims=(0, None))
        self._try()

    def train(self, round: int, tasks: Sequence[Task]) -> list[float]:
        """See `Trainer`."""
        losses: list[float] = []
        self._module.train()
        for begin in range(0, len(tasks), self._block):
            block = tasks[begin : begin + self._block]
            with GENERATOR, torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(
                    random_key(self._problem.recipe.seed, "training", "together", round, block[0].peer)
                )
                losses += self._train_block(round, block)
        return losses

    def evaluate(self, peers: Sequence[int], vectors: torch.Tensor) -> list[Evaluation]:
        """See `Trainer`."""
        if self._problem.test is None:
            return [Evaluation() for _ in peers]
        self._module.eval()
        found: list[Evaluation] = []
        with torch.no_grad():
            for block in torch.split(vectors, self._block):
                found += self._evaluate_block(block)
        return found

    def _try(self) -> None:
        """A step and an evaluation of two peers: what cannot be vectorized, or comes out otherwise, says so here."""
        vectors = torch.stack([torch.cat([p.detach().reshape(-1) for p in self._module.parameters()])] * 2)
        inputs, targets = self._batch([self._parts[0][:1]] * 2)
        before = {name: buffer.clone() for name, buffer in self._buffers.items()}
        plain_before = self._plain_state()
        self._module.train()
        with torch.random.fork_rng(devices=[]):
            self._step(vectors.clone(), inputs, targets)
        changed = [name for name, buffer in self._buffers.items() if not torch.equal(buffer, before[name])]
        if changed:
            raise ValueError(f"buffer {changed[0]!r} changes in training")
        if self._plain_state() != plain_before:
            raise ValueError("the module changes an attribute of its own in training")
        with torch.random.fork_rng(devices=[]):
            self._compare(vectors, inputs, targets)
        self.evaluate((0, 0), vectors)

    def _compare(self, vectors: torch.Tensor, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Gradients at the initial weights against plain autograd."""
        named = {name: p for name, p in self._module.named_parameters() if p.requires_grad}
        drawn = torch.random.get_rng_state()
        loss = self._loss(self._module(inputs[0]), targets[0])
        if not torch.equal(torch.random.get_rng_state(), drawn):
            return  # dropout: no two gradients are alike
        plain = torch.autograd.grad(loss, list(named.values()), materialize_grads=True)
        views = self._stacked(vectors)
        free = {name: view for name, view in views.items() if name in self._trained}
        found, _ = self._gradients(free, {n: v for n, v in views.items() if n not in free}, inputs, targets)
        loose = _LOOSE[self._dtype]
        for name, gradient in zip(named, plain, strict=True):
            if not torch.allclose(found[name][0], gradient, rtol=loose, atol=loose):
                raise ValueError(f"the gradient of {name!r} comes out otherwise than one by one")

    def _plain_state(self) -> list[dict[str, object]]:
        """Numbers, flags and texts that the module and its parts carry, which peers of a block would share."""
        plain = (bool, int, float, str)
        return [{k: v for k, v in vars(m).items() if isinstance(v, plain)} for m in self._module.modules()]

    def _train_block(self, round: int, block: Sequence[Task]) -> list[float]:
        vectors = torch.stack([task.vector for task in block])
        totals = torch.zeros(len(block), dtype=self._dtype)
        batches = [self._batches(round, task) for task in block]
        for step in range(max(task.steps for task in block)):
            due = [(i, batches[i][step]) for i, task in enumerate(block) if step < task.steps]
            due.sort(key=lambda one: len(one[1]))
            for _, alike in groupby(due, key=lambda one: len(one[1])):
                chosen, indices = zip(*alike, strict=True)
                inputs, targets = self._batch(indices)
                if len(chosen) == len(block):
                    totals += self._step(vectors, inputs, targets)
                else:
                    some = torch.tensor(chosen)
                    part = vectors[some]
                    totals[some] += self._step(part, inputs, targets)
                    vectors[some] = part
        for task, vector in zip(block, vectors, strict=True):
            task.out.copy_(vector)
        return (totals.double() / torch.tensor([task.steps for task in block])).tolist()

    def _step(self, vectors: torch.Tensor, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """One step of SGD on vectors [k, size], in place; the losses [k]."""
        views = self._stacked(vectors)
        free = {name: view for name, view in views.items() if name in self._trained}
        fixed = {name: view for name, view in views.items() if name not in self._trained}
        gradients, losses = self._gradients(free, fixed, inputs, targets)
        for name, gradient in gradients.items():
            views[name].add_(gradient, alpha=-self._problem.recipe.lr)
        return losses.detach()  # type: ignore[no-any-return]  # torch has no annotations there

    def _stacked(self, vectors: torch.Tensor) -> dict[str, torch.Tensor]:
        """The named tensors of all vectors [k, size], as views [k, …]."""
        views, begin = {}, 0
        for name, shape in self.layout.tensors:
            size = torch.Size(shape).numel()
            views[name] = vectors[:, begin : begin + size].view(len(vectors), *shape)
            begin += size
        return views

    def _loss_of(
        self,
        free: dict[str, torch.Tensor],
        fixed: dict[str, torch.Tensor],
        inputs: torch.Tensor,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        outputs = functional_call(self._module, (free, fixed, self._buffers), (inputs,))
        return self._loss(outputs, targets)

    def _output_of(self, tensors: dict[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = functional_call(self._module, (tensors, self._buffers), (inputs,))
        return outputs

    def _batches(self, round: int, task: Task) -> list[torch.Tensor]:
        """Positions of the examples of each step, in the order in which `TorchLearner` takes them."""
        part, recipe = self._parts[task.peer], self._problem.recipe
        batches: list[torch.Tensor] = []
        while len(batches) < task.steps:
            epoch = len(batches) // -(-len(part) // recipe.batch_size)
            order = torch.randperm(len(part), generator=order_generator(recipe.seed, str(task.peer), round, epoch))
            batches += torch.split(part[order[: recipe.batch_size * (task.steps - len(batches))]], recipe.batch_size)
        return batches

    def _batch(self, indices: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets [k, batch, …] for positions of equal number."""
        inputs, targets = self._problem.data.train.batch(torch.cat(tuple(indices)))
        shape = (len(indices), len(indices[0]))
        return inputs.to(self._dtype).view(*shape, *inputs.shape[1:]), targets.view(*shape, *targets.shape[1:])

    def _evaluate_block(self, vectors: torch.Tensor) -> list[Evaluation]:
        test = self._problem.test
        assert test is not None  # evaluate looked
        views = self._stacked(vectors)
        pieces = []
        for positions in torch.split(torch.arange(len(test)), _TESTED_AT_ONCE):
            inputs, _ = test.batch(positions)
            pieces.append(self._outputs(views, inputs.to(self._dtype)))
        outputs, targets = torch.cat(pieces, dim=1), test.targets
        losses = self._test_losses(outputs, targets).tolist()
        accuracies: Sequence[float | None] = [None] * len(vectors)
        if is_classes(outputs[0], targets):
            accuracies = (outputs.argmax(-1) == targets).double().mean(1).tolist()
        return [
            Evaluation(
                loss if math.isfinite(loss) else None,
                accuracy,
                {name: float(metric(output, targets)) for name, metric in self._metrics.items()},
            )
            for loss, accuracy, output in zip(losses, accuracies, outputs, strict=True)
        ]
