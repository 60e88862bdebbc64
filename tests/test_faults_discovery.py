"""Strangers on the LAN: what they announce costs little, makes nobody a member, and hides no honest peer."""

import os
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from discovery_process import FOUND_WITHIN_S, SLACK, DiscoveryProcess
from live import SLACK as LOADED_SLACK
from live import Live, Running

from p2pfl.protocol.dial_budget import BURST, PER_S

LOOPBACK = "127.0.0.1"
SERVICES = 10_000
GHOSTS = 100

# Told by a stranger's own program: so many services, one after the other, over so many seconds; or the same few again
# and again, until its standard input ends.
_STRANGER = """
import asyncio, sys, time, zeroconf
from zeroconf.asyncio import AsyncZeroconf
prefix, tag, count, over_s, *ports = sys.argv[1:]
service = "_p2pfl._tcp.local."

async def main():
    stack = AsyncZeroconf(interfaces=["127.0.0.1"])
    await stack.zeroconf.async_wait_for_start()
    print(flush=True)
    began = time.monotonic()
    for i in range(int(count)):
        name = f"{prefix}{i}"
        info = zeroconf.ServiceInfo(
            service, f"{name}.{service}", port=int(ports[i % len(ports)]), properties={"v": "1", "net": tag},
            server=f"{name}.local.", parsed_addresses=["127.0.0.1"], host_ttl=4500,
        )
        stack.zeroconf.async_send(stack.zeroconf.generate_service_broadcast(info, None))
        if i % 10 == 0:
            await asyncio.sleep(max(0.0, began + float(over_s) * i / int(count) - time.monotonic()))
    print(time.monotonic() - began, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    stack.zeroconf.close()

asyncio.run(main())
"""


@contextmanager
def stranger(prefix: str, tag: str, count: int, over_s: float, ports: list[int]) -> Iterator["subprocess.Popen[str]"]:
    arguments = [prefix, tag, str(count), str(over_s), *map(str, ports)]
    process = subprocess.Popen(
        [sys.executable, "-c", _STRANGER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert process.stdout.readline() == "\n"
        yield process
    finally:
        process.stdin.close()
        process.wait(timeout=30.0)
        process.stdout.close()


def unique(name: str) -> str:
    return f"{name}-{uuid.uuid4().hex[:12]}"


@pytest.mark.fault(14)
def test_ten_thousand_services_leave_a_capped_table_with_the_real_peers() -> None:
    network, real, late = unique("net"), unique("real"), unique("late")
    settings: dict[str, Any] = {"network": network, "interface": LOOPBACK}
    with DiscoveryProcess(subprocess.Popen, peer=None, verify=real, **settings) as victim, ExitStack() as others:
        victim.wait("ready")
        others.enter_context(DiscoveryProcess(subprocess.Popen, peer=real, port=7701, **settings))
        victim.wait("found", peer=real)
        before = victim.state()
        began = time.monotonic()
        with stranger(unique("ghost"), network, SERVICES, 9.5, list(range(20_000, 20_100))) as flood:
            assert flood.stdout is not None
            flooding_s = float(flood.stdout.readline())
            after = victim.state()
            took_s = time.monotonic() - began
            # Whoever comes after the flood is found as soon as ever.
            others.enter_context(DiscoveryProcess(subprocess.Popen, peer=late, port=7702, **settings)).wait("ready")
            victim.wait("found", FOUND_WITHIN_S, peer=late)
        last = victim.state()
    heard = [line for line in victim.events("found") if line["peer"].startswith("ghost")]
    print(
        f"{len(heard)} of {SERVICES} heard in {flooding_s:.1f} s, {len(after['peers'])} kept, "
        f"{(after['cpu_s'] - before['cpu_s']) / took_s:.0%} of a core, {(last['bytes'] - before['bytes']) / 1e6:.1f} MB"
    )
    # The fault: some are lost where the receiver's buffer overflows, and a busy machine sends them more slowly.
    assert flooding_s < 20.0 * SLACK
    assert len(heard) > SERVICES / 4
    assert len(after["peers"]) == len(last["peers"]) == 1024
    assert real in after["peers"]
    assert {real, late} <= set(last["peers"])
    assert last["bytes"] - before["bytes"] < 50e6


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    with Live(tmp_path) as live:
        yield live


def cpu_s(peer: Running) -> float:
    fields = Path(f"/proc/{peer.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def silent_ports(count: int) -> Iterator[tuple[list[socket.socket], list[int]]]:
    """Listeners and their ports, that take connections and never say a word."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server((LOOPBACK, 0), backlog=64)) for _ in range(count)]
        for listener in listeners:
            listener.setblocking(False)
        yield listeners, [int(listener.getsockname()[1]) for listener in listeners]


@pytest.mark.fault(13)
def test_a_hundred_ghosts_that_never_answer_are_dialed_seldom_and_become_no_members(live: Live) -> None:
    peer = live.peer("a", min_peers=2, wait_s=None)
    live.all_have([peer], "Listening")
    with silent_ports(GHOSTS) as (listeners, ports), stranger(unique("ghost"), live.key.tag, GHOSTS, 1.0, ports):
        dialed: Counter[socket.socket] = Counter()
        with ExitStack() as connections:

            def count() -> int:
                for listener in listeners:
                    with suppress(BlockingIOError):
                        while True:
                            connections.enter_context(listener.accept()[0])
                            dialed[listener] += 1
                return dialed.total()

            live.until("many ghosts were dialed", lambda: count() > 0 and len(dialed) >= GHOSTS // 3)  # the fault
            first, cpu, began = count(), cpu_s(peer), time.monotonic()
            live.until("a while has passed", lambda: time.monotonic() - began >= 10.0)
            spent, dials, passed_s = cpu_s(peer) - cpu, count() - first, time.monotonic() - began
        print(f"{dials / passed_s:.1f} dials a second, {spent / passed_s:.2%} of a core")
        assert 0 < dials <= PER_S * passed_s + BURST
        assert spent / passed_s <= 0.01 * LOADED_SLACK
        assert not peer.has("PeerJoined")
        assert not peer.has("Started")
