"""Bad clients and bad servers against the HTTP transport. The numbers are those of the list of faults."""

import asyncio
import itertools
import json
import logging
import random
import resource
import socket
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from test_transport import MIB, Host, closed, credentials, hosts, noise, run

from p2pfl.errors import FetchError, LinkClosed, NetworkError, Unreachable
from p2pfl.network.buffers import BufferPool
from p2pfl.network.discovery import join_address, split_address
from p2pfl.network.http import DEFAULT_PORT, HttpTransport, Limits, fetch_status
from p2pfl.network.transport import PIECE_BYTES, Body, body_of

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


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def wire(request: pytest.FixtureRequest) -> Wire:
    return Wire(request.param)


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


# Clients that stall


@pytest.mark.fault(21)
def test_client_that_says_nothing_is_closed_within_five_seconds(wire: Wire) -> None:
    """21, with the limits as they are by default."""

    async def scene() -> None:
        async with hosts(wire.http(Limits()), 1) as (host,), wire.client(host) as raw:
            begin = now()
            assert await raw.rest() == b""
            assert 3 < now() - begin <= 5.5
            await wire.lives(host)

    run(scene())


@pytest.mark.fault(22)
def test_client_that_never_ends_its_header_is_closed(wire: Wire) -> None:
    """22: also when it keeps adding to it."""

    async def scene() -> None:
        async with hosts(wire.http(), 1) as (host,), wire.client(host) as raw:
            begin = now()

            async def drip() -> None:
                await raw.say(STATUS[:-2])
                with suppress(ConnectionError):
                    for number in itertools.count():
                        await raw.say(b"X-%d: y\r\n" % number)
                        await asyncio.sleep(0.02)

            dripping = asyncio.create_task(drip())
            assert await raw.rest() == b""
            assert 0.3 <= now() - begin < 2
            dripping.cancel()
            await asyncio.gather(dripping, return_exceptions=True)
            await wire.lives(host)

    run(scene())


@pytest.mark.fault(22)
@pytest.mark.parametrize("second", [b"", STATUS[:10], STATUS[:-2]])
def test_kept_connection_whose_second_header_never_ends_is_closed(wire: Wire, second: bytes) -> None:
    """22"""

    async def scene() -> None:
        async with hosts(wire.http(), 1) as (host,), wire.client(host) as raw:
            for _ in range(2):
                await raw.say(STATUS)
                assert b" 200 " in await raw.head()
                assert await raw.reader.readexactly(2) == b"{}"
            begin = now()
            await raw.say(second)
            assert await raw.rest() == b""
            assert 0.3 <= now() - begin < 2
            await wire.lives(host)

    run(scene())


@pytest.mark.fault(22)
def test_receiver_that_stops_reading_is_given_up(wire: Wire) -> None:
    """22, the other way round."""

    async def scene() -> None:
        limits = Limits(stall_s=0.3, min_bytes_per_s=20 * MIB)
        async with hosts(wire.http(limits), 1) as (host,), wire.client(host, receive_buffer=1 << 14) as raw:
            broken = asyncio.Event()

            def pieces() -> Iterator[memoryview]:
                try:
                    for _ in range(20):
                        yield memoryview(bytes(MIB))
                finally:
                    broken.set()

            host.bodies["t"] = Body(20 * MIB, pieces)
            await raw.say(GET + b"\r\n")
            begin = now()
            await broken.wait()
            assert 0.3 <= now() - begin < 2
            assert len(await raw.rest()) < 20 * MIB
            assert host.sent == []

    run(scene())


# Servers that stall


@pytest.mark.fault(22)
@pytest.mark.parametrize(
    "said", [b"", b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx"]
)
def test_stalling_server_is_given_up(wire: Wire, said: bytes) -> None:
    """22: nothing, half a header, a header and a part of the body."""

    async def scene() -> None:
        asked = asyncio.Event()

        async def stall(raw: Raw) -> None:
            await raw.head()
            await raw.say(said)
            asked.set()
            await raw.rest()  # until the other end has had enough

        async with hosts(wire.http(), 1) as (host,), wire.server(stall) as address:
            pool, begin = BufferPool(), now()

            async def fetch() -> None:
                await host.transport.fetch(address, "t", "me", pool.take(100).data)

            assert await refused(fetch()) == "too slow"
            assert pool.free == 1
            assert asked.is_set()
            assert 0.3 <= now() - begin < 2

    run(scene())


@pytest.mark.fault(22)
def test_server_that_drips_is_given_up(wire: Wire) -> None:
    """22: it is never silent for long, but slower than the least rate."""

    async def scene() -> None:
        dripped = 0

        async def drip(raw: Raw) -> None:
            nonlocal dripped
            await raw.head()
            await raw.say(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            for _ in range(1000):
                await raw.say(b"x")
                dripped += 1
                await asyncio.sleep(0.02)

        limits = Limits(stall_s=0.4, min_bytes_per_s=5000)
        async with hosts(wire.http(limits), 1) as (host,), wire.server(drip) as address:
            pool, begin = BufferPool(), now()

            async def fetch() -> None:
                await host.transport.fetch(address, "t", "me", pool.take(1000).data)

            assert await refused(fetch()) == "too slow"
            assert pool.free == 1
            assert 0.5 <= now() - begin < 2
            assert 5 < dripped < 500

    run(scene())


@pytest.mark.fault(22)
def test_server_that_never_upgrades_is_unreachable_but_did_not_refuse(wire: Wire) -> None:
    """22, for a control connection."""

    async def scene() -> None:
        async def stall(raw: Raw) -> None:
            await raw.rest()

        async with hosts(wire.http(), 1) as (host,), wire.server(stall) as address:
            begin = now()
            with pytest.raises(Unreachable, match="no answer") as failure:
                await host.transport.connect(address)
            assert not failure.value.refused
            assert 0.3 <= now() - begin < 2

    run(scene())


def test_fetch_that_is_cancelled_gives_its_buffer_back(wire: Wire) -> None:
    async def scene() -> None:
        asked = asyncio.Event()

        async def stall(raw: Raw) -> None:
            await raw.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx")
            asked.set()
            await raw.rest()

        pool = BufferPool()
        async with hosts(wire.http(), 1) as (host,), wire.server(stall) as address:
            fetch = asyncio.create_task(host.transport.fetch(address, "t", "me", pool.take(100).data))
            await asked.wait()
            fetch.cancel()
            await asyncio.wait([fetch])
            assert fetch.cancelled()
            del fetch
            assert pool.free == 1

    run(scene())


# Cut connections

CONTENT = noise(3000)
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: 3000\r\nServer: p2pfl\r\n\r\n"
) + CONTENT
HEAD_BYTES = len(ANSWER) - len(CONTENT)


@pytest.mark.fault(23)
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_connection_cut_anywhere_gives_no_body_and_its_buffer_back(wire: Wire, reset: bool) -> None:
    """23: at every offset of the header, and at random offsets of the body."""
    offsets = [
        *range(HEAD_BYTES + 1),
        *random.Random(1).sample(range(HEAD_BYTES + 1, len(ANSWER)), 40),
        len(ANSWER) - 1,
    ]

    async def scene() -> None:
        offset = 0
        cuts: set[int] = set()

        async def cut(raw: Raw) -> None:
            await raw.head()
            await raw.say(ANSWER[:offset])
            cuts.add(offset)
            if reset:
                raw.cut()

        pool = BufferPool()
        async with hosts(wire.http(), 1) as (host,), wire.server(cut) as address:

            async def fetch() -> bytes:
                buffer = pool.take(len(CONTENT))
                await host.transport.fetch(address, "t", "me", buffer.data)
                return bytes(buffer)

            for offset in offsets:  # noqa: B007  # for the server
                with pytest.raises(FetchError) as failure:
                    await fetch()
                assert failure.value.reason == "broken off"
                del failure  # it holds the frames that hold the buffer
            assert cuts == set(offsets)
            assert (pool.allocated, pool.free) == (1, 1)
            if not reset:  # the same server, without the fault
                offset = len(ANSWER)
                assert await fetch() == CONTENT

    run(scene())


# Large bodies go another way: straight into the buffer

LARGE = noise(5 * MIB)
LARGE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(LARGE)


@pytest.mark.fault(22)
@pytest.mark.fault(23)
@pytest.mark.parametrize("end", ["closed", "reset", "stalled"])
def test_large_body_cut_anywhere_gives_its_buffer_back(wire: Wire, end: str) -> None:
    """22 and 23"""
    offsets = [0, 1, MIB, *random.Random(2).sample(range(len(LARGE)), 5), len(LARGE) - 1]

    async def scene() -> None:
        offset = 0
        cuts: set[int] = set()

        async def cut(raw: Raw) -> None:
            await raw.head()
            await raw.say(LARGE_HEAD + LARGE[:offset])
            cuts.add(offset)
            if end == "reset":
                raw.cut()
            elif end == "stalled" and offset < len(LARGE):
                await raw.rest()

        pool = BufferPool()
        limits = Limits(stall_s=0.1)
        async with hosts(wire.http(limits), 1) as (host,), wire.server(cut) as address:

            async def fetch() -> bytes:
                buffer = pool.take(len(LARGE))
                await host.transport.fetch(address, "t", "me", buffer.data)
                return bytes(buffer)

            for offset in offsets[::2] if end == "stalled" else offsets:  # noqa: B007  # for the server
                assert await refused(fetch()) == ("too slow" if end == "stalled" else "broken off")
                assert pool.free == 1
            assert pool.allocated == 1
            assert cuts <= set(offsets)
            assert len(cuts) >= 5
            if end != "reset":  # the same server, without the fault
                offset = len(LARGE)
                assert await fetch() == LARGE

    run(scene())


@pytest.mark.fault(24)
def test_what_follows_a_large_body_is_not_read(wire: Wire) -> None:
    """24"""

    async def scene() -> None:
        taken = 0

        async def answer(raw: Raw) -> None:
            nonlocal taken
            await raw.head()
            await raw.say(LARGE_HEAD + LARGE)
            for _ in range(64):
                await raw.say(bytes(MIB))
                taken += MIB

        async with hosts(wire.http(), 1) as (host,), wire.server(answer) as address:
            into = bytearray(len(LARGE))
            await host.transport.fetch(address, "t", "me", memoryview(into))
            assert into == LARGE
            assert taken < 32 * MIB
            await wire.lives(host)

    run(scene())


# Lengths

CHUNK = b"%x\r\n%b\r\n" % (MIB, bytes(MIB))
LENGTHS: dict[str, tuple[bytes, list[bytes], set[str]]] = {
    "missing": (b"Connection: close", [bytes(MIB)] * 64, {"wrong size"}),
    "too large by one": (b"Content-Length: 1001", [bytes(1001)], {"wrong size"}),
    "too large by far": (b"Content-Length: 1099511627776", [bytes(MIB)] * 64, {"wrong size"}),
    "beyond 64 bits": (b"Content-Length: 99999999999999999999999999", [bytes(MIB)] * 64, {"broken off"}),
    "too small": (b"Content-Length: 999", [bytes(999)], {"wrong size"}),
    "too small for what follows": (b"Content-Length: 999", [bytes(MIB)] * 64, {"wrong size", "broken off"}),
    "nothing": (b"Content-Length: 0", [], {"wrong size"}),
    "negative": (b"Content-Length: -1000", [bytes(1000)], {"broken off"}),
    "signed": (b"Content-Length: +1000", [bytes(1000)], {"broken off"}),
    "no number": (b"Content-Length: a lot", [bytes(1000)], {"broken off"}),
    "twice": (b"Content-Length: 1000\r\nContent-Length: 999", [bytes(1000)], {"broken off"}),
    "chunked": (b"Transfer-Encoding: chunked", [CHUNK] * 64, {"encoded body"}),
    "chunked with a length": (
        b"Content-Length: 1000\r\nTransfer-Encoding: chunked",
        [CHUNK] * 64,
        {"encoded body", "broken off"},
    ),
    "gzip": (b"Content-Length: 1000\r\nContent-Encoding: gzip", [bytes(1000)], {"encoded body"}),
}


@pytest.mark.fault(24)
@pytest.mark.parametrize(("field", "body", "reasons"), LENGTHS.values(), ids=LENGTHS)
def test_answer_of_another_length_is_refused_by_its_head(field: bytes, body: list[bytes], reasons: set[str]) -> None:
    """24: nothing is written to the buffer, and no more than a little is read."""

    async def scene() -> None:
        asked, taken = 0, 0

        async def answer(raw: Raw) -> None:
            nonlocal asked, taken
            await raw.head()
            asked += 1
            await raw.say(b"HTTP/1.1 200 OK\r\n" + field + b"\r\n\r\n")
            for piece in body:
                await raw.say(piece)
                taken += len(piece)

        async with hosts(PLAIN.http(), 1) as (host,), PLAIN.server(answer) as address:
            into = bytearray(b"?" * 1000)
            with memory_bounded(6 * MIB):
                assert await refused(host.transport.fetch(address, "t", "me", memoryview(into))) in reasons
            assert asked
            assert taken < 32 * MIB
            assert into == b"?" * 1000

    run(scene())


@pytest.mark.fault(24)
def test_what_follows_a_body_is_not_taken_for_a_part_of_it(wire: Wire) -> None:
    """24: the length is right, and the server goes on."""

    async def scene() -> None:
        taken = 0

        async def answer(raw: Raw) -> None:
            nonlocal taken
            await raw.head()
            await raw.say(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"?" * 1000)
            for _ in range(64):
                await raw.say(bytes(MIB))
                taken += MIB

        async with hosts(wire.http(), 1) as (host,), wire.server(answer) as address:
            into = bytearray(1000)
            with memory_bounded(6 * MIB), suppress(FetchError):
                await host.transport.fetch(address, "t", "me", memoryview(into))
                assert into == b"?" * 1000
            assert taken < 32 * MIB
            await wire.lives(host)

    run(scene())


@pytest.mark.parametrize("status", [b"206 Partial Content", b"301 Moved\r\nLocation: /", b"500 Oops"])
def test_other_status_is_refused(status: bytes) -> None:
    async def scene() -> None:
        asked = 0

        async def answer(raw: Raw) -> None:
            nonlocal asked
            await raw.head()
            asked += 1
            await raw.say(b"HTTP/1.1 " + status + b"\r\nContent-Length: 10\r\n\r\n0123456789")

        async with hosts(PLAIN.http(), 1) as (host,), PLAIN.server(answer) as address:
            assert await refused(host.transport.fetch(address, "t", "me", memoryview(bytearray(10)))) == "refused"
            assert asked == 1  # no redirection is followed

    run(scene())


REQUESTS: dict[str, tuple[bytes, int]] = {
    "a body": (b"Content-Length: 5\r\n\r\nhello", 413),
    "a huge body": (b"Content-Length: 1099511627776\r\n\r\n" + bytes(MIB), 413),
    "a body that never comes": (b"Content-Length: 5\r\n\r\n", 413),
    "a chunked body": (b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 413),
    "an endless chunk": (b"Transfer-Encoding: chunked\r\n\r\nffffffffff\r\n" + bytes(MIB), 413),
    "a negative length": (b"Content-Length: -5\r\n\r\nhello", 400),
    "no number": (b"Content-Length: five\r\n\r\nhello", 400),
    "two lengths": (b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
    "chunked with a length": (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 400),
    "a compressed body": (b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello", 415),
    "a web page": (b"Origin: http://example.org\r\n\r\n", 403),
}


@pytest.mark.fault(24)
@pytest.mark.fault(25)
@pytest.mark.parametrize("method", [b"GET", b"POST"])
@pytest.mark.parametrize(("request_tail", "status"), REQUESTS.values(), ids=REQUESTS)
def test_request_with_a_body_is_refused_unread(method: bytes, request_tail: bytes, status: int) -> None:
    """24 and 25: answered by its head, and closed."""

    async def scene() -> None:
        async with hosts(PLAIN.http(), 1) as (host,), PLAIN.client(host) as raw:
            host.bodies["t"] = body_of(memoryview(b"secret"))
            begin = now()
            with memory_bounded(6 * MIB):
                await raw.say(method + GET[3:] + request_tail)
                head = await raw.head()
                assert now() - begin < 1
                rest = await raw.rest()
            assert int(head.split()[1]) == status
            assert b"secret" not in rest
            assert now() - begin < 3
            assert host.asked == []
            await PLAIN.lives(host)

    run(scene())


# Compression


@pytest.fixture(scope="module")
def bomb() -> bytes:
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


@pytest.mark.fault(25)
def test_bomb_in_an_answer_is_not_opened(wire: Wire, bomb: bytes) -> None:
    """25"""

    async def scene() -> None:
        asked = 0

        async def answer(raw: Raw) -> None:
            nonlocal asked
            asked += 1
            await raw.head()
            head = b"HTTP/1.1 200 OK\r\nContent-Encoding: deflate\r\nContent-Length: %d\r\n\r\n" % len(bomb)
            await raw.say(head + bomb)

        async with hosts(wire.http(), 1) as (host,), wire.server(answer) as address:
            into = bytearray(len(bomb))
            with memory_bounded(10 * 10**6):
                assert await refused(host.transport.fetch(address, "t", "me", memoryview(into))) == "encoded body"
                with pytest.raises(Unreachable):
                    await wire.status(address)
            assert asked == 2
            assert not any(into)

    run(scene())


@pytest.mark.fault(25)
@pytest.mark.parametrize("encoding", [b"deflate", b"gzip", b"br", b"identity"])
def test_bomb_in_a_request_is_not_opened(bomb: bytes, encoding: bytes) -> None:
    """25"""

    async def scene() -> None:
        async with hosts(PLAIN.http(), 1) as (host,), PLAIN.client(host) as raw:
            length = b"Content-Encoding: " + encoding + b"\r\nContent-Length: %d\r\n\r\n" % len(bomb)
            with memory_bounded(10 * 10**6):
                await raw.say(b"POST" + GET[3:] + length + bomb)
                assert b" 415 " in await raw.head()
                await raw.rest()
            await PLAIN.lives(host)

    run(scene())


@pytest.mark.fault(25)
def test_compressed_messages_are_not_agreed_to_and_not_read(bomb: bytes) -> None:
    """25, on a control connection."""

    async def scene() -> None:
        async with hosts(PLAIN.http(), 1) as (host,), PLAIN.client(host) as raw:
            await raw.say(UPGRADE + b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n")
            head = await raw.head()
            assert b" 101 " in head
            assert b"deflate" not in head
            link = await host.accepted.get()
            with memory_bounded(10 * 10**6):
                await raw.say(frame(0xC2, bomb))  # RSV1: compressed
                await closed(link)
            await PLAIN.lives(host)

    run(scene())


# Control messages


def frame(first: int, payload: bytes, claimed: int | None = None) -> bytes:
    """A masked frame; `first` holds FIN (0x80), RSV and opcode; it may claim another length than it has."""
    length = len(payload) if claimed is None else claimed
    if length < 126:
        size = bytes([0x80 | length])
    elif length < 1 << 16:
        size = b"\xfe" + length.to_bytes(2, "big")
    else:
        size = b"\xff" + length.to_bytes(8, "big")
    return bytes([first]) + size + bytes(4) + payload  # a mask of zeros changes nothing


SMALL = Limits(max_message=10_000, idle_s=0.4)


@pytest.mark.fault(26)
@pytest.mark.parametrize("kind", ["binary", "text"])
def test_message_over_the_limit_or_of_text_is_closed_with_its_type(kind: str) -> None:
    """26"""

    async def scene() -> None:
        async with hosts(PLAIN.http(SMALL), 2) as (host, other), aiohttp.ClientSession() as session:
            near, far = await other.link_to(host)
            async with session.ws_connect(f"http://{host.address}/v1/control") as bad:
                link = await host.accepted.get()
                await bad.send_bytes(bytes(10_000))
                assert len(await link.receive()) == 10_000
                async with asyncio.TaskGroup() as group:
                    why = group.create_task(closed(link))
                    if kind == "binary":
                        await bad.send_bytes(bytes(10_001))
                    else:
                        await bad.send_str("hello")
                    ended = group.create_task(bad.receive())
                assert ended.result().type is aiohttp.WSMsgType.CLOSE
                assert ended.result().data == {"binary": 1009, "text": 1003}[kind]
                assert why.result() == {"binary": "message too long", "text": "text where binary is due"}[kind]
            await near.send(b"hello")  # others do not notice
            assert await far.receive() == b"hello"

    run(scene())


@pytest.mark.fault(26)
def test_message_over_the_limit_from_whom_we_dialed_ends_the_link(wire: Wire) -> None:
    """26, the other way round."""

    async def scene() -> None:
        async with hosts(wire.http(SMALL), 1) as (small,), hosts(wire.http(), 1) as (large,):
            near, far = await small.link_to(large)
            async with asyncio.TaskGroup() as group:
                why = group.create_task(closed(near))
                group.create_task(closed(far))
                await far.send(bytes(10_001))
            assert why.result() == "message too long"

    run(scene())


@pytest.mark.fault(26)
@pytest.mark.parametrize("piece", [1, 1000, 9999])
def test_endless_fragmented_message_is_cut_at_the_cap(wire: Wire, piece: int) -> None:
    """26: fragments that are each within the limit."""

    async def scene() -> None:
        async with hosts(wire.http(SMALL), 1) as (host,), wire.client(host) as raw:
            await raw.say(UPGRADE + b"\r\n")
            assert b" 101 " in await raw.head()
            link = await host.accepted.get()
            why = asyncio.create_task(closed(link))
            said = 0
            with memory_bounded(6 * MIB):
                with suppress(ConnectionError):
                    await raw.say(frame(0x02, bytes(piece)))
                    while not why.done() and said < 10 * MIB:
                        await raw.say(frame(0x00, bytes(piece)) * (1000 // piece or 1))
                        said += piece * (1000 // piece or 1)
                        await asyncio.sleep(0)
                assert await why == "message too long"
            assert said < 200_000
            assert (await raw.rest())[2:4] == (1009).to_bytes(2, "big")
            await wire.lives(host)

    run(scene())


@pytest.mark.fault(26)
@pytest.mark.parametrize("claimed", [10_001, 1 << 20, 1 << 62, (1 << 64) - 1])
def test_frame_that_claims_too_much_is_refused_by_its_head(claimed: int) -> None:
    """26"""

    async def scene() -> None:
        async with hosts(PLAIN.http(SMALL), 1) as (host,), PLAIN.client(host) as raw:
            await raw.say(UPGRADE + b"\r\n")
            assert b" 101 " in await raw.head()
            link = await host.accepted.get()
            await raw.say(frame(0x82, b"", claimed))
            await closed(link)
            assert len(await raw.rest()) >= 4  # a close frame with a code
            await PLAIN.lives(host)

    run(scene())


@pytest.mark.fault(2)
def test_silent_control_connection_is_noticed(wire: Wire) -> None:
    """2, at the level of a connection: its other end neither answers nor resets."""

    async def scene() -> None:
        limits = Limits(heartbeat_s=0.2)
        async with hosts(wire.http(limits), 1) as (host,), wire.client(host) as raw:
            await raw.say(UPGRADE + b"\r\n")
            assert b" 101 " in await raw.head()
            link = await host.accepted.get()
            begin = now()
            await closed(link)
            assert 0.2 <= now() - begin < 2

    run(scene())


@pytest.mark.fault(40)
@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x02\x00\x01\x00" * 30, b"GET / HTTP/9.9\r\n\r\n", b"\0" * 100, b"GET /" + b"a" * 20_000]
)
def test_garbage_is_answered_without_a_word_in_the_log(garbage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        async with hosts(PLAIN.http(), 1) as (host,), PLAIN.client(host) as raw:
            await raw.say(garbage)
            answer = await raw.rest()
            assert answer == b"" or b" 400 " in answer
            await PLAIN.lives(host)

    with caplog.at_level(logging.WARNING):
        run(scene())
    assert caplog.records == []


# Many connections, slow receivers


def may_open(count: int) -> None:
    """Let this process open so many descriptors; a machine that forbids it proves nothing, and fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == resource.RLIM_INFINITY or hard >= count, f"ulimit -Hn is {hard}, this test needs {count}"
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def what_came(end: socket.socket) -> bytes:
    """What a socket that does not block has received by now."""
    try:
        return end.recv(1000)
    except BlockingIOError:
        return b"still open"
    except ConnectionResetError:
        return b""


@pytest.mark.fault(27)
@pytest.mark.skipif(sys.platform != "linux", reason="needs a second loopback address")
def test_thousand_connections_from_one_address_are_capped_and_others_served(wire: Wire) -> None:
    """27: the default limits, and none of the connections says a word."""
    may_open(2600)

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        async with hosts(wire.http(Limits(idle_s=30)), 1) as (host,):
            with ExitStack() as stack:
                flood = [stack.enter_context(socket.socket()) for _ in range(1000)]
                for end in flood:
                    end.setblocking(False)
                    await loop.sock_connect(end, split_address(host.address))
                assert set(await host.has_turned(744)) == {"too many connections"}
                begin = now()
                async with wire.client(host, local="127.0.0.2") as raw:
                    await raw.say(STATUS)
                    assert b" 200 " in await raw.head()
                assert now() - begin < 1
                assert len(host.turned) == 744
                answers = Counter(what_came(end)[:12] for end in flood)
                assert answers == {b"still open": 256, b"" if wire.secure else b"HTTP/1.1 503": 744}
            while True:  # from the address of the flood, once its end was noticed
                with suppress(Unreachable):
                    await wire.lives(host)
                    break

    run(scene(), 60)


class Limited:
    """A transport in a process of its own that may hold few descriptors; see `limited_process`."""

    def __init__(self, wire: Wire, limit: int) -> None:
        script = Path(__file__).with_name("limited_process.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), "tls" if wire.secure else "plain", str(limit)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.address = ("127.0.0.1", self._answer()["port"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def tell(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._answer()

    def turns(self, count: int, reason: str) -> None:
        """Wait until it has turned away so many, for this reason alone."""
        begin = time.monotonic()
        while (turned := self.tell("report")["turned"]).get(reason, 0) < count:
            assert time.monotonic() - begin < 10, turned
        assert set(turned) == {reason}

    def __enter__(self) -> "Limited":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        assert self._process.wait(10) == 0
        self._process.stdout.close()


@pytest.mark.fault(33)
@pytest.mark.parametrize("by", ["connections", "files"])
def test_without_descriptors_newcomers_are_turned_away_with_a_reason(wire: Wire, by: str) -> None:
    """33: connections take them all, or the process itself has; then it goes on."""
    with Limited(wire, 64) as limited:
        address = join_address(*limited.address)
        assert asyncio.run(wire.status(address)) == b"{}"
        if by == "files":
            assert limited.tell("fill")["taken"] > 30
        with ExitStack() as stack:
            flood = [stack.enter_context(socket.create_connection(limited.address, 5)) for _ in range(100)]
            limited.turns(90 if by == "files" else 50, "no descriptors")
            assert flood[-1].recv(12) == (b"" if wire.secure else b"HTTP/1.1 503")
            before_s = limited.tell("report")["cpu_s"]
            time.sleep(0.5)  # in which it could spin
            assert limited.tell("report")["cpu_s"] - before_s < 0.2
        limited.tell("free")
        for _ in range(100):  # until the end of the connections is noticed
            with suppress(Unreachable):
                assert asyncio.run(wire.status(address)) == b"{}"
                return
        pytest.fail("it never took anybody in again")


@pytest.mark.fault(27)
def test_connections_are_capped_on_the_whole(wire: Wire) -> None:
    """27"""

    async def scene() -> None:
        async with hosts(wire.http(Limits(max_connections=3, stall_s=0.5)), 2) as (host, other):
            ends = [await other.link_to(host) for _ in range(3)]
            with pytest.raises(Unreachable) as failure:
                await other.transport.connect(host.address)
            assert not failure.value.refused
            reason = await refused(other.transport.fetch(host.address, "t", "me", memoryview(bytearray(1))))
            assert reason == ("unreachable" if wire.secure else "busy")
            assert {(turned.what, turned.reason) for turned in host.turned} == {("connection", "too many connections")}
            assert host.asked == []
            async with asyncio.TaskGroup() as group:
                group.create_task(ends[0][0].close("make room"))
                group.create_task(closed(ends[0][1]))
            near, far = await other.link_to(host)
            await near.send(b"room")
            assert await far.receive() == b"room"

    run(scene())


@pytest.mark.fault(28)
def test_slow_receiver_takes_little_memory_and_holds_up_nobody(wire: Wire) -> None:
    """28: it reads 50 kB/s."""

    async def scene() -> None:
        async with hosts(wire.http(Limits()), 2) as (host, other):
            content = noise(20 * MIB)
            made = 0

            def pieces() -> Iterator[memoryview]:
                nonlocal made
                for begin in range(0, len(content), PIECE_BYTES):
                    made += PIECE_BYTES
                    yield memoryview(content)[begin : begin + PIECE_BYTES]

            host.bodies["slow"] = Body(len(content), pieces)
            host.bodies["t"] = body_of(memoryview(content))
            into = memoryview(bytearray(len(content)))
            async with wire.client(host, receive_buffer=1 << 15) as raw:
                with memory_bounded(8 * MIB):
                    await raw.say(GET.replace(b"/t", b"/slow") + b"\r\n")
                    taken = len(await raw.head())
                    for round in range(10):
                        taken += len(await raw.reader.readexactly(5_000))
                        await asyncio.sleep(0.1)  # the fault itself
                        if round == 4:
                            begin = now()
                            await other.transport.fetch(host.address, "t", "fast", into)
                            assert now() - begin < 3
                assert taken < MIB
                assert made < 12 * MIB  # the kernel's buffers take some of it
                assert into == content
                assert [peer for _, peer, _ in host.sent] == [other.known_as("fast")]
                raw.cut()

    run(scene())


@pytest.mark.fault(19)
def test_leaving_during_an_upload_and_with_a_deaf_neighbor_is_quick(wire: Wire) -> None:
    """19"""

    async def scene() -> None:
        host = Host(wire.http(Limits())())
        serving = host.transport.serving(host.service())
        await serving.__aenter__()
        host.bodies["t"] = body_of(memoryview(bytes(50 * MIB)))
        async with (
            wire.client(host, receive_buffer=1 << 15) as reader,
            wire.client(host) as deaf,
            wire.client(host) as silent,
        ):
            await reader.say(GET + b"\r\n")
            await reader.reader.readexactly(100_000)
            await deaf.say(UPGRADE + b"\r\n")
            assert b" 101 " in await deaf.head()
            begin = now()
            await serving.__aexit__(None, None, None)
            assert now() - begin < 2
            assert len(await reader.rest()) < 50 * MIB
            assert (await deaf.rest())[2:4] == (1000).to_bytes(2, "big")
            assert await silent.rest() == b""
            assert host.ended == 1

    run(scene())


# Ports


@pytest.mark.fault(31)
def test_next_port_is_taken_where_one_is_in_use(wire: Wire) -> None:
    """31"""

    async def scene() -> None:
        async with hosts(wire.http(port=None), 3) as some:
            ports = [split_address(host.address)[1] for host in some]
            assert ports == sorted(set(ports))
            assert ports[0] >= DEFAULT_PORT
            for host in some:
                host.bodies["who"] = body_of(memoryview(host.address.encode()))
            for host in some:
                into = bytearray(len(host.address))
                await some[0].transport.fetch(host.address, "who", "me", memoryview(into))
                assert into.decode() == host.address

    run(scene())


@pytest.mark.fault(31)
def test_any_port_is_taken_where_all_the_usual_ones_are_in_use() -> None:
    """31"""

    async def scene() -> None:
        with ExitStack() as stack:
            for port in range(DEFAULT_PORT, DEFAULT_PORT + 30):
                taken = stack.enter_context(socket.socket())
                with suppress(OSError):  # by somebody else: as well
                    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    taken.bind(("127.0.0.1", port))
                    taken.listen()
            async with hosts(PLAIN.http(port=None), 1) as (host,):
                assert split_address(host.address)[1] not in range(DEFAULT_PORT, DEFAULT_PORT + 30)
                await PLAIN.lives(host)

    run(scene())


@pytest.mark.fault(31)
def test_fixed_port_in_use_is_an_error_that_says_so() -> None:
    """31"""

    async def scene() -> None:
        async with hosts(PLAIN.http(), 1) as (host,):
            port = split_address(host.address)[1]
            second = HttpTransport(("127.0.0.1",), port)
            with pytest.raises(NetworkError, match=rf"port {port} is in use; choose another --port"):
                async with second.serving(host.service()):
                    pass
            await PLAIN.lives(host)

    run(scene())


@pytest.mark.parametrize(("hosts_given", "match"), [((), "no address"), (("192.0.2.1",), "192.0.2.1")])
def test_address_that_is_not_here_is_an_error_that_says_so(hosts_given: tuple[str, ...], match: str) -> None:
    async def scene() -> None:
        nowhere = HttpTransport(hosts_given, 0)
        with pytest.raises(NetworkError, match=match):
            async with nowhere.serving(Host(nowhere).service()):
                pass

    run(scene())


def test_all_hosts_get_the_same_port() -> None:
    async def scene() -> None:
        transport = HttpTransport(("127.0.0.1", "127.0.0.2"), 0)
        async with transport.serving(Host(transport).service()):
            first, second = map(split_address, transport.addresses)
            assert first[0] != second[0]
            assert first[1] == second[1] == transport.port
            for address in transport.addresses:
                assert await fetch_status(address) == b"{}"

    run(scene())


@pytest.mark.fault(1)
def test_link_that_broke_tells_the_sender(wire: Wire) -> None:
    """1, at the level of a connection: a reset is noticed at once."""

    async def scene() -> None:
        async with hosts(wire.http(), 1) as (host,), wire.client(host) as raw:
            await raw.say(UPGRADE + b"\r\n")
            await raw.head()
            link = await host.accepted.get()
            begin = now()
            raw.cut()
            await closed(link)
            assert now() - begin < 1
            with pytest.raises(LinkClosed):
                await link.send(b"x")

    run(scene())
