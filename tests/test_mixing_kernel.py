from collections.abc import Sequence

import pytest
import torch

from p2pfl.graphs.builders import ring
from p2pfl.graphs.mixing import mixing_weights
from p2pfl.layout import Vector
from p2pfl.mixing import _BLOCK, is_finite, mix

THIRD = 1 / 3


def random_vectors(count: int, size: int, dtype: torch.dtype = torch.float32) -> list[Vector]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(size, generator=generator, dtype=dtype) for _ in range(count)]


def unblocked(own: Vector, own_weight: float, received: Sequence[tuple[float, Vector]]) -> Vector:
    total = own * own_weight
    for weight, vector in received:
        total = total + vector * weight
    return total


def fused(own: Vector, own_weight: float, received: Sequence[tuple[float, Vector]]) -> Vector:
    """What `add_(vector, alpha=weight)` gives where the processor multiplies and adds with one rounding."""
    total = own * own_weight
    for weight, vector in received:
        total = (total.double() + vector.double() * torch.tensor(weight).double()).float()
    return total


def test_the_weighted_sum_and_the_distance() -> None:
    own, out = torch.tensor([1.0, 2.0, 4.0]), torch.empty(3)
    received = [(0.25, torch.tensor([2.0, 2.0, 0.0])), (0.25, torch.tensor([0.0, 4.0, 4.0]))]
    distance = mix(own, 0.5, received, out)
    assert out.tolist() == [1.0, 2.5, 3.0]
    assert distance == ((1 + 0 + 16) + (1 + 4 + 0)) / 2
    assert own.tolist() == [1.0, 2.0, 4.0]
    assert received[0][1].tolist() == [2.0, 2.0, 0.0]


def test_alone_a_peer_keeps_its_model_and_has_no_distance() -> None:
    own, out = torch.tensor([1.5, -2.0]), torch.empty(2)
    assert mix(own, 1.0, [], out) is None
    assert torch.equal(out, own)


@pytest.mark.parametrize("size", [1, _BLOCK - 1, _BLOCK, _BLOCK + 1, 2 * _BLOCK + 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_change_no_bit(size: int, dtype: torch.dtype) -> None:
    own, first, second = random_vectors(3, size, dtype)
    weights = mixing_weights(ring(5), 0)
    received = [(weights[1], first), (weights[4], second)]
    out = torch.empty_like(own)
    mix(own, weights[0], received, out)
    assert torch.equal(out, unblocked(own, weights[0], received))


def test_multiply_and_add_are_not_fused() -> None:
    own, first, second = random_vectors(3, 10_000)
    received = [(THIRD, first), (THIRD, second)]
    out = torch.empty_like(own)
    mix(own, THIRD, received, out)
    # Otherwise the bit comparisons of this suite would show nothing.
    assert not torch.equal(out, fused(own, THIRD, received))
    assert torch.allclose(out, fused(own, THIRD, received), atol=1e-6)


def test_the_sum_is_taken_in_the_order_given() -> None:
    own, first, second = random_vectors(3, 10_000)
    out, other = torch.empty_like(own), torch.empty_like(own)
    mix(own, THIRD, [(THIRD, first), (THIRD, second)], out)
    mix(own, THIRD, [(THIRD, second), (THIRD, first)], other)
    assert not torch.equal(out, other)


def test_the_result_may_overwrite_a_received_vector() -> None:
    own, first, second = random_vectors(3, _BLOCK + 9)
    received = [(THIRD, first), (THIRD, second)]
    expected = unblocked(own, THIRD, received)
    for weight, vector in received:
        assert weight == THIRD
        again = [(THIRD, first.clone()), (THIRD, second.clone())]
        target = again[0][1] if vector is first else again[1][1]
        mix(own, THIRD, again, target)
        assert torch.equal(target, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_as_python_floats_keep_the_dtype(dtype: torch.dtype) -> None:
    own, other = random_vectors(2, 5, dtype)
    out = torch.empty_like(own)
    weights = mixing_weights(ring(4), 1)
    assert all(type(weight) is float for weight in weights.values())
    mix(own, weights[1], [(weights[0], other)], out)
    assert out.dtype == dtype
    assert unblocked(own, weights[1], [(weights[0], other)]).dtype == dtype


def test_equal_models_are_left_as_they_are() -> None:
    own = torch.tensor([3.0, -1.0])
    out = torch.empty(2)
    assert mix(own, 0.5, [(0.25, own.clone()), (0.25, own.clone())], out) == 0.0
    assert torch.equal(out, own)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 500, 999])
def test_one_number_that_is_not_finite_is_found(value: float, place: int) -> None:
    vector = torch.ones(1000)
    vector[place] = value
    assert not is_finite(vector)


def test_large_finite_numbers_are_finite_though_their_dot_product_is_not() -> None:
    vector = torch.full((10,), 1e30)
    assert torch.dot(vector, vector).isinf()
    assert is_finite(vector)
    assert is_finite(-vector)
    vector[3] = float("nan")
    assert not is_finite(vector)
    assert is_finite(torch.zeros(4))
    assert is_finite(torch.empty(0))
