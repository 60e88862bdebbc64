"""Discovery among hosts with interfaces of their own. No limit here counts the start of an interpreter."""

import subprocess
import sys

import pytest
from discovery_process import FOUND_WITHIN_S, SLACK, DiscoveryProcess
from namespaces import Host, lan, namespaces_available

pytestmark = [
    pytest.mark.namespaces,
    pytest.mark.skipif(namespaces_available() is not None, reason=str(namespaces_available())),
]

REFRESH_S = 1.0  # ten times the default's pace, so that a test need not wait for it
RECOVERED_WITHIN_S = REFRESH_S + FOUND_WITHIN_S


def discover(
    host: Host, peer: str | None, refresh_s: float = REFRESH_S, interface: str | None = None
) -> DiscoveryProcess:
    return DiscoveryProcess(host.start, peer=peer, network="n", refresh_s=refresh_s, interface=interface)


def test_two_hosts_without_a_default_route_find_each_other_and_hear_goodbye() -> None:
    with lan(2) as (here, there), discover(here, "a", refresh_s=10.0) as a:
        a.wait("ready")
        with discover(there, "b", refresh_s=10.0) as b:
            began = b.wait("ready")["at"]
            in_a, in_b = a.wait("found", peer="b"), b.wait("found", peer="a")
            assert in_a["addresses"] == [f"{there.address}:7700"]
            assert in_b["addresses"] == [f"{here.address}:7700"]
            print(f"in A after {in_a['at'] - began:.3f} s, in B after {in_b['at'] - began:.3f} s")
            assert max(in_a["at"], in_b["at"]) - began < FOUND_WITHIN_S
            b.stop()
            closed = b.wait("closed")["at"]
        lost = a.wait("lost", peer="b")
        assert lost["at"] < closed  # during the goodbye, not after a timeout
        assert lost["left"] == []
        assert a.events("warning") == b.events("warning") == []


def test_host_that_starts_with_its_network_down_warns_and_is_found_once_up() -> None:
    with lan(2) as (here, there):
        there.link("down")
        with discover(here, "a") as a, discover(there, "b") as b:
            assert "no network interface is up" in b.wait("warning")["text"]
            a.wait("ready")
            b.wait("ready")
            there.link("up")
            assert a.wait("found", RECOVERED_WITHIN_S, peer="b")["addresses"] == [f"{there.address}:7700"]
            b.wait("found", RECOVERED_WITHIN_S, peer="a")
            assert len(b.events("warning")) == 1
            addresses = [address for line in a.events("found") for address in line["addresses"]]
            assert addresses == [f"{there.address}:7700"]  # never its loopback address


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
        assert a.wait("found", peer="b")["addresses"] == [f"{there.address}:7700"]
        b.wait("found", peer="a")
        there.renumber("10.77.9.9")
        addresses: list[str] = []
        while "10.77.9.9:7700" not in addresses:
            addresses = a.wait("found", RECOVERED_WITHIN_S, peer="b")["addresses"]
        with discover(here, "c") as c:  # heard by the one that moved
            c.wait("ready")
            b.wait("found", RECOVERED_WITHIN_S, peer="c")


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
