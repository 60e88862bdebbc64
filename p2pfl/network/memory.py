"""Peers of one process talk through queues: the same peer code, without sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from p2pfl.errors import FetchError, LinkClosed, Unreachable
from p2pfl.network.transport import Link, Service


class _End:
    """One end of a connection: what the other sends waits in `inbox`, None means that nothing follows."""

    def __init__(self, remote: str) -> None:
        self.remote = remote
        self.proven = ""
        self.inbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.other: _End | None = None  # None once closed
        self.why = ""

    async def send(self, data: bytes) -> None:
        if self.other is None:
            raise LinkClosed(self.why)
        self.other.inbox.put_nowait(data)

    async def receive(self) -> bytes:
        data = await self.inbox.get()
        if data is None:
            self.inbox.put_nowait(None)
            raise LinkClosed(self.why)
        return data

    async def close(self, why: str) -> None:
        if self.other is not None:
            self.other._ended(f"closed by the other end: {why}")
            self._ended(f"closed here: {why}")

    def _ended(self, why: str) -> None:
        self.other, self.why = None, why
        self.inbox.put_nowait(None)


class MemoryNetwork:
    """Where the memory transports of one event loop find each other."""

    def __init__(self) -> None:
        self.serving: dict[str, MemoryTransport] = {}
        self._made = 0

    def transport(self) -> "MemoryTransport":
        """A new transport with an address of its own."""
        self._made += 1
        return MemoryTransport(self, f"memory:{self._made}")


class MemoryTransport:
    """See `Transport`."""

    def __init__(self, network: MemoryNetwork, address: str) -> None:
        self._network = network
        self._address = address
        self._service: Service | None = None
        self._ends: set[_End] = set()  # open here, whoever opened them
        self._accepted: set[asyncio.Task[None]] = set()

    @property
    def addresses(self) -> tuple[str, ...]:
        return (self._address,)

    @asynccontextmanager
    async def serving(self, service: Service) -> AsyncIterator[None]:
        self._service = service
        self._network.serving[self._address] = self
        try:
            yield
        finally:
            del self._network.serving[self._address]
            self._service = None
            for end in tuple(self._ends):
                await end.close("left")
            self._ends.clear()
            for task in self._accepted:
                task.cancel()
            await asyncio.gather(*self._accepted, return_exceptions=True)

    async def connect(self, address: str) -> Link:
        if self._service is None:
            raise Unreachable("this peer has left the network")
        other = self._network.serving.get(address)
        if other is None:
            raise Unreachable(f"nobody is at {address}", refused=True)
        near, far = _End(address), _End(self._address)
        near.other, far.other = far, near
        self._ends = {end for end in self._ends if end.other is not None} | {near}
        other._accept(far)
        return near

    async def fetch(self, address: str, token: str, peer: str, into: memoryview, owner: str = "") -> None:
        if self._service is None:
            raise FetchError("unreachable", "this peer has left the network")
        other = self._network.serving.get(address)
        if other is None or other._service is None:
            raise FetchError("unreachable", f"nobody is at {address}")
        service = other._service
        body = service.body(token, peer)
        if body is None:
            raise FetchError("gone", "the offer was withdrawn")
        if body.length != len(into):
            raise FetchError("wrong size", f"{body.length} bytes instead of {len(into)}")
        position = 0
        for piece in body.pieces():
            into[position : position + len(piece)] = piece
            position += len(piece)
            await asyncio.sleep(0)
            if self._service is None or other._service is not service:
                raise FetchError("broken off", f"after {position} of {len(into)} bytes")
        service.sent(token, peer, body.length)

    def _accept(self, end: _End) -> None:
        self._ends.add(end)
        task = asyncio.ensure_future(self._live(end))
        self._accepted.add(task)
        task.add_done_callback(self._accepted.discard)

    async def _live(self, end: _End) -> None:
        try:
            if self._service is not None:
                await self._service.accept(end)
        finally:
            await end.close("left")
            self._ends.discard(end)
