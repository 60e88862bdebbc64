"""The doors of a transport: every connection that others open is let in here, or turned away for a counted reason.

In this order, each before anything is allocated for the next: descriptors left, connections in all and from that host,
the first byte (is it TLS at all?), a place among the handshakes, the handshake, the ban. Who is turned away from an
encrypted door gets a TLS alert at most, unless it has proved who it is: the banned are told that they are. From an open
door it gets a bare 503.
"""

import asyncio
import errno
import os
import socket
import ssl
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import cast

from p2pfl.network.limits import Limits, site_of
from p2pfl.network.places import Places
from p2pfl.network.tls import Credentials, peer_of
from p2pfl.network.transport import Turned
from p2pfl.types import PeerId

_FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_HANDSHAKE = 0x16  # the first byte of every TLS connection
_SPEAK_TLS = b"\x15\x03\x03\x00\x02\x02\x46"  # the alert "protocol version", for who sent something else
_RECORD_HEAD = 5  # bytes of a TLS record: its kind, the version, and its length
_LONGEST_RECORD = 1 << 14
_BETWEEN_PEEKS_S = 0.02  # at a hello that comes in pieces
_SPARE = 16  # descriptors left for files and for going to others
_SHUTDOWN_S = 0.25  # for the other end's parting word on an encrypted connection
_NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_REASONS = {  # OpenSSL's, of a handshake that failed
    "CALLBACK_FAILED": "other network",  # it named no network of ours
    "UNSUPPORTED_PROTOCOL": "old TLS",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no certificate",
    "CERTIFICATE_VERIFY_FAILED": "foreign certificate",
    "TLSV1_ALERT_UNKNOWN_CA": "foreign certificate",  # as it finds ours
}


@dataclass
class Visitor:
    """A connection that somebody else opened, and that was let in."""

    host: str
    peer: PeerId  # proven; empty in the clear
    transport: asyncio.Transport
    idle_since: float | None  # None: inside a request
    context: ssl.SSLContext | None = None  # that of the key under which it came
    asked: bool = False  # it made a request at all
    turned: bool = False  # it proved a banned id: it is told so, and that is all


class Doors:
    """Lets others in, keeps who is inside, and closes who stays without asking for anything."""

    def __init__(
        self,
        limits: Limits,
        credentials: Credentials | None,
        protocol: Callable[[], asyncio.Protocol],
        turned: Callable[[Turned], None],
    ) -> None:
        """protocol: makes what serves a connection; its `connection_made` is called once all is proven."""
        self._limits = limits
        self._credentials = credentials
        self._protocol = protocol
        self._turned = turned
        self.visitors: dict[asyncio.Protocol, Visitor] = {}
        self.admitted = 0  # since the beginning
        self._coming: dict[asyncio.Task[None], str] = {}  # not yet inside, with their hosts
        self._handshakes = Places(limits.max_handshakes, limits.max_handshakes_per_host)
        self._highest = _highest_descriptor()
        self._reserve: int | None = None  # a descriptor to give up, so that a newcomer can be told that there is none

    @asynccontextmanager
    async def open(self, listeners: Iterable[socket.socket]) -> AsyncIterator[None]:
        """Let others in inside the context; leaving it cuts whoever is still there."""
        self._keep_one()
        tasks = [asyncio.create_task(self._accept(listener)) for listener in listeners]
        tasks.append(asyncio.create_task(self._sweep()))
        try:
            yield
        finally:
            tasks += self._coming
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for visitor in self.visitors.values():
                if not visitor.transport.is_closing():
                    visitor.transport.abort()
            self.visitors.clear()
            if self._reserve is not None:
                os.close(self._reserve)

    # Coming in

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                newcomer, address = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno in _NO_DESCRIPTORS:
                    await self._turn_away_one(listener)
                await asyncio.sleep(0)  # other errors are of that connection, which is gone
                continue
            host = str(address[0])
            reason = self._no_room_for(newcomer, host)
            if reason:
                self._turn(newcomer, host, reason)
            else:
                task = asyncio.create_task(self._admit(newcomer, host))
                self._coming[task] = host
                task.add_done_callback(lambda task: self._coming.pop(task, None))
            await asyncio.sleep(0)  # accepting a flood does not wait, and would let nobody else run

    def _no_room_for(self, newcomer: socket.socket, host: str) -> str:
        """The limit that one more connection from there would break, if any."""
        if newcomer.fileno() > self._highest:
            return "no descriptors"
        inside = [visitor.host for visitor in self.visitors.values() if not visitor.transport.is_closing()]
        sites = [site_of(one) for one in (*inside, *self._coming.values())]
        site = site_of(host)
        within = sites.count(site) < self._limits.max_connections_per_host
        within = within and (len(sites) < self._limits.max_connections or self._makes_room(site))
        return "" if within else "too many connections"

    def _makes_room(self, site: str) -> bool:
        """Turn away the oldest that has not come in yet, of who has most of them, for one who has fewer."""
        coming = Counter(map(site_of, self._coming.values()))
        if not coming:
            return False
        largest, most = coming.most_common(1)[0]
        if most <= coming[site] + 1:
            return False
        oldest, host = next((task, host) for task, host in self._coming.items() if site_of(host) == largest)
        del self._coming[oldest]
        oldest.cancel()
        self._turned(Turned("connection", "too many connections", host))
        return True

    async def _turn_away_one(self, listener: socket.socket) -> None:
        """With no descriptor left, one is given up for as long as it takes to send the next newcomer away."""
        await _readable(listener)  # without a descriptor, accepting fails also where nobody comes
        if self._reserve is None:
            await asyncio.sleep(0.1)  # somebody else took it: wait until something is closed
        else:
            os.close(self._reserve)
            self._reserve = None
            with suppress(OSError):  # it left by itself, or somebody else was quicker
                newcomer, address = listener.accept()
                self._turn(newcomer, str(address[0]), "no descriptors")
        self._keep_one()

    def _keep_one(self) -> None:
        if self._reserve is None:
            with suppress(OSError):
                self._reserve = os.open(os.devnull, os.O_RDONLY)

    def _turn(self, newcomer: socket.socket, host: str, reason: str, last_words: bytes = b"", detail: str = "") -> None:
        words = last_words or (_FULL if self._credentials is None else b"")
        with newcomer, suppress(OSError):  # it may be closed already, and may have gone
            newcomer.setblocking(False)
            newcomer.send(words)
        self._turned(Turned("connection", reason, host, detail=detail))

    async def _admit(self, newcomer: socket.socket, host: str) -> None:
        loop = asyncio.get_running_loop()
        door = _Door(lambda transport: self._let_in(transport, host))
        if self._credentials is None:
            await loop.connect_accepted_socket(lambda: door, newcomer)
            return
        deadline = loop.time() + self._limits.idle_s
        place, first, me = None, b"", asyncio.current_task()
        speaking = _Speaking(self._credentials.server_context, newcomer)
        try:
            async with asyncio.timeout_at(deadline):
                first = await _first_bytes(newcomer, 1)
                if first and first[0] != _HANDSHAKE:
                    self._turn(newcomer, host, "no TLS", _SPEAK_TLS)
                    return
                if first:  # a slot only for who has said all of its hello, or as much as fits into one record
                    head = await _first_bytes(newcomer, _RECORD_HEAD)
                    await _first_bytes(newcomer, _RECORD_HEAD + min(int.from_bytes(head[3:5]), _LONGEST_RECORD))
                place = await self._handshakes.take(site_of(host), lambda: self._drop(me, host))
            await loop.connect_accepted_socket(
                lambda: door,
                newcomer,
                ssl=cast(ssl.SSLContext, speaking),
                ssl_handshake_timeout=max(0.01, deadline - loop.time()),
                ssl_shutdown_timeout=_SHUTDOWN_S,
            )
        except TimeoutError:
            with suppress(OSError):
                newcomer.recv(_LONGEST_RECORD)  # what was only looked at would make a reset of the closing
            self._turn(newcomer, host, "handshake too slow" if first else "said nothing")
        except OSError as error:  # ssl.SSLError is one
            reason = "former key" if self._credentials.is_late(speaking.tls) else _reason(error)
            self._turn(newcomer, host, reason, b"", str(error))
        except asyncio.CancelledError:
            newcomer.close()
            raise
        finally:
            if place is not None:
                self._handshakes.free(place)

    def _drop(self, task: asyncio.Task[None] | None, host: str) -> None:
        """End a handshake that makes room for another."""
        if task is not None and self._coming.pop(task, None) is not None:
            task.cancel()
            self._turned(Turned("connection", "handshake too slow", host))

    def _let_in(self, transport: asyncio.Transport, host: str) -> asyncio.Protocol | None:
        peer, context, banned = "", None, False
        if self._credentials is not None:
            tls = transport.get_extra_info("ssl_object")
            peer, context = peer_of(tls), tls.context
            banned = self._credentials.bans(peer)
            if not peer or banned:
                self._turned(Turned("connection", "banned" if peer else "foreign certificate", host, peer))
            if not peer:
                return None
        protocol = self._protocol()
        self.admitted += not banned
        now = asyncio.get_running_loop().time()
        self.visitors[protocol] = Visitor(host, peer, transport, now, context, turned=banned)
        return protocol

    def bans(self, visitor: Visitor) -> bool:
        """Whether who was let in is to be told that it is banned, and nothing else."""
        return self._credentials is not None and self._credentials.bans(visitor.peer)

    def welcomes(self, visitor: Visitor) -> bool:
        """Whether who was let in would be let in again: the key may have been changed, and the peer banned."""
        if self._credentials is None:
            return True
        return not self._credentials.bans(visitor.peer) and self._credentials.honors(visitor.context)

    # Being inside

    async def _sweep(self) -> None:
        """Close connections that are not inside a request, or whose peer was banned meanwhile, each second."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(1.0, self._limits.idle_s / 4))
            for protocol, visitor in list(self.visitors.items()):
                if visitor.transport.is_closing():
                    del self.visitors[protocol]
                elif self.bans(visitor):
                    visitor.transport.abort()
                    if not visitor.turned:
                        self._turned(Turned("connection", "banned", visitor.host, visitor.peer))
                elif visitor.idle_since is not None and not self.welcomes(visitor):
                    visitor.transport.abort()
                elif visitor.idle_since is not None and loop.time() - visitor.idle_since > self._limits.idle_s:
                    visitor.transport.abort()
                    if not visitor.asked:
                        self._turned(Turned("connection", "said nothing", visitor.host, visitor.peer))


class _Door(asyncio.Protocol):
    """Hands a connection to what serves it, or turns it away before anything of it is read."""

    def __init__(self, let_in: Callable[[asyncio.Transport], asyncio.Protocol | None]) -> None:
        self._let_in = let_in

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)
        protocol = self._let_in(transport)
        if protocol is None:
            transport.abort()
        else:
            transport.set_protocol(protocol)
            protocol.connection_made(transport)


class _Speaking:
    """A context for one connection whose refusals are sent: asyncio throws the alert of a failed handshake away."""

    def __init__(self, context: ssl.SSLContext, newcomer: socket.socket) -> None:
        self._context = context
        self._newcomer = newcomer
        self.tls: ssl.SSLObject | None = None  # once it has begun

    def wrap_bio(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, server_side: bool, server_hostname: str | None
    ) -> "_SpeakingObject":
        """As that of `ssl.SSLContext`."""

        def parting() -> None:
            with suppress(OSError):
                self._newcomer.send(outgoing.read())

        tls = self._context.wrap_bio(incoming, outgoing, server_side=server_side, server_hostname=server_hostname)
        self.tls = tls
        return _SpeakingObject(tls, parting)


class _SpeakingObject:
    """What asyncio needs of an `ssl.SSLObject`; all but the handshake is that object's own."""

    def __init__(self, tls: ssl.SSLObject, parting: Callable[[], None]) -> None:
        self._tls = tls
        self._parting = parting
        self.read, self.write, self.unwrap = tls.read, tls.write, tls.unwrap
        self.getpeercert, self.cipher, self.compression = tls.getpeercert, tls.cipher, tls.compression

    @property
    def context(self) -> ssl.SSLContext:
        """That of the key under which the other end came."""
        return self._tls.context

    def do_handshake(self) -> None:
        """As that of `ssl.SSLObject`."""
        try:
            self._tls.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLSyscallError):
            raise
        except ssl.SSLError:
            self._parting()
            raise


async def _first_bytes(newcomer: socket.socket, count: int) -> bytes:
    """Wait for so many bytes and leave them there; empty where none can be told."""
    if not await _readable(newcomer):
        return b""  # then the handshake finds out, at a higher price
    while len(come := newcomer.recv(count, socket.MSG_PEEK)) < count:
        if not come:
            raise ConnectionResetError(errno.ECONNRESET, "it went without a word")
        await asyncio.sleep(_BETWEEN_PEEKS_S)  # what has come is readable all the time
    return come


async def _readable(end: socket.socket) -> bool:
    """Wait until something has come; False where this event loop cannot tell."""
    loop, come = asyncio.get_running_loop(), asyncio.Event()
    try:
        loop.add_reader(end, come.set)
    except NotImplementedError:
        return False
    try:
        await come.wait()
    finally:
        loop.remove_reader(end)
    return True


def _reason(error: OSError) -> str:
    """The fixed phrase for a handshake that failed."""
    if isinstance(error, ConnectionAbortedError):
        return "handshake too slow"  # asyncio's own
    reason = getattr(error, "reason", None)
    return _REASONS.get(reason or "", "broken handshake")


def _highest_descriptor() -> int:
    """The highest descriptor that a newcomer may have; systems hand out the lowest that is free."""
    if sys.platform == "win32":
        return sys.maxsize
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if limit == resource.RLIM_INFINITY else max(0, limit - _SPARE)
