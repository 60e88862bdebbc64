"""Images of any size and mode, brought to one shape in memory; and folders of them, one subfolder a class."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from p2pfl.errors import DataError
from p2pfl.learning.examples import Data, assemble, hold_back

if TYPE_CHECKING:
    from PIL.Image import Image

_GRAY_MODES = ("1", "L", "LA")
_DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # Pillow clips these at 255 instead of scaling them
_MAX_BYTES = 8 << 30
_NAMED = 5  # how many files an error names


def prepare_image(image: "Image", channels: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """[channels, height, width] pixels of an image in any mode, resized where it must be.

    Args:
        channels: 1 for gray, 3 for RGB.

    Raises:
        DataError: more than 8 bits a channel.
    """
    from PIL.Image import Resampling

    if image.mode in _DEEP_MODES:
        raise DataError(f"an image has more than 8 bits a channel (mode {image.mode}); convert it to 8")
    converted = image.convert("L" if channels == 1 else "RGB")
    if converted.size != (width, height):
        converted = converted.resize((width, height), Resampling.BILINEAR)
    pixels = np.asarray(converted, dtype=np.uint8).reshape(height, width, channels)
    return np.moveaxis(pixels, 2, 0)


def stack(name: str, n: int, image: Callable[[int], "Image"], shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """[n, channels, height, width]: each image prepared to `shape`.

    Raises:
        DataError: the whole would take more than 8 GiB.
    """
    channels, height, width = shape
    size = n * channels * height * width
    if size > _MAX_BYTES:
        raise DataError(
            f"{n} images of {name} at {height}×{width} take {size / 2**30:.0f} GiB of memory; make them smaller"
        )
    pixels = np.empty((n, *shape), dtype=np.uint8)
    for index in range(n):
        pixels[index] = prepare_image(image(index), channels, height, width)
    return pixels


def load_image_folder(folder: Path) -> Data:
    """Read a folder of images: one subfolder a class, below train/ and test/ where both exist.

    All take the size of the first (by class, then file name), and become gray only if all are gray. Hidden files are
    passed over; any other file must be an image.

    Raises:
        DataError: no classes, or files that cannot be read as images; names the first few.
    """
    parts = [folder / "train", folder / "test"]
    divided = all(part.is_dir() for part in parts)
    names = sorted({child.name for part in (parts if divided else [folder]) for child in _children(part, True)})
    found = [_files(part, names) for part in (parts if divided else [folder])]
    if not found[0] or not found[-1]:
        raise DataError(f"{folder} holds no images; put them into one subfolder a class, as {folder}/cat/1.png")
    files = [file for part in found for file, _ in part]
    targets = np.array([target for part in found for _, target in part], dtype=np.int64)
    pixels = stack(folder.name, len(files), lambda index: _open(files[index]), _common_shape(files))
    if divided:
        train, test = np.split(np.arange(len(files)), [len(found[0])])
    else:
        train, test = hold_back(len(files))
    return assemble(folder.name, (pixels[train], targets[train]), (pixels[test], targets[test]), names)


def _children(folder: Path, folders: bool) -> list[Path]:
    return sorted(
        child for child in folder.iterdir() if child.is_dir() == folders and not child.name.startswith((".", "__"))
    )


def _files(folder: Path, names: Sequence[str]) -> list[tuple[Path, int]]:
    """The files of each class with the class's position, in an order that does not depend on the disk."""
    return [
        (file, target)
        for target, name in enumerate(names)
        if (folder / name).is_dir()
        for file in _children(folder / name, False)
    ]


def _open(file: Path) -> "Image":
    from PIL import Image, ImageOps

    with Image.open(file) as image:
        # A phone's photo lies on its side until its EXIF orientation is applied.
        return ImageOps.exif_transpose(image)


def _common_shape(files: Sequence[Path]) -> tuple[int, int, int]:
    """Read every file once, so that all unreadable ones are named together before memory is taken."""
    from PIL.Image import DecompressionBombError

    unreadable: list[str] = []
    sizes: list[tuple[int, int]] = []
    gray = True
    for file in files:
        try:
            image = _open(file)
            image.load()
        except (OSError, SyntaxError, ValueError, DecompressionBombError):
            unreadable.append(str(file))
            continue
        if image.mode in _DEEP_MODES:
            unreadable.append(f"{file} (more than 8 bits a channel)")
        sizes.append(image.size)
        gray = gray and image.mode in _GRAY_MODES
    if unreadable:
        more = f" and {len(unreadable) - _NAMED} more" if len(unreadable) > _NAMED else ""
        raise DataError(
            f"cannot be read as 8-bit images: {', '.join(unreadable[:_NAMED])}{more}; convert or remove them"
        )
    width, height = sizes[0]
    return (1 if gray else 3, height, width)
