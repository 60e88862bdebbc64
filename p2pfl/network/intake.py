"""Taking in a large body: the event loop writes what arrives straight into the receiver's buffer.

aiohttp reads the head and hands out the body in chunks of its own, which costs an allocation and a copy of every
byte. Once the head is checked, the connection is taken over instead by a protocol that offers the buffer itself to the
system call. The connection ends with the body.
"""

import asyncio

import aiohttp

from p2pfl.errors import FetchError


class _Intake(asyncio.BufferedProtocol):
    """Fills a buffer from a transport; `done` tells whether it is full, once that is known."""

    def __init__(self, transport: asyncio.Transport, into: memoryview, done: "asyncio.Future[bool]") -> None:
        self._transport = transport
        self._owner = transport.get_protocol()  # told of the connection's end
        self._into = into
        self._position = 0
        self._done = done

    @property
    def position(self) -> int:
        """Bytes taken in."""
        return self._position

    def let_go(self) -> None:
        """Forget the buffer: a TLS transport remembers its former protocols, and would keep it taken."""
        self._into = memoryview(b"")

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._into[self._position :]

    def buffer_updated(self, nbytes: int) -> None:
        self._position += nbytes
        if self._position == len(self._into) and not self._done.done():
            self._transport.pause_reading()  # whatever comes now is no part of the body
            self._done.set_result(True)

    def eof_received(self) -> None:
        self._end()

    def connection_lost(self, error: Exception | None) -> None:
        self._end()
        self._owner.connection_lost(error)

    def _end(self) -> None:
        if not self._done.done():
            self._done.set_result(False)


async def take_in(response: aiohttp.ClientResponse, into: memoryview, stall_s: float) -> None:
    """Fill `into` with the rest of a body whose length its head gives as that of `into`; closes the connection.

    Raises:
        FetchError: the body is longer or ends early.
        TimeoutError: nothing came for `stall_s` seconds.
    """
    connection = response.connection
    begun = response.content.read_nowait() if response.content.total_bytes else b""
    if len(begun) > len(into):
        raise FetchError("wrong size", "more bytes than announced")
    into[: len(begun)] = begun
    if connection is None or connection.transport is None:  # small enough to have arrived whole with the head
        if len(begun) != len(into):
            raise FetchError("broken off", f"after {len(begun)} of {len(into)} bytes")
        return
    transport = connection.transport
    done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    if len(begun) == len(into):
        transport.abort()
        return
    owner = transport.get_protocol()
    intake = _Intake(transport, into[len(begun) :], done)
    transport.set_protocol(intake)
    transport.resume_reading()
    try:
        seen = -1
        while not done.done():
            if intake.position == seen:
                raise TimeoutError(f"nothing came for {stall_s:g} s")
            seen = intake.position
            await asyncio.wait([done], timeout=stall_s)
        if (
            not done.result()
        ):  # raised here: an error that the protocol holds would hold these frames, and they the buffer
            raise FetchError("broken off", f"after {len(begun) + intake.position} of {len(into)} bytes")
    finally:
        transport.set_protocol(owner)
        transport.abort()
        intake.let_go()
