"""The one mixing kernel: live peers and simulators both call it, so they cannot differ in a bit."""

import math
from collections.abc import Sequence

import torch

from p2pfl.layout import Vector

_BLOCK = 1 << 16  # elements; two blocks and a scratch stay in a core's second-level cache


def mix(own: Vector, own_weight: float, received: Sequence[tuple[float, Vector]], out: Vector) -> float | None:
    """Write `own_weight·own + Σ weight·vector` to `out`: multiply, then add; self first, then in the order given.

    Multiply and add stay two operations: `add_(x, alpha=w)` fuses them and rounds differently in a quarter of the
    elements. Working by blocks changes no bit, since every operation is elementwise.

    Args:
        own: this peer's vector.
        own_weight: a Python float, like all weights; a numpy float64 would change the type of the sum.
        received: weight and vector of each neighbor, by seat.
        out: same shape and dtype; may be one of the received vectors, which is overwritten then.

    Returns:
        Mean squared distance between `own` and the received vectors, None where there are none.
    """
    scratch = torch.empty((2, min(_BLOCK, own.numel())), dtype=own.dtype)
    squared = 0.0
    for begin in range(0, own.numel(), _BLOCK):
        end = min(begin + _BLOCK, own.numel())
        mine, target, product = own[begin:end], scratch[0, : end - begin], scratch[1, : end - begin]
        torch.mul(mine, own_weight, out=target)
        for weight, vector in received:
            theirs = vector[begin:end]
            torch.sub(mine, theirs, out=product)
            squared += float(torch.dot(product, product))
            torch.mul(theirs, weight, out=product)
            target.add_(product)
        out[begin:end] = target
    return squared / len(received) if received else None


def is_finite(vector: Vector) -> bool:
    """Whether no element is NaN or infinite."""
    return measured(vector)[0]


def measured(vector: Vector) -> tuple[bool, float]:
    """Whether no element is NaN or infinite, and the Euclidean norm.

    The dot product with itself is several times cheaper than looking at each element, but overflows for float32
    elements above 1e19 that are finite: only then is every element looked at, and the norm taken in float64.
    """
    squared = float(torch.dot(vector, vector))
    if math.isfinite(squared):
        return True, math.sqrt(squared)
    if not torch.isfinite(vector).all():
        return False, math.nan
    blocks = (vector[begin : begin + _BLOCK].double() for begin in range(0, vector.numel(), _BLOCK))
    return True, math.hypot(*(float(torch.linalg.vector_norm(block)) for block in blocks))
