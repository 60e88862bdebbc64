"""`p2pfl analyze`: what it prints, what it writes, and what it says of bad input."""

import json
from pathlib import Path

import pytest
from recorded import recorded, write
from typer.testing import CliRunner

from p2pfl.cli.app import app
from p2pfl.errors import P2pflError


def analyze(*arguments: object) -> str:
    """What the command prints; it must end well."""
    done = CliRunner().invoke(app, ["analyze", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(recorded("ring", rounds=8), tmp_path_factory.mktemp("one") / "ring")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    for topology in ("ring", "star", "complete"):
        for seed in (0, 1):
            write(recorded(topology, rounds=8, seed=seed), folder / f"{topology}-{seed}")
    return folder


def test_one_run_is_printed_and_drawn_beside_its_files(one: Path) -> None:
    text = analyze(one, "--target", ".1")
    assert "9 peers on ring, seed 0" in text
    assert "noise floor for unit noise" in text
    assert "to the target: rounds" in text
    drawn = sorted(path.name for path in (one / "plots").iterdir())
    assert drawn == [
        f"{name}.png" for name in ("accuracy", "consensus", "labels", "mixing-matrix", "network", "spectrum")
    ]


def test_one_run_as_json_is_one_object_with_every_figure(one: Path, tmp_path: Path) -> None:
    facts = json.loads(analyze(one, "--json", "--out", tmp_path, "--target", "1", "--format", "svg"))
    assert facts["runs"] == 1
    assert set(facts["accuracy"]) == {"mean", "worst", "p5", "std", "jain"}
    assert facts["predicted"]["effective_neighbors"].keys() == {"0.9", "0.99"}
    assert facts["volume"]["busiest"] == {"peer": "0", "bytes": 16_000}
    assert facts["references"] == {"alone": 0.2, "pooled": 0.98}
    assert set(facts["to_target"].values()) == {None}
    assert len(facts["figures"]) == 6
    assert all(Path(figure).read_text(encoding="utf-8").startswith("<?xml") for figure in facts["figures"])
    assert facts["report"] is None


def test_several_runs_give_tables_tests_prediction_and_a_page(sweep: Path) -> None:
    text = analyze(sweep, "--target", ".1", "--csv", "--latex")
    assert "3 topologies compared, 9 peers" in text
    assert "Spearman's ρ" in text
    assert "2 seeds: Wilcoxon's p cannot fall below 0.5" in text
    assert "each alone 20.0 %, all data in one place 98.0 %" in text
    written = {path.name for path in (sweep / "plots").iterdir()}
    assert {"report.html", "comparison.csv", "comparison.tex", "tests.csv", "tests.tex", "prediction.tex"} <= written
    assert {"accuracy.png", "consensus.png", "ranking.png", "prediction.png"} <= written
    assert "<h1>3 topologies compared" in (sweep / "plots" / "report.html").read_text(encoding="utf-8")


def test_several_runs_as_json(sweep: Path, tmp_path: Path) -> None:
    facts = json.loads(
        analyze(*sorted(sweep.glob("*-?")), "--json", "--out", tmp_path, "--html", tmp_path / "all.html")
    )
    assert (facts["runs"], facts["compared"], facts["within"]) == (6, "topology", [])
    assert [group["topology"] for group in facts["groups"]] == ["complete", "ring", "star"]
    assert facts["spearman"][0]["distance"] == {"rho": 1.0, "p": facts["spearman"][0]["distance"]["p"], "n": 3}
    assert [test["topology"] for test in facts["tests"]] == ["ring", "star"]
    assert facts["tests"][0]["note"].startswith("2 seeds")
    assert facts["groups"][0]["fedavg"] is None
    assert Path(facts["report"]).read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is no folder: give the folder of a run or of a sweep"),
        (["ONE", "--target", "90"], "--target 90: give a fraction, as .9 for 90 %"),
    ],
)
def test_bad_input_is_one_line_with_the_mend(one: Path, arguments: list[str], message: str) -> None:
    given = [str(one) if argument == "ONE" else argument for argument in arguments]
    with pytest.raises(P2pflError, match=message.replace(".", r"\.")):
        CliRunner().invoke(app, ["analyze", *given], catch_exceptions=False)


def test_a_folder_that_cannot_be_written_is_told(one: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(P2pflError, match="cannot be written"):
        CliRunner().invoke(app, ["analyze", str(one), "--out", str(tmp_path / "file")], catch_exceptions=False)


def test_help_shows_examples() -> None:
    assert "p2pfl analyze runs/my-sweep --target .9" in analyze("--help")
