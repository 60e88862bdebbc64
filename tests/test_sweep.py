"""Sweeps: every combination once, side by side, and nothing twice."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import pytest

import p2pfl
from p2pfl.errors import RecipeError, UsageError
from p2pfl.recipe import Recipe
from p2pfl.recipe_files import Sweep
from p2pfl.simulation.jobs import Job, finished, job_of, reference_job, run_job
from p2pfl.simulation.run_lock import held
from p2pfl.simulation.sweep import Step

BASE: dict[str, Any] = {"peers": 4, "model": "logistic", "samples": 20, "test_samples": 50, "rounds": 2, "workers": 1}
GRID = {"topology": ["ring", "complete"], "seed": [0, 1]}


def test_a_row_a_combination_with_what_varies_and_the_final_figures(tmp_path: Path) -> None:
    frame = p2pfl.sweep(BASE, GRID, out=tmp_path, workers=1)
    assert list(zip(frame["topology"], frame["seed"], strict=True)) == [
        ("ring", 0),
        ("ring", 1),
        ("complete", 0),
        ("complete", 1),
    ]
    written = pd.read_csv(tmp_path / "results.csv")
    assert list(written.columns) == list(frame.columns)
    assert written["accuracy_mean"].tolist() == frame["accuracy_mean"].tolist()
    for row in frame.to_dict("records"):
        summary = p2pfl.load_run(row["folder"]).summary
        assert (row["accuracy_mean"], row["bytes_sent"]) == (summary["accuracy"]["mean"], summary["bytes_sent"])
        assert (row["topology"], row["seed"]) == (summary["topology"], summary["seed"])


def test_what_is_finished_is_not_repeated(tmp_path: Path) -> None:
    p2pfl.sweep(BASE, GRID, out=tmp_path, workers=1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.csv")}
    steps: list[Step] = []
    wider = {"topology": ["ring", "complete", "star"], "seed": [0, 1]}
    frame = p2pfl.sweep(BASE, wider, out=tmp_path, workers=1, progress=steps.append)
    assert len(frame) == 6
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [(step.done, step.total, step.repeated) for step in steps] == [(4, 6, 4), (5, 6, 4), (6, 6, 4)]


def test_references_run_once_for_all_topologies(tmp_path: Path) -> None:
    frame = p2pfl.sweep(BASE, GRID, out=tmp_path, workers=1, references=["alone", "pooled"])
    assert len(list((tmp_path / "references").iterdir())) == 4  # two references of two seeds
    by_seed = frame.groupby("seed")[["alone_mean", "alone_worst", "pooled_mean"]].nunique()
    assert (by_seed == 1).all(axis=None)
    summary = p2pfl.load_run(frame["folder"][0]).summary
    assert summary["alone"] == {"mean": frame["alone_mean"][0], "worst": frame["alone_worst"][0]}
    assert summary["pooled"] == {"mean": frame["pooled_mean"][0]}
    beside = Path(frame["folder"][0]) / summary["references"]["alone"]
    assert p2pfl.load_run(beside).recipe.algorithm == "alone"


def test_equal_recipes_have_equal_folders_and_others_others(tmp_path: Path) -> None:
    ring = Recipe(topology="ring")
    assert job_of(ring, tmp_path) == job_of(Recipe(topology="ring", workers=5), tmp_path)
    assert job_of(ring, tmp_path).folder != job_of(Recipe(rounds=16), tmp_path).folder
    assert Path(job_of(Recipe(topology="base:k=4"), tmp_path).folder).name.startswith("base-k=4-")
    same = reference_job(ring, "alone", tmp_path)
    assert same == reference_job(Recipe(topology="star", mixing="lazy", latency="3", engine="event"), "alone", tmp_path)
    assert same != reference_job(Recipe(alpha=0.1), "alone", tmp_path)
    assert same != reference_job(ring, "pooled", tmp_path)


def test_a_run_that_cannot_be_is_a_row_with_its_error(tmp_path: Path) -> None:
    frame = p2pfl.sweep(BASE, {"topology": ["torus", "ring"], "peers": [4, 7]}, out=tmp_path, workers=1)
    errors = dict(zip(zip(frame["topology"], frame["peers"], strict=True), frame["error"], strict=True))
    assert "there is no torus of 7 peers" in errors.pop(("torus", 7))
    assert pd.isna(list(errors.values())).all()
    assert frame["rounds"].isna().sum() == 1


def test_the_first_interrupt_keeps_what_is_done_and_the_next_call_goes_on(tmp_path: Path) -> None:
    def interrupt(step: Step) -> None:
        if step.done == 2:
            signal.raise_signal(signal.SIGINT)

    said: list[str] = []
    frame = p2pfl.sweep(BASE, GRID, out=tmp_path, workers=1, progress=interrupt, say=said.append)
    assert len(frame) == len(pd.read_csv(tmp_path / "results.csv")) == 2
    assert said == ["stopping after the rounds under way; what is done is kept (again to quit at once)"]
    assert len(p2pfl.sweep(BASE, GRID, out=tmp_path, workers=1)) == 4


def test_a_stopped_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    job = job_of(Recipe(**{**BASE, "rounds": 4}), tmp_path)
    rounds = iter((False, True))
    row = run_job(job, lambda: next(rounds))
    assert row["summary"]["stopped"]
    assert finished(job) is None
    again = run_job(job)
    assert (again["summary"]["rounds"], again["summary"]["stopped"]) == (4, False)
    assert finished(job) == again
    assert p2pfl.load_run(job.folder).metrics["round"].tolist() == sorted([0, 1, 2, 3] * 4)


def test_processes_need_no_guard_in_a_script_and_one_that_dies_costs_its_run(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import p2pfl\n"
        f"frame = p2pfl.sweep({BASE!r}, dict(model=['talking:model', 'deadly:model']), out='runs', workers=2)\n"
        "print(frame['accuracy_mean'][0], frame['error'][1])\n"
    )
    (tmp_path / "talking.py").write_text(
        "from p2pfl.learning.models import build_model\n"
        "def model(shape, outputs):\n"
        "    print('this is no row')\n"
        "    return build_model('logistic', shape, outputs)\n"
    )
    (tmp_path / "deadly.py").write_text("import os\ndef model(shape, outputs):\n    os._exit(3)\n")
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(p2pfl.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    here = p2pfl.sweep(BASE, out=tmp_path / "here", workers=1)
    expected = f"{here['accuracy_mean'][0]} its process ended with status 3\n"
    assert (done.stdout, done.returncode) == (expected, 0), done.stderr


def test_a_sweep_comes_as_a_file_too(tmp_path: Path) -> None:
    file = tmp_path / "sweep.toml"
    lines = [f"{key} = {value!r}" for key, value in BASE.items()]
    file.write_text("\n".join([*lines, "seed = [3, 4]", 'references = ["pooled"]']))
    frame = p2pfl.sweep(file, out=tmp_path / "runs", workers=1)
    assert (frame["seed"].tolist(), frame["pooled_mean"].notna().all()) == ([3, 4], True)
    one = p2pfl.sweep(Sweep(BASE), {"seed": [3]}, out=tmp_path / "runs", workers=1)
    assert one["accuracy_mean"].tolist() == frame["accuracy_mean"].tolist()[:1]


def test_epochs_of_a_grid_stand_over_steps_of_the_base(tmp_path: Path) -> None:
    frame = p2pfl.sweep({**BASE, "steps": 1}, {"epochs": [1, 5]}, out=tmp_path, workers=1)
    assert frame["steps"].tolist() == [4 * 2, 5 * 4 * 2]
    assert Sweep({"steps": 1, "lr": 0.5}).over({"epochs": 9}, {}).base == {"lr": 0.5, "epochs": 9}
    assert Sweep({}, {"epochs": [1, 5]}).over({"steps": 3}, {}) == Sweep({"steps": 3})
    with pytest.raises(RecipeError, match="epochs: steps stand instead of them"):
        p2pfl.sweep(BASE, {"epochs": [1, 5], "steps": [2]}, out=tmp_path)


def test_epochs_beside_steps_in_a_file_are_refused_with_the_line(tmp_path: Path) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text("steps = 2\nepochs = [1, 5]\n")
    with pytest.raises(RecipeError, match="line 2: epochs: steps stand instead of them"):
        p2pfl.sweep(file, out=tmp_path / "runs")


def test_values_of_a_grid_come_alone_twice_or_from_numpy() -> None:
    plan = Sweep({"rounds": 2}).over({}, {"seed": 5, "peers": np.arange(4, 6), "alpha": [0.5, 0.5]})
    assert plan.grid == {"seed": [5], "peers": [4, 5], "alpha": [0.5]}
    assert len(plan) == 2


def test_a_file_that_was_edited_is_another_run(tmp_path: Path) -> None:
    file = tmp_path / "net.graphml"
    nx.write_graphml(nx.path_graph(4), file)
    before = p2pfl.sweep(BASE, {"topology": [str(file)]}, out=tmp_path / "runs", workers=1)
    nx.write_graphml(nx.complete_graph(4), file)
    after = p2pfl.sweep(BASE, {"topology": [str(file)]}, out=tmp_path / "runs", workers=1)
    assert after["bytes_sent"][0] == 2 * before["bytes_sent"][0]  # 12 shares a round, not 6
    table = tmp_path / "data.csv"
    table.write_text("a,b\n1,2\n")
    recipe = Recipe(data=str(table))
    first = job_of(recipe, tmp_path), reference_job(recipe, "pooled", tmp_path)
    table.write_text("a,b\n1,3\n")
    second = job_of(recipe, tmp_path), reference_job(recipe, "pooled", tmp_path)
    assert all(one.folder != other.folder for one, other in zip(first, second, strict=True))


def test_half_a_summary_is_run_again_and_a_finished_run_keeps_no_checkpoint(tmp_path: Path) -> None:
    job = job_of(Recipe(**BASE), tmp_path)
    whole = run_job(job)
    assert not (Path(job.folder) / "checkpoints").exists()
    path = Path(job.folder) / "summary.json"
    path.write_bytes(path.read_bytes()[:50])
    again = run_job(job)
    assert again["error"] is None
    assert again["summary"]["accuracy"] == whole["summary"]["accuracy"]
    assert finished(job) == again


def test_a_stopped_run_with_churn_begins_anew(tmp_path: Path) -> None:
    job = job_of(Recipe(**BASE, churn="crash@0.01=3"), tmp_path)
    assert run_job(job, lambda: True)["summary"]["ended_early"] == "stopped after round 1 of 2"
    again = run_job(job)
    assert (again["error"], again["summary"]["rounds"]) == (None, 2)


def test_a_run_that_another_sweep_is_at_is_left_alone(tmp_path: Path) -> None:
    job = job_of(Recipe(**BASE), tmp_path)
    folder = Path(job.folder)
    folder.mkdir()
    (folder / "events.jsonl").touch()
    with held(folder):
        row = run_job(job)
    assert "is being written by another run" in row["error"]
    assert (folder / "events.jsonl").exists()


def test_jobs_travel_as_json() -> None:
    import msgspec

    job = job_of(Recipe(), Path("runs"))
    assert msgspec.json.decode(msgspec.json.encode(job), type=Job) == job


@pytest.mark.parametrize(
    ("grid", "kind", "says"),
    [
        ({"sead": [1]}, RecipeError, "unknown field `sead`; did you mean 'seed'?"),
        ({"alpha": [0.1, "x"]}, RecipeError, "alpha: expected `float`, got `str`"),
        ({"alpha": []}, RecipeError, "the grid has no values for alpha: give at least one"),
    ],
)
def test_a_grid_that_cannot_be_is_refused_before_anything_runs(
    tmp_path: Path, grid: dict[str, Any], kind: type[UsageError], says: str
) -> None:
    with pytest.raises(kind) as refused:
        p2pfl.sweep(BASE, grid, out=tmp_path / "runs", workers=1)
    assert says in str(refused.value)
    assert not (tmp_path / "runs").exists()


def test_an_unknown_reference_and_a_folder_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no reference 'alon'"):
        p2pfl.sweep(BASE, GRID, out=tmp_path, references=["alon"])
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be made"):
        p2pfl.sweep(BASE, GRID, out=tmp_path / "file" / "runs")
