"""What a lost connection leaves on the terminal: nothing of asyncio's."""

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine

import pytest

import p2pfl.network.links as links


def test_writing_to_a_connection_that_was_reset_prints_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        _, writer = await asyncio.open_connection(sock=ours)
        theirs.close()
        for _ in range(20):
            writer.write(b"x")
        writer.close()

    assert _told_of(scenario, caplog) == []
    logger = logging.getLogger("asyncio")
    logger.removeFilter(links._is_news)
    try:
        assert "socket.send() raised exception." in _told_of(scenario, caplog)  # it would
    finally:
        logger.addFilter(links._is_news)


def _told_of(scenario: Callable[[], Coroutine[None, None, None]], caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    return [record.getMessage() for record in caplog.records]
