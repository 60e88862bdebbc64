"""Any module trained for many peers at once by `torch.func`: a block of peers is one stack of parameters."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter

import torch
from torch.func import functional_call, grad_and_value, vmap

from p2pfl.layout import Layout, layout_of
from p2pfl.learning.learner import GENERATOR, default_loss
from p2pfl.simulation.batches import Gatherer, batch_positions, steps_of
from p2pfl.simulation.problem import Problem
from p2pfl.simulation.traced import TracedStep, traced

_BLOCK_BYTES = 3 << 20  # of parameters and a step's inputs at once: they stay in the cache
_MOST = 64  # peers at once
_WORTH_TRACING = 400  # steps of blocks in a run: what a trace costs is what so many calls of torch.func do
_LOOSE = {torch.float32: 1e-3, torch.float64: 1e-9}  # relative error of a gradient that is the same but for rounding


class VectorizedStepper:
    """Trains blocks of peers; see `Stepper`."""

    def __init__(self, problem: Problem, dtype: torch.dtype, device: torch.device) -> None:
        """Raises RuntimeError or ValueError where the module cannot be vectorized, with a word of why."""
        self._problem = problem
        self._dtype, self._device = dtype, device
        self._parts = [torch.from_numpy(part) for part in problem.parts]
        self._module = problem.build().to(device, dtype).train()
        self._layout: Layout = layout_of(self._module)
        self._loss = problem.loss or default_loss
        self._trained = [name for name, p in self._module.named_parameters() if p.requires_grad]
        self._buffers = dict(self._module.named_buffers())
        self._gradients = vmap(grad_and_value(self._loss_of), in_dims=(0, 0, 0, 0), randomness="error")
        self._stacks: dict[int, dict[str, torch.Tensor]] = {}
        self._traces: dict[tuple[int, int], TracedStep | None] = {}
        self._shapes = self._shapes_to_trace()
        train = problem.data.train
        most = self.peers_at_once * problem.recipe.batch_size
        self._gatherer = Gatherer(train, most, dtype, device)
        self._inputs = torch.empty(most, *train.inputs.shape[1:], dtype=dtype, device=device)
        self._try()

    @property
    def peers_at_once(self) -> int:
        """Peers of a block. It depends on the problem alone: as many workers as you like give the same bits."""
        inputs = self._problem.data.train.inputs
        step = self._problem.recipe.batch_size * inputs[0].numel() * self._dtype.itemsize
        fit = max(1, min(_MOST, _BLOCK_BYTES // (self._layout.vector_bytes + step)))
        return max(1, min(fit, max(4, self._problem.peers // 8)))

    def train(self, round: int, peers: Sequence[int], rows: Sequence[torch.Tensor]) -> list[float]:
        """See `Stepper`."""
        stack = self._stack(len(peers))
        for k, row in enumerate(rows):
            for name, view in self._layout.views(row).items():
                stack[name][k].copy_(view)
        batches = [self._batches(round, peer) for peer in peers]
        totals = torch.zeros(len(peers), dtype=self._dtype, device=self._device)
        for step in range(max(map(len, batches))):
            due = [(k, batches[k][step]) for k in range(len(peers)) if step < len(batches[k])]
            for _, alike in groupby(sorted(due, key=lambda one: len(one[1])), key=lambda one: len(one[1])):
                chosen, positions = zip(*alike, strict=True)
                self._step_of(stack, list(chosen), torch.cat(positions), totals)
        for k, row in enumerate(rows):
            for name, view in self._layout.views(row).items():
                view.copy_(stack[name][k])
        counts = [steps_of(self._problem.recipe, len(self._parts[peer])) for peer in peers]
        return [total / count for total, count in zip(totals.tolist(), counts, strict=True)]

    def _batches(self, round: int, peer: int) -> list[torch.Tensor]:
        recipe = self._problem.recipe
        pieces = batch_positions(recipe, self._parts[peer], str(peer), round)
        return [batch for piece in pieces for batch in torch.split(piece, recipe.batch_size)]

    def _step_of(
        self, stack: Mapping[str, torch.Tensor], chosen: list[int], positions: torch.Tensor, totals: torch.Tensor
    ) -> None:
        """One step of the chosen peers of a stack, whose batches have one size."""
        train = self._problem.data.train
        shape = (len(chosen), len(positions) // len(chosen))
        inputs = self._inputs[: len(positions)]
        self._gatherer.gather(positions, inputs.flatten(1))
        inputs = inputs.view(*shape, *inputs.shape[1:])
        targets = train.targets[positions].to(self._device).view(*shape, *train.targets.shape[1:])
        first, last = chosen[0], chosen[-1] + 1
        if last - first == len(chosen):  # peers side by side are a view
            some = {name: values[first:last] for name, values in stack.items()}
            totals[first:last] += self._step(some, inputs, targets)
            return
        index = torch.tensor(chosen, device=self._device)
        some = {name: values[index] for name, values in stack.items()}
        totals[index] += self._step(some, inputs, targets)
        for name in self._trained:
            stack[name][index] = some[name]

    def _step(self, stack: Mapping[str, torch.Tensor], inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """One step of SGD on a stack [k, …] of each parameter, in place; the losses [k]."""
        free, fixed = self._divided(stack)
        trace = self._trace((len(inputs), inputs.shape[1]), free, fixed, inputs, targets)
        if trace is not None:
            with torch.inference_mode():
                return trace.step(list(free.values()), [*fixed.values(), inputs, targets], self._problem.recipe.lr)
        with torch.no_grad():
            gradients, losses = self._gradients(free, fixed, inputs, targets)
            for name in self._trained:
                free[name].add_(gradients[name], alpha=-self._problem.recipe.lr)
        return losses  # type: ignore[no-any-return]  # torch has no annotations there

    def _shapes_to_trace(self) -> set[tuple[int, int]]:
        """Peers and batch sizes of the steps that come again and again: of the problem alone, so that bits repeat."""
        recipe = self._problem.recipe
        lengths = {len(part) for part in self._parts}
        at_once = self.peers_at_once
        blocks = -(-len(self._parts) // at_once)
        if blocks * steps_of(recipe, max(lengths)) * recipe.rounds < _WORTH_TRACING:
            return set()
        sizes = {recipe.batch_size} if max(lengths) >= recipe.batch_size else set()
        if len(lengths) == 1:
            sizes.add(max(lengths) % recipe.batch_size)
        return {(peers, size) for peers in (at_once, len(self._parts) % at_once) for size in sizes if peers and size}

    def _trace(
        self,
        shape: tuple[int, int],
        free: Mapping[str, torch.Tensor],
        fixed: Mapping[str, torch.Tensor],
        inputs: torch.Tensor,
        targets: torch.Tensor,
    ) -> TracedStep | None:
        """The step of this shape as plain operations; None where it is not worth it, or cannot be."""
        if shape not in self._shapes:
            return None
        if shape not in self._traces:

            def gradients(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
                free_ones = dict(zip(free, tensors, strict=False))
                fixed_ones = dict(zip(fixed, tensors[len(free) :], strict=False))
                found, losses = self._gradients(free_ones, fixed_ones, *tensors[-2:])
                return (*(found[name] for name in free), losses)

            try:
                trace = traced(gradients, list(free.values()), [*fixed.values(), inputs, targets])
            except Exception:  # whatever a module that torch.func takes does to a tracer: it runs without, slower
                trace = None
            self._traces[shape] = trace
        return self._traces[shape]

    def _divided(self, tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Those that are trained, and those that stay."""
        free = {name: tensors[name] for name in self._trained}
        return free, {name: values for name, values in tensors.items() if name not in free}

    def _loss_of(
        self,
        free: Mapping[str, torch.Tensor],
        fixed: Mapping[str, torch.Tensor],
        inputs: torch.Tensor,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        outputs = functional_call(self._module, {**free, **fixed, **self._buffers}, (inputs,))
        return self._loss(outputs, targets)

    def _stack(self, peers: int) -> dict[str, torch.Tensor]:
        if peers not in self._stacks:
            self._stacks[peers] = {
                name: torch.empty(peers, *shape, dtype=self._dtype, device=self._device)
                for name, shape in self._layout.tensors
            }
        return self._stacks[peers]

    def _try(self) -> None:
        """A step of two peers against plain autograd: what cannot be vectorized, or comes out otherwise, says so."""
        before = {name: buffer.clone() for name, buffer in self._buffers.items()}
        plain_before = self._plain_state()
        own = {name: p.detach() for name, p in self._module.named_parameters()}
        pairs = [self._problem.data.train.batch(part[:2]) for part in (self._parts[0], self._parts[-1])]
        size = min(len(targets) for _, targets in pairs)
        inputs = torch.stack([inputs[:size] for inputs, _ in pairs]).to(self._device, self._dtype)
        targets = torch.stack([targets[:size] for _, targets in pairs]).to(self._device)
        twice = {name: torch.stack([p, p]) for name, p in own.items()}
        with GENERATOR, torch.random.fork_rng(devices=[]):
            stacked, _ = self._gradients(*self._divided(twice), inputs, targets)
            for k in range(2):
                parameters = [p for p in self._module.parameters() if p.requires_grad]
                loss = self._loss(self._module(inputs[k]), targets[k])
                plain = torch.autograd.grad(loss, parameters, allow_unused=True)
                for name, gradient in zip(self._trained, plain, strict=True):
                    here = stacked[name][k]
                    wanted = torch.zeros_like(here) if gradient is None else gradient
                    if not torch.allclose(here, wanted, rtol=_LOOSE[self._dtype], atol=_LOOSE[self._dtype]):
                        raise ValueError(f"the gradient of {name!r} comes out otherwise than one by one")
        changed = [n for n, buffer in self._module.named_buffers() if not torch.equal(buffer, before[n])]
        if changed:
            raise ValueError(f"buffer {changed[0]!r} changes in training")
        if self._plain_state() != plain_before:
            raise ValueError("the module changes an attribute of its own in training")

    def _plain_state(self) -> list[dict[str, object]]:
        """Numbers, flags and texts that the module and its parts carry, which peers of a block would share."""
        plain = (bool, int, float, str)
        return [{k: v for k, v in vars(m).items() if isinstance(v, plain)} for m in self._module.modules()]


def blocks_of(sizes: Sequence[int], at_once: int) -> list[list[int]]:
    """Peers in blocks, those with like amounts of data together, so that they take their steps together."""
    order = [peer for peer, _ in sorted(enumerate(sizes), key=itemgetter(1), reverse=True)]
    return [order[begin : begin + at_once] for begin in range(0, len(order), at_once)]


def why_not(error: Exception) -> str:
    """What keeps a module from being vectorized, in a line."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "randomness" in text:
        return "its forward pass draws at random (dropout)"
    if "mutate" in text:
        return "a buffer changes in training"
    return text.rstrip(".")
