"""Discovery on the LAN by multicast DNS (RFC 6762, RFC 6763): service `_p2pfl._tcp`, a peer's id or alias its instance.

Names are not probed for before use (`cooperating_responders`), which shows a peer to others in milliseconds instead of
a second. That is safe because a name is one peer's alone; should two processes share one, the hello notices.

Interfaces come and go, and the library neither follows them nor asks again on a new one. So one task, every
`refresh_s`, reads the interfaces, joins new ones, asks who is there, and announces again: after a lost link, a change
of address or a full table, everybody is heard within that time. It asks by plain questions, and keeps no browser: one
remembers every name it ever heard, and a stranger can make up names without end.

Both families are used where this machine has them, by one socket for all that comes in, and one to send for each
interface and family. An interface that fails never stops the others, and is tried again.
"""

import asyncio
import errno
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Self

import zeroconf
from zeroconf import (  # type: ignore[attr-defined]  # it does not declare what a question is made of
    DNSOutgoing,
    DNSPointer,
    DNSQuestion,
)
from zeroconf.asyncio import AsyncZeroconf

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
    tags_of,
)
from p2pfl.network.interfaces import Interface, dialable, interfaces, nearest, scoped
from p2pfl.network.service_records import (
    SERVICE,
    ServiceListener,
    check,
    instance_of,
    load_candidate,
    read_candidate,
    service_of,
    told_hosts,
)
from p2pfl.types import PeerId

__all__ = ["SERVICE", "MdnsDiscovery", "browse", "read_candidate"]

_log = logging.getLogger(__name__)
_QUERY, _POINTER, _INTERNET = 0, 12, 1  # flags of a question, type PTR, class IN (RFC 1035, sections 3.2 and 4.1)
_DOWN_RETRY_S = 1.0
_GOODBYE_S = 1.0
_LAST_WORDS_S = 0.5  # an answer put together before a goodbye may be sent after it
_QUESTIONS = 3  # on a new interface: the first may be lost
_ASK_AGAIN_S = 1.1  # doubled each time (RFC 6762, section 5.2); a responder may drop what it has just been asked


class MdnsDiscovery:
    """Announces this peer on the LAN, and proposes the others it hears.

    Args:
        network: the tag, or tags, of the candidates to propose; None proposes all. `listen_for` changes it.
        found: called for each new or changed candidate.
        warn: called with one line when something keeps discovery from working; it goes on trying.
        lost: called with a peer that said goodbye, or whose record ran out (two minutes of silence).
        interface: name or address of the one interface to use; None for all.
        refresh_s: between looks at the interfaces, and announcements; less follows changes faster, with more traffic.
        limit: how many candidates are remembered.
    """

    def __init__(
        self,
        network: str | Iterable[str] | None,
        found: Found,
        warn: Callable[[str], None],
        *,
        lost: Lost = ignore,
        interface: str | None = None,
        refresh_s: float = 10.0,
        limit: int = 1024,
    ) -> None:
        self.ignored: Counter[str] = Counter()  # reason -> records of others that made no sense
        self._tags = tags_of(network)
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
        self._left: dict[PeerId, float] = {}  # who said goodbye just now, and when
        self._names: set[PeerId] = set()  # under which this peer was announced
        self._up: tuple[Interface, ...] = ()
        self._joined: dict[str, int] = {}  # addresses that take part, and the number of the interface of each
        self._questions = 0  # still to be asked
        self._ask_at = 0.0  # the next one, not before
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

        Under another name, the former one is withdrawn with a goodbye.

        Raises:
            UsageError: the announcement cannot be told in a DNS record.
        """
        check(announcement)
        self._announcement = announcement
        self._names.add(announcement.peer)
        self._forget(announcement.peer)
        self._announced.set()

    def listen_for(self, network: str | Iterable[str] | None) -> None:
        """From now on, propose candidates with one of these tags; None: all. Those heard before are proposed now."""
        self._tags = tags_of(network)
        for candidate in self._table.candidates():
            if not self._wants(candidate):
                self._forget(candidate.peer)
        if self._responder is not None:
            responder = self._responder.zeroconf
            for record in responder.cache.async_entries_with_name(SERVICE):
                if isinstance(record, DNSPointer):
                    self._heard(record.alias, responder)

    def candidates(self) -> tuple[Candidate, ...]:
        """All candidates known now, the longest silent first."""
        return self._table.candidates()

    def verified(self, peer: PeerId) -> None:
        """Say that this candidate answered and proved its key: it outlasts others when the table is full."""
        self._table.verified(peer)

    async def _keep_fresh(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pause_s()):
                    await self._announced.wait()
            self._announced.clear()
            await self._refresh()

    def _pause_s(self) -> float:
        """Until the next look at the interfaces."""
        pause_s = self._refresh_s if self._connected else min(_DOWN_RETRY_S, self._refresh_s)
        until_asked_s = self._ask_at - asyncio.get_running_loop().time()
        return min(pause_s, until_asked_s) if self._questions and until_asked_s > 0 else pause_s

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
        self._up = interfaces(self._interface)
        responder = self._responder or await self._open()
        # Before joining: on a new interface the library at once tells what is registered.
        changed = await self._tell(responder, dialable(self._up))
        working = await self._join(responder)
        now = asyncio.get_running_loop().time()
        if self._questions and now >= self._ask_at:  # an announcement may bring here sooner
            self._ask_at = now + _ASK_AGAIN_S * 2.0 ** (_QUESTIONS - self._questions)
            self._questions -= 1
            self._ask(responder.zeroconf)
        if not changed and self._service is not None:
            responder.zeroconf.async_send(responder.zeroconf.generate_service_broadcast(self._service, None))
        self._connected = bool(self._up) if self._interface else any(not one.loopback for one in self._up)
        return self._trouble(working)

    async def _join(self, responder: AsyncZeroconf) -> int:
        """Send and listen on the interfaces of now; returns on how many of them that works."""
        wanted = {address: one.index for one in self._up for address in _taking_part(one)}
        replugged = {address for address, index in self._joined.items() if wanted.get(address, index) != index}
        if replugged:
            # Under its old number, a socket would be heard by nobody, and is not replaced while its address stays.
            await responder.async_update_interfaces([one for one in wanted if one not in replugged])

        def missing() -> list[str]:
            senders = {wrapped.interface_key[0] for wrapped in responder.zeroconf.engine.senders}
            return [address for address in wanted if address.partition("%")[0] not in senders]

        if wanted.keys() != self._joined.keys() or missing():
            if wanted.keys() - self._joined.keys() or replugged:
                self._questions, self._ask_at = _QUESTIONS, 0.0
            await join_each(list(wanted), responder.async_update_interfaces, missing)
        self._joined = wanted
        silent = set(missing())
        return sum(_taking_part(one)[0] not in silent for one in self._up)

    async def _open(self) -> AsyncZeroconf:
        # No interface is given: the constructor leaks its socket when one fails, joining them later does not.
        try:
            responder = AsyncZeroconf(interfaces=[], ip_version=zeroconf.IPVersion.All)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise
            responder = AsyncZeroconf(interfaces=[], ip_version=zeroconf.IPVersion.V4Only)  # a system without IPv6
        # Before the first await: what comes in unheard is cached, and then not asked for again.
        responder.zeroconf.async_add_listener(ServiceListener(self._heard, self._silent, self._worth_keeping), None)
        try:
            await responder.zeroconf.async_wait_for_start()
        except BaseException:
            responder.zeroconf.close()
            raise
        self._responder = responder
        return responder

    async def _tell(self, responder: AsyncZeroconf, hosts: tuple[str, ...]) -> bool:
        """Register what is to be announced, or its change; whether there was any."""
        if self._announcement is None:
            return False
        told = (self._announcement, told_hosts(self._announcement, hosts))
        if not told[1] or (self._service is not None and told == self._told):
            return False
        service, former = service_of(*told), self._service
        if former is not None and former.name != service.name:
            self._service = None
            await (await responder.async_unregister_service(former))
        if self._service is None:
            broadcasts = await responder.async_register_service(service, cooperating_responders=True)
        else:
            broadcasts = await responder.async_update_service(service)
        self._service, self._told = service, told
        await broadcasts
        return True

    def _ask(self, responder: zeroconf.Zeroconf) -> None:
        """Ask who is there."""
        # By multicast: the answer to a unicast question goes to an arbitrary one of several processes on a machine.
        question = DNSOutgoing(_QUERY)
        question.add_question(DNSQuestion(SERVICE, _POINTER, _INTERNET))
        responder.async_send(question)

    def _trouble(self, working: int) -> str | None:
        if not self._connected and self._interface is None:
            return "no network interface is up: only peers on this machine are found until one is"
        if not self._connected:
            return f"interface {self._interface} is down: peers are found once it is up"
        if working < len(self._up):
            return (
                f"discovery works on {working} of {len(self._up)} network interfaces; choose one, or raise the system's"
                " limit of multicast memberships (Linux: net.ipv4.igmp_max_memberships)"
            )
        return None

    async def _close(self) -> None:
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
        peer = instance_of(name)
        if peer in self._names:
            return
        if asyncio.get_running_loop().time() - self._left.get(peer, -_LAST_WORDS_S) < _LAST_WORDS_S:
            return
        try:
            candidate = load_candidate(name, responder)
        except ProtocolError as error:
            self.ignored[error.reason] += 1
            return
        if candidate is None:
            return
        if not self._wants(candidate):
            self._forget(candidate.peer)
            return
        candidate = self._placed(candidate)
        if candidate.addresses and self._table.heard(candidate):
            self._found(candidate)

    def _wants(self, candidate: Candidate) -> bool:
        return self._tags is None or candidate.network in self._tags

    def _placed(self, candidate: Candidate) -> Candidate:
        """The candidate with its addresses as they are dialed from here, the likeliest first, without our own."""
        hosts = [split_address(address)[0] for address in candidate.addresses]
        port = split_address(candidate.addresses[0])[1]
        mine = self._announcement
        if mine is not None and split_address(mine.addresses[0])[1] == port:
            own = told_hosts(mine, dialable(self._up))
            hosts = [host for host in hosts if host.partition("%")[0] not in own]
        here = (one for host in nearest(hosts, self._up) for one in scoped(host, self._up))
        return replace(candidate, addresses=tuple(join_address(host, port) for host in dict.fromkeys(here)))

    def _worth_keeping(self) -> list[str]:
        names = {candidate.peer for candidate in self._table.candidates()} | self._names
        return [f"{name}.{SERVICE}" for name in names]

    def _silent(self, name: str) -> None:
        peer, now = instance_of(name), asyncio.get_running_loop().time()
        if self._forget(peer):
            self._left = {one: at for one, at in self._left.items() if now - at < _LAST_WORDS_S} | {peer: now}

    def _forget(self, peer: PeerId) -> bool:
        known = self._table.lost(peer)
        if known:
            self._lost(peer)
        return known


async def join_each(
    addresses: Sequence[str],
    update: Callable[[list[str]], Awaitable[object]],
    missing: Callable[[], Sequence[str]],
) -> None:
    """Take part on all addresses; where that fails, on as many as work, one by one.

    Args:
        update: take part on these alone; an address that cannot be listened on may make it fail for all.
        missing: those that do not take part so far.
    """
    with suppress(OSError, RuntimeError):
        await update(list(addresses))
    left = set(missing())
    works = [one for one in addresses if one not in left]
    for address in addresses:
        if address in left:
            try:
                await update([*works, address])
            except (OSError, RuntimeError) as error:
                _log.debug("%s takes no part in discovery: %s", address, error)
            else:
                works.append(address)


def _taking_part(one: Interface) -> list[str]:
    """An address of each family by which an interface takes part.

    Of IPv6 one that holds on the link alone: only then do others learn on which link they heard it. On loopback IPv6
    multicast reaches nobody.
    """
    ipv4 = [address for address in one.addresses if ":" not in address][:1]
    ipv6 = [address for address in one.addresses if ":" in address][-1:]
    return ipv4 or ipv6 if one.loopback else ipv4 + ipv6


async def browse(seconds: float, interface: str | None = None, warn: Callable[[str], None] = ignore) -> list[Candidate]:
    """Who announces itself on the LAN within so many seconds, of all networks; by network, then peer id.

    Raises:
        UsageError: there is no such interface.
    """
    async with MdnsDiscovery(None, ignore, warn, interface=interface) as discovery:
        await asyncio.sleep(seconds)
        return sorted(discovery.candidates(), key=lambda candidate: (candidate.network, candidate.peer))
