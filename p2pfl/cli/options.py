"""What several commands share: options, checks, and how figures are written."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segments
from rich.table import Table

from p2pfl.errors import UsageError
from p2pfl.types import Setting

NAMES = ("alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy", "mallory", "niaj")

Topology = Annotated[
    str | None,
    typer.Option(
        help="Who averages with whom: ring, torus, random-regular:k=4 …, a file, or a schedule that changes every "
        "round, as one-peer-exponential or random-matching; p2pfl topology list shows all."
    ),
]
Mixing = Annotated[
    str | None,
    typer.Option(
        help="How much of each neighbor's model is taken in: metropolis, max-degree, uniform, lazy, best-constant or "
        "finite-time \\[default: auto]."
    ),
]
Data = Annotated[
    str,
    typer.Option(help="mnist10k (embedded), a torchvision name, a folder of images, .csv, .npz, or module:function."),
]
Model = Annotated[str | None, typer.Option(help="mlp, mlp:hidden=256-128, cnn, logistic, or package.module:function.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Passes over the own data each round \\[default: 1].")]
Steps = Annotated[int | None, typer.Option(min=1, help="Gradient steps each round, instead of epochs.")]
Lr = Annotated[float | None, typer.Option(help="Learning rate of SGD \\[default: 0.1].")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Examples a step \\[default: 32].")]
Seed = Annotated[int | None, typer.Option(min=0, help="Of weights, split and order of examples \\[default: 0].")]
Alpha = Annotated[
    float | None,
    typer.Option(min=0.0, help="Dirichlet alpha of the split: .1 very lopsided, 100 nearly even, 0 even."),
]
Target = Annotated[str | None, typer.Option(help="The column of a CSV to predict.")]
Missing = Annotated[Literal["refuse", "drop", "mean"], typer.Option(help="What to do with missing values of a CSV.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]


def console(json: bool) -> Console:
    """Where a person reads: stdout, or stderr when stdout carries JSON."""
    return Console(stderr=json, highlight=False)


def asked(**settings: Setting | None) -> dict[str, Setting]:
    """The settings that were given, in the form in which they travel. Raises RecipeError."""
    from p2pfl.recipe import Asked

    return dict(Asked.of(**settings).settings)


def part_of(text: str) -> tuple[int, int]:
    """Read I/N, from 1.

    Raises:
        UsageError: it is not of that form, or I is outside 1…N.
    """
    first, slash, second = text.partition("/")
    if not (slash and first.isdecimal() and second.isdecimal()):
        raise UsageError(f"--part {text!r} is not of the form I/N, as 2/5 for the second of five")
    part, parts = int(first), int(second)
    if not 1 <= part <= parts:
        raise UsageError(f"--part {text}: the part is a number from 1 to {parts}")
    return part, parts


def fresh_folder(out: Path | None, kind: str, stamp: str) -> Path:
    """The run's folder: the one asked for, which must not hold a run already, or a new one under `runs/`.

    Raises:
        UsageError: it holds a run, or cannot be made.
    """
    folder = out or Path("runs") / f"{kind}-{stamp}"
    if (folder / "events.jsonl").exists():
        raise UsageError(f"{folder} holds a run already; give another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"the folder {folder} cannot be made: {error.strerror}; give another --out") from error
    return folder


def file_name(name: str) -> str:
    """A name as part of a path."""
    return re.sub(r"[^\w.-]+", "-", name).strip(".-") or "peer"


def percent(fraction: float | None) -> str:
    """A fraction as a person reads it."""
    return "–" if fraction is None else f"{100 * fraction:.1f} %"


def megabytes(size: int) -> str:
    """Bytes as a person reads them."""
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def spread(values: list[float]) -> dict[str, float] | None:
    """Mean and worst, None where nothing was measured."""
    return {"mean": sum(values) / len(values), "worst": min(values)} if values else None


def print_table(console: Console, table: Table) -> None:
    """A table whose columns that are `no_wrap` stay whole, even if its lines become longer than the terminal."""
    options = console.options.update(width=max(console.width, narrowest(table)))
    console.print(Segments(console.render(table, options)), crop=False)


def narrowest(table: Table) -> int:
    """The width below which a table loses text: columns that are not `no_wrap` go down to their `min_width`."""
    width = 0
    for column in table.columns:
        lines = [line for cell in column.cells for line in str(cell).splitlines()] if column.no_wrap else []
        width += max([column.min_width or 1, *map(cell_len, lines)]) + 2
    return width


def print_json(facts: Mapping[str, Any]) -> None:
    """One JSON object on stdout."""
    import msgspec

    typer.echo(msgspec.json.format(msgspec.json.encode(facts), indent=2).decode())
