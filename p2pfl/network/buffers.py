"""A pool of buffers for models: reused ones need no fresh pages, which cost more than filling them.

A taken buffer goes back by itself when the last array, tensor or memoryview over it is gone, so nobody has to say
"release", and nobody can say it too early.
"""

import weakref
from collections import deque
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Buffer: TypeAlias = NDArray[np.uint8]


class BufferPool:
    """Buffers by size. Take on one thread, the event loop's; fill and let go anywhere."""

    def __init__(self, keep: int = 8) -> None:
        """keep: free buffers held at most; more saves page faults with many neighbors, and costs a model each."""
        # The last reference may go in any thread, and in a garbage collection in the middle of `take`: what is done
        # with the free ones is single operations of a deque, which are whole. The oldest falls out when it is full.
        self._free: deque[Buffer] = deque(maxlen=keep)
        self.allocated = 0  # buffers ever made: flat over rounds if they are reused

    @property
    def free(self) -> int:
        """Buffers waiting to be taken again."""
        return len(self._free)

    def take(self, size: int) -> Buffer:
        """A buffer of `size` bytes, every page of it touched; its content is arbitrary."""
        others: list[Buffer] = []
        while self._free:
            buffer = self._free.pop()
            if buffer.nbytes == size:
                self._free.extendleft(others)
                return self._lease(buffer)
            others.append(buffer)
        self._free.extendleft(others)
        self.allocated += 1
        fresh = np.empty(size, dtype=np.uint8)
        fresh.fill(0)
        return self._lease(fresh)

    def _lease(self, buffer: Buffer) -> Buffer:
        # Through a memoryview: numpy lets a view of a view of an array skip the one in between, which would then seem
        # unused while the bytes are read.
        lease: Buffer = np.frombuffer(buffer.data, dtype=np.uint8)
        weakref.finalize(lease, self._free.append, buffer).atexit = False
        return lease
