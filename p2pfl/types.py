"""The few aliases that many modules share; importing them costs nothing."""

from typing import TypeAlias

PeerId: TypeAlias = str  # 52 base32 characters, the hash of a public key; identity only, never an order
Seat: TypeAlias = str  # unique in the network: an index ("0", "1", …) or a name; orders members
Setting: TypeAlias = str | int | float | bool  # one value of a recipe


def seat_order(seat: Seat) -> tuple[int, int, str]:
    """Sort key of seats: indices by value, then names by the alphabet."""
    return (0, int(seat), "") if is_index(seat) else (1, 0, seat)


def is_index(seat: Seat) -> bool:
    """Whether the seat is an index, and not a name."""
    return seat.isascii() and seat.isdigit()
