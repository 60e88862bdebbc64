"""Checkpoints: all that a peer needs to go on as if it had never stopped, of which a crash leaves a complete one.

One safetensors file a generation: the model's tensors under their names; behind them, under names that begin with a
dot, those of the learner's state and of the algorithm's; the rest as JSON in the metadata. A SHA-256 of the whole file
tells a torn or rotten one. There is no state of a random generator: each draw is keyed by seed, seat and round.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from p2pfl import durable, framing
from p2pfl.errors import ModelError
from p2pfl.layout import Layout, Vector
from p2pfl.model_files import BESIDE, Checkpoint, check_spans, facts_in, metadata_of
from p2pfl.state import State
from p2pfl.tensor_files import CODES, DTYPES, TensorFile, bytes_of, opened

_MAX_HEADER = 1 << 26  # bytes; an optimizer has a few tensors for each of the model's
_SUM = "sha256"
_NO_SUM = "0" * 64  # stands where the sum will, while it is worked out
_SUM_AT = len(b'________{"__metadata__":{"sha256":"')  # eight bytes of length, then always these


@dataclass(frozen=True)
class Saved:
    """A checkpoint whole: who and where a peer was, and what it had."""

    facts: Checkpoint
    vector: Vector  # the model with which the round begins
    learner: State | None = None  # None where it has none, or where it cannot be written down
    algorithm: State | None = None


class Generations:
    """The checkpoints of one run of a peer: the newest, and the one before in case that cannot be read."""

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        """Nothing is read or written yet.

        Args:
            path: of the newest, `NAME.safetensors`; the one before is `NAME.previous.safetensors` beside it.
            warn: takes what the person should read; called in the thread that reads or saves.
        """
        self.path = path
        self.previous = path.with_name(f"{path.stem}.previous{path.suffix}")
        self._warn = warn
        self._sound: Path | None = None  # the newest of this run that is known to be complete
        self._failing = False

    @property
    def exist(self) -> bool:
        """Whether there are any, readable or not."""
        return self.path.exists() or self.previous.exists()

    @property
    def sound(self) -> Path | None:
        """The newest one that is known to be complete."""
        return self._sound

    def newest(self) -> Checkpoint:
        """Who and where the peer was, as of the newest one that is complete.

        The first trouble with a file is told to `warn`.

        Raises:
            ModelError: there is none, or none can be read.
        """
        try:
            found, facts = self.path, _verified(self.path)
        except ModelError as error:
            if not self.previous.exists():
                raise
            try:
                found, facts = self.previous, _verified(self.previous)
            except ModelError as older:
                raise ModelError(
                    f"no checkpoint can be read: {error}; the one before: {older}; put back a copy, or start without "
                    "--resume"
                ) from older
            if self._sound != found:
                self._warn(f"{error}; going on from the checkpoint before, of round {facts.round}")
        self._sound = found
        return facts

    def read(self, layout: Layout) -> Saved:
        """The newest one that is complete.

        Raises:
            ModelError: none can be read, or it is of another model.
        """
        self.newest()
        assert self._sound is not None
        return _read(self._sound, layout)

    def save(self, saved: Saved, layout: Layout) -> bool:
        """Write a generation; whether it is on the disk. Trouble is told once, and again only after it was over."""
        try:
            self.write(saved, layout)
        except (OSError, ModelError) as error:
            if not self._failing:
                self._warn(
                    f"the checkpoint of round {saved.facts.round} was not written: {error}; training goes on, and "
                    "checkpoints do once they can be written"
                )
            self._failing = True
            return False
        if self._failing:
            self._warn(f"checkpoints are written again, from round {saved.facts.round} on")
        self._failing = False
        return True

    def write(self, saved: Saved, layout: Layout) -> None:
        """Write a generation, and keep the one before; returns once the disk has it.

        What an earlier run has left in the place is not kept: nobody should go on from it by accident.

        Raises:
            OSError: the disk is full or may not be written to; the files are as they were.
            ModelError: a state has a tensor that no such file can hold.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        durable.write(self.path, *_parts(saved, layout), previous=self.previous if self._sound == self.path else None)
        if self._sound is None:
            self.previous.unlink(missing_ok=True)
        self._sound = self.path


def _parts(saved: Saved, layout: Layout) -> list[bytes | memoryview]:
    metadata = {_SUM: _NO_SUM, **metadata_of(saved.facts)}
    beside: dict[str, torch.Tensor] = {}
    for kind, state in (("learner", saved.learner), ("algorithm", saved.algorithm)):
        if state is not None:
            metadata[kind] = msgspec.json.encode(state.facts).decode()
            beside |= {f"{BESIDE}{kind}/{name}": tensor for name, tensor in state.tensors.items()}
    for name, tensor in beside.items():
        if tensor.dtype not in CODES:
            raise ModelError(f"the state {name} is of {tensor.dtype}, which no checkpoint can hold")
    placed = [(name, CODES[tensor.dtype], tuple(tensor.shape)) for name, tensor in beside.items()]
    header = bytearray(framing.header([*layout.placed, *placed], metadata))
    numbers = [bytes_of(saved.vector), *(bytes_of(tensor) for tensor in beside.values())]
    digest = hashlib.sha256(header)
    for part in numbers:
        digest.update(part)
    header[_SUM_AT : _SUM_AT + len(_NO_SUM)] = digest.hexdigest().encode()
    return [bytes(header), *numbers]


def _verified(path: Path) -> Checkpoint:
    with opened(path, _MAX_HEADER) as file:
        _read_summed(path, file, {})
        return facts_in(path, file.framing.metadata, Checkpoint)


def _read(path: Path, layout: Layout) -> Saved:
    with opened(path, _MAX_HEADER) as file:
        check_spans(path, file.spans, layout)
        vector = torch.empty(layout.size, dtype=layout.torch_dtype)
        beside = {
            name: torch.empty(span.shape, dtype=DTYPES[span.dtype])
            for name, span in file.spans.items()
            if name.startswith(BESIDE) and span.dtype in DTYPES
        }
        _read_summed(path, file, {**layout.views(vector), **beside})
        metadata = file.framing.metadata
        return Saved(
            facts_in(path, metadata, Checkpoint),
            vector,
            _state("learner", metadata, beside),
            _state("algorithm", metadata, beside),
        )


def _read_summed(path: Path, file: TensorFile, targets: Mapping[str, torch.Tensor]) -> None:
    told = file.framing.metadata.get(_SUM, "").encode()
    place = slice(_SUM_AT, _SUM_AT + len(_NO_SUM))
    header = bytearray(file.header)
    if len(told) != len(_NO_SUM) or header[place] != told:
        raise ModelError(f"{path} is no checkpoint, or one of another version")
    header[place] = _NO_SUM.encode()
    digest = hashlib.sha256(header)
    file.read(targets, digest)
    if digest.hexdigest().encode() != told:
        raise ModelError(f"{path} is damaged: its content is not what was written")


def _state(kind: str, metadata: Mapping[str, str], beside: Mapping[str, torch.Tensor]) -> State | None:
    if kind not in metadata:
        return None
    start = f"{BESIDE}{kind}/"
    tensors = {name.removeprefix(start): tensor for name, tensor in beside.items() if name.startswith(start)}
    return State(tensors, msgspec.json.decode(metadata[kind]))
