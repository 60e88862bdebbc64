"""Models and checkpoints on disk: safetensors with a few facts in the metadata, written whole or not at all."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from p2pfl.errors import ModelError
from p2pfl.layout import Layout, Vector, layout_of
from p2pfl.learning.models import build_model
from p2pfl.spelling import is_function

_KEY = "p2pfl"


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
    """Who and where a peer was when it wrote a checkpoint."""

    peer: str
    seat: str
    name: str
    network: str
    incarnation: int
    round: int
    settings: dict[str, str | int | float | bool]  # what the network had been asked for


def save_model(path: Path, vector: Vector, layout: Layout, facts: msgspec.Struct) -> None:
    """Write a model, or a checkpoint, atomically: a crash leaves the old file or the new one, never half of one.

    Raises:
        OSError: the disk is full or may not be written to.
    """
    metadata = {_KEY: msgspec.json.encode(facts).decode()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            # A vector is the data part of a safetensors file already; the library would want a copy of each tensor.
            file.write(layout.framing(metadata))
            file.write(vector.numpy().view("uint8").data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_facts(path: Path) -> ModelFacts:
    """What the file of a model says of itself.

    Raises:
        ModelError: it is no such file.
    """
    facts: ModelFacts = _read(path, ModelFacts)[0]
    return facts


def read_vector(path: Path, layout: Layout) -> Vector:
    """The numbers of a model or checkpoint, in a layout.

    Raises:
        ModelError: the file cannot be read, or holds other tensors.
    """
    tensors = _read(path, None)[1]
    vector = torch.empty(layout.size, dtype=layout.torch_dtype)
    views = layout.views(vector)
    if set(views) != set(tensors):
        odd = sorted(set(views) ^ set(tensors))[0]
        raise ModelError(f"{path} and the model do not have the same tensors ({odd} is in one alone); check --model")
    for name, view in views.items():
        if view.shape != tensors[name].shape or view.dtype != tensors[name].dtype:
            found = f"{list(tensors[name].shape)} {tensors[name].dtype}"
            raise ModelError(f"{path}: {name} is {found}, the model has {list(view.shape)} {view.dtype}; check --model")
        view.copy_(tensors[name])
    return vector


def read_checkpoint(path: Path) -> Checkpoint:
    """Who wrote the checkpoint, and when. Raises ModelError."""
    checkpoint: Checkpoint = _read(path, Checkpoint)[0]
    return checkpoint


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
        model = build_model(facts.model, facts.input_shape, facts.outputs, seed=0)
    layout = layout_of(model)
    views = layout.views(read_vector(path, layout))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(views[name])
    return model.eval()


def _read(path: Path, kind: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            if kind is not None:
                return msgspec.json.decode(metadata.get(_KEY, ""), type=kind), {}
            return None, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    except FileNotFoundError as error:
        raise ModelError(f"there is no file {path}; check the path") from error
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is no model file: {error}") from error
    except msgspec.MsgspecError as error:
        raise ModelError(f"{path} was not written by p2pfl, or by another version: {error}") from error
