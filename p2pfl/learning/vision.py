"""Classification data sets of torchvision by name: `fashion-mnist`, `emnist:split=letters`, `food101:pixels=64`."""

import http.client
import re
import socket
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from p2pfl.errors import DataError
from p2pfl.learning.examples import Array, Data, assemble
from p2pfl.learning.images import stack
from p2pfl.spelling import Spelled

_IDX = "the files {split}train-images-idx3-ubyte, {split}train-labels-idx1-ubyte, {split}t10k-… (or .gz)"
_UNREADABLE = (
    RuntimeError,
    OSError,
    ValueError,
    ImportError,
    EOFError,
    http.client.HTTPException,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)
_STALLED_S = 20.0


@dataclass(frozen=True)
class _Source:
    """How torchvision spells one data set."""

    type_name: str
    switch: Literal["train", "split"] = "split"  # the argument that tells training from test
    test: str = "test"  # what `split` is called for the test part
    train: str = "train"
    files: str = ""  # what to put below the root where it cannot be downloaded
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    required: str = ""  # the option without which it has no meaning


SOURCES: Mapping[str, _Source] = {
    "mnist": _Source("MNIST", "train", files="MNIST/raw"),
    "fashion-mnist": _Source("FashionMNIST", "train", files="FashionMNIST/raw"),
    "kmnist": _Source("KMNIST", "train", files="KMNIST/raw"),
    "qmnist": _Source("QMNIST", "train", files="QMNIST/raw"),
    "emnist": _Source(
        "EMNIST",
        "train",
        files="EMNIST/raw",
        options={"split": ("balanced", "byclass", "bymerge", "digits", "letters", "mnist")},
        required="split",
    ),
    "cifar10": _Source("CIFAR10", "train", files="cifar-10-batches-py"),
    "cifar100": _Source("CIFAR100", "train", files="cifar-100-python"),
    "svhn": _Source("SVHN", files="train_32x32.mat and test_32x32.mat"),
    "usps": _Source("USPS", "train", files="usps.bz2 and usps.t.bz2"),
    "stl10": _Source("STL10", files="stl10_binary"),
    "clevr-classification": _Source("CLEVRClassification", test="val"),
    "country211": _Source("Country211"),
    "dtd": _Source("DTD"),
    "fgvc-aircraft": _Source(
        "FGVCAircraft", train="trainval", options={"annotation_level": ("variant", "family", "manufacturer")}
    ),
    "flowers102": _Source("Flowers102"),
    "food101": _Source("Food101"),
    "gtsrb": _Source("GTSRB"),
    "imagenette": _Source("Imagenette", test="val", options={"size": ("full", "320px", "160px")}),
    "oxford-iiit-pet": _Source("OxfordIIITPet", train="trainval"),
    "pcam": _Source("PCAM"),
    "rendered-sst2": _Source("RenderedSST2"),
    "stanford-cars": _Source("StanfordCars"),
}


def load_vision(spelled: Spelled, root: Path) -> Data:
    """Read a data set of `SOURCES` from below `root`, or download it there.

    Images of different sizes take the size of the first, or the option `pixels`: the height and width of all.

    Raises:
        DataError: an option that does not fit, or neither the files nor a network.
    """
    name, source = spelled.name, SOURCES[spelled.name]
    options = dict(spelled.options)
    pixels = _pixels(name, options.pop("pixels", None))
    for key, value in options.items():
        if value not in source.options.get(key, ()):
            known = [f"{k}={'|'.join(choices)}" for k, choices in source.options.items()] + ["pixels=SIZE"]
            raise DataError(f"{name} has no option {key}={value}; it has {', '.join(known)}")
    if source.required and source.required not in options:
        choices = source.options[source.required]
        example = f"{name}:{source.required}={choices[0]}"
        raise DataError(f"{name} needs a {source.required}: {', '.join(choices)}; write {example}")
    train, test = (_open(name, source, options, root, training) for training in (True, False))
    first = _arrays(name, train, pixels, None)
    # The test part follows the training part's shape, also where its own first image differs.
    second = _arrays(name, test, pixels, first[0].shape[1:])
    return assemble(str(spelled), first, second, _labels(train))


def _open(name: str, source: _Source, options: Mapping[str, str], root: Path, training: bool) -> Any:
    """The torchvision data set as it lies on disk, else downloaded."""
    import torchvision

    factory = getattr(torchvision.datasets, source.type_name)
    arguments: dict[str, Any] = dict(options)
    arguments[source.switch] = training if source.switch == "train" else source.train if training else source.test
    try:
        return factory(root, download=False, **arguments)
    except _UNREADABLE:
        pass  # absent or damaged: the download tells which, and mends it
    try:
        with _stalling_fails():
            return factory(root, download=True, **arguments)
    except _UNREADABLE as error:
        wanted = source.files or f"what torchvision.datasets.{source.type_name} reads"
        if wanted.endswith("/raw"):
            split = f"emnist-{options['split']}-" if source.required else ""
            files = "" if source.type_name == "QMNIST" else _IDX.format(split=split) + " in "
            wanted = f"{files}the folder {wanted}"
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{name} is not in {root.resolve()} and could not be downloaded ({reason}); "
            f"put {wanted} there, or use mnist10k, which needs no network"
        ) from error


@contextmanager
def _stalling_fails() -> Iterator[None]:
    """Let a silent mirror fail: torchvision opens its connections without a timeout and would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_STALLED_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _arrays(name: str, dataset: Any, pixels: int | None, shape: tuple[int, ...] | None) -> tuple[Array, Array]:
    """[n, c, h, w] uint8 and [n] classes: the array a small data set holds, or images read one by one.

    Args:
        pixels: height and width to resize to, where given.
        shape: [c, h, w] to bring images to; None takes the first image's.
    """
    held, targets = getattr(dataset, "data", None), getattr(dataset, "targets", getattr(dataset, "labels", None))
    if pixels is None and held is not None and targets is not None and hasattr(held, "shape"):
        return held, np.asarray(targets)
    if shape is None:
        image, _ = dataset[0]
        size = (pixels, pixels) if pixels else (image.height, image.width)
        shape = (1 if image.mode in ("1", "L") else 3, *size)
    classes: npt.NDArray[np.int64] = np.empty(len(dataset), dtype=np.int64)

    def read(index: int) -> Any:
        image, classes[index] = dataset[index]
        return image

    return stack(name, len(dataset), read, (shape[0], shape[1], shape[2])), classes


def _labels(dataset: Any) -> tuple[str, ...]:
    """Class names where torchvision knows them; "7 - seven" is plain 7, so that mnist and mnist10k agree."""
    classes = getattr(dataset, "classes", None) or ()
    return tuple(re.sub(r"^(\d) - \w+$", r"\1", str(each)) for each in classes)


def _pixels(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 4096):
        raise DataError(f"pixels is {text!r}; write a height and width in pixels, as {name}:pixels=64")
    return int(text)
