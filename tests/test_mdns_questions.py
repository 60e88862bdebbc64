"""How often the LAN is asked who is there: often enough that one question may be lost."""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from discovery_process import FOUND_WITHIN_S
from test_discovery import LOOPBACK, announcement
from test_mdns import Ears, unique

_GROUP, _PORT = "224.0.0.251", 5353  # RFC 6762, section 3
_QUIET_S = 0.3  # longer than between the broadcasts of a new announcement
_RESPONSE = 0x80  # of a packet's third byte (RFC 1035, section 4.1.1)


@contextmanager
def wire() -> Iterator[socket.socket]:
    """Hears all mDNS packets on loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind((_GROUP, _PORT))
        one.setsockopt(
            socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(_GROUP) + socket.inet_aton(LOOPBACK)
        )
        one.setblocking(False)
        yield one


def test_who_comes_right_after_another_and_its_announcements_hears_of_it_all_the_same() -> None:
    """It has missed the announcements, and its question is the one the other has heard, from itself, in that second."""

    async def scenario() -> tuple[float, float]:
        network, peer, hears = unique("net"), unique("a"), Ears()
        loop = asyncio.get_running_loop()
        with wire() as packets:
            began = time.monotonic()
            async with asyncio.timeout(2 * FOUND_WITHIN_S), Ears().discovery(network) as first:
                await first.announce(announcement(peer, network, "0.0.0.0:7701"))
                told = 0
                with suppress(TimeoutError):
                    while True:
                        async with asyncio.timeout(None if told == 0 else _QUIET_S):
                            packet = await loop.sock_recv(packets, 9000)
                        told += peer.encode() in packet and bool(packet[2] & _RESPONSE)
                came = time.monotonic()
                async with asyncio.timeout(FOUND_WITHIN_S), hears.discovery(network):
                    assert (await hears.found.get()).peer == peer
                    return came - began, time.monotonic() - came

    after_s, took_s = asyncio.run(scenario())
    print(f"came {after_s:.2f} s after the other, heard of it {took_s:.2f} s later")
