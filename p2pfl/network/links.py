"""A WebSocket as a control connection, at either end."""

import asyncio
import logging
import ssl
from contextlib import suppress

import aiohttp
from aiohttp import WSCloseCode, WSMsgType, web

from p2pfl.errors import LinkClosed
from p2pfl.types import PeerId

CLOSED_THERE = "closed by the other end: "  # before what that end gave as its reason
CLOSE_S = 1.0  # for the other end's answer when a control connection closes


class SocketLink:
    """See `Link`."""

    def __init__(
        self,
        socket: aiohttp.ClientWebSocketResponse | web.WebSocketResponse,
        remote: str,
        proven: PeerId = "",
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._socket = socket
        self._why = ""  # it is closed
        self.context = context  # that of the key under which it was made
        self.remote = remote
        self.proven = proven

    @property
    def closed(self) -> bool:
        """Whether its end is known here."""
        return bool(self._why)

    async def send(self, data: bytes) -> None:
        try:
            await self._socket.send_bytes(data)
        except (ConnectionError, RuntimeError, aiohttp.ClientError) as error:
            raise LinkClosed(self._why or str(error) or "reset") from error

    async def receive(self) -> bytes:
        if self._why:  # aiohttp counts how often it is asked after the end, and then raises something else
            raise LinkClosed(self._why)
        message = await self._socket.receive()
        if message.type is WSMsgType.BINARY:
            return bytes(message.data)
        self._why = self._why or _ending(message)
        if message.type is WSMsgType.TEXT:
            await self._close(WSCloseCode.UNSUPPORTED_DATA, "binary messages only")
        raise LinkClosed(self._why)

    async def close(self, why: str) -> None:
        self._why = self._why or f"closed here: {why}"
        await self._close(WSCloseCode.OK, why)

    async def _close(self, code: int, why: str) -> None:
        reason = why.encode()[:120].decode(errors="ignore").encode()  # never half a character
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(CLOSE_S):
                await self._socket.close(code=code, message=reason)


_NO_NEWS = ("socket.send() raised exception.", "SSL connection is closed")


def _is_news(record: logging.LogRecord) -> bool:
    """Whether asyncio has something to tell besides that a connection, whose loss it is about to tell us, is lost."""
    return record.msg not in _NO_NEWS


# In Python 3.11 a TLS transport does not know yet that the one below it is lost, and takes what is sent meanwhile.
logging.getLogger("asyncio").addFilter(_is_news)


def _ending(message: aiohttp.WSMessage) -> str:
    """Why a control connection ended, from what came in place of a message."""
    match message.type:
        case WSMsgType.TEXT:
            return "text where binary is due"
        case WSMsgType.ERROR:
            too_big = getattr(message.data, "code", None) == WSCloseCode.MESSAGE_TOO_BIG
            return "message too long" if too_big else str(message.data) or "broken"
        case WSMsgType.CLOSE:
            return f"{CLOSED_THERE}{message.extra or message.data}"
        case _:
            return "reset by the other end"
