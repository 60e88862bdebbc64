"""Labeled examples held in memory, and the training and test parts that make a data set."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from p2pfl.errors import DataError
from p2pfl.keys import random_key

Task: TypeAlias = Literal["classification", "regression"]
JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"  # what a recipe can carry
Array: TypeAlias = torch.Tensor | npt.NDArray[Any]  # [n, …]: inputs or targets before they are checked
Pair: TypeAlias = tuple[Array, Array]  # inputs and targets of equal length

_CHUNK_BYTES = 1 << 22


class Examples(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Inputs and targets side by side; bytes stay bytes until a batch is asked for."""

    def __init__(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Hold two tensors without copying them.

        Args:
            inputs: [n, …] uint8 or float32; uint8 reads as 0…1 in batches.
            targets: [n] int64 classes, or [n, k] float32 numbers.

        Raises:
            DataError: another type or shape, or different lengths.
        """
        if inputs.dtype not in (torch.uint8, torch.float32) or inputs.ndim < 2:
            raise DataError(
                f"inputs are {inputs.dtype} {list(inputs.shape)}; make them uint8 or float32 of shape [n, …]"
            )
        if (targets.dtype, targets.ndim) not in ((torch.int64, 1), (torch.float32, 2)):
            raise DataError(f"targets are {targets.dtype} {list(targets.shape)}; make them int64 [n] or float32 [n, k]")
        if len(inputs) != len(targets):
            raise DataError(f"{len(inputs)} inputs have {len(targets)} targets; give one each")
        self.inputs = inputs
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return _as_float(self.inputs[index]), self.targets[index]

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of the chosen inputs, [k, …] float32, and of their targets."""
        return _as_float(self.inputs[indices]), self.targets[indices]

    def subset(self, indices: torch.Tensor) -> "Examples":
        """A copy of the chosen examples, in the order of `indices`."""
        return Examples(self.inputs[indices], self.targets[indices])

    def fingerprint(self) -> str:
        """32 hex digits over shapes, types and bytes: equal on every machine for equal examples, in equal order."""
        digest = hashlib.blake2b(digest_size=16)
        for tensor in (self.inputs, self.targets):
            digest.update(f"{tensor.dtype}{list(tensor.shape)};".encode())
            row_bytes = max(1, tensor[:1].numel() * tensor.element_size())
            rows = max(1, _CHUNK_BYTES // row_bytes)
            for start in range(0, len(tensor), rows):
                values = tensor[start : start + rows].contiguous().numpy()
                little = values.astype(values.dtype.newbyteorder("<"), copy=False)
                digest.update(little.reshape(-1).view(np.uint8).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Data:
    """A training part of one's own and a test part that all peers share, ready for a model."""

    name: str
    train: Examples
    test: Examples
    task: Task
    input_shape: tuple[int, ...]  # of one input, as [channels, height, width]
    outputs: int  # classes, or numbers a regression target has
    labels: tuple[str, ...]  # class names; empty for regression
    preparation: Mapping[str, JSON]  # what it takes to prepare a foreign input the same way; see its "kind"
    groups: int = 0  # equal blocks of the training part that each belong to a peer; 0 where the data has none


def _as_float(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.float32).div_(255) if values.dtype == torch.uint8 else values


def hold_back(n: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Shuffled positions of a training part and a fifth held back for testing.

    The shuffle depends on n alone, never on the recipe's seed: peers that hold the same file test on the same rows.

    Raises:
        DataError: fewer than 5 samples.
    """
    if n < 5:
        raise DataError(f"{n} samples are too few to hold a fifth back for testing; give at least 5")
    order = np.random.default_rng(random_key(0, "test part")).permutation(n)
    return order[: n - n // 5], order[n - n // 5 :]


def assemble(name: str, train: Pair, test: Pair, labels: Sequence[str] = ()) -> Data:
    """Check arrays and turn them into `Data`; the targets' type tells the task.

    uint8 inputs of shape [n, height, width] or [n, height, width, 1 or 3] are images and become [n, c, height, width].

    Args:
        train: inputs and targets; targets are integers from 0 or text for classes, floats [n] or [n, k] for numbers.
        test: the same of other samples.
        labels: class names in the order of the integers; without them, the integers or the text themselves.

    Raises:
        DataError: shapes, types, values or lengths that do not fit.
    """
    x_train, x_test = (_inputs(name, values) for values, _ in (train, test))
    y_train, y_test = (_plain(values) for _, values in (train, test))
    if x_train.shape[1:] != x_test.shape[1:]:
        shapes = f"{list(x_train.shape[1:])} and {list(x_test.shape[1:])}"
        raise DataError(f"{name}: training and test inputs have the shapes {shapes}; give both the same")
    if not len(x_train) or not len(x_test):
        raise DataError(f"{name} has {len(x_train)} training and {len(x_test)} test samples; give at least 1 of each")
    if y_train.dtype.kind in "US" and y_test.dtype.kind in "US":
        names, inverse = np.unique(np.concatenate([y_train, y_test]), return_inverse=True)
        labels = [str(each) for each in names]
        y_train, y_test = inverse[: len(y_train)], inverse[len(y_train) :]
    kinds = {"classification" if y.dtype.kind in "biu" else "regression" for y in (y_train, y_test)}
    if len(kinds) > 1:
        raise DataError(f"{name}: training and test targets are of different types; give both integers or both floats")
    task: Task = "classification" if "classification" in kinds else "regression"
    targets = _classes if task == "classification" else _numbers
    parts = [
        Examples(torch.from_numpy(x), torch.from_numpy(targets(name, y)))
        for x, y in ((x_train, y_train), (x_test, y_test))
    ]
    if task == "classification":
        outputs = 1 + max(int(part.targets.max()) for part in parts)
        if labels and len(labels) < outputs:
            raise DataError(f"{name} has classes up to {outputs - 1} and {len(labels)} labels; name each class")
        labels = tuple(labels) or tuple(str(index) for index in range(outputs))
        outputs = len(labels)
    else:
        outputs, labels = parts[0].targets.shape[1], ()
        if parts[1].targets.shape[1] != outputs:
            raise DataError(f"{name}: training and test targets have different widths; give both the same")
    shape = tuple(x_train.shape[1:])
    preparation: dict[str, JSON] = {"kind": "array", "shape": list(shape)}
    if x_train.dtype == np.uint8 and len(shape) == 3:
        preparation = {"kind": "image", "channels": shape[0], "height": shape[1], "width": shape[2]}
    return Data(name, parts[0], parts[1], task, shape, outputs, tuple(labels), preparation)


def _plain(values: Array) -> npt.NDArray[Any]:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.is_floating_point() else values).numpy()
    return np.asarray(values)


def _inputs(name: str, values: Array) -> npt.NDArray[Any]:
    """[n, …] uint8 or float32, contiguous and writable."""
    array = _plain(values)
    if array.dtype.kind not in "biuf" or array.ndim < 1:
        raise DataError(f"{name}: inputs of type {array.dtype} cannot be learned from; make them numbers")
    if array.ndim == 1:
        array = array[:, None]
    if array.dtype == np.uint8:
        if array.ndim == 3:
            array = array[:, None]
        elif array.ndim == 4 and array.shape[3] in (1, 3) and array.shape[1] not in (1, 3):
            array = np.moveaxis(array, 3, 1)
    else:
        array = _float32(name, "inputs", array)
    # torch warns about arrays that it could not write to.
    return np.require(array, requirements=["C", "W"])


def _classes(name: str, values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise DataError(f"{name}: integer targets have the shape {list(values.shape)}; give one class a sample")
    if values.size and values.min() < 0:
        raise DataError(f"{name}: class {values.min()} is negative; number the classes from 0")
    return np.require(values.astype(np.int64), requirements=["C", "W"])


def _numbers(name: str, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    if values.dtype.kind != "f" or values.ndim not in (1, 2):
        raise DataError(
            f"{name}: targets of type {values.dtype} {list(values.shape)} cannot be learned; "
            "give integers or text for classes, floats [n] or [n, k] for numbers"
        )
    numbers = _float32(name, "targets", values[:, None] if values.ndim == 1 else values)
    return np.require(numbers, requirements=["C", "W"])


def _float32(name: str, what: str, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):
        array = values.astype(np.float32, copy=False)
    bad = int(array.size - np.count_nonzero(np.isfinite(array)))
    if bad:
        raise DataError(f"{name}: {bad} of the {what} are not finite in float32; fill, scale or drop them")
    return array
