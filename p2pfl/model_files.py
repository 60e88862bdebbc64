"""Models and checkpoints on disk: safetensors with a few facts in the metadata, written whole or not at all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch
from torch import nn

from p2pfl import durable
from p2pfl.errors import ModelError
from p2pfl.framing import Span
from p2pfl.layout import Layout, Vector, layout_of
from p2pfl.learning.models import build_model
from p2pfl.spelling import is_function
from p2pfl.tensor_files import DTYPES, opened

BESIDE = "."  # begins the names of a checkpoint's tensors that are not the model's; no parameter's name does
_KEY = "p2pfl"
_MAX_NAME = 256
_Facts = TypeVar("_Facts")


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is needed to use a model again, and where it comes from."""

    model: str = ""  # how it was named; empty for a module of the user's own
    input_shape: tuple[int, ...] = ()
    outputs: int = 0
    task: str = ""
    labels: tuple[str, ...] = ()
    preparation: dict[str, Any] = {}  # how a foreign input is prepared
    data: str = ""
    network: str = ""
    peer: str = ""
    round: int = 0


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Who and where a peer was when it wrote a checkpoint.

    The sequence of its offers is not kept: it begins anew with each incarnation, and each start has a later one.
    """

    peer: str
    seat: str
    name: str
    network: str
    incarnation: int
    round: int
    settings: dict[str, str | int | float | bool]  # what the network had been asked for
    members: tuple[str, ...] = ()  # addresses of the others: where to look for them next time


def save_model(path: Path, vector: Vector, layout: Layout, facts: msgspec.Struct) -> None:
    """Write a model durably: a crash leaves the old file or the new one, never half of one.

    Raises:
        OSError: the disk is full or may not be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A vector is the data part of a safetensors file already; the library would want a copy of each tensor.
    durable.write(path, layout.framing(metadata_of(facts)), vector.numpy().view("uint8").data)


def metadata_of(facts: msgspec.Struct) -> dict[str, str]:
    """Facts, as they stand in the header of a file."""
    return {_KEY: msgspec.json.encode(facts).decode()}


def facts_in(path: Path, metadata: Mapping[str, str], kind: type[_Facts]) -> _Facts:
    """The facts in the header of a file. Raises ModelError."""
    try:
        return msgspec.json.decode(metadata.get(_KEY, ""), type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ModelError(f"{path} was not written by p2pfl, or by another version: {error}") from error


def read_facts(path: Path) -> ModelFacts:
    """What the file of a model says of itself.

    Raises:
        ModelError: it is no such file.
    """
    with opened(path) as file:
        return facts_in(path, file.framing.metadata, ModelFacts)


def read_vector(path: Path, layout: Layout) -> Vector:
    """The numbers of a model or checkpoint, in a layout.

    Raises:
        ModelError: the file cannot be read, or holds other tensors.
    """
    with opened(path) as file:
        check_spans(path, file.spans, layout)
        vector = torch.empty(layout.size, dtype=layout.torch_dtype)
        file.read(layout.views(vector))
    return vector


def check_spans(path: Path, spans: Mapping[str, Span], layout: Layout) -> None:
    """Whether a file holds the tensors of a layout; in a checkpoint, others lie beside them. Raises ModelError."""
    wanted = {name: (code, shape) for name, code, shape in layout.placed}
    found = {name: span for name, span in spans.items() if not name.startswith(BESIDE)}
    if set(wanted) != set(found):
        odd = min(set(wanted) ^ set(found))
        odd = odd if len(odd) <= 64 else f"{odd[:61]}..."
        raise ModelError(f"{path} and the model do not have the same tensors ({odd!r} is in one alone); check --model")
    for name, (code, shape) in wanted.items():
        span = found[name]
        if (span.dtype, span.shape) != (code, shape):
            raise ModelError(
                f"{path}: {name} is {list(span.shape)} {DTYPES.get(span.dtype, span.dtype)}, "
                f"the model has {list(shape)} {DTYPES[code]}; check --model"
            )


def read_checkpoint(path: Path) -> Checkpoint:
    """Who wrote the checkpoint, and when. Raises ModelError."""
    with opened(path) as file:
        return facts_in(path, file.framing.metadata, Checkpoint)


def load_model(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """A model that a run has saved, ready to use.

    Args:
        path: a file of `runs/…/models/`.
        model: the module to fill, where it is not one of the built-in ones. A model of your own is never imported by
            the name that stands in a file: files come from elsewhere, and importing runs code.

    Raises:
        ModelError: the file cannot be read, or does not fit the module.
    """
    path = Path(path)
    facts = read_facts(path)
    if model is None:
        if not facts.model or is_function(facts.model):
            made = facts.model or "a module"
            raise ModelError(f"{path} is a model of somebody's own making ({made}): give --model, or model= in Python")
        _check_built(path, facts)
        model = build_model(facts.model, facts.input_shape, facts.outputs, seed=0)
    layout = layout_of(model)
    views = layout.views(read_vector(path, layout))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(views[name])
    return model.eval()


def _check_built(path: Path, facts: ModelFacts) -> None:
    """Whether the model that a file names is the one it holds, before memory is given to it."""
    if len(facts.model) > _MAX_NAME:
        raise ModelError(f"{path} names its model with {len(facts.model)} letters; at most {_MAX_NAME} are read")
    try:
        with torch.device("meta"):  # shapes without numbers: a file can name a model of any size
            layout = layout_of(build_model(facts.model, facts.input_shape, facts.outputs, seed=0))
    except (RuntimeError, OverflowError, TypeError) as error:
        raise ModelError(f"{path}: {facts.model} cannot be built: {str(error).partition(chr(10))[0]}") from error
    with opened(path) as file:
        check_spans(path, file.spans, layout)
