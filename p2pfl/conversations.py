"""Control connections of a live peer: for each, one task that reads and one that writes, from hello to goodbye."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from p2pfl.errors import LinkClosed, ProtocolError, Unreachable
from p2pfl.network.discovery import join_address, split_address
from p2pfl.network.transport import Link, Transport
from p2pfl.protocol.messages import Hello, Message, decode, encode
from p2pfl.protocol.participant import DialFailed, Event, LinkId, LinkLost, LinkOpened, Received
from p2pfl.types import PeerId

_HELLO_S = 5.0  # a connection that does not introduce itself is closed
_FLUSH_S = 0.5  # for the last messages when a connection ends

_log = logging.getLogger(__name__)


@dataclass
class Traffic:
    """Bytes of one peer since it began; bodies are models, control is everything else that was said."""

    sent: int = 0
    received: int = 0
    control_sent: int = 0
    control_received: int = 0


class Conversations:
    """All control connections of a peer. What happens on them goes to `handle`, on the event loop."""

    def __init__(
        self, transport: Transport, handle: Callable[[Event], None], traffic: Traffic, failures: Counter[str]
    ) -> None:
        self._transport = transport
        self._handle = handle
        self._traffic = traffic
        self._failures = failures
        self._outboxes: dict[LinkId, asyncio.Queue[bytes | str]] = {}  # messages, then a text: why it is closed
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()
        self.open = True  # to new connections
        # Where a connected peer's first connection comes from: that may work where its own word does not.
        self.seen: dict[PeerId, str] = {}
        self._saw: dict[LinkId, PeerId] = {}

    async def accept(self, link: Link) -> None:
        """Live as long as a connection that somebody else opened."""
        if self.open:
            await self._converse(link, None)

    async def dial(self, key: str, addresses: list[str]) -> None:
        """Open a connection to the first address that answers, and live as long as it."""
        refused, why = True, "no address"
        for address in addresses:
            try:
                link = await self._transport.connect(address)
            except Unreachable as error:
                refused, why = refused and error.refused, str(error)
            else:
                if self.open:
                    await self._converse(link, key)
                else:
                    await link.close("left")
                return
        self._handle(DialFailed(key, refused, why))

    def send(self, link: LinkId, message: Message) -> None:
        """Send a message, after those before it; nothing where the connection is gone."""
        outbox = self._outboxes.get(link)
        if outbox is not None:
            outbox.put_nowait(encode(message))

    def close(self, link: LinkId, why: str) -> None:
        """Close a connection once what was sent before is out."""
        outbox = self._outboxes.get(link)
        if outbox is not None:
            outbox.put_nowait(why)

    async def ended(self) -> None:
        """Wait for the last connection to end."""
        await self._none.wait()

    async def _converse(self, link: Link, dialed: str | None) -> None:
        """One connection from its first message to its last."""
        self._count += 1
        number = self._count
        self._outboxes[number] = asyncio.Queue()
        self._none.clear()
        self._handle(LinkOpened(number, dialed))
        listening = asyncio.create_task(self._listen(number, link))
        speaking = asyncio.create_task(self._speak(number, link))
        try:
            await asyncio.wait({listening, speaking}, return_when=asyncio.FIRST_COMPLETED)
            if not speaking.done():
                self._outboxes[number].put_nowait(listening.result())
                await asyncio.wait({speaking}, timeout=_FLUSH_S)
        finally:
            # Nobody listens any more while it is closed: the closing handshake then reads what is still under way. A
            # socket closed with unread data resets the connection, and the other end would lose our last words.
            for task in (listening, speaking):
                task.cancel()
            ends = await asyncio.gather(listening, speaking, return_exceptions=True)
            why = next((end for end in ends if isinstance(end, str)), "broken")
            self._handle(LinkLost(number, why))
            try:
                await link.close(why)
            finally:
                del self._outboxes[number]
                self.seen.pop(self._saw.pop(number, ""), None)
                if not self._outboxes:
                    self._none.set()

    async def _listen(self, number: LinkId, link: Link) -> str:
        """Hand on what the other end says; returns why that ended."""
        try:
            async with asyncio.timeout(_HELLO_S):
                await self._read(number, link)
            while True:
                await self._read(number, link)
        except TimeoutError:
            return "said nothing"
        except ProtocolError as error:
            self._failures[error.reason] += 1
            return error.reason
        except LinkClosed as error:
            return str(error)

    async def _read(self, number: LinkId, link: Link) -> None:
        data = await link.receive()
        self._traffic.control_received += len(data)
        message = decode(data)
        if isinstance(message, Hello) and message.me.peer not in self.seen:
            self.seen[message.me.peer] = _address_seen(message, link.remote)
            self._saw[number] = message.me.peer
        try:
            self._handle(Received(number, message))
        except Exception as error:  # a fault of ours on another peer's word costs that connection, not this peer
            _log.exception("a message from %s could not be handled", link.remote)
            raise ProtocolError("not understood", type(error).__name__) from error

    async def _speak(self, number: LinkId, link: Link) -> str:
        """Send what is in the outbox; returns why the connection is to be closed."""
        outbox = self._outboxes[number]
        try:
            while isinstance(data := await outbox.get(), bytes):
                await link.send(data)
                self._traffic.control_sent += len(data)
        except LinkClosed as error:
            return str(error)
        return data


def _address_seen(hello: Hello, remote: str) -> str:
    """Where a connection came from, with the port its peer serves on; empty if that cannot be told."""
    for address in hello.me.addresses:
        with suppress(ValueError):
            return join_address(remote, split_address(address)[1]) if remote else ""
    return ""
