"""The faults that tests make on hosts of their own do happen, and end. Each answer is of one connection."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from discovery_process import SLACK
from namespaces import Host, heal, lan, namespaces_available, split

pytestmark = [
    pytest.mark.namespaces,
    pytest.mark.skipif(namespaces_available() is not None, reason=str(namespaces_available())),
]

_BYTES = 250_000
_SERVER = f"""
import socket
server = socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True)
print(flush=True)
while True:
    connection, _ = server.accept()
    try:
        connection.sendall(bytes({_BYTES}))
    except OSError:
        pass
    connection.close()
"""
_CLIENT = """
import socket, sys, time
for address in sys.argv[2:]:
    began = time.monotonic()
    try:
        with socket.create_connection((address, 80), float(sys.argv[1])) as connection:
            if connection.getsockname()[0] == connection.getpeername()[0]:
                raise OSError("itself")
            received = 0
            while data := connection.recv(1 << 16):
                received += len(data)
        print(received, time.monotonic() - began)
    except OSError:
        print(0, time.monotonic() - began)
"""


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    with lan(4, nics=2) as hosts, ExitStack() as streams:
        for host in hosts:
            server = host.start([sys.executable, "-c", _SERVER], stdout=subprocess.PIPE, text=True)
            assert server.stdout is not None
            streams.enter_context(server.stdout)
            assert server.stdout.readline() == "\n"
        yield hosts


def answers(host: Host, *addresses: str, within_s: float = 1.0) -> list[bool]:
    """Which of these addresses a host can fetch from."""
    lines = host.run(sys.executable, "-c", _CLIENT, str(within_s * SLACK), *addresses).splitlines()
    return [line.split()[0] == str(_BYTES) for line in lines]


def answer_again(host: Host, *addresses: str) -> bool:
    """Whether all answer before long: a look-up that failed while they were apart may stand in the way for seconds."""
    deadline = time.monotonic() + 10.0 * SLACK
    while not all(answers(host, *addresses)):
        if time.monotonic() > deadline:
            return False
    return True


def test_hosts_reach_each_other_on_every_interface_and_by_both_families(hosts: list[Host]) -> None:
    a, b, _, _ = hosts
    assert answers(a, *b.addresses(), f"{b.link_local}%eth0") == [True, True, True]
    assert b.addresses() == ("10.77.0.2", "10.78.0.2")
    a.cable("down", nic=1)
    assert answers(a, *b.addresses(), within_s=0.3) == [True, False]


def test_packets_one_way_are_dropped_and_counted(hosts: list[Host]) -> None:
    a, b, c, _ = hosts
    a.unheard_by(b, "on")
    assert answers(a, b.address, c.address, within_s=0.3) == [False, True]
    assert a.unheard_packets(b) > 0
    a.unheard_by(b, "off")
    assert answers(a, b.address) == [True]


def test_lost_packets_are_counted_and_what_gets_through_is_whole(hosts: list[Host]) -> None:
    a, b, _, _ = hosts
    a.loss(10)
    for _ in range(100):  # one transfer may be lucky
        assert answers(a, b.address, within_s=20.0) == [True]
        if a.lost_packets() > 0:
            break
    assert a.lost_packets() > 0
    a.loss(0)
    a.loss(100)
    assert answers(a, b.address, within_s=0.3) == [False]
    a.loss(0)
    assert answers(a, b.address) == [True]


def test_groups_are_split_and_healed(hosts: list[Host]) -> None:
    a, b, c, d = hosts
    for _ in range(2):
        split([a, b], [c, d])
        assert answers(a, b.address, c.address, c.addresses()[1], within_s=0.3) == [True, False, False]
        assert answers(d, c.address, b.address, within_s=0.3) == [True, False]
        heal(hosts)
        assert answer_again(a, c.address, c.addresses()[1])


def test_bandwidth_is_limited_both_ways(hosts: list[Host]) -> None:
    a, b, _, _ = hosts
    a.bandwidth(4)
    for one, other in ((a, b), (b, a)):
        line = one.run(sys.executable, "-c", _CLIENT, "10", other.address)
        assert float(line.split()[1]) > 0.8 * (_BYTES * 8 - 32 * 1024 * 8) / 4e6
    a.bandwidth(None)
    assert answers(a, b.address) == [True]


def test_families_can_be_taken_away(hosts: list[Host]) -> None:
    a, b, c, _ = hosts
    a.ipv6_only()
    b.ipv6_only(unique_local=False)
    c.ipv4_only()
    assert answers(a, f"{b.link_local}%eth0", c.address) == [True, False]
    assert answers(b, f"{a.link_local}%eth0", a.address6) == [True, False]
    assert answers(c, f"{a.link_local}%eth0", a.address) == [False, False]


def test_a_host_without_power_says_nothing(hosts: list[Host]) -> None:
    a, b, _, _ = hosts
    b.lose_power()
    assert all(process.wait(timeout=5.0) != 0 for process in b.processes)
    assert answers(a, b.address, within_s=0.3) == [False]
