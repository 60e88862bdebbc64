"""Which peers can be reached, and if not, what is in the way: nobody there, a firewall, another key, no TLS."""

import asyncio
import email.utils
import ssl
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, TypeAlias

from p2pfl.doctor.findings import Finding, note, problem
from p2pfl.errors import Unreachable
from p2pfl.network.discovery import Candidate, join_address, split_address
from p2pfl.network.http import fetch_status
from p2pfl.network.tls import Credentials

Tcp: TypeAlias = Literal["open", "closed", "silent"]

_CONNECT_S = 1.5
_STATUS_S = 2.5
_HEAD_BYTES = 1 << 14
_CLOCK_OFF_S = 60.0  # less is not worth a word: no decision uses the clock
_AT_ONCE = 32
_ALIAS = 26  # characters of what a peer of an encrypted network tells as its name; others tell their id


@dataclass(frozen=True)
class Answer:
    """What became of knocking at one address.

    Args:
        peer: as it was announced, empty where the address was given by hand.
        tag: of the network it was announced for.
        tcp: open; closed, where the machine says that nobody listens; silent, where nothing comes back.
        member: whether it talks to us as to a member, over TLS, or in the clear where `insecure`.
        why: it does not.
        clock_off_s: its clock is ahead of ours by so much; None where it does not say.
    """

    address: str
    peer: str = ""
    tag: str = ""
    tcp: Tcp = "silent"
    member: bool = False
    insecure: bool = False
    why: str = ""
    clock_off_s: float | None = None


async def knock_all(targets: Sequence[tuple[str, str, str]], credentials: Sequence[Credentials]) -> list[Answer]:
    """Knock at (address, peer, tag), at a few dozen at once; in their order."""
    slots = asyncio.Semaphore(_AT_ONCE)

    async def one(address: str, peer: str, tag: str) -> Answer:
        async with slots:
            return await knock(address, credentials, peer, tag)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(*target)) for target in targets]
    return [task.result() for task in tasks]


async def knock(address: str, credentials: Sequence[Credentials], peer: str = "", tag: str = "") -> Answer:
    """Try an address by TCP, then as a member of each network whose key is here, then in the clear."""
    tcp = await _tcp(address)
    if tcp != "open":
        return Answer(address, peer, tag, tcp, why="nobody listens there" if tcp == "closed" else "no answer")
    why = "no network's key is on this machine"
    fitting = [one for one in credentials if tag in {key.tag for key in one.ring.keys}]
    for one in fitting or credentials:
        try:
            await fetch_status(address, _STATUS_S, one)
        except Unreachable as error:
            why = str(error).removeprefix(f"{address}: ")
            continue
        return Answer(address, peer, tag, tcp, True, clock_off_s=await _clock_off_s(address, one))
    with suppress(Unreachable):
        await fetch_status(address, _STATUS_S)
        return Answer(address, peer, tag, tcp, True, insecure=True, clock_off_s=await _clock_off_s(address, None))
    return Answer(address, peer, tag, tcp, why=why)


async def _tcp(address: str) -> Tcp:
    try:
        async with asyncio.timeout(_CONNECT_S):
            _, writer = await asyncio.open_connection(*split_address(address))
    except ConnectionRefusedError:
        return "closed"
    except (OSError, TimeoutError):
        return "silent"
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return "open"


async def _clock_off_s(address: str, credentials: Credentials | None) -> float | None:
    """How far ahead the clock is that dates the answers of a peer."""
    host, port = split_address(address)
    ways: Sequence[tuple[str | None, ssl.SSLContext | None]] = (
        credentials.client_contexts() if credentials is not None else ((None, None),)
    )
    request = f"GET /v1/status HTTP/1.1\r\nHost: {join_address(host, port)}\r\nConnection: close\r\n\r\n"
    for tag, context in ways:
        try:
            async with asyncio.timeout(_STATUS_S):
                reader, writer = await asyncio.open_connection(
                    host, port, ssl=context, server_hostname=tag, limit=_HEAD_BYTES
                )
                try:
                    writer.write(request.encode())
                    head = await reader.readuntil(b"\r\n\r\n")
                finally:
                    writer.close()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            continue
        date = dated(head)
        return None if date is None else (date - datetime.now(UTC)) / timedelta(seconds=1)
    return None


def dated(head: bytes) -> datetime | None:
    """The date in the head of an answer over HTTP; None where there is none that makes sense."""
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"date":
            try:
                date = email.utils.parsedate_to_datetime(value.decode("ascii").strip())
            except (ValueError, TypeError, IndexError, OverflowError):
                return None
            return date.replace(tzinfo=UTC) if date.tzinfo is None else date
    return None


def judge_answers(answers: Sequence[Answer], own: Collection[str]) -> list[Finding]:
    """What is in the way to peers that were given by hand, or announced for one of our own networks.

    One address that answers is enough. What keeps this machine from peers of other networks is none of its business.

    Args:
        own: the tags of our networks.
    """
    told: list[Finding] = []
    by_peer: dict[str, list[Answer]] = {}
    for answer in answers:
        if not answer.peer or answer.tag in own or answer.member:
            by_peer.setdefault(answer.peer or answer.address, []).append(answer)
    for some in by_peer.values():
        reached = next((one for one in some if one.member), None)
        if reached is not None:
            told += _judge_clock(reached)
            continue
        best = min(some, key=lambda one: ("open", "closed", "silent").index(one.tcp))
        port = split_address(best.address)[1]
        given = "" if best.peer else "given by --peer, "
        if best.tcp == "silent":
            text = f"{given or 'heard by multicast, '}but nothing comes back by TCP: a firewall there, or between"
            mend = (
                f"on that machine: ufw allow {port}/tcp, or firewall-cmd --add-port={port}/tcp, and again with "
                "--permanent"
            )
            told.append(problem("firewall", best.address, text, mend))
        elif best.tcp == "closed":
            text = f"{given or 'announced, '}but nobody listens there: that peer ended, or a firewall rejects"
            mend = f"start it again; if it runs, let TCP port {port} in on that machine"
            told.append(problem("nobody listens", best.address, text, mend))
        elif given or "of another network" not in best.why:
            text = f"somebody listens, but will not talk to this machine as to a member: {best.why}"
            mend = "compare p2pfl network list on both; p2pfl network join --replace FILE takes a newer key"
            told.append(problem("not a member", best.address, text, mend))
    return told


def _judge_clock(answer: Answer) -> list[Finding]:
    off = answer.clock_off_s
    if off is None or abs(off) < _CLOCK_OFF_S:
        return []
    text = (
        f"its clock is {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} this machine's; no decision uses a clock"
    )
    return [note("clock", answer.address, text, "timedatectl set-ntp true, for logs that can be compared")]


def judge_tags(
    candidates: Sequence[Candidate], network: str | None, present: dict[str, str], former: dict[str, str]
) -> list[Finding]:
    """Which networks were heard, and whether their keys are here.

    Args:
        candidates: what was heard by multicast.
        network: the one asked about, None for all.
        present, former: the tags of keys on this machine, and their networks.
    """
    told: list[Finding] = []
    counts: dict[str, int] = {}
    for one in candidates:
        counts[one.network] = counts.get(one.network, 0) + 1
    clear = {one.network for one in candidates if len(one.peer) != _ALIAS}
    unknown = {tag: count for tag, count in counts.items() if tag not in present and tag not in former}
    heard = {present[tag] for tag in counts if tag in present}
    for tag, count in counts.items():
        if tag in former:
            text = f"{count} of network {former[tag]!r} still announce a key that was replaced"
            told.append(note("former key", f"tag {tag}", text, "wait a minute: members hand the new key on to them"))
    if network is not None and network not in present.values():
        mend = f"p2pfl network join FILE, a member's file `key`; or, for a new network, p2pfl network create {network}"
        text = f"no key of network {network!r} is on this machine"
        told.append(problem("no key", network, text, mend))
    for tag, count in unknown.items():
        if tag == network or tag in present.values():
            text = f"{count} of a network {tag!r} are --insecure: they and members with a key cannot talk"
            told.append(problem("insecure network", tag, text, "start all of them with the network's key"))
        elif network is not None and network in present.values() and network not in heard:
            text = (
                f"nobody of network {network!r} is heard under the key of this machine, but {count} of another "
                "network: it may be the same one under another key"
            )
            mend = "compare tags by p2pfl network list on both; p2pfl network join --replace FILE takes a newer key"
            told.append(problem("other key", f"tag {tag}", text, mend))
        else:
            if tag in clear:
                text, mend = f"{count} of a network without encryption", "p2pfl start --insecure --network NAME"
            else:
                text, mend = f"{count} of a network whose key is not on this machine", "p2pfl network join FILE"
            told.append(note("foreign network", f"tag {tag}", text, f"if you are to be in it: {mend}"))
    return told


def judge_versions(versions: dict[str, int | None], spoken: tuple[int, int]) -> list[Finding]:
    """Peers whose highest protocol version is below what is spoken here, or above."""
    told: list[Finding] = []
    for label, version in sorted(versions.items()):
        if version is None or spoken[0] <= version <= spoken[1]:
            continue
        text = f"it speaks version {version} of the protocol, this machine {spoken[0]} to {spoken[1]}"
        if version < spoken[0]:
            told.append(problem("old version", label[:16], text, "update p2pfl on that machine"))
        else:  # it may speak older ones, too: the hello shows
            told.append(note("new version", label[:16], text, "update p2pfl on this machine"))
    return told
