"""What a transport is: control messages between two ends, and bodies that are fetched by a token.

Bytes and addresses only: a transport knows neither messages nor models.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Body:
    """Bytes to serve, in pieces made as they are sent; what they view stays alive until the last is out."""

    length: int
    pieces: Callable[[], Iterator[memoryview]]


def body_of(*blocks: memoryview) -> Body:
    """A body of whole blocks, one behind the other, without a copy."""

    def pieces() -> Iterator[memoryview]:
        for block in blocks:
            for begin in range(0, block.nbytes, PIECE_BYTES):
                yield block[begin : begin + PIECE_BYTES]

    return Body(sum(block.nbytes for block in blocks), pieces)


class Link(Protocol):
    """One control connection."""

    @property
    def remote(self) -> str:
        """The other end's address, for logs and as a last resort for fetching; empty where there is none."""
        ...

    async def send(self, data: bytes) -> None:
        """Send one message. Raises LinkClosed."""
        ...

    async def receive(self) -> bytes:
        """The next message. Raises LinkClosed, with a text that says why."""
        ...

    async def close(self, why: str) -> None:
        """Close in good order: what was sent before still arrives."""
        ...


@dataclass(frozen=True)
class Service:
    """What a transport calls when others come."""

    accept: Callable[[Link], Awaitable[None]]  # lives as long as the connection
    body: Callable[[str, str], Body | None]  # by token and the peer that says it asks; None: no such body
    sent: Callable[[str, str, int], None]  # token, peer, bytes: a body went out whole
    status: Callable[[], bytes]  # JSON for whoever lists the network


class Transport(Protocol):
    """Reaches others, and is reached by them while serving."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """host:port at which others reach this end, while serving."""
        ...

    def serving(self, service: Service) -> AbstractAsyncContextManager[None]:
        """Serve inside the context; leaving it closes every connection."""
        ...

    async def connect(self, address: str) -> Link:
        """Open a control connection. Raises Unreachable."""
        ...

    async def fetch(self, address: str, token: str, peer: str, into: memoryview) -> None:
        """Fill `into` with the body, whose length must be that of `into`; `peer` names who asks. Raises FetchError."""
        ...
