"""Hosts in network namespaces, joined by a bridge in a namespace of its own: a small LAN with real interfaces.

Linux and root only; ask `namespaces_available` first. Multicast works there, and there is no default route.
"""

import itertools
import os
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
    if shutil.which("ip") is None or shutil.which("bridge") is None:
        return "iproute2 (ip, bridge) is not installed"
    try:
        with lan(1):
            return None
    except (OSError, RuntimeError) as error:
        return f"network namespaces cannot be made here: {error}"


@dataclass
class Host:
    """A machine on the LAN: loopback, and `eth0` with one address."""

    namespace: str
    address: str  # IPv4, of the network 10.77.0.0/16
    bridge: str  # the namespace the bridge lives in
    port: str  # this host's port on the bridge
    processes: list[subprocess.Popen[Any]] = field(default_factory=list)

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Run a command on this host; whatever is left of it at the end is killed."""
        process = subprocess.Popen(["ip", "netns", "exec", self.namespace, *command], **options)
        self.processes.append(process)
        return process

    def link(self, state: str) -> None:
        """Set the host's own interface `up` or `down`."""
        _run("ip", "-n", self.namespace, "link", "set", "eth0", state)

    def cable(self, state: str) -> None:
        """Plug the cable in (`up`) or pull it (`down`): the host's interface stays up, without carrier."""
        _run("ip", "-n", self.bridge, "link", "set", self.port, state)

    def renumber(self, address: str) -> None:
        """Take another address in place of the present one."""
        _run("ip", "-n", self.namespace, "address", "del", f"{self.address}/16", "dev", "eth0")
        _run("ip", "-n", self.namespace, "address", "add", f"{address}/16", "dev", "eth0")
        self.address = address

    def route(self, state: str) -> None:
        """`add` or `del` a default route."""
        _run("ip", "-n", self.namespace, "route", state, "default", "via", "10.77.255.254")

    def multicast(self, state: str) -> None:
        """`on`, or `off`: the bridge passes no multicast to this host."""
        _run("bridge", "-n", self.bridge, "link", "set", "dev", self.port, "mcast_flood", state)

    def isolated(self, state: str) -> None:
        """`on`: this host and every other isolated one cannot reach each other; others reach both."""
        _run("bridge", "-n", self.bridge, "link", "set", "dev", self.port, "isolated", state)

    def sent_packets(self) -> int:
        """Packets that left `eth0`: proof that something was tried."""
        command = ("cat", "/sys/class/net/eth0/statistics/tx_packets")
        return int(_run("ip", "netns", "exec", self.namespace, *command))


@contextmanager
def lan(count: int) -> Iterator[list[Host]]:
    """So many hosts on one bridge, all up, without a default route; everything is removed at the end."""
    name = f"p2pfl-{os.getpid()}-{next(_serial)}"
    bridge = f"{name}-b"
    hosts = [Host(f"{name}-{i}", f"10.77.{i // 250}.{i % 250 + 1}", bridge, f"port{i}") for i in range(count)]
    with ExitStack() as cleanup:
        for namespace in (bridge, *(host.namespace for host in hosts)):
            _run("ip", "netns", "add", namespace)
            cleanup.callback(_run, "ip", "netns", "del", namespace)
        for host in hosts:
            cleanup.callback(_stop, host)
        # Without a spanning tree a port forwards at once. Snooping would need a querier.
        _batch(bridge, "link add lan type bridge stp_state 0 forward_delay 0 mcast_snooping 0", "link set lan up")
        for host in hosts:
            _batch(
                host.namespace,
                f"link add eth0 type veth peer name {host.port} netns {bridge}",
                f"address add {host.address}/16 dev eth0",
                "link set lo up",
                "link set eth0 up",
            )
        _batch(bridge, *(f"link set {host.port} master lan up" for host in hosts))
        yield hosts


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
