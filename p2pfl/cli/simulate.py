"""`p2pfl simulate`: a whole network on this machine, from a recipe or from flags."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from p2pfl.cli import options
from p2pfl.cli.options import file_name, megabytes, percent, print_json
from p2pfl.cli.recipe_flags import Settings, with_recipe_flags
from p2pfl.errors import UsageError

if TYPE_CHECKING:
    from p2pfl.recipe import Recipe
    from p2pfl.simulation.record import Moment

EXAMPLES = """Examples:

p2pfl simulate --topology torus --peers 64 --alpha 0.1 --rounds 100
p2pfl simulate recipe.toml --seed 1 --references alone,pooled
p2pfl simulate --data digits --latency 0.05 --loss-rate 0.01
p2pfl simulate --resume --out runs/torus-20260101-120000 --rounds 200
p2pfl simulate --engine scalars --topology torus --peers 1000000
p2pfl simulate --engines"""

_LINES = 20  # of progress, where nobody sees a bar


@with_recipe_flags
def command(
    settings: Settings,
    recipe: Annotated[Path | None, typer.Argument(help="A recipe; flags stand over it.", show_default=False)] = None,
    references: Annotated[
        str, typer.Option(help="Compare with any of alone,pooled,fedavg; or all.", show_default=False)
    ] = "",
    out: Annotated[Path | None, typer.Option(help="Folder for the files \\[default: runs/TOPOLOGY-…].")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
    models: Annotated[
        bool | None,
        typer.Option("--models/--no-models", help="Write every peer's model \\[default: of up to 16 peers]."),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster; one is started here without it.", show_default=False)
    ] = None,
    engines: Annotated[bool, typer.Option("--engines", help="Show which engine does what, and leave.")] = False,
    json: options.Json = False,
) -> None:
    """Simulate a network of many peers on this machine: same code as live peers, same files."""
    console = options.console(json)
    if engines:
        _show_engines(console, json)
        return
    if resume and out is None:
        raise UsageError("--resume needs --out: the folder of the run to go on with")
    if settings.get("steps") and "epochs" in settings:
        raise UsageError("choose --epochs or --steps, not both")
    with console.status("loading PyTorch …"):
        from p2pfl.simulation.simulate import recipe_with, simulate

    source = recipe
    if resume and recipe is None and out is not None:
        source = out / "recipe.toml"
        if not source.exists():
            raise UsageError(f"{out} holds no run to go on with: it has no recipe.toml")
    whole = recipe_with(source, settings)
    if whole.engine == "scalars":
        if out is not None or resume or references:
            raise UsageError("engine scalars trains nothing and writes no run: leave out --out, --resume, --references")
        _average(whole, json)
        return
    topology = file_name(whole.topology.partition(":")[0])
    folder = out or Path("runs") / f"{topology}-{time.strftime('%Y%m%d-%H%M%S')}"
    console.print(Text(headline(whole)), soft_wrap=True)
    with Shown(console, silent=json) as shown:
        run = simulate(
            whole,
            out=folder,
            address=address,
            references=wanted(references),
            resume=resume,
            progress=shown.take,
            say=shown.say,
            save_models=models,
        )
    if json:
        print_json(run.summary)
    else:
        close_with(console, run.summary)


def _average(recipe: "Recipe", json: bool) -> None:
    from p2pfl.cli.average import show
    from p2pfl.simulation.scalars import run_scalars

    show(lambda told: run_scalars(recipe, progress=told), json)


def wanted(references: str) -> tuple[str, ...]:
    """The references of a list with commas; what does not exist is told by who runs them."""
    if references == "all":
        return ("alone", "pooled", "fedavg")
    return tuple(name.strip() for name in references.split(",") if name.strip())


def headline(recipe: "Recipe") -> str:
    """What is about to run, in a line."""
    work = f"{recipe.steps} steps" if recipe.steps else f"{recipe.epochs} epoch" + "s" * (recipe.epochs > 1)
    topology = recipe.topology if len(recipe.topology) <= 60 else recipe.topology[:57] + "…"
    lopsided = f", alpha {recipe.alpha:g}" if recipe.alpha else ""
    return (
        f"{recipe.peers} peers, {topology}: {recipe.model} on {recipe.data}{lopsided}, "
        f"{recipe.rounds} rounds of {work}, lr {recipe.lr:g}, batch {recipe.batch_size}, seed {recipe.seed}"
    )


class Shown:
    """Progress of a simulation: a bar in a terminal, some lines elsewhere, nothing where it should be silent."""

    def __init__(self, console: Console, silent: bool = False) -> None:
        self._console = console
        self._silent = silent
        self._bars: Progress | None = None
        self._bar: dict[str, Any] = {}
        if console.is_terminal and not silent:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"))
            self._bars = Progress(*columns, console=console)

    def __enter__(self) -> "Shown":
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(Text(text), soft_wrap=True)

    def take(self, moment: "Moment") -> None:
        """A round is over."""
        if self._silent:
            return
        figures = _figures(moment)
        title = f"{moment.run or 'together'}  round {moment.round}/{moment.rounds}"
        if self._bars is not None:
            if moment.run not in self._bar:
                self._bar[moment.run] = self._bars.add_task(title, total=moment.rounds, figures=figures)
            self._bars.update(self._bar[moment.run], completed=moment.round, description=title, figures=figures)
            return
        every = -(-moment.rounds // _LINES)
        if moment.round % every == 0 or moment.round == moment.rounds:
            self.say(f"{title}  {figures}")


def _figures(moment: "Moment") -> str:
    parts = []
    if moment.loss is not None:
        parts.append(f"loss {moment.loss:.3f}")
    if moment.accuracy is not None:
        worst = "" if moment.worst is None or moment.run == "pooled" else f" (worst {percent(moment.worst)})"
        parts.append(f"accuracy {percent(moment.accuracy)}{worst}")
    if moment.consensus_distance is not None and moment.run != "pooled":
        parts.append(f"consensus {moment.consensus_distance:.2g}")
    if moment.round < moment.rounds:
        parts.append(f"{duration(moment.left_s)} left")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as a person reads them."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def close_with(console: Console, summary: Any) -> None:
    """What a person wants to know at the end."""
    console.print()
    if summary["ended_early"]:
        console.print(Text(summary["ended_early"], style="bold"))
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    by_accuracy = bool(summary["accuracy"])
    table.add_column("test accuracy" if by_accuracy else "test loss")
    table.add_column("mean", justify="right")
    table.add_column("worst peer", justify="right")
    told = percent if by_accuracy else lambda loss: f"{loss:.4g}"
    mean_model = (summary["mean_model"] or {}).get("accuracy" if by_accuracy else "loss")
    together = summary["accuracy"] or summary["loss"]
    rows = [
        ("each peer alone", summary["alone"]),
        ("together", together),
        ("their averaged model", {"mean": mean_model} if mean_model is not None else None),
        ("the exact average each round (fedavg)", summary["fedavg"]),
        ("all data in one place", summary["pooled"]),
    ]
    for title, figures in rows:
        if figures:
            worst = told(figures["worst"]) if "worst" in figures else ""
            table.add_row(title, told(figures["mean"]), worst, style="bold" if title == "together" else "")
    if summary["optimum"] is not None:
        table.add_row("the lowest there is", f"{summary['optimum']:.4g}", "")
    if together:
        console.print(table)
        console.print()
    for line in _closing_lines(summary):
        console.print(Text(line), soft_wrap=True)
    console.print(Text("Next:", style="bold"))
    if summary["stopped"]:
        console.print(Text(f"  p2pfl simulate --resume --out {summary['folder']}"), soft_wrap=True)
    console.print(Text(f"  p2pfl analyze {summary['folder']}"), soft_wrap=True)


def _closing_lines(summary: Any) -> list[str]:
    lines = []
    if summary["consensus_distance"] is not None:
        relative = summary["relative_distance"]
        beside = f" ({100 * relative:.2g} % of the averaged model's norm)" if relative is not None else ""
        lines.append(f"Consensus distance {summary['consensus_distance']:.3g}{beside}.")
    uneven = summary["heterogeneity"]
    if uneven["total_variation"] is not None:
        lines.append(
            f"Data: total variation {uneven['total_variation']:.2f}, {uneven['effective_classes']:.1f} effective "
            f"classes a peer, Gini of sizes {uneven['gini']:.2f}."
        )
    each = summary["bytes_sent"] / max(1, summary["peers"] * summary["rounds"])
    sent = f"{megabytes(summary['bytes_sent'])} of models sent ({megabytes(int(each))} a peer and round)"
    virtual = f", {summary['simulated_s']:.1f} s of simulated time" if summary["simulated_s"] is not None else ""
    lines.append(f"{sent}, in {summary['wall_s']:.1f} s{virtual}.")
    if summary["failures"]:
        lost = ", ".join(f"{count} × {reason}" for reason, count in summary["failures"].items())
        lines.append(f"Shares that did not count: {lost}")
    lines.append(f"Files: {summary['folder']}")
    return lines


def _show_engines(console: Console, json: bool) -> None:
    from p2pfl.simulation.engines import table

    rows = table()
    if json:
        print_json({"engines": rows})
        return
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in rows[0]:
        shown.add_column(title)
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row.values()))
    console.print(shown)
    console.print()
    console.print(
        Text("auto takes matrix; event where latency, bandwidth, loss, churn or step times are asked for, or where")
    )
    console.print(Text("the model cannot be vectorized. It says which it took, and why."))
