"""Bad servers against who fetches from them. The numbers are those of the list of faults."""

import asyncio
import random
from contextlib import suppress

import pytest
from raw_ends import PLAIN, Raw, Wire, memory_bounded, now, refused
from test_transport import MIB, hosts, noise, run

from p2pfl.errors import FetchError, Unreachable
from p2pfl.network.buffers import BufferPool
from p2pfl.network.http import Limits

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


# Compression


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
