"""What TLS costs: a large model over mutual TLS against a raw mutual-TLS socket, small ones, and a new connection.

All of it between the same two processes in the same run, in turns; one direction at a time, so that each end may have
a core to itself.
"""

import asyncio
import hashlib
import socket
import ssl
import statistics
import threading
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any

from p2pfl.bench.children import run_children

_PORT = 17670  # and the two that follow
_PIECE = 1 << 20
_SMALL = 400_000  # bytes of an MNIST-size model
_SECRET = b"a key of this measurement alone!"
_PAUSE_S = 0.01  # between small models, as training would be


def measure(model_mb: int = 200, repeats: int = 5, small: int = 40, links: int = 40) -> dict[str, Any]:
    """GB/s of each way to move a model of `model_mb` MB, its hash apart, and milliseconds of small things; medians.

    `ratio` is that of ours to the raw socket over TLS, turn by turn. `connect_ms` is a new control connection with a
    message there and one back; `small_…` a model of 400 kB fetched over a kept connection.
    """
    sender, figures = run_children(_child, 2, model_mb, repeats, small, links)
    size = figures["bytes"] / 1e9
    median = {name: statistics.median(figures[name]) for name in figures if name.endswith("_s")}
    ratios = [raw / ours for raw, ours in zip(figures["raw_s"], figures["tls_s"], strict=True)]
    return {
        "model_mb": figures["bytes"] / 1e6,
        "raw_tls_gb_per_s": size / median["raw_s"],
        "tls_gb_per_s": size / median["tls_s"],
        "ratio": statistics.median(ratios),
        "ratio_by_turn": sorted(ratios),
        "plain_gb_per_s": size / median["plain_s"],
        "sha256_gb_per_s": size / median["sha256_s"],
        "cipher": figures["cipher"],
        "connect_ms": 1e3 * median["connect_s"],
        "connect_plain_ms": 1e3 * median["connect_plain_s"],
        "small_ms": 1e3 * median["small_s"],
        "small_plain_ms": 1e3 * median["small_plain_s"],
        "small_bodies": sender["small_bodies"],
        "small_connections": sender["small_connections"],
    }


def _child(index: int, barrier: Barrier, pipe: Connection, model_mb: int, repeats: int, small: int, links: int) -> None:
    size = model_mb * 1_000_000
    run = _serve(barrier, size) if index == 0 else _go(barrier, size, repeats, small, links)
    pipe.send(asyncio.run(run))


def _credentials(index: int) -> Any:  # Any: imported late, as everything heavy is here
    from p2pfl.identity import Identity
    from p2pfl.network.tls import Credentials
    from p2pfl.network_key import KeyRing, NetworkKey

    return Credentials(Identity(bytes([index + 1]) * 32), KeyRing(NetworkKey("bench", _SECRET)))


async def _serve(barrier: Barrier, size: int) -> dict[str, Any]:
    import numpy as np

    from p2pfl.errors import LinkClosed
    from p2pfl.network.http import HttpTransport
    from p2pfl.network.transport import Body, Link, Service, body_of

    model = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8).data
    sent: list[int] = []

    async def answer(link: Link) -> None:
        try:
            while True:
                await link.send(await link.receive())
        except LinkClosed:
            return

    def body(token: str, peer: str) -> Body:
        return body_of(model[: int(token)])

    service = Service(answer, body, lambda token, peer, count: sent.append(count), lambda: b"{}")
    encrypted = HttpTransport(("127.0.0.1",), _PORT, credentials=_credentials(0))
    plain = HttpTransport(("127.0.0.1",), _PORT + 1)
    raw = threading.Thread(target=_serve_raw, args=(model,))
    async with encrypted.serving(service), plain.serving(service):
        raw.start()
        await asyncio.to_thread(barrier.wait)  # all is open
        await asyncio.to_thread(barrier.wait)  # small models follow
        sent.clear()
        before = encrypted.admitted
        await asyncio.to_thread(barrier.wait)  # all is measured
        return {"small_bodies": len(sent) // 2, "small_connections": encrypted.admitted - before}


def _serve_raw(model: memoryview) -> None:
    """Send the model to whoever comes, until somebody comes and says nothing."""
    credentials = _credentials(0)
    with socket.create_server(("127.0.0.1", _PORT + 2)) as listener:
        while True:
            connection, _ = listener.accept()
            with credentials.server_context.wrap_socket(connection, server_side=True) as tls:
                if not tls.recv(1):
                    return
                for begin in range(0, len(model), _PIECE):
                    tls.sendall(model[begin : begin + _PIECE])


def _connect_raw() -> ssl.SSLSocket:
    tag, context = _credentials(1).client_contexts()[0]
    connection = socket.create_connection(("127.0.0.1", _PORT + 2))
    tls: ssl.SSLSocket = context.wrap_socket(connection, server_hostname=tag)
    return tls


def _fetch_raw(into: memoryview, ciphers: set[str]) -> None:
    with _connect_raw() as tls:
        tls.sendall(b"?")
        position = 0
        while position < len(into):
            position += tls.recv_into(into[position : position + _PIECE])
        ciphers.add((tls.cipher() or ("",))[0])


async def _go(barrier: Barrier, size: int, repeats: int, small: int, links: int) -> dict[str, Any]:
    import numpy as np

    from p2pfl.network.http import HttpTransport
    from p2pfl.network.transport import Link, Service

    async def accept(link: Link) -> None:
        await link.close("no control here")

    figures: dict[str, Any] = {}
    ciphers: set[str] = set()

    async def timed(name: str, what: Awaitable[object]) -> None:
        begun = time.perf_counter()
        await what
        figures.setdefault(name, []).append(time.perf_counter() - begun)

    service = Service(accept, lambda token, peer: None, lambda *_: None, lambda: b"{}")
    encrypted = HttpTransport(("127.0.0.1",), 0, credentials=_credentials(1))
    plain = HttpTransport(("127.0.0.1",), 0)
    at, at_plain = f"127.0.0.1:{_PORT}", f"127.0.0.1:{_PORT + 1}"
    buffer = np.zeros(size, dtype=np.uint8)

    def fetch(transport: HttpTransport, address: str, count: int) -> Awaitable[None]:
        return transport.fetch(address, str(count), "bench", buffer.data[:count])

    async def hello(transport: HttpTransport, address: str, times: int, name: str) -> None:
        for _ in range(times):
            link: list[Link] = []
            await timed(name, _hello(transport.connect, address, link))
            await link[0].close("measured")

    async with encrypted.serving(service), plain.serving(service):
        await asyncio.to_thread(barrier.wait)
        for turn in range(repeats + 1):
            await timed("raw_s", asyncio.to_thread(_fetch_raw, buffer.data, ciphers))
            await timed("tls_s", fetch(encrypted, at, size))
            await timed("plain_s", fetch(plain, at_plain, size))
            await timed("sha256_s", asyncio.to_thread(lambda: hashlib.sha256(buffer.data).digest()))
            await hello(encrypted, at, links // repeats, "connect_s")
            await hello(plain, at_plain, links // repeats, "connect_plain_s")
            if not turn:  # the first one touches the pages
                figures = {"bytes": size, "cipher": ciphers.pop()}
        await asyncio.to_thread(barrier.wait)
        for _ in range(small):
            await timed("small_s", fetch(encrypted, at, _SMALL))
            await timed("small_plain_s", fetch(plain, at_plain, _SMALL))
            await asyncio.sleep(_PAUSE_S)
    await asyncio.to_thread(lambda: _connect_raw().close())
    await asyncio.to_thread(barrier.wait)
    return figures


async def _hello(connect: Callable[[str], Awaitable[Any]], address: str, link: list[Any]) -> None:
    link.append(await connect(address))
    await link[0].send(b"hello")
    await link[0].receive()
