"""What a lost connection leaves on the terminal: nothing of asyncio's."""

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import TypeAlias

import pytest
from test_transport import credentials

import p2pfl.network.links as links

Scenario: TypeAlias = Callable[[], Coroutine[None, None, None]]


async def writes_after_a_reset() -> None:
    ours, theirs = socket.socketpair()
    _, writer = await asyncio.open_connection(sock=ours)
    theirs.close()
    for _ in range(20):
        writer.write(b"x")
    writer.close()


async def writes_after_the_end_of_tls() -> None:
    over = asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.transport.abort()
        over.set()

    server = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=credentials(1).server_context)
    tag, context = credentials(2).client_contexts()[0]
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), ssl=context, server_hostname=tag)
    writer.close()
    for _ in range(20):
        writer.write(b"x")
    await over.wait()
    server.close()
    await server.wait_closed()
    writer.transport.abort()
    await asyncio.sleep(0)  # in which transports that were aborted close their sockets


@pytest.mark.parametrize(
    ("scenario", "says"),
    [
        (writes_after_a_reset, "socket.send() raised exception."),
        (writes_after_the_end_of_tls, "SSL connection is closed"),
    ],
)
def test_writing_to_a_connection_that_is_lost_prints_nothing(
    scenario: Scenario, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert told_of(scenario, caplog) == []
    logger = logging.getLogger("asyncio")
    logger.removeFilter(links._is_news)
    try:
        assert says in told_of(scenario, caplog)  # it would
    finally:
        logger.addFilter(links._is_news)


def told_of(scenario: Scenario, caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    return [record.getMessage() for record in caplog.records]
