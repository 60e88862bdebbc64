"""Figures of runs: what they reached, against rounds, bytes and seconds; topologies side by side; what peers hold.

Each function returns a `matplotlib.figure.Figure`, which `style.save` writes. Nothing touches pyplot.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation, MaxNLocator, NullLocator

from p2pfl.analysis.style import COLORS, COLUMN, PAGE, REFERENCES, drawn, figure, line
from p2pfl.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

_AXES: Mapping[str, tuple[str, float]] = {  # column of the curves: label, unit
    "rounds": ("rounds", 1),
    "steps": ("gradient steps of a peer", 1),
    "bytes": ("sent by a peer, MB", 1e6),
    "wall_s": ("wall time, s", 1),
    "simulated_s": ("simulated time, s", 1),
}
_FIGURES: Mapping[str, tuple[str, float]] = {
    "accuracy": ("test accuracy, %", 0.01),
    "accuracy_worst": ("accuracy of the worst peer, %", 0.01),
    "mean_model_accuracy": ("accuracy of the averaged model, %", 0.01),
    "test_loss": ("test loss", 1),
    "train_loss": ("training loss", 1),
    "consensus_distance": ("consensus distance Ξ²", 1),
    "neighbor_distance": ("mean squared distance to neighbors", 1),
}
_LOGARITHMIC = {"consensus_distance", "neighbor_distance", "test_loss", "train_loss"}
_MARKED = 7  # markers on a line
_ROUNDING = 1e-9  # of the largest distance: what is below is exact consensus, and would squeeze everything else
_ENOUGH_FOR_PERCENTILES = 20  # peers; of fewer, the 5th percentile is hardly above the worst
_MOST_WRITTEN = 30  # peers whose counts are written into the figure
_MOST_NAMED = 60


@drawn
def against(
    means: Mapping[str, "pd.DataFrame"],
    column: str = "accuracy",
    costs: Sequence[str] = ("rounds",),
    stds: Mapping[str, "pd.DataFrame"] | None = None,
    references: Mapping[str, float] | None = None,
) -> Figure:
    """A figure of the runs against what it cost, a panel a cost; with bands of one standard deviation over seeds.

    On a logarithmic axis the band is symmetric there: mean · exp(± std / mean).

    Args:
        means: curves by label, as `measures.curves` or `Group.mean` give them.
        column: of the curves, as "accuracy" or "consensus_distance".
        costs: of "rounds", "steps", "bytes", "wall_s", "simulated_s".
        stds: `Group.std` by label.
        references: accuracies to draw as lines across, of `measures.references`.

    Raises:
        DataError: none of the runs measured it.
    """
    known = {label: curve.dropna(subset=[column]) for label, curve in means.items()}
    known = {label: curve for label, curve in known.items() if len(curve)}
    if not known:
        raise DataError(f"none of the runs measured {column}")
    if column == "consensus_distance":
        known = {label: curve.assign(**{column: _drawable(curve[column])}) for label, curve in _apart(known).items()}
    entries = len(known) + len(references or {})
    fig = figure(COLUMN if len(costs) == 1 else PAGE, 2.5 + 0.12 * _rows(entries, len(costs)))
    panels = fig.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    label, unit = _FIGURES.get(column, (column, 1))
    for panel, cost in zip(panels, costs, strict=True):
        _name_axis(panel, cost)
        for index, name in enumerate(means):  # what is left out keeps its color: it is the same in all figures
            if name not in known:
                continue
            curve = known[name]
            x, y = curve[cost] / _AXES[cost][1], curve[column] / unit
            every = max(1, len(curve) // _MARKED)
            look = line(index) | {"markevery": (index % every, every)}
            panel.plot(x, y, label=name, **look)
            if stds is not None and name in stds:
                spread = (stds[name][column].reindex(curve.index) / unit).fillna(0)
                low, high = y - spread, y + spread
                if column in _LOGARITHMIC:  # the same where it is small, and never below 0
                    low, high = y * np.exp(-spread / y), y * np.exp(spread / y)
                panel.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)
        _reference_lines(panel, references)
        if column in _LOGARITHMIC and all((curve[column] > 0).any() for curve in known.values()):
            panel.set_yscale("log")
    panels[0].set_ylabel(label)
    _legend(fig, panels[0], len(costs))
    return fig


@drawn
def one_run(curve: "pd.DataFrame", costs: Sequence[str], references: Mapping[str, float] | None = None) -> Figure:
    """The accuracy of one run's peers against what it cost: mean, 5th percentile, worst, and the averaged model.

    The percentile is drawn from 20 peers on.

    Raises:
        DataError: the run measured no accuracy.
    """
    known = curve.dropna(subset=["accuracy"])
    if not len(known):
        raise DataError("the run measured no accuracy")
    fig = figure(COLUMN if len(costs) == 1 else PAGE, 2.7)
    panels = fig.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for panel, cost in zip(panels, costs, strict=True):
        _name_axis(panel, cost)
        x = known[cost] / _AXES[cost][1]
        every = max(1, len(known) // _MARKED)
        shown = [("accuracy", "mean over peers"), ("accuracy_worst", "worst peer")]
        if known["peers"].max() >= _ENOUGH_FOR_PERCENTILES:
            shown.insert(1, ("accuracy_p5", "5th percentile"))
        if known["mean_model_accuracy"].notna().any():
            shown.insert(0, ("mean_model_accuracy", "averaged model"))
        for index, (column, label) in enumerate(shown):
            panel.plot(x, 100 * known[column], label=label, markevery=(index % every, every), **line(index))
        _reference_lines(panel, references)
    panels[0].set_ylabel("test accuracy, %")
    _legend(fig, panels[0], len(costs))
    return fig


@drawn
def consensus(curve: "pd.DataFrame", costs: Sequence[str], predicted: npt.ArrayLike | None = None) -> Figure:
    """The consensus distance of one run, with what `consensus.predicted_distance` makes of the neighbors' distances.

    Raises:
        DataError: the run measured neither distance.
    """
    fig = figure(COLUMN if len(costs) == 1 else PAGE, 2.6)
    panels = fig.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    shown: list[tuple[str, Any]] = [
        ("neighbors before mixing", curve["neighbor_distance"]),
        ("Ξ² after mixing", curve["consensus_distance"]),
    ]
    if predicted is not None:
        shown.append(("Ξ² predicted", curve["rounds"] * 0.0 + np.asarray(predicted)))
    shown = [(label, _drawable(values)) for label, values in shown]
    shown = [(label, values) for label, values in shown if values.notna().any()]
    if not shown:
        raise DataError("the run measured no distance between models")
    every = max(1, len(curve) // _MARKED)
    for panel, cost in zip(panels, costs, strict=True):
        _name_axis(panel, cost)
        for index, (label, values) in enumerate(shown):
            known = values.dropna()
            x = curve.loc[known.index, cost] / _AXES[cost][1]
            panel.plot(x, known, label=label, markevery=(index % every, every), **line(index))
        panel.set_yscale("log")
    panels[0].set_ylabel("squared distance")
    _legend(fig, panels[0], len(costs))
    return fig


@drawn
def ranking(
    values: Mapping[str, tuple[float, float | None, float]], references: Mapping[str, float] | None = None
) -> Figure:
    """What each group ended with: mean with its standard deviation over seeds, and the worst peer.

    Args:
        values: (mean, std over seeds, worst peer) of the accuracy by label, as fractions, in the order to draw.
    """
    fig = figure(COLUMN, 1.2 + 0.18 * len(values))
    panel = fig.subplots()
    rows = np.arange(len(values))
    mean, std, worst = (100 * np.array([own[at] or 0.0 for own in values.values()]) for at in range(3))
    panel.hlines(rows, worst, mean, color="0.75", linewidth=0.8, zorder=1)
    handles: list[Any] = [
        panel.errorbar(mean, rows, xerr=std, fmt="o", color=COLORS[0], capsize=2, markersize=4, linewidth=1),
        *panel.plot(worst, rows, "|", color=COLORS[1], markersize=7),
        *(
            panel.axvline(100 * at, linewidth=1, zorder=0, **REFERENCES[name])
            for name, at in (references or {}).items()
        ),
    ]
    labels = ["mean ± std over seeds" if std.any() else "mean over peers", "worst peer"]
    labels += [str(REFERENCES[name]["label"]) for name in references or {}]
    panel.set(xlabel="test accuracy, %", yticks=rows, yticklabels=list(values))
    panel.invert_yaxis()
    panel.grid(axis="y", visible=False)
    fig.legend(handles, labels, loc="outside lower center", ncols=2)
    return fig


@drawn
def prediction(points: Mapping[str, tuple[float, float, float]]) -> Figure:
    """Predicted noise floors beside what was measured: consensus distance, and accuracy.

    A floor of 0, exact consensus every round, stands at the left edge.

    Args:
        points: (noise floor, settled consensus distance, accuracy as a fraction) by label.

    Raises:
        DataError: no topology has both.
    """
    largest = max((p[1] for p in points.values() if np.isfinite(p[1])), default=0.0)
    apart = {label: p for label, p in points.items() if p[0] > 0 and np.isfinite(p[0]) and p[1] > _ROUNDING * largest}
    rated = {label: p for label, p in points.items() if p[0] >= 0 and np.isfinite((p[0], p[2])).all()}
    shown = [(known, at) for known, at in ((apart, 1), (rated, 2)) if known]
    if not shown:
        raise DataError("no topology has a noise floor and a measured distance or accuracy")
    fig = figure(PAGE if len(shown) > 1 else COLUMN, 2.5 + 0.12 * _rows(len(points), len(shown)))
    panels = fig.subplots(1, len(shown), squeeze=False)[0]
    looks = {label: line(index) | {"linestyle": "none", "markersize": 5} for index, label in enumerate(points)}
    drawn_by = {}
    for panel, (known, at) in zip(panels, shown, strict=True):
        floors = [p[0] for p in known.values() if p[0] > 0]
        zero = 10.0 ** (np.floor(np.log10(min(floors, default=1.0))) - 1)
        for label, point in known.items():
            y = point[at] * (100 if at == 2 else 1)
            drawn_by[label] = panel.plot(point[0] or zero, y, label=label, **looks[label])[0]
        panel.set_xscale("log")
        panel.set_xlabel("predicted noise floor")
        panel.set_ylabel("measured consensus distance Ξ²" if at == 1 else "test accuracy, %")
        if at == 1:
            panel.set_yscale("log")
            _slope_of_one(panel, [p[0] for p in known.values()], [p[1] for p in known.values()])
        elif len(floors) < len(known):
            panel.xaxis.set_major_formatter(_ZeroAt(zero))
    fig.legend(drawn_by.values(), drawn_by.keys(), loc="outside lower center", ncols=_columns(len(shown)))
    return fig


class _ZeroAt(LogFormatterSciNotation):
    """Calls one decade 0: there is no place for it on a logarithmic axis."""

    def __init__(self, place: float) -> None:
        super().__init__()
        self._place = place

    def __call__(self, x: float, pos: int | None = None) -> str:
        return "0" if np.isclose(x, self._place) else str(super().__call__(x, pos))


@drawn
def label_split(partition: "pd.DataFrame", peers: Sequence[str]) -> Figure:
    """Which peer holds how many examples of which label: darker is more.

    Args:
        partition: peer, label, count.
        peers: from top to bottom.
    """
    labels = list(dict.fromkeys(partition["label"]))
    counts = partition.pivot_table(index="peer", columns="label", values="count", aggfunc="sum", fill_value=0)
    counts = counts.reindex(index=list(peers), columns=labels, fill_value=0)
    height = min(8.0, 0.9 + 0.17 * len(peers)) if len(peers) <= _MOST_NAMED else 4.0
    fig = figure(COLUMN, max(1.6, height))
    panel = fig.subplots()
    image = panel.imshow(counts, cmap="Greys", aspect="auto", vmin=0, interpolation="nearest")
    panel.grid(visible=False)
    panel.set(xlabel="label", xticks=range(len(labels)), xticklabels=labels)
    if max((len(str(label)) for label in labels), default=0) > 3:
        panel.tick_params(axis="x", rotation=45)
    if len(peers) <= _MOST_NAMED:
        panel.set(yticks=range(len(peers)), yticklabels=list(peers))
    panel.set_ylabel("peer")
    if len(peers) <= _MOST_WRITTEN and len(labels) <= 12:
        darkest = counts.to_numpy().max(initial=1)
        for y, row in enumerate(counts.to_numpy()):
            for x, count in enumerate(row):
                if count:
                    shade = "white" if count > 0.55 * darkest else "black"
                    panel.text(x, y, str(int(count)), ha="center", va="center", fontsize=5.5, color=shade)
    fig.colorbar(image, ax=panel, label="examples", fraction=0.06, pad=0.02)
    return fig


def costs_of(curves: Iterable["pd.DataFrame"], wall: bool = True) -> list[str]:
    """What there is to draw against: rounds, bytes where any were sent, and simulated seconds, else the wall's.

    Args:
        wall: whether wall time says something: of simulations it is the simulator's.
    """
    found = list(curves)
    costs = ["rounds"]
    if any(curve["bytes"].max() > 0 for curve in found):
        costs.append("bytes")
    if all(curve["simulated_s"].notna().any() for curve in found):
        costs.append("simulated_s")
    elif wall and all(curve["wall_s"].max() > 0 for curve in found):
        costs.append("wall_s")
    return costs


def _apart(curves: "Mapping[str, pd.DataFrame]") -> "Mapping[str, pd.DataFrame]":
    """Without those that differ by rounding alone; all where none is apart."""
    largest = max(float(curve["consensus_distance"].max()) for curve in curves.values())
    kept = {k: curve for k, curve in curves.items() if curve["consensus_distance"].max() > _ROUNDING * largest}
    return kept or curves


def _drawable(values: "pd.Series[float]") -> "pd.Series[float]":
    """Without what has no place on a logarithmic axis: nothing, and what rounding left of it."""
    return values.where(values > _ROUNDING * values.max())


def _name_axis(panel: Axes, cost: str) -> None:
    panel.set_xlabel(_AXES[cost][0])
    if cost in ("rounds", "steps"):
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def _reference_lines(panel: Axes, references: Mapping[str, float] | None) -> None:
    for name, value in (references or {}).items():
        panel.axhline(100 * value, linewidth=1, zorder=1, **REFERENCES[name])


def _slope_of_one(panel: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    """Where all points would lie if the drift of a round were the same on every topology."""
    ratio = float(np.exp(np.mean(np.log(y) - np.log(x))))
    ends = np.array([min(x), max(x)])
    panel.plot(ends, ratio * ends, color="0.6", linewidth=0.8, zorder=0)
    panel.yaxis.set_minor_locator(NullLocator())


def _rows(entries: int, panels: int) -> int:
    columns = _columns(panels)
    return -(-entries // columns)


def _columns(panels: int) -> int:
    return 2 if panels == 1 else 5


def _legend(fig: Figure, panel: Axes, panels: int) -> None:
    handles, labels = panel.get_legend_handles_labels()
    if len(labels) > 1 or any(label in str(labels) for label in ("alone", "average")):
        fig.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), _columns(panels)))
