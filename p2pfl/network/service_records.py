"""What a peer tells in DNS records (RFC 6763), and what is made of what others tell: nothing in it is trusted.

A record carries an instance name, a network's tag, a port, addresses and the protocol version, and nothing else: of a
network with a key, the instance is an alias, and both mean something only to who holds the key.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import zeroconf
from zeroconf import (  # type: ignore[attr-defined]  # what RecordUpdate carries, and where it is kept, undeclared
    DNSAddress,
    DNSCache,
    DNSPointer,
    DNSService,
)

from p2pfl.errors import ProtocolError, UsageError
from p2pfl.network.discovery import Announcement, Candidate, join_address, split_address
from p2pfl.network.interfaces import WILDCARDS

SERVICE = "_p2pfl._tcp.local."

_INSTANCE = re.compile(r"[A-Za-z0-9_-]{1,63}")  # one label of a DNS name
_NETWORK_BYTES = 128  # a TXT string holds 255, its key included
_NEW_RECORDS = 4000  # with what a full table keeps, and one packet of the longest, below the library's 10,000
_ADDRESSES = 16  # told of one peer, and heard of another; the rest is left out


def check(announcement: Announcement) -> None:
    """Raise UsageError where an announcement cannot be told in a record."""
    if not _INSTANCE.fullmatch(announcement.peer):
        raise UsageError(f"peer id {announcement.peer!r} must be 1 to 63 letters, digits, '-' or '_'")
    if not _is_tag(announcement.network):
        raise UsageError(f"network {announcement.network!r} must be printable, of 1 to {_NETWORK_BYTES} bytes")
    try:
        ports = {split_address(address)[1] for address in announcement.addresses}
        for address in announcement.addresses:
            ipaddress.ip_address(split_address(address)[0])
    except ValueError as error:
        raise UsageError(f"cannot announce {', '.join(announcement.addresses)}: {error}") from error
    if len(ports) != 1:
        raise UsageError("announce one or more addresses, all with the same port")


def told_hosts(announcement: Announcement, hosts: Sequence[str]) -> tuple[str, ...]:
    """The IP addresses to tell, without scopes: a wildcard stands for all of `hosts`."""
    named = (split_address(address)[0] for address in announcement.addresses)
    expanded = (one.partition("%")[0] for host in named for one in (hosts if host in WILDCARDS else (host,)))
    return tuple(dict.fromkeys(expanded))[:_ADDRESSES]


def service_of(announcement: Announcement, hosts: Sequence[str]) -> zeroconf.ServiceInfo:
    """The records of an announcement."""
    instance = announcement.peer
    return zeroconf.ServiceInfo(
        SERVICE,
        f"{instance}.{SERVICE}",
        port=split_address(announcement.addresses[0])[1],
        properties={"v": str(announcement.version), "net": announcement.network},
        server=f"{instance}.local.",
        parsed_addresses=list(hosts),
    )


def instance_of(name: str) -> str:
    """The first label of a service's name."""
    return name[: -len(SERVICE) - 1]


def load_candidate(name: str, responder: zeroconf.Zeroconf) -> Candidate | None:
    """What the library has heard of this service; None while a part is missing. Raises as `read_candidate`."""
    instance = instance_of(name)
    if not _INSTANCE.fullmatch(instance):
        raise ProtocolError("bad name")
    try:
        info = zeroconf.ServiceInfo(SERVICE, name)
    except zeroconf.Error as error:  # the library takes capitals in the service's name for another service
        raise ProtocolError("bad name") from error
    if not info.load_from_cache(responder):
        return None
    return read_candidate(instance, info.properties, info.port, info.parsed_scoped_addresses())


def read_candidate(
    instance: str, text: Mapping[bytes, bytes | None], port: int | None, hosts: Sequence[str]
) -> Candidate:
    """Make a candidate of what a record says.

    Args:
        instance: the first label of the service's name.
        text: the TXT record.
        hosts: IP addresses.

    Raises:
        ProtocolError: reason `bad name`, `bad text` or `bad address`.
    """
    if not _INSTANCE.fullmatch(instance):
        raise ProtocolError("bad name")
    if not re.fullmatch(rb"[0-9]{1,6}", text.get(b"v") or b""):
        raise ProtocolError("bad text")
    try:
        network = (text.get(b"net") or b"").decode()
    except UnicodeDecodeError:
        raise ProtocolError("bad text") from None
    if not _is_tag(network):
        raise ProtocolError("bad text")
    # In a fixed order, as records have none: the same facts must compare equal.
    parsed = sorted({ipaddress.ip_address(host) for host in hosts}, key=lambda host: (host.version, int(host)))
    usable = [host for host in parsed if not (host.is_unspecified or host.is_multicast or host.is_reserved)]
    if not usable or port is None or not 0 < port < 65536:
        raise ProtocolError("bad address")
    return Candidate(instance, network, tuple(join_address(str(host), port) for host in usable[:_ADDRESSES]))


class ServiceListener(zeroconf.RecordUpdateListener):
    """Tells which services a packet was about, each time.

    A browser tells of changes only: a candidate that lost its place in the table would never be heard of again.

    Args:
        heard: called with the name of a service that is there, once for each packet about it.
        silent: called with the name of one that said goodbye, or whose record ran out.
        keep: answers which names are worth remembering when the library's memory fills up.
    """

    def __init__(
        self,
        heard: Callable[[str, zeroconf.Zeroconf], None],
        silent: Callable[[str], None],
        keep: Callable[[], Iterable[str]],
    ) -> None:
        super().__init__()
        self._heard = heard
        self._silent = silent
        self._keep = keep
        self._new = 0  # records since the last look at how full the memory is
        self._present: dict[str, zeroconf.Zeroconf] = {}
        self._gone: set[str] = set()
        self._responder: zeroconf.Zeroconf | None = None

    def async_update_records(self, zc: zeroconf.Zeroconf, now: float, records: list[zeroconf.RecordUpdate]) -> None:
        for update in records:
            record = update.new
            self._new += update.old is None
            self._responder = zc
            if isinstance(record, DNSPointer):
                names = [record.alias] if record.name.lower() == SERVICE else []
            elif isinstance(record, DNSAddress):
                names = [service.name for service in zc.cache.async_entries_with_server(record.name)]
            else:
                names = [record.name]
            # An address may run out and leave others; without these two there is nobody to dial.
            essential = isinstance(record, DNSPointer | DNSService)
            for name in names:
                if not name.lower().endswith(f".{SERVICE}"):
                    continue
                if essential and record.is_expired(now):
                    self._gone.add(name)
                else:
                    self._present[name] = zc

    def async_update_records_complete(self) -> None:
        present, self._present = self._present, {}
        gone, self._gone = self._gone, set()
        for name in gone:
            self._silent(name)
        for name, responder in present.items():
            if name not in gone:
                self._heard(name, responder)
        if self._new > _NEW_RECORDS and self._responder is not None:
            self._new = 0
            forget_others(self._responder.cache, self._keep())


def forget_others(cache: DNSCache, names: Iterable[str]) -> None:
    """Forget all records but those of the services with these names.

    The library remembers 10,000 records at most, and makes room by forgetting first what runs out first. Full of a
    stranger's records of long life, it would forget an honest service's while it reads them.
    """
    kept = {name.lower() for name in names}
    servers = {
        record.server_key for name in kept for record in cache.entries_with_name(name) if isinstance(record, DNSService)
    }
    others = [
        record
        for name in cache.names()
        for record in cache.entries_with_name(name)
        if not (name in kept or name in servers or (isinstance(record, DNSPointer) and record.alias.lower() in kept))
    ]
    cache.async_remove_records(others)


def _is_tag(network: str) -> bool:
    return bool(network) and network.isprintable() and len(network.encode()) <= _NETWORK_BYTES
