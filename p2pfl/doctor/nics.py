"""The network interfaces of this machine as they are, also those that are down or cannot do multicast."""

import ipaddress
import socket
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ifaddr

from p2pfl.doctor.findings import Finding, note, problem

_GET_FLAGS = {"linux": 0x8913, "darwin": 0xC0206911}  # SIOCGIFFLAGS
_UP, _RUNNING = 0x1, 0x40
_MULTICAST = {"linux": 0x1000, "darwin": 0x8000}
_VIRTUAL = ("docker", "veth", "br-", "virbr", "cni", "flannel", "lxc", "lxd", "vmnet", "vboxnet", "tap")
_MEMBERSHIPS = Path("/proc/sys/net/ipv4/igmp_max_memberships")


@dataclass(frozen=True)
class Nic:
    """One interface. `carrier` is whether its cable is in, or its radio connected."""

    name: str
    addresses: tuple[str, ...]
    index: int = 0
    up: bool = True
    carrier: bool = True
    multicast: bool = True

    @property
    def loopback(self) -> bool:
        return any(ipaddress.ip_address(address).is_loopback for address in self.addresses)

    @property
    def virtual(self) -> bool:
        """Whether it belongs to containers or virtual machines of this one."""
        return self.name.startswith(_VIRTUAL)

    @property
    def useful(self) -> bool:
        """Whether it can lead to another machine."""
        return self.up and self.carrier and bool(self.addresses) and not self.loopback and not self.virtual

    def of(self, version: int) -> str | None:
        """Its first address of IPv4 or IPv6."""
        return next((one for one in self.addresses if ipaddress.ip_address(one).version == version), None)


def nics() -> tuple[Nic, ...]:
    """The interfaces of this machine, by name."""
    found = []
    for adapter in ifaddr.get_adapters(include_unconfigured=True):
        name = str(adapter.nice_name)
        addresses = tuple(str(ip.ip if ip.is_IPv4 else ip.ip[0]).partition("%")[0] for ip in adapter.ips)
        flags = _flags(name)
        index = adapter.index or 0
        if flags is None:
            found.append(Nic(name, addresses, index))
        else:
            multicast = bool(flags & _MULTICAST.get(sys.platform, 0))
            found.append(Nic(name, addresses, index, bool(flags & _UP), bool(flags & _RUNNING), multicast))
    return tuple(sorted(found, key=lambda one: one.name))


def _flags(name: str) -> int | None:
    """The system's flags of an interface; None where it does not tell."""
    request = _GET_FLAGS.get(sys.platform)
    if request is None:
        return None
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe, request, struct.pack("16sH22x", name.encode()[:15], 0))  # struct ifreq
        except OSError:  # it went since it was listed
            return 0
    return int(struct.unpack_from("16xH", answer)[0])


def judge_nics(found: Sequence[Nic]) -> list[Finding]:
    """What keeps the interfaces from leading to other machines."""
    real = [nic for nic in found if not nic.loopback and not nic.virtual]
    useful = [nic for nic in real if nic.useful]
    told: list[Finding] = []
    for nic in real:
        if nic.addresses and not nic.up:
            told.append(note("interface down", nic.name, "the interface is switched off", f"ip link set {nic.name} up"))
        elif nic.addresses and not nic.carrier:
            mend = "plug the cable in, or connect to the Wi-Fi"
            told.append(note("no carrier", nic.name, "the interface is up and connected to nothing", mend))
    for nic in useful:
        if not nic.multicast:
            mend = f"ip link set {nic.name} multicast on, or name peers by --peer HOST:PORT"
            told.append(problem("no multicast", nic.name, "multicast is switched off: no peer is found by it", mend))
        versions = {ipaddress.ip_address(address).version for address in nic.addresses}
        if versions == {6}:
            text = "IPv6 alone: a peer that has IPv4 alone cannot be reached"
            told.append(note("IPv6 only", nic.name, text, "give both kinds of addresses where peers of both kinds are"))
    if not useful:
        if any(nic.virtual and nic.up and nic.addresses for nic in found):
            names = ", ".join(nic.name for nic in found if nic.virtual and nic.addresses)
            text = f"only interfaces of containers and virtual machines are up ({names}): they lead to no other machine"
            told.insert(0, problem("only virtual interfaces", names, text, "connect this machine to the network"))
        else:
            text = "no network interface is up: only peers on this machine are found"
            told.insert(0, problem("no interface", "this machine", text, "plug the cable in, or connect to the Wi-Fi"))
    return told + judge_memberships(len([nic for nic in found if nic.up and nic.addresses]), _most_memberships())


def judge_memberships(interfaces: int, limit: int | None) -> list[Finding]:
    """Whether the system lets one program listen to multicast on all interfaces."""
    if limit is None or interfaces <= limit:
        return []
    text = f"{interfaces} interfaces are up, and the system allows multicast on {limit} of them: the others stay deaf"
    mend = f"sysctl -w net.ipv4.igmp_max_memberships={max(64, 2 * interfaces)}, or choose one by --interface"
    return [problem("too few memberships", "this machine", text, mend)]


def _most_memberships() -> int | None:
    try:
        return int(_MEMBERSHIPS.read_text())
    except (OSError, ValueError):  # not Linux
        return None
