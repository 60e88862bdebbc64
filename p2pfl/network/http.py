"""The transport between machines: aiohttp, one port for everything.

    GET /v1/control        WebSocket with binary control messages
    GET /v1/body/TOKEN     a body of known length, streamed into the receiver's buffer
    GET /v1/status         a few facts in JSON, for whoever lists the network

Nothing is ever uploaded: a request with a body is refused unread. A connection that is outside a request for more
than a few seconds is closed, which covers clients that say nothing, headers that never end, and idle ones alike.
"""

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import aiohttp
from aiohttp import WSMsgType, web

from p2pfl.errors import FetchError, LinkClosed, NetworkError, Unreachable
from p2pfl.network.discovery import join_address, split_address
from p2pfl.network.transport import Link, Service

DEFAULT_PORT = 7470
_PORTS_TRIED = 30
_IDLE_S = 4.0  # swept each second: closed within five
_CONNECT_S = 3.0
_STALL_S = 20.0  # without a byte, a transfer is given up
_MIN_BYTES_PER_S = 16 * 1024  # a transfer slower than this on the whole is given up
_HEARTBEAT_S = 5.0
_MAX_CONNECTIONS = 1024

_log = logging.getLogger(__name__)


class _SocketLink:
    """A WebSocket as a control connection, at either end."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse | web.WebSocketResponse, remote: str) -> None:
        self._socket = socket
        self.remote = remote

    async def send(self, data: bytes) -> None:
        try:
            await self._socket.send_bytes(data)
        except (ConnectionError, RuntimeError, aiohttp.ClientError) as error:
            raise LinkClosed(str(error) or "reset") from error

    async def receive(self) -> bytes:
        message = await self._socket.receive()
        if message.type is WSMsgType.BINARY:
            return bytes(message.data)
        if message.type is WSMsgType.TEXT:
            await self._socket.close(code=aiohttp.WSCloseCode.UNSUPPORTED_DATA, message=b"binary messages only")
            raise LinkClosed("text where binary is due")
        if message.type is WSMsgType.ERROR:
            raise LinkClosed(str(self._socket.exception() or "broken"))
        raise LinkClosed("closed by the other end")

    async def close(self, why: str) -> None:
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(1.0):
                await self._socket.close(message=why.encode()[:120])


class HttpTransport:
    """See `Transport`."""

    def __init__(
        self,
        hosts: tuple[str, ...] = ("0.0.0.0",),
        port: int | None = None,
        advertised: Callable[[], tuple[str, ...]] | None = None,
        max_message: int = 1 << 18,
        server_ssl: ssl.SSLContext | None = None,
        client_ssl: ssl.SSLContext | None = None,
    ) -> None:
        """Nothing is opened before `serving`.

        Args:
            hosts: addresses to listen on.
            port: a port that must be free; None takes the first free one from 7470 on, 0 any.
            advertised: the hosts at which others reach this machine, where `hosts` is a wildcard.
            max_message: bytes of a control message; a longer one closes the connection.
            server_ssl, client_ssl: for encrypted links.
        """
        self._hosts = hosts
        self._wanted_port = port
        self._advertised = advertised or (lambda: hosts)
        self._max_message = max_message
        self._server_ssl = server_ssl
        self._client_ssl = client_ssl
        self._port = 0
        self._session: aiohttp.ClientSession | None = None
        self._idle_since: dict[web.RequestHandler, float | None] = {}  # None: inside a request

    @property
    def port(self) -> int:
        """The port in use, while serving."""
        return self._port

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(join_address(host, self._port) for host in self._advertised())

    # Serving

    @asynccontextmanager
    async def serving(self, service: Service) -> AsyncIterator[None]:
        """Listen inside the context.

        Raises:
            NetworkError: the fixed port is in use, or no address can be listened on.
        """
        app = web.Application(middlewares=[self._guard])
        app["service"] = service
        app["sockets"] = set()
        app.router.add_get("/v1/control", self._serve_control)
        app.router.add_get("/v1/body/{token}", self._serve_body)
        app.router.add_get("/v1/status", self._serve_status)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, keepalive_timeout=_IDLE_S)
        await runner.setup()
        sockets = self._bind()
        loop = asyncio.get_running_loop()
        protocol = runner.server
        assert protocol is not None  # set up above

        def connected() -> asyncio.Protocol:
            handler = protocol()
            self._idle_since[handler] = loop.time()
            return handler

        servers = [await loop.create_server(connected, sock=s, ssl=self._server_ssl, backlog=128) for s in sockets]
        self._session = aiohttp.ClientSession(
            auto_decompress=False,
            connector=aiohttp.TCPConnector(limit=0, force_close=False, keepalive_timeout=_IDLE_S / 2),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_STALL_S),
        )
        sweep = asyncio.create_task(self._sweep())
        try:
            yield
        finally:
            sweep.cancel()
            for server in servers:
                server.close()
            await asyncio.gather(*(ws.close(code=1001, message=b"left") for ws in set(app["sockets"])))
            await self._session.close()
            await runner.cleanup()
            await asyncio.gather(sweep, return_exceptions=True)
            self._idle_since.clear()

    def _bind(self) -> list[socket.socket]:
        """One socket a host, all with the same port."""
        if self._wanted_port is not None:
            tried = [self._wanted_port]
        else:
            tried = [*range(DEFAULT_PORT, DEFAULT_PORT + _PORTS_TRIED), 0]
        for port in tried:
            bound: list[socket.socket] = []
            try:
                for host in self._hosts:
                    family = socket.AF_INET6 if ":" in host else socket.AF_INET
                    listener = socket.socket(family, socket.SOCK_STREAM)
                    bound.append(listener)
                    listener.setblocking(False)
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    listener.bind((host, port or (bound[0].getsockname()[1] if len(bound) > 1 else 0)))
                    listener.listen(128)
            except OSError as error:
                for listener in bound:
                    listener.close()
                if error.errno != errno.EADDRINUSE:
                    raise NetworkError(f"cannot listen on {', '.join(self._hosts)}: {error.strerror}") from error
                continue
            self._port = int(bound[0].getsockname()[1])
            return bound
        raise NetworkError(f"port {self._wanted_port} is in use; choose another --port, or leave it out")

    async def _sweep(self) -> None:
        """Close connections that are not inside a request, each second."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1.0)
            for handler, since in list(self._idle_since.items()):
                if handler.transport is None:
                    if since is None or loop.time() - since > _IDLE_S:
                        del self._idle_since[handler]
                elif since is not None and loop.time() - since > _IDLE_S:
                    handler.transport.abort()
                    del self._idle_since[handler]

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        connection = request.protocol
        if len(self._idle_since) > _MAX_CONNECTIONS:
            return _refusal(503, "too many connections")
        self._idle_since[connection] = None
        try:
            if "Content-Encoding" in request.headers:
                return _refusal(415, "compressed bodies are not read")
            if request.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in request.headers:
                return _refusal(413, "requests have no body here")
            return await handler(request)
        finally:
            if connection.transport is not None:
                self._idle_since[connection] = asyncio.get_running_loop().time()

    async def _serve_control(self, request: web.Request) -> web.StreamResponse:
        response = web.WebSocketResponse(
            max_msg_size=self._max_message, compress=False, heartbeat=_HEARTBEAT_S, timeout=1.0
        )
        await response.prepare(request)
        request.app["sockets"].add(response)
        try:
            await request.app["service"].accept(_SocketLink(response, request.remote or ""))
        finally:
            request.app["sockets"].discard(response)
            await response.close()
        return response

    async def _serve_body(self, request: web.Request) -> web.StreamResponse:
        service: Service = request.app["service"]
        token, peer = request.match_info["token"], request.query.get("peer", "")[:64]
        body = service.body(token, peer)
        if body is None:
            return _refusal(404, "no such body")
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        response.content_length = body.length
        await response.prepare(request)
        try:
            async with asyncio.timeout(_deadline_s(body.length)):
                for piece in body.pieces():
                    async with asyncio.timeout(3 * _STALL_S):
                        await response.write(piece)
                await response.write_eof()
        except (TimeoutError, ConnectionError) as error:
            _log.info("a body to %s broke off: %s", request.remote, error or "too slow")
            if request.transport is not None:
                request.transport.abort()
            return response
        service.sent(token, peer, body.length)
        return response

    async def _serve_status(self, request: web.Request) -> web.StreamResponse:
        service: Service = request.app["service"]
        return web.Response(body=service.status(), content_type="application/json")

    # Reaching others

    async def connect(self, address: str) -> Link:
        try:
            url = _url(address, "control", self._client_ssl)
            async with asyncio.timeout(_CONNECT_S):
                socket = await self._client().ws_connect(
                    url,
                    max_msg_size=self._max_message,
                    compress=0,
                    heartbeat=_HEARTBEAT_S,
                    ssl=self._client_ssl or True,
                )
        except aiohttp.ClientConnectorError as error:
            refused = isinstance(error.os_error, ConnectionRefusedError)
            raise Unreachable(f"{address}: {error.os_error.strerror}", refused=refused) from error
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise Unreachable(f"{address}: {error or 'no answer'}") from error
        return _SocketLink(socket, split_address(address)[0])

    async def fetch(self, address: str, token: str, peer: str, into: memoryview) -> None:
        try:
            url = _url(address, f"body/{token}", self._client_ssl)
            async with (
                asyncio.timeout(_deadline_s(len(into))),
                self._client().get(
                    url, params={"peer": peer}, ssl=self._client_ssl or True, allow_redirects=False
                ) as response,
            ):
                _check_head(response, len(into))
                position = 0
                async for chunk in response.content.iter_any():
                    end = position + len(chunk)
                    if end > len(into):
                        raise FetchError("wrong size", "more bytes than announced")
                    into[position:end] = chunk
                    position = end
        except aiohttp.ClientConnectorError as error:
            raise FetchError("unreachable", str(error)) from error
        except TimeoutError as error:
            raise FetchError("too slow", address) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise FetchError("broken off", str(error)) from error
        if position != len(into):
            raise FetchError("broken off", f"after {position} of {len(into)} bytes")

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            raise Unreachable("this peer has left the network")
        return self._session


def _check_head(response: aiohttp.ClientResponse, expected: int) -> None:
    """Refuse an answer by its head alone, before a byte of its body is taken in."""
    if response.status == 404:
        raise FetchError("gone", "the offer was withdrawn")
    if response.status != 200:
        raise FetchError("refused", f"status {response.status}")
    if "Content-Encoding" in response.headers or "Transfer-Encoding" in response.headers:
        raise FetchError("encoded body", "bodies are plain and of known length")
    if response.headers.get("Content-Length") != str(expected):
        raise FetchError("wrong size", f"{response.headers.get('Content-Length')} bytes instead of {expected}")


def _url(address: str, path: str, context: ssl.SSLContext | None) -> str:
    host, port = split_address(address)
    return f"{'http' if context is None else 'https'}://{join_address(host, port)}/v1/{path}"


def _deadline_s(length: int) -> float:
    return _STALL_S + length / _MIN_BYTES_PER_S


def _refusal(status: int, text: str) -> web.Response:
    response = web.Response(status=status, text=text + "\n")
    response.force_close()
    return response


async def fetch_status(address: str, timeout_s: float = 2.0, context: ssl.SSLContext | None = None) -> bytes:
    """What the peer at an address tells anybody of itself: JSON, at most 64 KiB.

    Raises:
        Unreachable: no peer answers there.
    """
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    try:
        async with (
            aiohttp.ClientSession(auto_decompress=False, timeout=timeout) as session,
            session.get(_url(address, "status", context), allow_redirects=False) as response,
        ):
            if response.status != 200 or "Content-Encoding" in response.headers:
                raise Unreachable(f"{address}: not a p2pfl peer")
            return await response.content.read(1 << 16)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        raise Unreachable(f"{address}: {error or 'no answer'}") from error
