"""The header of a safetensors file: written for named tensors, and read with each length and span checked.

Readers of such files differ in what they let pass: keys given twice, spans that leave gaps, shapes of zero elements
beyond any memory. Here a header names each tensor once, and the tensors fill the rest of the file from end to end; all
of it is checked before anything is allocated for them.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from p2pfl.errors import ModelError

MAX_HEADER = 1 << 19  # bytes: five thousand tensors; more admits models of more parts, and costs more on bad files
WIDTHS: Mapping[str, int] = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2, "I8": 1,
    "U8": 1, "BOOL": 1,
}  # fmt: skip
_PREFIX = 8
_METADATA = "__metadata__"
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)

_Size: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 62)]


class Span(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a tensor lies: from the first of `data_offsets` to before the second, in bytes behind the header."""

    dtype: str
    shape: Annotated[tuple[_Size, ...], Meta(max_length=64)]
    data_offsets: tuple[_Size, _Size]


_SPAN = msgspec.json.Decoder(Span)


@dataclass(frozen=True)
class Framing:
    """What a header says."""

    spans: Mapping[str, Span]  # in the order in which they lie
    metadata: Mapping[str, str]


def header(tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """The header of a file of tensors, given as (name, dtype, shape) in the order in which they lie.

    Its length is a multiple of eight, so that numbers behind it stay aligned.
    """
    entries: dict[str, object] = {_METADATA: dict(metadata)} if metadata else {}
    begin = 0
    for name, dtype, shape in tensors:
        end = begin + prod(shape) * WIDTHS[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _PREFIX)
    return len(text).to_bytes(_PREFIX, "little") + text


def header_bytes(prefix: bytes, file_bytes: int, limit: int = MAX_HEADER) -> int:
    """How much of a file, from its first byte, is its header.

    Args:
        prefix: the first eight bytes of the file, or all of a shorter one.

    Raises:
        ModelError: it is cut, no such file, or has a header above the limit.
    """
    if len(prefix) < _PREFIX:
        raise ModelError(f"{file_bytes} bytes hold no header")
    length = int.from_bytes(prefix[:_PREFIX], "little")
    if length > file_bytes - _PREFIX:
        raise ModelError(f"a header of {length} bytes in a file of {file_bytes}")
    if length > limit:
        raise ModelError(f"a header of {length} bytes; at most {limit} are read")
    return _PREFIX + length


def read_header(text: bytes, data_bytes: int) -> Framing:
    """Take in a header, without its first eight bytes, of a file with this many bytes behind it.

    Raises:
        ModelError: it is malformed, or the tensors do not fill these bytes from end to end.
    """
    try:
        entries = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        told = entries.pop(_METADATA, None)
        metadata = {} if told is None else msgspec.json.decode(told, type=dict[str, str])
        spans = {name: _SPAN.decode(raw) for name, raw in entries.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"a malformed header: {error}") from error
    # Of keys given twice a decoder keeps one; each key has its colon, and outside of strings there is no other.
    keys = 4 * len(spans) + (0 if told is None else 1 + len(metadata))
    if _STRING.sub(b"", text).count(b":") != keys:
        raise ModelError("a malformed header: a key is there twice")
    ordered = dict(sorted(spans.items(), key=lambda item: item[1].data_offsets))
    end = 0
    for name, span in ordered.items():
        begin, after = span.data_offsets
        width = WIDTHS.get(span.dtype)
        if width is None:
            raise ModelError(f"{_short(name)} has the unknown dtype {_short(span.dtype)}")
        if begin != end:
            raise ModelError(
                f"{_short(name)} begins at byte {begin}, where {end} is due: tensors overlap or leave gaps"
            )
        if after - begin != prod(span.shape) * width:
            raise ModelError(f"{_short(name)} has {after - begin} bytes, which is not what its shape and dtype need")
        end = after
    if end != data_bytes:
        raise ModelError(f"the tensors end at byte {end} of {data_bytes}")
    return Framing(ordered, metadata)


def _short(text: str) -> str:
    return repr(text if len(text) <= 64 else f"{text[:61]}...")
