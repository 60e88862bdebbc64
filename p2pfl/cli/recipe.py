"""`p2pfl recipe`: write a recipe with every setting explained, and check one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from p2pfl.cli import options
from p2pfl.cli.options import print_json
from p2pfl.cli.simulate import headline
from p2pfl.errors import P2pflError, UsageError

if TYPE_CHECKING:
    from p2pfl.recipe import Recipe

app = typer.Typer(
    help="Write a recipe with every setting explained, or check one.",
    epilog="Examples:\n\np2pfl recipe new recipe.toml\n\np2pfl recipe new sweep.toml --sweep\n\n"
    "p2pfl recipe check recipe.toml",
    no_args_is_help=True,
)


@app.command(epilog="Example:\n\np2pfl recipe new recipe.toml && p2pfl simulate recipe.toml")
def new(
    file: Annotated[Path, typer.Argument(help="Where to write it.")],
    sweep: Annotated[bool, typer.Option("--sweep", help="A sweep, in which settings may be lists.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write a commented recipe: every setting, its default, and what more or less of it buys."""
    from p2pfl.recipe_files import commented

    if file.exists() and not force:
        raise UsageError(f"{file} exists; give another name, or --force to write over it")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(commented(sweep), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}") from error
    console = options.console(False)
    console.print(Text(f"wrote {file}; next:"))
    console.print(Text(f"  p2pfl {'sweep' if sweep else 'simulate'} {file}"), soft_wrap=True)


@app.command(epilog="Example:\n\np2pfl recipe check recipe.toml")
def check(
    file: Annotated[Path, typer.Argument(help="A recipe or a sweep.")],
    json: options.Json = False,
) -> None:
    """Say what is wrong with a recipe or sweep, or that it is fine and what it would run."""
    from p2pfl.recipe_files import read_sweep

    plan = read_sweep(file)
    recipes = list(plan.recipes())
    facts = _checked(recipes[0], file)
    for recipe in recipes[1:]:
        _topology_of(recipe, file)
    told = {
        "file": str(file),
        "runs": len(recipes),
        "grid": {key: list(values) for key, values in plan.grid.items()},
        "references": list(plan.references),
        **facts,
    }
    if json:
        print_json(told)
        return
    console = options.console(json)
    what = f"a sweep of {len(recipes)} runs" if plan.grid else "one run"
    console.print(Text(f"{file} is fine: {what}", style="bold"))
    for key, values in plan.grid.items():
        console.print(Text(f"  {key}: {', '.join(map(str, values))}"), soft_wrap=True)
    for line in ("The first:" if plan.grid else "", *facts["lines"]):
        if line:
            console.print(Text(line), soft_wrap=True)


def _checked(recipe: "Recipe", file: Path) -> dict[str, Any]:
    """What the recipe would run, resolved as a run would resolve it."""
    from dataclasses import asdict

    from p2pfl.heterogeneity import heterogeneity
    from p2pfl.layout import layout_of
    from p2pfl.simulation.engines import choose
    from p2pfl.simulation.resolve import labels_of, resolve

    try:
        problem = resolve(recipe)
        _, engine, why = choose(problem)
    except P2pflError as error:
        raise type(error)(f"{file}: {error}") from error
    first = problem.schedule.at(0)
    sizes = [len(part) for part in problem.parts]
    layout = layout_of(problem.build())
    uneven = heterogeneity(problem.parts, labels_of(problem.data))
    degrees = sorted({first.degree(node) for node in range(first.nodes)})
    shown = f"{degrees[0]}" if len(degrees) == 1 else f"{degrees[0]} to {degrees[-1]}"
    variation = "" if uneven.total_variation is None else f", total variation {uneven.total_variation:.2f}"
    examples = f"{sizes[0]}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
    test = len(problem.test) if problem.test is not None else 0
    lines = [
        headline(problem.recipe),
        f"topology: {first.nodes} nodes, {len(first.edges)} {'arcs' if first.directed else 'edges'}, degree {shown}",
        f"data: {examples} examples a peer{variation}; {test} to test on",
        f"model: {layout.size:,} parameters, {layout.framed_bytes / 1e6:.3g} MB a share",
        f"engine: {engine} ({why})",
    ]
    return {
        "peers": problem.peers,
        "engine": engine,
        "why": why,
        "parameters": layout.size,
        "share_bytes": layout.framed_bytes,
        "heterogeneity": asdict(uneven),
        "lines": lines,
    }


def _topology_of(recipe: "Recipe", file: Path) -> None:
    """Whether a combination's topology can be for so many peers."""
    from p2pfl.simulation.resolve import schedule_of

    try:
        schedule_of(recipe)
    except P2pflError as error:
        raise type(error)(f"{file}: {recipe.topology} of {recipe.peers} peers: {error}") from error
