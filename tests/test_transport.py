"""What holds for every transport; a socket only where the transport is made of them."""

import asyncio
import gc
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from p2pfl.errors import FetchError, LinkClosed, Unreachable
from p2pfl.identity import Identity
from p2pfl.network.http import HttpTransport
from p2pfl.network.memory import MemoryNetwork
from p2pfl.network.tls import Credentials
from p2pfl.network.transport import PIECE_BYTES, Body, Link, Service, Transport, Turned, body_of
from p2pfl.network_key import KeyRing, NetworkKey

Make: TypeAlias = Callable[[], Transport]
MIB = 1 << 20


@dataclass
class Host:
    """A transport that serves: keeps the links it is given, and bodies by token."""

    transport: Transport
    bodies: dict[str, Body] = field(default_factory=dict)
    accepted: asyncio.Queue[Link] = field(default_factory=asyncio.Queue)
    asked: list[tuple[str, str]] = field(default_factory=list)
    sent: list[tuple[str, str, int]] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)  # ends what `accept` waits for
    turned: list[Turned] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)  # somebody was turned away
    ended: int = 0  # links whose `accept` came to its end

    async def accept(self, link: Link) -> None:
        self.accepted.put_nowait(link)
        try:
            await self.over.wait()
        finally:
            self.ended += 1

    def body(self, token: str, peer: str) -> Body | None:
        self.asked.append((token, peer))
        return self.bodies.get(token)

    def service(self) -> Service:
        sent = self.sent.append
        return Service(self.accept, self.body, lambda *what: sent(what), lambda: b"{}", self.turn)

    def turn(self, turned: Turned) -> None:
        self.turned.append(turned)
        self.news.set()

    async def has_turned(self, count: int) -> list[str]:
        """The reasons for which others were turned away, once there are so many."""
        async with asyncio.timeout(5):
            while len(self.turned) < count:
                self.news.clear()
                await self.news.wait()
        return [turned.reason for turned in self.turned]

    @property
    def address(self) -> str:
        return self.transport.addresses[0]

    def known_as(self, claim: str) -> str:
        """Who it is for others when it says so: with a certificate its word does not count."""
        proof = getattr(self.transport, "credentials", None)
        return claim if proof is None else proof.peer

    async def link_to(self, other: "Host") -> tuple[Link, Link]:
        """Both ends of a new connection."""
        near = await self.transport.connect(other.address)
        return near, await other.accepted.get()


@asynccontextmanager
async def hosts(make: Make, count: int = 2) -> AsyncIterator[list[Host]]:
    async with AsyncExitStack() as stack:
        some = [Host(make()) for _ in range(count)]
        for host in some:
            await stack.enter_async_context(host.transport.serving(host.service()))
        yield some
        for host in some:
            host.over.set()


NETWORK = NetworkKey("oak", b"k" * 32)


def credentials(number: int, ring: KeyRing | None = None) -> Credentials:
    """Those of the peer with this number, in the network of the tests."""
    return Credentials(Identity(bytes([number]) * 32), ring or KeyRing(NETWORK))


@pytest.fixture(params=["memory", "plain", "tls"])
def make(request: pytest.FixtureRequest) -> Make:
    if request.param == "memory":
        return MemoryNetwork().transport
    numbers = itertools.count(1)
    return lambda: HttpTransport(
        ("127.0.0.1",), 0, credentials=credentials(next(numbers)) if request.param == "tls" else None
    )


def open_sockets() -> list[str]:
    links = [str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    return [link for link in links if link.startswith("socket:")]


def run(work: Coroutine[Any, Any, None], timeout_s: float = 20) -> None:
    """Run a scene to its end, and see that it leaves no task, socket or warning behind."""

    async def watched() -> None:
        problems: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(str(context)))
        before = open_sockets()
        async with asyncio.timeout(timeout_s):
            await work
        await asyncio.sleep(0)  # asyncio closes a socket one step after its transport
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left
        assert open_sockets() == before
        assert not problems

    gc.freeze()  # a look at what is older takes longer than most scenes
    asyncio.run(watched())
    gc.collect()  # what was not closed warns now, and warnings are errors
    gc.unfreeze()


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


async def closed(link: Link) -> str:
    """Why a link is closed, which it must be."""
    with pytest.raises(LinkClosed) as failure:
        await link.receive()
    assert str(failure.value)
    return str(failure.value)


def test_messages_go_both_ways_in_order(make: Make) -> None:
    async def scene() -> None:
        async with hosts(make) as (a, b):
            near, far = await a.link_to(b)
            messages = [noise(size) for size in (0, 1, 125, 126, 65535, 65536, 200_000)] + [
                b"%d" % i for i in range(200)
            ]

            async def say(link: Link) -> None:
                for message in messages:
                    await link.send(message)

            async def hear(link: Link) -> None:
                assert [await link.receive() for _ in messages] == messages

            await asyncio.gather(say(near), say(far), hear(near), hear(far))

    run(scene())


def test_closing_delivers_what_was_sent(make: Make) -> None:
    async def scene() -> None:
        async with hosts(make) as (a, b):
            for closer in (0, 1):
                ends = await a.link_to(b)
                leaver, stayer = ends[closer], ends[1 - closer]
                for number in range(100):
                    await leaver.send(b"%d" % number)

                async def hear(link: Link) -> tuple[list[bytes], str]:
                    return [await link.receive() for _ in range(100)], await closed(link)

                async with asyncio.TaskGroup() as group:
                    heard = group.create_task(hear(stayer))
                    group.create_task(leaver.close("enough"))
                messages, why = heard.result()
                assert messages == [b"%d" % number for number in range(100)]
                assert "enough" in why

    run(scene())


def test_closed_link_says_so_at_both_ends_however_often_it_is_asked(make: Make) -> None:
    async def scene() -> None:
        async with hosts(make) as (a, b):
            for closer in (0, 1):
                ends = await a.link_to(b)
                leaver, stayer = ends[closer], ends[1 - closer]
                async with asyncio.TaskGroup() as group:
                    group.create_task(leaver.close("ünö" * 60))  # longer than a close frame holds
                    why = group.create_task(closed(stayer))
                assert "ünö" in why.result()
                for _ in range(8):
                    assert await closed(stayer) == why.result()
                    await closed(leaver)
                with pytest.raises(LinkClosed):
                    await leaver.send(b"too late")
                await leaver.close("again")
                await stayer.close("me too")

    run(scene())


def test_waiting_receiver_ends_when_its_own_end_is_closed(make: Make) -> None:
    async def scene() -> None:
        async with hosts(make) as (a, b):
            for end in (0, 1):
                ends = await a.link_to(b)
                async with asyncio.TaskGroup() as group:
                    group.create_task(closed(ends[end]))
                    group.create_task(closed(ends[1 - end]))
                    await asyncio.sleep(0)
                    await ends[end].close("done")

    run(scene())


def test_link_knows_where_it_comes_from(make: Make) -> None:
    async def scene() -> None:
        async with hosts(make) as (a, b):
            near, far = await a.link_to(b)
            assert near.remote in b.address
            assert far.remote in a.address

    run(scene())


def test_nobody_there_is_unreachable_and_refused(make: Make) -> None:
    async def scene() -> None:
        async with hosts(make) as (a, b):
            gone = make()
            async with gone.serving(Host(gone).service()):
                address = gone.addresses[0]
            with pytest.raises(Unreachable) as failure:
                await a.transport.connect(address)
            assert failure.value.refused
            with pytest.raises(FetchError) as lost:
                await a.transport.fetch(address, "token", "b", memoryview(bytearray(1)))
            assert lost.value.reason == "unreachable"
            assert b.asked == []

    run(scene())


@pytest.mark.parametrize("address", ["", "nonsense", "host:0", "host/path?x=:80", "a@b:80", "a b:80"])
def test_what_is_no_address_is_unreachable(make: Make, address: str) -> None:
    async def scene() -> None:
        async with hosts(make, 1) as (a,):
            with pytest.raises(Unreachable):
                await a.transport.connect(address)
            with pytest.raises(FetchError) as failure:
                await a.transport.fetch(address, "token", "b", memoryview(bytearray(1)))
            assert failure.value.reason == "unreachable"

    run(scene())


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 5 * MIB])
def test_fetch_fills_the_buffer(make: Make, size: int) -> None:
    async def scene() -> None:
        async with hosts(make) as (a, b):
            content = noise(size)
            b.bodies["t"] = body_of(memoryview(content)[:100], memoryview(content)[100:])
            into = bytearray(size)
            await a.transport.fetch(b.address, "t", "me", memoryview(into))
            assert into == content
            assert b.asked == [("t", a.known_as("me"))]
            assert b.sent == [("t", a.known_as("me"), size)]

    run(scene())


def test_body_is_made_in_pieces_as_it_is_sent() -> None:
    content = noise(2 * PIECE_BYTES + 5)
    body = body_of(memoryview(b"head"), memoryview(b""), memoryview(content))
    pieces = list(body.pieces())
    assert [len(piece) for piece in pieces] == [4, PIECE_BYTES, PIECE_BYTES, 5]
    assert b"".join(pieces) == b"head" + content
    assert body.length == 4 + len(content)
    assert b"".join(body.pieces()) == b"head" + content  # for a second receiver


@pytest.mark.parametrize("token", ["3.abc", "a b/c?d=e#f", "../status", "ü%2F%", "x" * 128])
def test_token_arrives_as_it_was_told(make: Make, token: str) -> None:
    async def scene() -> None:
        async with hosts(make) as (a, b):
            b.bodies[token] = body_of(memoryview(b"body"))
            into = bytearray(4)
            await a.transport.fetch(b.address, token, "me & you", memoryview(into))
            assert into == b"body"
            assert b.asked == [(token, a.known_as("me & you"))]

    run(scene())


def test_unknown_token_is_gone(make: Make) -> None:
    async def scene() -> None:
        async with hosts(make) as (a, b):
            with pytest.raises(FetchError) as failure:
                await a.transport.fetch(b.address, "t", "me", memoryview(bytearray(10)))
            assert failure.value.reason == "gone"
            assert b.sent == []

    run(scene())


@pytest.mark.parametrize("length", [0, 9, 11, 3 * MIB])
def test_other_length_is_refused_and_fills_nothing(make: Make, length: int) -> None:
    async def scene() -> None:
        async with hosts(make) as (a, b):
            b.bodies["t"] = body_of(memoryview(b"x" * length))
            into = bytearray(10)
            with pytest.raises(FetchError) as failure:
                await a.transport.fetch(b.address, "t", "me", memoryview(into))
            assert failure.value.reason == "wrong size"
            assert into == bytes(10)

    run(scene())


def test_several_fetches_at_once(make: Make) -> None:
    async def scene() -> None:
        async with hosts(make, 3) as some:
            contents = [noise(MIB + number) for number in range(6)]
            for host in some:
                host.bodies = {str(i): body_of(memoryview(content)) for i, content in enumerate(contents)}
            wanted = [(a, b, i) for a in some for b in some if a is not b for i in range(len(contents))]
            buffers = [bytearray(len(contents[i])) for _, _, i in wanted]
            fetches: list[Awaitable[None]] = [
                a.transport.fetch(b.address, str(i), "me", memoryview(into))
                for (a, b, i), into in zip(wanted, buffers, strict=True)
            ]
            await asyncio.gather(*fetches)
            assert all(into == contents[i] for (_, _, i), into in zip(wanted, buffers, strict=True))

    run(scene())


def test_leaving_closes_connections_whoever_opened_them(make: Make) -> None:
    async def scene() -> None:
        async with AsyncExitStack() as stack:
            stays, leaves = Host(make()), Host(make())
            await stack.enter_async_context(stays.transport.serving(stays.service()))
            async with leaves.transport.serving(leaves.service()):
                ends = [*await leaves.link_to(stays), *await stays.link_to(leaves)]
                reading = [asyncio.create_task(closed(end)) for end in ends]
            async with asyncio.timeout(3):
                await asyncio.gather(*reading)
            assert leaves.ended == 1  # though nobody told its `accept` to end
            with pytest.raises(Unreachable):
                await leaves.transport.connect(stays.address)
            with pytest.raises(FetchError) as failure:
                await leaves.transport.fetch(stays.address, "t", "me", memoryview(bytearray(1)))
            assert failure.value.reason == "unreachable"
            stays.over.set()

    run(scene())


@pytest.mark.parametrize("leaver", ["receiver", "sender"])
def test_leaving_breaks_off_a_fetch_under_way(make: Make, leaver: str) -> None:
    async def scene() -> None:
        receiver, sender = Host(make()), Host(make())
        begun = asyncio.Event()
        piece = memoryview(bytes(PIECE_BYTES))

        def pieces() -> Iterator[memoryview]:
            for _ in range(50):
                begun.set()
                yield piece

        sender.bodies["t"] = Body(50 * PIECE_BYTES, pieces)
        into = memoryview(bytearray(50 * PIECE_BYTES))
        async with AsyncExitStack() as leaves, AsyncExitStack() as stays:
            for host in (receiver, sender):
                stack = leaves if host is {"receiver": receiver, "sender": sender}[leaver] else stays
                await stack.enter_async_context(host.transport.serving(host.service()))
            fetch = asyncio.create_task(receiver.transport.fetch(sender.address, "t", "me", into))
            await begun.wait()
            clock = asyncio.get_running_loop().time
            begin = clock()
            await leaves.aclose()
            assert clock() - begin < 2
            with pytest.raises(FetchError) as failure:
                await fetch
            assert failure.value.reason == "broken off"
            assert sender.sent == []

    run(scene())


def test_transport_serves_again_after_leaving(make: Make) -> None:
    async def scene() -> None:
        again = Host(make())
        for _ in range(2):
            async with hosts(make, 1) as (other,), again.transport.serving(again.service()):
                again.bodies["t"] = body_of(memoryview(b"x"))
                await other.transport.fetch(again.address, "t", "me", memoryview(bytearray(1)))

    run(scene())


def test_link_is_closed_when_the_service_is_done_with_it(make: Make) -> None:
    async def scene() -> None:
        async with hosts(make) as (a, b):
            near, far = await a.link_to(b)
            b.over.set()  # `accept` returns
            await closed(near)
            b.over.clear()
            near, far = await a.link_to(b)
            await near.send(b"still here")
            assert await far.receive() == b"still here"

    run(scene())
