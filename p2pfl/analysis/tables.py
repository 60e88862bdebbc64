"""Tables of a study: a row a group, as data frames, CSV and LaTeX."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from p2pfl.analysis import measures
from p2pfl.analysis.measured import Measured
from p2pfl.analysis.statistics import mean_std
from p2pfl.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from p2pfl.analysis.study import Agreement, Comparison, Study

# Every column of `comparison_table` that a person reads: heading, what it is multiplied by, digits.
HEADINGS: Mapping[str, tuple[str, float, int]] = {
    "seeds": ("seeds", 1, 0),
    "accuracy": ("accuracy, %", 100, 1),
    "worst": ("worst peer, %", 100, 1),
    "p5": ("5th percentile, %", 100, 1),
    "over_peers_std": ("std over peers, points", 100, 2),
    "jain": ("Jain index", 1, 4),
    "mean_model_accuracy": ("averaged model, %", 100, 1),
    "test_loss": ("test loss", 1, -4),
    "consensus_distance": ("Ξ²", 1, -3),
    "noise_floor": ("noise floor", 1, -3),
    "spectral_gap": ("gap", 1, -3),
    "megabytes": ("MB a peer", 1, 2),
    "analytic_megabytes": ("n·deg·4P, MB a peer", 1, 2),
    "reached": ("seeds that reached it", 1, 0),
    "to_rounds": ("rounds to target", 1, 1),
    "to_steps": ("steps to target", 1, 0),
    "to_megabytes": ("MB to target", 1, 2),
    "to_wall_s": ("wall s to target", 1, 1),
    "to_simulated_s": ("simulated s to target", 1, 1),
    "alone": ("alone, %", 100, 1),
    "fedavg": ("FedAvg, %", 100, 1),
    "pooled": ("pooled, %", 100, 1),
}
_OF_GROUPS = (
    "seeds",
    "reached",
    "noise_floor",
    "spectral_gap",
    *measures.REFERENCES,
)  # columns that no run has by itself
# What fits beside each other in a terminal and on a page; the other columns are in the files.
REACHED = ("seeds", "accuracy", "worst", "mean_model_accuracy", "consensus_distance", "noise_floor", "megabytes")
REACHED_LOSS = ("seeds", "test_loss", "consensus_distance", "noise_floor", "megabytes")  # where there is no accuracy
TO_TARGET = ("reached", "to_rounds", "to_steps", "to_megabytes", "to_wall_s", "to_simulated_s")
BRIEF = (
    "seeds",
    "accuracy",
    "worst",
    "consensus_distance",
    "noise_floor",
    "to_rounds",
    "to_megabytes",
    "to_simulated_s",
)
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "–": "--",
    "·": r"$\cdot$",
    "²": r"$^2$",
    "Ξ": r"$\Xi$",
    "τ": r"$\tau$",
    "ρ": r"$\rho$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "∞": r"$\infty$",
}


def run_figures(run: Measured, curve: "pd.DataFrame", target: float | None = None) -> dict[str, float]:
    """What one run ended with, by the columns of `HEADINGS`; NaN where it was not measured or not reached."""
    accuracy = measures.final_accuracy(run)
    found = dict.fromkeys((name for name in HEADINGS if name not in _OF_GROUPS), math.nan)
    if len(accuracy):
        over = measures.spread(accuracy)
        found |= {"accuracy": over.mean, "worst": over.worst, "p5": over.p5, "over_peers_std": over.std}
        found["jain"] = over.jain
    found["mean_model_accuracy"] = _last(curve["mean_model_accuracy"])
    found["test_loss"] = _last(curve["test_loss"])
    found["consensus_distance"] = measures.settled(curve["consensus_distance"])
    sent = measures.volume(run)
    peers = max(1, len(sent.by_peer))
    found["megabytes"] = sent.total / peers / 1e6
    if sent.analytic_per_round is not None:
        found["analytic_megabytes"] = sent.analytic_per_round * len(sent.by_round) / peers / 1e6
    if target is not None:
        costs = measures.to_target(curve, target) if len(accuracy) else {}
        for name, cost in costs.items():
            column, unit = ("to_megabytes", 1e6) if name == "bytes" else (f"to_{name}", 1)
            found[column] = math.nan if cost is None else cost / unit
    return found


def comparison_table(study: "Study", target: float | None = None) -> "pd.DataFrame":
    """A row a group: what varies, how many seeds, and mean and std over them of every figure.

    Every figure has two columns, its name and its name with `_std`; noise floor, gap and seeds have one. `reached` is
    the number of seeds that reached the target: costs to it are the mean over those.
    """
    import pandas as pd

    rows = []
    for group in study.groups:
        figures = [run_figures(run, group.curves[seeds], target) for seeds, run in group.runs.items()]
        row: dict[str, Any] = {study.compared: group.label, **dict(zip(study.within, group.within, strict=True))}
        row["seeds"] = len(figures)
        if target is not None:
            row["reached"] = sum(not math.isnan(own["to_rounds"]) for own in figures)
        row |= {"noise_floor": group.noise_floor, "spectral_gap": group.spectral_gap}
        for name in figures[0]:
            known = [own[name] for own in figures if not math.isnan(own.get(name, math.nan))]
            over = mean_std(known) if known else None
            row[name] = over.mean if over else math.nan
            row[f"{name}_std"] = over.std if over and over.std is not None else math.nan
        rows.append(row | dict.fromkeys(measures.REFERENCES, math.nan) | study.references_of(group))
    return pd.DataFrame(rows)


def readable(table: "pd.DataFrame", labels: Sequence[str], columns: Sequence[str] | None = None) -> "pd.DataFrame":
    """The table as text for a person: mean ± std, units in the headings, a dash where there is nothing.

    Args:
        table: of `comparison_table`.
        labels: its columns that say which group it is.
        columns: figures to show; by default all that any group has.
    """
    import pandas as pd

    wanted = [name for name in columns or HEADINGS if name in table and table[name].notna().any()]
    shown = {name: [_text(value) for value in table[name]] for name in labels}
    for name in wanted:
        heading, unit, digits = HEADINGS[name]
        spreads = table.get(f"{name}_std", pd.Series(math.nan, index=table.index))
        shown[heading] = [
            cell(value * unit, spread * unit, digits) for value, spread in zip(table[name], spreads, strict=True)
        ]
    return pd.DataFrame(shown)


def tests_table(comparisons: Sequence["Comparison"], study: "Study") -> "pd.DataFrame":
    """Paired tests as text: the difference, its 95 % interval, p values. What to mind: `notes`.

    Differences are in points of accuracy, or in loss where there is no accuracy.
    """
    import pandas as pd

    rows = []
    what, unit = ("points", 100) if study.figure == "accuracy" else ("test loss", 1)
    for found in comparisons:
        test = found.test
        interval = "–" if test.interval is None else f"{unit * test.interval[0]:+.2f} … {unit * test.interval[1]:+.2f}"
        rows.append(
            {
                study.compared: found.label,
                **{name: _text(value) for name, value in zip(study.within, found.within, strict=True)},
                "against": found.against,
                "seeds": str(test.n),
                what: f"{unit * test.difference:+.2f}",
                "95 % interval": interval,
                "p, paired t": p_value(test.t_p),
                "p, Holm": p_value(test.holm_p),
                "p, Wilcoxon": p_value(test.wilcoxon_p),
            }
        )
    return pd.DataFrame(rows)


def notes(comparisons: Sequence["Comparison"]) -> list[str]:
    """What to keep in mind of the tests, each thing once."""
    return sorted({found.test.note for found in comparisons} - {""})


def agreements_table(agreements: Sequence["Agreement"], study: "Study") -> "pd.DataFrame":
    """Spearman's ρ of predicted against measured, as text."""
    import pandas as pd

    rows = []
    for found in agreements:
        row = {name: _text(value) for name, value in zip(study.within, found.within, strict=True)}
        row["topologies"] = str(max(found.distance.n, found.accuracy.n))
        for name, rank in (("Ξ²", found.distance), ("accuracy", found.accuracy)):
            row |= {f"ρ, {name}": cell(_or_nan(rank.rho), math.nan, 3), f"p, {name}": p_value(rank.p)}
        rows.append(row)
    return pd.DataFrame(rows)


def references_line(references: Mapping[str, float]) -> str:
    """The references in words, empty where there are none."""
    words = {"alone": "each alone", "fedavg": "exact average each round (FedAvg)", "pooled": "all data in one place"}
    return ", ".join(f"{words[name]} {100 * value:.1f} %" for name, value in references.items())


def cell(value: float, spread: float, digits: int) -> str:
    """A number, with its spread if that is not 0: so many digits, or significant ones where `digits` is negative."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    if digits < 0:
        shown, beside = _significant(value, -digits), "" if math.isnan(spread) else _significant(spread, 2)
    else:
        shown, beside = f"{value:.{digits}f}", "" if math.isnan(spread) else f"{spread:.{digits}f}"
    return f"{shown} ± {beside}" if beside.strip("0.") else shown


def p_value(p: float | None) -> str:
    """A p value as it is printed."""
    if p is None:
        return "–"
    return "< .001" if p < 0.001 else f"{p:.3f}".removeprefix("0") if p < 1 else "1"


def is_number(text: str) -> bool:
    """Whether a cell reads as a number, or as the lack of one: such columns stand on the right."""
    return text in ("", "–", "∞") or text[0] in "0123456789.+-−<"


def escape(text: str) -> str:
    """Text as LaTeX prints it, with nothing left that LaTeX would obey."""
    return "".join(_LATEX.get(character, character) for character in text)


def to_latex(table: "pd.DataFrame", caption: str = "", label: str = "") -> str:
    """A table environment with booktabs rules, every cell escaped; text left, everything else right.

    Args:
        table: of text, as `readable` gives it.
        label: for `\\ref`, left out where empty.
    """
    numeric = [all(is_number(str(value)) for value in table[column]) for column in table.columns]
    lines = [r"\begin{table}", r"\centering"]
    if caption:
        lines.append(rf"\caption{{{escape(caption)}}}")
    if label:
        lines.append(rf"\label{{{label}}}")
    lines += [
        rf"\begin{{tabular}}{{{''.join('r' if right else 'l' for right in numeric)}}}",
        r"\toprule",
        " & ".join(escape(str(column)) for column in table.columns) + r" \\",
        r"\midrule",
        *(" & ".join(escape(str(value)) for value in row) + r" \\" for row in table.itertuples(index=False)),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "% needs \\usepackage{booktabs}\n" + "\n".join(lines) + "\n"


def write(path: Path, text: str) -> Path:
    """Write a table or a report.

    Raises:
        DataError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from error
    return path


def _significant(value: float, digits: int) -> str:
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    if decimals > 6:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(decimals, 0)}f}"


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _last(values: "pd.Series[float]") -> float:
    known = values.dropna()
    return float(known.iloc[-1]) if len(known) else math.nan
