"""`p2pfl average`: how fast many peers agree on an average, with nothing to train."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from p2pfl.cli import options
from p2pfl.cli.options import print_json
from p2pfl.errors import UsageError

if TYPE_CHECKING:
    from p2pfl.simulation.scalars import Averaging

EXAMPLES = (
    "Examples:\n\n"
    "p2pfl average --topology torus --peers 1000000 --rounds 100\n\n"
    "p2pfl average --topology exponential --peers 1000 --failure .01 --restarts 20\n\n"
    "p2pfl average --scheme push-sum --topology my.graphml --peers 40 --json\n\n"
    "p2pfl average --scheme moshpit:size=32 --peers 900 --failure .01 --restarts 100 --csv rounds.csv"
)
Progressing: TypeAlias = Callable[[int, int], None]  # rounds behind, of all there are
_ROWS = 12  # of the table of rounds


def command(
    topology: Annotated[str, typer.Option(help="Who shares with whom in gossip and push-sum.")] = "ring",
    peers: Annotated[int, typer.Option(min=1, help="How many hold a number.")] = 1000,
    rounds: Annotated[int, typer.Option(min=1, help="At most.")] = 100,
    scheme: Annotated[
        str, typer.Option(help="gossip, push-sum, groups:size=32, moshpit:size=32,dims=2 or all-reduce.")
    ] = "gossip",
    mixing: Annotated[str, typer.Option(help="Weights of gossip by name.")] = "auto",
    failure: Annotated[float, typer.Option(help="Probability with which a peer fails in a round.")] = 0.0,
    restarts: Annotated[int, typer.Option(min=1, help="Runs from new numbers; figures are means over them.")] = 1,
    until: Annotated[float, typer.Option(help="A restart ends once its variance is below; 0 runs all rounds.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of all random draws.")] = 0,
    csv: Annotated[Path | None, typer.Option(help="Write variance and error of every restart and round here.")] = None,
    json: options.Json = False,
) -> None:
    """How fast peers that hold one random number each agree on the average, and what failures cost; up to a million."""
    from p2pfl.simulation.scalars import average

    def run(progress: Progressing) -> "Averaging":
        return average(
            scheme,
            topology,
            peers=peers,
            rounds=rounds,
            failure=failure,
            restarts=restarts,
            seed=seed,
            mixing=mixing,
            until=until,
            progress=progress,
        )

    show(run, json, csv)


def show(run: "Callable[[Progressing], Averaging]", json: bool, csv: Path | None = None) -> None:
    """Average with a bar, then write the figures of all rounds, and print the table or the summary.

    Args:
        run: given where to tell the rounds that are behind, and all there are.
        csv: for variance and error of every restart and round.

    Raises:
        UsageError: the file cannot be written; and whatever `run` raises.
    """
    console = options.console(json)
    columns = (TextColumn("averaging"), BarColumn(), MofNCompleteColumn(), TextColumn("rounds"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task("", total=None)
        result = run(lambda done, total: shown.update(task, completed=done, total=total))
    if csv is not None:
        try:
            result.metrics.to_csv(csv, index=False)
        except OSError as error:
            raise UsageError(f"{csv} cannot be written: {error.strerror}; give another --csv") from error
    if json:
        print_json(result.summary)
    else:
        _show(result, console)


def _show(result: "Averaging", console: Console) -> None:
    """A dozen rounds, and in how many the variance fell below the thresholds."""
    import numpy as np

    on = f" on {result.topology}" if result.topology else ""
    failing = f", each failing with probability {result.failure:g} a round" if result.failure else ""
    again = f", mean of {result.restarts} restarts" if result.restarts > 1 else ""
    console.print(f"{result.scheme}{on}: {result.peers:,} peers{failing}{again}\n")
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for title in ("round", "variance of the values", "squared error of the average"):
        table.add_column(title, justify="right")
    means = result.metrics.groupby("round")[["variance", "error"]].mean()
    for row in np.unique(np.linspace(0, len(means) - 1, _ROWS).round().astype(int)):
        table.add_row(str(means.index[row]), *(f"{value:.4g}" for value in means.iloc[row]))
    console.print(table)
    console.print()
    for threshold, rounds in result.summary["rounds_below"].items():
        if not rounds["reached"]:
            console.print(f"variance below {threshold}: not within {result.rounds} rounds")
            continue
        spread = "" if rounds["standard_error"] is None else f" ± {rounds['standard_error']:.2g}"
        capped = "" if rounds["reached"] == 1 else f"; reached by {options.percent(rounds['reached'])} of the restarts"
        console.print(f"variance below {threshold}: after {rounds['mean']:.4g}{spread} rounds{capped}")
    console.print(f"{result.wall_s:.2f} s")
