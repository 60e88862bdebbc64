"""What can be heard by multicast on each interface: our own announcement, peers, and any other machine.

Each interface has a socket of its own, joined there alone, which announces a service that nobody uses, under a name
drawn for this one look, and asks who is there. What comes back on that socket was heard on that interface.

Source: RFC 6762 (multicast DNS), RFC 6763, section 9 (asking for all services)
"""

import asyncio
import secrets
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import zeroconf
from zeroconf import (  # type: ignore[attr-defined]  # not in its `__all__`, though for everybody
    DNSIncoming,
    DNSOutgoing,
    DNSPointer,
    DNSQuestion,
    DNSText,
)

from p2pfl.doctor.findings import Finding, note, problem
from p2pfl.doctor.nics import Nic
from p2pfl.network.mdns import SERVICE

_PORT = 5353
_GROUP4, _GROUP6 = "224.0.0.251", "ff02::fb"
_PROBE = "_p2pfl-doctor._tcp.local."
_ALL_SERVICES = "_services._dns-sd._udp.local."
_QUERY, _RESPONSE = 0x0000, 0x8400  # flags: a question; an answer of who owns the name
_PTR, _IN = 12, 1
_TTL_S = 10
_AGAIN_S = 1.1  # the library answers the same question once a second
_IP_MULTICAST_ALL = 49  # Linux: or a socket hears what any program has joined anywhere
_MOST = 4096  # different things remembered of what strangers say


@dataclass
class Heard:
    """What came in on one interface."""

    own: bool = False  # our own announcement
    hosts: set[str] = field(default_factory=set)  # addresses of other machines, whatever they said
    peers: dict[str, int | None] = field(default_factory=dict)  # announced names of peers, and their protocol version
    error: str = ""  # why it could not be listened there


async def listen(nics: Sequence[Nic], seconds: float) -> dict[str, Heard]:
    """Announce and listen on each interface for so long; by the interface's name."""
    nonce = secrets.token_hex(8)
    mine = {address for nic in nics for address in nic.addresses}
    found = {nic.name: Heard() for nic in nics}
    loop = asyncio.get_running_loop()
    ears: list[tuple[asyncio.DatagramTransport, tuple[str, int], str]] = []
    try:
        for nic in nics:
            heard, name = found[nic.name], f"{nonce}-{nic.index}.{_PROBE}"
            for version in (4, 6):
                if nic.of(version) is None:
                    continue
                try:
                    ear = _socket(nic, version)
                except OSError as error:
                    heard.error = heard.error or (error.strerror or str(error))
                    continue
                transport, _ = await loop.create_datagram_endpoint(partial(_Ear, heard, name, mine), sock=ear)
                group = (_GROUP4, _PORT) if version == 4 else (f"{_GROUP6}%{nic.index}", _PORT)
                ears.append((transport, group, name))
        for _ in range(2 if seconds > _AGAIN_S else 1):
            for transport, group, name in ears:
                for packet in _packets(name):
                    with suppress(OSError):
                        transport.sendto(packet, group)
            await asyncio.sleep(min(seconds, _AGAIN_S))
        await asyncio.sleep(max(0.0, seconds - 2 * _AGAIN_S))
    finally:
        for transport, _, _ in ears:
            transport.close()
    return found


def read(data: bytes) -> list[tuple[str, str, int | None]]:
    """What a packet says that matters here: (kind, name, protocol version); nothing of it is trusted.

    Kinds are `peer` and `probe`. What makes no sense is passed over.
    """
    try:
        incoming = DNSIncoming(data)
        answers = incoming.answers() if incoming.valid else []
    except (zeroconf.Error, ValueError, IndexError, struct.error, RecursionError):
        return []
    said: list[tuple[str, str, int | None]] = []
    for record in answers:
        name = record.name.lower()
        if isinstance(record, DNSPointer) and name == SERVICE:
            said.append(("peer", record.alias, None))
        elif isinstance(record, DNSPointer) and name == _PROBE:
            said.append(("probe", record.alias, None))
        elif isinstance(record, DNSText) and name.endswith(f".{SERVICE}"):
            said.append(("peer", record.name, _version(record.text)))
    return said


def _version(text: bytes) -> int | None:
    """The value of `v` in a TXT record: strings, each with its length before it."""
    position = 0
    while position < len(text):
        length = text[position]
        entry = text[position + 1 : position + 1 + length]
        if entry[:2] == b"v=" and entry[2:].isdigit() and len(entry) < 9:
            return int(entry[2:])
        position += 1 + length
    return None


class _Ear(asyncio.DatagramProtocol):
    def __init__(self, heard: Heard, own: str, mine: set[str]) -> None:
        self._heard = heard
        self._own = own
        self._mine = mine

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        host = addr[0].partition("%")[0]
        if host not in self._mine and len(self._heard.hosts) < _MOST:
            self._heard.hosts.add(host)
        for kind, name, version in read(data):
            if kind == "probe":
                self._heard.own |= name == self._own
            elif len(self._heard.peers) < _MOST or name in self._heard.peers:
                label = name[: -len(SERVICE) - 1]
                self._heard.peers[label] = version if version is not None else self._heard.peers.get(label)

    def error_received(self, exc: Exception) -> None:
        self._heard.error = self._heard.error or str(exc)


def _socket(nic: Nic, version: int) -> socket.socket:
    ear = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    try:
        ear.setblocking(False)
        ear.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "SO_REUSEPORT"):
            with suppress(OSError):
                ear.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if version == 4:
            if sys.platform == "linux":
                ear.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
            ear.bind(("", _PORT))
            here = socket.inet_aton(nic.of(4) or "")
            ear.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(_GROUP4) + here)
            ear.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, here)
            ear.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
        else:
            ear.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if sys.platform == "linux":
                ear.setsockopt(socket.IPPROTO_IPV6, 29, 0)  # IPV6_MULTICAST_ALL, as above
            ear.bind(("", _PORT))
            group = socket.inet_pton(socket.AF_INET6, _GROUP6) + struct.pack("@I", nic.index)
            ear.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
            ear.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, nic.index)
            ear.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
    except OSError:
        ear.close()
        raise
    return ear


def _packets(name: str) -> list[bytes]:
    announcement = DNSOutgoing(_RESPONSE)
    announcement.add_answer_at_time(DNSPointer(_PROBE, _PTR, _IN, _TTL_S, name), 0)
    question = DNSOutgoing(_QUERY)
    question.add_question(DNSQuestion(SERVICE, _PTR, _IN))
    question.add_question(DNSQuestion(_ALL_SERVICES, _PTR, _IN))
    return [*announcement.packets(), *question.packets()]


def judge_heard(nics: Sequence[Nic], heard: dict[str, Heard], reached: int) -> list[Finding]:
    """What is wrong with multicast.

    Args:
        reached: peers on other machines that answered at addresses given by hand.
    """
    told: list[Finding] = []
    for nic in nics:
        one = heard.get(nic.name)
        if one is None or not nic.useful or not nic.multicast:
            continue
        if not one.own:
            why = f" ({one.error})" if one.error else ""
            text = f"what this machine itself announces is not heard here{why}: multicast does not work"
            told.append(problem("own not heard", nic.name, text, _MEND_LOCAL))
        elif not one.hosts and reached:
            text = "peers answer at the addresses given, but no other machine is heard: multicast is blocked on the way"
            told.append(problem("multicast blocked", nic.name, text, _MEND_BLOCKED))
        elif not one.hosts and one.peers:
            text = "peers of this machine are heard, but no other machine: none may be there"
            told.append(note("nobody else", nic.name, text, f"if peers run elsewhere: {_MEND_BLOCKED}"))
        elif not one.hosts:
            text = "nothing is heard but this machine itself: nobody else is there, or multicast is blocked"
            told.append(note("nobody heard", nic.name, text, f"if peers run elsewhere: {_MEND_BLOCKED}"))
    return told


_MEND_LOCAL = "let UDP port 5353 in: ufw allow 5353/udp, or firewall-cmd --add-service=mdns, and again with --permanent"
_MEND_BLOCKED = (
    "name a peer by --peer HOST:PORT, one is enough; on the router, end client isolation and filtering of multicast"
)
