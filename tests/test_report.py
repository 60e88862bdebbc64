"""Several runs side by side: groups, tests, prediction, tables and the HTML page."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import pytest
from recorded import recorded, write

from p2pfl.analysis import overview, plates, report, tables
from p2pfl.analysis.figures import against
from p2pfl.analysis.measures import curves
from p2pfl.analysis.page import Part, Plate, page
from p2pfl.analysis.study import find_runs, study
from p2pfl.errors import DataError

TOPOLOGIES = ("ring", "star", "complete", "torus")


@pytest.fixture(scope="module")
def runs() -> list[object]:
    return [recorded(t, rounds=12, seed=s) for t in TOPOLOGIES for s in (0, 1, 2)]


def test_seeds_are_brought_together_and_the_best_comes_first(runs: list[object]) -> None:
    found = study(runs)
    assert (found.compared, found.within) == ("topology", ())
    assert found.groups[0].label == "complete"
    assert [len(group.runs) for group in found.groups] == [3, 3, 3, 3]
    assert found.groups[-1].label == "star"


def test_mean_and_std_are_over_seeds_round_by_round(runs: list[object]) -> None:
    ring = next(group for group in study(runs).groups if group.label == "ring")
    finals = [curves(run)["accuracy"].iloc[-1] for run in runs if run.recipe.topology == "ring"]
    assert ring.mean["accuracy"].iloc[-1] == pytest.approx(np.mean(finals))
    assert ring.std["accuracy"].iloc[-1] == pytest.approx(np.std(finals, ddof=1))


def test_other_settings_that_vary_make_blocks() -> None:
    found = study([recorded(t, rounds=3, alpha=a, peers=4) for t in ("ring", "star") for a in (0.1, 10.0)])
    assert found.within == ("alpha",)
    assert [found.describe(within) for within in found.blocks] == ["alpha = 0.1", "alpha = 10"]


def test_without_topologies_something_else_is_compared() -> None:
    found = study([recorded("ring", rounds=3, lr=lr) for lr in (0.1, 0.2)])
    assert found.compared == "lr"
    assert found.agreements() == []


def test_how_a_run_was_carried_out_makes_no_group() -> None:
    found = study([recorded(rounds=2, seed=0, workers=1), recorded(rounds=2, seed=1, workers=2, engine="event")])
    assert len(found.groups) == 1


def test_how_long_peers_wait_is_studied() -> None:
    found = study([recorded(rounds=2, patience=patience, engine="event") for patience in (1.0, 3.0)])
    assert (found.compared, len(found.groups)) == ("patience", 2)


def test_references_that_came_along_stand_beside_the_groups() -> None:
    runs = [recorded(t, rounds=2, alpha=a) for t in ("ring", "star") for a in (0.1, 10.0)]
    runs += [recorded("complete", rounds=2, alpha=0.1, algorithm="fedavg", seed=s) for s in (0, 1)]
    found = study(runs)
    assert {group.label for group in found.groups} == {"ring", "star"}
    reached = np.mean([curves(run)["accuracy"].iloc[-1] for run in runs[4:]])
    assert found.references((0.1,)) == pytest.approx({"alone": 0.2, "fedavg": reached, "pooled": 0.98})
    assert found.references((10.0,)) == pytest.approx({"alone": 0.2, "pooled": 0.98})


def test_references_are_no_common_lines_where_what_is_compared_changes_them() -> None:
    found = study([recorded("ring", rounds=2, alpha=a) for a in (0.1, 10.0)])
    assert found.references(()) == {}
    assert found.references_of(found.groups[0]) == {"alone": 0.2, "pooled": 0.98}


def test_nothing_but_references_is_compared() -> None:
    found = study([recorded("ring", rounds=2, algorithm=a) for a in ("alone", "fedavg")])
    assert {group.label for group in found.groups} == {"alone", "fedavg"}
    assert np.isnan(found.groups[0].noise_floor)


def test_without_accuracy_groups_are_ranked_and_tested_by_loss() -> None:
    runs = [recorded(t, rounds=6, seed=s, data=f"quadratic:dim=5,seed={s}") for t in ("star", "ring") for s in (0, 1)]
    for run in runs:
        run.metrics["test_accuracy"] = np.nan
    found = study(runs)
    assert (found.figure, found.within) == ("test_loss", ())
    assert [group.label for group in found.groups] == ["ring", "star"]
    tests = tables.tests_table(found.comparisons(), found)
    assert float(tests["test loss"][0]) > 0
    assert [plate.name for plate in plates.of_study(found)[""]][:2] == ["loss", "consensus"]


def test_the_same_run_twice_is_told() -> None:
    with pytest.raises(DataError, match="runs of one recipe with one seed"):
        study([recorded(rounds=2), recorded(rounds=2)])
    with pytest.raises(DataError, match="no runs"):
        study([])


def test_floor_and_gap_are_those_of_theory() -> None:
    (ring,) = study([recorded("ring", peers=25, rounds=1)]).groups
    assert ring.noise_floor == pytest.approx(2.583, abs=1e-3)  # theory.md, section 6
    assert ring.spectral_gap == pytest.approx(0.020945, abs=1e-6)
    (complete,) = study([recorded("complete", peers=5, rounds=1)]).groups
    assert complete.noise_floor == 0


def test_the_floor_ranks_topologies_as_training_does(runs: list[object]) -> None:
    (found,) = study(runs).agreements()
    assert found.distance.rho == pytest.approx(1)
    assert found.accuracy.rho == pytest.approx(1)
    assert found.distance.n == 4


def test_every_group_is_tested_against_the_best(runs: list[object]) -> None:
    found = study(runs).comparisons()
    assert [(own.label, own.against) for own in found] == [(t, "complete") for t in ("torus", "ring", "star")]
    assert all(own.test.n == 3 and own.test.difference < 0 for own in found)
    assert all(own.test.holm_p >= own.test.t_p for own in found)
    assert tables.notes(found) == [found[0].test.note]


def test_the_table_has_mean_and_std_of_every_figure(runs: list[object]) -> None:
    table = tables.comparison_table(study(runs), target=0.3).set_index("topology")
    assert table.loc["ring", "seeds"] == 3
    assert table.loc["ring", "accuracy_std"] > 0
    assert table.loc["complete", "worst"] == pytest.approx(table.loc["complete", "accuracy"])
    assert table.loc["star", "megabytes"] == pytest.approx(16 * 12 * 1000 / 9 / 1e6)
    assert table.loc["ring", "pooled"] == pytest.approx(0.98)
    assert table["reached"].tolist() == [3, 3, 3, 3]


def test_a_target_that_some_seeds_missed_says_how_many_reached_it(runs: list[object]) -> None:
    finals = [curves(run)["accuracy"].iloc[-1] for run in runs if run.recipe.topology == "ring"]
    table = tables.comparison_table(study(runs), target=sorted(finals)[1]).set_index("topology")
    assert table.loc["ring", "reached"] == 2


def test_a_person_reads_means_with_spread_and_units(runs: list[object]) -> None:
    shown = tables.readable(tables.comparison_table(study(runs)), ["topology"], ["seeds", "accuracy", "noise_floor"])
    assert list(shown.columns) == ["topology", "seeds", "accuracy, %", "noise floor"]
    assert re.fullmatch(r"\d\d\.\d ± \d\.\d", shown["accuracy, %"][0])
    assert shown["noise floor"][0] == "0"


@pytest.mark.parametrize(
    ("value", "spread", "digits", "text"),
    [
        (94.512, 0.24, 1, "94.5 ± 0.2"),
        (94.512, float("nan"), 1, "94.5"),
        (3.0, 0.0, 1, "3.0"),
        (0.0042, 0.00011, -3, "0.00420 ± 0.00011"),
        (1234.5, float("nan"), -3, "1234"),
        (2.5e-9, float("nan"), -3, "2.50e-09"),
        (float("nan"), 1.0, 2, "–"),
        (float("inf"), float("nan"), 2, "∞"),
    ],
)
def test_numbers_are_written_with_the_digits_that_mean_something(
    value: float, spread: float, digits: int, text: str
) -> None:
    assert tables.cell(value, spread, digits) == text


@pytest.mark.parametrize(("p", "text"), [(None, "–"), (0.0001, "< .001"), (0.0312, ".031"), (1.0, "1")])
def test_p_values_are_written_as_in_papers(p: float | None, text: str) -> None:
    assert tables.p_value(p) == text


def test_latex_escapes_everything_that_it_would_obey() -> None:
    table = pd.DataFrame({"topology_%": ["a_b & {c} $5 #1 ^~\\"], "Ξ²": ["0.1 ± 0.2"]})
    text = tables.to_latex(table, "100 % of it", "tab:x")
    assert r"topology\_\% & $\Xi$$^2$ \\" in text
    body = r"a\_b \& \{c\} \$5 \#1 \textasciicircum{}\textasciitilde{}\textbackslash{} & 0.1 $\pm$ 0.2 \\"
    assert body in text
    assert r"\begin{tabular}{lr}" in text
    assert r"\caption{100 \% of it}" in text


def test_agreement_and_tests_are_tables_of_text(runs: list[object]) -> None:
    found = study(runs)
    ranks = tables.agreements_table(found.agreements(), found)
    assert ranks.to_dict("records")[0]["ρ, Ξ²"] == "1.000"
    tests = tables.tests_table(found.comparisons(), found)
    assert list(tests.columns)[:4] == ["topology", "against", "seeds", "points"]
    assert set(tests["p, Wilcoxon"]) == {".250"}


def test_an_overview_stands_prediction_beside_measurement() -> None:
    run = recorded("ring", peers=16, rounds=10)
    facts = overview.of_run(run, curves(run), 0.2)
    assert facts["predicted"]["noise_floor"] == pytest.approx(1.47208, abs=1e-5)
    assert facts["predicted"]["effective_neighbors"]["0.9"] == pytest.approx(6.60, abs=0.01)
    assert facts["predicted"]["contraction"]["worst"] == pytest.approx((1 - 0.050747) ** 2, abs=1e-5)
    assert facts["volume"]["busiest_edge"]["bytes"] == 10_000
    assert facts["to_target"]["rounds"] is not None
    shown = overview.readable(facts)
    assert "noise floor for unit noise" in shown[""].tolist()
    assert overview.title(run) == "16 peers on ring, seed 0"


def test_an_overview_of_a_regression_has_losses_and_no_accuracy() -> None:
    run = recorded("ring", rounds=4)
    run.metrics["test_accuracy"] = np.nan
    facts = overview.of_run(run, curves(run))
    assert facts["accuracy"] is None
    assert "test loss, mean over peers" in overview.readable(facts)[""].tolist()


def test_runs_are_found_in_a_sweep_with_its_references_but_not_those_of_a_run(tmp_path: Path) -> None:
    first = write(recorded("ring", rounds=2), tmp_path / "sweep" / "ring-0")
    write(recorded("ring", rounds=2, algorithm="alone"), first / "references" / "alone")
    write(recorded("star", rounds=2), tmp_path / "sweep" / "star-0")
    write(recorded("complete", rounds=2, algorithm="fedavg"), tmp_path / "sweep" / "references" / "fedavg-0")
    begun = write(recorded("star", rounds=2, seed=1), tmp_path / "sweep" / "star-1")
    (begun / "summary.json").unlink()
    told: list[str] = []
    found = find_runs([tmp_path / "sweep", first], told.append)
    assert [run.folder.name for run in found] == ["fedavg-0", "ring-0", "star-0"]
    assert told == [f"{begun} is not finished and is left out"]


def cut_short(topology: str, folder: Path, **told: object) -> Path:
    """A run that has 2 of 20 rounds behind it."""
    run = recorded(topology, rounds=2)
    run.summary.update(told)
    return write(replace(run, recipe=msgspec.structs.replace(run.recipe, rounds=20)), folder)


def test_stopped_runs_are_left_out_of_a_sweep_and_those_that_ended_early_are_told(tmp_path: Path) -> None:
    stopped = cut_short("ring", tmp_path / "a" / "ring", stopped=True)
    with pytest.raises(DataError, match="holds no run with all its rounds; resume them"):
        find_runs([tmp_path / "a"])
    emptied = cut_short("star", tmp_path / "a" / "star", stopped=False)
    whole = write(recorded("complete", rounds=20), tmp_path / "a" / "whole")
    told: list[str] = []
    assert [run.folder for run in find_runs([tmp_path / "a"], told.append)] == [emptied, whole]
    assert told == [
        f"{stopped} was stopped after 2 of 20 rounds and is left out; resume it",
        f"{emptied} ended after 2 of 20 rounds: its figures are those of its last rounds",
    ]


def test_a_stopped_run_that_is_asked_for_by_itself_is_taken_with_a_word(tmp_path: Path) -> None:
    stopped, told = cut_short("ring", tmp_path / "ring", stopped=True), []
    assert [run.folder for run in find_runs([stopped], told.append)] == [stopped]
    assert told == [f"{stopped} was stopped after 2 of 20 rounds: its figures are those of its last rounds"]


def test_folders_without_runs_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no finished run"):
        find_runs([tmp_path])
    with pytest.raises(DataError, match="is no folder: give the folder of a run"):
        find_runs([tmp_path / "nowhere"])


class Page(HTMLParser):
    """Counts tags, and remembers what a page would load and its tables' cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.alts: list[str] = []
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.sources += [given[key] or "" for key in ("src", "href") if key in given]
        if tag == "img":
            self.alts.append(given["alt"] or "")
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


def test_the_page_holds_everything_and_loads_nothing(runs: list[object]) -> None:
    found = study(runs)
    table = tables.comparison_table(found, 0.3)
    tests = tables.tests_table(found.comparisons(), found)
    ranks = tables.agreements_table(found.agreements(), found)
    text = report.of_study(found, table, tests, ["few seeds"], ranks, plates.of_study(found), 0.3, ["runs/a"])
    seen = Page(text)
    assert seen.open == []
    assert all(source.startswith(("data:image/svg+xml;base64,", "#part-")) for source in seen.sources)
    assert "://" not in re.sub(r'src="data:[^"]*"', "", text)
    assert "<script" not in text
    assert len(seen.alts) == 4 + 4 * 3 + 1  # the split once
    assert all(seen.alts)
    assert {"ring", "star", "complete", "torus", "ρ, Ξ²"} <= set(seen.cells)
    assert "4 topologies compared, 9 peers" in text
    assert "lr = 0.1" in text  # the recipe that all share
    assert "topology = " not in text


def test_a_page_of_one_run(runs: list[object]) -> None:
    run = runs[0]
    curve = curves(run)
    text = report.of_run(run, overview.of_run(run, curve), plates.of_run(run, curve))
    assert Page(text).open == []
    assert "9 peers on ring, seed 0" in text
    assert "noise floor for unit noise" in text


def test_what_others_wrote_is_text_and_not_markup() -> None:
    evil = "<script>alert('&')</script>"
    plate = Plate("x", f'"{evil}', against({evil: curves(recorded(rounds=2))}))
    parts = [Part(evil, [evil], [pd.DataFrame({evil: [evil]})], [plate], True, {evil: evil})]
    text = page(evil, evil, parts, evil)
    assert "<script" not in text
    assert Page(text).open == []
