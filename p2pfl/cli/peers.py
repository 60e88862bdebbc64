"""`p2pfl peers`: who is on the network, by mDNS and by address, and what each tells of itself."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated

import msgspec
import typer
from msgspec import Meta
from rich.console import Console
from rich.table import Table
from rich.text import Text

from p2pfl.cli import options
from p2pfl.errors import Unreachable, UsageError

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
    seen, others = asyncio.run(_look(seconds, interface, network, asked))
    if not seen:
        typer.echo(_nobody(seconds, network, others), err=True)
    if json:
        options.print_json({"peers": [asdict(one) for one in seen]})
    elif seen:
        _print(seen, options.console(False))


def read_status(data: bytes) -> Status | None:
    """What a peer says of itself, fit for a terminal; None if no peer of ours would say it so."""
    try:
        status = msgspec.json.decode(data, type=Status)
    except (msgspec.MsgspecError, RecursionError):
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


def printable(text: str) -> str:
    """Foreign text without what could steer a terminal: control characters, line ends, changes of direction."""
    return "".join(character for character in text if character.isprintable())


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


async def _look(
    seconds: float, interface: str | None, network: str | None, addresses: Sequence[str]
) -> tuple[list[Seen], list[str]]:
    """The list, and the names of networks that were heard of but not asked for."""
    from p2pfl.network.mdns import browse

    candidates = []
    if seconds > 0:
        candidates = await browse(seconds, interface, lambda line: typer.echo(f"p2pfl: {line}", err=True))
    wanted = [one for one in candidates if network in (None, one.network)]
    limit = asyncio.Semaphore(_AT_ONCE)
    asked = [(one.addresses, one.peer, one.network) for one in wanted] + [((each,), "", "") for each in addresses]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_ask(*one, limit)) for one in asked]
    seen = [task.result() for task in tasks]
    chosen = merged([one for one in seen if not one.answered or network in (None, one.network)])
    heard = {one.network for one in candidates} | {one.network for one in seen if one.answered}
    return chosen, sorted(heard - {network})


async def _ask(addresses: tuple[str, ...], peer: str, network: str, limit: asyncio.Semaphore) -> Seen:
    """Ask at one address after the other until the peer answers; an empty id takes whoever does."""
    from p2pfl.network.http import fetch_status

    state = NO_ANSWER
    async with limit:
        try:
            async with asyncio.timeout(_PEER_S):
                for address in addresses:
                    try:
                        status = read_status(await fetch_status(address, _ADDRESS_S))
                    except Unreachable as error:
                        state = NOT_A_PEER if str(error).endswith(NOT_A_PEER) else state
                        continue
                    if status is None:
                        state = NOT_A_PEER
                    # Addresses as 172.17.0.1 mean another machine on every machine: its peer is not the announced one.
                    elif peer in ("", status.id):
                        known = addresses if peer else tuple(dict.fromkeys((*addresses, *status.addresses)))
                        return Seen(
                            status.name,
                            status.id,
                            known,
                            status.network,
                            status.model,
                            status.round,
                            status.state,
                            True,
                        )
        except TimeoutError:
            pass
    return Seen("", peer, addresses, network, "", None, state, False)


def _nobody(seconds: float, network: str | None, others: Sequence[str]) -> str:
    if network is not None and others:
        return f"p2pfl: nobody of network {network!r}; heard of: {', '.join(others)}"
    return (
        f"p2pfl: nobody was heard in {seconds:g} s; start a peer with p2pfl start, or, where multicast does not reach, "
        "name one by --peer HOST:PORT"
    )


def _print(seen: Sequence[Seen], console: Console) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("name", "id", "addresses", "network", "model", "round", "state"):
        fixed = title in ("id", "round")
        table.add_column(title, justify="right" if title == "round" else "left", no_wrap=fixed, overflow="fold")
    for one in seen:
        texts = (
            one.name or "–",
            one.id[:_SHOWN_ID] or "–",
            "\n".join(one.addresses),
            one.network or "–",
            one.model or "–",
            "–" if one.round is None else str(one.round),
            one.state or "–",
        )
        styles = ("bold", "dim", "", "", "", "", "" if one.answered else "yellow")
        table.add_row(*(Text(text, style=style) for text, style in zip(texts, styles, strict=True)))
    console.print(table)
