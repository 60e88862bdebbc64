"""`p2pfl sweep`: a grid of simulations, side by side on the cores or on Ray."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from p2pfl.cli import options
from p2pfl.cli.options import file_name, print_json
from p2pfl.cli.recipe_flags import NETWORK, WORLD, Settings, with_recipe_flags
from p2pfl.cli.simulate import duration, wanted
from p2pfl.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from p2pfl.simulation.sweep import Step

EXAMPLES = """Examples:

p2pfl recipe new sweep.toml --sweep
p2pfl sweep sweep.toml
p2pfl sweep --data digits --peers 25 --grid "topology=ring torus complete" --grid "seed=0 1 2"
p2pfl sweep sweep.toml --on ray --address auto"""

_SHOWN = 40  # rows of the closing table


@with_recipe_flags
def command(
    settings: Settings,
    file: Annotated[
        Path | None, typer.Argument(metavar="[SWEEP]", help="A sweep or recipe.", show_default=False)
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(help='Values of a setting, as "alpha=.1 10"; every combination is a run.', show_default=False),
    ] = None,
    references: Annotated[
        str | None, typer.Option(help="Compare with any of alone,pooled,fedavg; or all.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the runs \\[default: runs/ and the file's name].")] = None,
    at_once: Annotated[int, typer.Option(min=0, help="Runs at once, each on one core; 0 is one a core.")] = 0,
    on: Annotated[Literal["cores", "ray"], typer.Option(help="The cores of this machine, or a Ray cluster.")] = "cores",
    address: Annotated[
        str | None, typer.Option(help="Of the Ray cluster; one is started here without it.", show_default=False)
    ] = None,
    json: options.Json = False,
) -> None:
    """Run every combination of a grid of settings; what is finished is not repeated."""
    if file is None and not grid:
        raise UsageError('give a SWEEP file, or --grid "topology=ring torus"; p2pfl recipe new FILE --sweep writes one')
    if settings.get("steps") and "epochs" in settings:
        raise UsageError("choose --epochs or --steps, not both")
    console = options.console(json)
    with console.status("loading PyTorch …"):
        from p2pfl.recipe_files import Sweep, read_sweep
        from p2pfl.simulation.sweep import sweep

    plan = read_sweep(file) if file is not None else Sweep({})
    plan = plan.over(settings, _grid(grid or []))
    folder = out or Path("runs") / (file_name(file.stem) if file is not None else "sweep")
    with _Shown(console, silent=json) as shown:
        frame = sweep(
            plan,
            out=folder,
            workers=at_once,
            on=on,
            address=address,
            references=None if references is None else wanted(references),
            progress=shown.take,
            say=shown.say,
        )
    varied = list(frame.columns[: list(frame.columns).index("accuracy_mean")])
    failed = int(frame["error"].notna().sum())
    if json:
        rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
        print_json({"runs": len(frame), "failed": failed, "results": str(folder / "results.csv"), "rows": rows})
    else:
        _close_with(console, frame, varied, folder)
    if failed:
        sys.exit(1)


def _grid(texts: list[str]) -> dict[str, list[Any]]:
    """The values behind each --grid, of the kind their setting has."""
    found: dict[str, list[Any]] = {}
    known = {**NETWORK, **WORLD}
    for text in texts:
        key, equals, values = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not values.split():
            raise UsageError(f'--grid {text!r} is not of the form "alpha=.1 10"')
        kind = known[key][0] if key in known else str
        found.setdefault(key, []).extend(_value(key, kind, value) for value in values.split())
    return found


def _value(key: str, kind: Any, text: str) -> Any:
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return kind(text) if kind in (int, float) else text
    except (ValueError, KeyError) as error:
        names = {int: "whole numbers", float: "numbers", bool: "true or false"}
        raise UsageError(f"--grid {key}={text}: its values are {names[kind]}") from error


class _Shown:
    """Progress of a sweep: a bar in a terminal, a line a run elsewhere."""

    def __init__(self, console: Console, silent: bool) -> None:
        self._console = console
        self._silent = silent
        self._bars: Progress | None = None
        if console.is_terminal and not silent:
            self._bars = Progress(BarColumn(), TextColumn("{task.description}"), console=console)
            self._bar = self._bars.add_task("", total=None)

    def __enter__(self) -> "_Shown":
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(Text(text), soft_wrap=True)

    def take(self, step: "Step") -> None:
        """A run has ended."""
        if self._silent:
            return
        left = f", {duration(step.left_s)} left" if step.left_s is not None and step.done < step.total else ""
        found = f" ({step.repeated} were there)" if step.repeated else ""
        title = f"{step.done}/{step.total} runs{found}{left}"
        if self._bars is not None:
            self._bars.update(self._bar, total=step.total, completed=step.done, description=title)
        if step.row is None:
            if self._bars is None:
                self.say(title)
            return
        name = Path(step.row["folder"]).name
        if step.row["error"]:
            self.say(f"{name}: {step.row['error']}")
        elif self._bars is None:
            self.say(f"{title}  {name}")


def _close_with(console: Console, frame: "pd.DataFrame", varied: list[str], folder: Path) -> None:
    """What a person wants to know at the end: figures by what varies, over seeds."""
    groups = [key for key in varied if not key.endswith("seed")]
    figures = [name for name in ("accuracy_mean", "accuracy_worst", "loss_mean") if frame[name].notna().any()]
    figures = [*figures[:2], "consensus_distance"]
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for key in groups:
        table.add_column(key)
    table.add_column("runs", justify="right")
    for name in figures:
        table.add_column(name.replace("_", " "), justify="right")
    failed, stopped = frame["error"].notna(), frame["stopped"].eq(True)
    ended = frame[~failed & ~stopped]
    cells: list[tuple[Any, pd.DataFrame]] = list(ended.groupby(groups, sort=False)) if groups else [((), ended)]
    for values, rows in cells[:_SHOWN]:
        spreads = [_spread(rows[name], "accuracy" in name) for name in figures]
        table.add_row(*(Text(str(value)) for value in values), str(len(rows)), *spreads)
    console.print()
    console.print(table)
    console.print()
    if failed.any():
        console.print(Text(f"{failed.sum()} of {len(frame)} runs failed: see the column error", style="red"))
    if stopped.any():
        console.print(Text(f"{stopped.sum()} runs were stopped half way; the same command goes on with them"))
    console.print(Text(f"Results: {folder / 'results.csv'}"), soft_wrap=True)
    console.print(Text("Next:", style="bold"))
    console.print(Text(f"  p2pfl analyze {folder}"), soft_wrap=True)


def _spread(values: "pd.Series[Any]", fraction: bool) -> str:
    """Mean ± standard deviation of what was measured."""
    known = values.dropna()
    if not len(known):
        return "–"
    scale, unit = (100, " %") if fraction else (1, "")
    mean = float(known.mean()) * scale
    text = f"{mean:.1f}" if fraction else f"{mean:.3g}"
    if len(known) > 1:
        deviation = float(known.std()) * scale
        text += f" ± {deviation:.1f}" if fraction else f" ± {deviation:.2g}"
    return text + unit
