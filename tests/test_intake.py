"""Large bodies are taken in by the buffer itself: what a bad sender can do to them, on real sockets."""

import asyncio
from collections.abc import Callable, Coroutine

import pytest

from p2pfl.errors import FetchError
from p2pfl.network.http import HttpTransport, Limits
from p2pfl.network.transport import Body, Link, Service

SIZE = 5 << 20
BODY = bytes(range(256)) * (SIZE // 256)
Sender = Callable[[asyncio.StreamWriter], Coroutine[None, None, None]]


async def _fetch_from(send: Sender, limits: Limits | None = None) -> bytes:
    """What a transport fetches from a server whose answer `send` writes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        try:
            await send(writer)
            await reader.read()  # until the other end closes
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def accept(link: Link) -> None:
        await link.close("not here")

    def body(token: str, peer: str) -> Body | None:
        return None

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    transport = HttpTransport(("127.0.0.1",), 0, limits=limits or Limits())
    buffer = bytearray(SIZE)
    async with server, transport.serving(Service(accept, body, lambda *_: None, lambda: b"{}")):
        await transport.fetch(f"127.0.0.1:{port}", "model", "tester", memoryview(buffer))
    return bytes(buffer)


def _head(length: int = SIZE) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n".encode()


def test_a_body_arrives_whole_whatever_the_pieces() -> None:
    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(_head() + BODY[:1000])
        await writer.drain()
        for begin, end in ((1000, 1001), (1001, 70_000), (70_000, SIZE)):
            writer.write(BODY[begin:end])
            await writer.drain()

    assert asyncio.run(_fetch_from(send)) == BODY


def test_bytes_behind_the_body_are_not_read() -> None:
    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(_head() + BODY + b"more" * 100_000)
        await writer.drain()

    assert asyncio.run(_fetch_from(send)) == BODY


@pytest.mark.parametrize("sent", [0, 1, 65_536, SIZE - 1])
def test_a_body_that_ends_early_is_broken_off(sent: int) -> None:
    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(_head() + BODY[:sent])
        await writer.drain()
        writer.close()

    with pytest.raises(FetchError, match="broken off"):
        asyncio.run(_fetch_from(send))


def test_a_reset_in_the_middle_is_broken_off() -> None:
    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(_head() + BODY[: SIZE // 2])
        await writer.drain()
        writer.transport.abort()

    with pytest.raises(FetchError, match="broken off"):
        asyncio.run(_fetch_from(send))


def test_a_body_that_stalls_is_given_up() -> None:
    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(_head() + BODY[: SIZE // 2])
        await writer.drain()

    with pytest.raises(FetchError, match="too slow"):
        asyncio.run(_fetch_from(send, Limits(stall_s=0.2)))
