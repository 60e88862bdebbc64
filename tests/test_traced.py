"""A traced step is the step of `torch.func`, with products added to the parameters instead of gradients."""

from collections.abc import Callable

import pytest
import torch
from test_matrix_engine import Tied, gap, mlp, problem, reference, run
from torch import nn

from p2pfl.simulation.traced import traced
from p2pfl.simulation.vectorized import VectorizedStepper


def conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))


@pytest.mark.parametrize("model", [mlp, Tied, conv])
def test_long_runs_are_traced_and_agree_with_a_learner_a_peer(model: Callable[[], nn.Module]) -> None:
    given = problem(model, epochs=9, rounds=6)  # blocks of four and of two peers, with batches of four
    stepper = VectorizedStepper(given, torch.float64, torch.device("cpu"))
    start = torch.cat([parameter.detach().reshape(-1) for parameter in given.build().parameters()])
    stepper.train(0, [0, 1, 2, 3], [start.clone() for _ in range(4)])
    assert (4, 4) in stepper._traces
    assert all(trace is not None for trace in stepper._traces.values())
    assert gap(run(given, "vectorized")[0].vectors, reference(given)[0]) < 1e-10


def test_traced_runs_have_the_same_bits_in_any_number_of_processes() -> None:
    one, two = (run(problem(Tied, epochs=3, dtype="float32", workers=workers))[0].vectors for workers in (1, 2))
    assert torch.equal(one, two)


def test_short_runs_are_not_worth_a_trace() -> None:
    stepper = VectorizedStepper(problem(rounds=2), torch.float64, torch.device("cpu"))
    assert stepper._shapes == set()


def stacks(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def test_dense_weights_are_changed_by_products_and_the_rest_by_gradients() -> None:
    weight, bias, x, y = stacks((2, 3, 5), (2, 3), (2, 4, 5), (2, 4, 3))

    def gradients(w: torch.Tensor, b: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        off = torch.baddbmm(b.unsqueeze(1), x, w.transpose(1, 2)) - y
        return torch.bmm(off.transpose(1, 2), x), off.sum(dim=1), off.square().sum(dim=(1, 2)) / 2

    step = traced(gradients, [weight, bias], [x, y])
    assert step._products == (False, None)
    by_weight, by_bias, losses = gradients(weight, bias, x, y)
    wanted = weight - 0.1 * by_weight, bias - 0.1 * by_bias
    found = step.step([weight, bias], [x, y], 0.1)
    torch.testing.assert_close(found, losses)
    torch.testing.assert_close((weight, bias), wanted)


def test_a_product_that_stands_turned_is_found() -> None:
    weight, x = stacks((2, 5, 3), (2, 4, 5))

    def gradients(w: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        off = torch.bmm(x, w)
        return torch.bmm(off.transpose(1, 2), x).transpose(1, 2), off.square().sum(dim=(1, 2)) / 2

    step = traced(gradients, [weight], [x])
    assert step._products == (True,)
    wanted = weight - 0.1 * gradients(weight, x)[0]
    step.step([weight], [x], 0.1)
    torch.testing.assert_close(weight, wanted)


def test_a_factor_that_is_a_parameter_itself_is_not_used_after_it_changed() -> None:
    left, right, x = stacks((2, 3, 4), (2, 4, 3), (2, 3, 3))

    def gradients(a: torch.Tensor, b: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        off = torch.bmm(a, b) - x
        return torch.bmm(off, b.transpose(1, 2)), torch.bmm(a.transpose(1, 2), off), off.square().sum(dim=(1, 2)) / 2

    step = traced(gradients, [left, right], [x])
    assert step._products == (None, None)
    by_left, by_right, _ = gradients(left, right, x)
    wanted = left - 0.1 * by_left, right - 0.1 * by_right
    step.step([left, right], [x], 0.1)
    torch.testing.assert_close((left, right), wanted)
