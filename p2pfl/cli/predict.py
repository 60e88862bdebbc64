"""`p2pfl predict`: what a saved model says of images, or of the rows of a table."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from p2pfl.cli import options
from p2pfl.cli.evaluate import ModelFile, OwnModel, open_model, outputs_of
from p2pfl.errors import DataError, ModelError, UsageError
from p2pfl.plain import printable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from p2pfl.model_files import ModelFacts

EXAMPLES = """Examples:

p2pfl predict runs/demo/models/alice.safetensors digit.png

p2pfl predict alice.safetensors scans/*.jpg --invert yes --top 3

p2pfl predict alice.safetensors houses.csv --json"""

_BRIGHT = 128
_MOST_SHOWN = 1000  # rows of a table on the screen
_MOST_PIXELS = 1 << 13  # of a side of an input; a file can ask for any
_NAMED = 3  # unreadable files in a message
# Sets of bright strokes on black, where paper is dark on bright; "" where a file does not say what it was trained on.
_ON_BLACK = ("", "mnist10k", "mnist", "fashion-mnist", "kmnist", "emnist", "qmnist")


class _Image(msgspec.Struct, frozen=True):
    """How an image becomes an input, as `Data.preparation` of images says."""

    channels: Literal[1, 3]
    height: Annotated[int, msgspec.Meta(ge=1, le=_MOST_PIXELS)]
    width: Annotated[int, msgspec.Meta(ge=1, le=_MOST_PIXELS)]


def command(
    file: ModelFile,
    inputs: Annotated[
        list[Path], typer.Argument(metavar="IMAGE", help="Images; .csv files for a table's model.", show_default=False)
    ],
    model: OwnModel = None,
    invert: Annotated[
        str,
        typer.Option(
            metavar="auto|yes|no",
            help="Swap black and white: digits are white on black in MNIST, and black on white on paper.",
        ),
    ] = "auto",
    top: Annotated[int, typer.Option(min=1, help="How many of the likeliest classes to show.")] = 1,
    json: options.Json = False,
) -> None:
    """Ask a saved model about images, or about the rows of a .csv file."""
    from p2pfl.model_files import read_facts

    if invert not in ("auto", "yes", "no"):
        raise UsageError(f"--invert {invert!r}: choose auto, yes or no")
    facts = read_facts(file)
    kind = facts.preparation.get("kind")
    if kind == "image":
        predictions = _of_images(file, facts, inputs, model, invert, top)
    elif kind == "table":
        predictions = _of_tables(file, facts, inputs, model, top)
    else:
        how = f"takes {printable(str(kind))[:32]}s" if kind else "does not say how its inputs were prepared"
        raise ModelError(f"{file} {how}, not images or tables; use p2pfl.load_model in Python")
    if json:
        options.print_json({"model": str(file), "task": facts.task, "predictions": predictions})
    else:
        _print(predictions, options.console(False))


def is_bright_around(pixels: "npt.NDArray[np.uint8]") -> bool:
    """Whether the border of [height, width] pixels is rather white than black, by its median."""
    import numpy as np

    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    return bool(np.median(border) >= _BRIGHT)


def _of_images(
    file: Path, facts: "ModelFacts", paths: Sequence[Path], spec: str | None, invert: str, top: int
) -> list[dict[str, Any]]:
    import numpy as np
    import torch

    try:
        form = msgspec.convert(facts.preparation, _Image)
    except msgspec.ValidationError as error:
        raise ModelError(
            f"{file} does not say how images become inputs ({error}); give a file that p2pfl wrote"
        ) from error
    tables = [path for path in paths if path.suffix.lower() == ".csv"]
    if tables:
        raise ModelError(f"{file} takes images, and {tables[0]} is a table; give image files")
    prepared = _prepared(paths, form)
    inverted = [_is_inverted(path, pixels, facts.data, invert) for path, pixels in zip(paths, prepared, strict=True)]
    pixels = np.stack([255 - each if swap else each for each, swap in zip(prepared, inverted, strict=True)])
    found = _predicted(file, facts, spec, torch.from_numpy(pixels), top, facts.task)
    return [
        {"input": str(path), "inverted": swap, **each} for path, swap, each in zip(paths, inverted, found, strict=True)
    ]


def _prepared(paths: Sequence[Path], form: _Image) -> "list[npt.NDArray[np.uint8]]":
    """[channels, height, width] of each file. Raises DataError, with the files that are no images."""
    from PIL import Image, ImageOps
    from PIL.Image import DecompressionBombError, DecompressionBombWarning

    from p2pfl.learning.images import prepare_image

    prepared, unreadable = [], []
    for path in paths:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DecompressionBombWarning)
                with Image.open(path) as image:
                    upright = ImageOps.exif_transpose(image)
            prepared.append(prepare_image(upright, form.channels, form.height, form.width))
        except FileNotFoundError:
            unreadable.append(f"{path} (no such file)")
        except (OSError, SyntaxError, ValueError, DecompressionBombError):
            unreadable.append(str(path))
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
    if unreadable:
        more = f" and {len(unreadable) - _NAMED} more" if len(unreadable) > _NAMED else ""
        raise DataError(f"cannot be read as an image: {', '.join(unreadable[:_NAMED])}{more}; check, convert or omit")
    return prepared


def _is_inverted(path: Path, pixels: "npt.NDArray[np.uint8]", data: str, invert: str) -> bool:
    """Whether to swap black and white; what is decided for a person is told."""
    if pixels.min() == pixels.max():
        typer.echo(f"p2pfl: {path} is of one color only (transparent parts do not count)", err=True)
    if invert != "auto":
        return invert == "yes"
    if len(pixels) != 1 or not is_bright_around(pixels[0]):
        return False
    if data.partition(":")[0] not in _ON_BLACK:
        typer.echo(f"p2pfl: {path} has a bright border; if the training images had dark ones, --invert yes", err=True)
        return False
    typer.echo(f"p2pfl: {path} has a bright border and is inverted; --invert no leaves it", err=True)
    return True


def _of_tables(
    file: Path, facts: "ModelFacts", paths: Sequence[Path], spec: str | None, top: int
) -> list[dict[str, Any]]:
    import torch

    from p2pfl.learning import tabular

    table = tabular.read_preparation(facts.preparation)
    names = [column.name for column in table.columns]
    found: list[dict[str, Any]] = []
    for path in paths:
        if path.suffix.lower() != ".csv":
            columns = printable(", ".join(names[:8])) + (" …" if len(names) > 8 else "")
            raise ModelError(f"{file} takes rows of a table; give a .csv file with the columns {columns}")
        frame = tabular.read_csv(path)
        if frame.empty:
            raise DataError(f"{path} has no rows; give at least one below the header line")
        rows = tabular.inputs(frame, table)
        empty = int(frame[names].isna().sum().sum())
        if empty:
            typer.echo(f"p2pfl: {path}: {empty} empty cells count as the training mean, or as no category", err=True)
        predicted = _predicted(file, facts, spec, torch.from_numpy(rows), top, table.task)
        for row, each in enumerate(predicted, 1):
            if isinstance(each.get("value"), list):
                raise ModelError(f"{file} gives several numbers for {table.target!r}; check --model")
            if "value" in each:
                each = {"target": table.target, "value": each["value"] * table.target_std + table.target_mean}
            found.append({"input": str(path), "row": row, **each})
    return found


def _predicted(
    file: Path, facts: "ModelFacts", spec: str | None, inputs: "torch.Tensor", top: int, task: str
) -> list[dict[str, Any]]:
    """For each input {label, probability, top}, or {value}."""
    import torch

    from p2pfl.learning.examples import Examples

    model = open_model(file, facts, spec, inputs.shape[1:], len(facts.labels) or 1)
    outputs = outputs_of(file, model, Examples(inputs, torch.zeros(len(inputs), dtype=torch.int64))).double()
    if not outputs.isfinite().all():
        raise ModelError(f"{file} gives outputs that are not finite; its training went wrong: take an earlier one")
    if task == "regression":
        values = outputs.reshape(len(inputs), -1)
        return [{"value": row[0] if len(row) == 1 else row} for row in values.tolist()]
    if outputs.ndim != 2:
        raise ModelError(f"{file} does not give one output a class; check --model")
    names = [printable(label) for label in facts.labels] or [str(index) for index in range(outputs.shape[1])]
    if len(names) != outputs.shape[1]:
        raise ModelError(f"{file} names {len(names)} classes and gives {outputs.shape[1]} outputs; check --model")
    likeliest, classes = outputs.softmax(1).topk(min(top, len(names)))
    found = []
    for probabilities, indices in zip(likeliest.tolist(), classes.tolist(), strict=True):
        best = [{"label": names[i], "probability": p} for i, p in zip(indices, probabilities, strict=True)]
        found.append({**best[0], "top": best})
    return found


def _print(predictions: Sequence[Mapping[str, Any]], console: Console) -> None:
    first = predictions[0]
    several = "row" not in first or len({each["input"] for each in predictions}) > 1
    titles = ["input"] if several else []
    titles += ["row"] if "row" in first else []
    titles += ["label", "probability"] if "label" in first else [printable(first.get("target", "value"))]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in titles:
        right = title not in ("input", "label")
        table.add_column(Text(title), justify="right" if right else "left", overflow="fold")
    for each in predictions[:_MOST_SHOWN]:
        start = [printable(each["input"])] if several else []
        start += [str(each["row"])] if "row" in each else []
        if "label" not in each:
            values = each["value"] if isinstance(each["value"], list) else [each["value"]]
            table.add_row(*map(Text, start), Text("  ".join(f"{value:.6g}" for value in values)))
            continue
        for place, guess in enumerate(each["top"]):
            style = "" if place else "bold"
            cells = [
                *(start if not place else [""] * len(start)),
                guess["label"],
                options.percent(guess["probability"]),
            ]
            table.add_row(*(Text(cell, style=style if cell == guess["label"] else "") for cell in cells))
    console.print(table)
    if len(predictions) > _MOST_SHOWN:
        typer.echo(f"p2pfl: {len(predictions) - _MOST_SHOWN} more rows; --json gives all", err=True)
