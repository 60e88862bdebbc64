"""Models on their way, at a live peer: those it serves to others, and those it fetches and checks.

What goes out goes only to whom it is for. What comes in counts only if it came from its owner, has the length and the
framing of this peer's own model, and the hash that its owner has signed.
"""

import asyncio
import hashlib
from collections.abc import Callable

from p2pfl.conversations import Traffic
from p2pfl.errors import FetchError
from p2pfl.events import Refusal, RunEvent, ShareSent
from p2pfl.layout import Layout, Vector
from p2pfl.mixing import measured
from p2pfl.network.buffers import BufferPool
from p2pfl.network.transport import Body, Transport, body_of
from p2pfl.protocol.participant import Event, Fetch, Fetched, FetchFailed, Hashed, Serve
from p2pfl.types import PeerId

_INLINE = 1 << 18  # elements whose check is not worth a change of thread
_ADDRESSES_TRIED = 4
_ELSEWHERE = ("unreachable", "wrong peer")  # reasons to try the owner's next address


def payload(layout: Layout, vector: Vector) -> bytes:
    """SHA-256 of a vector as it goes out, 32 bytes."""
    digest = hashlib.sha256(layout.header)
    digest.update(vector.numpy().view("uint8").data)
    return digest.digest()


class Bodies:
    """The models of one peer that others fetch, and those of others that it fetches."""

    def __init__(
        self,
        me: PeerId,
        transport: Transport,
        pool: BufferPool,
        traffic: Traffic,
        layout: Callable[[], Layout],
        admits: Callable[[PeerId], bool],
        seen: Callable[[PeerId], str | None],
        handle: Callable[[Event], None],
        emit: Callable[[RunEvent], None],
    ) -> None:
        """Nothing is served yet.

        Args:
            layout: of this peer's model; asked once that is built.
            admits: whether a peer may have a snapshot.
            seen: the address from which a peer connected, if it did.
            handle: takes the answers.
        """
        self._me = me
        self._transport = transport
        self._pool = pool
        self._traffic = traffic
        self._layout = layout
        self._admits = admits
        self._seen = seen
        self._handle = handle
        self._emit = emit
        self._served: dict[str, Serve] = {}
        self._hosts: dict[PeerId, str] = {}  # the address at which a peer's last body came

    # For others

    def serve(self, effect: Serve) -> None:
        """Keep a body for whoever it is for."""
        self._served[effect.token] = effect

    def drop(self, token: str) -> None:
        """Forget a body, once no fetch of it is under way."""
        self._served.pop(token, None)

    def body(self, token: str, peer: PeerId) -> Body | None:
        """The body for a peer that asks for it, None where there is none for that peer. See `Service`."""
        served = self._served.get(token)
        if served is None:
            return None
        if not (peer in served.targets if served.targets else self._admits(peer)):
            self._emit(Refusal(peer=self._me, what="body", reason="not for you", other=peer, detail=token))
            return None
        return body_of(memoryview(self._layout().header), served.vector.numpy().view("uint8").data)

    def sent(self, token: str, peer: PeerId, size: int) -> None:
        """A body has gone out whole. See `Service`."""
        self._traffic.sent += size
        served = self._served.get(token)
        if served is not None and peer in served.targets:
            self._emit(ShareSent(peer=self._me, round=_round_of(token), other=peer, bytes=size))

    async def hash(self, token: str) -> None:
        """Work out the hash of a body that is served, unless it has been dropped."""
        served = self._served.get(token)
        if served is not None:
            self._handle(Hashed(token, await asyncio.to_thread(payload, self._layout(), served.vector)))

    # Of others

    async def fetch(self, effect: Fetch) -> None:
        """Fetch a body and check it; the participant hears of it either way."""
        layout, offer = self._layout(), effect.offer
        try:
            if offer.bytes != layout.framed_bytes:
                raise FetchError("wrong size", f"{offer.bytes} bytes")
            buffer = self._pool.take(layout.framed_bytes)
            await self._fetch_from_any(effect, buffer.data)
            if bytes(buffer[: len(layout.header)]) != layout.header:
                raise FetchError("malformed header", "the framing is not that of the layout")
            vector = layout.vector_in(buffer.data)
            del buffer

            def check() -> tuple[bytes, tuple[bool, float]]:
                return payload(layout, vector), measured(vector)

            found, (finite, norm) = check() if layout.size <= _INLINE else await asyncio.to_thread(check)
            if found != offer.payload:
                raise FetchError("wrong payload", "it is not what its owner has signed")
        except FetchError as error:
            self._handle(FetchFailed(effect.peer, offer, error.reason))
            return
        self._traffic.received += layout.framed_bytes
        self._handle(Fetched(effect.peer, offer, vector, finite, norm))

    async def _fetch_from_any(self, effect: Fetch, into: memoryview) -> None:
        failure = FetchError("unreachable", "no address is known")
        for address in self.addresses(effect.peer, effect.addresses)[:_ADDRESSES_TRIED]:
            try:
                await self._transport.fetch(address, effect.offer.token, self._me, into, effect.peer)
            except FetchError as error:
                failure = error
                if error.reason not in _ELSEWHERE:
                    raise
            else:
                self._hosts[effect.peer] = address
                return
        raise failure

    def addresses(self, peer: PeerId, told: tuple[str, ...]) -> list[str]:
        """What worked last, where the peer was seen, what it told: it may know no better than its loopback address."""
        known = (self._hosts.get(peer), self._seen(peer), *told)
        return list(dict.fromkeys(address for address in known if address))


def _round_of(token: str) -> int:
    return int(token.partition(".")[0].rpartition("-")[2])
