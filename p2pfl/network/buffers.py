"""A pool of buffers for models: reused ones need no fresh pages, which cost more than filling them.

A taken buffer goes back by itself when the last tensor or memoryview over it is gone, so nobody has to say "release",
and nobody can say it too early.
"""

import weakref
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Buffer: TypeAlias = NDArray[np.uint8]


class _Lease(np.ndarray[Any, np.dtype[np.uint8]]):
    """A view of a pooled buffer whose end of life is noticed; everything made from it keeps it alive."""


class BufferPool:
    """Buffers by size. Not for several threads at once: take on the event loop's thread, fill anywhere."""

    def __init__(self, keep: int = 8) -> None:
        """keep: free buffers held at most; more saves page faults with many neighbors, and costs a model each."""
        self._keep = keep
        self._free: list[Buffer] = []
        self.allocated = 0  # buffers ever made: flat over rounds if they are reused

    def take(self, size: int) -> Buffer:
        """A buffer of `size` bytes, every page of it touched; its content is arbitrary."""
        for index in range(len(self._free) - 1, -1, -1):
            if self._free[index].nbytes == size:
                return self._lease(self._free.pop(index))
        self.allocated += 1
        fresh = np.empty(size, dtype=np.uint8)
        fresh.fill(0)
        return self._lease(fresh)

    def _lease(self, buffer: Buffer) -> Buffer:
        lease = buffer.view(_Lease)
        weakref.finalize(lease, self._give_back, buffer).atexit = False
        return lease

    def _give_back(self, buffer: Buffer) -> None:
        self._free.append(buffer)
        del self._free[: -self._keep or None]
