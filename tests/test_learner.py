"""The PyTorch learner: any module, data, loss, optimizer and metrics, with the same draws wherever it runs."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from p2pfl.errors import DataError, ModelError, TrainingError
from p2pfl.learning.learner import TorchLearner
from p2pfl.state import State, Stateful

GENERATOR = torch.Generator().manual_seed(5)
INPUTS = torch.randn(50, 4, generator=GENERATOR)
CLASSES = torch.randint(0, 3, (50,), generator=GENERATOR)
NUMBERS = torch.randn(50, 2, generator=GENERATOR)


def never() -> bool:
    return False


def linear(outputs: int = 3) -> nn.Linear:
    """The same weights every time, and no draw from the process's generator."""
    layer = nn.utils.skip_init(nn.Linear, 4, outputs)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-1, 1, 4 * outputs).view(outputs, 4))
        layer.bias.zero_()
    return layer


def vector_of(learner: TorchLearner) -> torch.Tensor:
    out = torch.empty(learner.layout.size, dtype=learner.layout.torch_dtype)
    learner.parameters(out)
    return out


def trained(model: nn.Module, rounds: int = 2, **options: Any) -> torch.Tensor:
    learner = TorchLearner(model, (INPUTS, CLASSES), **options)
    for round in range(rounds):
        learner.train(round, None, never)
    return vector_of(learner)


class Pairs(Dataset[tuple[torch.Tensor, int]]):
    """A map-style dataset as anybody writes it; draws from the process's generator, as augmentations do."""

    def __init__(self, noise: float = 0.0) -> None:
        self.noise = noise

    def __len__(self) -> int:
        return len(INPUTS)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return INPUTS[index] + self.noise * torch.randn(4), int(CLASSES[index])


# Training


@pytest.mark.parametrize("options", [{"epochs": 2}, {"steps": 7}, {"batch_size": 50}, {"batch_size": 64, "steps": 3}])
def test_plain_sgd_is_that_of_torch_bit_for_bit(options: dict[str, Any]) -> None:
    own = trained(linear(), rounds=3, lr=0.3, **options)
    theirs = trained(linear(), rounds=3, optimizer=lambda p: torch.optim.SGD(p, lr=0.3), **options)
    assert not torch.equal(own, vector_of(TorchLearner(linear(), None)))
    assert torch.equal(own, theirs)


def test_a_step_is_the_gradient_of_cross_entropy() -> None:
    model, reference = linear(), linear()
    TorchLearner(model, (INPUTS, CLASSES), batch_size=50, lr=0.5).train(0, None, never)
    nn.functional.cross_entropy(reference(INPUTS), CLASSES).backward()
    assert reference.weight.grad is not None
    torch.testing.assert_close(model.weight, reference.weight - 0.5 * reference.weight.grad)


def test_any_optimizer_keeps_its_state_from_round_to_round() -> None:
    options: dict[str, Any] = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)}
    learner = TorchLearner(linear(), (INPUTS, CLASSES), batch_size=50, steps=1, **options)
    learner.train(0, None, never)
    before = vector_of(learner)
    learner.train(1, None, never)
    plain = TorchLearner(linear(), (INPUTS, CLASSES), batch_size=50, steps=1)
    plain.load(before)
    plain.train(1, None, never)
    assert not torch.equal(vector_of(learner), vector_of(plain))  # the momentum of round 0


OPTIMIZERS: dict[str, tuple[Callable[..., Any], Callable[..., Any] | None]] = {
    "sgd": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), None),
    "adam": (lambda p: torch.optim.Adam(p, lr=0.01), lambda o: torch.optim.lr_scheduler.StepLR(o, 2)),
    "adamw": (
        lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
        lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [1, 4], 0.5),
    ),
    "groups": (
        lambda p: torch.optim.RMSprop([{"params": p[:1], "lr": 0.1}, {"params": p[1:]}], lr=0.01, momentum=0.5),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda round: 0.9**round),
    ),
    "adagrad": (lambda p: torch.optim.Adagrad(p), lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 4)),
    "chained": (
        lambda p: torch.optim.NAdam(p, lr=0.01),
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o,
            [torch.optim.lr_scheduler.ConstantLR(o), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)],
            [2],
        ),
    ),
}


def dropping(optimizer: str = "adam") -> TorchLearner:
    model = nn.Sequential(linear(6), nn.Dropout(0.5), nn.ReLU(), nn.utils.skip_init(nn.Linear, 6, 3))
    with torch.no_grad():
        model[3].weight.copy_(torch.linspace(-1, 1, 18).view(3, 6))
        model[3].bias.zero_()
    make, schedule = OPTIMIZERS[optimizer]
    return TorchLearner(model, (INPUTS, CLASSES), optimizer=make, schedule=schedule, seat="3")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_goes_on_from_a_state_goes_on_bit_for_bit(optimizer: str) -> None:
    whole, first, second = (dropping(optimizer) for _ in range(3))
    for round in range(6):
        whole.train(round, None, never)
    for round in range(3):
        first.train(round, None, never)
    state = first.state()
    first.train(3, None, never)  # which changes nothing in the copy
    text = msgspec.json.decode(msgspec.json.encode(state.facts))
    for round in range(3):
        if round == 0:
            second.load(vector_after(optimizer, 3))
            second.restore(State(state.tensors, text))
        second.train(3 + round, None, never)
    assert torch.equal(vector_of(second), vector_of(whole))


def vector_after(optimizer: str, rounds: int) -> torch.Tensor:
    learner = dropping(optimizer)
    for round in range(rounds):
        learner.train(round, None, never)
    return vector_of(learner)


def test_without_its_state_adam_goes_elsewhere() -> None:
    whole, forgetful = dropping(), dropping()
    for round in range(4):
        whole.train(round, None, never)
    forgetful.load(vector_after("adam", 3))
    forgetful.train(3, None, never)
    assert not torch.equal(vector_of(whole), vector_of(forgetful))


def test_plain_sgd_has_a_state_of_nothing() -> None:
    learner = TorchLearner(linear(), (INPUTS, CLASSES))
    assert isinstance(learner, Stateful)
    assert learner.state() == State()
    learner.restore(State())


def test_a_counter_goes_on() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = linear()
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.layer(inputs)

    first, second = (TorchLearner(Counting(), (INPUTS, CLASSES), steps=3) for _ in range(2))
    first.train(0, None, never)
    second.restore(first.state())
    assert second.model.calls == 3


def momentum(of: nn.Module) -> TorchLearner:
    learner = TorchLearner(of, (INPUTS, CLASSES), optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
    learner.train(0, None, never)
    return learner


@pytest.mark.parametrize(
    ("learner", "says"),
    [
        (lambda: TorchLearner(linear(), None), "optimizer was SGD and is none: use the one with which the run began"),
        (lambda: TorchLearner(linear(), None, optimizer=torch.optim.Adam), "optimizer was SGD and is Adam"),
        (lambda: momentum(nn.Sequential(linear(), nn.GroupNorm(1, 3))), "does not fit the optimizer"),
        (lambda: momentum(nn.Linear(4, 5)), r"momentum_buffer is \[3, 4\] where the parameter is \[5, 4\]"),
    ],
)
def test_a_state_of_something_else_is_refused_with_the_mend(learner: Callable[[], TorchLearner], says: str) -> None:
    state = momentum(linear()).state()
    with pytest.raises(ModelError, match=says):
        learner().restore(state)


def test_an_optimizer_that_keeps_a_function_is_refused_by_its_place() -> None:
    def odd(parameters: Any) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        optimizer.param_groups[0]["hook"] = len
        return optimizer

    learner = TorchLearner(linear(), (INPUTS, CLASSES), optimizer=odd)
    with pytest.raises(ModelError, match=r"optimizer/1/param_groups/0/hook is a builtin_function_or_method"):
        learner.state()


def test_a_schedule_advances_once_a_round_and_catches_up_without_a_warning() -> None:
    optimizers = []

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        optimizers.append(torch.optim.SGD(parameters, lr=1.0))
        return optimizers[-1]

    def schedule(of: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.ExponentialLR(of, 0.5)

    steady, late = (TorchLearner(linear(), (INPUTS, CLASSES), optimizer=optimizer, schedule=schedule) for _ in range(2))
    for round in range(4):
        steady.train(round, None, never)
    late.train(3, None, never)
    assert [optimizer.param_groups[0]["lr"] for optimizer in optimizers] == [0.125, 0.125]
    plain = TorchLearner(linear(), (INPUTS, CLASSES), lr=0.125)
    plain.train(3, None, never)
    assert torch.equal(vector_of(late), vector_of(plain))  # catching up moved no weight


def test_any_loss_and_metric() -> None:
    seen = []

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen.append(output.shape)
        return (output.sum(1) - target).abs().mean()

    metrics = {"largest": lambda output, target: output.max(), "count": lambda output, target: float(len(target))}
    examples = (INPUTS, CLASSES)
    learner = TorchLearner(linear(), examples, examples, loss=loss, metrics=metrics, batch_size=50, lr=0.01)
    first = learner.evaluate()
    training = learner.train(0, None, never)
    assert training.loss == pytest.approx(first.loss)
    second = learner.evaluate()
    assert seen == [(50, 3)] * 3
    assert first.loss is not None
    assert second.loss is not None
    assert second.loss < first.loss
    assert dict(second.metrics)["count"] == 50.0
    assert dict(second.metrics)["largest"] == pytest.approx(learner.model(INPUTS).max().item())


def test_an_accuracy_of_the_users_own_replaces_the_built_in_one() -> None:
    learner = TorchLearner(linear(), None, (INPUTS, CLASSES), metrics={"accuracy": lambda output, target: 0.25})
    assert (learner.evaluate().accuracy, dict(learner.evaluate().metrics)) == (0.25, {})


def test_regression_learns_by_squared_error() -> None:
    examples = (INPUTS, NUMBERS)
    learner = TorchLearner(linear(2), examples, examples, epochs=30, lr=0.05)
    before = learner.evaluate()
    assert before.loss == pytest.approx(nn.functional.mse_loss(linear(2)(INPUTS), NUMBERS).item())
    learner.train(0, None, never)
    after = learner.evaluate()
    columns = torch.cat([INPUTS, torch.ones(50, 1)], 1)
    best = columns @ torch.linalg.lstsq(columns, NUMBERS).solution
    assert before.accuracy is None
    assert after.accuracy is None
    assert after.loss == pytest.approx(nn.functional.mse_loss(best, NUMBERS).item(), rel=0.05)


# Draws


def test_equal_keys_give_equal_bits_and_another_seat_seed_or_round_others() -> None:
    def one_round(round: int = 0, **keys: Any) -> torch.Tensor:
        learner = TorchLearner(linear(), (INPUTS, CLASSES), batch_size=8, **keys)
        learner.train(round, None, never)
        return vector_of(learner)

    first = one_round(seed=1, seat="2")
    assert torch.equal(first, one_round(seed=1, seat="2"))
    for other in (one_round(seed=1, seat="3"), one_round(seed=2, seat="2"), one_round(1, seed=1, seat="2")):
        assert not torch.equal(first, other)


@pytest.mark.parametrize("source", [(INPUTS, CLASSES), Pairs(0.1)], ids=["tensors", "dataset"])
def test_the_process_keeps_its_own_draws(source: Any) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model = nn.Sequential(linear(), nn.Dropout(0.5))
    torch.set_rng_state(before)
    learner = TorchLearner(model, source, (INPUTS, CLASSES))
    learner.train(0, None, never)
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluating_a_dataset_draws_nothing_from_the_process() -> None:
    before = torch.get_rng_state()
    TorchLearner(linear(), None, TensorDataset(INPUTS, CLASSES)).evaluate()
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_and_noise_repeat_whatever_the_process_drew_before() -> None:
    def run(draws: int) -> torch.Tensor:
        torch.randn(draws)
        learner = TorchLearner(nn.Sequential(linear(8), nn.Dropout(0.5), nn.ReLU()), Pairs(0.1), seed=4)
        learner.train(0, None, never)
        return vector_of(learner)

    assert torch.equal(run(1), run(1000))


def test_a_failed_round_puts_the_generator_back() -> None:
    before = torch.get_rng_state()
    with pytest.raises(TrainingError):
        TorchLearner(linear(), (INPUTS, CLASSES), lr=1e38, epochs=3).train(0, None, never)
    assert torch.equal(torch.get_rng_state(), before)


# Time


def test_a_budget_of_nothing_still_trains_one_step() -> None:
    training = TorchLearner(linear(), (INPUTS, CLASSES), batch_size=5, epochs=3).train(0, 0.0, never)
    assert (training.steps, training.full_steps) == (1, 30)


def test_a_large_budget_trains_all_steps() -> None:
    training = TorchLearner(linear(), (INPUTS, CLASSES), batch_size=32, epochs=3).train(0, 1e9, never)
    assert (training.steps, training.full_steps) == (6, 6)


def test_stopped_ends_after_the_step_under_way() -> None:
    answers = iter([False, False, True])
    training = TorchLearner(linear(), (INPUTS, CLASSES), steps=100).train(0, None, lambda: next(answers))
    assert (training.steps, training.full_steps) == (3, 100)


def test_who_has_no_training_part_only_mixes() -> None:
    learner = TorchLearner(linear(), None)
    before = vector_of(learner)
    training = learner.train(0, None, never)
    assert (training.steps, training.loss) == (0, None)
    assert torch.equal(vector_of(learner), before)


# What cannot be


def test_a_loss_that_is_not_finite_is_told_with_its_mend() -> None:
    learner = TorchLearner(linear(), (INPUTS, CLASSES), lr=1e38, epochs=3)
    with pytest.raises(TrainingError, match=r"became (nan|inf) in round 4; lower --lr"):
        learner.train(4, None, never)


class Counting(nn.Module):
    """Has a buffer of floats that changes in training, as a running mean does."""

    def __init__(self, changes: bool) -> None:
        super().__init__()
        self.layer = linear()
        self.changes = changes
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen += 1
            if self.changes:
                self.mean += inputs.mean(0)
        output: torch.Tensor = self.layer(inputs)
        return output


def test_a_float_buffer_that_changes_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="buffer 'mean' of the model changed in training"):
        TorchLearner(Counting(True), (INPUTS, CLASSES)).train(0, None, never)


def test_a_constant_buffer_and_a_counter_are_fine() -> None:
    model = Counting(False)
    TorchLearner(model, (INPUTS, CLASSES), steps=2).train(0, None, never)
    assert int(model.get_buffer("seen")) == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 0}, "at least 1"),
        ({"epochs": 0}, "at least 1"),
        ({"steps": 0}, "at least 1"),
        ({"lr": 0.0}, "above 0"),
        ({"lr": float("nan")}, "above 0"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        TorchLearner(linear(), (INPUTS, CLASSES), **options)


def test_a_schedule_without_an_optimizer_is_refused() -> None:
    with pytest.raises(ModelError, match="give optimizer="):
        TorchLearner(linear(), (INPUTS, CLASSES), schedule=lambda _: pytest.fail("not called"))


def test_a_part_without_examples_is_refused() -> None:
    nothing = (INPUTS[:0], CLASSES[:0])
    with pytest.raises(DataError, match="the training part has no examples"):
        TorchLearner(linear(), nothing)
    with pytest.raises(DataError, match="the test part has no examples"):
        TorchLearner(linear(), None, nothing)


# Modules


@pytest.mark.parametrize("optimizer", [None, lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1)])
def test_frozen_parameters_stay(optimizer: Callable[..., torch.optim.Optimizer] | None) -> None:
    model = nn.Sequential(linear(4), linear(3))
    model[0].requires_grad_(False)
    frozen, free = model[0].weight.clone(), model[1].weight.clone()
    TorchLearner(model, (INPUTS, CLASSES), optimizer=optimizer).train(0, None, never)
    assert torch.equal(model[0].weight, frozen)
    assert not torch.equal(model[1].weight, free)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(4, 4, bias=False)
        self.decode = nn.Linear(4, 4, bias=False)
        self.decode.weight = self.encode.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.decode(torch.relu(self.encode(inputs)))
        return output


def test_tied_weights_lie_in_the_vector_once_and_stay_tied() -> None:
    model = Tied()
    learner = TorchLearner(model, (INPUTS, CLASSES))
    assert learner.layout.size == 16
    learner.train(0, None, never)
    learner.load(torch.arange(16.0))
    assert model.decode.weight is model.encode.weight
    assert torch.equal(model.decode.weight, torch.arange(16.0).view(4, 4))


def test_double_precision_stays_double() -> None:
    learner = TorchLearner(linear().double(), (INPUTS, CLASSES), (INPUTS, CLASSES))
    learner.train(0, None, never)
    assert learner.layout.dtype == "float64"
    assert vector_of(learner).dtype == torch.float64
    assert learner.evaluate().accuracy is not None


def test_load_and_parameters_are_copies() -> None:
    model = linear()
    learner = TorchLearner(model, None)
    vector = torch.arange(15.0)
    learner.load(vector)
    vector.zero_()
    assert model.weight[0, 1] == 1.0
    out = vector_of(learner)
    out.zero_()
    assert torch.equal(vector_of(learner), torch.arange(15.0))
    assert model.weight.data_ptr() == learner._flat.data_ptr()


# Data


def test_a_dataset_and_its_tensors_evaluate_alike() -> None:
    by_dataset, by_tensors = TorchLearner(linear(), None, Pairs()), TorchLearner(linear(), None, (INPUTS, CLASSES))
    assert by_dataset.evaluate() == by_tensors.evaluate()


def test_a_dataset_trains_each_example_once_an_epoch() -> None:
    learner = TorchLearner(linear(), Pairs(), (INPUTS, CLASSES), batch_size=8, epochs=20)
    before = learner.evaluate()
    training = learner.train(0, None, never)
    after = learner.evaluate()
    assert training.steps == 20 * 7
    assert before.loss is not None
    assert after.loss is not None
    assert after.loss < before.loss
    assert learner.data == ""


def test_examples_of_the_same_bits_have_the_same_fingerprint() -> None:
    learners = [TorchLearner(linear(), (INPUTS.clone(), CLASSES)), TorchLearner(linear(), (INPUTS, CLASSES))]
    other = TorchLearner(linear(), (INPUTS + 1, CLASSES))
    assert learners[0].data == learners[1].data != other.data


def test_evaluation_in_batches_equals_the_whole() -> None:
    generator = torch.Generator().manual_seed(1)
    inputs, classes = torch.randn(2501, 4, generator=generator), torch.randint(0, 3, (2501,), generator=generator)
    model = linear()
    result = TorchLearner(model, None, (inputs, classes)).evaluate()
    with torch.inference_mode():
        output = model(inputs)
    assert result.loss == pytest.approx(nn.functional.cross_entropy(output, classes).item(), rel=1e-6)
    assert result.accuracy == (output.argmax(1) == classes).double().mean().item()


def test_evaluation_switches_dropout_off_and_changes_nothing() -> None:
    learner = TorchLearner(nn.Sequential(linear(), nn.Dropout(0.9)), None, (INPUTS, CLASSES))
    before = vector_of(learner)
    assert learner.evaluate() == learner.evaluate()
    assert torch.equal(vector_of(learner), before)


def test_without_a_test_part_nothing_is_measured() -> None:
    result = TorchLearner(linear(), (INPUTS, CLASSES)).evaluate()
    assert (result.loss, result.accuracy, dict(result.metrics)) == (None, None, {})


def test_plain_sgd_does_not_import_the_compiler() -> None:
    program = """
import sys, torch
from torch import nn
from p2pfl.learning.learner import TorchLearner
from p2pfl.state import State, Stateful
examples = (torch.zeros(8, 2), torch.zeros(8, dtype=torch.int64))
learner = TorchLearner(nn.Linear(2, 2), examples, examples)
learner.train(0, None, lambda: False)
learner.evaluate()
print("torch._dynamo" in sys.modules)
torch.optim.SGD(learner.model.parameters(), lr=0.1)
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("False\nTrue\n", "")
