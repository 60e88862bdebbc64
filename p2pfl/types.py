"""The few aliases that many modules share."""

from collections.abc import Mapping
from typing import TypeAlias

import torch

PeerId: TypeAlias = str  # unique in the world: 26 base32 characters; identity only, never an order
Seat: TypeAlias = str  # unique in the network: an index ("0", "1", …) or a name; orders members
Vector: TypeAlias = torch.Tensor  # one-dimensional, contiguous, on the CPU; never changed once handed on
Weights: TypeAlias = Mapping[int, float]  # position in the view -> mixing weight, Python floats


def seat_order(seat: Seat) -> tuple[int, int, str]:
    """Sort key of seats: indices by value, then names by the alphabet."""
    return (0, int(seat), "") if seat.isascii() and seat.isdigit() else (1, 0, seat)
