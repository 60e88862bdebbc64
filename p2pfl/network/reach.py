"""Going to others: control connections, bodies and status, over TLS under the newest key that the other end honors."""

import asyncio
import errno
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
from aiohttp.client import ClientTimeout

from p2pfl.errors import FetchError, Unreachable
from p2pfl.keys import random_key
from p2pfl.network.discovery import join_address, split_address
from p2pfl.network.intake import take_in
from p2pfl.network.limits import Limits
from p2pfl.network.links import SocketLink
from p2pfl.network.tls import Credentials, peer_of
from p2pfl.network.transport import BANNED
from p2pfl.types import PeerId

_LARGE = 4 << 20  # bytes from which a body is worth a connection of its own, taken in without a copy
_MAX_STATUS = 1 << 16
_LATER = (429, 503)  # come again
_MIN_WAIT_S, _MAX_WAIT_S = 0.2, 8.0  # between two attempts
_T = TypeVar("_T")

_owner: ContextVar[PeerId] = ContextVar("owner", default="")  # who must answer the request of this task, if not anybody


class WrongPeer(Exception):
    """Somebody else answered than was to, or somebody who is banned."""


class _Connector(aiohttp.TCPConnector):
    """Connections whose other end has proved who it is, before a request is sent to it."""

    def __init__(self, credentials: Credentials | None, **settings: Any) -> None:  # Any: as aiohttp has them
        super().__init__(**settings)
        self._credentials = credentials

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Any], timeout: ClientTimeout
    ) -> aiohttp.connector.Connection:
        connection = await super().connect(req, traces, timeout)
        if self._credentials is not None:
            transport, owner = connection.transport, _owner.get()
            proven = peer_of(transport.get_extra_info("ssl_object")) if transport is not None else ""
            wrong = "it is banned" if self._credentials.bans(proven) else ""
            if not proven or (owner and proven != owner):
                wrong = f"{proven or 'nobody'} answered"
            if wrong:
                connection.close()
                raise WrongPeer(wrong)
        return connection


class Reach:
    """What goes from here to others."""

    def __init__(self, limits: Limits, credentials: Credentials | None, session: aiohttp.ClientSession) -> None:
        self._limits = limits
        self._credentials = credentials
        self._session = session

    async def connect(self, address: str) -> SocketLink:
        """See `Transport.connect`."""
        async with _named_failures(address, self._credentials is not None):
            async with asyncio.timeout(self._limits.connect_s):
                socket = await _with_each_key(self._credentials, lambda way: self._upgrade(address, way))
        host = split_address(address)[0]
        tls = socket.get_extra_info("ssl_object") if self._credentials is not None else None
        return SocketLink(socket, host) if tls is None else SocketLink(socket, host, peer_of(tls), tls.context)

    async def _upgrade(self, address: str, way: "_Way") -> aiohttp.ClientWebSocketResponse:
        socket: aiohttp.ClientWebSocketResponse = await self._session.ws_connect(
            way.url(address, "control"),
            max_msg_size=self._limits.max_message + 1,  # aiohttp refuses what is as long as its limit
            compress=0,
            heartbeat=self._limits.heartbeat_s,
            **way.settings,
        )
        return socket

    async def fetch(self, address: str, token: str, peer: str, into: memoryview, owner: PeerId = "") -> None:
        """See `Transport.fetch`."""
        _owner.set(owner)  # of this task: whoever needs another one at the same time fetches in another task
        path = f"body/{quote(token, safe='')}"
        busy = False  # it was told to come again: of that it dies at the deadline
        try:
            async with asyncio.timeout(self._limits.stall_s + len(into) / self._limits.min_bytes_per_s):
                attempt = 0
                while True:
                    wait_s = await _with_each_key(
                        self._credentials, lambda way: self._fetch(way.url(address, path), way.settings, peer, into)
                    )
                    if wait_s is None:
                        return
                    jitter = 0.5 + random_key(0, "retry", peer, token, attempt) / 2**63
                    busy = True
                    await asyncio.sleep(min(wait_s * 2**attempt, _MAX_WAIT_S) * jitter)
                    attempt += 1
        except FetchError as error:
            _without_frames(error)
            raise
        except WrongPeer as error:
            raise FetchError("wrong peer", str(error)) from _without_frames(error)
        except (Unreachable, aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, ValueError) as error:
            raise FetchError("unreachable", str(error)) from _without_frames(error)
        except TimeoutError as error:
            raise FetchError("busy" if busy else "too slow", address) from _without_frames(error)
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            raise FetchError("broken off", str(error)) from _without_frames(error)
        finally:
            _owner.set("")

    async def _fetch(self, url: str, settings: dict[str, Any], peer: str, into: memoryview) -> float | None:
        """Fetch once; seconds to wait before the next attempt, or None: it is here."""
        position = 0
        async with self._session.get(url, params={"peer": peer}, allow_redirects=False, **settings) as response:
            if response.status in _LATER:
                return _retry_after_s(response)
            _check_head(response, len(into))
            if len(into) >= _LARGE:
                await take_in(response, into, self._limits.stall_s)
                return None
            async for chunk in response.content.iter_any():
                end = position + len(chunk)
                if end > len(into):
                    raise FetchError("wrong size", "more bytes than announced")
                into[position:end] = chunk
                position = end
        if position != len(into):
            raise FetchError("broken off", f"after {position} of {len(into)} bytes")
        return None


@asynccontextmanager
async def reaching(limits: Limits, credentials: Credentials | None) -> AsyncIterator[Reach]:
    """Go to others inside the context; connections for bodies are kept a while, for the next one."""
    connector = _Connector(credentials, limit=0, force_close=False, keepalive_timeout=limits.idle_s / 2)
    async with aiohttp.ClientSession(
        auto_decompress=False,
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=ClientTimeout(total=None, sock_connect=limits.connect_s, sock_read=limits.stall_s),
    ) as session:
        yield Reach(limits, credentials, session)


async def fetch_status(address: str, timeout_s: float = 2.0, credentials: Credentials | None = None) -> bytes:
    """What the peer at an address tells of itself, to members of its network if that has a key: JSON, at most 64 KiB.

    Raises:
        Unreachable: no peer answers there, or none of this network.
    """

    async def ask(way: _Way) -> bytes:
        async with session.get(way.url(address, "status"), allow_redirects=False, **way.settings) as response:
            if credentials is not None and response.status == BANNED:
                raise Unreachable(f"{address}: it has banned this peer", reason="banned there")
            if response.status != 200 or "Content-Encoding" in response.headers:
                raise Unreachable(f"{address}: not a p2pfl peer")
            status = bytearray()
            async for chunk in response.content.iter_any():
                status += chunk
                if len(status) > _MAX_STATUS:
                    raise Unreachable(f"{address}: not a p2pfl peer")
            return bytes(status)

    async with (
        _named_failures(address, credentials is not None),
        asyncio.timeout(timeout_s),
        aiohttp.ClientSession(auto_decompress=False, connector=_Connector(credentials)) as session,
    ):
        return await _with_each_key(credentials, ask)


# Ways to go, one a key


class _Way:
    """How to address somebody: in the clear, or under one of our keys."""

    def __init__(self, tag: str = "", context: ssl.SSLContext | None = None) -> None:
        self._scheme = "http" if context is None else "https"
        plain: dict[str, Any] = {"headers": {"Host": "p2pfl"}}  # see `rebinding`: whatever name the user gave
        self.settings = plain if context is None else {"ssl": context, "server_hostname": tag}

    def url(self, address: str, path: str) -> str:
        """Of a path that is quoted already. Address and token are another peer's word: neither reaches into the other.

        Raises:
            ValueError: it is no address.
        """
        host, port = split_address(address)
        if not re.fullmatch(r"[\w.:%-]+", host):
            raise ValueError(f"{host!r} is no host")
        return f"{self._scheme}://{join_address(host, port)}/v1/{path}"


async def _with_each_key(credentials: Credentials | None, go: Callable[[_Way], Awaitable[_T]]) -> _T:
    """Try the newest key first, and a former one where the other end does not know that."""
    if credentials is None:
        return await go(_Way())
    *newer, oldest = (_Way(tag, context) for tag, context in credentials.client_contexts())
    for way in newer:
        try:
            return await go(way)
        except aiohttp.ClientConnectorError as error:
            if not _knows_no_such_key(error.os_error):
                raise
    return await go(oldest)


def _knows_no_such_key(error: OSError) -> bool:
    return "UNRECOGNIZED_NAME" in str(getattr(error, "reason", None))


# What went wrong, in words


@asynccontextmanager
async def _named_failures(address: str, encrypted: bool) -> AsyncIterator[None]:
    """Make every failure to reach somebody an `Unreachable` that says why."""
    try:
        yield
    except aiohttp.ClientConnectorError as error:
        refused = error.os_error.errno == errno.ECONNREFUSED
        reason = "other key" if _knows_no_such_key(error.os_error) else "unreachable"
        text = f"{address}: {_why_no_connection(error.os_error)}"
        raise Unreachable(text, refused=refused, reason=reason) from error
    except TimeoutError as error:
        raise Unreachable(f"{address}: no answer") from error
    except WrongPeer as error:
        raise Unreachable(f"{address}: {error}") from error
    except (aiohttp.ServerDisconnectedError, ConnectionError) as error:
        raise Unreachable(f"{address}: {_why_no_answer(error, encrypted)}") from error
    except aiohttp.ClientResponseError as error:
        reason = "banned there" if encrypted and error.status == BANNED else "unreachable"
        raise Unreachable(f"{address}: {_why_refused(error)}", reason=reason) from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise Unreachable(f"{address}: {_why_no_answer(error, encrypted)}") from error


def _why_no_connection(error: OSError) -> str:
    """Why there is no connection, from what system or TLS said."""
    reason = str(getattr(error, "reason", None) or "")
    if _knows_no_such_key(error):
        return "of another network, or its key was changed: join it with its present key"
    if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNEXPECTED_MESSAGE", "RECORD_LAYER_FAILURE"):
        return "speaks no TLS: that end is --insecure, this one is not"
    if isinstance(error, ssl.SSLCertVerificationError):
        return "of another network: its certificate is under another key"
    if "PROTOCOL_VERSION" in reason or reason == "UNSUPPORTED_PROTOCOL":
        return "speaks an older TLS than 1.3"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {reason or error}"
    if isinstance(error, ConnectionResetError):
        return "closed during the handshake: it is full, or of another network"
    return error.strerror or str(error)


def _why_no_answer(error: Exception, encrypted: bool) -> str:
    """Why a connection ended without an answer. In TLS 1.3 the refusal of our certificate comes this late."""
    text = str(error)
    if not encrypted:
        return text or "no answer"
    if "UNKNOWN_CA" in text or "CERTIFICATE" in text:
        return "does not take this peer's certificate: of another network"
    return "closed the connection without an answer: it is full, or leaves"


def _why_refused(error: aiohttp.ClientResponseError) -> str:
    """Why an answer was none."""
    if "\\x15\\x03" in error.message or "\x15\x03" in error.message:
        return "speaks TLS: this end is --insecure, that one is not"
    if error.status == BANNED:
        return "it has banned this peer"
    return f"not a p2pfl peer: status {error.status}" if error.status != 503 else "it is full, or leaving"


def _retry_after_s(response: aiohttp.ClientResponse) -> float:
    """When to come again; what is no number of seconds, or too many, counts as one, and at once is never."""
    text = response.headers.get("Retry-After", "1")
    return max(_MIN_WAIT_S, float(text)) if re.fullmatch(r"[0-9]{1,2}", text) else 1.0


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
