"""`/metrics` over plain HTTP, on a listener of its own: loopback unless told otherwise, as it says who takes part.

It answers in a few threads, so that neither a busy event loop silences it nor a crowd of strangers takes more than
those. Each request has a deadline on the whole, however slowly its pieces come; where all threads are taken, the
oldest request makes room.
"""

import errno
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from socketserver import ThreadingMixIn
from threading import Lock, Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from p2pfl.errors import NetworkError, UsageError
from p2pfl.network.discovery import join_address, split_address
from p2pfl.network.rebinding import is_of_this_host

DEFAULT_HOST = "127.0.0.1"
_DEADLINE_S = 2.0  # for a request on the whole
_THREADS = 8  # more serve more scrapers at once, and give strangers more of this process
_POLL_S = 0.1  # between looks at whether to end


def address_of(text: str) -> tuple[str, int]:
    """Read `[HOST:]PORT`; the host is loopback unless told, and port 0 any that is free.

    Raises:
        UsageError: it is of another form.
    """
    if text == "0":
        return DEFAULT_HOST, 0
    try:
        host, port = split_address(text if ":" in text else f"{DEFAULT_HOST}:{text}")
    except ValueError as error:
        raise UsageError(f"--metrics {text!r} is not of the form [HOST:]PORT, as 9464 or 192.168.1.20:9464") from error
    return host, port


@contextmanager
def shown(registry: CollectorRegistry, host: str, port: int) -> Iterator[str]:
    """Serve a registry inside the context; yields host:port, where 0 has become the port that was taken.

    Raises:
        NetworkError: the port is in use, or the address is none of this machine's.
    """
    kind = type("_Server", (_Server,), {"address_family": socket.AF_INET6 if ":" in host else socket.AF_INET})
    try:
        server = kind((host, port), _Request)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise NetworkError(
                f"port {port} is in use, metrics cannot be shown there: choose another --metrics"
            ) from error
        raise NetworkError(f"metrics cannot be shown at {join_address(host, port)}: {error.strerror}") from error
    server.set_app(_only_metrics(make_wsgi_app(registry)))
    thread = Thread(target=server.serve_forever, args=(_POLL_S,), name="metrics", daemon=True)
    thread.start()
    try:
        yield join_address(host, server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingMixIn, WSGIServer):
    request_queue_size = 16
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        self._lock = Lock()
        self._begun: dict[socket.socket, float] = {}  # requests under way, the oldest first
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own."""
        with self._lock:
            if len(self._begun) >= _THREADS:
                oldest = next(iter(self._begun))
                del self._begun[oldest]
                _cut(oldest)
            self._begun[request] = time.monotonic()
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Cut those that take too long; called between polls."""
        with self._lock:
            late = [end for end, begun in self._begun.items() if time.monotonic() - begun > _DEADLINE_S]
            for end in late:
                del self._begun[end]
                _cut(end)

    def shutdown_request(self, request: Any) -> None:
        """The answer is out, or the other end is gone."""
        with self._lock:
            self._begun.pop(request, None)
        super().shutdown_request(request)

    def server_bind(self) -> None:
        """Without the base's look-up of this machine's name, which can take seconds where the network is down."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "metrics", int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: object, client_address: object) -> None:
        """A stranger's broken connection is nobody's business."""


def _cut(end: socket.socket) -> None:
    """End a request; the thread that waits for it is woken, and closes it."""
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


class _Request(WSGIRequestHandler):
    timeout = _DEADLINE_S

    def log_message(self, format: str, *args: object) -> None:
        """Who reads the metrics is not told on the terminal."""

    def address_string(self) -> str:
        return str(self.client_address[0])  # the base would ask DNS


def _only_metrics(app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if not is_of_this_host(environ.get("HTTP_HOST")):
            start_response("421 Misdirected Request", [("Content-Type", "text/plain")])
            return [b"ask by an address: a name may be a web page's\n"]
        if environ["PATH_INFO"] != "/metrics":
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"metrics are at /metrics\n"]
        return app(environ, start_response)

    return answer
