"""`p2pfl evaluate`: a saved model against the test part of a data set."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from p2pfl.cli import options
from p2pfl.errors import ModelError, UsageError
from p2pfl.plain import printable

if TYPE_CHECKING:
    import torch
    from torch import nn

    from p2pfl.learning.data import Data
    from p2pfl.learning.examples import Examples
    from p2pfl.learning.tabular import Missing
    from p2pfl.model_files import ModelFacts

EXAMPLES = """Examples:

p2pfl evaluate runs/demo/models/alice.safetensors --data mnist10k

p2pfl evaluate alice.safetensors --data prices.csv --missing drop --json

p2pfl evaluate alice.safetensors --data digits.npz --model my_models:net"""

_BATCH = 1000
_MOST_CLASSES = 20  # more do not make a readable matrix
_PAIRS = 10
_SHORT = 4  # characters of a class name that fit above a column
_LONG = 24
_NAMED = 5  # class names in a message
_CONFUSED = 0.1  # of a class, mistaken for one other: shown in red

ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="A file of runs/…/models/.", show_default=False)]
OwnModel = Annotated[
    str | None,
    typer.Option(help="package.module:function, for a model of your own; what a file names is never imported."),
]


def command(
    file: ModelFile,
    data: Annotated[
        str,
        typer.Option(
            help="mnist10k, a torchvision name, a folder of images, .csv, .npz, or module:function.", show_default=False
        ),
    ],
    target: options.Target = None,
    model: OwnModel = None,
    missing: Annotated[
        str, typer.Option(metavar="refuse|drop|mean", help="What to do about empty cells of a CSV.")
    ] = "refuse",
    json: options.Json = False,
) -> None:
    """Measure a saved model on the test part of a data set: accuracy and confusion, or errors in the target's units."""
    from p2pfl.model_files import read_facts

    if missing not in ("refuse", "drop", "mean"):
        raise UsageError(f"--missing {missing!r}: choose refuse, drop or mean")
    facts = read_facts(file)
    loaded = _load(data, file, facts, target, missing)
    positions, labels, note = _check_fit(file, facts, loaded)
    if note:
        typer.echo(f"p2pfl: {note}", err=True)
    module = open_model(file, facts, model, loaded.input_shape, loaded.outputs)
    outputs = outputs_of(file, module, loaded.test)
    report: dict[str, Any] = {
        "model": str(file),
        "data": data,
        "task": loaded.task,
        "examples": len(loaded.test),
        "loss": None,
        "accuracy": None,
        "confusion": None,
        "labels": labels,
        "target": None,
        "mse": None,
        "mae": None,
    }
    if loaded.task == "classification":
        report |= _classes(file, outputs, loaded.test.targets, positions, len(labels))
    else:
        report |= _amounts(file, outputs, loaded.test.targets, loaded.preparation)
    if json:
        options.print_json(report)
    else:
        _print(report, options.console(False))


def open_model(
    file: Path, facts: "ModelFacts", spec: str | None, input_shape: Sequence[int], outputs: int
) -> "nn.Module":
    """The model of a file, filled and ready to use; what the file names is built, never imported.

    Args:
        spec: what this machine's user says the model is, if anything.
        input_shape, outputs: for a model of the user's own whose file does not tell them.

    Raises:
        ModelError: no such file, or it does not fit the model.
    """
    import torch

    from p2pfl.layout import layout_of
    from p2pfl.learning.models import build_model
    from p2pfl.model_files import load_model
    from p2pfl.spelling import is_function

    if spec is not None:
        return load_model(file, build_model(spec, facts.input_shape or input_shape, facts.outputs or outputs, seed=0))
    if not facts.model or is_function(facts.model):
        named = printable(facts.model)[:128]
        raise ModelError(
            f"{file} is a model of somebody's own making; if you have its code and trust it, say --model "
            + (named or "package.module:function")
        )
    try:
        with torch.device("meta"):  # shapes without memory: a file can ask for a model of any size
            wanted = layout_of(build_model(facts.model, facts.input_shape, facts.outputs, seed=0)).vector_bytes
    except (RuntimeError, OverflowError) as error:
        raise ModelError(f"{file}: {printable(facts.model)[:128]} cannot be built: {_first_line(error)}") from error
    if wanted > file.stat().st_size:
        raise ModelError(f"{file} holds less than its model has, {wanted} bytes; take a file that p2pfl wrote")
    return load_model(file)


def outputs_of(file: Path, model: "nn.Module", examples: "Examples") -> "torch.Tensor":
    """What the model says of each input, in order, on the CPU.

    Raises:
        ModelError: it cannot take inputs of this shape.
    """
    import torch

    dtype = next(model.parameters()).dtype
    found = []
    try:
        with torch.inference_mode():
            for positions in torch.split(torch.arange(len(examples)), _BATCH):
                found.append(model(examples.batch(positions)[0].to(dtype)))
            outputs = torch.cat(found)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        shape = _shape(examples.inputs.shape[1:])
        raise ModelError(f"{file} cannot take inputs of {shape}: {_first_line(error)}; check --model") from error
    if len(outputs) != len(examples):
        raise ModelError(f"{file} gives {len(outputs)} outputs for {len(examples)} inputs; check --model")
    return outputs


def match_labels(model: Sequence[str], data: Sequence[str]) -> list[int] | None:
    """Where each class of the data stands among the model's; None if they are not the same classes.

    By name; classes that are only numbered on one side go by position.
    """
    if set(data) <= set(model):
        return [list(model).index(label) for label in data]
    if len(data) <= len(model) and (_numbered(model) or _numbered(data)):
        return list(range(len(data)))
    return None


def confusion_matrix(predicted: "torch.Tensor", true: "torch.Tensor", classes: int) -> list[list[int]]:
    """How often a class (row) was taken for a class (column)."""
    import torch

    counts: list[list[int]] = (
        torch.bincount(true * classes + predicted, minlength=classes**2).view(classes, -1).tolist()
    )
    return counts


def worst_pairs(confusion: Sequence[Sequence[int]], limit: int) -> list[tuple[int, int, int]]:
    """The most frequent mistakes: (true class, predicted class, how often)."""
    mistakes = [
        (true, predicted, count)
        for true, row in enumerate(confusion)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    return sorted(mistakes, key=lambda mistake: -mistake[2])[:limit]


def _load(name: str, file: Path, facts: "ModelFacts", target: str | None, missing: str) -> "Data":
    from p2pfl.learning.data import load_data

    kind = facts.preparation.get("kind")
    is_csv = Path(name).suffix.lower() == ".csv"
    if is_csv and kind not in (None, "table"):
        raise ModelError(f"{file} takes {_inputs(facts)}, and {name} is a table; give --data as it was trained on")
    if is_csv and kind is None and target is None:
        raise UsageError(f"{file} does not say which column of {name} it predicts; give --target COLUMN")
    if not is_csv and kind == "table":
        raise ModelError(f"{file} takes rows of a table, and {name} is none; give a .csv file to --data")
    preparation = facts.preparation if is_csv and kind == "table" else None
    if is_csv and preparation is None:
        typer.echo(f"p2pfl: {file} does not say how columns are scaled; {name} is scaled by itself", err=True)
    return load_data(name, target=target, missing=cast("Missing", missing), preparation=preparation)


def _check_fit(file: Path, facts: "ModelFacts", data: "Data") -> tuple[list[int], list[str], str]:
    """Where the data's classes stand among the model's, the model's class names, and what a person should know.

    Raises:
        ModelError: model and data do not fit.
    """
    regression = data.task == "regression"
    if (
        (facts.task and facts.task != data.task)
        or (facts.input_shape and facts.input_shape != data.input_shape)
        or (facts.outputs and regression and facts.outputs != data.outputs)
    ):
        raise ModelError(
            f"{file} and {data.name} do not fit: the model takes {_shape(facts.input_shape or ('any',))} for "
            f"{_task(facts)}, the data has {_shape(data.input_shape)} for {_task(data)}; "
            "give --data as it was trained on"
        )
    if regression:
        return [], [], ""
    names = list(facts.labels or data.labels)
    if facts.outputs and len(names) != facts.outputs:
        raise ModelError(f"{file} names {len(names)} classes and has {facts.outputs} outputs; they must be as many")
    positions = match_labels(names, data.labels)
    if positions is None:
        raise ModelError(
            f"{file} and {data.name} do not fit: the model tells {_listing(names)} apart, the data has "
            f"{_listing(data.labels)}; give --data with the model's classes"
        )
    shown = [printable(label) for label in names]
    if [names[position] for position in positions] == list(data.labels):
        return positions, shown, ""
    first = ", ".join(f"{label} is {shown[position]}" for label, position in zip(data.labels, positions, strict=True))
    return positions, shown, f"the classes of {data.name} are taken in the model's order: {_cut(first, 60)}"


def _classes(
    file: Path, outputs: "torch.Tensor", targets: "torch.Tensor", positions: list[int], classes: int
) -> dict[str, Any]:
    import torch

    if outputs.ndim != 2 or outputs.shape[1] != classes:
        raise ModelError(f"{file} gives {_shape(outputs.shape[1:])} for an input, and there are {classes} classes")
    true = torch.tensor(positions)[targets]
    predicted = outputs.argmax(1)
    return {
        "loss": float(torch.nn.functional.cross_entropy(outputs, true)),
        "accuracy": float((predicted == true).double().mean()),
        "confusion": confusion_matrix(predicted, true, classes),
    }


def _amounts(
    file: Path, outputs: "torch.Tensor", targets: "torch.Tensor", preparation: Mapping[str, Any]
) -> dict[str, Any]:
    if outputs.numel() != targets.numel():
        shapes = f"{_shape(outputs.shape[1:])} for an input, and the data has {_shape(targets.shape[1:])}"
        raise ModelError(f"{file} gives {shapes}; give --data with as many targets")
    error = outputs.view_as(targets).double() - targets.double()
    # Training sees a table's target standardized; a person thinks in the column's own units.
    unit = float(preparation.get("target_std", 1.0))
    mse = float(error.square().mean())
    return {
        "loss": mse,
        "target": preparation.get("target"),
        "mse": mse * unit**2,
        "mae": float(error.abs().mean()) * unit,
    }


def _print(report: Mapping[str, Any], console: Console) -> None:
    if report["accuracy"] is None:
        unit = f" {printable(report['target'])}" if report["target"] else ""
        head = f"MAE {report['mae']:.4g}{unit}   MSE {report['mse']:.4g}{unit and f'{unit}²'}"
    else:
        head = f"accuracy {options.percent(report['accuracy'])}   loss {report['loss']:.4f}"
    line = Text(head, style="bold")
    line.append(f"   {report['examples']} test examples of {printable(report['data'])}", style="not bold")
    console.print(line)
    if report["confusion"] is None:
        return
    confusion, labels = report["confusion"], report["labels"]
    table = _matrix(confusion, labels)
    wide = Measurement.get(console, console.options.update(width=10_000), table).maximum > console.width
    console.print()
    if len(labels) > _MOST_CLASSES or wide:
        console.print(Text("the most frequent mistakes", style="dim"))
        console.print(_pairs(confusion, labels))
    else:
        console.print(Text("rows: true class, columns: predicted", style="dim"))
        console.print(table)


def _matrix(confusion: Sequence[Sequence[int]], labels: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    short = all(cell_len(label) <= _SHORT for label in labels)
    table.add_column("", no_wrap=True)
    for index, label in enumerate(labels):
        table.add_column(Text(label if short else str(index)), justify="right", no_wrap=True)
    table.add_column("accuracy", justify="right", no_wrap=True)
    for true, row in enumerate(confusion):
        total = sum(row)
        name = labels[true] if short else f"{true} {_cut(labels[true], _LONG)}"
        cells = [
            Text(str(count) if count else "·", style=_style(count, total, true == predicted))
            for predicted, count in enumerate(row)
        ]
        table.add_row(Text(name, style="bold"), *cells, options.percent(row[true] / total if total else None))
    return table


def _style(count: int, total: int, right: bool) -> str:
    if right:
        return "green"
    if not count:
        return "dim"
    return "red" if count >= _CONFUSED * total else ""


def _pairs(confusion: Sequence[Sequence[int]], labels: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title, justify in (("true", "left"), ("predicted", "left"), ("times", "right"), ("of the class", "right")):
        table.add_column(title, justify="right" if justify == "right" else "left", overflow="fold")
    for true, predicted, count in worst_pairs(confusion, _PAIRS):
        share = options.percent(count / sum(confusion[true]))
        table.add_row(Text(labels[true]), Text(labels[predicted]), str(count), share)
    return table


def _inputs(facts: "ModelFacts") -> str:
    kind = "images" if facts.preparation.get("kind") == "image" else "arrays"
    return f"{kind} of {_shape(facts.input_shape)}"


def _task(of: "ModelFacts | Data") -> str:
    what = "classes" if of.task == "classification" else "numbers"
    return f"{printable(of.task)[:32]} ({of.outputs} {what})"


def _shape(shape: Sequence[object]) -> str:
    return "×".join(map(str, shape)) or "one number"  # of an input or output without the batch


def _numbered(labels: Sequence[str]) -> bool:
    return list(labels) == [str(index) for index in range(len(labels))]


def _listing(labels: Sequence[str]) -> str:
    more = f" … ({len(labels)})" if len(labels) > _NAMED else ""
    return ", ".join(_cut(printable(label), _LONG) for label in labels[:_NAMED]) + more


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
