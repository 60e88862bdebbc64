"""Nobody else writes a run's files: two at the same tables would leave every row twice."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from p2pfl.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]  # as its absence is told


@contextmanager
def held(folder: Path | None) -> Iterator[None]:
    """Hold a folder that is there for this process, until the end of the block; it is let go where a process is killed.

    Folders of file systems without locks, and those that are not there, are held by nobody.

    Raises:
        UsageError: another run holds it.
    """
    if fcntl is None or folder is None or not folder.is_dir():
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"{folder} is being written by another run: wait for its end, or give another out"
            ) from error
        except OSError:
            pass  # this file system has no locks
        yield
    finally:
        if fcntl is not None:
            # Unlocked, not closed only: a worker forked meanwhile has the handle, too.
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)
