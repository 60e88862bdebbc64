"""The transport between machines: aiohttp, one port for everything, encrypted unless it is told otherwise.

    GET /v1/control        WebSocket with binary control messages
    GET /v1/body/TOKEN     a body of known length, streamed into the receiver's buffer
    GET /v1/status         a few facts in JSON, for whoever lists the network

Nothing is ever uploaded: a request with a body is refused unread. A connection that is outside a request for more
than a few seconds is closed, which covers clients that say nothing, headers that never end, and idle ones alike.
`doors` lets others in, `uploads` serves bodies, `reach` goes to others.
"""

import asyncio
import errno
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from weakref import WeakKeyDictionary, WeakSet

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from p2pfl.errors import FetchError, NetworkError, Unreachable
from p2pfl.network.discovery import join_address
from p2pfl.network.doors import Doors, Visitor
from p2pfl.network.limits import Limits, Rate
from p2pfl.network.links import CLOSE_S, SocketLink
from p2pfl.network.reach import Reach, fetch_status, reaching
from p2pfl.network.rebinding import is_of_this_host
from p2pfl.network.tls import Credentials
from p2pfl.network.transport import BANNED, Link, Service, Turned
from p2pfl.network.uploads import Uploads, later, refusal

__all__ = ["DEFAULT_PORT", "HttpTransport", "Limits", "fetch_status"]

DEFAULT_PORT = 7470
_PORTS_TRIED = 30
_SHUTDOWN_S = 0.25  # for requests under way when leaving
_BURST_S = 5.0  # of requests at the full rate, at once


class HttpTransport:
    """See `Transport`."""

    def __init__(
        self,
        hosts: tuple[str, ...] = ("0.0.0.0",),
        port: int | None = None,
        advertised: Callable[[], tuple[str, ...]] | None = None,
        limits: Limits | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        """Nothing is opened before `serving`.

        Args:
            hosts: addresses to listen on.
            port: a port that must be free; None takes the first free one from 7470 on, 0 any.
            advertised: the hosts at which others reach this machine, where `hosts` is a wildcard.
            limits: what others may take of this process; the defaults of `Limits` unless given.
            credentials: for links that are encrypted and authenticated at both ends; None is plain HTTP, for everybody
                who can reach this port.
        """
        self._hosts = hosts
        self._wanted_port = port
        self._advertised = advertised or (lambda: hosts)
        self._limits = limits or Limits()
        self.credentials = credentials
        self._port = 0
        self._service: Service | None = None  # None: not serving, or about to leave
        self._reach: Reach | None = None
        self._doors: Doors | None = None
        self._links: WeakSet[SocketLink] = WeakSet()  # whoever opened them
        self._requests: set[asyncio.Task[object]] = set()  # being answered

    @property
    def port(self) -> int:
        """The port in use, while serving."""
        return self._port

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(join_address(host, self._port) for host in self._advertised())

    @property
    def admitted(self) -> int:
        """Connections let in since it began to serve."""
        return self._doors.admitted if self._doors is not None else 0

    # Serving

    @asynccontextmanager
    async def serving(self, service: Service) -> AsyncIterator[None]:
        """Listen inside the context.

        Raises:
            NetworkError: the fixed port is in use, or no address can be listened on.
        """
        limits = self._limits
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
            self._rate = Rate(limits.max_requests_per_s, _BURST_S * limits.max_requests_per_s)
            self._uploads = Uploads(limits)
            self._reach = await stack.enter_async_context(reaching(limits, self.credentials))
            self._doors = Doors(limits, self.credentials, protocol, service.turned)
            await stack.enter_async_context(self._doors.open(listeners))
            stack.push_async_callback(self._part)
            if self.credentials is not None:
                renewing = asyncio.create_task(self._renew(self.credentials))
                stack.push_async_callback(_ended, renewing)
            self._service = service
            yield

    async def _part(self) -> None:
        """Cut the bodies going out, close the control connections in good order, and end what answers requests."""
        self._service = None
        self._uploads.cut()
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
                    same_port = port or (bound[0].getsockname()[1] if len(bound) > 1 else 0)
                    # Of a host with a scope, `bind` would leave the scope out.
                    listener.bind(socket.getaddrinfo(host, same_port, family, flags=socket.AI_NUMERICHOST)[0][4])
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

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        doors, service, task = self._doors, self._service, asyncio.current_task()
        visitor = doors.visitors.get(request.protocol) if doors is not None else None
        if doors is None or visitor is None or task is None or service is None:
            return refusal(503, "this peer is leaving")
        if doors.bans(visitor):
            return refusal(BANNED, "banned")
        if not doors.welcomes(visitor):  # it was kept since before: who comes again is told at the door
            visitor.transport.abort()
            return refusal(403, "the key was changed")
        visitor.idle_since, visitor.asked = None, True
        self._requests.add(task)
        loop = asyncio.get_running_loop()
        try:
            fault = _fault_of(request, self.credentials is not None)
            if fault is not None:
                status, reason, text = fault
                service.turned(Turned("request", reason, visitor.host, visitor.peer))
                return refusal(status, text)
            if not self._rate.admits(visitor.peer or visitor.host, loop.time()):
                service.turned(Turned("request", "too many requests", visitor.host, visitor.peer))
                return later("too many requests", 429)
            return await handler(request)
        finally:
            self._requests.discard(task)
            visitor.idle_since = loop.time()

    async def _serve_control(self, request: web.Request) -> web.StreamResponse:
        response = web.WebSocketResponse(
            max_msg_size=self._limits.max_message + 1,  # aiohttp refuses what is as long as its limit
            compress=False,
            heartbeat=self._limits.heartbeat_s,
            timeout=CLOSE_S,
        )
        try:
            await response.prepare(request)
        except ConnectionError:  # the other end went while it was being answered
            return refusal(503, "the connection is gone")  # aiohttp could not finish a half-prepared WebSocket
        visitor = self._visitor(request)
        peer, context = (visitor.peer, visitor.context) if visitor is not None else ("", None)
        link = SocketLink(response, request.remote or "", peer, context)
        self._links.add(link)
        try:
            if self._service is not None:
                await self._service.accept(link)
        finally:
            await link.close("left")
        return response

    async def _serve_body(self, request: web.Request) -> web.StreamResponse:
        if self._service is None:
            return refusal(503, "this peer is leaving")
        claimed = request.query.get("peer", "")[:64]
        visitor = self._visitor(request)
        peer = claimed if self.credentials is None else visitor.peer if visitor is not None else ""
        return await self._uploads.serve(self._service, request, peer)

    async def _serve_status(self, request: web.Request) -> web.StreamResponse:
        if self._service is None:
            return refusal(503, "this peer is leaving")
        return web.Response(body=self._service.status(), content_type="application/json")

    def _visitor(self, request: web.Request) -> Visitor | None:
        return self._doors.visitors.get(request.protocol) if self._doors is not None and request.protocol else None

    async def _renew(self, credentials: Credentials) -> None:
        """Close control links under a key that is honored no longer: who was handed the new one comes back.

        Not at once: a ban honors no former key, and the new one is handed on over these very links.
        """
        loop, limit_s = asyncio.get_running_loop(), self._limits.rekeyed_s
        since: WeakKeyDictionary[SocketLink, float] = WeakKeyDictionary()
        while True:
            await asyncio.sleep(min(1.0, limit_s / 4))
            now = loop.time()
            former = [link for link in tuple(self._links) if not (link.closed or credentials.honors(link.context))]
            late = [link for link in former if now - since.setdefault(link, now) >= limit_s]
            closings = (link.close("the key was changed") for link in late)
            await asyncio.gather(*closings, return_exceptions=True)  # one that breaks is closed all the same

    # Reaching others

    async def connect(self, address: str) -> Link:
        if self._service is None or self._reach is None:
            raise Unreachable("this peer has left the network")
        link = await self._reach.connect(address)
        self._links.add(link)
        return link

    async def fetch(self, address: str, token: str, peer: str, into: memoryview, owner: str = "") -> None:
        if self._service is None or self._reach is None:
            raise FetchError("unreachable", "this peer has left the network")
        await self._reach.fetch(address, token, peer, into, owner)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _fault_of(request: web.Request, encrypted: bool) -> tuple[int, str, str] | None:
    """What is wrong with a request, by its head: status, the phrase to count it by, and what its sender is told."""
    if "Content-Encoding" in request.headers:
        return 415, "compressed", "compressed bodies are not read"
    if request.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in request.headers:
        return 413, "has a body", "requests have no body here"
    if "Origin" in request.headers:
        return 403, "from a web page", "not for web pages"  # one that a person visits could talk to the peer at home
    if not encrypted and not is_of_this_host(request.headers.get("Host")):  # browsers have no certificate of ours
        return 421, "from a web page", "ask by an address: a name may be a web page's"
    return None


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether a log record is about this program, and not about a stranger's malformed request."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


_server_log = logging.getLogger(f"{__name__}.server")
_server_log.addFilter(_is_ours)
