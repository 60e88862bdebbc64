"""A file that one process at a time holds. It is let go where the process is killed, and needs no tidying up."""

import errno
import os
import stat
import sys
from contextlib import suppress
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_NOTE_BYTES = 1024
_FLAGS = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)  # each where the system has it
_WINDOWS_BYTE = 1 << 30  # the locked byte lies behind the note: what is locked there cannot be read


class FileLock:
    """A lock file, held from `take` to `release`; who holds it may leave a note for others to read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    def take(self, *, wait: bool = False) -> bool:
        """Hold the file, unless somebody else does; with `wait`, once nobody else does.

        On file systems without locks everybody is let through.

        Raises:
            OSError: the file cannot be made, or is none of its own: a link, or a device.
        """
        handle = os.open(self.path, _FLAGS | os.O_CREAT, 0o600)
        try:
            _check(handle, self.path)
            if not _lock(handle, wait):
                os.close(handle)
                return False
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        return True

    def release(self) -> None:
        """Let it go. The file stays: removing it could take away one that another process holds by now."""
        handle, self._handle = self._handle, None
        if handle is not None:
            with suppress(OSError):
                _write(handle, b"")
                # Unlocked, not closed only: a worker forked meanwhile has the handle, too.
                _unlock(handle)
            os.close(handle)

    def note(self, text: bytes) -> None:
        """Say something to whoever looks at the file while it is held; at most 1,024 bytes. Raises OSError."""
        if self._handle is not None:
            _write(self._handle, text)


def note_of_holder(path: Path) -> bytes | None:
    """The note of who holds a lock file; None where nobody does. Never makes the file."""
    try:
        handle = os.open(path, _FLAGS)
    except OSError:
        return None
    try:
        if _lock(handle, wait=False):
            with suppress(OSError):
                _unlock(handle)
            return None
        return os.read(handle, _NOTE_BYTES).rstrip()
    finally:
        os.close(handle)


def _write(handle: int, note: bytes) -> None:
    """Notes are all of one length: nothing is ever cut off, whatever the file turns out to be."""
    os.lseek(handle, 0, os.SEEK_SET)
    os.write(handle, note[:_NOTE_BYTES].ljust(_NOTE_BYTES))


def _check(handle: int, path: Path) -> None:
    """Raise OSError where a note would be written into something that is more than a lock file."""
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        raise OSError(errno.EEXIST, "it is no file of p2pfl's own", str(path))


if sys.platform == "win32":

    def _lock(handle: int, wait: bool) -> bool:
        os.lseek(handle, _WINDOWS_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            os.lseek(handle, 0, os.SEEK_SET)
        return True

    def _unlock(handle: int) -> None:
        os.lseek(handle, _WINDOWS_BYTE, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)

else:

    def _lock(handle: int, wait: bool) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass  # this file system has no locks
        return True

    def _unlock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_UN)
