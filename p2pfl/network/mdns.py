"""Discovery on the LAN by multicast DNS (RFC 6762, RFC 6763): service `_p2pfl._tcp`, the peer id its instance name.

Names are not probed for before use (`cooperating_responders`), which shows a peer to others in milliseconds instead of
a second. That is safe because the name is the peer id; should two processes share one, the hello notices.

Interfaces come and go, and the library neither follows them nor asks again on a new one. So one task, every
`refresh_s`, reads the interfaces, joins new ones, asks who is there, and announces again: after a lost link, a change
of address or a full table, everybody is heard within that time.
"""

import asyncio
import ipaddress
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

import zeroconf
from zeroconf import DNSAddress, DNSPointer, DNSService  # type: ignore[attr-defined]  # what RecordUpdate carries
from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

from p2pfl.errors import ProtocolError, UsageError
from p2pfl.network.discovery import (
    Announcement,
    Candidate,
    CandidateTable,
    Found,
    Lost,
    ignore,
    join_address,
    split_address,
)
from p2pfl.network.interfaces import dialable, interfaces
from p2pfl.types import PeerId

SERVICE = "_p2pfl._tcp.local."

_IP_VERSION = zeroconf.IPVersion.V4Only  # IPv6 needs: this, interfaces() listing it, and multicast by interface index
_WILDCARDS = ("0.0.0.0", "::")
_INSTANCE = re.compile(r"[A-Za-z0-9_-]{1,63}")  # one label of a DNS name
_NETWORK_BYTES = 128  # a TXT string holds 255, its key included
_ADDRESSES = 16  # of one candidate; the rest is not tried
_DOWN_RETRY_S = 1.0
_GOODBYE_S = 1.0


class MdnsDiscovery:
    """Announces this peer on the LAN, and proposes the others it hears.

    Args:
        network: propose candidates of this network alone; None proposes those of all.
        found: called for each new or changed candidate.
        warn: called with one line when something keeps discovery from working; it goes on trying.
        lost: called with a peer that said goodbye, or whose record ran out (two minutes of silence).
        interface: name or address of the one interface to use; None for all.
        refresh_s: between looks at the interfaces, and announcements; less follows changes faster, with more traffic.
        limit: how many candidates are remembered.
    """

    def __init__(
        self,
        network: str | None,
        found: Found,
        warn: Callable[[str], None],
        *,
        lost: Lost = ignore,
        interface: str | None = None,
        refresh_s: float = 10.0,
        limit: int = 1024,
    ) -> None:
        self.ignored: Counter[str] = Counter()  # reason -> records of others that made no sense
        self._network = network
        self._found = found
        self._warn = warn
        self._lost = lost
        self._interface = interface
        self._refresh_s = refresh_s
        self._table = CandidateTable(limit)
        self._announcement: Announcement | None = None
        self._announced = asyncio.Event()
        self._told: tuple[Announcement, tuple[str, ...]] | None = None  # what `_service` was made of
        self._service: zeroconf.ServiceInfo | None = None
        self._responder: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._joined: tuple[str, ...] = ()  # an address of each interface that takes part
        self._complaint: str | None = None
        self._connected = False  # whether the interface asked for, or any that leads out of this machine, is up
        self._upkeep: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Listen and ask; the network may be down.

        Raises:
            UsageError: there is no such interface.
        """
        logger = logging.getLogger("zeroconf")
        if logger.level == logging.WARNING:  # its own default; who set another wants to see it
            logger.setLevel(logging.CRITICAL)
        with suppress(OSError):
            interfaces(self._interface)  # a wrong name is an error now; later it may be one that was unplugged
        try:
            await self._refresh()
        except BaseException:
            await self._close()
            raise
        self._upkeep = asyncio.create_task(self._keep_fresh(), name="mdns")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Say goodbye, for a second at most."""
        upkeep = self._upkeep
        try:
            if upkeep is not None:
                upkeep.cancel()
                await asyncio.wait([upkeep])
        finally:
            await self._close()
        if upkeep is not None and not upkeep.cancelled():
            upkeep.result()

    async def announce(self, announcement: Announcement) -> None:
        """Tell the others of this peer; again to change what is told. It is sent as soon as an interface is up.

        Raises:
            UsageError: the announcement cannot be told in a DNS record.
        """
        _check(announcement)
        if self._announcement is not None and self._announcement.peer != announcement.peer:
            raise UsageError(
                f"this discovery announces {self._announcement.peer}; open another for {announcement.peer}"
            )
        self._announcement = announcement
        self._forget(announcement.peer)
        self._announced.set()

    def candidates(self) -> tuple[Candidate, ...]:
        """All candidates known now, the longest silent first."""
        return self._table.candidates()

    def verified(self, peer: PeerId) -> None:
        """Say that this candidate answered and proved its key: it outlasts others when the table is full."""
        self._table.verified(peer)

    async def _keep_fresh(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._refresh_s if self._connected else min(_DOWN_RETRY_S, self._refresh_s)):
                    await self._announced.wait()
            self._announced.clear()
            await self._refresh()

    async def _refresh(self) -> None:
        try:
            self._complain(await self._reconcile())
        except (OSError, UsageError, zeroconf.Error) as error:
            self._complain(f"discovery on the LAN does not work yet: {error}")

    def _complain(self, complaint: str | None) -> None:
        if complaint is not None and complaint != self._complaint:
            self._warn(complaint)
        self._complaint = complaint

    async def _reconcile(self) -> str | None:
        """Bring the library to the interfaces and the announcement of now; what to complain about, if anything."""
        self._connected = False
        up = interfaces(self._interface)
        responder = self._responder or await self._open()
        # Before joining: on a new interface the library at once tells what is registered.
        changed = await self._tell(responder.zeroconf, dialable(up))
        joined = tuple(one.addresses[0] for one in up)
        if joined != self._joined or len(responder.zeroconf.engine.senders) < len(joined):
            await responder.async_update_interfaces(list(joined), _IP_VERSION)
            new, self._joined = set(joined) - set(self._joined), joined
            if new:
                await self._ask(responder.zeroconf)
        if not changed and self._service is not None:
            responder.zeroconf.async_send(responder.zeroconf.generate_service_broadcast(self._service, None))
        self._connected = any(not one.loopback for one in up) if self._interface is None else bool(up)
        return self._trouble(len(up), len(responder.zeroconf.engine.senders))

    async def _open(self) -> AsyncZeroconf:
        # No interface is given: the constructor leaks its socket when one fails, joining them later does not.
        responder = AsyncZeroconf(interfaces=[], ip_version=_IP_VERSION)
        # Before the first await: what comes in unheard is cached, and then not asked for again.
        responder.zeroconf.async_add_listener(_Records(self._heard, self._silent), None)
        try:
            await responder.zeroconf.async_wait_for_start()
        except BaseException:
            responder.zeroconf.close()
            raise
        self._responder = responder
        return responder

    async def _tell(self, responder: zeroconf.Zeroconf, hosts: tuple[str, ...]) -> bool:
        """Register what is to be announced, or its change; whether there was any."""
        if self._announcement is None:
            return False
        told = (self._announcement, _expanded(self._announcement, hosts))
        if not told[1] or (self._service is not None and told == self._told):
            return False
        service = _service_info(*told)
        if self._service is None:
            broadcasts = await responder.async_register_service(service, cooperating_responders=True)
        else:
            broadcasts = await responder.async_update_service(service)
        self._service, self._told = service, told
        await broadcasts
        return True

    async def _ask(self, responder: zeroconf.Zeroconf) -> None:
        """Ask who is there, by a new browser: one sends questions only in its first seconds, later none."""
        if self._browser is not None:
            await self._browser.async_cancel()
        # By multicast: the answer to a unicast question goes to an arbitrary one of several processes on a machine.
        self._browser = AsyncServiceBrowser(
            responder, SERVICE, handlers=[_ignore_change], question_type=zeroconf.DNSQuestionType.QM
        )

    def _trouble(self, up: int, senders: int) -> str | None:
        if not self._connected and self._interface is None:
            return "no network interface is up: only peers on this machine are found until one is"
        if not self._connected:
            return f"interface {self._interface} is down: peers are found once it is up"
        if senders < up:
            return (
                f"discovery works on {senders} of {up} network interfaces; choose one, or raise the system's limit"
                " of multicast memberships (Linux: net.ipv4.igmp_max_memberships)"
            )
        return None

    async def _close(self) -> None:
        if self._browser is not None:
            await self._browser.async_cancel()
            self._browser = None
        responder, self._responder = self._responder, None
        if responder is None:
            return
        closed = False
        try:
            with suppress(TimeoutError, OSError):
                async with asyncio.timeout(_GOODBYE_S):
                    await responder.async_close()
                    closed = True
        finally:
            if not closed:
                responder.zeroconf.close()

    def _heard(self, name: str, responder: zeroconf.Zeroconf) -> None:
        peer = _instance(name)
        if self._announcement is not None and peer == self._announcement.peer:
            return
        try:
            candidate = _load(name, responder)
        except ProtocolError as error:
            self.ignored[error.reason] += 1
            return
        if candidate is None:
            return
        if self._network is not None and candidate.network != self._network:
            self._forget(candidate.peer)
        elif self._table.heard(candidate):
            self._found(candidate)

    def _silent(self, name: str) -> None:
        self._forget(_instance(name))

    def _forget(self, peer: PeerId) -> None:
        if self._table.lost(peer):
            self._lost(peer)


async def browse(seconds: float, interface: str | None = None, warn: Callable[[str], None] = ignore) -> list[Candidate]:
    """Who announces itself on the LAN within so many seconds, of all networks; by network, then peer id.

    Raises:
        UsageError: there is no such interface.
    """
    async with MdnsDiscovery(None, ignore, warn, interface=interface) as discovery:
        await asyncio.sleep(seconds)
        return sorted(discovery.candidates(), key=lambda candidate: (candidate.network, candidate.peer))


def read_candidate(
    instance: str, text: Mapping[bytes, bytes | None], port: int | None, hosts: Sequence[str]
) -> Candidate:
    """Make a candidate of what a record says; nothing in it is trusted.

    Args:
        instance: the first label of the service's name.
        text: the TXT record.
        hosts: IP addresses.

    Raises:
        ProtocolError: reason `bad name`, `bad text` or `bad address`.
    """
    if not _INSTANCE.fullmatch(instance):
        raise ProtocolError("bad name")
    if text.get(b"id") != instance.encode() or not re.fullmatch(rb"[0-9]{1,6}", text.get(b"v") or b""):
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


class _Records(zeroconf.RecordUpdateListener):
    """Tells which services a packet was about.

    A browser tells of changes only: a candidate that lost its place in the table would never be heard of again.
    """

    def __init__(self, heard: Callable[[str, zeroconf.Zeroconf], None], silent: Callable[[str], None]) -> None:
        super().__init__()
        self._heard = heard
        self._silent = silent
        self._present: dict[str, zeroconf.Zeroconf] = {}
        self._gone: set[str] = set()

    def async_update_records(self, zc: zeroconf.Zeroconf, now: float, records: list[zeroconf.RecordUpdate]) -> None:
        for update in records:
            record = update.new
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


def _load(name: str, responder: zeroconf.Zeroconf) -> Candidate | None:
    """What the library has heard of this service; None while a part is missing."""
    instance = _instance(name)
    if not _INSTANCE.fullmatch(instance):
        raise ProtocolError("bad name")
    info = zeroconf.ServiceInfo(SERVICE, name)
    if not info.load_from_cache(responder):
        return None
    return read_candidate(instance, info.properties, info.port, info.parsed_addresses(_IP_VERSION))


def _instance(name: str) -> str:
    return name[: -len(SERVICE) - 1]


def _is_tag(network: str) -> bool:
    return bool(network) and network.isprintable() and len(network.encode()) <= _NETWORK_BYTES


def _check(announcement: Announcement) -> None:
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


def _expanded(announcement: Announcement, hosts: tuple[str, ...]) -> tuple[str, ...]:
    """The IP addresses to tell: a wildcard stands for all of `hosts`."""
    named = (split_address(address)[0] for address in announcement.addresses)
    return tuple(dict.fromkeys(one for host in named for one in (hosts if host in _WILDCARDS else (host,))))


def _service_info(announcement: Announcement, hosts: tuple[str, ...]) -> zeroconf.ServiceInfo:
    peer = announcement.peer
    return zeroconf.ServiceInfo(
        SERVICE,
        f"{peer}.{SERVICE}",
        port=split_address(announcement.addresses[0])[1],
        properties={"v": str(announcement.version), "net": announcement.network, "id": peer},
        server=f"{peer}.local.",
        parsed_addresses=list(hosts),
    )


def _ignore_change(**_: object) -> None:
    """The browser is there to ask; `_Records` hears more than it tells."""
