"""Budgets: slots and rates, as values and as a transport keeps them."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_ends import GET, STATUS, Raw, Wire, refused
from test_transport import hosts, run

from p2pfl.network.discovery import split_address
from p2pfl.network.limits import Limits, Rate, Slots, site_of
from p2pfl.network.transport import PIECE_BYTES, Body, body_of


def test_slots_are_so_many_in_all_and_so_many_for_one() -> None:
    slots = Slots(total=3, each=2)
    assert [slots.take(who) for who in ("a", "a", "a", "b", "c")] == [True, True, False, True, False]
    slots.free("a")
    assert [slots.take(who) for who in ("c", "a")] == [True, False]
    assert (slots.taken, slots.held("a"), slots.held("nobody")) == (3, 1, 0)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60))
def test_slots_never_exceed_their_limits(steps: list[tuple[str, bool]]) -> None:
    slots = Slots(total=4, each=2)
    for who, takes in steps:
        if takes:
            slots.take(who)
        elif slots.held(who):
            slots.free(who)
        assert all(slots.held(one) <= 2 for one in "abc")
        assert slots.taken == sum(slots.held(one) for one in "abc") <= 4


def test_rate_admits_a_burst_and_then_so_many_a_second() -> None:
    rate = Rate(per_s=2, burst=3)
    assert [rate.admits("a", 10.0) for _ in range(4)] == [True, True, True, False]
    assert rate.admits("b", 10.0)  # has a bucket of its own
    assert [rate.admits("a", now) for now in (10.4, 10.5, 10.6, 11.0, 11.0)] == [False, True, False, True, False]
    assert [rate.admits("a", 1000.0) for _ in range(4)] == [True, True, True, False]


@given(st.lists(st.floats(0, 10), min_size=1, max_size=100))
def test_rate_is_kept_over_every_time(times: list[float]) -> None:
    rate = Rate(per_s=5, burst=4)
    admitted = [now for now in sorted(times) if rate.admits("a", now)]
    for begin in range(len(admitted)):
        for end in range(begin, len(admitted)):
            assert end - begin + 1 <= 4 + 5 * (admitted[end] - admitted[begin]) + 1e-6


def test_rate_remembers_no_more_hosts_than_it_may() -> None:
    rate = Rate(per_s=1, burst=1)
    assert rate.admits("first", 0.0)
    assert not rate.admits("first", 0.0)
    for number in range(5000):
        rate.admits(str(number), 0.0)
    assert rate.admits("first", 0.0)  # forgotten


@pytest.mark.parametrize(
    ("host", "site"),
    [
        ("192.168.1.20", "192.168.1.20"),
        ("fe80::1:2%eth0", "fe80::/64"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("", ""),
    ],
)
def test_addresses_that_one_machine_can_take_count_as_one(host: str, site: str) -> None:
    assert site_of(host) == site


@pytest.mark.fault(27)
def test_hosts_that_begin_handshakes_and_stall_do_not_keep_others_out() -> None:
    """Twenty addresses of one machine, as many connections from each as a host may have in handshakes."""

    async def scene() -> None:
        loop, wire = asyncio.get_running_loop(), Wire(secure=True)
        async with hosts(wire.http(Limits(idle_s=30)), 1) as (host,):
            with ExitStack() as stack:
                for number in range(160):
                    end = stack.enter_context(socket.socket())
                    end.setblocking(False)
                    end.bind((f"127.0.1.{number % 20 + 1}", 0))
                    await loop.sock_connect(end, split_address(host.address))
                    await loop.sock_sendall(end, b"\x16\x03\x01\x02\x00")
                assert host.turned == []  # they are all there, and wait
                await wire.lives(host)

    run(scene())


@pytest.mark.fault(27)
def test_who_holds_most_makes_room_for_a_newcomer() -> None:
    async def scene() -> None:
        loop, wire = asyncio.get_running_loop(), Wire(secure=True)
        limits = Limits(idle_s=30, max_connections=10)
        async with hosts(wire.http(limits), 1) as (host,):
            with ExitStack() as stack:
                for number in range(10):
                    end = stack.enter_context(socket.socket())
                    end.setblocking(False)
                    end.bind((f"127.0.1.{number % 2 + 1}", 0))
                    await loop.sock_connect(end, split_address(host.address))
                await wire.lives(host)
                assert await host.has_turned(1) == ["too many connections"]
                assert host.turned[0].remote == "127.0.1.1"

    run(scene())


def test_fetch_without_a_slot_comes_again_until_there_is_one(wire: Wire) -> None:
    async def scene() -> None:
        async with hosts(wire.http(Limits(max_uploads=1)), 2) as (host, other):
            begun = asyncio.Event()

            def pieces() -> Iterator[memoryview]:
                for _ in range(20):
                    begun.set()
                    yield memoryview(bytes(PIECE_BYTES))

            host.bodies = {"large": Body(20 * PIECE_BYTES, pieces), "small": body_of(memoryview(b"body"))}
            async with wire.client(host, receive_buffer=1 << 14) as raw:
                await raw.say(GET.replace(b"/t", b"/large") + b"\r\n")
                await begun.wait()  # and nobody reads it
                into = bytearray(4)
                fetch = asyncio.create_task(other.transport.fetch(host.address, "small", "me", memoryview(into)))
                assert await host.has_turned(1) == ["no free slot"]
                assert host.turned[0].what == "body"
                raw.cut()
                await fetch
            assert into == b"body"
            assert [token for token, _ in host.asked] == ["large", "small"]  # nothing was made in vain

    run(scene())


def test_one_peer_leaves_slots_to_the_others(wire: Wire) -> None:
    async def scene() -> None:
        limits = Limits(max_uploads_per_peer=1, stall_s=0.4)
        async with hosts(wire.http(limits), 2) as (host, other):
            begun = asyncio.Event()

            def pieces() -> Iterator[memoryview]:
                for _ in range(20):
                    begun.set()
                    yield memoryview(bytes(PIECE_BYTES))

            host.bodies = {"large": Body(20 * PIECE_BYTES, pieces), "small": body_of(memoryview(b"body"))}
            async with wire.client(host, receive_buffer=1 << 14) as raw, wire.client(host) as again:
                await raw.say(GET.replace(b"/t", b"/large?peer=it") + b"\r\n")
                await begun.wait()
                await again.say(GET.replace(b"/t", b"/small?peer=it") + b"\r\n")
                head = await again.head()
                assert b" 503 " in head
                assert b"Retry-After: 1" in head
                into = bytearray(4)
                await other.transport.fetch(host.address, "small", "me", memoryview(into))
                assert into == b"body"
                raw.cut()

    run(scene())


@pytest.mark.parametrize("after", [b"", b"Retry-After: 0\r\n", b"Retry-After: soon\r\n", b"Retry-After: 999999\r\n"])
def test_sender_that_is_always_busy_is_given_up_at_the_deadline(after: bytes) -> None:
    async def scene() -> None:
        wire, asked = Wire(secure=False), 0

        async def answer(raw: Raw) -> None:
            nonlocal asked
            while True:
                await raw.head()
                asked += 1
                await raw.say(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n" + after + b"\r\n")

        async with hosts(wire.http(Limits(stall_s=0.5)), 1) as (host,), wire.server(answer) as address:
            begin = asyncio.get_running_loop().time()
            assert await refused(host.transport.fetch(address, "t", "me", memoryview(bytearray(4)))) == "busy"
            assert 0.4 <= asyncio.get_running_loop().time() - begin < 2
            assert 1 <= asked <= 20

    run(scene())


def test_too_many_requests_are_answered_with_a_pause_and_counted(wire: Wire) -> None:
    async def scene() -> None:
        async with hosts(wire.http(Limits(max_requests_per_s=2)), 1) as (host,), wire.client(host) as raw:
            codes = []
            for _ in range(15):
                await raw.say(STATUS)
                head = await raw.head()
                codes.append(int(head.split()[1]))
                await raw.reader.readexactly(int(head.lower().split(b"content-length: ")[1].split()[0]))
            assert codes[:10] == [200] * 10
            assert 429 in codes[10:]
            assert set(await host.has_turned(1)) == {"too many requests"}
            assert b"Retry-After" in head or codes[-1] == 200

    run(scene())
