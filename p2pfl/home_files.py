"""The folder of what a machine keeps of its networks: where it is, and how files in it are read and made."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from p2pfl.errors import UsageError
from p2pfl.network_key import check_name

_PRIVATE_FOLDER = 0o700
_T = TypeVar("_T")


def home() -> Path:
    """The folder of all this: `P2PFL_HOME`, or the platform's folder for a user's data."""
    chosen = os.environ.get("P2PFL_HOME")
    if chosen:
        return Path(chosen).expanduser()
    from platformdirs import user_data_path

    return user_data_path("p2pfl", appauthor=False)


def folder_of(network: str) -> Path:
    """Where a network's files are, or would be. Raises UsageError for a name that none can have."""
    check_name(network)
    return home() / "networks" / network


def make_folder(folder: Path) -> None:
    """Make a folder of `home`, for the user's eyes only. Raises UsageError."""
    top = home()
    with writable(folder):
        for one in (*reversed([p for p in folder.parents if p.is_relative_to(top)]), folder):
            one.mkdir(mode=_PRIVATE_FOLDER, parents=one == top, exist_ok=True)


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Tell a disk that fails as a UsageError, with the mend."""
    try:
        yield
    except OSError as error:
        what = error.strerror or str(error)
        raise UsageError(
            f"{error.filename or path} cannot be written to ({what}): make room or set the rights, or give another "
            "folder by P2PFL_HOME"
        ) from error


def read_text(path: Path) -> str | None:
    """The file's text; None where there is no file. Raises UsageError."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UsageError(f"{path} cannot be read: {what}") from error


def read(path: Path, kind: type[_T]) -> _T | None:
    """The file's content; None where there is no file. Raises UsageError; the message repeats nothing of it."""
    text = read_text(path)
    if text is None:
        return None
    try:
        found = msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:  # the latter of what is nested too deep
        raise UsageError(f"{path} is damaged: bring it back from a copy, or remove it") from error
    return found


def readable_by_others(path: Path) -> bool:
    """Whether other users of this machine may read a file; of what cannot be looked at, no."""
    if os.name == "nt":
        return False  # rights are kept in lists there
    try:
        return bool(path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))
    except OSError:
        return False


def writable_by_others(folder: Path) -> bool:
    """Whether a folder is another user's, or others may write to it; of what cannot be looked at, no."""
    if os.name == "nt":
        return False
    try:
        found = folder.stat()
    except OSError:
        return False
    return found.st_uid not in (os.geteuid(), 0) or bool(found.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
