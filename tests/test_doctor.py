"""The doctor's judgments by tables, its looks on loopback, and whole examinations among hosts with faults."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from doctor_host import member_on
from hypothesis import given
from hypothesis import strategies as st
from namespaces import Host, lan, namespaces_available

from p2pfl import home
from p2pfl.doctor.findings import Finding
from p2pfl.doctor.machine import judge_descriptors, judge_exposed, judge_folder, judge_ports
from p2pfl.doctor.multicast import Heard, judge_heard, read
from p2pfl.doctor.nics import Nic, judge_memberships, judge_nics, nics
from p2pfl.doctor.others import Answer, dated, judge_answers, judge_tags, judge_versions, knock
from p2pfl.identity import Identity
from p2pfl.network.discovery import Candidate
from p2pfl.network.http import HttpTransport
from p2pfl.network.tls import Credentials
from p2pfl.network.transport import Link, Service
from p2pfl.network_key import KeyRing, NetworkKey

KEY, OTHER = NetworkKey("home", bytes(range(32))), NetworkKey("home", bytes(32))
OWN = ("",)  # the tag of an answer that is given none
ETH = Nic("eth0", ("10.0.0.1",))
LO = Nic("lo", ("127.0.0.1", "::1"), multicast=False)
DOCKER = Nic("docker0", ("172.17.0.1",))
in_namespaces = [
    pytest.mark.namespaces,
    pytest.mark.skipif(namespaces_available() is not None, reason=str(namespaces_available())),
]


def codes(findings: list[Finding]) -> list[str]:
    """Problems as they are called, notes in brackets."""
    return [one.code if one.level == "problem" else f"({one.code})" for one in findings]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ((ETH, LO), []),
        ((LO,), ["no interface"]),
        ((), ["no interface"]),
        ((LO, DOCKER), ["only virtual interfaces"]),
        ((LO, DOCKER, ETH), []),
        ((Nic("eth0", ("10.0.0.1",), up=False), LO), ["no interface", "(interface down)"]),
        ((Nic("eth0", ("10.0.0.1",), carrier=False), LO), ["no interface", "(no carrier)"]),
        ((Nic("eth0", ("10.0.0.1",), multicast=False), LO), ["no multicast"]),
        ((Nic("eth0", ("fe80::1", "fd00::1")), LO), ["(IPv6 only)"]),
        ((Nic("eth0", (), up=True), ETH), []),
    ],
)
def test_interfaces_are_judged(found: tuple[Nic, ...], expected: list[str]) -> None:
    assert codes(judge_nics(found)) == expected


def test_too_few_memberships_say_the_setting() -> None:
    assert judge_memberships(20, 20) == judge_memberships(50, None) == []
    [finding] = judge_memberships(25, 20)
    assert finding.text == "25 interfaces are up, and the system allows multicast on 20 of them: the others stay deaf"
    assert finding.mend.startswith("sysctl -w net.ipv4.igmp_max_memberships=64")


@pytest.mark.parametrize(
    ("nic", "heard", "reached", "expected"),
    [
        (ETH, Heard(own=True, hosts={"10.0.0.2"}), 0, []),
        (ETH, Heard(own=False), 0, ["own not heard"]),
        (ETH, Heard(own=False, hosts={"10.0.0.2"}), 0, ["own not heard"]),
        (ETH, Heard(own=True), 0, ["(nobody heard)"]),  # an empty LAN is no fault
        (ETH, Heard(own=True), 1, ["multicast blocked"]),
        (ETH, Heard(own=True, peers={"a": 2}), 0, ["(nobody else)"]),
        (LO, Heard(own=True), 0, []),
        (DOCKER, Heard(own=False), 0, []),
        (Nic("eth0", ("10.0.0.1",), multicast=False), Heard(), 0, []),  # said already
    ],
)
def test_what_is_heard_is_judged(nic: Nic, heard: Heard, reached: int, expected: list[str]) -> None:
    assert codes(judge_heard((nic,), {nic.name: heard}, reached)) == expected


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ((Answer("10.0.0.2:7470", "a", tcp="open", member=True, clock_off_s=2.0),), []),
        ((Answer("10.0.0.2:7470", "a", tcp="open", member=True, clock_off_s=-7200.0),), ["(clock)"]),
        ((Answer("10.0.0.2:7470", "a", tcp="silent"),), ["firewall"]),
        ((Answer("10.0.0.2:7470", "a", tcp="silent"), Answer("10.0.0.3:7470", "a", tcp="open", member=True)), []),
        ((Answer("10.0.0.2:7470", "a", tcp="closed"),), ["nobody listens"]),
        ((Answer("10.0.0.2:7470", "a", tcp="open", why="of another network"),), []),  # its tag tells
        ((Answer("10.0.0.2:7470", tcp="open", why="of another network"),), ["not a member"]),
        ((Answer("10.0.0.2:7470", "a", tcp="open", why="speaks an older TLS than 1.3"),), ["not a member"]),
        ((Answer("10.0.0.2:7470", "a", "other", tcp="open", why="no network's key is on this machine"),), []),
        ((Answer("10.0.0.2:7470", "a", "other", tcp="silent"), Answer("10.0.0.3:1", "b", "other", tcp="closed")), []),
        ((Answer("10.0.0.2:7470", "a", "other", tcp="open", member=True, clock_off_s=99.0),), ["(clock)"]),
    ],
)
def test_answers_are_judged(answers: tuple[Answer, ...], expected: list[str]) -> None:
    assert codes(judge_answers(answers, OWN)) == expected


def test_a_firewall_is_mended_by_a_command_with_the_port() -> None:
    [finding] = judge_answers([Answer("10.0.0.2:7471", "a", tcp="silent")], OWN)
    assert finding.place == "10.0.0.2:7471"
    assert "ufw allow 7471/tcp" in finding.mend
    assert "firewall-cmd --add-port=7471/tcp" in finding.mend


def test_a_wrong_clock_is_told_and_no_problem() -> None:
    [finding] = judge_answers([Answer("10.0.0.2:7470", tcp="open", member=True, clock_off_s=86400.0)], OWN)
    assert finding.text == "its clock is 86400 s ahead of this machine's; no decision uses a clock"


@pytest.mark.parametrize(
    ("tags", "network", "present", "former", "expected"),
    [
        (["t1"], None, {"t1": "home"}, {}, []),
        (["t1"], "home", {"t1": "home"}, {}, []),
        (["t2"], None, {"t1": "home"}, {}, ["(foreign network)"]),
        (["t1", "t2"], "home", {"t1": "home"}, {}, ["(foreign network)"]),
        (["t2"], "home", {"t1": "home"}, {}, ["other key"]),
        (["t0"], "home", {"t1": "home"}, {"t0": "home"}, ["(former key)"]),
        (["home"], "home", {"t1": "home"}, {}, ["insecure network"]),
        ([], "home", {}, {}, ["no key"]),
        ([], "home", {"t1": "home"}, {}, []),
    ],
)
def test_keys_are_judged(
    tags: list[str], network: str | None, present: dict[str, str], former: dict[str, str], expected: list[str]
) -> None:
    candidates = [Candidate(f"p{number}", tag, ("10.0.0.2:1",)) for number, tag in enumerate(tags)]
    assert codes(judge_tags(candidates, network, present, former)) == expected


def test_versions_are_judged() -> None:
    found = judge_versions({"a": 1, "b": 2, "c": 3, "d": 4, "e": None}, (2, 3))
    assert [(one.level, one.code, one.place) for one in found] == [
        ("problem", "old version", "a"),
        ("note", "new version", "d"),
    ]


def test_few_descriptors_are_a_problem() -> None:
    assert judge_descriptors(None) == judge_descriptors(1024) == []
    [finding] = judge_descriptors(64)
    assert finding.code == "few descriptors"
    assert "a process may have 64 files" in finding.text
    assert "ulimit -n 4096" in finding.mend


def test_a_port_in_use_is_told_with_the_one_taken_instead() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            free = probe.getsockname()[1]
        [finding] = judge_ports((port, free), "127.0.0.1")
        assert (finding.level, finding.text) == (
            "note",
            f"port {port} is in use, by a peer or another program: the next peer takes {free}",
        )
        [finding] = judge_ports((port, port), "127.0.0.1")
        assert (finding.level, finding.code) == ("problem", "no free port")
    assert judge_ports((port,), "127.0.0.1") == []


def test_a_folder_that_others_can_change_is_a_problem(tmp_path: Path) -> None:
    folder = tmp_path / "p2pfl"
    assert judge_folder(folder) == []  # not made yet
    folder.mkdir(mode=0o700)
    assert judge_folder(folder) == []
    folder.chmod(0o777)
    [finding] = judge_folder(folder)
    assert (finding.code, finding.mend) == ("folder of others", f"chmod 700 {folder}")
    file = tmp_path / "file"
    file.touch()
    assert codes(judge_folder(file)) == ["no access"]


@pytest.mark.skipif(os.name != "posix", reason="rights are kept in lists there")
def test_a_key_that_others_can_read_is_a_problem() -> None:
    home.create_network("home")
    assert judge_exposed(home.exposed("home")) == []
    path = home.key_path("home")
    path.chmod(0o644)
    [finding] = judge_exposed(home.exposed("home"))
    assert (finding.code, finding.place, finding.mend) == ("exposed key", str(path), f"chmod 600 {path}")


def test_the_date_of_an_answer_is_read() -> None:
    head = b"HTTP/1.1 200 OK\r\ndate: Mon, 23 Nov 2026 20:00:00 GMT\r\n\r\n"
    assert dated(head) == datetime(2026, 11, 23, 20, tzinfo=UTC)
    assert dated(b"HTTP/1.1 200 OK\r\n\r\n") is None
    assert dated(b"HTTP/1.1 200 OK\r\nDate: soon\r\n\r\n") is None


@given(st.binary(max_size=200))
def test_no_head_and_no_packet_can_stop_the_doctor(data: bytes) -> None:
    dated(data)
    dated(b"Date: " + data)
    read(data)
    read(b"\0\0\x84\0\0\0\0\x03\0\0\0\0" + data)


def test_the_interfaces_of_this_machine_are_seen() -> None:
    found = {nic.name: nic for nic in nics()}
    loopback = [nic for nic in found.values() if nic.loopback]
    assert loopback
    assert loopback[0].up
    assert not loopback[0].useful


@asynccontextmanager
async def serving(key: NetworkKey | None) -> AsyncIterator[str]:
    """The address of a member of a network, or of a peer without encryption."""

    async def accept(link: Link) -> None:
        await link.close("nothing to say")

    credentials = None if key is None else Credentials(Identity(bytes(range(32))), KeyRing(key))
    transport = HttpTransport(("127.0.0.1",), 0, credentials=credentials)
    service = Service(accept, lambda token, peer: None, lambda token, peer, size: None, lambda: b"{}")
    async with transport.serving(service):
        yield f"127.0.0.1:{transport.port}"


def knocked(there: NetworkKey | None, *here: NetworkKey) -> Answer:
    async def program() -> Answer:
        async with serving(there) as address:
            return await knock(address, [Credentials(Identity(bytes(32)), KeyRing(key)) for key in here])

    return asyncio.run(program())


def test_a_member_answers_a_member_and_dates_it() -> None:
    answer = knocked(KEY, NetworkKey("lab", bytes(32)), KEY)
    assert (answer.tcp, answer.member, answer.insecure) == ("open", True, False)
    assert answer.clock_off_s is not None
    assert abs(answer.clock_off_s) < 30
    assert judge_answers([answer], OWN) == []


def test_a_member_of_another_key_does_not_answer() -> None:
    answer = knocked(KEY, OTHER)
    assert (answer.tcp, answer.member) == ("open", False)
    assert "another network" in answer.why
    assert codes(judge_answers([answer], OWN)) == ["not a member"]


def test_without_a_key_nobody_answers() -> None:
    answer = knocked(KEY)
    assert (answer.tcp, answer.member, answer.why) == ("open", False, "no network's key is on this machine")


def test_a_peer_in_the_clear_is_told_as_such() -> None:
    answer = knocked(None, KEY)
    assert (answer.member, answer.insecure) == (True, True)


def test_a_port_where_nobody_listens_is_closed() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    assert asyncio.run(knock(address, [])).tcp == "closed"


# Whole examinations


def examined(host: Host, *arguments: str, seconds: float = 2.5) -> tuple[int, dict[str, Any]]:
    """Exit status and answer of `p2pfl doctor --json` on a host."""
    command = [sys.executable, "-m", "p2pfl.cli.app", "doctor", "--json", "--seconds", str(seconds), *arguments]
    process = host.start(command, stdout=subprocess.PIPE, text=True)
    out, _ = process.communicate(timeout=60)
    return process.returncode, json.loads(out)


def problems(facts: dict[str, Any]) -> list[tuple[str, str]]:
    return [(one["code"], one["place"]) for one in facts["findings"] if one["level"] == "problem"]


@contextmanager
def two() -> Any:
    """A host to examine, and a host with a member of the network whose key is here."""
    token = home.create_network("home").key.token
    with lan(2) as (here, there):
        member_on(there, token, 7470)
        yield here, there, token


@pytest.mark.namespaces
@pytest.mark.skipif(namespaces_available() is not None, reason=str(namespaces_available()))
class TestHosts:
    """A LAN of two, with one thing wrong at a time."""

    def test_all_is_well(self) -> None:
        with two() as (here, there, _):
            status, facts = examined(here, "--network", "home")
            assert facts["findings"] == []
            assert (status, facts["healthy"]) == (0, True)
            [eth0] = [one for one in facts["interfaces"] if one["name"] == "eth0"]
            assert eth0["own_heard"]
            assert there.address in eth0["machines_heard"]
            assert len(eth0["peers_heard"]) == 1
            answer = next(one for one in facts["answers"] if one["address"] == f"{there.address}:7470")
            assert (answer["tcp"], answer["member"]) == ("open", True)

    @pytest.mark.fault(6)
    def test_blocked_multicast_is_found_though_the_peer_answers(self) -> None:
        with two() as (here, there, _):
            there.multicast("off")  # nothing reaches it by multicast: it hears no question, and
            here.multicast("off")  # nothing that it says reaches us
            status, facts = examined(here, "--network", "home", "--peer", f"{there.address}:7470")
            [eth0] = [one for one in facts["interfaces"] if one["name"] == "eth0"]
            assert (eth0["own_heard"], eth0["machines_heard"]) == (True, [])  # the fault happened
            assert problems(facts) == [("multicast blocked", "eth0")]
            assert facts["findings"][0]["text"].startswith("peers answer at the addresses given")
            assert status == 1

    def test_an_interface_without_multicast_is_found(self) -> None:
        with two() as (here, _, _):
            here.run("ip", "link", "set", "eth0", "multicast", "off")
            status, facts = examined(here, seconds=1.0)
            assert ("no multicast", "eth0") in problems(facts)
            assert status == 1

    def test_a_firewall_is_found(self) -> None:
        with two() as (here, there, _):
            there.run("nft", "add table inet wall")
            there.run("nft", "add chain inet wall in { type filter hook input priority 0; }")
            there.run("nft", "add rule inet wall in tcp dport 7470 counter drop")
            status, facts = examined(here)
            assert "counter packets 0 " not in there.run("nft", "list", "table", "inet", "wall")  # the fault happened
            [(code, place)] = problems(facts)
            assert (code, place.rpartition(":")[2]) == ("firewall", "7470")
            assert status == 1

    def test_a_port_behind_which_nobody_listens_is_found(self) -> None:
        token = home.create_network("home").key.token
        with lan(2) as (here, there):
            member_on(there, token, 7470, announced_port=7999)
            _, facts = examined(here)
            assert [(code, place.rpartition(":")[2]) for code, place in problems(facts)] == [("nobody listens", "7999")]

    def test_a_network_of_the_same_name_with_another_key_is_found(self) -> None:
        home.create_network("home")
        with lan(2) as (here, there):
            member_on(there, OTHER.token, 7470)
            status, facts = examined(here, "--network", "home")
            assert problems(facts) == [("other key", f"tag {OTHER.tag}")]
            assert status == 1

    @pytest.mark.fault(7)
    def test_a_network_that_is_down_is_found(self) -> None:
        with lan(1) as (here,):
            here.link("down")
            status, facts = examined(here, seconds=0.5)
            assert problems(facts) == [("no interface", "this machine")]
            assert "(interface down)" in codes([Finding(**one) for one in facts["findings"]])
            assert status == 1
