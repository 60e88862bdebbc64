"""`p2pfl network`: make a network's key, hand it on, change it, and shut somebody out."""

import secrets
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from p2pfl.cli import options
from p2pfl.cli.keys import named_ring, read_token, warn_if_exposed
from p2pfl.cli.options import print_json
from p2pfl.errors import UsageError

if TYPE_CHECKING:
    from p2pfl.home import Running
    from p2pfl.network_key import KeyRing

app = typer.Typer(
    help="Make a network's key, hand it on, change it, and shut somebody out.",
    epilog="Examples:\n\np2pfl network create home\n\np2pfl network list\n\np2pfl network rotate home\n\n"
    "p2pfl network ban home bob",
    no_args_is_help=True,
)

_TAKEN_S = 5.0  # for the peers that run here to notice another key
_SHORTEST_ID = 4  # characters of an id that may stand for the whole

Name = Annotated[str, typer.Argument(metavar="NAME", help="The network's name.")]


@app.command(epilog="Examples:\n\np2pfl network create home\n\np2pfl network create lab --json")
def create(name: Name, json: options.Json = False) -> None:
    """Make a network: a key of 256 bits, whose holders are its members."""
    from p2pfl.home import create_network, key_path

    ring = create_network(name)
    path = key_path(name)
    if json:
        print_json({"name": name, "token": ring.token, "file": str(path), "tag": ring.key.tag})
        return
    console = options.console(False)
    _say(console, f"Network {name!r} is made. Whoever holds its key is a member. The key is in")
    _say(console, f"  {path}")
    if sys.stdout.isatty():
        _say(console, "and, to type at a prompt:")
        _say(console, f"  {ring.token}")
    else:
        _say(console, f"and is shown, to type at a prompt, in a terminal by:  p2pfl network token {name}")
    _say(console, "Here (it learns the embedded mnist10k; add --data for data of your own, or --part 1/2 for a half):")
    _say(console, f"  p2pfl start --network {name}")
    _say(
        console, "On each other machine, with a copy of that file (or - instead of it, to type the token), add the same"
    )
    _say(console, "or, for the other half, --part 2/2:")
    _say(console, "  p2pfl start --join key")


@app.command(
    epilog="Examples:\n\np2pfl network join key\n\np2pfl network join -\n\np2pfl network join --replace key",
)
def join(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A copy of a member's file `key`; - asks for the token.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Take this key instead of the one that is here, and keep the identities.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Keep the key of a network that was made elsewhere, without starting a peer."""
    from p2pfl.home import join_network, key_path

    ring = join_network(read_token(file), replace=replace)
    warning = warn_if_exposed(file)
    if warning:
        typer.echo(f"p2pfl: {warning}", err=True)
    if json:
        print_json({"name": ring.name, "file": str(key_path(ring.name)), "tag": ring.key.tag, "epoch": ring.epoch})
        return
    _say(options.console(False), f"The key of network {ring.name!r} is kept; next:")
    _say(options.console(False), f"  p2pfl start --network {ring.name}")


@app.command(name="list", epilog="Examples:\n\np2pfl network list\n\np2pfl network list --json")
def list_(json: options.Json = False) -> None:
    """List the networks whose key is on this machine; never shows a key."""
    from p2pfl.home import exposed, identities, key_path, networks, running

    told: list[dict[str, Any]] = []
    for ring in networks():
        for warning in exposed(ring.name):
            typer.echo(f"p2pfl: {warning}", err=True)
        told.append(
            {
                "name": ring.name,
                "epoch": ring.epoch,
                "tag": ring.key.tag,
                "former": len(ring.former),
                "banned": sorted(ring.banned),
                "identities": identities(ring.name),
                "running": [one.name for one in running(ring.name)],
                "file": str(key_path(ring.name)),
            }
        )
    if json:
        print_json({"networks": told})
    elif told:
        _table(told, options.console(False))
    else:
        typer.echo("p2pfl: no network's key on this machine; make one by: p2pfl network create home", err=True)


@app.command(epilog="Examples:\n\np2pfl network token home\n\np2pfl network token home --json")
def token(name: Name, json: options.Json = False) -> None:
    """Show a network's key as a token to type on another machine; in a terminal, or as JSON."""
    from p2pfl.home import key_path

    ring = named_ring(name)
    if json:
        print_json({"name": name, "token": ring.token, "file": str(key_path(name)), "tag": ring.key.tag})
    elif sys.stdout.isatty():
        typer.echo(ring.token)
    else:
        raise UsageError(f"a token is shown in a terminal alone, or by --json; or copy the file {key_path(name)}")


@app.command(epilog="Examples:\n\np2pfl network rotate home\n\np2pfl network rotate home --json")
def rotate(name: Name, json: options.Json = False) -> None:
    """Give a network a new key; peers that run hand it to all others, and none misses a round."""
    _change(named_ring(name), None, json)


@app.command(epilog="Examples:\n\np2pfl network ban home bob\n\np2pfl network ban home 5q2fh7ra --json")
def ban(
    name: Name,
    peer: Annotated[str, typer.Argument(metavar="PEER", help="Its id, the first letters of it, or its name.")],
    json: options.Json = False,
) -> None:
    """Shut a peer out: refuse its id, and give the network a new key, which all others are handed."""
    ring = named_ring(name)
    _change(ring, _banned(ring, peer), json)


@app.command(epilog="Example:\n\np2pfl network retire home")
def retire(name: Name, json: options.Json = False) -> None:
    """Honor former keys no longer, on this machine alone: each other one does so in its own time, or by this command.

    Who slept through the rotation needs the new token; links that began under a former key are closed, and made anew.
    """
    from p2pfl.home import store_ring

    ring = named_ring(name)
    store_ring(ring.without_former())
    if json:
        print_json({"name": name, "epoch": ring.epoch, "tag": ring.key.tag, "retired": len(ring.former)})
        return
    many = f"{len(ring.former)} former key{'s' * (len(ring.former) > 1)}"
    text = f"{many} of network {name!r} {'are' if len(ring.former) > 1 else 'is'} honored no longer on this machine"
    _say(options.console(False), text if ring.former else f"network {name!r} has no former keys")
    if ring.former:
        _say(options.console(False), "each other machine does so in its own time, or by the same command there")


@app.command(epilog="Examples:\n\np2pfl network remove home\n\np2pfl network remove home --yes")
def remove(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: options.Json = False,
) -> None:
    """Forget a network: its key, the identities of its peers, and who was met there."""
    from p2pfl.home import folder_of, identities, remove_network

    if not folder_of(name).is_dir():
        remove_network(name)  # which says so
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"this takes away the key of network {name!r} for ever; give --yes if you mean it")
        many = len(identities(name))
        what = f"the key of network {name!r} and {many} identit{'y' if many == 1 else 'ies'}"
        typer.confirm(f"Remove {what} from this machine, for ever?", abort=True, err=True)
    remove_network(name)
    if json:
        print_json({"name": name, "removed": True})
    else:
        _say(options.console(False), f"network {name!r} is removed from this machine; other members keep it")


# Rotating and banning


def _change(ring: "KeyRing", banned: str | None, json: bool) -> None:
    """Store another ring, and see whether the peers that run here take it up."""
    from p2pfl.home import key_path, running, store_ring
    from p2pfl.network_key import KEY_BYTES, NetworkKey
    from p2pfl.protocol.rekeying import MOST_BANNED

    if len(ring.banned) >= MOST_BANNED:
        raise UsageError(f"{MOST_BANNED} peers are banned from network {ring.name!r}: make a new network instead")
    changed = ring.rotated(NetworkKey(ring.name, secrets.token_bytes(KEY_BYTES)), () if banned is None else (banned,))
    if banned is not None:
        changed = changed.without_former()  # the banned peer holds them
    changed = store_ring(changed)
    here = running(ring.name)
    took: set[str] = set()
    if here:
        with options.console(json).status("the peers that run here take up the new key …"):
            took = _taken_up(changed, here)
    path = key_path(ring.name)
    if json:
        told: dict[str, Any] = {"name": ring.name, "epoch": changed.epoch, "tag": changed.key.tag, "file": str(path)}
        told["former"] = len(changed.former)
        told["running"] = {one.name: one.name in took for one in here}
        print_json(told if banned is None else {**told, "banned": banned})
        return
    console = options.console(False)
    if banned is not None:
        _say(console, f"{banned} is refused in network {ring.name!r} from now on, whatever key it holds.")
    _say(console, f"Network {ring.name!r} has a new key, number {changed.epoch}, in")
    _say(console, f"  {path}")
    for line in _consequences(here, took, banned is not None):
        _say(console, line)


def _consequences(here: "Sequence[Running]", took: set[str], ban: bool) -> list[str]:
    """Who has the new key, who will get it, and who must be given it."""
    by_hand = "  p2pfl network join --replace key"
    if not here and ban:
        return [
            "No peer runs here to hand it on, and the former key opens nothing any more: give that file to every other",
            "member, and there",
            by_hand,
        ]
    if not here:
        lines = ["No peer runs here: the others get the new key from the next one that does."]
    else:
        lines = [_running_words(here, took)]
    if not ban:
        from p2pfl.belonging import FORMER_S

        lines.append(f"Who comes with the former key within {FORMER_S / 60:g} minutes is let in and given the new one;")
        lines.append("a member that sleeps for longer needs that file, and there")
        return [*lines, by_hand]
    lines.append("The former key opens nothing any more: give a member that sleeps now that file, and there")
    return [*lines, by_hand, "Who held the key may have made itself a second id: look who is there by  p2pfl peers"]


def _running_words(here: "Sequence[Running]", took: set[str]) -> str:
    if not here:
        return "No peer runs here: the others get the new key once one does and meets them."
    waiting = [one.name for one in here if one.name not in took]
    if not waiting:
        return f"{', '.join(sorted(took))} took it up, and hands it to all others."
    words = f"{', '.join(sorted(took))} took it up; " if took else ""
    return f"{words}{', '.join(waiting)} runs here and has not taken it up yet: look again by p2pfl network list."


def _taken_up(ring: "KeyRing", here: "Sequence[Running]") -> set[str]:
    """Names of the peers that have said within a while that they use the ring; those that ended meanwhile left out."""
    from p2pfl.home import running

    names = {one.name for one in here}
    until = time.monotonic() + _TAKEN_S
    while True:
        now = {one.name: one for one in running(ring.name)}
        took = {
            name
            for name in names & now.keys()
            if now[name].tag == ring.key.tag and now[name].banned >= len(ring.banned)
        }
        if took == names & now.keys() or time.monotonic() > until:
            return took
        time.sleep(0.1)  # between looks at files of other processes, which nothing announces; for a few seconds at most


def _banned(ring: "KeyRing", peer: str) -> str:
    """The id that is meant: a whole one, the first letters of a known one, or a known name.

    Raises:
        UsageError: nobody is, or more than one, or a peer of this machine.
    """
    from p2pfl.home import identities, peers_of

    own = identities(ring.name)
    names = {one.peer: one.name for one in peers_of(ring.name)} | {id: name for name, id in own.items()}
    whole = len(peer) == 52 and all(letter in "abcdefghijklmnopqrstuvwxyz234567" for letter in peer)
    found = {peer} if whole else {id for id, name in names.items() if name == peer}
    if not found and len(peer) >= _SHORTEST_ID:
        found = {id for id in names if id.startswith(peer.lower())}
    if not found:
        raise UsageError(
            f"no peer {peer!r} was met in network {ring.name!r} by this machine; give its whole id, as "
            f"p2pfl peers --network {ring.name} --json tells it"
        )
    if len(found) > 1:
        several = ", ".join(f"{id[:12]} ({names[id]})" for id in sorted(found))
        raise UsageError(f"{peer!r} may be {several}: give more letters of the id")
    (id,) = found
    if id in own.values():
        raise UsageError(f"{peer!r} is a peer of this machine: stop it, or remove the network, instead")
    if id in ring.banned:
        raise UsageError(f"{id} is banned from network {ring.name!r} already")
    return id


def _table(told: Sequence[dict[str, Any]], console: Console) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("network", "tag", "key", "former keys", "banned", "peers of this machine"):
        table.add_column(title, justify="left" if title in ("network", "tag", "peers of this machine") else "right")
    for one in told:
        peers = ", ".join(
            f"{name} {id[:8]}" + (" (running)" if name in one["running"] else "")
            for name, id in one["identities"].items()
        )
        texts = (one["name"], one["tag"], str(one["epoch"]), str(one["former"]), str(len(one["banned"])), peers or "–")
        table.add_row(*(Text(text, style="bold" if index == 0 else "") for index, text in enumerate(texts)))
    console.print(table)


def _say(console: Console, text: str) -> None:
    """A line that is not wrapped, as it may be copied."""
    console.print(Text(text), soft_wrap=True)
