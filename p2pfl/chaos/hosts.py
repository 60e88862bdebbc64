"""Hosts in network namespaces, joined by a bridge in a namespace of its own: a small LAN with real interfaces.

Linux and root only; ask `namespaces_available` first. Multicast works there, and there is no default route. Loss and
one-way cuts take `nft` (Debian: nftables); the rest takes iproute2 alone.
"""

import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

_serial = itertools.count(1)


@cache
def namespaces_available() -> str | None:
    """Why namespaces cannot be made here; None if they can."""
    if sys.platform != "linux":
        return "network namespaces exist on Linux alone"
    if os.geteuid() != 0:
        return "making network namespaces takes root"
    if any(shutil.which(tool) is None for tool in ("ip", "bridge", "tc")):
        return "iproute2 (ip, bridge, tc) is not installed"
    if shutil.which("nft") is None:
        return "nftables (nft) is not installed"
    try:
        with lan(1):
            return None
    except (OSError, RuntimeError) as error:
        return f"network namespaces cannot be made here: {error}"


@dataclass
class Host:
    """A machine on the LAN: loopback, and `eth0` with one IPv4 address and one of IPv6 that holds on the link alone.

    With several interfaces, `eth1` is on a LAN of its own, and so on. `nic` chooses one, all but the first by number.
    """

    namespace: str
    address: str  # IPv4, of the network 10.77.0.0/16
    bridge: str  # the namespace the bridges live in
    port: str  # the port of `eth0` on its bridge
    number: int = 0  # on the LAN, from 0
    nics: int = 1
    processes: list[subprocess.Popen[Any]] = field(default_factory=list)

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Run a command on this host; whatever is left of it at the end is killed."""
        process = subprocess.Popen(["ip", "netns", "exec", self.namespace, *command], **options)
        self.processes.append(process)
        return process

    def run(self, *command: str) -> str:
        """Run a command on this host to its end; what it printed. RuntimeError if it fails."""
        return _run("ip", "netns", "exec", self.namespace, *command)

    def link(self, state: str, nic: int = 0) -> None:
        """Set the host's own interface `up` or `down`: its connections end at once, with an error here."""
        _run("ip", "-n", self.namespace, "link", "set", f"eth{nic}", state)

    def cable(self, state: str, nic: int = 0) -> None:
        """Plug the cable in (`up`) or pull it (`down`): the host's interface stays up, without carrier."""
        _run("ip", "-n", self.bridge, "link", "set", self.ports[nic], state)

    def lose_power(self) -> None:
        """Everything on this host dies at once and says nothing: no packet ends its connections."""
        for nic in range(self.nics):
            self.cable("down", nic)
        for process in self.processes:
            process.kill()

    def renumber(self, address: str) -> None:
        """Take another IPv4 address in place of the present one."""
        _run("ip", "-n", self.namespace, "address", "del", f"{self.address}/16", "dev", "eth0")
        _run("ip", "-n", self.namespace, "address", "add", f"{address}/16", "dev", "eth0")
        self.address = address

    def route(self, state: str) -> None:
        """`add` or `del` a default route."""
        _run("ip", "-n", self.namespace, "route", state, "default", "via", "10.77.255.254")

    def ipv4_only(self) -> None:
        """Have no IPv6 at all, as a system on which it is switched off."""
        self.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")

    def ipv6_only(self, *, unique_local: bool = True) -> None:
        """Have no IPv4 but on loopback; `unique_local` adds `address6` to the address that holds on the link alone."""
        _run("ip", "-n", self.namespace, "-4", "address", "flush", "dev", "eth0")
        if unique_local:
            _run("ip", "-n", self.namespace, "address", "add", f"{self.address6}/64", "dev", "eth0", "nodad")

    @property
    def address6(self) -> str:
        """The IPv6 address of `eth0` once `ipv6_only` was called."""
        return f"fd77::{self.number + 1:x}"

    @property
    def link_local(self) -> str:
        """The IPv6 address of `eth0` that holds on its link alone, without a scope."""
        shown = _run("ip", "-n", self.namespace, "-6", "-o", "address", "show", "dev", "eth0", "scope", "link")
        return shown.split()[3].partition("/")[0]

    def addresses(self) -> tuple[str, ...]:
        """The IPv4 address of each interface, `eth0` first."""
        return (self.address, *(_address(self.number, nic) for nic in range(1, self.nics)))

    @property
    def ports(self) -> tuple[str, ...]:
        """The port of each interface on its bridge."""
        return tuple(_port(self.number, nic) for nic in range(self.nics))

    def multicast(self, state: str) -> None:
        """`on`, or `off`: the bridge passes no multicast to this host."""
        for port in self.ports:
            _run("bridge", "-n", self.bridge, "link", "set", "dev", port, "mcast_flood", state)

    def isolated(self, state: str) -> None:
        """`on`: this host and every other isolated one cannot reach each other; others reach both."""
        for port in self.ports:
            _run("bridge", "-n", self.bridge, "link", "set", "dev", port, "isolated", state)

    def unheard_by(self, other: "Host", state: str) -> None:
        """`on`: nothing this host sends reaches `other`, which goes on reaching this one; `off` ends it."""
        rules = [f"iifname {{{_set(self.ports)}}} oifname {{{_set(other.ports)}}} counter drop"]
        self._drop(f"cut_{self.number}_{other.number}", rules if state == "on" else [])

    def unheard_packets(self, other: "Host") -> int:
        """Packets to `other` that were dropped since `unheard_by` began: proof that it happened."""
        return self._dropped(f"cut_{self.number}_{other.number}")

    def loss(self, percent: int) -> None:
        """Lose so many of a hundred packets, in each direction; 0 ends it."""
        some = f"numgen random mod 100 <= {percent - 1} counter drop"
        rules = [f"iifname {{{_set(self.ports)}}} {some}", f"oifname {{{_set(self.ports)}}} {some}"]
        self._drop(f"loss_{self.number}", rules if percent else [])

    def lost_packets(self) -> int:
        """Packets lost since `loss` began."""
        return self._dropped(f"loss_{self.number}")

    def bandwidth(self, mbit_per_s: float | None, nic: int = 0) -> None:
        """Send and receive at most so many million bits a second; None ends it."""
        for namespace, device in ((self.namespace, f"eth{nic}"), (self.bridge, self.ports[nic])):
            if mbit_per_s is None:
                _run("tc", "-n", namespace, "qdisc", "del", "dev", device, "root")
            else:
                rate = ("rate", f"{round(mbit_per_s * 1e6)}bit", "burst", "32kb", "latency", "200ms")
                _run("tc", "-n", namespace, "qdisc", "replace", "dev", device, "root", "tbf", *rate)

    def sent_packets(self, nic: int = 0) -> int:
        """Packets that left the interface: proof that something was tried."""
        return int(self.run("cat", f"/sys/class/net/eth{nic}/statistics/tx_packets"))

    def _drop(self, table: str, rules: list[str]) -> None:
        """Make a table of rules on the bridge; none of them removes it."""
        # Declared before it is deleted, as deleting what is not there fails.
        lines = [f"table bridge {table}", f"delete table bridge {table}"]
        if rules:
            chain = ["chain forward {", "type filter hook forward priority 0;", *rules, "}"]
            lines += [f"table bridge {table} {{", *chain, "}"]
        _run("ip", "netns", "exec", self.bridge, "nft", "-f", "-", text="\n".join((*lines, "")))

    def _dropped(self, table: str) -> int:
        rules = _run("ip", "netns", "exec", self.bridge, "nft", "list", "table", "bridge", table)
        return sum(int(packets) for packets in re.findall(r"counter packets (\d+)", rules))


def split(*groups: Sequence[Host]) -> None:
    """Let the hosts of each group reach each other and nobody else. Cables stay in: no host notices but by silence."""
    for number, group in enumerate(groups):
        for host in group:
            for nic, port in enumerate(host.ports):
                name = f"part{number}x{nic}"
                if name not in _run("ip", "-n", host.bridge, "-br", "link", "show", "type", "bridge"):
                    _batch(host.bridge, *_bridge(name))
                _batch(host.bridge, f"link set {port} master {name}")


def heal(hosts: Sequence[Host]) -> None:
    """End a split."""
    for host in hosts:
        _batch(host.bridge, *(f"link set {port} master {_lan(nic)}" for nic, port in enumerate(host.ports)))


@contextmanager
def lan(count: int, nics: int = 1) -> Iterator[list[Host]]:
    """So many hosts on one bridge, all up, without a default route; everything is removed at the end.

    Args:
        nics: interfaces of each host; `eth1` of all are on a second bridge, in 10.78.0.0/16, and so on.
    """
    name = f"p2pfl-{os.getpid()}-{next(_serial)}"
    bridge = f"{name}-b"
    hosts = [Host(f"{name}-{i}", _address(i, 0), bridge, _port(i, 0), i, nics) for i in range(count)]
    with ExitStack() as cleanup:
        for namespace in (bridge, *(host.namespace for host in hosts)):
            _run("ip", "netns", "add", namespace)
            cleanup.callback(_run, "ip", "netns", "del", namespace)
        for host in hosts:
            cleanup.callback(_stop, host)
        _batch(bridge, *(command for nic in range(nics) for command in _bridge(_lan(nic))))
        for host in hosts:
            # An IPv6 address would be tentative, and not to be used, for a second or two.
            host.run("sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")
            ends = list(enumerate(host.ports))
            wires = [f"link add eth{nic} type veth peer name {port} netns {bridge}" for nic, port in ends]
            addresses = [f"address add {address}/16 dev eth{nic}" for nic, address in enumerate(host.addresses())]
            up = [f"link set eth{nic} up" for nic in range(nics)]
            _batch(host.namespace, *wires, *addresses, "link set lo up", *up)
            _batch(bridge, *(f"link set {port} master {_lan(nic)} up" for nic, port in ends))
        yield hosts


def _address(number: int, nic: int) -> str:
    return f"10.{77 + nic}.{number // 250}.{number % 250 + 1}"


def _port(number: int, nic: int) -> str:
    return f"port{number}" + (f"x{nic}" if nic else "")


def _lan(nic: int) -> str:
    return "lan" + (f"{nic}" if nic else "")


def _bridge(name: str) -> tuple[str, ...]:
    # Without a spanning tree a port forwards at once. Snooping would need a querier.
    return f"link add {name} type bridge stp_state 0 forward_delay 0 mcast_snooping 0", f"link set {name} up"


def _set(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _batch(namespace: str, *commands: str) -> None:
    _run("ip", "-n", namespace, "-batch", "-", text="\n".join(commands))


def _run(*command: str, text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return done.stdout


def _stop(host: Host) -> None:
    for process in host.processes:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
