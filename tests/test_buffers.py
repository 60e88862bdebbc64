import gc
import random
import threading
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
import torch

from p2pfl.network.buffers import Buffer, BufferPool

VIEWS: dict[str, Callable[[Buffer], object]] = {
    "tensor": lambda buffer: torch.frombuffer(buffer.data, dtype=torch.float32, offset=8),
    "tensor slice": lambda buffer: torch.frombuffer(buffer.data, dtype=torch.uint8)[3:5],
    "tensor of the array": lambda buffer: torch.from_numpy(buffer),
    "numpy of a tensor": lambda buffer: torch.frombuffer(buffer.data, dtype=torch.float64).numpy().view("uint8").data,
    "memoryview": lambda buffer: buffer.data,
    "memoryview slice": lambda buffer: buffer.data[4:9][1:],
    "array": lambda buffer: np.asarray(buffer),
    "array slice": lambda buffer: buffer[2:7][1:],
    "array of another type": lambda buffer: buffer.view(np.float32),
    "array of a subclass": lambda buffer: buffer.view(np.matrix),
    "array of an array": lambda buffer: buffer.view(np.ndarray)[1:],
}


def address(buffer: Buffer) -> int:
    return int(buffer.__array_interface__["data"][0])


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_buffer_goes_back_with_its_last_view_and_not_before(view: Callable[[Buffer], object]) -> None:
    pool = BufferPool()
    buffer = pool.take(64)
    kept = view(buffer)
    del buffer
    assert pool.free == 0
    assert pool.take(64) is not None
    assert pool.allocated == 2  # the first is in use
    del kept
    assert pool.free == 2


def test_returned_buffer_is_taken_again() -> None:
    pool = BufferPool()
    buffer = pool.take(100)
    where = address(buffer)
    del buffer
    assert address(pool.take(100)) == where


def test_allocated_stays_flat_over_rounds() -> None:
    pool = BufferPool()
    vectors = [torch.frombuffer(pool.take(4096).data, dtype=torch.float32) for _ in range(4)]
    for round in range(200):
        vectors[round % 4] = torch.frombuffer(pool.take(4096).data, dtype=torch.float32)
    assert pool.allocated == 5  # the old vector goes when the new one is there
    assert len({vector.data_ptr() for vector in vectors}) == 4


def test_taken_buffers_never_share_memory() -> None:
    pool, draw = BufferPool(), random.Random(1)
    taken: list[Buffer] = []
    for number in range(500):
        if taken and draw.random() < 0.5:
            buffer = taken.pop(draw.randrange(len(taken)))
            assert len(set(buffer.tolist())) == 1
        buffer = pool.take(draw.choice((8, 16, 24)))
        buffer.fill(number % 251)
        taken.append(buffer)
    assert len({address(buffer) for buffer in taken}) == len(taken)


def test_keep_bounds_the_free_ones() -> None:
    pool = BufferPool(keep=3)
    taken = [pool.take(32) for _ in range(10)]
    newest = {address(buffer) for buffer in taken[-3:]}
    while taken:
        del taken[0]
    assert pool.free == 3
    assert {address(buffer) for buffer in [pool.take(32) for _ in range(3)]} == newest


def test_nothing_is_kept_where_keep_is_zero() -> None:
    pool = BufferPool(keep=0)
    pool.take(32)
    assert pool.free == 0


def test_sizes_are_kept_apart() -> None:
    pool = BufferPool()
    sizes = (10, 20, 30)
    where = {}
    for size in sizes:
        buffer = pool.take(size)
        where[size] = address(buffer)
        del buffer
    for size in (20, 10, 30):
        buffer = pool.take(size)
        assert buffer.nbytes == size
        assert address(buffer) == where[size]
        del buffer
    assert pool.allocated == 3


def test_buffer_is_writable_bytes_with_an_exact_length() -> None:
    view = BufferPool().take(5).data
    view[1:3] = b"ab"
    assert (view.format, len(view), bytes(view)) == ("B", 5, b"\0ab\0\0")


def test_other_threads_may_let_go_while_one_takes() -> None:
    pool = BufferPool(keep=4)
    handed: list[Buffer] = []
    over = threading.Event()

    def let_go() -> None:
        while not over.is_set() or handed:
            with suppress(IndexError):
                handed.pop()

    threads = [threading.Thread(target=let_go) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(3000):
            buffer = pool.take(16 + 8 * (number % 3))
            assert buffer.nbytes == 16 + 8 * (number % 3)
            handed.append(buffer)
            del buffer
    finally:
        over.set()
        for thread in threads:
            thread.join()
    gc.collect()
    assert pool.free == 4
