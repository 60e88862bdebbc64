"""`p2pfl doctor`: why peers do not find or reach each other, and what to do about it."""

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from p2pfl.cli import options
from p2pfl.errors import UsageError

EXAMPLES = """Examples:

p2pfl doctor

p2pfl doctor --network home --seconds 10

p2pfl doctor --peer 192.168.1.20:7470 --json"""

_MOST_S = 600.0


def command(
    network: Annotated[
        str | None, typer.Option(help="Look for the peers of this network; of all whose key is here, unless given.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="How long to listen for others.")] = 3.0,
    peer: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST:PORT", help="Knock at this address, too; may be given several times."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Say what keeps this machine's peers from finding and reaching others, and how to mend it.

    The exit status is 0 where all is well, and 1 where there is a problem.
    """
    if not 0.1 <= seconds <= _MOST_S:
        raise UsageError(f"--seconds {seconds:g}: listen for 0.1 to {_MOST_S:g} seconds")
    console = options.console(json)
    from p2pfl.doctor.examination import examine

    with console.status(f"listening for {seconds:g} s …"):
        seen = asyncio.run(examine(network, seconds, tuple(dict.fromkeys(peer or ()))))
    if json:
        options.print_json(_facts(seen))
    else:
        _print(seen, console)
    if not seen.healthy:
        raise typer.Exit(1)


def _facts(seen: Any) -> dict[str, Any]:
    return {
        "healthy": seen.healthy,
        "interfaces": [
            {
                **asdict(nic),
                "own_heard": seen.heard[nic.name].own if nic.name in seen.heard else None,
                "machines_heard": sorted(seen.heard[nic.name].hosts) if nic.name in seen.heard else [],
                "peers_heard": sorted(seen.heard[nic.name].peers) if nic.name in seen.heard else [],
            }
            for nic in seen.nics
        ],
        "announced": [asdict(one) for one in seen.candidates],
        "answers": [asdict(one) for one in seen.answers],
        "findings": [asdict(one) for one in seen.findings],
    }


def _print(seen: Any, console: Console) -> None:
    """Interfaces, peers, findings; what others have said is shown without what could steer a terminal."""
    from p2pfl.plain import printable

    table = _table("interface", "state", "addresses", "own announcement", "machines heard", "peers heard")
    for nic in seen.nics:
        heard = seen.heard.get(nic.name)
        state = ("up" if nic.carrier else "no carrier") if nic.up else "down"
        if not nic.multicast:
            state += ", no multicast"
        own = "–" if heard is None else "heard" if heard.own else "not heard"
        counts = ("–", "–") if heard is None else (str(len(heard.hosts)), str(len(heard.peers)))
        table.add_row(*map(Text, (nic.name, state, "\n".join(nic.addresses) or "–", own, *counts)))
    options.print_table(console, table)
    if seen.answers:
        console.print()
        table = _table("address", "announced as", "network", "TCP", "talks to this machine")
        for one in seen.answers:
            talks = ("in the clear" if one.insecure else "as to a member, by TLS") if one.member else one.why
            texts = (one.address, one.peer[:8] or "–", one.tag or "–", one.tcp, printable(talks))
            table.add_row(*(Text(printable(text)) for text in texts))
        options.print_table(console, table)
    console.print()
    for finding in seen.findings:
        style = "bold red" if finding.level == "problem" else "bold yellow"
        console.print(Text(f"{finding.level}: ", style=style) + Text(printable(f"{finding.place}: {finding.text}")))
        if finding.mend:
            console.print(Text(printable(f"  → {finding.mend}")), soft_wrap=True)
    if seen.healthy:
        console.print(Text("nothing keeps peers from finding and reaching this machine", style="green"))


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in titles:
        widest = max(map(len, title.split()))
        # An address is no address with a break inside.
        table.add_column(title, overflow="fold", min_width=widest, no_wrap=title in ("address", "addresses"))
    return table
