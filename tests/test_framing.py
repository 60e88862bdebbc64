"""Headers of safetensors files: what is written is read, and what is off by anything is refused."""

import contextlib
import json
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import live
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2pfl import framing
from p2pfl.errors import ModelError

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
TWO = {"dtype": "I64", "shape": [], "data_offsets": [8, 16]}


def header_of(*pairs: tuple[str, Any]) -> bytes:
    """A header with these keys, also where one is there twice."""
    return b"{" + b",".join(f"{json.dumps(key)}:{json.dumps(value)}".encode() for key, value in pairs) + b"}"


def test_a_header_is_read_as_written() -> None:
    whole = framing.header([("a", "F32", (2,)), ("ß", "I64", ())], {"note": "x: y"})
    assert framing.header_bytes(whole[:8], len(whole) + 16) == len(whole)
    read = framing.read_header(whole[8:], 16)
    assert list(read.spans.items()) == [
        ("a", framing.Span("F32", (2,), (0, 8))),
        ("ß", framing.Span("I64", (), (8, 16))),
    ]
    assert read.metadata == {"note": "x: y"}


TENSORS = st.tuples(st.text(max_size=4), st.sampled_from(list(framing.WIDTHS)), st.lists(st.integers(0, 3)))


@given(
    st.lists(TENSORS, max_size=5),
    st.dictionaries(st.text(max_size=3), st.text(max_size=3)),
)
def test_any_header_that_is_written_is_read(tensors: list[Any], metadata: dict[str, str]) -> None:
    named = {name: (name, dtype, tuple(shape)) for name, dtype, shape in tensors if name != "__metadata__"}
    whole = framing.header(named.values(), metadata)
    ends = [span["data_offsets"][1] for name, span in json.loads(whole[8:]).items() if name != "__metadata__"]
    read = framing.read_header(whole[8:], max(ends, default=0))
    assert {name: (name, span.dtype, span.shape) for name, span in read.spans.items()} == named
    assert read.metadata == metadata


def test_what_the_library_writes_is_read() -> None:
    tensors = {"b": torch.zeros(3), "a": torch.zeros(2, 2, dtype=torch.int64), "c": torch.zeros(0, dtype=torch.bool)}
    whole = safetensors.torch.save(tensors, {"k": "v"})
    length = framing.header_bytes(whole[:8], len(whole))
    read = framing.read_header(whole[8:length], len(whole) - length)
    assert {name: span.shape for name, span in read.spans.items()} == {"a": (2, 2), "b": (3,), "c": (0,)}


@pytest.mark.parametrize(
    ("text", "data_bytes", "says"),
    [
        (header_of(("a", ONE)), 7, "the tensors end at byte 8 of 7"),
        (header_of(("a", ONE)), 9, "the tensors end at byte 8 of 9"),
        (header_of(("a", ONE), ("b", {**TWO, "data_offsets": [4, 12]})), 12, "overlap or leave gaps"),
        (header_of(("a", ONE), ("b", {**TWO, "data_offsets": [9, 17]})), 17, "overlap or leave gaps"),
        (header_of(("a", ONE), ("b", ONE)), 8, "overlap or leave gaps"),
        (header_of(("a", ONE), ("a", ONE)), 8, "a key is there twice"),
        (header_of(("a", {**ONE, "shape": [1 << 40, 0]}), ("a", ONE)), 8, "a key is there twice"),
        (header_of(("__metadata__", {}), ("a", ONE), ("__metadata__", {"k": "v"})), 8, "a key is there twice"),
        (b'{"__metadata__":{"k":"v","k":"w"}}', 0, "a key is there twice"),
        (b'{"a":{"dtype":"F32","dtype" :"F32","shape":[],"data_offsets":[0,4]}}', 4, "a key is there twice"),
        (b'{"a":{"dtype":"F32","\\u0064type":"F32","shape":[],"data_offsets":[0,4]}}', 4, "a key is there twice"),
        (header_of(("a", {**ONE, "dtype": "F31"})), 8, "unknown dtype 'F31'"),
        (header_of(("a", {**ONE, "shape": [3]})), 8, "not what its shape and dtype need"),
        (header_of(("a", {**ONE, "shape": [1 << 62, 1 << 62]})), 8, "not what its shape and dtype need"),
        (header_of(("a", {**ONE, "shape": [-2]})), 8, "malformed"),
        (header_of(("a", {**ONE, "shape": [1.5]})), 8, "malformed"),
        (header_of(("a", {**ONE, "shape": [1] * 65})), 8, "malformed"),
        (header_of(("a", {**ONE, "data_offsets": [8, 0]})), 8, "overlap or leave gaps"),
        (header_of(("a", {**ONE, "data_offsets": [-8, 0]})), 8, "malformed"),
        (header_of(("a", {**ONE, "data_offsets": [0, 1 << 63]})), 8, "malformed"),
        (header_of(("a", {**ONE, "more": 1})), 8, "malformed"),
        (header_of(("a", [])), 8, "malformed"),
        (header_of(("__metadata__", {"k": 1})), 0, "malformed"),
        (b"", 0, "malformed"),
        (b"[]", 0, "malformed"),
        (b'{"a":', 0, "malformed"),
        (b'{"\xff":1}', 0, "malformed"),
        (b"{" + b'"a":[' * 20_000, 0, "malformed"),
    ],
)
@pytest.mark.fault(43)
def test_a_header_that_is_off_is_refused(text: bytes, data_bytes: int, says: str) -> None:
    with pytest.raises(ModelError) as caught:
        framing.read_header(text, data_bytes)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("length", "says"), [(1 << 63, "9223372036854775808 bytes"), ((1 << 19) + 1, "at most 524288"), (993, "in a file")]
)
@pytest.mark.fault(43)
def test_a_length_above_the_file_or_the_limit_is_refused(length: int, says: str) -> None:
    size = 1000 if length != (1 << 19) + 1 else 1 << 20
    with pytest.raises(ModelError, match=says):
        framing.header_bytes(length.to_bytes(8, "little"), size)


@given(st.binary(max_size=300), st.integers(0, 100))
def test_any_bytes_are_taken_in_or_refused(text: bytes, data_bytes: int) -> None:
    with contextlib.suppress(ModelError):
        framing.read_header(text, data_bytes)


@given(st.integers(0, 200), st.integers(0, 255))
def test_any_byte_changed_in_a_header_keeps_its_promises(place: int, value: int) -> None:
    whole = bytearray(framing.header([("a", "F32", (2,)), ("b", "I64", (1, 1))], {"k": "v"})[8:])
    whole[place % len(whole)] = value
    try:
        read = framing.read_header(bytes(whole), 16)
    except ModelError:
        return
    assert sum(span.data_offsets[1] - span.data_offsets[0] for span in read.spans.values()) == 16


def most_tensors() -> bytes:
    """As many tensors as the longest header names."""
    parts, size = [b'"0":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'], 2
    while size < framing.MAX_HEADER - 60:
        parts.append(f'"{len(parts)}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'.encode())
        size += len(parts[-1]) + 1
    return b"{" + b",".join(parts) + b"}"


def twice() -> bytes:
    return most_tensors()[:-1] + b',"0":1}'


@pytest.mark.parametrize("build", [most_tensors, twice])
@pytest.mark.fault(43)
def test_the_longest_header_takes_50_ms_and_20_mb_at_most(build: Callable[[], bytes]) -> None:
    text = build()
    assert len(text) > 0.99 * framing.MAX_HEADER
    tracemalloc.start()
    try:
        read(text)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    best = min(timed(text) for _ in range(5))
    assert best < 0.05 * live.SLACK


def read(text: bytes) -> None:
    with contextlib.suppress(ModelError):
        framing.read_header(text, 0)


def timed(text: bytes) -> float:
    begun = time.perf_counter()
    read(text)
    return time.perf_counter() - begun
