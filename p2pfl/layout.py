"""How a model lies in one flat vector, and the safetensors framing of that vector on the wire and on disk.

A vector travels as the bytes of a safetensors file: eight bytes of length, a JSON header, the numbers. Header and
numbers are one contiguous block, so packing is writing a constant header in front, and unpacking is a view.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal, TypeAlias

import torch
from torch import nn

from p2pfl import framing
from p2pfl.errors import ModelError

Vector: TypeAlias = torch.Tensor  # one-dimensional, contiguous, on the CPU; never changed once handed on
FloatName: TypeAlias = Literal["float32", "float64"]

_DTYPES: Mapping[FloatName, tuple[torch.dtype, str, int]] = {
    "float32": (torch.float32, "F32", 4),
    "float64": (torch.float64, "F64", 8),
}

_MAX_HEADER = framing.MAX_HEADER * 3 // 4  # the rest is for what a file says of its model


@dataclass(frozen=True)
class Layout:
    """Names and shapes of a model's tensors, in the order in which they lie in its vector."""

    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    dtype: FloatName = "float32"

    @cached_property
    def size(self) -> int:
        """Elements of the vector."""
        return sum(prod(shape) for _, shape in self.tensors)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The vector's dtype."""
        return _DTYPES[self.dtype][0]

    @cached_property
    def header(self) -> bytes:
        """The safetensors framing before the numbers; its length is a multiple of eight, so they stay aligned."""
        return self.framing({})

    def framing(self, metadata: Mapping[str, str]) -> bytes:
        """The header of a file that carries metadata, too."""
        return framing.header(self.placed, metadata)

    @property
    def placed(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """Name, dtype and shape of each tensor, in the words of safetensors."""
        code = _DTYPES[self.dtype][1]
        return [(name, code, shape) for name, shape in self.tensors]

    @property
    def vector_bytes(self) -> int:
        """Bytes of the numbers alone."""
        return self.size * _DTYPES[self.dtype][2]

    @property
    def framed_bytes(self) -> int:
        """Bytes of header and numbers: a body on the wire, a file on disk."""
        return len(self.header) + self.vector_bytes

    @cached_property
    def digest(self) -> str:
        """What two peers compare: equal if and only if names, shapes, order and dtype are."""
        return hashlib.blake2b(self.header, digest_size=16).hexdigest()

    def views(self, vector: Vector) -> dict[str, torch.Tensor]:
        """The named tensors as views of the vector."""
        return {name: vector[begin:end].view(shape) for name, shape, begin, end in self._spans()}

    def vector_in(self, framed: memoryview) -> Vector:
        """The vector inside a framed buffer, without a copy; the buffer lives as long as the vector."""
        return torch.frombuffer(framed, dtype=self.torch_dtype, count=self.size, offset=len(self.header))

    def describe(self, limit: int = 64) -> tuple[str, ...]:
        """The first tensors in words, for telling another peer what differs."""
        return tuple(f"{name} {list(shape)} {self.dtype}" for name, shape in self.tensors[:limit])

    def _spans(self) -> Iterator[tuple[str, tuple[int, ...], int, int]]:
        begin = 0
        for name, shape in self.tensors:
            end = begin + prod(shape)
            yield name, shape, begin, end
            begin = end


def layout_of(model: nn.Module) -> Layout:
    """The layout of a module: its parameters in their order, shared ones once.

    Raises:
        ModelError: no parameters, parameters that are not all float32 or all float64, or layers whose buffers change
            in training (BatchNorm's statistics), which cannot be averaged without a policy.
    """
    parameters = list(model.named_parameters())
    if not parameters or not sum(p.numel() for _, p in parameters):
        raise ModelError("the model has no parameters: there is nothing to train or to average")
    found = sorted({str(p.dtype).removeprefix("torch.") for _, p in parameters})
    if found == ["float32"]:
        dtype: FloatName = "float32"
    elif found == ["float64"]:
        dtype = "float64"
    else:
        raise ModelError(f"the model has {' and '.join(found)} parameters; convert it with model.float() first")
    for name, module in model.named_modules():
        if getattr(module, "track_running_stats", False) and getattr(module, "running_mean", None) is not None:
            raise ModelError(
                f"{name or 'the model'} is a {type(module).__name__}, whose running statistics change in training and "
                "cannot be averaged yet; use GroupNorm or LayerNorm, or track_running_stats=False"
            )
    layout = Layout(tuple((name, tuple(p.shape)) for name, p in parameters), dtype)
    if len(layout.header) > _MAX_HEADER:
        raise ModelError(f"the model's {len(parameters)} tensors are too many to be named in a file; join some of them")
    return layout


def first_difference(mine: Layout, theirs: tuple[str, ...]) -> str:
    """The first tensor in which another peer's described layout departs from mine, in words."""
    for own, other in zip(mine.describe(len(theirs)), theirs, strict=False):
        if own != other:
            return f"this peer has {own}, the network {other}"
    return f"this peer has {len(mine.tensors)} tensors, the network another number, or they differ further on"


def digest_of(vector: Vector) -> str:
    """Equal for vectors that are equal bit for bit."""
    return hashlib.blake2b(vector.numpy().view("uint8").data, digest_size=16).hexdigest()
