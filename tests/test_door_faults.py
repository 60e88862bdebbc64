"""Bad clients at the door of the HTTP transport. The numbers are those of the list of faults."""

import asyncio
import itertools
import logging
from collections.abc import Iterator
from contextlib import suppress

import aiohttp
import pytest
from raw_ends import GET, PLAIN, STATUS, UPGRADE, Wire, memory_bounded, now
from test_transport import MIB, closed, hosts, run

from p2pfl.errors import LinkClosed
from p2pfl.network.http import Limits
from p2pfl.network.transport import Body, body_of

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


# Lengths


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


# Ports


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
