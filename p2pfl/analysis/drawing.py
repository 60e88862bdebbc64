"""Pictures of topologies: the network, its mixing matrix, its eigenvalues, and several topologies side by side.

Each public function returns a `matplotlib.figure.Figure`, which `style.save` writes. Nothing touches pyplot.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import networkx as nx
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from scipy.sparse import csr_array

from p2pfl.analysis.style import COLORS, COLUMN, PAGE, drawn, figure
from p2pfl.graphs.mixing import mixing_csr
from p2pfl.graphs.prediction import Prediction
from p2pfl.graphs.spectra import Eigenvalues, Matrix, has_whole_spectrum
from p2pfl.graphs.spectra import spectrum as eigenvalues_of
from p2pfl.graphs.topology import Topology
from p2pfl.spelling import parse

_NAMED = 40  # nodes whose names are written
_ARROWS = 700  # arcs that are drawn as arrows
_LINES = 20_000  # edges that are drawn
_SPRINGS = 400  # nodes that are laid out by their distances; more lie on a circle
_CELLS = 512  # of a heat map's side
_ROUNDS = 4  # of a schedule that are drawn
_EARLY = 40  # rounds drawn anew whose mean matrix is shown
_SEQUENTIAL = "cividis"  # grows evenly in lightness, so it survives grey print
_LINK = "0.55"
_BEND = 0.18  # how far a bent edge bulges, of its length


@drawn
def network(
    topology: Topology,
    values: Sequence[float] | npt.NDArray[np.float64] | None = None,
    volume: Mapping[tuple[int, int], float] | None = None,
    names: Sequence[str] | None = None,
    label: str = "test accuracy",
) -> Figure:
    """The network; nodes colored by a value, edges as wide as what they carried.

    Args:
        values: one for each node, as its accuracy; NaN is drawn empty.
        volume: by (sender, receiver), in any unit; both directions of an undirected edge are added.
        names: of the nodes; by default their numbers. Written up to 40.
        label: of the values.
    """
    fig = figure(COLUMN, COLUMN if values is None else COLUMN * 0.86)
    axes = fig.add_subplot()
    shown = _draw_network(axes, topology, values, volume, names, scale=1.4)
    if shown is not None:
        fig.colorbar(shown, ax=axes, label=label, shrink=0.8)
    return fig


@drawn
def heat_map(matrix: Matrix) -> Figure:
    """The mixing matrix: row i is what node i puts on each; white where there is no weight."""
    fig = figure(COLUMN, COLUMN * 0.82)
    _draw_matrix(fig, fig.add_subplot(), csr_array(matrix))
    return fig


@drawn
def spectrum(matrix: Matrix) -> Figure:
    """The eigenvalues of a mixing matrix, in order; in the complex plane where they are complex."""
    fig = figure(COLUMN, COLUMN * 0.8)
    _draw_eigenvalues(fig.add_subplot(), eigenvalues_of(matrix) if has_whole_spectrum(matrix) else None)
    return fig


@drawn
def topology(prediction: Prediction) -> Figure:
    """The network, its mixing matrix and spectrum; of a schedule first rounds, mean, and the product's.

    Args:
        prediction: of the schedule to draw.
    """
    schedule = prediction.schedule
    if schedule.static:
        fig = figure(PAGE, 2.6)
        first, second, third = fig.subplots(1, 3)
        fig.suptitle(f"{schedule.name}, {schedule.nodes} peers")
        _draw_network(first, schedule.at(0))
        _draw_matrix(fig, second, mixing_csr(schedule.at(0)))
        _draw_eigenvalues(third, prediction.eigenvalues)
        return fig
    fig = figure(PAGE, 4.6)
    halves = fig.subfigures(2, 1, height_ratios=[1, 1.35], squeeze=False)
    above, below = halves[0, 0], halves[1, 0]
    turns = f"repeats after {schedule.period} rounds" if schedule.period else "drawn anew each round"
    fig.suptitle(f"{schedule.name}, {schedule.nodes} peers, {turns}")
    rounds = min(schedule.period or _ROUNDS, _ROUNDS)
    at = _positions(schedule.at(0)) if schedule.nodes <= 2 else _circle(schedule.nodes)
    for round, axes in enumerate(above.subplots(1, rounds, squeeze=False)[0]):
        _draw_network(axes, schedule.at(round), at=at, scale=0.65)
        axes.set_title(f"round {round}")
    left, right = below.subplots(1, 2)
    count = schedule.period or _EARLY
    mean = csr_array(sum(mixing_csr(schedule.at(round)) for round in range(count)) / count)
    _draw_matrix(below, left, mean)
    left.set_title(f"mean of W over {count} rounds" if count > 1 else "W")
    if schedule.period:
        _draw_eigenvalues(right, prediction.eigenvalues)
        right.set_title(f"eigenvalues of the product of {count} rounds", pad=16)
    else:
        first_matrix = mixing_csr(schedule.at(0))
        known = has_whole_spectrum(first_matrix)
        _draw_eigenvalues(right, eigenvalues_of(first_matrix) if known else None)
        right.set_title("eigenvalues of W in round 0", pad=16)
    return fig


@drawn
def comparison(predictions: Sequence[Prediction], bytes_per_round: Sequence[float]) -> Figure:
    """Topologies from the lowest noise floor down: floor, effective neighbors, and the bytes that a round costs.

    Args:
        predictions: in order, as `prediction.predict` ranks them.
        bytes_per_round: of each, over the whole network.
    """
    fig = figure(PAGE, 1.3 + 0.2 * len(predictions))
    panels = fig.subplots(1, 3, sharey=True)
    rows = np.arange(len(predictions))
    found = [prediction.noise_floor for prediction in predictions]
    floors = np.array([np.nan if one is None else one.value for one in found])
    for how, marker, words in (
        ("formula", "o", "by formula"),
        ("exact", "s", "solved"),
        ("monte carlo", "D", "simulated"),
    ):
        these = [row for row in rows if floors[row] > 1e-12 and (one := found[row]) is not None and one.how == how]
        if these:
            errors = [2 * (one.standard_error if (one := found[row]) else 0) for row in these]
            look: dict[str, Any] = {
                "fmt": marker,
                "color": COLORS[0],
                "mfc": "white" if how != "formula" else COLORS[0],
            }
            panels[0].errorbar(floors[these], these, xerr=errors, label=words, capsize=2, **look)
    nothing = np.flatnonzero(floors < 1e-12)
    if (floors > 1e-12).any():
        panels[0].set_xscale("log")
        panels[0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if _decades(floors) < 2.5 else (1,)))
        panels[0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panels[0].xaxis.set_minor_locator(NullLocator())
        for row in nothing:
            panels[0].text(0.03, row, "0", va="center", transform=panels[0].get_yaxis_transform())
    panels[0].set_xlabel("predicted noise floor")
    for gamma, marker, color in ((0.9, "o", COLORS[0]), (0.99, "^", COLORS[1])):
        neighbors = [prediction.effective_neighbors(gamma) for prediction in predictions]
        values = [np.nan if one is None else one.value for one in neighbors]
        panels[1].plot(values, rows, marker, color=color, label=f"γ = {gamma}")
    panels[1].set_xlabel("effective neighbors")
    panels[1].set_xlim(left=0)
    panels[2].barh(rows, np.array(bytes_per_round) / 1e6, color=COLORS[2], height=0.6)
    panels[2].set_xlabel("sent by all in a round, MB")
    panels[0].set_yticks(rows, [prediction.schedule.name for prediction in predictions])
    panels[0].invert_yaxis()
    for panel in panels[:2]:
        panel.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, handletextpad=0.2, columnspacing=0.8)
    return fig


def _decades(values: npt.NDArray[np.float64]) -> float:
    some = values[values > 1e-12]
    return float(np.log10(some.max() / some.min()))


def _draw_network(
    axes: Axes,
    of: Topology,
    values: Sequence[float] | npt.NDArray[np.float64] | None = None,
    volume: Mapping[tuple[int, int], float] | None = None,
    names: Sequence[str] | None = None,
    at: npt.NDArray[np.float64] | None = None,
    scale: float = 1.0,
) -> Any:
    """Draw it; what a color bar needs where nodes have values."""
    at = _positions(of) if at is None else at
    pairs = of.pairs[:: math.ceil(len(of.pairs) / _LINES) or 1]
    widths = np.full(len(pairs), max(0.05, 0.7 * min(1.0, 250 / max(len(pairs), 1))))
    if volume:
        carried = np.array([volume.get((i, j), 0.0) + volume.get((j, i), 0.0) * (not of.directed) for i, j in pairs])
        widths = 0.3 + 2.7 * carried / max(carried.max(initial=0), 1e-300)
    on_circle = np.allclose(at, _circle(of.nodes))
    size = min(13.0, 260 / of.nodes if on_circle else 48 / math.sqrt(of.nodes)) * scale
    size = max(size, 0.8)
    if of.directed and len(pairs) <= _ARROWS:
        for (sender, receiver), width in zip(pairs, widths, strict=True):
            arrow = FancyArrowPatch(
                tuple(at[sender]),
                tuple(at[receiver]),
                arrowstyle="-|>",
                mutation_scale=4 + 3 * scale,
                connectionstyle=f"arc3,rad={_BEND / 2}",
                shrinkA=size / 2,
                shrinkB=size / 2,
                linewidth=width,
                color=_LINK,
            )
            axes.add_patch(arrow)
    else:
        axes.add_collection(LineCollection(_curves(at, pairs, _is_lattice(of)), linewidths=widths, colors=_LINK))
    colors: dict[str, Any] = {"c": "white"}
    if values is not None:
        colors = {"c": np.asarray(values, dtype=np.float64), "cmap": _SEQUENTIAL, "plotnonfinite": True}
    edge = "black" if of.nodes <= 200 else "none"
    if edge == "none" and values is None:
        colors = {"c": COLORS[0]}
    nodes = axes.scatter(at[:, 0], at[:, 1], s=size**2, edgecolors=edge, linewidths=0.7, zorder=3, **colors)
    if values is not None:
        nodes.set_cmap(nodes.get_cmap().with_extremes(bad="white"))
    if of.nodes <= _NAMED * scale:
        _name_nodes(axes, at, names or [str(node) for node in range(of.nodes)], values, size, on_circle)
    if len(pairs) < len(of.pairs):
        axes.set_title(f"{len(pairs):,} of {len(of.pairs):,} edges")
    axes.set_aspect("equal")
    axes.margins(0.12)
    axes.set_axis_off()
    return nodes if values is not None and np.isfinite(np.asarray(values, dtype=np.float64)).any() else None


def _name_nodes(
    axes: Axes, at: npt.NDArray[np.float64], names: Sequence[str], values: Any | None, size: float, on_circle: bool
) -> None:
    """Numbers inside the nodes, longer names beside them."""
    inside = max(map(len, names)) <= 2 and size >= 9
    middle = None if values is None else np.nanmean([np.nanmin(values), np.nanmax(values)])
    for node, (place, name) in enumerate(zip(at, names, strict=True)):
        offset, align = np.zeros(2), ("center", "center")
        if not inside and on_circle:
            offset = place * (size * 0.5 + 2)
            align = ("left" if place[0] > 0.1 else "right" if place[0] < -0.1 else "center"), "center"
            offset[1] += 2.5 * np.sign(place[1]) * (align[0] == "center")
        elif not inside:
            offset, align = np.array([0, -size * 0.5 - 1]), ("center", "top")
        dark = inside and middle is not None and values is not None and values[node] < middle
        text = axes.annotate(
            name,
            tuple(place),
            xytext=(float(offset[0]), float(offset[1])),
            textcoords="offset points",
            ha=align[0],
            va=align[1],
            fontsize=min(7.0, size * 0.52) if inside else 5.5,
            color="white" if dark else "black",
            zorder=4,
        )
        if not inside:  # legible on the edges it lies upon
            text.set_path_effects([withStroke(linewidth=1.5, foreground="white")])


def _draw_matrix(fig: Any, axes: Axes, matrix: csr_array) -> None:
    nodes = matrix.shape[0]
    step = math.ceil(nodes / _CELLS)
    side = math.ceil(nodes / step)
    cells = np.full((side, side), -np.inf)
    entries = matrix.tocoo()
    there = entries.data != 0
    rows, columns = entries.row[there] // step, entries.col[there] // step
    np.maximum.at(cells, (rows, columns), entries.data[there])
    cells[np.isinf(cells)] = np.nan
    extent = (-0.5, nodes - 0.5, nodes - 0.5, -0.5)
    lowest = min(0.0, float(np.nanmin(cells)))
    shown = axes.imshow(cells, cmap=f"{_SEQUENTIAL}_r", vmin=lowest, extent=extent, interpolation="nearest")
    axes.grid(visible=False)
    axes.set_xlabel("weight put on node")
    axes.set_ylabel("by node")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    words = "weight" if step == 1 else f"weight, largest of {step} × {step}"
    fig.colorbar(shown, ax=axes, label=words, shrink=0.8)


def _draw_eigenvalues(axes: Axes, values: Eigenvalues | None) -> None:
    if values is None:
        axes.text(0.5, 0.5, "too many nodes\nfor all eigenvalues", ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    absolute = np.sort(np.abs(values))
    second = float(absolute[-2]) if len(values) > 1 and absolute[-2] > 1e-12 else 0.0
    look: dict[str, Any] = {"color": COLORS[0], "markersize": 3 if len(values) <= 100 else 1.5}
    if np.isrealobj(values):
        axes.plot(np.arange(1, len(values) + 1), values, "o", label="eigenvalues", **look)
        for side in (second, -second):
            axes.axhline(side, color=COLORS[1], linestyle="--", linewidth=0.8)
        axes.plot([], [], color=COLORS[1], linestyle="--", linewidth=0.8, label=f"± {second:.4g}, the second largest")
        axes.set_xlabel("number of the eigenvalue")
        axes.set_ylabel("eigenvalue")
        axes.set_ylim(min(-0.05, float(values.min())) - 0.08, 1.08)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    else:
        axes.add_patch(Circle((0, 0), 1, fill=False, color="0.6", linewidth=0.8))
        axes.add_patch(Circle((0, 0), second, fill=False, color=COLORS[1], linestyle="--", linewidth=0.8))
        axes.plot(values.real, values.imag, "o", label="eigenvalues", **look)
        axes.plot([], [], color=COLORS[1], linestyle="--", linewidth=0.8, label=f"|λ| = {second:.4g}, the second")
        axes.set_xlabel("real part")
        axes.set_ylabel("imaginary part")
        axes.set_aspect("equal")
        axes.set_xlim(-1.08, 1.08)
        axes.set_ylim(-1.08, 1.08)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, handletextpad=0.4, columnspacing=1, fontsize=6)


def _curves(at: npt.NDArray[np.float64], pairs: npt.NDArray[np.int64], lattice: bool) -> list[npt.NDArray[np.float64]]:
    """Straight lines; on a lattice, links that pass other nodes bulge, or they would lie upon each other."""
    starts, ends = at[pairs[:, 0]], at[pairs[:, 1]]
    ways = ends - starts
    if not lattice:
        return list(np.stack([starts, ends], axis=1))
    across = np.stack([-ways[:, 1], ways[:, 0]], axis=1)
    bend = np.where(np.hypot(*ways.T) > 1.5, _BEND, 0.0)[:, None]
    t = np.linspace(0, 1, 17)[None, :, None]
    return list(starts[:, None] + t * ways[:, None] + 4 * t * (1 - t) * (bend * across)[:, None] * 0.5)


def _positions(of: Topology) -> npt.NDArray[np.float64]:
    """Where to draw the nodes, [nodes, 2]: as the kind of topology is usually drawn, else by distances."""
    kind = of.name.partition(":")[0]
    if _is_lattice(of):
        _, cols = _rows_and_cols(of)
        return np.array([(node % cols, -(node // cols)) for node in range(of.nodes)], dtype=np.float64)
    if kind == "star" and of.nodes > 2:
        return np.concatenate([np.zeros((1, 2)), _circle(of.nodes - 1)])
    if kind in ("ring", "complete", "exponential", "exponential-symmetric") or not 3 <= of.nodes <= _SPRINGS:
        return _circle(of.nodes)
    graph = of.to_networkx().to_undirected()
    if not nx.is_connected(graph):
        return _circle(of.nodes)
    found = nx.kamada_kawai_layout(graph)
    return np.array([found[node] for node in range(of.nodes)])


def _is_lattice(of: Topology) -> bool:
    return of.name.partition(":")[0] in ("grid", "torus")


def _rows_and_cols(of: Topology) -> tuple[int, int]:
    options = parse(of.name).options
    if "rows" in options and "cols" in options:
        return int(options["rows"]), int(options["cols"])
    rows = max(rows for rows in range(1, math.isqrt(of.nodes) + 1) if of.nodes % rows == 0)
    return rows, of.nodes // rows


def _circle(nodes: int) -> npt.NDArray[np.float64]:
    """Clockwise from the top."""
    angles = np.pi / 2 - 2 * np.pi * np.arange(nodes) / nodes
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)
