"""Ends without any protocol, to be bad clients and bad servers with, over plain HTTP and over TLS."""

import asyncio
import itertools
import socket
import struct
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache

import pytest
from test_transport import Host, credentials

from p2pfl.errors import FetchError
from p2pfl.network.discovery import split_address
from p2pfl.network.http import HttpTransport, Limits, fetch_status

QUICK = Limits(idle_s=0.4, stall_s=0.4, connect_s=0.6, min_bytes_per_s=500)
STATUS = b"GET /v1/status HTTP/1.1\r\nHost: p2pfl\r\n\r\n"
GET = b"GET /v1/body/t HTTP/1.1\r\nHost: p2pfl\r\n"
UPGRADE = (
    b"GET /v1/control HTTP/1.1\r\nHost: p2pfl\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
)
Answer = Callable[["Raw"], Awaitable[None]]


class Raw:
    """A connection without any protocol."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> bytes:
        return await self.reader.readuntil(b"\r\n\r\n")

    async def rest(self) -> bytes:
        """What comes until the other end closes."""
        taken = bytearray()
        with suppress(ConnectionError):
            while data := await self.reader.read(1 << 16):
                taken += data
        return bytes(taken)

    def cut(self) -> None:
        """Reset the connection."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def end(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


@dataclass(frozen=True)
class Wire:
    """What the ends of a scene speak: plain HTTP, or TLS with everybody's certificate in order."""

    secure: bool

    def http(self, limits: Limits = QUICK, port: int | None = 0) -> Callable[[], HttpTransport]:
        numbers = itertools.count(1)
        return lambda: HttpTransport(
            ("127.0.0.1",), port, limits=limits, credentials=credentials(next(numbers)) if self.secure else None
        )

    @asynccontextmanager
    async def client(self, host: Host, local: str = "127.0.0.1", receive_buffer: int = 0) -> AsyncIterator[Raw]:
        end = socket.socket()
        end.setblocking(False)
        if receive_buffer:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        end.bind((local, 0))
        await asyncio.get_running_loop().sock_connect(end, split_address(host.address))
        if self.secure:
            ((tag, context),) = credentials(100).client_contexts()
            ends = await asyncio.open_connection(sock=end, limit=1 << 16, ssl=context, server_hostname=tag)
        else:
            ends = await asyncio.open_connection(sock=end, limit=1 << 16)
        raw = Raw(*ends)
        try:
            yield raw
        finally:
            await raw.end()

    @asynccontextmanager
    async def server(self, answer: Answer) -> AsyncIterator[str]:
        """The address of a server that treats each connection so, and closes it then."""
        tasks: set[asyncio.Task[None]] = set()

        async def treat(raw: Raw) -> None:
            try:
                with suppress(ConnectionError, asyncio.IncompleteReadError):
                    await answer(raw)
            finally:
                await raw.end()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(treat(Raw(reader, writer)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        context = credentials(101).server_context if self.secure else None
        listening = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
        try:
            yield f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        finally:
            listening.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def status(self, address: str) -> bytes:
        return await fetch_status(address, credentials=credentials(102) if self.secure else None)

    async def lives(self, host: Host) -> None:
        """Prove that a host still answers."""
        assert await self.status(host.address) == b"{}"


PLAIN = Wire(secure=False)


def now() -> float:
    return asyncio.get_running_loop().time()


async def refused(fetch: Awaitable[object]) -> str:
    with pytest.raises(FetchError) as failure:
        await fetch
    reason = failure.value.reason
    del failure  # it holds the frames, and they what was being filled
    return reason


@contextmanager
def memory_bounded(limit: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit


@cache
def zeros_packed() -> bytes:
    """200 MB of zeros, as 200 KB."""
    packer, piece = zlib.compressobj(9), bytes(10**6)
    packed = b"".join(packer.compress(piece) for _ in range(200)) + packer.flush()
    unpacker = zlib.decompressobj()
    opened, left = 0, packed
    while not unpacker.eof:
        opened += len(unpacker.decompress(left, 10**6))
        left = unpacker.unconsumed_tail
    assert opened == 200 * 10**6
    assert len(packed) < 250_000
    return packed
