"""This machine's network interfaces: which addresses other machines can dial, the likeliest first."""

import errno
import ipaddress
import socket
import struct
import sys
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeAlias

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
# Documentation addresses (RFC 5737, RFC 3849): only the default route leads there.
_FAR = {socket.AF_INET: ("198.51.100.1", 9), socket.AF_INET6: ("2001:db8::1", 9)}
WILDCARDS = ("0.0.0.0", "::")  # every address of this machine, of either family


Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Interface:
    """A network interface and its addresses.

    Args:
        addresses: IPv4 first, then IPv6; last those that hold on the link alone, with their scope: `fe80::1%eth0`.
        networks: what can be reached here without a router.
        index: the system's number for it; another one, if it was unplugged and plugged in again.
    """

    name: str
    addresses: tuple[str, ...]
    networks: tuple[Network, ...] = ()
    index: int = 0

    @property
    def loopback(self) -> bool:
        return any(ipaddress.ip_address(address).is_loopback for address in self.addresses)

    @property
    def virtual(self) -> bool:
        """Whether containers or virtual machines brought it: what is there is rarely another machine."""
        return self.name.startswith(_VIRTUAL)


@dataclass(frozen=True)
class _Adapter:
    """An interface as the system lists it, up or not."""

    names: frozenset[str]
    interface: Interface


def interfaces(interface: str | None = None) -> tuple[Interface, ...]:
    """The interfaces that are up and have an address, loopback last.

    Args:
        interface: the name or an address of the only one to consider; of an address, the others of the same interface
            are left out. It may be down: then the answer is empty.

    Raises:
        UsageError: there is no such interface; the message lists those there are.
        OSError: the system could not be asked.
    """
    adapters = [_read(adapter) for adapter in ifaddr.get_adapters(include_unconfigured=True)]
    if interface is not None:
        wanted = _without_scope(interface)
        chosen = [
            _only(adapter.interface, wanted)
            for adapter in adapters
            if interface in adapter.names or wanted in map(_without_scope, adapter.interface.addresses)
        ]
        if not chosen:
            raise UsageError(f"no network interface {interface!r} here; there are {_listing(adapters)}")
    else:
        chosen = [adapter.interface for adapter in adapters]
    # An address stays listed, and can even be bound, while its interface is down.
    return ranked((one for one in chosen if one.addresses and _is_up(one.name)), _default_sources())


def local_addresses(interface: str | None = None) -> tuple[str, ...]:
    """The addresses to tell others, the likeliest first; loopback only if asked for, or if nothing else is up.

    Args:
        interface: the name or an address of the interface to use; None for all.

    Raises:
        UsageError: there is no such interface; the message lists those there are.
        OSError: the system could not be asked.
    """
    return dialable(interfaces(interface))


def listening_hosts(interface: str | None = None) -> tuple[str, ...]:
    """The hosts to listen on: all of this machine, in both families where it has both, or those of one interface.

    Args:
        interface: the name or an address of the interface to use; empty if it is down.

    Raises:
        UsageError: there is no such interface; the message lists those there are.
        OSError: the system could not be asked.
    """
    if interface is not None:
        return tuple(address for one in interfaces(interface) for address in one.addresses)
    return WILDCARDS if has_ipv6() else WILDCARDS[:1]


def insecure_warning(hosts: Collection[str]) -> str:
    """To whom a peer that listens on these hosts is open, where nothing is encrypted."""
    if hosts and all(ipaddress.ip_address(host).is_loopback for host in hosts):
        return "nothing is encrypted, and every process of this machine can take part"
    where = "this machine" if not hosts or set(hosts) & set(WILDCARDS) else " or ".join(hosts)
    return f"nothing is encrypted, and whoever reaches {where} can take part"


def has_ipv6() -> bool:
    """Whether this machine speaks IPv6."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


def dialable(up: Iterable[Interface]) -> tuple[str, ...]:
    """The addresses of these interfaces that others may dial, without scopes, which mean something here alone.

    Loopback only if there is nothing else; those that hold on a link alone last.
    """
    up = tuple(up)
    chosen = [one for one in up if not one.loopback] or up
    told = [ipaddress.ip_address(_without_scope(address)) for one in chosen for address in one.addresses]
    return tuple(dict.fromkeys(str(address) for address in sorted(told, key=_link_local_ipv6)))


def ranked(unordered: Iterable[Interface], default_sources: Collection[str]) -> tuple[Interface, ...]:
    """Order interfaces: the default route's, then other real ones, link-local, virtual, loopback.

    Args:
        default_sources: the addresses that packets to the default routes carry, where there are such routes.
    """

    def rank(one: Interface) -> int:
        if one.loopback:
            return 4
        if one.virtual:
            return 3
        if all(ipaddress.ip_address(address).is_link_local for address in one.addresses):
            return 2
        return 1 if set(one.addresses).isdisjoint(default_sources) else 0

    return tuple(sorted(unordered, key=rank))


def nearest(hosts: Iterable[str], up: Iterable[Interface]) -> tuple[str, ...]:
    """Order another machine's addresses by how likely they lead there from these interfaces; stable.

    Those in a network of ours first, then those behind a router, then those that hold on a link alone. Last what is in
    the network of a virtual interface of ours: the other machine has one with the same addresses.
    """
    up = tuple(up)
    real = [network for one in up if not one.virtual and not one.loopback for network in one.networks]
    imagined = [network for one in up if one.virtual for network in one.networks]

    def rank(host: str) -> int:
        address = ipaddress.ip_address(_without_scope(host))
        if _link_local_ipv6(address):
            return 2
        if any(address in network for network in real):
            return 0
        return 3 if any(address in network for network in imagined) else 1

    return tuple(sorted(hosts, key=rank))


def scoped(host: str, up: Iterable[Interface]) -> tuple[str, ...]:
    """The host as it is to be dialed from these interfaces.

    An IPv6 address that holds on a link alone does not tell which: each of our links that has such addresses is tried,
    first the one whose name the host carries. Others stay as they are; so do names.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return (host,)
    if not (isinstance(address, ipaddress.IPv6Address) and address.is_link_local):
        return (host,)
    scopes = [ipaddress.IPv6Address(mine).scope_id for one in up for mine in one.addresses if "%" in mine]
    bare = _without_scope(host)
    return tuple(dict.fromkeys(f"{bare}%{scope}" for scope in sorted(scopes, key=lambda one: one != address.scope_id)))


def _read(adapter: ifaddr.Adapter) -> _Adapter:
    name = str(adapter.nice_name)
    scope = str(adapter.index) if sys.platform == "win32" else name
    addresses, networks = [], []
    for ip in adapter.ips:
        bare = _without_scope(str(ip.ip if ip.is_IPv4 else ip.ip[0]))
        address = ipaddress.ip_address(bare)
        networks.append(ipaddress.ip_network(f"{bare}/{ip.network_prefix}", strict=False))
        addresses.append(f"{bare}%{scope}" if _link_local_ipv6(address) else bare)
    addresses.sort(key=lambda one: (":" in one) + ("%" in one))
    return _Adapter(
        frozenset({str(adapter.name), name}), Interface(name, tuple(addresses), tuple(networks), adapter.index or 0)
    )


def _only(one: Interface, wanted: str) -> Interface:
    """The interface with this address alone, if it is one of its own."""
    matching = tuple(address for address in one.addresses if _without_scope(address) == wanted)
    return replace(one, addresses=matching) if matching else one


def _link_local_ipv6(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return address.version == 6 and address.is_link_local


def _without_scope(host: str) -> str:
    return host.partition("%")[0]


def _default_sources() -> frozenset[str]:
    sources = set()
    for family, far in _FAR.items():
        # Where a family is missing, there is no socket either.
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(far)  # of a datagram socket: looks the route up, sends nothing
            sources.add(str(probe.getsockname()[0]))
    return frozenset(sources)


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


def _listing(adapters: Iterable[_Adapter]) -> str:
    found = (adapter.interface for adapter in adapters)
    return ", ".join(f"{one.name} ({', '.join(one.addresses)})" for one in found if one.addresses) or (
        "none with an address"
    )
