"""What a learner is, and the one for PyTorch: any module, data, loss, optimizer, schedule and metrics."""

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from p2pfl.errors import DataError, ModelError, TrainingError, UsageError
from p2pfl.keys import random_key
from p2pfl.layout import Layout, Vector, layout_of
from p2pfl.learning import optimizer_state
from p2pfl.learning.examples import Examples
from p2pfl.state import State

Loss: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (outputs, targets) -> scalar
Metric: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor | float]  # over the whole test part
OptimizerFactory: TypeAlias = Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]
ScheduleFactory: TypeAlias = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]
Source: TypeAlias = Dataset[Any] | tuple[torch.Tensor, torch.Tensor]

_GATHERED = 64  # batches whose examples are gathered at once: one large copy is cheaper than many small ones
_EVALUATION_BATCH = 1000
GENERATOR = threading.RLock()  # a process has one default generator: peers that share it draw from it in turn


@dataclass(frozen=True)
class Training:
    """What local training of one round did."""

    steps: int
    full_steps: int  # what was asked for; more than `steps` where time ran out
    loss: float | None  # mean over the batches
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """How the model does on the test part."""

    loss: float | None = None
    accuracy: float | None = None  # a fraction; None where the task has none
    metrics: Mapping[str, float] = field(default_factory=dict)


class Learner(Protocol):
    """A model and its data, as a peer sees them. Called from one thread at a time.

    One that carries more than the model from round to round (an optimizer's momentum, say) is `Stateful`, too.
    """

    @property
    def layout(self) -> Layout:
        """How the model lies in its vector."""
        ...

    @property
    def data(self) -> str:
        """Fingerprint of the training data, empty if unknown."""
        ...

    def parameters(self, out: Vector) -> None:
        """Copy the model into a vector."""
        ...

    def load(self, vector: Vector) -> None:
        """Copy a vector into the model."""
        ...

    def train(self, round: int, budget_s: float | None, stopped: Callable[[], bool]) -> Training:
        """Train for one round: all steps, or at least one within the budget; ends early when `stopped`."""
        ...

    def evaluate(self) -> Evaluation:
        """Evaluate the model as it is."""
        ...


class TorchLearner:
    """Trains an `nn.Module` by mini-batches.

    The module's parameters become views of one flat vector, so that loading and reading them is one copy. The process's
    random generator is seeded by (seed, seat, round) while training and put back afterwards: dropout and the order of
    the examples are the same wherever this peer runs.

    An optimizer lives as long as the learner. Its state is this peer's own: it is neither mixed nor sent, and a peer
    that catches up from another's model keeps the momentum it had.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Source | None,
        test: Source | None = None,
        *,
        loss: Loss | None = None,
        optimizer: OptimizerFactory | None = None,
        schedule: ScheduleFactory | None = None,
        metrics: Mapping[str, Metric] | None = None,
        lr: float = 0.1,
        batch_size: int = 32,
        epochs: int = 1,
        steps: int | None = None,
        seed: int = 0,
        seat: str = "0",
        device: str | torch.device = "cpu",
    ) -> None:
        """Take over the module.

        Args:
            model: changed in place; its parameters are all float32 or all float64.
            train: examples to learn from; None where this peer only mixes.
            test: examples to evaluate on after each round; None evaluates nothing.
            loss: cross entropy for integer targets, mean squared error for others, unless given.
            optimizer: makes a `torch.optim` optimizer from the parameters; plain SGD with `lr` unless given.
            schedule: makes a schedule from that optimizer; it advances by one each round.
            metrics: further figures over the whole test part; "accuracy" is added for integer targets.
            lr: learning rate of plain SGD; more learns faster until it diverges.
            batch_size: examples a step; more is smoother and takes fewer steps an epoch.
            epochs: passes over the training part each round.
            steps: gradient steps each round, instead of epochs.
            seed, seat: give, with the round, the keys of all random draws.
            device: where the module computes.

        Raises:
            ModelError: a module that cannot be averaged.
            DataError: no examples, or settings out of range.
        """
        if batch_size < 1 or epochs < 1 or (steps is not None and steps < 1) or not lr > 0:
            raise DataError("batch size, epochs and steps are at least 1, and the learning rate is above 0")
        if schedule is not None and optimizer is None:
            raise ModelError("a schedule needs an optimizer to act on: give optimizer=, too")
        self.layout = layout_of(model)
        self.model = model.to(device)
        self._device = torch.device(device)
        self._train = _examples(train, "training") if train is not None else None
        self._test = _examples(test, "test") if test is not None else None
        self._loss = loss
        self._metrics = dict(metrics or {})
        self._lr = lr
        self._batch_size = batch_size
        self._steps = steps
        self._epochs = epochs
        self._seed = seed
        self._seat = seat
        self._flat = torch.empty(self.layout.size, dtype=self.layout.torch_dtype, device=self._device)
        self._adopt_parameters()
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # A process's first torch.optim object imports the compiler: seconds and 150 MB that plain SGD does without.
        self._optimizer = optimizer(list(model.parameters())) if optimizer is not None else None
        self._schedule = schedule(self._optimizer) if schedule is not None and self._optimizer is not None else None
        self._constant_buffers: dict[str, torch.Tensor] | None = None
        self._rounds_scheduled = 0

    @property
    def data(self) -> str:
        return self._train.fingerprint() if isinstance(self._train, Examples) else ""

    def parameters(self, out: Vector) -> None:
        out.copy_(self._flat)

    def load(self, vector: Vector) -> None:
        self._flat.copy_(vector)

    def train(self, round: int, budget_s: float | None, stopped: Callable[[], bool]) -> Training:
        """See `Learner`.

        Raises:
            TrainingError: the loss is not finite.
            ModelError: a buffer of the module changed in training.
        """
        if self._train is None:
            return Training(0, 0, None, 0.0)
        with GENERATOR:  # waiting for others of this process is no part of training: the clock starts behind it
            return self._train_round(self._train, round, budget_s, stopped)

    def _train_round(
        self, examples: Dataset[Any], round: int, budget_s: float | None, stopped: Callable[[], bool]
    ) -> Training:
        begun = time.perf_counter()
        self._follow_schedule(round)
        per_epoch = -(-_length(examples) // self._batch_size)
        full = self._steps if self._steps is not None else self._epochs * per_epoch
        total = torch.zeros((), dtype=self.layout.torch_dtype, device=self._device)
        steps = 0
        buffers = self._float_buffers() if self._constant_buffers is None else None
        self.model.train()
        with _seeded(random_key(self._seed, "training", self._seat, round), self._device):
            for inputs, targets in self._batches(round, full):
                total += self._step(inputs, targets)
                steps += 1
                if stopped() or (budget_s is not None and _over(budget_s, time.perf_counter() - begun, steps)):
                    break
        if buffers is not None:
            self._check_buffers(buffers)
        loss = float(total) / max(1, steps)
        if not math.isfinite(loss):
            raise TrainingError(f"the training loss became {loss} in round {round}; lower --lr, or look at the data")
        return Training(steps, full, loss, time.perf_counter() - begun)

    def evaluate(self) -> Evaluation:
        if self._test is None:
            return Evaluation()
        self.model.eval()
        outputs, targets = [], []
        with torch.inference_mode():
            for inputs, wanted in self._in_order(self._test):
                outputs.append(self.model(inputs))
                targets.append(wanted)
            output, target = torch.cat(outputs), torch.cat(targets)
            metrics = {name: float(metric(output, target)) for name, metric in self._metrics.items()}
            loss = float(self._loss_of(output, target))
            if "accuracy" not in metrics and is_classes(output, target):
                metrics["accuracy"] = float((output.argmax(1) == target).double().mean())
        accuracy = metrics.pop("accuracy", None)
        return Evaluation(loss if math.isfinite(loss) else None, accuracy, metrics)

    def state(self) -> State:
        """See `Stateful`: of optimizer and schedule, and the buffers of whole numbers. Raises ModelError."""
        return optimizer_state.take(self.model, self._optimizer, self._schedule, self._rounds_scheduled)

    def restore(self, state: State) -> None:
        """See `Stateful`. The learner is not to be used where it raises ModelError."""
        self._rounds_scheduled = optimizer_state.put(state, self.model, self._optimizer, self._schedule)

    def _adopt_parameters(self) -> None:
        views = self.layout.views(self._flat)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                views[name].copy_(parameter)
                parameter.data = views[name]

    def _step(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if self._optimizer is not None:
            self._optimizer.zero_grad()
        loss = self._loss_of(self.model(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotations there
        if self._optimizer is not None:
            self._optimizer.step()
            return loss.detach()
        with torch.no_grad():
            for parameter in self._trained:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad, alpha=-self._lr)
                    # Without an old gradient, the next backward pass hands its own over instead of adding a copy.
                    parameter.grad = None
        return loss.detach()

    def _loss_of(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return default_loss(output, target) if self._loss is None else self._loss(output, target)

    def _batches(self, round: int, count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """`count` batches, each epoch in a new order."""
        assert self._train is not None
        epoch = 0
        while count > 0:
            generator = order_generator(self._seed, self._seat, round, epoch)
            for inputs, targets in self._epoch(self._train, generator):
                yield self._placed(inputs), targets.to(self._device)
                count -= 1
                if count == 0:
                    return
            epoch += 1

    def _epoch(self, examples: Dataset[Any], generator: torch.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        size = self._batch_size
        if not isinstance(examples, Examples):
            yield from DataLoader(examples, batch_size=size, shuffle=True, generator=generator)
            return
        order = torch.randperm(len(examples), generator=generator)
        for begin in range(0, len(order), _GATHERED * size):
            inputs, targets = examples.batch(order[begin : begin + _GATHERED * size])
            yield from zip(torch.split(inputs, size), torch.split(targets, size), strict=True)

    def _in_order(self, examples: Dataset[Any]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if isinstance(examples, Examples):
            positions = torch.split(torch.arange(len(examples)), _EVALUATION_BATCH)
            pairs: Iterator[tuple[torch.Tensor, torch.Tensor]] = (examples.batch(p) for p in positions)
        else:
            # Without one of its own, a DataLoader draws from the process's generator.
            pairs = iter(DataLoader(examples, batch_size=_EVALUATION_BATCH, generator=torch.Generator()))
        for inputs, targets in pairs:
            yield self._placed(inputs), targets.to(self._device)

    def _placed(self, inputs: torch.Tensor) -> torch.Tensor:
        dtype = self.layout.torch_dtype if inputs.is_floating_point() else inputs.dtype
        return inputs.to(self._device, dtype)

    def _follow_schedule(self, round: int) -> None:
        while self._schedule is not None and self._rounds_scheduled < round:
            if self._optimizer is not None and all(parameter.grad is None for parameter in self._trained):
                self._optimizer.step()  # without gradients it changes nothing; a schedule that steps first warns
            self._schedule.step()
            self._rounds_scheduled += 1

    def _float_buffers(self) -> dict[str, torch.Tensor]:
        return {n: b.detach().clone() for n, b in self.model.named_buffers() if b.is_floating_point()}

    def _check_buffers(self, before: dict[str, torch.Tensor]) -> None:
        self._constant_buffers = before
        for name, buffer in self.model.named_buffers():
            if name in before and not torch.equal(buffer, before[name]):
                raise ModelError(
                    f"buffer {name!r} of the model changed in training; such state cannot be averaged yet: make it a "
                    "parameter, or keep it constant"
                )


def order_generator(seed: int, seat: str, round: int, epoch: int) -> torch.Generator:
    """What draws the order in which a peer takes its examples in an epoch of a round: `torch.randperm` of it."""
    return torch.Generator().manual_seed(random_key(seed, "order", seat, round, epoch))


def default_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross entropy for classes, mean squared error for numbers; a scalar."""
    if is_classes(output, target):
        return nn.functional.cross_entropy(output, target)
    return nn.functional.mse_loss(output, target.to(output.dtype).view_as(output))


def is_classes(output: torch.Tensor, target: torch.Tensor) -> bool:
    """Whether the targets are classes, and the outputs a number for each class."""
    return not target.is_floating_point() and output.ndim == target.ndim + 1


def _examples(source: Source, part: str) -> Dataset[Any]:
    if isinstance(source, tuple):
        source = Examples(*source)
    if not _length(source):
        raise DataError(f"the {part} part has no examples")
    return source


def _over(budget_s: float, spent_s: float, steps: int) -> bool:
    """Whether one more step, if it takes as long as those before, would end closer to the budget's far side."""
    return spent_s + 0.5 * spent_s / steps > budget_s


def _length(examples: Dataset[Any]) -> int:
    return len(examples)  # type: ignore[arg-type]  # torch's base class does not promise what map-style datasets have


@contextmanager
def _seeded(key: int, device: torch.device) -> Iterator[None]:
    """Seed the default generators, and put their state back at the end."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or torch.cuda.current_device()])
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(key)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def choose_device(device: str) -> str:
    """The device for a name; `auto` takes the best there is.

    Raises:
        UsageError: this machine has no such device.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device.partition(":")[0], False):
        here = ", ".join(name for name, there in available.items() if there)
        raise UsageError(f"this machine has no device {device!r}; there is {here}")
    return device
