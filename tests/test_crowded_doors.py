"""Many connections, and slow ones, against the HTTP transport. The numbers are those of the list of faults."""

import asyncio
import json
import resource
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from raw_ends import GET, STATUS, UPGRADE, Wire, memory_bounded, now, refused
from test_transport import MIB, Host, closed, hosts, noise, run

from p2pfl.errors import Unreachable
from p2pfl.network.discovery import join_address, split_address
from p2pfl.network.http import Limits
from p2pfl.network.transport import PIECE_BYTES, Body, body_of


def may_open(count: int) -> None:
    """Let this process open so many descriptors; a machine that forbids it proves nothing, and fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == resource.RLIM_INFINITY or hard >= count, f"ulimit -Hn is {hard}, this test needs {count}"
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def what_came(end: socket.socket) -> bytes:
    """What a socket that does not block has received by now."""
    try:
        return end.recv(1000)
    except BlockingIOError:
        return b"still open"
    except ConnectionResetError:
        return b""


@pytest.mark.fault(27)
@pytest.mark.skipif(sys.platform != "linux", reason="needs a second loopback address")
def test_thousand_connections_from_one_address_are_capped_and_others_served(wire: Wire) -> None:
    """27: the default limits, and none of the connections says a word."""
    may_open(2600)

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        async with hosts(wire.http(Limits(idle_s=30)), 1) as (host,):
            with ExitStack() as stack:
                flood = [stack.enter_context(socket.socket()) for _ in range(1000)]
                for end in flood:
                    end.setblocking(False)
                    await loop.sock_connect(end, split_address(host.address))
                assert set(await host.has_turned(744)) == {"too many connections"}
                begin = now()
                async with wire.client(host, local="127.0.0.2") as raw:
                    await raw.say(STATUS)
                    assert b" 200 " in await raw.head()
                assert now() - begin < 1
                assert len(host.turned) == 744
                answers = Counter(what_came(end)[:12] for end in flood)
                assert answers == {b"still open": 256, b"" if wire.secure else b"HTTP/1.1 503": 744}
            while True:  # from the address of the flood, once its end was noticed
                with suppress(Unreachable):
                    await wire.lives(host)
                    break

    run(scene(), 60)


class Limited:
    """A transport in a process of its own that may hold few descriptors; see `limited_process`."""

    def __init__(self, wire: Wire, limit: int) -> None:
        script = Path(__file__).with_name("limited_process.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), "tls" if wire.secure else "plain", str(limit)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.address = ("127.0.0.1", self._answer()["port"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def tell(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._answer()

    def turns(self, count: int, reason: str) -> None:
        """Wait until it has turned away so many, for this reason alone."""
        begin = time.monotonic()
        while (turned := self.tell("report")["turned"]).get(reason, 0) < count:
            assert time.monotonic() - begin < 10, turned
        assert set(turned) == {reason}

    def __enter__(self) -> "Limited":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        assert self._process.wait(10) == 0
        self._process.stdout.close()


@pytest.mark.fault(33)
@pytest.mark.parametrize("by", ["connections", "files"])
def test_without_descriptors_newcomers_are_turned_away_with_a_reason(wire: Wire, by: str) -> None:
    """33: connections take them all, or the process itself has; then it goes on."""
    with Limited(wire, 64) as limited:
        address = join_address(*limited.address)
        assert asyncio.run(wire.status(address)) == b"{}"
        if by == "files":
            assert limited.tell("fill")["taken"] > 30
        with ExitStack() as stack:
            flood = [stack.enter_context(socket.create_connection(limited.address, 5)) for _ in range(100)]
            limited.turns(90 if by == "files" else 50, "no descriptors")
            assert flood[-1].recv(12) == (b"" if wire.secure else b"HTTP/1.1 503")
            before_s = limited.tell("report")["cpu_s"]
            time.sleep(0.5)  # in which it could spin
            assert limited.tell("report")["cpu_s"] - before_s < 0.2
        limited.tell("free")
        for _ in range(100):  # until the end of the connections is noticed
            with suppress(Unreachable):
                assert asyncio.run(wire.status(address)) == b"{}"
                return
        pytest.fail("it never took anybody in again")


@pytest.mark.fault(27)
def test_connections_are_capped_on_the_whole(wire: Wire) -> None:
    """27"""

    async def scene() -> None:
        async with hosts(wire.http(Limits(max_connections=3, stall_s=0.5)), 2) as (host, other):
            ends = [await other.link_to(host) for _ in range(3)]
            with pytest.raises(Unreachable) as failure:
                await other.transport.connect(host.address)
            assert not failure.value.refused
            reason = await refused(other.transport.fetch(host.address, "t", "me", memoryview(bytearray(1))))
            assert reason == ("unreachable" if wire.secure else "busy")
            assert {(turned.what, turned.reason) for turned in host.turned} == {("connection", "too many connections")}
            assert host.asked == []
            async with asyncio.TaskGroup() as group:
                group.create_task(ends[0][0].close("make room"))
                group.create_task(closed(ends[0][1]))
            near, far = await other.link_to(host)
            await near.send(b"room")
            assert await far.receive() == b"room"

    run(scene())


@pytest.mark.fault(28)
def test_slow_receiver_takes_little_memory_and_holds_up_nobody(wire: Wire) -> None:
    """28: it reads 50 kB/s."""

    async def scene() -> None:
        async with hosts(wire.http(Limits()), 2) as (host, other):
            content = noise(20 * MIB)
            made = 0

            def pieces() -> Iterator[memoryview]:
                nonlocal made
                for begin in range(0, len(content), PIECE_BYTES):
                    made += PIECE_BYTES
                    yield memoryview(content)[begin : begin + PIECE_BYTES]

            host.bodies["slow"] = Body(len(content), pieces)
            host.bodies["t"] = body_of(memoryview(content))
            into = memoryview(bytearray(len(content)))
            async with wire.client(host, receive_buffer=1 << 15) as raw:
                with memory_bounded(8 * MIB):
                    await raw.say(GET.replace(b"/t", b"/slow") + b"\r\n")
                    taken = len(await raw.head())
                    for round in range(10):
                        taken += len(await raw.reader.readexactly(5_000))
                        await asyncio.sleep(0.1)  # the fault itself
                        if round == 4:
                            begin = now()
                            await other.transport.fetch(host.address, "t", "fast", into)
                            assert now() - begin < 3
                assert taken < MIB
                assert made < 12 * MIB  # the kernel's buffers take some of it
                assert into == content
                assert [peer for _, peer, _ in host.sent] == [other.known_as("fast")]
                raw.cut()

    run(scene())


@pytest.mark.fault(19)
def test_leaving_during_an_upload_and_with_a_deaf_neighbor_is_quick(wire: Wire) -> None:
    """19"""

    async def scene() -> None:
        host = Host(wire.http(Limits())())
        serving = host.transport.serving(host.service())
        await serving.__aenter__()
        host.bodies["t"] = body_of(memoryview(bytes(50 * MIB)))
        async with (
            wire.client(host, receive_buffer=1 << 15) as reader,
            wire.client(host) as deaf,
            wire.client(host) as silent,
        ):
            await reader.say(GET + b"\r\n")
            await reader.reader.readexactly(100_000)
            await deaf.say(UPGRADE + b"\r\n")
            assert b" 101 " in await deaf.head()
            begin = now()
            await serving.__aexit__(None, None, None)
            assert now() - begin < 2
            assert len(await reader.rest()) < 50 * MIB
            assert (await deaf.rest())[2:4] == (1000).to_bytes(2, "big")
            assert await silent.rest() == b""
            assert host.ended == 1

    run(scene())
