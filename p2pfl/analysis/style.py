"""How figures look: sizes of a two-column paper, and lines that survive a color-blind reader and grey print."""

from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.text import Text

from p2pfl.errors import DataError, UsageError

_P = ParamSpec("_P")

COLUMN = 3.4  # inches: one column of a two-column page
PAGE = 7.0  # both
FORMATS = ("png", "svg", "pdf")

# Okabe and Ito, "Color universal design", 2008; yellow is left out, which vanishes on white, as is black: references.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
_LINES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (7, 2, 1, 2, 1, 2)))
REFERENCES: Mapping[str, Mapping[str, Any]] = {
    "pooled": {"color": "black", "linestyle": "--", "label": "all data in one place"},
    "fedavg": {"color": "0.35", "linestyle": "-.", "label": "exact average (FedAvg)"},
    "alone": {"color": "0.55", "linestyle": ":", "label": "each alone"},
}

_RC: Any = {  # matplotlib knows its keys; a checker would have to be told every one
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "pdf.fonttype": 42,  # TrueType: journals refuse Type 3
    "svg.hashsalt": "p2pfl",  # the same figure is the same file
    "svg.fonttype": "path",
    "figure.dpi": 100,
    "savefig.dpi": 250,
}


def drawn(draw: Callable[_P, Figure]) -> Callable[_P, Figure]:
    """Draw with this style, whatever the process has set, and leave no trace in it."""

    @wraps(draw)
    def styled(*args: _P.args, **kwargs: _P.kwargs) -> Figure:
        with mpl.rc_context(_RC):
            figure = draw(*args, **kwargs)
        # Names of files and peers may hold dollars; what is written so far is no mathematics, ticks come later.
        for text in figure.findobj(Text):
            if "$" in text.get_text():
                text.set_parse_math(False)
        return figure

    return styled


def figure(width: float = COLUMN, height: float = 2.4) -> Figure:
    """An empty figure in inches, whose parts make room for each other."""
    return Figure(figsize=(width, height), layout="constrained")


def line(index: int) -> dict[str, Any]:
    """Color, marker and dashes of the line with that index; no two of the first thirty share all three."""
    return {
        "color": COLORS[index % len(COLORS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": _LINES[(index // len(COLORS) + index) % len(_LINES)],
    }


def save(figure: Figure, path: Path) -> Path:
    """Write a figure in the format of its suffix; the same figure gives the same bytes.

    Raises:
        UsageError: there is no such format.
        DataError: the file cannot be written.
    """
    kind = path.suffix.removeprefix(".").lower()
    if kind not in FORMATS:
        raise UsageError(f"a figure cannot be written as {path.name!r}: end it in .{', .'.join(FORMATS)}")
    undated = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with mpl.rc_context(_RC):
            figure.savefig(path, format=kind, metadata=undated)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from error
    return path


def as_svg(figure: Figure) -> bytes:
    """The figure as the text of an SVG."""
    import io

    held = io.BytesIO()
    with mpl.rc_context(_RC):
        figure.savefig(held, format="svg", metadata={"Date": None})
    return held.getvalue()
