"""Handshakes that stop half-way lock nobody out: the slowest of who has most of them makes room."""

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterator
from itertools import count

import pytest
from test_tls import credentials, host
from test_transport import run

from p2pfl.network import places
from p2pfl.network.discovery import split_address
from p2pfl.network.http import Limits, fetch_status
from p2pfl.network.places import Places


def test_places_go_first_to_who_has_fewest_and_come_back() -> None:
    async def scene() -> None:
        some = Places(2, 2)
        first = [await some.take("a", pytest.fail) for _ in range(2)]
        order: list[str] = []

        async def take(site: str) -> None:
            await some.take(site, pytest.fail)
            order.append(site)

        tasks = [asyncio.create_task(take(site)) for site in ("a", "a", "b")]
        await asyncio.sleep(0)
        assert order == []
        for place in first:
            some.free(place)
        async with asyncio.timeout(1):
            await tasks[2]
            await tasks[0]
        assert sorted(order) == ["a", "b"]
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(scene())


def test_who_has_most_and_is_slowest_makes_room_and_never_for_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "SLOW_S", 0.05)

    async def scene() -> None:
        some, dropped = Places(3, 3), []
        places_ = [await some.take(site, drop_of(dropped, site, n)) for n, site in enumerate("bab")]
        own = asyncio.create_task(some.take("b", pytest.fail))
        async with asyncio.timeout(1):
            await some.take("c", pytest.fail)
        assert dropped == [("b", 0)]
        some.free(places_[0])  # it has none any more
        await asyncio.wait({own}, timeout=0.15)
        assert not own.done()  # one each: nobody has more than it
        some.free(places_[2])
        async with asyncio.timeout(1):
            await own

    run(scene())


def drop_of(dropped: list[tuple[str, int]], site: str, number: int) -> Callable[[], None]:
    return lambda: dropped.append((site, number))


def test_who_waits_no_longer_takes_no_place() -> None:
    async def scene() -> None:
        some = Places(1, 1)
        place = await some.take("a", pytest.fail)
        waiting = asyncio.create_task(some.take("b", pytest.fail))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        some.free(place)
        async with asyncio.timeout(1):
            await some.take("c", pytest.fail)

    run(scene())


def half_a_handshake(tag: str) -> bytes:
    """A whole ClientHello that asks for our key; no more will follow."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    said = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), said, server_hostname=tag)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return said.read()


@pytest.mark.fault(27)
def test_half_handshakes_from_many_addresses_leave_every_member_its_answer() -> None:
    async def scene() -> None:
        a = host(credentials(1), Limits())
        async with a.transport.serving(a.service()):
            address, member = split_address(a.address), credentials(2)
            ((tag, _),) = member.client_contexts()
            hello, held = half_a_handshake(tag), []
            hosts = cycle_of_hosts()

            async def one_more() -> None:
                end = socket.socket()
                end.setblocking(False)
                end.bind((next(hosts), 0))
                held.append(end)
                await asyncio.get_running_loop().sock_connect(end, address)
                await asyncio.get_running_loop().sock_sendall(end, hello)

            async def go_on() -> None:
                while True:
                    await one_more()
                    await asyncio.sleep(0.03)

            for _ in range(160):
                await one_more()
            flood = asyncio.create_task(go_on())
            for _ in range(6):
                assert await fetch_status(a.address, Limits().connect_s, member) == b"{}"
            assert not flood.done()
            flood.cancel()
            await asyncio.gather(flood, return_exceptions=True)
            assert "handshake too slow" in {one.reason for one in a.turned}  # the fault
            for end in held:
                end.close()

    run(scene())


def cycle_of_hosts() -> Iterator[str]:
    return (f"127.0.1.{1 + number % 20}" for number in count())
