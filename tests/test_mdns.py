"""mDNS on loopback. Each test has a network of its own: other runs may share the machine."""

import asyncio
import subprocess
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import zeroconf
from discovery_process import FOUND_WITHIN_S, SLACK, DiscoveryProcess
from test_discovery import LOOPBACK, announcement
from zeroconf.asyncio import AsyncZeroconf

from p2pfl.errors import UsageError
from p2pfl.network.discovery import Announcement, Candidate
from p2pfl.network.mdns import MdnsDiscovery, browse
from p2pfl.network.service_records import SERVICE


class Ears:
    """What one discovery said, as queues to wait on."""

    def __init__(self) -> None:
        self.found: asyncio.Queue[Candidate] = asyncio.Queue()
        self.lost: asyncio.Queue[str] = asyncio.Queue()
        self.warnings: list[str] = []

    def discovery(self, network: str | set[str] | None, refresh_s: float = 10.0, limit: int = 1024) -> MdnsDiscovery:
        return MdnsDiscovery(
            network,
            self.found.put_nowait,
            self.warnings.append,
            lost=self.lost.put_nowait,
            interface=LOOPBACK,
            refresh_s=refresh_s,
            limit=limit,
        )


def unique(name: str) -> str:
    return f"{name}-{uuid.uuid4().hex[:12]}"


@asynccontextmanager
async def raw_responder() -> AsyncIterator[AsyncZeroconf]:
    """A stranger's mDNS stack, to send what ours would not."""
    responder = AsyncZeroconf(interfaces=[LOOPBACK])
    try:
        await responder.zeroconf.async_wait_for_start()
        yield responder
    finally:
        await responder.async_close()


def shout(stranger: AsyncZeroconf, info: zeroconf.ServiceInfo) -> None:
    stranger.zeroconf.async_send(stranger.zeroconf.generate_service_broadcast(info, None))


def record(peer: str, text: dict[str, str] | bytes, port: int = 7700, host: str = LOOPBACK) -> zeroconf.ServiceInfo:
    return zeroconf.ServiceInfo(
        SERVICE, f"{peer}.{SERVICE}", port=port, properties=text, server=f"{peer}.local.", parsed_addresses=[host]
    )


def test_two_discoveries_find_each_other_and_hear_goodbye() -> None:
    async def scenario() -> None:
        network, first, second = unique("net"), unique("a"), unique("b")
        a_hears, b_hears = Ears(), Ears()
        async with a_hears.discovery(network) as a:
            await a.announce(announcement(first, network, "0.0.0.0:7701"))
            began = time.monotonic()
            async with asyncio.timeout(FOUND_WITHIN_S), b_hears.discovery(network) as b:
                await b.announce(announcement(second, network, "0.0.0.0:7702"))
                assert await a_hears.found.get() == Candidate(second, network, (f"{LOOPBACK}:7702",))
                assert await b_hears.found.get() == Candidate(first, network, (f"{LOOPBACK}:7701",))
                print(f"found each other in {time.monotonic() - began:.3f} s")
                assert [one.peer for one in a.candidates()] == [second]
            async with asyncio.timeout(1.0 * SLACK):
                assert await a_hears.lost.get() == second
            assert a.candidates() == ()
        assert a_hears.warnings == b_hears.warnings == []
        assert a_hears.found.empty()  # nobody was proposed to itself
        assert b_hears.found.empty()

    asyncio.run(scenario())


def test_changed_announcement_is_proposed_again() -> None:
    async def scenario() -> None:
        network, peer, hears = unique("net"), unique("b"), Ears()
        async with asyncio.timeout(FOUND_WITHIN_S), hears.discovery(network), Ears().discovery(network) as b:
            await b.announce(announcement(peer, network, "0.0.0.0:7701"))
            assert (await hears.found.get()).addresses == (f"{LOOPBACK}:7701",)
            await b.announce(announcement(peer, network, "0.0.0.0:7702"))
            assert (await hears.found.get()).addresses == (f"{LOOPBACK}:7702",)
            await b.announce(announcement(peer, unique("elsewhere"), "0.0.0.0:7702"))
            assert await hears.lost.get() == peer

    asyncio.run(scenario())


def test_other_networks_are_proposed_only_to_who_asks_for_all() -> None:
    async def scenario() -> None:
        network, peer, late = unique("net"), unique("b"), unique("c")
        hears, hears_all = Ears(), Ears()
        async with (
            asyncio.timeout(FOUND_WITHIN_S),
            hears.discovery(network),
            hears_all.discovery(None),
            Ears().discovery(None) as b,
            Ears().discovery(None) as c,
        ):
            await b.announce(announcement(peer, unique("elsewhere"), "0.0.0.0:7701"))
            while (await hears_all.found.get()).peer != peer:
                pass  # others' tests
            await c.announce(announcement(late, network, "0.0.0.0:7702"))
            assert (await hears.found.get()).peer == late  # the other, heard before, was not proposed

    asyncio.run(scenario())


def test_two_processes_find_each_other_without_torch() -> None:
    network, first, second = unique("net"), unique("a"), unique("b")
    start = subprocess.Popen
    with DiscoveryProcess(start, peer=first, network=network, interface=LOOPBACK, port=7701) as a:
        ready = a.wait("ready")
        assert ready["torch"] is False
        with DiscoveryProcess(start, peer=second, network=network, interface=LOOPBACK, port=7702) as b:
            began = b.wait("ready")["at"]
            in_a, in_b = a.wait("found", peer=second), b.wait("found", peer=first)
            assert max(in_a["at"], in_b["at"]) - began < FOUND_WITHIN_S
            b.stop()
            closed = b.wait("closed")["at"]
        assert a.wait("lost", peer=second)["at"] < closed


def test_garbage_on_the_wire_is_ignored_and_counted() -> None:
    async def scenario() -> None:
        network, real, hears = unique("net"), unique("real"), Ears()
        good = {"v": "1", "net": network}
        async with hears.discovery(network) as discovery, raw_responder() as stranger:
            shout(stranger, record("bad name", good))
            shout(stranger, record("nameless", {"v": "1"}))
            shout(stranger, record("cut", b"\xffnet=cut"))
            shout(stranger, record("empty", b""))
            shout(stranger, record("zero", good, host="0.0.0.0"))
            shout(stranger, record("port", good, port=0))
            stranger.zeroconf.engine.senders[0].transport.sendto(b"\0" * 400, ("224.0.0.251", 5353))
            shout(stranger, record(real, good))
            async with asyncio.timeout(FOUND_WITHIN_S):
                assert (await hears.found.get()).peer == real
            assert [one.peer for one in discovery.candidates()] == [real]
            assert discovery.ignored["bad name"] >= 1
            assert discovery.ignored["bad text"] >= 3
            assert discovery.ignored["bad address"] >= 2
        assert hears.warnings == []

    asyncio.run(scenario())


def test_flood_of_services_leaves_a_capped_table_with_the_verified_peer() -> None:
    async def scenario() -> None:
        network, real, hears = unique("net"), unique("real"), Ears()
        async with hears.discovery(network, limit=32) as discovery, raw_responder() as stranger:
            shout(stranger, record(real, {"v": "1", "net": network}))
            async with asyncio.timeout(FOUND_WITHIN_S):
                assert (await hears.found.get()).peer == real
            discovery.verified(real)
            last = ""
            for burst in range(20):  # waited for one by one, so that no socket buffer overflows
                for i in range(25):
                    last = f"ghost-{burst}-{i}"
                    shout(stranger, record(last, {"v": "1", "net": network}))
                async with asyncio.timeout(FOUND_WITHIN_S):
                    while (await hears.found.get()).peer != last:
                        pass
            assert len(discovery.candidates()) == 32
            assert real in {one.peer for one in discovery.candidates()}

    asyncio.run(scenario())


def test_change_of_name_and_tag_withdraws_the_former_ones() -> None:
    async def scenario() -> None:
        old, new, first, second = unique("old"), unique("new"), unique("a"), unique("b")
        hears = Ears()
        async with asyncio.timeout(3 * FOUND_WITHIN_S), hears.discovery({old, new}), Ears().discovery(old) as b:
            await b.announce(announcement(first, old, "0.0.0.0:7702"))
            assert await hears.found.get() == Candidate(first, old, (f"{LOOPBACK}:7702",))
            await b.announce(announcement(second, new, "0.0.0.0:7702"))
            assert await hears.lost.get() == first
            assert await hears.found.get() == Candidate(second, new, (f"{LOOPBACK}:7702",))

    asyncio.run(scenario())


def test_tags_are_changed_at_run_time_and_what_was_heard_before_counts() -> None:
    async def scenario() -> None:
        old, new, peer, other = unique("old"), unique("new"), unique("a"), unique("b")
        hears, hears_all = Ears(), Ears()
        async with (
            asyncio.timeout(3 * FOUND_WITHIN_S),
            hears.discovery(old) as discovery,
            hears_all.discovery({old, new}),
            Ears().discovery(None) as a,
            Ears().discovery(None) as b,
        ):
            await a.announce(announcement(peer, new, "0.0.0.0:7701"))
            await b.announce(announcement(other, old, "0.0.0.0:7702"))
            assert {(await hears_all.found.get()).peer for _ in range(2)} == {peer, other}
            assert (await hears.found.get()).peer == other
            discovery.listen_for({old, new})
            assert (await hears.found.get()).peer == peer  # without waiting for its next announcement
            discovery.listen_for(new)
            assert hears.lost.get_nowait() == other
            assert [one.peer for one in discovery.candidates()] == [peer]

    asyncio.run(scenario())


def test_own_address_in_a_record_of_another_is_not_proposed() -> None:
    async def scenario() -> None:
        network, ghost, real, hears = unique("net"), unique("ghost"), unique("real"), Ears()
        async with asyncio.timeout(FOUND_WITHIN_S), hears.discovery(network) as discovery, raw_responder() as stranger:
            await discovery.announce(announcement(unique("me"), network, "0.0.0.0:7701"))
            shout(stranger, record(ghost, {"v": "1", "net": network}, port=7701))
            shout(stranger, record(real, {"v": "1", "net": network}, port=7702))
            assert (await hears.found.get()).peer == real
            assert [one.peer for one in discovery.candidates()] == [real]

    asyncio.run(scenario())


def test_candidate_that_lost_its_place_is_proposed_again() -> None:
    async def scenario() -> None:
        network, peers, hears = unique("net"), {unique("a"), unique("b")}, Ears()
        async with asyncio.timeout(2 * FOUND_WITHIN_S), hears.discovery(network, limit=1):
            first, second = sorted(peers)
            async with Ears().discovery(network, refresh_s=0.2) as a, Ears().discovery(network, refresh_s=0.2) as b:
                await a.announce(announcement(first, network, "0.0.0.0:7701"))
                await b.announce(announcement(second, network, "0.0.0.0:7702"))
                times = dict.fromkeys(peers, 0)
                while min(times.values()) < 3:
                    times[(await hears.found.get()).peer] += 1

    asyncio.run(scenario())


def test_browse_lists_who_is_there() -> None:
    async def scenario() -> None:
        network, peer, hears = unique("net"), unique("a"), Ears()
        async with hears.discovery(network), Ears().discovery(network) as a:
            await a.announce(announcement(peer, network, "0.0.0.0:7701"))
            async with asyncio.timeout(FOUND_WITHIN_S):
                await hears.found.get()
            listed = await browse(1.5 * SLACK, LOOPBACK)
        assert Candidate(peer, network, (f"{LOOPBACK}:7701",)) in listed

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("told", "complaint"),
    [
        (announcement("two words"), "peer id"),
        (announcement("a", network="n" * 129), "network"),
        (announcement("a", address="10.0.0.1"), "host:port"),
        (announcement("a", address="host.example:80"), "cannot announce"),
        (Announcement("a", "n", ()), "one or more addresses"),
        (Announcement("a", "n", ("10.0.0.1:1", "10.0.0.2:2")), "same port"),
    ],
)
def test_what_cannot_be_announced_is_refused(told: Announcement, complaint: str) -> None:
    async def scenario() -> None:
        async with Ears().discovery("n") as discovery:
            with pytest.raises(UsageError, match=complaint):
                await discovery.announce(told)

    asyncio.run(scenario())


def test_unknown_interface_is_refused_on_entering() -> None:
    async def scenario() -> None:
        with pytest.raises(UsageError, match="no network interface"):
            async with MdnsDiscovery(None, print, print, interface="no-such0"):
                pass

    asyncio.run(scenario())


def test_an_error_in_the_body_comes_out_as_it_is() -> None:
    async def scenario() -> None:
        async with Ears().discovery("n"):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        asyncio.run(scenario())
