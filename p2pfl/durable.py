"""Files that survive a crash: whoever reads one finds what was written last or what was there before, all of it."""

import contextlib
import itertools
import os
import secrets
from pathlib import Path

# Names the process together with its id: a container gives each of its lives the same id.
_LIFE = secrets.token_hex(4)
_count = itertools.count()


def write(path: Path, *parts: bytes | memoryview, mode: int = 0o644, previous: Path | None = None) -> None:
    """Replace a file by the joined parts, and return once the disk has it.

    A temporary file beside it is written, synced and renamed, then the folder is synced: a crash at any instant, of the
    process or of the machine, leaves the old file or the new one. Temporaries of this file whose process died are
    removed on the way. Safe for several threads and processes at once: the last one to finish stays.

    Args:
        path: its folder must exist.
        parts: written one after the other; nothing is copied, so they must not change meanwhile.
        mode: permissions of the new file, less the umask's; they hold before the first byte is written.
        previous: where the old file is kept, too, in the same folder. On a file system without hard links, a crash may
            leave the old file under this name alone.

    Raises:
        OSError: it could not be written; the old file is as it was, and no temporary is left.
    """
    remove_stale(path)
    temporary = _temporary(path)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
    try:
        try:
            for part in parts:
                _write_all(descriptor, memoryview(part))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if previous is not None:
            _keep(path, previous)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            temporary.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Return once the disk has the names in a folder: files made, renamed or removed. Raises OSError."""
    if os.name == "nt":
        return  # a folder cannot be opened there; its file system orders renames by itself
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_stale(path: Path) -> int:
    """Remove what writers of a file left that died on the way; how many. What cannot be removed stays."""
    removed = 0
    start, end = f".{path.name}.", ".tmp"
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return 0
    for name in names:
        if name.startswith(start) and name.endswith(end):
            process, _, life = name[len(start) : -len(end)].partition("-")
            if life and process.isdecimal() and not _alive(int(process), life.partition("-")[0]):
                with contextlib.suppress(OSError):
                    path.with_name(name).unlink()
                    removed += 1
    return removed


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{_LIFE}-{next(_count)}.tmp")


def _keep(path: Path, previous: Path) -> None:
    link = _temporary(path)
    try:
        try:
            link.hardlink_to(path)
        except OSError:  # there are file systems without, or there is no file yet
            with contextlib.suppress(FileNotFoundError):
                path.replace(previous)
        else:
            link.replace(previous)
    finally:
        link.unlink(missing_ok=True)  # a rename onto another link of the same file does nothing


def _write_all(descriptor: int, rest: memoryview) -> None:
    if rest.nbytes:  # an empty one of some shape cannot be cast
        rest = rest.cast("B")
    while rest.nbytes:
        rest = rest[os.write(descriptor, rest) :]


def _alive(process: int, life: str) -> bool:
    if process == os.getpid():
        return life == _LIFE
    if os.name == "nt":
        return False  # there, signal 0 would end it; and a file that is still open cannot be removed
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass  # another user's
    return True
