"""`p2pfl topology`: what there is, what to expect of it before any training, and how it looks."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from p2pfl.cli import options
from p2pfl.errors import TopologyError, UsageError

if TYPE_CHECKING:
    from p2pfl.graphs.noise import Estimate
    from p2pfl.graphs.prediction import Prediction
    from p2pfl.graphs.schedule import Schedule

EXAMPLES = """Examples:

p2pfl topology list

p2pfl topology show torus --peers 25 --plot torus.pdf

p2pfl topology compare ring torus exponential base:k=4 --peers 25"""

_MLP = 79_510  # parameters of an MLP 784-100-10

app = typer.Typer(
    help="Topologies: what there is, what to expect of each before any training, and how it looks.",
    epilog=EXAMPLES,
    no_args_is_help=True,
)

Spec = Annotated[str, typer.Argument(metavar="NAME", help="As ring, torus:rows=2, base:k=4, petersen, or a file.")]
Peers = Annotated[int | None, typer.Option(min=1, help="How many; a file has its own number.")]
Mixing = Annotated[str, typer.Option(help="Weights: auto, metropolis, max-degree, uniform, lazy, best-constant …")]
Seed = Annotated[int, typer.Option(min=0, help="Of random topologies without a seed= of their own, and simulations.")]
Parameters = Annotated[int | None, typer.Option(min=1, help=f"Of the model, 4 bytes each \\[default: {_MLP:,}].")]
ModelMb = Annotated[float | None, typer.Option(min=0, help="Size of the model in MB, instead of its parameters.")]
Plot = Annotated[Path | None, typer.Option(help="Draw it into a file: .png, .svg or .pdf.")]


@app.command("list", epilog="Example:\n\np2pfl topology list --json")
def list_(json: options.Json = False) -> None:
    """What topologies there are: those for any number of peers with their options, and the ready files."""
    from p2pfl.graphs import named
    from p2pfl.topology_files import list_files, load_note, load_topology

    made = [{"name": name, "what": named.describe(name)} for name in named.NAMES]
    files = []
    for name in list_files():
        topology = load_topology(name, None)
        counts = {"peers": topology.nodes, "edges": len(topology.pairs)}
        files.append({"name": name, **counts, "note": load_note(name)})
    if json:
        options.print_json({"topologies": made, "files": files})
        return
    console = options.console(json)
    table = _table("for any number of peers", "")
    for one in made:
        table.add_row(one["name"], one["what"])
    console.print(table)
    console.print()
    table = _table("ready files", "peers", "edges", "", right=(1, 2))
    for file in files:
        table.add_row(str(file["name"]), str(file["peers"]), str(file["edges"]), str(file["note"]))
    console.print(table)


@app.command(
    epilog="Examples:\n\np2pfl topology show torus --peers 25\n\np2pfl topology show base:k=2 --peers 25 --json"
)
def show(
    name: Spec,
    peers: Peers = None,
    mixing: Mixing = "auto",
    seed: Seed = 0,
    parameters: Parameters = None,
    model_mb: ModelMb = None,
    plot: Plot = None,
    json: options.Json = False,
) -> None:
    """What to expect of a topology: how fast peers agree, what noise leaves between them, what a round costs."""
    model_bytes = _model_bytes(parameters, model_mb)
    _check_figure(plot)
    with options.console(True).status(f"working out {name} …"):
        prediction = _predictions([name], peers, mixing, seed)[0]
        found = facts(prediction, model_bytes) | {"mixing": mixing}
        if plot is not None:
            _draw(prediction, plot)
    if json:
        options.print_json(found)
    else:
        _print(found, prediction, model_bytes, options.console(False))
        if plot is not None:
            typer.echo(f"figure: {plot}")


@app.command(epilog="Example:\n\np2pfl topology compare ring torus exponential base:k=4 epidemic-oracle --peers 25")
def compare(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Two or more.", show_default=False)],
    peers: Peers = None,
    mixing: Mixing = "auto",
    seed: Seed = 0,
    parameters: Parameters = None,
    model_mb: ModelMb = None,
    plot: Plot = None,
    json: options.Json = False,
) -> None:
    """Several topologies in one table, in the order in which they are expected to do in training, the best first."""
    model_bytes = _model_bytes(parameters, model_mb)
    _check_figure(plot)
    with options.console(True).status(f"working out {', '.join(names)} …"):
        ranked = _predictions(names, peers, mixing, seed)
        rows = [facts(prediction, model_bytes) | {"mixing": mixing} for prediction in ranked]
        if plot is not None:
            from p2pfl.analysis import drawing, style

            style.save(drawing.comparison(ranked, [row["bytes_per_round"] for row in rows]), plot)
    if json:
        options.print_json({"topologies": rows})
        return
    table = _table(
        "", "topology", "edges", "degree", "gap", "n_W .9", "noise floor", "exact", "MB", right=(0, 2, 3, 4, 5, 6, 7, 8)
    )
    for rank, row in enumerate(rows, start=1):
        table.add_row(
            str(rank),
            row["name"],
            _number(row["edges"], 3),
            _span(row["degree"]),
            _number(row["spectral_gap"], 3),
            _number(row["effective_neighbors"]["0.9"], 3),
            _floor(row),
            _number(row["exact_rounds"]),
            _number(row["bytes_per_round"] / 1e6, 3),
        )
    from p2pfl.graphs.weighting import drift_warning

    console = options.console(False)
    console.print(table)
    notes = ["Ranked by the predicted noise floor (~ by Monte Carlo): with less, peers stay closer to consensus."]
    notes += [
        "gap: by eigenvalues · n_W: effective neighbors at γ = .9 · exact: rounds to the exact average · MB: a round"
    ]
    notes += [drift_warning(one.schedule) for one in ranked if not one.doubly_stochastic]
    for note in notes:
        console.print(note, style="dim")
    if plot is not None:
        typer.echo(f"figure: {plot}")


@app.command(epilog="Example:\n\np2pfl topology plot random-regular:k=4 --peers 25 network.svg")
def plot(
    name: Spec,
    file: Annotated[Path, typer.Argument(help="Where to: .png, .svg or .pdf.")],
    peers: Peers = None,
    mixing: Mixing = "auto",
    seed: Seed = 0,
) -> None:
    """Draw a topology: the network, the heat map of its mixing matrix, its eigenvalues."""
    _check_figure(file)
    with options.console(True).status(f"drawing {name} …"):
        _draw(_predictions([name], peers, mixing, seed)[0], file)
    typer.echo(f"figure: {file}")


def facts(prediction: "Prediction", model_bytes: int) -> dict[str, Any]:
    """What `--json` prints of one topology; null stands for never, infinite, or what `left_out` names.

    Where the noise floor has neither formula nor exact solution it is null, and `noise_floor_estimate` has what a
    simulation found.
    """
    from p2pfl.graphs.links import diameter, finite_time_rounds
    from p2pfl.graphs.prediction import GAMMAS
    from p2pfl.graphs.weighting import serves_finite_time

    schedule = prediction.schedule
    linked = prediction.links
    finite = finite_time_rounds(schedule.at(0)) if schedule.static else None
    floor, contraction = prediction.noise_floor, prediction.contraction
    drawn = floor is not None and floor.how == "monte carlo"
    neighbors = {gamma: prediction.effective_neighbors(gamma) for gamma in GAMMAS}
    first = neighbors[GAMMAS[0]]
    found: dict[str, Any] = {
        "name": schedule.name,
        "peers": schedule.nodes,
        "period": schedule.period,
        "directed": linked.directed,
        "edges": _whole(linked.edges),
        "degree": {"min": linked.degree_min, "max": linked.degree_max},
        "diameter": diameter(schedule),
        "doubly_stochastic": prediction.doubly_stochastic,
        "spectral_gap": prediction.spectral_gap,
        "singular_gap": prediction.singular_gap,
        "gaps_how": prediction.how,
        "mixing_time": prediction.mixing_time,
        "contraction": _estimate(contraction),
        "effective_neighbors": {str(gamma): one.value if one else None for gamma, one in neighbors.items()},
        "effective_neighbors_how": first.how if first else None,
        "noise_floor": None if floor is None or drawn else floor.value,
        "noise_floor_how": floor.how if floor else None,
        "noise_floor_estimate": _estimate(floor) if drawn else None,
        "exact_rounds": prediction.exact_rounds,
        "finite_time_rounds": finite,
        "finite_time_serves": finite is not None and serves_finite_time(schedule.at(0)),
        "model_bytes": model_bytes,
        "bytes_per_round": _whole(linked.shares * model_bytes),
        "busiest_peer_bytes_per_round": _whole(linked.busiest * model_bytes),
    }
    return found | {"left_out": list(_left_out(found, prediction.exact_unknown))}


def _left_out(found: dict[str, Any], exact_unknown: bool) -> Iterable[str]:
    """What is null because it would take too long, not because there is none."""
    if found["spectral_gap"] is None:
        yield "spectral_gap"
    if found["singular_gap"] is None:
        yield "singular_gap"
    stuck = found["spectral_gap"] is not None and found["spectral_gap"] <= 1e-12
    if found["noise_floor_how"] is None and not stuck:
        yield "noise_floor"
    if found["effective_neighbors"]["0.9"] is None:
        yield "effective_neighbors"
    if found["diameter"] is None and found["period"] and not stuck:
        yield "diameter"
    if exact_unknown:
        yield "exact_rounds"
    if found["finite_time_rounds"] is None and found["period"] == 1 and not found["directed"] and not stuck:
        yield "finite_time_rounds"


def _predictions(names: Sequence[str], peers: int | None, mixing: str, seed: int) -> "list[Prediction]":
    from p2pfl.graphs.prediction import predict
    from p2pfl.graphs.weighting import weighted

    return predict([weighted(_schedule(name, peers, seed), mixing) for name in names], seed)


def _schedule(name: str, peers: int | None, seed: int) -> "Schedule":
    from p2pfl.graphs.named import NAMES
    from p2pfl.topology_files import load_schedule

    built_in, _, chosen = name.partition(":")
    if peers is None and built_in.strip() in NAMES and "files=" not in chosen:
        raise TopologyError(f"topology {name!r} is made for any number of peers: say how many, as --peers 16")
    return load_schedule(name, peers, seed)


def _model_bytes(parameters: int | None, model_mb: float | None) -> int:
    if parameters is not None and model_mb is not None:
        raise UsageError("choose --parameters or --model-mb, not both")
    return round(model_mb * 1e6) if model_mb is not None else 4 * (parameters or _MLP)


def _check_figure(file: Path | None) -> None:
    """Before the work, not after it."""
    if file is not None:
        from p2pfl.analysis.style import FORMATS

        if file.suffix.removeprefix(".").lower() not in FORMATS:
            raise UsageError(f"a figure cannot be written as {file.name!r}: end it in .{', .'.join(FORMATS)}")


def _draw(prediction: "Prediction", file: Path) -> None:
    from p2pfl.analysis import drawing, style

    style.save(drawing.topology(prediction), file)


def _print(found: dict[str, Any], prediction: "Prediction", model_bytes: int, console: Console) -> None:
    period = found["period"]
    turns = {1: "", None: ", drawn anew each round"}.get(period, f", repeats after {period} rounds")
    console.print(f"{found['name']}: {found['peers']} peers{turns}", style="bold")
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), show_header=False)
    a_round = "" if period == 1 else " a round"
    arcs = "arcs" if found["directed"] else "edges"
    drawn = found["gaps_how"] == "monte carlo"
    table.add_row(arcs + a_round, f"{_number(found['edges'])}{'' if period else ', mean of 40 rounds'}")
    table.add_row("degree", f"{_span(found['degree'])} shares received a round")
    if period:
        over = "" if period == 1 else ", over the edges of all rounds"
        table.add_row("diameter", f"{_number(found['diameter'])}{over}")
    mean_square = ", in the mean square by draws" if drawn else ""
    gaps = f"{_number(found['spectral_gap'])} by eigenvalues, {_number(found['singular_gap'])} by singular values"
    table.add_row("spectral gap", f"{_number(found['spectral_gap'])}{mean_square}" if drawn else gaps)
    if found["contraction"]:
        left = f"{'' if drawn else 'at most '}{_measured(found['contraction'])}"
        table.add_row("contraction", f"{left} of the squared distance to the average is left by a round")
    time = found["mixing_time"]
    table.add_row(
        "mixing time", "never" if time is None else f"{time:,} rounds until the distance (not squared) is 1/1,000"
    )
    if found["mixing"] != "auto":
        table.add_row("mixing", found["mixing"])
    neighbors = found["effective_neighbors"]
    at = ", ".join(f"{_number(value)} at γ = {gamma}" for gamma, value in neighbors.items())
    simulated = found["effective_neighbors_how"] == "monte carlo"
    table.add_row("effective neighbors", f"{at}{' by Monte Carlo' if simulated else ''}")
    table.add_row("noise floor", _floor_in_words(found))
    exact, finite = found["exact_rounds"], found["finite_time_rounds"]
    never = "unknown: too many peers to multiply out" if "exact_rounds" in found["left_out"] else "never"
    never += f" (after {finite} with --mixing finite-time)" if found["finite_time_serves"] else ""
    table.add_row("exact consensus", never if exact is None else f"after {exact} round{'s' * (exact != 1)}")
    busiest = options.megabytes(round(found["busiest_peer_bytes_per_round"]))
    cost = f"{options.megabytes(round(found['bytes_per_round']))} sent by all, {busiest} by the busiest peer"
    table.add_row("a round", f"{cost} (model: {options.megabytes(model_bytes)})")
    console.print(table)
    if not prediction.doubly_stochastic:
        from p2pfl.graphs.weighting import drift_warning

        console.print(f"Not doubly stochastic: {drift_warning(prediction.schedule)}.", style="yellow")
    if found["left_out"]:
        console.print(f"Left out, it would take minutes at this size: {', '.join(found['left_out'])}", style="dim")


def _floor_in_words(found: dict[str, Any]) -> str:
    how = found["noise_floor_how"]
    if how == "monte carlo":
        return f"{_measured(found['noise_floor_estimate'])} by Monte Carlo"
    if how is None:
        return "–" if "noise_floor" in found["left_out"] else "infinite: peers never agree"
    return f"{_number(found['noise_floor'])} {'by formula' if how == 'formula' else 'solved exactly'}"


def _floor(found: dict[str, Any]) -> str:
    estimate = found["noise_floor_estimate"]
    return f"~{_number(estimate['value'], 3)}" if estimate else _number(found["noise_floor"], 3)


def _measured(estimate: dict[str, float]) -> str:
    error = estimate["standard_error"]
    return _number(estimate["value"]) + (f" ± {error:.1g}" if error > 1e-12 else "")


def _estimate(found: "Estimate | None") -> dict[str, float] | None:
    return {"value": found.value, "standard_error": found.standard_error} if found else None


def _span(degree: dict[str, int]) -> str:
    return f"{degree['min']}" if degree["min"] == degree["max"] else f"{degree['min']}–{degree['max']}"


def _number(value: float | None, digits: int = 4) -> str:
    if value is None:
        return "–"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return "0" if abs(value) < 1e-12 else f"{value:.{digits}g}"


def _whole(value: float) -> float:
    """A whole number where it is one: a mean over rounds need not be."""
    return int(value) if float(value).is_integer() else value


def _table(*titles: str, right: Sequence[int] = ()) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for place, title in enumerate(titles):
        number = place in right
        table.add_column(
            title,
            justify="right" if number else "left",
            no_wrap=number,
            overflow="fold",
            min_width=None if number else min(len(title), 12),
        )
    return table
