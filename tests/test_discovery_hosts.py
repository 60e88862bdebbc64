"""Discovery among hosts with interfaces of their own. No limit here counts the start of an interpreter."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dialing_process
import pytest
from discovery_process import FOUND_WITHIN_S, SLACK, DiscoveryProcess
from live import Live
from namespaces import Host, lan, namespaces_available

pytestmark = [
    pytest.mark.namespaces,
    pytest.mark.skipif(namespaces_available() is not None, reason=str(namespaces_available())),
]

REFRESH_S = 1.0  # ten times the default's pace, so that a test need not wait for it
RECOVERED_WITHIN_S = REFRESH_S + FOUND_WITHIN_S


REANNOUNCED_WITHIN_S = 15.0 * SLACK
SECOND_TRIED_WITHIN_S = 2.0 * SLACK


def discover(
    host: Host, peer: str | None, refresh_s: float = REFRESH_S, interface: str | None = None
) -> DiscoveryProcess:
    return DiscoveryProcess(host.start, peer=peer, network="n", refresh_s=refresh_s, interface=interface)


def dialed(host: Host) -> list[str]:
    """How another host with one interface dials this one."""
    return [f"{host.address}:7700", f"[{host.link_local}%eth0]:7700"]


def test_two_hosts_without_a_default_route_find_each_other_and_hear_goodbye() -> None:
    with lan(2) as (here, there), discover(here, "a", refresh_s=10.0) as a:
        a.wait("ready")
        with discover(there, "b", refresh_s=10.0) as b:
            began = b.wait("ready")["at"]
            in_a, in_b = a.wait("found", peer="b"), b.wait("found", peer="a")
            assert in_a["addresses"] == dialed(there)
            assert in_b["addresses"] == dialed(here)
            print(f"in A after {in_a['at'] - began:.3f} s, in B after {in_b['at'] - began:.3f} s")
            assert max(in_a["at"], in_b["at"]) - began < FOUND_WITHIN_S
            b.stop()
            closed = b.wait("closed")["at"]
        lost = a.wait("lost", peer="b")
        assert lost["at"] < closed  # during the goodbye, not after a timeout
        assert lost["left"] == []
        assert a.events("warning") == b.events("warning") == []


@pytest.mark.fault(7)
def test_host_that_starts_with_its_network_down_warns_and_is_found_once_up() -> None:
    with lan(2) as (here, there):
        there.link("down")
        with discover(here, "a") as a, discover(there, "b") as b:
            assert "no network interface is up" in b.wait("warning")["text"]
            a.wait("ready")
            b.wait("ready")
            there.link("up")
            assert a.wait("found", RECOVERED_WITHIN_S, peer="b")["addresses"] == dialed(there)
            b.wait("found", RECOVERED_WITHIN_S, peer="a")
            assert len(b.events("warning")) == 1
            addresses = [address for line in a.events("found") for address in line["addresses"]]
            assert set(addresses) == set(dialed(there))  # never its loopback address


def test_chosen_interface_that_is_down_at_the_start_is_waited_for() -> None:
    with lan(2) as (here, there):
        there.link("down")
        with discover(here, "a") as a, discover(there, "b", interface="eth0") as b:
            assert b.wait("warning")["text"] == "interface eth0 is down: peers are found once it is up"
            a.wait("ready")
            there.link("up")
            a.wait("found", RECOVERED_WITHIN_S, peer="b")
            b.wait("found", RECOVERED_WITHIN_S, peer="a")


def test_a_default_route_changes_nothing() -> None:
    with lan(2) as (here, there):
        here.route("add")
        with discover(here, "a") as a, discover(there, "b") as b:
            a.wait("found", peer="b")
            b.wait("found", peer="a")
            assert a.events("warning") == []


def test_host_whose_cable_is_plugged_in_late_is_found() -> None:
    with lan(2) as (here, there):
        there.cable("down")
        with discover(here, "a") as a, discover(there, "b") as b:
            a.wait("ready")
            b.wait("ready")
            with pytest.raises(TimeoutError):
                a.wait("found", 2 * REFRESH_S)
            there.cable("up")
            a.wait("found", RECOVERED_WITHIN_S, peer="b")
            b.wait("found", RECOVERED_WITHIN_S, peer="a")


def test_renumbered_host_is_proposed_with_its_new_address() -> None:
    with lan(2) as (here, there), discover(here, "a") as a, discover(there, "b") as b:
        assert a.wait("found", peer="b")["addresses"] == dialed(there)
        b.wait("found", peer="a")
        there.renumber("10.77.9.9")
        addresses: list[str] = []
        while "10.77.9.9:7700" not in addresses:
            addresses = a.wait("found", RECOVERED_WITHIN_S, peer="b")["addresses"]
        with discover(here, "c") as c:  # heard by the one that moved
            c.wait("ready")
            b.wait("found", RECOVERED_WITHIN_S, peer="c")


@pytest.mark.fault(6)
def test_blocked_multicast_finds_nobody_and_breaks_nothing() -> None:
    with lan(2) as (here, there):
        for host in (here, there):
            host.multicast("off")
        with discover(here, "a") as a, discover(there, "b") as b:
            a.wait("ready")
            b.wait("ready")
            sent = here.sent_packets()
            for one in (a, b):
                with pytest.raises(TimeoutError):
                    one.wait("found", 2 * REFRESH_S)
            assert here.sent_packets() > sent  # it went on announcing
            for host in (here, there):
                host.multicast("on")
            a.wait("found", RECOVERED_WITHIN_S, peer="b")
            b.wait("found", RECOVERED_WITHIN_S, peer="a")


def test_port_held_by_another_program_is_a_warning_until_it_is_free() -> None:
    hold = "import socket, sys; s = socket.socket(2, 2); s.bind(('', 5353)); print(flush=True); sys.stdin.read()"
    with lan(2) as (here, there), discover(here, "a") as a:
        holder = there.start([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "\n"
        settings = {"peer": "b", "network": "n", "refresh_s": REFRESH_S}
        # The library leaves the socket that it could not bind to the garbage collector.
        with DiscoveryProcess(there.start, "ignore::ResourceWarning", **settings) as b:
            assert "discovery on the LAN does not work yet" in b.wait("warning")["text"]
            b.wait("ready")
            a.wait("ready")
            holder.kill()
            a.wait("found", RECOVERED_WITHIN_S, peer="b")
            b.wait("found", RECOVERED_WITHIN_S, peer="a")


def test_more_interfaces_than_the_system_can_join_is_a_warning() -> None:
    nic = "ip link add nic$i type veth peer name other$i; ip address add 10.$i.0.1/24 dev nic$i; ip link set nic$i up"
    more = f"for i in $(seq 100 124); do {nic}; done"
    with lan(2) as (here, there):
        assert there.start(["sh", "-ec", more]).wait(timeout=30) == 0
        with discover(here, "a") as a, discover(there, "b") as b:
            assert "discovery works on 20 of 27 network interfaces" in b.wait("warning")["text"]
            assert f"{there.address}:7700" in a.wait("found", peer="b")["addresses"]
            b.wait("found", peer="a")  # the LAN's interface was listed before the others


def test_killed_peer_stays_a_proposal() -> None:
    with lan(2) as (here, there), discover(here, "a") as a, discover(there, "b") as b:
        a.wait("found", peer="b")
        b.wait("found", peer="a")
        b.process.kill()
        with pytest.raises(TimeoutError):
            a.wait("lost", 1.0 * SLACK)


def script(arguments: list[str], host: Host, **options: Any) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    command = [sys.executable, "-W", "error", dialing_process.__file__, *arguments]
    return host.start(command, stdout=subprocess.PIPE, text=True, env=environment, **options)


@contextmanager
def serving(host: Host) -> Iterator[None]:
    """Something to dial at port 7700, on all addresses of the host."""
    process = script(["serve"], host, stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdin is not None
    assert json.loads(process.stdout.readline()) == {"listening": 7700}
    yield
    process.stdin.close()
    assert process.wait(timeout=10.0) == 0


def dial(host: Host, addresses: list[str]) -> dict[str, Any]:
    """What came of connecting from a host to any of these addresses."""
    told, _ = script(["dial", *addresses], host).communicate(timeout=30.0)
    answer: dict[str, Any] = json.loads(told)
    return answer


@pytest.mark.fault(8)
def test_address_that_changes_is_told_and_dialed_within_fifteen_seconds() -> None:
    with (
        lan(2) as (here, there),
        serving(there),
        discover(here, "a", refresh_s=10.0) as a,
        discover(there, "b", refresh_s=10.0) as b,
    ):
        former = a.wait("found", peer="b")["addresses"]
        b.wait("found", peer="a")
        there.renumber("10.77.9.9")
        assert "failed" in dial(here, [former[0]])  # the fault: nobody is there any more
        addresses: list[str] = []
        while "10.77.9.9:7700" not in addresses:
            addresses = a.wait("found", REANNOUNCED_WITHIN_S, peer="b")["addresses"]
        assert dial(here, ["10.77.9.9:7700"])["remote"] == "10.77.9.9"


@pytest.mark.fault(9)
@pytest.mark.parametrize("broken", [0, 1])
def test_of_two_interfaces_the_one_that_works_is_reached_within_two_seconds(broken: int) -> None:
    with lan(2, nics=2) as (here, there), serving(there):
        with discover(here, "a") as a, discover(there, "b") as b:
            addresses: list[str] = []
            while len(addresses) < 4:  # two of each family
                addresses = a.wait("found", peer="b")["addresses"]
            b.wait("found", peer="a")
        assert addresses[:2] == [f"{address}:7700" for address in there.addresses()]
        there.cable("down", nic=broken)
        silent, works = addresses[broken], addresses[1 - broken]
        assert dial(here, [silent])["refused"] is False  # the fault: no answer, not even a refusal
        answer = dial(here, [silent, works])
        assert answer["remote"] == there.addresses()[1 - broken]
        assert answer["took_s"] < SECOND_TRIED_WITHIN_S
        answer = dial(here, addresses)
        assert answer["remote"] != there.addresses()[broken]
        assert answer["took_s"] < SECOND_TRIED_WITHIN_S


@pytest.mark.fault(10)
@pytest.mark.parametrize("unique_local", [True, False])
def test_hosts_with_ipv6_alone_find_and_reach_each_other(unique_local: bool) -> None:
    with lan(2) as (here, there):
        for host in (here, there):
            host.ipv6_only(unique_local=unique_local)
            assert " inet " not in host.run("ip", "address", "show", "dev", "eth0")  # the fault
        with serving(there), discover(here, "a") as a, discover(there, "b") as b:
            addresses = a.wait("found", peer="b")["addresses"]
            b.wait("found", peer="a")
            expected = ([there.address6] if unique_local else []) + [f"{there.link_local}%eth0"]
            assert addresses == [f"[{address}]:7700" for address in expected]
            for address in addresses:
                assert dial(here, [address])["remote"] == address[1:-6]
            # As it is told by others, who cannot know this host's scope.
            assert dial(here, [f"[{there.link_local}%elsewhere]:7700"])["remote"] == f"{there.link_local}%eth0"
            assert a.events("warning") == b.events("warning") == []


@pytest.mark.fault(10)
@pytest.mark.parametrize("other", ["dual", "ipv4"])
def test_host_with_ipv4_alone_finds_and_reaches_others(other: str) -> None:
    with lan(2) as (here, there):
        here.ipv4_only()
        assert "inet6" not in here.run("ip", "address", "show")  # the fault
        if other == "ipv4":
            there.ipv4_only()
        with serving(there), serving(here), discover(here, "a") as a, discover(there, "b") as b:
            addresses = a.wait("found", peer="b")["addresses"]
            assert addresses == [f"{there.address}:7700"]  # an address of a family it has not is not proposed
            assert dial(here, addresses)["remote"] == there.address
            assert b.wait("found", peer="a")["addresses"] == [f"{here.address}:7700"]
            assert dial(there, [f"{here.address}:7700"])["remote"] == here.address
            assert a.events("warning") == b.events("warning") == []


@pytest.mark.fault(10)
def test_host_with_ipv6_alone_and_one_with_both_find_each_other() -> None:
    with lan(2) as (here, there):
        here.ipv6_only(unique_local=False)
        with serving(there), discover(here, "a") as a, discover(there, "b") as b:
            addresses = a.wait("found", peer="b")["addresses"]
            assert dial(here, addresses)["remote"] == f"{there.link_local}%eth0"
            assert b.wait("found", peer="a")["addresses"] == [f"[{here.link_local}%eth0]:7700"]


def test_interface_that_is_added_while_running_is_heard_and_told() -> None:
    with lan(2) as (here, there):
        there.link("down")
        bridge = here.bridge
        with discover(here, "a") as a, discover(there, "b") as b:
            a.wait("ready")
            b.wait("ready")
            there.run("ip", "link", "add", "eth9", "type", "veth", "peer", "name", "late", "netns", bridge)
            there.run("ip", "address", "add", "10.77.9.9/16", "dev", "eth9")
            there.run("ip", "link", "set", "eth9", "up")
            subprocess.run(["ip", "-n", bridge, "link", "set", "late", "master", "lan", "up"], check=True, timeout=30.0)
            assert "10.77.9.9:7700" in a.wait("found", RECOVERED_WITHIN_S, peer="b")["addresses"]
            b.wait("found", RECOVERED_WITHIN_S, peer="a")


def test_interface_that_is_plugged_out_and_in_between_two_looks_is_heard_again() -> None:
    with lan(2) as (here, there):
        for host in (here, there):
            host.ipv4_only()  # of IPv6 it gets another address
        with discover(there, "b", refresh_s=2.0) as b:
            b.wait("ready")
            commands = (
                "ip link del eth0",
                f"ip link add eth0 type veth peer name {there.port} netns {there.bridge}",
                f"ip address add {there.address}/16 dev eth0",
                "ip link set eth0 up",
                f"ip -n {there.bridge} link set {there.port} master lan up",
            )
            subprocess.run(["ip", "netns", "exec", there.namespace, "sh", "-ec", "; ".join(commands)], check=True)
            assert b.events("warning") == []  # the same address under another number, faster than it looks
            with discover(here, "a") as a:
                assert a.wait("found", peer="b")["addresses"] == [f"{there.address}:7700"]
                b.wait("found", 2 * RECOVERED_WITHIN_S, peer="a")


# Copies what passes an interface, from all protocols, to standard output until its standard input ends.
_TAP = """
import socket, sys, threading
tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
tap.bind(("eth0", 0))
print(file=sys.stderr, flush=True)
def copy():
    while True:
        sys.stdout.buffer.write(tap.recv(1 << 16))
        sys.stdout.buffer.flush()
threading.Thread(target=copy, daemon=True).start()
sys.stdin.read()
"""


@pytest.mark.parametrize("insecure", [False, True])
def test_nothing_on_the_wire_names_a_peer_or_its_network_where_there_is_a_key(insecure: bool, tmp_path: Path) -> None:
    work = {"rounds": 2, "steps": 2, "min_peers": 2, "insecure": insecure, "interface": "eth0"}
    packets = tmp_path / "packets"
    with Live(tmp_path) as live, lan(2) as hosts, packets.open("wb") as file:
        # Where it reads what it copied, standard error is its sign of life.
        tap = hosts[0].start([sys.executable, "-c", _TAP], stdin=subprocess.PIPE, stdout=file, stderr=subprocess.PIPE)
        assert tap.stderr is not None
        assert tap.stderr.readline() == b"\n"
        names = ["alice-of-ward-7", "bob-of-ward-8"]
        peers = [live.peer(name, host, **work) for name, host in zip(names, hosts, strict=True)]
        live.all_have(peers, "Result")
        assert all(peer.code() == 0 for peer in peers)
        told = packets.read_bytes()
        assert len(told) > 10_000
        assert b"_p2pfl" in told
        secrets = [*names, live.network, *(peer.id for peer in peers)]
        named = {secret for secret in secrets if secret.encode() in told}
        assert named == ({*names, live.network, *(peer.id for peer in peers)} if insecure else set())
