"""Discovery in memory, the table of candidates, and what others' records become."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import ProtocolError
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
from p2pfl.network.mdns import join_each
from p2pfl.network.service_records import read_candidate

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
