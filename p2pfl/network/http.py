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
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import cast
from urllib.parse import quote
from weakref import WeakSet

import aiohttp
from aiohttp import WSCloseCode, WSMsgType, web
from aiohttp.http_exceptions import HttpProcessingError

from p2pfl.errors import FetchError, LinkClosed, NetworkError, Unreachable
from p2pfl.network.discovery import join_address, split_address
from p2pfl.network.intake import take_in
from p2pfl.network.transport import Body, Link, Service

DEFAULT_PORT = 7470
_PORTS_TRIED = 30
_LARGE = 4 << 20  # bytes from which a body is worth a connection of its own, taken in without a copy
_CLOSE_S = 1.0  # for the other end's answer when a control connection closes
_SHUTDOWN_S = 0.25  # for requests under way when leaving
_MAX_STATUS = 1 << 16
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True)
class Limits:
    """What a transport bears from others. The defaults suit peers on a LAN, also a slow or busy one."""

    max_message: int = 1 << 18  # bytes of a control message, the longest included; more is more memory for strangers
    idle_s: float = 4.0  # outside a request, swept each second: closed within five; less cuts off slow machines
    connect_s: float = 3.0  # to open a connection; more bears slow links, less is sooner at the next address
    stall_s: float = 20.0  # without a byte, a transfer is given up; more bears longer gaps
    min_bytes_per_s: float = 16 * 1024  # a transfer slower than this on the whole is given up
    heartbeat_s: float = 5.0  # a silent control connection is asked this often, and lost half of this after
    max_connections: int = 1024  # more serves larger networks, and takes more descriptors from this process
    max_connections_per_host: int = 256  # more serves more peers on one machine, and leaves less for the others


@dataclass
class _Visitor:
    """A connection that somebody else opened."""

    host: str
    idle_since: float | None  # None: inside a request


class _Door(asyncio.Protocol):
    """Lets a new connection in, or turns it away before anything of it is read."""

    def __init__(self, admit: Callable[[asyncio.Transport], asyncio.Protocol | None]) -> None:
        self._admit = admit

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)
        protocol = self._admit(transport)
        if protocol is None:
            transport.write(_FULL)
            transport.close()
        else:
            transport.set_protocol(protocol)
            protocol.connection_made(transport)


class _SocketLink:
    """A WebSocket as a control connection, at either end."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse | web.WebSocketResponse, remote: str) -> None:
        self._socket = socket
        self._why = ""  # it is closed
        self.remote = remote
        self.proven = ""

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
            async with asyncio.timeout(_CLOSE_S):
                await self._socket.close(code=code, message=reason)


def _ending(message: aiohttp.WSMessage) -> str:
    """Why a control connection ended, from what came in place of a message."""
    match message.type:
        case WSMsgType.TEXT:
            return "text where binary is due"
        case WSMsgType.ERROR:
            too_big = getattr(message.data, "code", None) == WSCloseCode.MESSAGE_TOO_BIG
            return "message too long" if too_big else str(message.data) or "broken"
        case WSMsgType.CLOSE:
            return f"closed by the other end: {message.extra or message.data}"
        case _:
            return "reset by the other end"


class HttpTransport:
    """See `Transport`."""

    def __init__(
        self,
        hosts: tuple[str, ...] = ("0.0.0.0",),
        port: int | None = None,
        advertised: Callable[[], tuple[str, ...]] | None = None,
        limits: Limits | None = None,
        server_ssl: ssl.SSLContext | None = None,
        client_ssl: ssl.SSLContext | None = None,
    ) -> None:
        """Nothing is opened before `serving`.

        Args:
            hosts: addresses to listen on.
            port: a port that must be free; None takes the first free one from 7470 on, 0 any.
            advertised: the hosts at which others reach this machine, where `hosts` is a wildcard.
            limits: what others may take of this process; the defaults of `Limits` unless given.
            server_ssl, client_ssl: for encrypted links.
        """
        self._hosts = hosts
        self._wanted_port = port
        self._advertised = advertised or (lambda: hosts)
        self._limits = limits or Limits()
        self._server_ssl = server_ssl
        self._client_ssl = client_ssl
        self._port = 0
        self._service: Service | None = None  # None: not serving, or about to leave
        self._session: aiohttp.ClientSession | None = None
        self._visitors: dict[web.RequestHandler, _Visitor] = {}
        self._links: WeakSet[_SocketLink] = WeakSet()  # whoever opened them
        self._bodies: set[asyncio.Transport] = set()  # connections on which a body is going out
        self._requests: set[asyncio.Task[object]] = set()  # being answered

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
        limits, loop = self._limits, asyncio.get_running_loop()
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/v1/control", self._serve_control, allow_head=False)
        app.router.add_get("/v1/body/{token}", self._serve_body, allow_head=False)
        app.router.add_get("/v1/status", self._serve_status, allow_head=False)
        runner = web.AppRunner(
            app,
            access_log=None,
            logger=_server_log,
            shutdown_timeout=_SHUTDOWN_S,
            keepalive_timeout=limits.idle_s,
            auto_decompress=False,  # or a body would be inflated before its head is looked at
            lingering_time=0,  # or it would read for ten seconds what was refused
        )
        async with AsyncExitStack() as stack:  # left in the reverse order
            listeners = self._bind()
            for listener in listeners:
                stack.callback(listener.close)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            protocol = runner.server
            assert protocol is not None  # set up above

            def admit(transport: asyncio.Transport) -> asyncio.Protocol | None:
                host = str((transport.get_extra_info("peername") or ("",))[0])
                if not self._has_room_for(host):
                    return None
                handler = protocol()
                self._visitors[handler] = _Visitor(host, loop.time())
                return handler

            self._session = aiohttp.ClientSession(
                auto_decompress=False,
                connector=aiohttp.TCPConnector(limit=0, force_close=False, keepalive_timeout=limits.idle_s / 2),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=limits.connect_s, sock_read=limits.stall_s),
            )
            stack.push_async_callback(self._session.close)
            stack.push_async_callback(self._part)
            handshake_s = None if self._server_ssl is None else limits.idle_s
            for listener in listeners:
                server = await loop.create_server(
                    lambda: _Door(admit),
                    sock=listener,
                    ssl=self._server_ssl,
                    ssl_handshake_timeout=handshake_s,
                    backlog=128,
                )
                stack.callback(server.close)
            sweep = asyncio.create_task(self._sweep())
            stack.push_async_callback(_end, sweep)
            self._service = service
            yield

    async def _part(self) -> None:
        """Cut the bodies going out, close the control connections in good order, and end what answers requests."""
        self._service = None
        for transport in self._bodies:
            if not transport.is_closing():
                transport.abort()
        await asyncio.gather(*(link.close("left") for link in tuple(self._links)))
        if self._requests:
            await asyncio.wait(self._requests, timeout=_SHUTDOWN_S)
        for task in self._requests:
            task.cancel()
        await asyncio.gather(*self._requests, return_exceptions=True)

    def _bind(self) -> list[socket.socket]:
        """One socket a host, all with the same port."""
        if not self._hosts:
            raise NetworkError("no address to listen on: is the network interface up?")
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
                    if os.name == "posix":  # elsewhere it would let two processes share the port
                        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    if family == socket.AF_INET6:
                        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
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
        if self._wanted_port:
            raise NetworkError(f"port {self._wanted_port} is in use; choose another --port, or leave it out")
        raise NetworkError(f"no port is free on {', '.join(self._hosts)}")

    def _has_room_for(self, host: str) -> bool:
        """Whether one more connection from there is within the limits."""
        hosts = [visitor.host for handler, visitor in self._visitors.items() if handler.transport is not None]
        return len(hosts) < self._limits.max_connections and hosts.count(host) < self._limits.max_connections_per_host

    async def _sweep(self) -> None:
        """Close connections that are not inside a request, each second."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(1.0, self._limits.idle_s / 4))
            for handler, visitor in list(self._visitors.items()):
                if handler.transport is None:
                    del self._visitors[handler]
                elif visitor.idle_since is not None and loop.time() - visitor.idle_since > self._limits.idle_s:
                    handler.transport.abort()

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        visitor, task = self._visitors.get(request.protocol), asyncio.current_task()
        if visitor is None or task is None or self._service is None:
            return _refusal(503, "this peer is leaving")
        visitor.idle_since = None
        self._requests.add(task)
        try:
            if "Content-Encoding" in request.headers:
                return _refusal(415, "compressed bodies are not read")
            if request.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in request.headers:
                return _refusal(413, "requests have no body here")
            if "Origin" in request.headers:
                return _refusal(403, "not for web pages")  # one that a person visits could talk to the peer at home
            return await handler(request)
        finally:
            self._requests.discard(task)
            visitor.idle_since = asyncio.get_running_loop().time()

    async def _serve_control(self, request: web.Request) -> web.StreamResponse:
        response = web.WebSocketResponse(
            max_msg_size=self._limits.max_message + 1,  # aiohttp refuses what is as long as its limit
            compress=False,
            heartbeat=self._limits.heartbeat_s,
            timeout=_CLOSE_S,
        )
        try:
            await response.prepare(request)
        except ConnectionError:  # the other end went while it was being answered
            return response
        link = _SocketLink(response, request.remote or "")
        self._links.add(link)
        try:
            if self._service is not None:
                await self._service.accept(link)
        finally:
            await link.close("left")
        return response

    async def _serve_body(self, request: web.Request) -> web.StreamResponse:
        service, transport = self._service, request.transport
        token, peer = request.match_info["token"], request.query.get("peer", "")[:64]
        body = service.body(token, peer) if service is not None else None
        if service is None or body is None or transport is None:
            return _refusal(404, "no such body")
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        response.content_length = body.length
        self._bodies.add(transport)
        try:
            await self._stream(body, request, response)
        except (TimeoutError, ConnectionError) as error:
            _log.info("a body to %s broke off: %s", request.remote, error or "too slow")
            if not transport.is_closing():  # a closed one has nothing left to abort, and says so with an error
                transport.abort()
            return response
        finally:
            self._bodies.discard(transport)
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

    async def _serve_status(self, request: web.Request) -> web.StreamResponse:
        if self._service is None:
            return _refusal(503, "this peer is leaving")
        return web.Response(body=self._service.status(), content_type="application/json")

    # Reaching others

    async def connect(self, address: str) -> Link:
        try:
            url = _url(address, "control", self._client_ssl)
            async with asyncio.timeout(self._limits.connect_s):
                socket = await self._client().ws_connect(
                    url,
                    max_msg_size=self._limits.max_message + 1,
                    compress=0,
                    heartbeat=self._limits.heartbeat_s,
                    ssl=self._client_ssl or True,
                )
        except aiohttp.ClientConnectorError as error:
            refused = error.os_error.errno == errno.ECONNREFUSED
            raise Unreachable(f"{address}: {error.os_error.strerror or error.os_error}", refused=refused) from error
        except TimeoutError as error:
            raise Unreachable(f"{address}: no answer") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Unreachable(f"{address}: {error}") from error
        link = _SocketLink(socket, split_address(address)[0])
        self._links.add(link)
        return link

    async def fetch(self, address: str, token: str, peer: str, into: memoryview, owner: str = "") -> None:
        try:
            async with asyncio.timeout(self._deadline_s(len(into))):
                await self._fetch(_url(address, f"body/{quote(token, safe='')}", self._client_ssl), peer, into)
        except FetchError as error:
            _without_frames(error)
            raise
        except (Unreachable, aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, ValueError) as error:
            raise FetchError("unreachable", str(error)) from _without_frames(error)
        except TimeoutError as error:
            raise FetchError("too slow", address) from _without_frames(error)
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            raise FetchError("broken off", str(error)) from _without_frames(error)

    async def _fetch(self, url: str, peer: str, into: memoryview) -> None:
        position = 0
        async with self._client().get(
            url, params={"peer": peer}, ssl=self._client_ssl or True, allow_redirects=False
        ) as response:
            _check_head(response, len(into))
            if len(into) >= _LARGE:
                await take_in(response, into, self._limits.stall_s)
                return
            async for chunk in response.content.iter_any():
                end = position + len(chunk)
                if end > len(into):
                    raise FetchError("wrong size", "more bytes than announced")
                into[position:end] = chunk
                position = end
        if position != len(into):
            raise FetchError("broken off", f"after {position} of {len(into)} bytes")

    def _client(self) -> aiohttp.ClientSession:
        if self._service is None or self._session is None:
            raise Unreachable("this peer has left the network")
        return self._session

    def _deadline_s(self, length: int) -> float:
        return self._limits.stall_s + length / self._limits.min_bytes_per_s


def _without_frames(error: BaseException) -> BaseException:
    """The error without its tracebacks.

    aiohttp and asyncio keep errors in what they passed, and their frames the buffer: it would stay taken until the next
    garbage collection.
    """
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


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
    """Of a path that is quoted already. Address and token are another peer's word: neither may reach into the other.

    Raises:
        ValueError: it is no address.
    """
    host, port = split_address(address)
    if not re.fullmatch(r"[\w.:%-]+", host):
        raise ValueError(f"{host!r} is no host")
    return f"{'http' if context is None else 'https'}://{join_address(host, port)}/v1/{path}"


def _refusal(status: int, text: str) -> web.Response:
    response = web.Response(status=status, text=text + "\n")
    response.force_close()
    return response


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether a log record is about this program, and not about a stranger's malformed request."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


_log = logging.getLogger(__name__)
_server_log = logging.getLogger(f"{__name__}.server")
_server_log.addFilter(_is_ours)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def fetch_status(address: str, timeout_s: float = 2.0, context: ssl.SSLContext | None = None) -> bytes:
    """What the peer at an address tells anybody of itself: JSON, at most 64 KiB.

    Raises:
        Unreachable: no peer answers there.
    """
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    try:
        async with (
            aiohttp.ClientSession(auto_decompress=False, timeout=timeout) as session,
            session.get(_url(address, "status", context), ssl=context or True, allow_redirects=False) as response,
        ):
            if response.status != 200 or "Content-Encoding" in response.headers:
                raise Unreachable(f"{address}: not a p2pfl peer")
            status = bytearray()
            async for chunk in response.content.iter_any():
                status += chunk
                if len(status) > _MAX_STATUS:
                    raise Unreachable(f"{address}: not a p2pfl peer")
            return bytes(status)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        raise Unreachable(f"{address}: {str(error) or 'no answer'}") from error
