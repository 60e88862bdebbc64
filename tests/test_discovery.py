import asyncio
import subprocess
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network

import pytest
import zeroconf
from discovery_process import FOUND_WITHIN_S, SLACK, DiscoveryProcess
from hypothesis import given
from hypothesis import strategies as st
from zeroconf.asyncio import AsyncZeroconf

from p2pfl.errors import ProtocolError, UsageError
from p2pfl.network.discovery import (
    Announcement,
    Candidate,
    CandidateTable,
    Discovery,
    MemoryDiscovery,
    MemoryLan,
    NoDiscovery,
    join_address,
    split_address,
)
from p2pfl.network.interfaces import (
    Interface,
    dialable,
    has_ipv6,
    interfaces,
    listening_hosts,
    local_addresses,
    nearest,
    ranked,
    scoped,
)
from p2pfl.network.mdns import MdnsDiscovery, browse, join_each
from p2pfl.network.service_records import SERVICE, read_candidate

LOOPBACK = "127.0.0.1"


def announcement(peer: str, network: str = "n", address: str = "10.0.0.1:7700") -> Announcement:
    return Announcement(peer, network, (address,))


def candidate(peer: str, address: str = "10.0.0.1:7700", network: str = "n") -> Candidate:
    return Candidate(peer, network, (address,))


# Discovery in memory


def test_memory_peers_find_each_other_whoever_comes_first() -> None:
    async def scenario() -> None:
        lan, by_a, by_b = MemoryLan(), list[Candidate](), list[Candidate]()
        async with MemoryDiscovery(lan, "n", by_a.append) as a:
            await a.announce(announcement("a"))
            async with MemoryDiscovery(lan, "n", by_b.append) as b:
                assert by_b == [candidate("a")]
                await b.announce(announcement("b"))
                assert by_a == [candidate("b")]
                assert a.candidates() == (candidate("b"),)

    asyncio.run(scenario())


def test_memory_peer_is_proposed_again_only_when_it_changed() -> None:
    async def scenario() -> None:
        lan, found = MemoryLan(), list[Candidate]()
        async with MemoryDiscovery(lan, "n", found.append), MemoryDiscovery(lan, "n", found.append) as b:
            await b.announce(announcement("b"))
            await b.announce(announcement("b"))
            await b.announce(announcement("b", address="10.0.0.2:7700"))
        assert found == [candidate("b"), candidate("b", "10.0.0.2:7700")]

    asyncio.run(scenario())


def test_memory_goodbye_forgets_and_other_networks_are_not_proposed() -> None:
    async def scenario() -> None:
        lan, found, lost = MemoryLan(), list[Candidate](), list[str]()
        async with MemoryDiscovery(lan, "n", found.append, lost.append) as a:
            async with MemoryDiscovery(lan, "n", found.append) as b, MemoryDiscovery(lan, None, found.append) as c:
                await b.announce(announcement("b"))
                await c.announce(announcement("c", network="other"))
                assert [one.peer for one in c.candidates()] == ["b"]
                assert [one.peer for one in a.candidates()] == ["b"]
            assert lost == ["b"]
            assert a.candidates() == ()

    asyncio.run(scenario())


def test_memory_peer_that_changes_its_name_is_forgotten_under_the_former_one() -> None:
    async def scenario() -> None:
        lan, found, lost = MemoryLan(), list[Candidate](), list[str]()
        async with MemoryDiscovery(lan, "n", found.append, lost.append) as a, MemoryDiscovery(lan, "n", print) as b:
            await b.announce(announcement("b"))
            await b.announce(announcement("b2"))
            assert lost == ["b"]
            assert a.candidates() == (candidate("b2"),)

    asyncio.run(scenario())


def test_memory_tags_are_changed_at_run_time() -> None:
    async def scenario() -> None:
        lan, found, lost = MemoryLan(), list[Candidate](), list[str]()
        async with (
            MemoryDiscovery(lan, "old", found.append, lost.append) as a,
            MemoryDiscovery(lan, None, print) as b,
            MemoryDiscovery(lan, None, print) as c,
        ):
            await b.announce(announcement("b", network="old"))
            await c.announce(announcement("c", network="new"))
            a.listen_for({"old", "new"})
            assert found == [candidate("b", network="old"), candidate("c", network="new")]
            a.listen_for("new")
            assert a.candidates() == (candidate("c", network="new"),)
            assert lost == ["b"]

    asyncio.run(scenario())


def test_no_discovery_proposes_nobody() -> None:
    async def scenario() -> None:
        discovery: Discovery = NoDiscovery()
        async with discovery:
            await discovery.announce(announcement("a"))
            discovery.verified("a")
            assert discovery.candidates() == ()

    asyncio.run(scenario())


# The table of candidates


def test_full_table_drops_the_longest_silent() -> None:
    table = CandidateTable(limit=2)
    assert table.heard(candidate("a"))
    assert table.heard(candidate("b"))
    assert not table.heard(candidate("a"))  # refreshed: b is the longest silent now
    assert table.heard(candidate("c"))
    assert [one.peer for one in table.candidates()] == ["a", "c"]
    assert table.dropped == 1


def test_verified_candidates_survive_ten_thousand_ghosts() -> None:
    table = CandidateTable(limit=64)
    for i in range(8):
        table.heard(candidate(f"real{i}"))
        table.verified(f"real{i}")
    for i in range(10_000):
        table.heard(candidate(f"ghost{i}"))
    assert len(table) == 64
    assert {f"real{i}" for i in range(8)} <= {one.peer for one in table.candidates()}
    assert table.dropped == 10_000 - 56


def test_table_of_verified_candidates_turns_newcomers_away() -> None:
    table = CandidateTable(limit=1)
    table.heard(candidate("a"))
    table.verified("a")
    assert not table.heard(candidate("b"))
    assert table.heard(candidate("a", "10.0.0.2:7700"))
    assert table.candidates() == (candidate("a", "10.0.0.2:7700"),)
    assert table.lost("a")
    assert not table.lost("a")


@pytest.mark.parametrize(
    ("address", "parts"),
    [("10.0.0.1:80", ("10.0.0.1", 80)), ("[fe80::1]:7700", ("fe80::1", 7700)), ("host:65535", ("host", 65535))],
)
def test_address_splits_and_joins(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts
    assert join_address(*parts) == address


@pytest.mark.parametrize(
    "address", ["", "host", "host:", ":80", "host:0", "host:65536", "h:8o", "::1:80", f"h:{'9' * 9999}"]
)
def test_address_of_another_form_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="not of the form host:port"):
        split_address(address)


# Interfaces


def test_addresses_are_ordered_by_how_likely_others_reach_them() -> None:
    lo, docker = Interface("lo", (LOOPBACK,)), Interface("docker0", ("172.17.0.1",))
    wifi, wired = Interface("wlan0", ("192.168.1.7",)), Interface("eth0", ("10.0.0.7", "10.0.0.8"))
    lone = Interface("eth1", ("169.254.3.4",))
    assert ranked([lo, docker, lone, wired, wifi], {"192.168.1.7"}) == (wifi, wired, lone, docker, lo)
    assert ranked([docker, wired, wifi], ()) == (wired, wifi, docker)


def test_loopback_is_told_only_when_nothing_else_is_up() -> None:
    lo, wired = Interface("lo", (LOOPBACK,)), Interface("eth0", ("10.0.0.7", "10.0.0.8"))
    assert dialable([lo, wired]) == ("10.0.0.7", "10.0.0.8")
    assert dialable([lo]) == (LOOPBACK,)
    assert dialable([]) == ()


def test_addresses_of_a_link_alone_are_told_last_and_without_their_scope() -> None:
    wired = Interface("eth0", ("10.0.0.7", "fd77::7", "fe80::7%eth0"))
    wifi = Interface("wlan0", ("10.1.0.7", "fe80::8%wlan0"))
    assert dialable([wired, wifi]) == ("10.0.0.7", "fd77::7", "10.1.0.7", "fe80::7", "fe80::8")


def test_addresses_of_a_link_alone_get_the_scopes_of_this_machine() -> None:
    wired = Interface("eth0", ("10.0.0.7", "fe80::7%eth0"))
    wifi, lo = Interface("wlan0", ("fe80::8%wlan0",)), Interface("lo", (LOOPBACK, "::1"))
    up = (wired, wifi, lo)
    assert scoped("fe80::9", up) == ("fe80::9%eth0", "fe80::9%wlan0")
    assert scoped("fe80::9%wlan0", up) == ("fe80::9%wlan0", "fe80::9%eth0")
    assert scoped("fe80::9%other", up) == ("fe80::9%eth0", "fe80::9%wlan0")
    assert scoped("fe80::9", (lo,)) == ()
    assert scoped("10.0.0.9", up) == ("10.0.0.9",)
    assert scoped("fd77::9", up) == ("fd77::9",)
    assert scoped("host.example", up) == ("host.example",)


def test_another_machines_addresses_are_ordered_by_how_near_they_are() -> None:
    up = (
        Interface("eth0", ("192.168.1.7", "fe80::7%eth0"), (ip_network("192.168.1.0/24"), ip_network("fe80::/64"))),
        Interface("docker0", ("172.17.0.1",), (ip_network("172.17.0.0/16"),)),
        Interface("lo", (LOOPBACK, "::1"), (ip_network("127.0.0.0/8"), ip_network("::1/128"))),
    )
    hosts = ["172.17.0.1", "10.5.0.1", "192.168.1.9", "fd77::9", "fe80::9"]
    assert nearest(hosts, up) == ("192.168.1.9", "10.5.0.1", "fd77::9", "fe80::9", "172.17.0.1")
    assert nearest(hosts, ()) == ("172.17.0.1", "10.5.0.1", "192.168.1.9", "fd77::9", "fe80::9")


def test_all_of_the_machine_or_one_interface_is_listened_on() -> None:
    assert listening_hosts() == (("0.0.0.0", "::") if has_ipv6() else ("0.0.0.0",))
    assert listening_hosts(LOOPBACK) == (LOOPBACK,)
    loopback = next(one for one in interfaces() if one.loopback)
    assert listening_hosts(loopback.name) == loopback.addresses


def test_an_interface_is_chosen_by_name_or_address() -> None:
    loopback = next(one for one in interfaces() if one.loopback)
    assert local_addresses(loopback.name) == loopback.addresses
    assert local_addresses(LOOPBACK) == (LOOPBACK,)
    assert local_addresses() == dialable(interfaces())


def test_unknown_interface_is_refused_and_the_known_ones_listed() -> None:
    with pytest.raises(UsageError, match=r"no network interface 'no-such0' here; .*\(127\.0\.0\.1[,)]"):
        local_addresses("no-such0")


# Reading others' records

GOOD = {b"v": b"1", b"net": b"n"}


def test_record_becomes_a_candidate_with_its_addresses_in_a_fixed_order() -> None:
    hosts = ["10.0.0.9", "0.0.0.0", "10.0.0.10", "224.0.0.1", "255.255.255.255", "10.0.0.9", "fe80::1"]
    expected = ("10.0.0.9:7700", "10.0.0.10:7700", "[fe80::1]:7700")
    assert read_candidate("peer", GOOD, 7700, hosts) == Candidate("peer", "n", expected)


def test_addresses_of_one_candidate_are_capped() -> None:
    hosts = [f"10.0.{i // 256}.{i % 256}" for i in range(1000)]
    assert len(read_candidate("peer", GOOD, 7700, hosts).addresses) == 16


@pytest.mark.parametrize(
    ("reason", "instance", "text", "port", "hosts"),
    [
        ("bad name", "", GOOD, 7700, ["10.0.0.1"]),
        ("bad name", "a.b", GOOD, 7700, ["10.0.0.1"]),
        ("bad name", "x" * 64, GOOD, 7700, ["10.0.0.1"]),
        ("bad name", "pe\x1b[2Jer", GOOD, 7700, ["10.0.0.1"]),
        ("bad text", "peer", {}, 7700, ["10.0.0.1"]),
        ("bad text", "peer", GOOD | {b"v": b"-1"}, 7700, ["10.0.0.1"]),
        ("bad text", "peer", GOOD | {b"v": b"9" * 99}, 7700, ["10.0.0.1"]),
        ("bad text", "peer", GOOD | {b"net": None}, 7700, ["10.0.0.1"]),
        ("bad text", "peer", GOOD | {b"net": b"\xff"}, 7700, ["10.0.0.1"]),
        ("bad text", "peer", GOOD | {b"net": b"\x1b[2J"}, 7700, ["10.0.0.1"]),
        ("bad text", "peer", GOOD | {b"net": b"n" * 129}, 7700, ["10.0.0.1"]),
        ("bad address", "peer", GOOD, 0, ["10.0.0.1"]),
        ("bad address", "peer", GOOD, None, ["10.0.0.1"]),
        ("bad address", "peer", GOOD, 7700, []),
        ("bad address", "peer", GOOD, 7700, ["0.0.0.0", "239.1.1.1", "255.255.255.255"]),
    ],
)
def test_absurd_record_is_refused(
    reason: str, instance: str, text: dict[bytes, bytes | None], port: int | None, hosts: list[str]
) -> None:
    with pytest.raises(ProtocolError) as refusal:
        read_candidate(instance, text, port, hosts)
    assert refusal.value.reason == reason


@given(
    st.sampled_from(["peer"]) | st.text(max_size=70),
    st.dictionaries(st.sampled_from([b"v", b"net", b"x"]), st.none() | st.sampled_from([b"1", b"peer"]) | st.binary()),
    st.none() | st.integers(-1, 70000),
    st.lists(st.ip_addresses().map(str)),
)
def test_any_record_is_a_candidate_or_a_refusal(
    instance: str, text: dict[bytes, bytes | None], port: int | None, hosts: list[str]
) -> None:
    try:
        read = read_candidate(instance, text, port, hosts)
    except ProtocolError:
        return
    assert read.peer == instance
    assert all(split_address(address)[1] == port for address in read.addresses)


def test_an_address_that_fails_does_not_keep_the_others_from_taking_part() -> None:
    async def scenario(broken: set[str], error: Exception | None) -> list[str]:
        taking_part: list[str] = []

        async def update(addresses: list[str]) -> None:
            taking_part[:] = [one for one in taking_part if one in addresses]
            for address in addresses:
                if address in broken:
                    if error is not None:
                        raise error
                elif address not in taking_part:
                    taking_part.append(address)

        every = ["a", "b", "c", "d"]
        await join_each(every, update, lambda: [one for one in every if one not in taking_part])
        return taking_part

    for error in (OSError("in use"), RuntimeError("no adapter"), None):
        assert asyncio.run(scenario(set(), error)) == ["a", "b", "c", "d"]
        assert asyncio.run(scenario({"a"}, error)) == ["b", "c", "d"]
        assert asyncio.run(scenario({"b", "d"}, error)) == ["a", "c"]
        assert asyncio.run(scenario({"a", "b", "c", "d"}, error)) == []


# mDNS on loopback. Each test has a network of its own: other runs may share the machine.


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
