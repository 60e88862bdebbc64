"""Data by name: embedded or scikit-learn's digits, quadratics, torchvision's sets, images, .csv, .npz, functions."""

import difflib
import importlib.resources
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import TensorDataset

from p2pfl.errors import DataError, UsageError
from p2pfl.keys import random_key
from p2pfl.learning import quadratic
from p2pfl.learning.examples import JSON, Data, Examples, Pair, Task, assemble, hold_back
from p2pfl.learning.images import load_image_folder
from p2pfl.learning.tabular import Missing, load_table
from p2pfl.learning.vision import SOURCES, load_vision
from p2pfl.partition import Indices, split
from p2pfl.spelling import Spelled, is_function, load_function, parse

__all__ = ["Data", "Examples", "data_of", "load_data", "parts_of"]

_EMBEDDED = "mnist10k"
_DIGITS = "digits"


def load_data(
    name: str | Path,
    *,
    part: tuple[int, int] | None = None,
    alpha: float | None = None,
    seed: int = 0,
    target: str | None = None,
    task: Task | None = None,
    missing: Missing = "refuse",
    preparation: Mapping[str, JSON] | None = None,
    root: Path | None = None,
) -> Data:
    """Read a data set and keep one peer's part of its training examples; the test part is whole for every peer.

    Args:
        name: `mnist10k`, scikit-learn's `digits`, `quadratic:dim=10,groups=16` (see `quadratic.Quadratic`), a name of
            torchvision's (`fashion-mnist`, `emnist:split=letters`), `package.module:function` (called without
            arguments, returns `Data` or (train, test), each a Dataset or a pair of arrays), or the path of a folder of
            images (one subfolder a class), of a .csv, or of an .npz (arrays x and y, or x_train, y_train, x_test and
            y_test). Files that do not say which examples are for testing give a fixed fifth.
        part: (I, N), from 1: the I-th of N parts; None keeps all.
        alpha: Dirichlet concentration of classes in the parts, less is more uneven; None for equal parts.
        seed: the recipe's; draws the parts and nothing else.
        target, task, missing, preparation: of a CSV file, see `load_table`.
        root: the folder where torchvision's files are or go; None is `data` in the current folder.

    Raises:
        DataError: no such data, or data, parts or options that do not fit; the message says the mend.
    """
    is_csv = Path(name).suffix.lower() == ".csv"
    if not is_csv and (target, task, missing, preparation) != (None, None, "refuse", None):
        raise DataError(f"target, task, missing and preparation are for .csv files; leave them out for {name}")
    if missing not in ("refuse", "drop", "mean") or task not in (None, "classification", "regression"):
        raise DataError(
            f"missing is {missing!r} and task {task!r}; use refuse, drop or mean, and classification or regression"
        )
    if alpha is not None and part is None:
        raise DataError("alpha says how uneven parts are, and no part is asked for; pass part=(I, N), or leave it out")
    if part is not None and not 1 <= part[0] <= part[1]:
        raise DataError(f"part {part[0]}/{part[1]} cannot be; write I/N with I from 1 to N")
    if is_csv:
        data = load_table(_existing(name), target, task=task, missing=missing, preparation=preparation)
    else:
        data = _load(name, Path("data") if root is None else root.expanduser())
    if part is None:
        return data
    index, parts = part
    chosen = torch.from_numpy(parts_of(data, parts, alpha, seed)[index - 1])
    return replace(data, train=data.train.subset(chosen))


def parts_of(data: Data, parts: int, alpha: float | None, seed: int) -> tuple[Indices, ...]:
    """Positions in the whole training part of each peer's examples, as `load_data` deals them.

    Data that has a group for every peer is dealt by groups, unless alpha is given.

    Raises:
        DataError: more parts than examples, or alpha for regression.
    """
    if data.groups and alpha is None:
        if data.groups != parts:
            raise DataError(f"{data.name} has {data.groups} groups for {parts} parts; say groups={parts} in its name")
        return tuple(np.split(np.arange(len(data.train)), parts))
    labels = data.train.targets.numpy() if data.task == "classification" else None
    return split(len(data.train), labels, parts, alpha, random_key(seed, "partition"))


def data_of(train: Data | Any, test: Any = None, name: str = "own") -> Data:
    """One's own examples as data: two Datasets or pairs (inputs, targets), or `Data` as it is.

    Without a test part, the data's is empty.

    Raises:
        DataError: examples that cannot be learned from.
    """
    if isinstance(train, Data):
        if test is None:
            return train
        inputs, targets = train.train.inputs, train.train.targets
        return replace(train, test=assemble(train.name, (inputs, targets), _pair("test", test)).test)
    own = _pair("train", train)
    data = assemble(name, own, own if test is None else _pair("test", test))
    return data if test is not None else replace(data, test=Examples(data.test.inputs[:0], data.test.targets[:0]))


def _load(name: str | Path, root: Path) -> Data:
    text = str(name)
    if not isinstance(name, Path):
        if text == _EMBEDDED:
            return _embedded()
        if text == _DIGITS:
            return _digits()
        if text.partition(":")[0] == quadratic.NAME and not text.endswith(":"):
            return quadratic.quadratic(quadratic.read(_spelled(text)), text)
        if text.partition(":")[0] in SOURCES and not text.endswith(":"):
            if ":" in text and "=" not in text:
                raise DataError(f"{text!r} is not of the form NAME:key=value, as emnist:split=letters")
            return load_vision(parse(text), root)
        if is_function(text):
            return _from_function(text)
    path = _existing(name)
    if path.is_dir():
        return load_image_folder(path)
    if path.suffix.lower() == ".npz":
        return _from_npz(path)
    raise DataError(f"{path} is of no known kind; give a folder of images, a .csv or an .npz")


def _existing(name: str | Path) -> Path:
    path = Path(name).expanduser()
    if path.exists():
        return path
    if isinstance(name, Path) or len(path.parts) > 1 or path.suffix:
        raise DataError(f"there is no file or folder {path.absolute()}; check the path")
    names = (_EMBEDDED, *SOURCES, _DIGITS, quadratic.NAME)
    near = difflib.get_close_matches(str(name).partition(":")[0].lower().replace("_", "-"), names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise DataError(
        f"there is no data {str(name)!r}; {hint}known: {', '.join(names)}, a folder of images, a .csv, an .npz, "
        "or package.module:function"
    )


def _embedded() -> Data:
    with (
        (importlib.resources.files("p2pfl.learning") / "mnist10k.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as arrays,
    ):
        x, y = arrays["x"], arrays["y"]
    train, test = hold_back(len(x))
    return assemble(_EMBEDDED, (x[train], y[train]), (x[test], y[test]))


def _digits() -> Data:
    """1,797 digits of 8 × 8 pixels, from 0 to 1."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("digits comes with scikit-learn, which is not installed: pip install scikit-learn") from error
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    train, test = hold_back(len(x))
    return assemble(_DIGITS, (x[train], y[train]), (x[test], y[test]))


def _spelled(text: str) -> Spelled:
    try:
        return parse(text)
    except UsageError as error:
        raise DataError(str(error)) from error


def _from_npz(path: Path) -> Data:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read: {error}; save it by numpy.savez without object arrays") from error
    names = ("x_train", "y_train", "x_test", "y_test")
    if all(name in arrays for name in names):
        x_train, y_train, x_test, y_test = (arrays[name] for name in names)
        return assemble(path.stem, (x_train, y_train), (x_test, y_test))
    if "x" in arrays and "y" in arrays:
        x, y = arrays["x"], arrays["y"]
        if not x.ndim or not y.ndim or len(x) != len(y):
            raise DataError(f"{path.name} has x of shape {x.shape} and y of shape {y.shape}; give one y each x")
        train, test = hold_back(len(x))
        return assemble(path.stem, (x[train], y[train]), (x[test], y[test]))
    raise DataError(f"{path.name} has the arrays {', '.join(arrays)}; name them x and y, or {', '.join(names)}")


def _from_function(text: str) -> Data:
    try:
        result = load_function(text)()
    except UsageError as error:
        raise DataError(str(error)) from error
    if isinstance(result, Data):
        return result
    if not (isinstance(result, tuple | list) and len(result) == 2):
        raise DataError(f"{text} returned a {type(result).__name__}; let it return Data or a pair (train, test)")
    train, test = (_pair(text, each) for each in result)
    return assemble(text, train, test)


def _pair(text: str, dataset: Any) -> Pair:
    """Inputs and targets of a Dataset or of a pair of arrays."""
    if isinstance(dataset, Examples):
        return dataset.inputs, dataset.targets
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        return dataset.tensors[0], dataset.tensors[1]
    if isinstance(dataset, tuple | list) and len(dataset) == 2 and all(hasattr(each, "shape") for each in dataset):
        return dataset[0], dataset[1]
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")) or hasattr(dataset, "shape"):
        raise DataError(
            f"{text} gave a {type(dataset).__name__} for examples; give a Dataset with a length, or (inputs, targets)"
        )
    try:
        items = [dataset[index] for index in range(len(dataset))]
        return np.stack([np.asarray(x) for x, _ in items]), np.stack([np.asarray(y) for _, y in items])
    except (TypeError, ValueError) as error:
        raise DataError(f"{text}: its examples are not pairs (input, target) of one shape: {error}") from error
