"""Serving bodies: who may fetch now, and sending them piece by piece, no faster than the receiver reads."""

import asyncio
import logging

from aiohttp import web

from p2pfl.network.limits import Limits, Slots
from p2pfl.network.transport import Body, Service, Turned
from p2pfl.types import PeerId

_RETRY_S = 1  # when to come again, where there is no slot: about the time that a large body takes


class Uploads:
    """The bodies going out."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._slots = Slots(limits.max_uploads, limits.max_uploads_per_peer)
        self._under_way: set[asyncio.Transport] = set()

    def cut(self) -> None:
        """Break off every body that is going out."""
        for transport in self._under_way:
            if not transport.is_closing():
                transport.abort()

    async def serve(self, service: Service, request: web.Request, peer: PeerId) -> web.StreamResponse:
        """Answer a request for a body; `peer` asks, by its certificate, or in the clear by its own word."""
        transport, host = request.transport, request.remote or ""
        if transport is None:
            return refusal(404, "no such body")
        if not self._slots.take(peer):
            service.turned(Turned("body", "no free slot", host, peer))
            return later("other bodies are going out")
        try:
            token = request.match_info["token"]
            body = service.body(token, peer)
            if body is None:
                return refusal(404, "no such body")
            response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
            response.content_length = body.length
            self._under_way.add(transport)
            try:
                await self._stream(body, request, response)
            except (TimeoutError, ConnectionError) as error:
                slow = isinstance(error, TimeoutError)
                _log.info("a body to %s broke off: %s", host, "too slow" if slow else error)
                service.turned(Turned("body", "receiver too slow" if slow else "receiver gone", host, peer))
                if not transport.is_closing():  # a closed one has nothing left to abort, and says so with an error
                    transport.abort()
                return response
            finally:
                self._under_way.discard(transport)
        finally:
            self._slots.free(peer)
        service.sent(token, peer, body.length)
        return response

    async def _stream(self, body: Body, request: web.Request, response: web.StreamResponse) -> None:
        """One piece at a time: the next is made when most of the last is with the system, however slow the receiver."""
        async with asyncio.timeout(self._deadline_s(body.length)):
            await response.prepare(request)
            for piece in body.pieces():
                async with asyncio.timeout(self._deadline_s(len(piece))):
                    await response.write(piece)
            await response.write_eof()

    def _deadline_s(self, length: int) -> float:
        return self._limits.stall_s + length / self._limits.min_bytes_per_s


def refusal(status: int, text: str) -> web.Response:
    """An answer after which the connection is closed."""
    response = web.Response(status=status, text=text + "\n")
    response.force_close()
    return response


def later(text: str, status: int = 503) -> web.Response:
    """An answer that asks to come again; the connection is kept for that."""
    return web.Response(status=status, text=text + "\n", headers={"Retry-After": str(_RETRY_S)})


_log = logging.getLogger(__name__)
