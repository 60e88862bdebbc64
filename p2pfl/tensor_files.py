"""Safetensors files, read into memory of one's own: nothing is allocated before the whole header is checked.

Not mapped into memory: a file that somebody shortens meanwhile would end the process.
"""

import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Protocol, TypeAlias

import torch

from p2pfl import framing
from p2pfl.errors import ModelError
from p2pfl.framing import Framing, Span

Bytes: TypeAlias = "memoryview[int]"

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
CODES: Mapping[torch.dtype, str] = {dtype: code for code, dtype in DTYPES.items()}
_PIECE = 1 << 20


class Hash(Protocol):
    """As those of hashlib."""

    def update(self, data: Bytes, /) -> None: ...


@dataclass(frozen=True)
class TensorFile:
    """An open file whose header is good."""

    header: bytes
    framing: Framing
    _file: BufferedReader

    @property
    def spans(self) -> Mapping[str, Span]:
        """Where each tensor lies, in this order."""
        return self.framing.spans

    def read(self, targets: Mapping[str, torch.Tensor], hash: Hash | None = None) -> None:
        """Read the numbers of tensors into others of their shapes and dtypes.

        Args:
            targets: by name; contiguous, on the CPU.
            hash: takes all bytes behind the header in their order, those that nobody asked for too.

        Raises:
            ModelError: the file was shortened meanwhile.
            OSError: it cannot be read.
        """
        for name, span in self.spans.items():
            begin, end = span.data_offsets
            if name in targets:
                self._file.seek(len(self.header) + begin)
                self._fill(bytes_of(targets[name]), hash)
            elif hash is not None:
                self._file.seek(len(self.header) + begin)
                self._skip(end - begin, hash)

    def _fill(self, rest: Bytes, hash: Hash | None) -> None:
        while rest:
            read = self._file.readinto(rest[:_PIECE])
            if not read:
                raise ModelError("the file was cut while it was read")
            if hash is not None:
                hash.update(rest[:read])
            rest = rest[read:]

    def _skip(self, count: int, hash: Hash) -> None:
        piece = memoryview(bytearray(min(count, _PIECE)))
        while count:
            self._fill(piece[:count], hash)
            count -= min(count, len(piece))


@contextmanager
def opened(path: Path, limit: int = framing.MAX_HEADER) -> Iterator[TensorFile]:
    """Open a file and check its header.

    Args:
        limit: bytes of its header at most.

    Raises:
        ModelError: there is none, or it is none; also for what goes wrong while it is open.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for, a device has no end
            raise ModelError(f"{path} is no model file: it is no file with a content of its own")
        with path.open("rb") as file:
            size = path.stat().st_size
            try:
                prefix = file.read(8)
                text = file.read(framing.header_bytes(prefix, size, limit) - len(prefix))
                told = framing.read_header(text, size - len(prefix) - len(text))
                yield TensorFile(prefix + text, told, file)
            except ModelError as error:
                if str(path) in str(error):
                    raise
                raise ModelError(f"{path} is no model file: {error}") from error
    except FileNotFoundError as error:
        raise ModelError(f"there is no file {path}; check the path") from error
    except OSError as error:
        raise ModelError(f"{path} is no model file: {error}") from error


def bytes_of(tensor: torch.Tensor) -> Bytes:
    """The numbers of a contiguous tensor on the CPU, without a copy."""
    numbers: Bytes = tensor.detach().reshape(-1).view(torch.uint8).numpy().data
    return numbers
