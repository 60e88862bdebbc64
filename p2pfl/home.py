"""What one machine keeps of its networks, under `P2PFL_HOME`: keys, identities, incarnations, who was met.

    networks/NAME/key                     the network's key as a token, one line: the file to copy
    networks/NAME/ring.json               epoch, key, former keys that are honored, tags of older ones, who is banned
    networks/NAME/identities/PEER.json    a peer's private key, and how often it was started
    networks/NAME/peers.json              the members of the last runs: ids, names, addresses

All of it is for the user's eyes only (files 0600, folders 0700) and written whole or not at all.
"""

import os
import re
import secrets
import shlex
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from p2pfl import durable
from p2pfl.errors import UsageError
from p2pfl.file_lock import FileLock, note_of_holder
from p2pfl.home_files import (
    folder_of,
    home,
    make_folder,
    read,
    read_text,
    readable_by_others,
    writable,
    writable_by_others,
)
from p2pfl.identity import SECRET_BYTES, Identity
from p2pfl.network_key import KEY_BYTES, MOST_RETIRED, KeyRing, NetworkKey
from p2pfl.types import PeerId

__all__ = [
    "Held",
    "Known",
    "RingWatch",
    "Running",
    "create_network",
    "exposed",
    "folder_of",
    "hold",
    "home",
    "identities",
    "join_network",
    "key_path",
    "networks",
    "peers_of",
    "remember_peers",
    "remove_network",
    "ring_of",
    "running",
    "store_ring",
]

_PRIVATE = 0o600
_MOST_KNOWN = 256  # peers that are remembered, those of the last run first
_STARTS_SHIFT = 16  # incarnation = starts << 16: room for that many refutations in one run
_NAMESAKES = 1000
_LOOKS = 5  # at a lock that somebody holds: others take it for a moment, to see whether a peer runs


class Known(msgspec.Struct, frozen=True):
    """A peer of an earlier run: where it was, and what to call it."""

    peer: PeerId
    name: str = ""
    addresses: tuple[str, ...] = ()


class _Ring(msgspec.Struct, frozen=True):
    key: str
    epoch: Annotated[int, Meta(ge=0)] = 0
    former: tuple[str, ...] = ()
    banned: tuple[str, ...] = ()
    retired: tuple[str, ...] = ()


class _Stored(msgspec.Struct, frozen=True):
    peer: PeerId  # for who reads the file; what counts is the secret
    secret: Annotated[bytes, Meta(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]
    starts: Annotated[int, Meta(ge=0, lt=1 << 24)] = 0


class _Note(msgspec.Struct, frozen=True):
    pid: int
    tag: str = ""
    banned: int = 0


class Running(msgspec.Struct, frozen=True):
    """A peer that runs on this machine now, and which key it uses."""

    name: str
    pid: int
    tag: str  # of the key it uses, empty while it has not said
    banned: int  # how many ids it refuses


def key_path(network: str) -> Path:
    """The file to copy to the next machine."""
    return folder_of(network) / "key"


# Networks and their keys


def networks() -> list[KeyRing]:
    """The networks whose key is on this machine, by name. Raises UsageError where a file is damaged."""
    folder = home() / "networks"
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []
    return [ring for name in names if (ring := ring_of(name)) is not None]


def create_network(name: str, *, exist_ok: bool = False) -> KeyRing:
    """Make a network with a new key, and keep it on this machine.

    Args:
        exist_ok: give back the network of this name that is here already, instead of refusing.

    Raises:
        UsageError: there is one of this name here, or the folder cannot be written to.
    """
    with _changing(name):
        ring = ring_of(name)
        if ring is not None and exist_ok:
            return ring
        if ring is not None:
            raise UsageError(
                f"there is a network {name!r} on this machine already: use it, give another name, "
                f"or take it away by: p2pfl network remove {name}"
            )
        ring = KeyRing(NetworkKey(name, secrets.token_bytes(KEY_BYTES)))
        _write_ring(ring)
    return ring


def join_network(token: str, *, replace: bool = False) -> KeyRing:
    """Keep a network's key that was made on another machine.

    Args:
        token: as in the file `key` of a member.
        replace: of a network of this name that is here, keep the identities and take this key instead.

    Raises:
        UsageError: this is no token, or there is a network of this name with another key.
    """
    given = KeyRing.of_token(token)
    key = given.key
    with _changing(key.name):
        ring = ring_of(key.name)
        if ring is not None and ring.key == key:
            return ring
        if ring is not None and not replace:
            former = key in ring.former
            raise UsageError(
                f"there is a network {key.name!r} on this machine with another key"
                + (", which replaced this one" if former else "")
                + ": where it has been rotated meanwhile, take the newer key by: p2pfl network join --replace FILE"
            )
        if ring is not None and given.epoch < ring.epoch:
            raise UsageError(
                f"this is key number {given.epoch} of network {key.name!r}, and number {ring.epoch} is here: take the "
                f"file `key` of a member again, or go back for good by: p2pfl network remove {key.name}"
            )
        kept = KeyRing(key, given.epoch, banned=ring.banned if ring is not None else frozenset())
        kept = kept.after(ring) if ring is not None else kept
        _write_ring(kept)
    return kept


def ring_of(name: str) -> KeyRing | None:
    """What this machine goes by in a network; None where it has no key of it.

    Raises:
        UsageError: its files cannot be read.
    """
    folder = folder_of(name)
    path = folder / "ring.json"
    stored = read(path, _Ring)
    if stored is None:
        token = read_text(folder / "key")
        return None if token is None else _ring_in(folder / "key", token, name)
    return KeyRing(
        _ring_in(path, stored.key, name).key,
        stored.epoch,
        tuple(_ring_in(path, token, name).key for token in stored.former),
        frozenset(stored.banned),
        stored.retired[:MOST_RETIRED],
    )


def store_ring(ring: KeyRing) -> KeyRing:
    """Keep a ring, joined with what was stored meanwhile (`KeyRing.joined`); returns the one that stands.

    Raises:
        UsageError: the folder cannot be written to.
    """
    with _changing(ring.name):
        stored = ring_of(ring.name)
        if stored is not None:
            joined = stored.joined(ring)
            former = ring.former if joined.key == ring.key else joined.former
            if stored.key == ring.key:  # either may have retired a key
                former = tuple(key for key in joined.former if key in ring.former)
            ring = joined.honoring(former)
        if stored != ring:
            _write_ring(ring)
    return ring


def remove_network(name: str) -> None:
    """Take away all that is known of a network: keys, identities, peers.

    Raises:
        UsageError: there is none, or a peer of it is running.
    """
    folder = folder_of(name)
    if not folder.is_dir():
        raise UsageError(f"there is no network {name!r} on this machine; p2pfl network list shows which there are")
    here = running(name)
    if here:
        raise UsageError(f"{', '.join(one.name for one in here)} of network {name!r} is running: stop it first")
    with writable(folder):
        shutil.rmtree(folder)


class RingWatch:
    """Notices that a network's ring was changed by another process, such as `p2pfl network rotate`."""

    def __init__(self, network: str) -> None:
        self._network = network
        self._path = folder_of(network) / "ring.json"
        self._seen = self._state()

    def news(self) -> KeyRing | None:
        """The ring, if it was written since the last look; costs one look at the folder otherwise.

        Raises:
            UsageError: it was, and cannot be read.
        """
        state = self._state()
        if state == self._seen:
            return None
        self._seen = state
        return ring_of(self._network)

    def _state(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return (found.st_ino, found.st_mtime_ns, found.st_size)


# Identities


class Held:
    """A peer's identity, while no other process can be that peer. A context manager; or call `release`."""

    def __init__(self, path: Path, stored: _Stored, lock: FileLock) -> None:
        self.path = path
        self.identity = Identity(stored.secret)
        self.incarnation = stored.starts << _STARTS_SHIFT
        self._lock = lock

    def uses(self, ring: KeyRing) -> None:
        """Let `p2pfl network rotate` and `list` know which key this peer goes by."""
        note = _Note(os.getpid(), ring.key.tag, len(ring.banned))
        try:
            self._lock.note(msgspec.json.encode(note))
        except OSError:
            return  # a full disk; it is for information only

    def release(self) -> None:
        """Let another process be this peer."""
        self._lock.release()

    def __enter__(self) -> "Held":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def hold(
    network: str,
    name: str,
    *,
    file: Path | str | None = None,
    peer: PeerId | None = None,
    strict: bool = False,
    after: int = 0,
) -> Held:
    """Take the identity of a peer of this machine, count this start of it on disk, and hold it.

    Args:
        network: whose peer it is.
        name: the peer's name. Where a process of that name runs already, the second one is another peer, of the next
            file: `NAME-2.json`.
        file: this file and no other; made where there is none.
        peer: the identity of this id and no other, as when a run is resumed.
        strict: refuse where the identity of this name is in use, instead of taking the next one.
        after: an incarnation that the others may have seen: the new one is above it.

    Raises:
        UsageError: the identity is in use, not there, or cannot be read or written; the message names the file.
    """
    folder = folder_of(network) / "identities"
    make_folder(folder)
    if file is not None:
        path = Path(file).expanduser()
        return _held_alone(path, after, _whose(path, peer))
    if peer is not None:
        return _held_alone(_path_of(folder, peer, name), after, peer)
    stem = re.sub(r"[^\w. -]+", "-", name).strip(". ") or "peer"
    if strict:
        return _held_alone(folder / f"{stem}.json", after, None)
    for number in range(1, _NAMESAKES):
        held = _held(folder / (f"{stem}.json" if number == 1 else f"{stem}-{number}.json"), after)
        if held is not None:
            return held
    raise UsageError(f"{_NAMESAKES} peers named {name!r} run in network {network!r}; give another name")


def running(network: str) -> list[Running]:
    """The peers of a network that run on this machine now, with identities of `P2PFL_HOME`."""
    found = []
    for path in sorted((folder_of(network) / "identities").glob(".*.json.lock")):
        note = note_of_holder(path)
        if note is not None:
            name = path.name.removeprefix(".").removesuffix(".json.lock")
            try:
                told = msgspec.json.decode(note, type=_Note)
            except msgspec.MsgspecError:
                told = _Note(0)  # it has only just begun
            found.append(Running(name, told.pid, told.tag, told.banned))
    return found


def identities(network: str) -> dict[str, PeerId]:
    """The peers of a network whose identity is on this machine: id by the file's name without `.json`."""
    found = {}
    for path in sorted((folder_of(network) / "identities").glob("*.json")):
        stored = read(path, _Stored)
        if stored is not None:
            found[path.stem] = Identity(stored.secret).peer
    return found


# Who was met


def remember_peers(network: str, peers: Iterable[Known]) -> None:
    """Keep who was there in a run, to look for them at their addresses next time. Raises UsageError."""
    latest = {one.peer: one for one in peers}
    with _changing(network):
        kept = {**latest, **{one.peer: one for one in peers_of(network) if one.peer not in latest}}
        path = folder_of(network) / "peers.json"
        with writable(path):
            durable.write(path, msgspec.json.encode(list(kept.values())[:_MOST_KNOWN]) + b"\n", mode=_PRIVATE)


def peers_of(network: str) -> tuple[Known, ...]:
    """The peers of earlier runs, the last run's first; none where the file is missing or damaged: it is no loss."""
    try:
        return read(folder_of(network) / "peers.json", tuple[Known, ...]) or ()
    except UsageError:
        return ()


# Files


def exposed(network: str, *more: Path) -> list[str]:
    """One warning, with its mend, for each file that others can read, and each folder in which they can put theirs."""
    folder = folder_of(network)
    files = (folder / "key", folder / "ring.json", *sorted((folder / "identities").glob("*.json")), *more)
    readable = [
        f"{path} can be read by other users of this machine; mend it by: chmod 600 {shlex.quote(str(path))}"
        for path in files
        if readable_by_others(path)
    ]
    loose = [
        f"other users of this machine can put their own files into {path}; mend it by: "
        f"chmod 700 {shlex.quote(str(path))} (as its owner)"
        for path in (home(), home() / "networks", folder, folder / "identities")
        if writable_by_others(path)
    ]
    return readable + loose


def _write_ring(ring: KeyRing) -> None:
    """The ring first: it is what counts, and a crash in between leaves a `key` that the ring still honors."""
    folder = folder_of(ring.name)
    former = tuple(key.token for key in ring.former)
    stored = _Ring(ring.key.token, ring.epoch, former, tuple(sorted(ring.banned)), ring.retired)
    with writable(folder):
        durable.write(folder / "ring.json", msgspec.json.format(msgspec.json.encode(stored)) + b"\n", mode=_PRIVATE)
        durable.write(folder / "key", ring.token.encode() + b"\n", mode=_PRIVATE)


def _path_of(folder: Path, peer: PeerId, name: str) -> Path:
    for path in sorted(folder.glob("*.json")):
        stored = read(path, _Stored)
        if stored is not None and Identity(stored.secret).peer == peer:
            return path
    raise UsageError(
        f"{folder} has no identity of {name} with the id {peer}: go on where the run began, copy the file from there "
        "and give --identity FILE, or start without --resume as a new peer"
    )


def _whose(path: Path, peer: PeerId | None) -> PeerId | None:
    if peer is not None and not path.exists():
        raise UsageError(f"there is no identity {path}; without --resume a new one is made there")
    return peer


def _held_alone(path: Path, after: int, peer: PeerId | None) -> Held:
    held = _held(path, after, peer)
    if held is None:
        raise UsageError(
            f"the identity {path} is in use by another process: stop that peer, or give this one another "
            "--identity or --name"
        )
    return held


def _held(path: Path, after: int, peer: PeerId | None = None) -> Held | None:
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        if not lock.take() and not _again(lock):
            return None
        try:
            stored = read(path, _Stored)
            if stored is None:
                secret = secrets.token_bytes(SECRET_BYTES)
                stored = _Stored(Identity(secret).peer, secret)
            own = Identity(stored.secret).peer
            if peer is not None and own != peer:
                raise UsageError(f"{path} is the identity of another peer, {own}: the run to go on with is by {peer}")
            starts = max(stored.starts, after >> _STARTS_SHIFT) + 1
            stored = _Stored(own, stored.secret, starts)
            durable.write(path, msgspec.json.encode(stored) + b"\n", mode=_PRIVATE)
        except BaseException:
            lock.release()
            raise
        return Held(path, stored, lock)


def _again(lock: FileLock) -> bool:
    for _ in range(_LOOKS):
        time.sleep(0.02)  # a lock has no queue: whoever looks at it lets go in less
        if lock.take():
            return True
    return False


@contextmanager
def _changing(network: str) -> Iterator[None]:
    """One process at a time changes a network's files."""
    folder = folder_of(network)
    make_folder(folder)
    lock = FileLock(folder / ".lock")
    with writable(folder):
        lock.take(wait=True)
    try:
        yield
    finally:
        lock.release()


def _ring_in(path: Path, token: str, name: str) -> KeyRing:
    try:
        ring = KeyRing.of_token(token)
    except UsageError as error:
        raise UsageError(f"{path} is damaged ({error}): bring it back from a copy, or remove it") from error
    if ring.name != name:
        raise UsageError(f"{path} has the key of network {ring.name!r}: move the folder to that name, or remove it")
    return ring
