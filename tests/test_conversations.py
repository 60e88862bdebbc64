"""Control connections between two ends of one process: what a bad other end can take of this one."""

import asyncio
from dataclasses import dataclass, field

import pytest
from test_transport import run

from p2pfl.conversations import Bounds, Conversations, Traffic
from p2pfl.errors import LinkClosed
from p2pfl.events import Refusal
from p2pfl.network.memory import MemoryNetwork
from p2pfl.protocol.messages import MAX_MESSAGE_BYTES, Extension, Ping, encode
from p2pfl.protocol.participant import Event, LinkLost, LinkOpened, Received


@dataclass
class Link:
    """An end whose other end is the test: it says what it is given, and reads only what it is asked to."""

    remote: str = "10.0.0.9"
    proven: str = "a" * 52
    inbox: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)
    deaf: bool = False
    sent: list[bytes] = field(default_factory=list)
    closed: str = ""

    async def send(self, data: bytes) -> None:
        if self.deaf:
            await asyncio.Event().wait()  # a full socket, for ever
        self.sent.append(data)

    async def receive(self) -> bytes:
        data = await self.inbox.get()
        if not data:
            raise LinkClosed("closed by the other end")
        return data

    async def close(self, why: str) -> None:
        self.closed = why


@dataclass
class Scene:
    """Conversations with one such link."""

    bounds: Bounds
    events: list[Event] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

    def __post_init__(self) -> None:
        transport = MemoryNetwork().transport()
        self.talk = Conversations("me", transport, self.events.append, Traffic(), self.refusals.append, self.bounds)

    async def converse(self, link: Link) -> None:
        async with asyncio.timeout(10):
            await self.talk.accept(link)


def test_other_end_that_reads_nothing_is_closed_and_not_buffered_for_ever() -> None:
    async def work() -> None:
        scene, link = Scene(Bounds(waiting_bytes=1 << 20)), Link(deaf=True)
        task = asyncio.create_task(scene.converse(link))
        await asyncio.sleep(0)
        message = Extension("x", bytes(1 << 17))
        for _ in range(100):
            scene.talk.send(1, message)
        (conversation,) = scene.talk._conversations.values()
        assert conversation.outbox.qsize() * len(encode(message)) <= 1 << 20
        await task
        assert link.closed == "does not read"
        (refusal,) = scene.refusals
        assert (refusal.what, refusal.reason, refusal.other) == ("connection", "does not read", "a" * 52)
        assert (refusal.remote, refusal.connection) == ("10.0.0.9", 1)
        assert scene.events == [LinkOpened(1, None, "a" * 52), LinkLost(1, "does not read")]

    run(work())


def test_two_connections_of_one_peer_may_say_no_more_than_one() -> None:
    async def work() -> None:
        scene = Scene(Bounds(per_s=1.0, burst=50.0))
        links = [Link(), Link(), Link(proven="b" * 52)]
        for link in links:
            for number in range(30):
                link.inbox.put_nowait(encode(Ping(number)))
            link.inbox.put_nowait(b"")
            await scene.converse(link)
        assert [link.closed for link in links] == [
            "closed by the other end",
            "too many messages",
            "closed by the other end",
        ]
        heard = [sum(isinstance(e, Received) and e.link == number for e in scene.events) for number in (1, 2, 3)]
        assert heard == [30, 20, 30]

    run(work())


def test_flooder_is_closed_after_its_burst_and_was_heard_until_then() -> None:
    async def work() -> None:
        scene, link = Scene(Bounds(per_s=1.0, burst=50.0)), Link()
        for number in range(60):
            link.inbox.put_nowait(encode(Ping(number)))
        await scene.converse(link)
        assert link.closed == "too many messages"
        assert [refusal.reason for refusal in scene.refusals] == ["too many messages"]
        assert len([event for event in scene.events if isinstance(event, Received)]) == 50

    run(work())


def test_long_messages_count_as_several() -> None:
    async def work() -> None:
        scene, link = Scene(Bounds(per_s=1.0, burst=50.0)), Link()
        for _ in range(5):
            link.inbox.put_nowait(encode(Extension("x", bytes(1 << 17))))
        await scene.converse(link)
        assert link.closed == "too many messages"
        assert len([event for event in scene.events if isinstance(event, Received)]) == 1  # each is worth 33

    run(work())


@pytest.mark.parametrize(
    ("data", "reason"), [(b"\xff", "malformed message"), (bytes(MAX_MESSAGE_BYTES + 1), "message too long")]
)
def test_nonsense_is_a_refusal_with_the_connection_and_who_it_was(data: bytes, reason: str) -> None:
    async def work() -> None:
        scene, link = Scene(Bounds()), Link()
        link.inbox.put_nowait(data)
        await scene.converse(link)
        assert link.closed == reason
        (refusal,) = scene.refusals
        assert (refusal.what, refusal.reason, refusal.connection) == ("message", reason, 1)
        assert (refusal.other, refusal.remote) == ("a" * 52, "10.0.0.9")

    run(work())


def test_address_that_does_not_answer_is_a_refused_dial_and_one_where_nobody_is_none() -> None:
    async def work() -> None:
        scene = Scene(Bounds())
        await scene.talk.dial("memory:9", ["memory:9"])  # and this end does not serve: it has left
        (refusal,) = scene.refusals
        assert (refusal.what, refusal.reason, refusal.remote) == ("dial", "unreachable", "memory:9")

    run(work())
