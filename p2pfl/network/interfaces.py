"""This machine's network interfaces: which addresses other machines can dial, the likeliest first."""

import errno
import ipaddress
import socket
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass

import ifaddr

from p2pfl.errors import UsageError

# Interfaces that containers and virtual machines bring: an address there rarely leads anywhere from another machine.
_VIRTUAL = (
    "docker",
    "veth",
    "br-",
    "virbr",
    "cni",
    "flannel",
    "lxc",
    "lxd",
    "vmnet",
    "vboxnet",
    "VirtualBox",
    "vEthernet",
)
_GET_FLAGS = {"linux": 0x8913, "darwin": 0xC0206911}  # SIOCGIFFLAGS; elsewhere, addresses go with their interface
_UP = 0x1
_FAR = ("198.51.100.1", 9)  # a documentation address (RFC 5737): only the default route leads there


@dataclass(frozen=True)
class Interface:
    """A network interface and its addresses (IPv4)."""

    name: str
    addresses: tuple[str, ...]

    @property
    def loopback(self) -> bool:
        return any(ipaddress.ip_address(address).is_loopback for address in self.addresses)


def interfaces(interface: str | None = None) -> tuple[Interface, ...]:
    """The interfaces that are up and have an address, loopback last.

    Args:
        interface: the name or an address of the only one to consider; of an address, the others of the same interface
            are left out. It may be down: then the answer is empty.

    Raises:
        UsageError: there is no such interface; the message lists those there are.
        OSError: the system could not be asked.
    """
    adapters = [
        (
            str(adapter.nice_name),
            {str(adapter.name), str(adapter.nice_name)},
            [str(ip.ip) for ip in adapter.ips if ip.is_IPv4],
        )
        for adapter in ifaddr.get_adapters(include_unconfigured=True)
    ]
    if interface is not None:
        chosen = [
            (name, names, [interface] if interface in addresses else addresses)
            for name, names, addresses in adapters
            if interface in names or interface in addresses
        ]
        if not chosen:
            raise UsageError(f"no network interface {interface!r} here; there are {_listing(adapters)}")
        adapters = chosen
    # An address stays listed, and can even be bound, while its interface is down.
    up = [Interface(name, tuple(addresses)) for name, _, addresses in adapters if addresses and _is_up(name)]
    return ranked(up, _default_source())


def local_addresses(interface: str | None = None) -> tuple[str, ...]:
    """The addresses to tell others, the likeliest first; loopback only if asked for, or if nothing else is up.

    Args:
        interface: the name or an address of the interface to use; None for all.

    Raises:
        UsageError: there is no such interface; the message lists those there are.
        OSError: the system could not be asked.
    """
    return dialable(interfaces(interface))


def dialable(up: Iterable[Interface]) -> tuple[str, ...]:
    """The addresses of these interfaces that others may dial: loopback only if there is nothing else."""
    up = tuple(up)
    chosen = [one for one in up if not one.loopback] or up
    return tuple(address for one in chosen for address in one.addresses)


def ranked(unordered: Iterable[Interface], default_source: str | None) -> tuple[Interface, ...]:
    """Order interfaces: the default route's, then other real ones, link-local, virtual, loopback.

    Args:
        default_source: the address that packets to the default route carry, if there is such a route.
    """

    def rank(one: Interface) -> int:
        if one.loopback:
            return 4
        if one.name.startswith(_VIRTUAL):
            return 3
        if all(ipaddress.ip_address(address).is_link_local for address in one.addresses):
            return 2
        return 0 if default_source in one.addresses else 1

    return tuple(sorted(unordered, key=rank))


def _default_source() -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_FAR)  # of a datagram socket: looks the route up, sends nothing
        except OSError:
            return None
        return str(probe.getsockname()[0])


def _is_up(name: str) -> bool:
    request = _GET_FLAGS.get(sys.platform)
    if request is None:
        return True
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe, request, struct.pack("16sh22x", name.encode()[:15], 0))  # struct ifreq
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.ENXIO):  # it went since it was listed
                return False
            raise
    return bool(struct.unpack_from("16xh", answer)[0] & _UP)


def _listing(adapters: Iterable[tuple[str, set[str], list[str]]]) -> str:
    named = [f"{name} ({', '.join(addresses)})" for name, _, addresses in adapters if addresses]
    return ", ".join(named) or "none with an address"
