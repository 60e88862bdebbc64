"""Peers of one process talk through queues: the same peer code, without sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from p2pfl.errors import FetchError, LinkClosed, Unreachable
from p2pfl.network.transport import Link, Service


class _End:
    """One end of a connection: what the other sends waits in `inbox`, None means closed."""

    def __init__(self, remote: str) -> None:
        self.remote = remote
        self.inbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.other: _End | None = None

    async def send(self, data: bytes) -> None:
        if self.other is None:
            raise LinkClosed("closed")
        self.other.inbox.put_nowait(data)

    async def receive(self) -> bytes:
        data = await self.inbox.get()
        if data is None:
            self.inbox.put_nowait(None)
            raise LinkClosed("closed by the other end")
        return data

    async def close(self, why: str) -> None:
        if self.other is not None:
            self.other.inbox.put_nowait(None)
            self.other.other = None
            self.other = None
            self.inbox.put_nowait(None)


class MemoryNetwork:
    """Where the memory transports of one event loop find each other."""

    def __init__(self) -> None:
        self.services: dict[str, Service] = {}
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
        self._accepted: set[asyncio.Task[None]] = set()

    @property
    def addresses(self) -> tuple[str, ...]:
        return (self._address,)

    @asynccontextmanager
    async def serving(self, service: Service) -> AsyncIterator[None]:
        self._network.services[self._address] = service
        try:
            yield
        finally:
            del self._network.services[self._address]
            for task in self._accepted:
                task.cancel()
            await asyncio.gather(*self._accepted, return_exceptions=True)

    async def connect(self, address: str) -> Link:
        service = self._network.services.get(address)
        if service is None:
            raise Unreachable(f"nobody is at {address}", refused=True)
        near, far = _End(address), _End(self._address)
        near.other, far.other = far, near
        task = asyncio.ensure_future(_live(service, far))
        self._accepted.add(task)
        task.add_done_callback(self._accepted.discard)
        return near

    async def fetch(self, address: str, token: str, peer: str, into: memoryview) -> None:
        service = self._network.services.get(address)
        if service is None:
            raise FetchError("unreachable", address)
        body = service.body(token, peer)
        if body is None:
            raise FetchError("gone", token)
        if body.length != len(into):
            raise FetchError("wrong size", f"{body.length} bytes instead of {len(into)}")
        position = 0
        for piece in body.pieces():
            into[position : position + len(piece)] = piece
            position += len(piece)
            await asyncio.sleep(0)
        service.sent(token, peer, body.length)


async def _live(service: Service, end: _End) -> None:
    try:
        await service.accept(end)
    finally:
        await end.close("left")
