"""Where the commands take a network's key from: a file, a hidden prompt, or what this machine remembers."""

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from p2pfl.errors import UsageError

if TYPE_CHECKING:
    from p2pfl.network_key import KeyRing

NO_KEY = """{missing}
make a network:   p2pfl network create {name}
or join one:      p2pfl start --join FILE     (its file `key`, copied from a member; - asks for the token instead)"""

_LIKE_A_TOKEN = re.compile(r":|[A-Za-z2-7]{30}|([A-Za-z2-7]{4,}-){4}")


def read_token(source: str) -> str:
    """The token in a file, or, for `-`, as typed at a prompt that does not show it, or the first line of stdin.

    Raises:
        UsageError: there is none; or `source` is a token itself, which the message does not repeat.
    """
    if source == "-":
        return _typed()
    path = Path(source).expanduser()
    try:
        return path.read_text(encoding="utf-8").strip().partition("\n")[0]
    except (OSError, UnicodeDecodeError, ValueError) as error:
        if _LIKE_A_TOKEN.search(source):
            raise UsageError(
                "a token is not given as an argument, where everybody on this machine can read it (ps) and the shell "
                "keeps it: give a file that holds it, or - and type it at the prompt"
            ) from None
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UsageError(f"the key file {path} cannot be read: {why}") from error


def warn_if_exposed(source: str) -> str:
    """A warning, with its mend, where other users can read the file that a token came from; else nothing."""
    from p2pfl.home_files import readable_by_others

    path = Path(source).expanduser()
    if source == "-" or not readable_by_others(path):
        return ""
    return f"{path} can be read by other users of this machine; remove it, or: chmod 600 {shlex.quote(str(path))}"


def ring_for(network: str | None, join: str | None) -> "KeyRing":
    """The key to start with: of the network that was named, or joined, or the only one that is known.

    Raises:
        UsageError: there is none, and how to make or join a network; or it is not clear which.
    """
    from p2pfl.home import join_network, networks, ring_of
    from p2pfl.network_key import NetworkKey

    if join is not None:
        token = read_token(join)
        name = NetworkKey.of_token(token).name
        if network not in (None, name):
            raise UsageError(f"--join has the key of network {name!r}, not of {network!r}: leave out --network")
        return join_network(token)
    if network is not None:
        ring = ring_of(network)
        if ring is None:
            raise UsageError(NO_KEY.format(missing=f"no key of network {network!r} on this machine;", name=network))
        return ring
    rings = networks()
    if not rings:
        raise UsageError(NO_KEY.format(missing="no network's key on this machine;", name="home"))
    if len(rings) > 1:
        raise UsageError(f"say which network: --network {' or --network '.join(ring.name for ring in rings)}")
    return rings[0]


def named_ring(name: str) -> "KeyRing":
    """The ring of a network of this machine. Raises UsageError where there is none, with those that there are."""
    from p2pfl.home import networks, ring_of

    ring = ring_of(name)
    if ring is None:
        known = ", ".join(ring.name for ring in networks())
        make = f"join it by: p2pfl network join FILE; or make it by: p2pfl network create {name}"
        there = f"there are: {known}" if known else make
        raise UsageError(f"no key of network {name!r} on this machine; {there}")
    return ring


def _typed() -> str:
    if sys.stdin is None or sys.stdin.closed:
        raise UsageError("there is no input to read the token from; give a file")
    if sys.stdin.isatty():
        from getpass import getpass

        token = getpass("token (not shown): ", stream=sys.stderr)
    else:
        token = sys.stdin.readline()
    if not token.strip():
        raise UsageError("no token came: type it, or give the file that holds it")
    return token
