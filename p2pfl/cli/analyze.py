"""`p2pfl analyze`: what runs measured, beside what theory predicts, as text, tables, figures and one HTML page."""

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from p2pfl.cli import options
from p2pfl.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from p2pfl.analysis.page import Plate
    from p2pfl.analysis.runs import Run
    from p2pfl.analysis.study import Study

EXAMPLES = """Examples:

p2pfl analyze runs/demo-20260101-120000

p2pfl analyze runs/my-sweep --target .9

p2pfl analyze runs/ring runs/torus --html report.html --format pdf --latex"""

_WIDTH = 120  # columns of text where nobody says how wide the terminal is


def command(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Folders of runs, or of sweeps, which hold many.", show_default=False),
    ],
    target: Annotated[
        float | None, typer.Option(help="What it took to reach this mean accuracy, as .9 for 90 %.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for figures and tables \\[default: plots/ in the folder given; a new one of several]."
        ),
    ] = None,
    format: Annotated[Literal["png", "svg", "pdf"], typer.Option(help="Of the figures.")] = "png",
    html: Annotated[
        Path | None,
        typer.Option(help="One page with everything \\[default: report.html beside the figures, of several]."),
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Write the table as CSV, too, with every digit.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Write the tables as LaTeX, too.")] = False,
    json: options.Json = False,
) -> None:
    """Analyze a run, or compare several: accuracy, consensus, bytes and time, statistics over seeds, and prediction."""
    from p2pfl.analysis.study import find_runs, study

    if target is not None and not 0 < target <= 1:
        raise UsageError(f"--target {target:g}: give a fraction, as .9 for 90 %")
    console = options.console(json)
    if not console.is_terminal:
        console.width = _WIDTH
    found = find_runs(runs, lambda text: console.print(Text(text)))
    folder = out or _default_folder(runs)
    work = _Work(folder, format, target, console)
    if len(found) == 1:
        facts = work.one(found[0], html, csv, latex)
    else:
        facts = work.several(study(found), found, html or folder / "report.html", csv, latex)
    if json:
        options.print_json(_plain(facts))
    else:
        console.print(Text(f"\nwrote {len(work.written)} files to {folder}" + (f", {html}" if html else "")))


def _default_folder(runs: list[Path]) -> Path:
    """plots/ in the one folder that was given; of several, a new folder beside other runs."""
    if len(runs) == 1:
        return runs[0] / "plots"
    return Path("runs") / f"analysis-{time.strftime('%Y%m%d-%H%M%S')}"


class _Work:
    """One call of the command: what is asked for, and the files that were written."""

    def __init__(self, folder: Path, format: str, target: float | None, console: Console) -> None:
        self.folder = folder
        self.format = format
        self.target = target
        self.console = console
        self.written: list[Path] = []

    def one(self, run: "Run", html: Path | None, csv: bool, latex: bool) -> dict[str, Any]:
        """A run by itself."""
        from p2pfl.analysis import measures, overview, plates, report, tables

        curve = measures.curves(run)
        facts = overview.of_run(run, curve, self.target)
        drawn = plates.of_run(run, curve)
        self._save(drawn)
        table = overview.readable(facts)
        _show(self.console, overview.title(run), table)
        if csv:
            self.written.append(tables.write(self.folder / "curves.csv", curve.to_csv()))
        if latex:
            text = tables.to_latex(table, overview.title(run), "tab:run")
            self.written.append(tables.write(self.folder / "summary.tex", text))
        if html is not None:
            self.written.append(tables.write(html, report.of_run(run, facts, drawn)))
        return {"runs": 1, **facts, **self._files(html)}

    def several(self, study: "Study", found: "list[Run]", html: Path, csv: bool, latex: bool) -> dict[str, Any]:
        """Runs side by side."""
        from p2pfl.analysis import plates, report, tables

        table = tables.comparison_table(study, self.target)
        labels = [study.compared, *study.within]
        comparisons, agreements = study.comparisons(), study.agreements()
        tests, ranks = tables.tests_table(comparisons, study), tables.agreements_table(agreements, study)
        blocks = plates.of_study(study)
        self._save([plate for drawn in blocks.values() for plate in drawn])
        title = report.title(study)
        rated = study.figure == "accuracy"
        _show(self.console, title, tables.readable(table, labels, tables.REACHED if rated else tables.REACHED_LOSS))
        for line in report.beside_lines(study):
            self.console.print(Text(line))
        if self.target is not None and rated:
            reached = f"What it took until mean accuracy first reached {100 * self.target:g} %"
            _show(self.console, reached, tables.readable(table, labels, tables.TO_TARGET))
        if len(tests):
            _show(self.console, f"Mean {study.figure.replace('_', ' ')} against the best, seed by seed", tests)
            self.console.print(*(Text(f"{note}.") for note in tables.notes(comparisons)), sep="\n")
        if len(ranks):
            _show(self.console, "Spearman's ρ of the order that the noise floor predicts and the one measured", ranks)
        if csv:
            self.written.append(tables.write(self.folder / "comparison.csv", table.to_csv(index=False)))
            self.written.append(tables.write(self.folder / "tests.csv", tests.to_csv(index=False)))
        if latex:
            brief = tables.readable(table, labels, tables.BRIEF)
            for name, made in (("comparison", brief), ("tests", tests), ("prediction", ranks)):
                if len(made):
                    text = tables.to_latex(made, title, f"tab:{name}")
                    self.written.append(tables.write(self.folder / f"{name}.tex", text))
        notes = tables.notes(comparisons)
        folders = [str(run.folder) for run in found]
        text = report.of_study(study, table, tests, notes, ranks, blocks, self.target, folders)
        self.written.append(tables.write(html, text))
        return {
            "runs": len(found),
            "compared": study.compared,
            "within": list(study.within),
            "groups": table.to_dict("records"),
            "tests": [
                {study.compared: c.label, **_within(study, c.within), "against": c.against, **vars(c.test)}
                for c in comparisons
            ],
            "spearman": [
                {**_within(study, a.within), "distance": vars(a.distance), "accuracy": vars(a.accuracy)}
                for a in agreements
            ],
            **self._files(html),
        }

    def _save(self, drawn: "list[Plate]") -> None:
        from p2pfl.analysis import style

        for plate in drawn:
            self.written.append(style.save(plate.figure, self.folder / f"{plate.name}.{self.format}"))

    def _files(self, html: Path | None) -> dict[str, Any]:
        return {
            "target": self.target,
            "figures": [str(path) for path in self.written if path.suffix == f".{self.format}"],
            "tables": [str(path) for path in self.written if path.suffix in (".csv", ".tex")],
            "report": str(html) if html is not None else None,
        }


def _within(study: "Study", values: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(study.within, values, strict=True))


def _show(console: Console, title: str, frame: "pd.DataFrame") -> None:
    """Print a table of text: words left, numbers right."""
    from p2pfl.analysis.tables import is_number

    table = Table(title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in frame.columns:
        right = all(is_number(str(value)) for value in frame[column])
        table.add_column(Text(str(column)), justify="right" if right else "left", no_wrap=not right, overflow="fold")
    for row in frame.itertuples(index=False):
        table.add_row(*(Text(str(value).replace(" ± ", "±")) for value in row))
    console.print()
    console.print(table)


def _plain(value: Any) -> Any:
    """As JSON has it: no NaN, no infinity, no numpy."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if hasattr(value, "item"):  # a numpy scalar
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
