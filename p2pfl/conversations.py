"""Control connections of a live peer: for each, one task that reads and one that writes, from hello to goodbye.

Nobody on the other end can make this one hold much: what waits to be sent is bounded, and so is how much is listened
to. Who breaks these rules loses the connection, and that is told as a `Refusal`.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from p2pfl.errors import LinkClosed, ProtocolError, Unreachable
from p2pfl.events import Refusal
from p2pfl.network.dialing import connect_to_any
from p2pfl.network.discovery import join_address, split_address
from p2pfl.network.links import CLOSED_THERE
from p2pfl.network.transport import Link, Transport
from p2pfl.protocol.messages import Hello, Message, decode, encode
from p2pfl.protocol.participant import DialFailed, Event, LinkId, LinkLost, LinkOpened, Received
from p2pfl.types import PeerId

_HELLO_S = 5.0  # a connection that does not introduce itself is closed
_LOOKS = 5  # in that time: a process that was stopped meanwhile misses one, and still listens for the others
_MOST_UNREACHED = 1024  # addresses and peers of whom it was told that they do not answer
_MOST_BUCKETS = 1024  # peers of whom it is kept how much they have said
_FLUSH_S = 0.5  # for the last messages when a connection ends

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bounds:
    """What one control connection, and all those of one peer, may take of this process."""

    waiting_bytes: int = 8 << 20  # of messages that the other end does not read; more bears longer pauses of it
    per_s: float = 2000.0  # messages in the long run; less spares the processor, and cuts off rounds of a millisecond
    burst: float = 10_000.0  # messages at once, as after a pause of this process
    message_bytes: int = 4096  # a longer one counts as several


@dataclass
class Traffic:
    """Bytes of one peer since it began; bodies are models, control is everything else that was said."""

    sent: int = 0
    received: int = 0
    control_sent: int = 0
    control_received: int = 0


@dataclass
class _Conversation:
    """One connection, as this end has it."""

    link: Link
    broken_off: asyncio.Future[str]  # why, where this end will not wait for what is still to be sent
    outbox: asyncio.Queue[bytes | str] = field(default_factory=asyncio.Queue)  # messages, then why it is closed
    waiting: int = 0  # bytes in the outbox
    peer: PeerId = ""  # as its hello said
    dialed: Sequence[str] = ()  # where, if this end did


class Conversations:
    """All control connections of a peer. What happens on them goes to `handle`, on the event loop."""

    def __init__(
        self,
        me: PeerId,
        transport: Transport,
        handle: Callable[[Event], None],
        traffic: Traffic,
        tell: Callable[[Refusal], None],
        bounds: Bounds | None = None,
    ) -> None:
        """tell: takes what was refused."""
        self._me = me
        self._transport = transport
        self._handle = handle
        self._traffic = traffic
        self._tell = tell
        self._bounds = bounds or Bounds()
        self._conversations: dict[LinkId, _Conversation] = {}
        self._buckets: dict[PeerId, _Bucket] = {}
        self._count = 0
        self._unreached: dict[str, str] = {}  # whom, and why
        self._none = asyncio.Event()
        self._none.set()
        self.open = True  # to new connections
        # Where a connected peer's first connection comes from: that may work where its own word does not.
        self.seen: dict[PeerId, str] = {}

    async def accept(self, link: Link) -> None:
        """Live as long as a connection that somebody else opened."""
        if self.open:
            await self._converse(link, None)

    async def dial(self, key: str, addresses: Sequence[str]) -> None:
        """Open a connection to the first address that answers, and live as long as it.

        Args:
            key: a peer's id, who must be there; or the address of somebody unknown.
        """
        owner = "" if ":" in key else key
        try:
            link = await connect_to_any(self._transport, addresses, owner=owner)
        except Unreachable as error:
            # Where it is refused nobody is there, and nothing was turned down; a peer that is gone is told of once.
            if not error.refused and self._unreached.get(key) != error.reason:
                if len(self._unreached) >= _MOST_UNREACHED:
                    self._unreached.clear()
                self._unreached[key] = error.reason
                self._refused("dial", error.reason, other=owner, remote=", ".join(addresses), detail=str(error))
            self._handle(DialFailed(key, error.refused, str(error)))
            return
        self._unreached.pop(key, None)
        if self.open:
            await self._converse(link, key, addresses)
        else:
            await link.close("left")

    def send(self, link: LinkId, message: Message) -> None:
        """Send a message, after those before it; nothing where the connection is gone."""
        conversation = self._conversations.get(link)
        if conversation is None or conversation.broken_off.done():
            return
        data = encode(message)
        conversation.waiting += len(data)
        if conversation.waiting > self._bounds.waiting_bytes:
            conversation.broken_off.set_result("does not read")
            detail = f"{conversation.waiting} bytes were waiting for it"
            self._refused("connection", "does not read", link, conversation, detail)
            return
        conversation.outbox.put_nowait(data)

    def close(self, link: LinkId, why: str) -> None:
        """Close a connection once what was sent before is out; at once where its peer is banned."""
        conversation = self._conversations.get(link)
        if conversation is not None and why == "banned" and not conversation.broken_off.done():
            conversation.broken_off.set_result(why)
        elif conversation is not None:
            conversation.outbox.put_nowait(why)

    @property
    def dialed(self) -> dict[PeerId, Sequence[str]]:
        """Whom this end has dialed, and where, of those it talks to."""
        return {one.peer: one.dialed for one in self._conversations.values() if one.peer and one.dialed}

    async def ended(self) -> None:
        """Wait for the last connection to end."""
        await self._none.wait()

    async def _converse(self, link: Link, dialed: str | None, addresses: Sequence[str] = ()) -> None:
        """One connection from its first message to its last."""
        self._count += 1
        number = self._count
        conversation = _Conversation(link, asyncio.get_running_loop().create_future(), dialed=addresses)
        self._conversations[number] = conversation
        self._none.clear()
        try:
            self._handle(LinkOpened(number, dialed, link.proven))
        except BaseException:  # a fault of ours: no conversation came about, and nobody may wait for its end
            self._forget(number)
            await link.close("broken")
            raise
        listening = asyncio.create_task(self._listen(number, conversation))
        speaking = asyncio.create_task(self._speak(conversation))
        ends = (conversation.broken_off, listening, speaking)
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if listening.done() and not speaking.done():
                conversation.outbox.put_nowait(listening.result())
                await asyncio.wait({speaking}, timeout=_FLUSH_S)
        finally:
            # Nobody listens any more while it is closed: the closing handshake then reads what is still under way. A
            # socket closed with unread data resets the connection, and the other end would lose our last words.
            for end in ends:
                end.cancel()
            results = await asyncio.gather(*ends, return_exceptions=True)
            why = next((result for result in results if isinstance(result, str)), "broken")
            if why == CLOSED_THERE + "banned" and link.proven:
                self._refused("connection", "banned there", number, conversation)
            self._handle(LinkLost(number, why))
            try:
                await link.close(why)
            finally:
                self._forget(number)
                if not any(other.peer == conversation.peer for other in self._conversations.values()):
                    self.seen.pop(conversation.peer, None)

    def _forget(self, number: LinkId) -> None:
        del self._conversations[number]
        if not self._conversations:
            self._none.set()

    async def _listen(self, number: LinkId, conversation: _Conversation) -> str:
        """Hand on what the other end says; returns why that ended."""
        bucket = self._bucket(conversation.link.proven)
        try:
            if not await self._introduced(number, conversation, bucket):
                raise ProtocolError("said nothing")
            while True:
                await self._read(number, conversation, bucket)
        except ProtocolError as error:
            self._refused("message", error.reason, number, conversation, str(error))
            return error.reason
        except LinkClosed as error:
            return str(error)

    def _bucket(self, proven: PeerId) -> "_Bucket":
        """What the other end may say: one for all connections of a peer, the next ones too."""
        bucket = self._buckets.pop(proven, None) or _Bucket(self._bounds, asyncio.get_running_loop().time())
        if proven:
            self._buckets[proven] = bucket
            if len(self._buckets) > _MOST_BUCKETS:
                del self._buckets[next(iter(self._buckets))]
        return bucket

    async def _introduced(self, number: LinkId, conversation: _Conversation, bucket: "_Bucket") -> bool:
        """Hand on the first message; whether it came in time."""
        first = asyncio.create_task(self._read(number, conversation, bucket))
        try:
            for _ in range(_LOOKS):
                done, _ = await asyncio.wait({first}, timeout=_HELLO_S / _LOOKS)
                if done:
                    first.result()
                    return True
            return False
        finally:
            first.cancel()
            await asyncio.wait({first})  # two may not listen at once, and closing a connection is listening too

    async def _read(self, number: LinkId, conversation: _Conversation, bucket: "_Bucket") -> None:
        link = conversation.link
        data = await link.receive()
        self._traffic.control_received += len(data)
        if not bucket.holds(len(data), asyncio.get_running_loop().time()):
            raise ProtocolError("too many messages", f"more than {self._bounds.per_s:g} a second")
        message = decode(data)
        if isinstance(message, Hello) and not conversation.peer and link.proven in ("", message.me.peer):
            conversation.peer = message.me.peer
            self.seen.setdefault(message.me.peer, _address_seen(message, link.remote))
        try:
            self._handle(Received(number, message))
        except Exception as error:  # a fault of ours on another peer's word costs that connection, not this peer
            _log.exception("a message from %s could not be handled", link.remote)
            raise ProtocolError("not understood", type(error).__name__) from error

    async def _speak(self, conversation: _Conversation) -> str:
        """Send what is in the outbox; returns why the connection is to be closed."""
        try:
            while isinstance(data := await conversation.outbox.get(), bytes):
                await conversation.link.send(data)
                conversation.waiting -= len(data)
                self._traffic.control_sent += len(data)
        except LinkClosed as error:
            return str(error)
        return data

    def _refused(
        self,
        what: str,
        reason: str,
        number: LinkId = 0,
        conversation: _Conversation | None = None,
        detail: str = "",
        *,
        other: PeerId = "",
        remote: str = "",
    ) -> None:
        if conversation is not None:
            other, remote = conversation.link.proven or conversation.peer, conversation.link.remote
        refusal = Refusal(
            peer=self._me, what=what, reason=reason, other=other, remote=remote, connection=number, detail=detail
        )
        self._tell(refusal)


class _Bucket:
    """How much one peer may still say: tokens that come back with time, on a clock that never goes back."""

    def __init__(self, bounds: Bounds, now: float) -> None:
        self._bounds = bounds
        self._tokens = bounds.burst
        self._then = now

    def holds(self, length: int, now: float) -> bool:
        """Take the tokens for a message, if there are enough."""
        bounds = self._bounds
        self._tokens = min(bounds.burst, self._tokens + (now - self._then) * bounds.per_s)
        self._then = now
        self._tokens -= 1 + length // bounds.message_bytes
        return self._tokens >= 0


def _address_seen(hello: Hello, remote: str) -> str:
    """Where a connection came from, with the port its peer serves on; empty if that cannot be told."""
    for address in hello.me.addresses:
        with suppress(ValueError):
            return join_address(remote, split_address(address)[1]) if remote else ""
    return ""
