"""What a transport is: control messages between two ends, and bodies that are fetched by a token.

Bytes and addresses only: a transport knows neither messages nor models.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from p2pfl.types import PeerId

PIECE_BYTES = 1 << 20
BANNED = 403  # the status of every answer to who has proved the id of a banned peer


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

    @property
    def proven(self) -> PeerId:
        """Whose key the other end has proved to hold; empty where the link is not encrypted."""
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
class Turned:
    """Somebody, or something, that a transport has turned away; `reason` is one of few fixed phrases."""

    what: str  # connection or body
    reason: str
    remote: str = ""
    peer: PeerId = ""  # where it was proven
    detail: str = ""


def pass_over(_: Turned) -> None:
    """For who does not count."""


@dataclass(frozen=True)
class Service:
    """What a transport calls when others come."""

    accept: Callable[[Link], Awaitable[None]]  # lives as long as the connection
    body: Callable[[str, str], Body | None]  # by token and the peer that asks, proven unless in the clear; or None
    sent: Callable[[str, str, int], None]  # token, peer, bytes: a body went out whole
    status: Callable[[], bytes]  # JSON for whoever lists the network
    turned: Callable[[Turned], None] = pass_over


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

    async def fetch(self, address: str, token: str, peer: str, into: memoryview, owner: PeerId = "") -> None:
        """Fill `into` with the body, whose length must be that of `into`.

        Args:
            peer: who asks.
            owner: whose body it is: who answers must prove to be that peer, before a byte of the body is taken in.

        Raises:
            FetchError: it could not be had; `wrong peer` where somebody else answered.
        """
        ...
