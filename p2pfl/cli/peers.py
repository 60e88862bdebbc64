"""`p2pfl peers`: who is on the network, by mDNS and by address, and what each tells of itself.

Peers of encrypted networks tell it to holders of their key alone; the others of them are counted, and not named.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer
from msgspec import Meta
from rich.console import Console
from rich.table import Table
from rich.text import Text

from p2pfl.cli import options
from p2pfl.errors import Unreachable, UsageError
from p2pfl.plain import printable

if TYPE_CHECKING:
    from p2pfl.network.discovery import Candidate
    from p2pfl.network.tls import Credentials
    from p2pfl.network_key import KeyRing

EXAMPLES = """Examples:

p2pfl peers

p2pfl peers --seconds 5 --network home

p2pfl peers --seconds 0 --peer 192.168.1.20:7470 --json"""

NO_ANSWER = "no answer"
NOT_A_PEER = "not a p2pfl peer"

_MOST_S = 3600.0
_AT_ONCE = 32  # peers asked at the same time
_ADDRESS_S = 1.5  # for one address
_PEER_S = 4.0  # for all addresses of one peer
_SHOWN_ID = 8  # characters
_ALIAS = 26  # characters of what stands for the id of a peer of an encrypted network

_Word = Annotated[str, Meta(max_length=128)]


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What a stranger says of itself."""

    name: _Word
    id: _Word
    addresses: Annotated[tuple[_Word, ...], Meta(max_length=64)] = ()
    network: _Word = ""
    model: _Word = ""
    round: Annotated[int, Meta(ge=0, le=1 << 53)] = 0
    state: _Word = ""


@dataclass(frozen=True)
class Seen:
    """One line of the list: a peer that answered, or an announcement or address behind which none did."""

    name: str
    id: str
    addresses: tuple[str, ...]
    network: str
    model: str
    round: int | None
    state: str
    answered: bool
    encrypted: bool | None = None  # None where that is not known


def command(
    seconds: Annotated[float, typer.Option(help="How long to listen; 0 asks the addresses of --peer alone.")] = 2.0,
    interface: Annotated[
        str | None, typer.Option(help="Name or address of the network interface to listen on; all unless given.")
    ] = None,
    network: Annotated[str | None, typer.Option(help="List the peers of this network alone.")] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST:PORT", help="Ask this address, too; may be given several times."),
    ] = None,
    json: options.Json = False,
) -> None:
    """List the peers on the local network, and what each is doing."""
    asked = tuple(dict.fromkeys(peer or ()))
    _check(seconds, asked)
    heard = asyncio.run(_look(seconds, interface, _ways(network), network, asked))
    if not heard.seen:
        typer.echo(_nobody(seconds, network, heard), err=True)
    if json:
        options.print_json({"peers": [asdict(one) for one in heard.seen], "strangers": heard.strangers})
        return
    if heard.seen:
        _print(heard.seen, options.console(False))
        if heard.strangers:
            options.console(False).print(Text(_strangers(heard.strangers)))


def read_status(data: bytes) -> Status | None:
    """What a peer says of itself, fit for a terminal; None if no peer of ours would say it so."""
    try:
        status = msgspec.json.decode(data, type=Status)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return Status(
        name=printable(status.name),
        id=printable(status.id),
        addresses=tuple(printable(address) for address in status.addresses),
        network=printable(status.network),
        model=printable(status.model),
        round=status.round,
        state=printable(status.state),
    )


def merged(seen: Sequence[Seen]) -> list[Seen]:
    """One line a peer, where it was found in several ways; an address that leads to a listed peer is not listed again.

    By network and name, those without an answer last.
    """
    answered: dict[str, Seen] = {}
    for one in seen:
        if one.answered:
            known = answered.get(one.id, one)
            answered[one.id] = replace(known, addresses=tuple(dict.fromkeys((*known.addresses, *one.addresses))))
    reached = {address for one in answered.values() for address in one.addresses}
    silent = {
        (one.id, one.addresses): one
        for one in seen
        if not one.answered and one.id not in answered and not reached.issuperset(one.addresses)
    }
    return sorted((*answered.values(), *silent.values()), key=lambda one: (not one.answered, one.network, one.name))


def _check(seconds: float, addresses: Sequence[str]) -> None:
    from p2pfl.network.discovery import split_address

    if not 0 <= seconds <= _MOST_S:
        raise UsageError(f"--seconds {seconds:g}: listen for 0 to {_MOST_S:g} seconds")
    if seconds == 0 and not addresses:
        raise UsageError("--seconds 0 asks named addresses alone: give --peer HOST:PORT, or more seconds")
    for address in addresses:
        try:
            split_address(address)
        except ValueError as error:
            raise UsageError(f"--peer: {error}, as 192.168.1.20:7470") from error


@dataclass(frozen=True)
class _Heard:
    seen: list[Seen]
    others: list[str]  # networks in the clear that were heard of but not asked for
    strangers: int  # peers of networks whose key is not here


@dataclass(frozen=True)
class _Way:
    """How to ask the peers of a network whose key is on this machine."""

    ring: "KeyRing"
    credentials: "Credentials"


def _ways(network: str | None) -> list[_Way]:
    """One for each network of this machine, or for the one asked for, by an identity made for this moment."""
    import secrets

    from p2pfl.home import networks
    from p2pfl.identity import SECRET_BYTES, Identity

    rings = [ring for ring in networks() if network in (None, ring.name)]
    if not rings:
        return []
    from p2pfl.network.tls import Credentials

    identity = Identity(secrets.token_bytes(SECRET_BYTES))
    return [_Way(ring, Credentials(identity, ring)) for ring in rings]


async def _look(
    seconds: float, interface: str | None, ways: Sequence[_Way], network: str | None, addresses: Sequence[str]
) -> _Heard:
    """Listen, and ask whoever may be asked."""
    from p2pfl.network.mdns import browse

    candidates: Sequence[Candidate] = ()
    if seconds > 0:
        candidates = await browse(seconds, interface, lambda line: typer.echo(f"p2pfl: {line}", err=True))
    limit = asyncio.Semaphore(_AT_ONCE)
    async with asyncio.TaskGroup() as group:
        tasks = []
        strangers = 0
        for one in candidates:
            way = next((way for way in ways if one.network in {key.tag for key in way.ring.keys}), None)
            if way is not None:
                tasks.append(group.create_task(_ask_member(one.addresses, one.peer, way, limit)))
            elif len(one.peer) == _ALIAS:
                strangers += 1
            elif network in (None, one.network):
                tasks.append(group.create_task(_ask(one.addresses, one.peer, one.network, limit)))
        tasks += [group.create_task(_ask_address(address, ways, limit)) for address in addresses]
    seen = [task.result() for task in tasks]
    chosen = merged([one for one in seen if not one.answered or network in (None, one.network)])
    heard = {one.network for one in candidates if len(one.peer) != _ALIAS}
    heard |= {one.network for one in seen if one.answered}
    return _Heard(chosen, sorted(heard - {network}), strangers)


async def _ask_member(addresses: tuple[str, ...], alias: str, way: _Way, limit: asyncio.Semaphore) -> Seen:
    """Ask a peer of a network whose key is here, over a link that proves that it holds the key, too."""

    def known(id: str) -> bool:
        return alias in ("", *(key.alias(id) for key in way.ring.keys))

    seen = await _asked(addresses, known, way.credentials, limit)
    return seen or Seen("", alias, addresses, way.ring.name, "", None, NO_ANSWER, False, True)


async def _ask(addresses: tuple[str, ...], peer: str, network: str, limit: asyncio.Semaphore) -> Seen:
    """Ask a peer of a network in the clear."""
    seen = await _asked(addresses, lambda id: peer == id, None, limit)
    return seen or Seen("", peer, addresses, network, "", None, NO_ANSWER, False, False)


async def _ask_address(address: str, ways: Sequence[_Way], limit: asyncio.Semaphore) -> Seen:
    """Ask whoever is at an address: by each key of this machine, and in the clear."""
    state = NO_ANSWER
    for credentials in (*(way.credentials for way in ways), None):
        seen = await _asked((address,), lambda _: True, credentials, limit)
        if seen is not None and seen.answered:
            known = tuple(dict.fromkeys((*seen.addresses, address)))
            return replace(seen, addresses=known)
        if seen is not None:
            state = seen.state
    return Seen("", "", (address,), "", "", None, state, False)


async def _asked(
    addresses: tuple[str, ...],
    expected: Callable[[str], bool],
    credentials: "Credentials | None",
    limit: asyncio.Semaphore,
) -> Seen | None:
    """Ask at one address after the other until the peer answers whose id is expected; None where nobody does."""
    from p2pfl.network.http import fetch_status

    other = None
    async with limit:
        try:
            async with asyncio.timeout(_PEER_S):
                for address in addresses:
                    try:
                        status = read_status(await fetch_status(address, _ADDRESS_S, credentials))
                    except Unreachable as error:
                        status = None
                        if not str(error).endswith(NOT_A_PEER):
                            continue
                    if status is None:
                        other = Seen("", "", addresses, "", "", None, NOT_A_PEER, False)
                    # Addresses as 172.17.0.1 mean another machine on every machine: its peer is not the announced one.
                    elif expected(status.id):
                        return Seen(
                            status.name,
                            status.id,
                            addresses,
                            status.network,
                            status.model,
                            status.round,
                            status.state,
                            True,
                            credentials is not None,
                        )
        except TimeoutError:
            pass
    return other


def _nobody(seconds: float, network: str | None, heard: _Heard) -> str:
    strangers = f"; {_strangers(heard.strangers)}" if heard.strangers else ""
    if network is not None and heard.others:
        return f"p2pfl: nobody of network {network!r}; heard of: {', '.join(heard.others)}{strangers}"
    who = (
        "nobody" if not heard.strangers else f"nobody of {'a network' if network is None else repr(network)} known here"
    )
    return (
        f"p2pfl: {who} was heard in {seconds:g} s; start a peer with p2pfl start, or, where multicast does not reach, "
        f"name one by --peer HOST:PORT{strangers}"
    )


def _strangers(count: int) -> str:
    """What a stranger may know of them."""
    return f"{count} peer{'s' * (count > 1)} of networks whose key is not on this machine"


def _print(seen: Sequence[Seen], console: Console) -> None:
    """A table; on a terminal too narrow for it the addresses stand below, as none may be broken."""
    table = _table(seen, ("name", "id", "addresses", "network", "TLS", "model", "round", "state"))
    if options.narrowest(table) <= console.width:
        console.print(table)
        return
    options.print_table(console, _table(seen, ("name", "id", "network", "TLS", "model", "round", "state")))
    for one in seen:
        for address in one.addresses:
            console.print(Text(f"{one.name or one.id[:_SHOWN_ID] or '–'}  {address}"), soft_wrap=True)


def _table(seen: Sequence[Seen], titles: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in titles:
        fixed = title in ("id", "addresses", "TLS", "round")
        justify: Literal["left", "right"] = "right" if title == "round" else "left"
        table.add_column(title, justify=justify, no_wrap=fixed, overflow="fold", min_width=len(title))
    for one in seen:
        cells = {
            "name": Text(one.name or "–", style="bold"),
            "id": Text(one.id[:_SHOWN_ID] or "–", style="dim"),
            "addresses": Text("\n".join(one.addresses)),
            "network": Text(one.network or "–"),
            "TLS": Text(
                {True: "yes", False: "no", None: "–"}[one.encrypted], style="red" if one.encrypted is False else ""
            ),
            "model": Text(one.model or "–"),
            "round": Text("–" if one.round is None else str(one.round)),
            "state": Text(one.state or "–", style="" if one.answered else "yellow"),
        }
        table.add_row(*(cells[title] for title in titles))
    return table
