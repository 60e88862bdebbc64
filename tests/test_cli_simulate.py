"""`p2pfl simulate`, `sweep` and `recipe`: every setting a flag, figures at the end, one line for what is wrong."""

import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import p2pfl
from p2pfl.cli import app
from p2pfl.cli.recipe_flags import NETWORK, WORLD
from p2pfl.cli.simulate import duration
from p2pfl.recipe import NetworkRecipe, Recipe, about

Run = Callable[..., tuple[int, str, str]]

SMALL = ("--peers", "4", "--model", "logistic", "--samples", "20", "--test-samples", "50", "--workers", "1")
KEYS = {
    "peers",
    "rounds",
    "topology",
    "algorithm",
    "seed",
    "wall_s",
    "accuracy",
    "alone",
    "pooled",
    "consensus_distance",
    "bytes_sent",
    "bytes_received",
    "failures",
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs `p2pfl …` in this process, in a folder of its own: (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["p2pfl", *arguments])
        try:
            app.main()
            status = 0
        except SystemExit as left:
            status = int(left.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_every_setting_is_a_flag_with_the_text_of_the_recipe() -> None:
    assert tuple(NETWORK) == NetworkRecipe.__struct_fields__
    assert (*NETWORK, *WORLD) == Recipe.__struct_fields__
    assert {name: text for name, (_, text) in (*NETWORK.items(), *WORLD.items())} == {
        name: about(name) for name in Recipe.__struct_fields__
    }
    defaults = Recipe()
    for name, (kind, _) in (*NETWORK.items(), *WORLD.items()):
        value = getattr(defaults, name)
        assert isinstance(value, kind) if isinstance(kind, type) else value in kind.__args__


@pytest.mark.parametrize("command", ["simulate", "sweep"])
def test_help_shows_every_flag_and_how_to_begin(run: Run, command: str) -> None:
    status, out, _ = run(command, "--help")
    assert status == 0
    assert all(f"--{name.replace('_', '-')}" in out for name in Recipe.__struct_fields__)
    assert "Examples" in out


def test_a_run_by_flags_closes_with_figures_files_and_what_to_do_next(run: Run) -> None:
    arguments = (
        "--rounds",
        "2",
        "--topology",
        "star",
        "--alpha",
        "0.5",
        "--references",
        "alone, pooled",
        "--seed",
        "3",
    )
    status, out, err = run("simulate", *SMALL, *arguments, "--out", "here")
    assert (status, err) == (0, "")
    assert "4 peers, star: logistic on mnist10k, alpha 0.5, 2 rounds of 1 epoch, lr 0.1, batch 32, seed 3" in out
    assert "engine matrix: the fastest, and nothing asks for virtual time" in out
    assert "together  round 2/2  loss " in out
    for title in ("each peer alone", "together", "their averaged model", "all data in one place", "Consensus distance"):
        assert title in out
    assert "p2pfl analyze here" in out
    recipe = p2pfl.load_run("here").recipe
    assert (recipe.peers, recipe.topology, recipe.alpha, recipe.seed, recipe.samples) == (4, "star", 0.5, 3, 20)


def test_json_is_one_object_on_stdout(run: Run) -> None:
    status, out, err = run("simulate", *SMALL, "--rounds", "2", "--json", "--out", "here")
    summary = json.loads(out)
    assert status == 0
    assert set(summary) > KEYS
    assert summary == json.loads(Path("here/summary.json").read_text())
    assert "round 1/2" not in err


def test_flags_stand_over_the_file(run: Run) -> None:
    Path("recipe.toml").write_text('topology = "star"\nrounds = 9\nseed = 4\n')
    status, out, _ = run("simulate", "recipe.toml", *SMALL, "--rounds", "1", "--json")
    summary = json.loads(out)
    assert (status, summary["topology"], summary["rounds"], summary["seed"]) == (0, "star", 1, 4)
    assert summary["folder"].startswith("runs/star-")


def test_resume_goes_on_with_the_recipe_of_the_folder(run: Run) -> None:
    run("simulate", *SMALL, "--rounds", "2", "--out", "here", "--topology", "chain")
    status, out, _ = run("simulate", "--resume", "--out", "here", "--rounds", "3", "--json")
    assert (status, json.loads(out)["rounds"], json.loads(out)["topology"]) == (0, 3, "chain")
    assert sorted(p2pfl.load_run("here").metrics["round"].unique()) == [0, 1, 2]


def test_a_regression_closes_with_losses_and_the_optimum(run: Run) -> None:
    status, out, _ = run("simulate", "--data", "quadratic:dim=3", "--peers", "4", "--rounds", "2", "--workers", "1")
    assert status == 0
    assert "test loss" in out
    assert "the lowest there is" in out


def test_the_table_of_engines(run: Run) -> None:
    status, out, _ = run("simulate", "--engines")
    assert (status, all(name in out for name in ("event", "matrix", "ray", "scalars", "1,000,000 peers"))) == (0, True)
    rows = json.loads(run("simulate", "--engines", "--json")[1])["engines"]
    assert [row["engine"] for row in rows] == ["event", "matrix", "ray", "scalars"]


def test_the_scalars_engine_averages_and_trains_nothing(run: Run) -> None:
    scalars = ("simulate", "--engine", "scalars", "--topology", "hypercube", "--mixing", "finite-time", "--peers", "16")
    status, out, _ = run(*scalars, "--rounds", "4", "--json")
    assert (status, json.loads(out)["consensus_distance"] < 1e-20) == (0, True)
    status, _, err = run(*scalars, "--out", "here")
    assert (status, "leave out --out" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--topology", "torus", "--peers", "7"), "there is no torus of 7 peers"),
        (("--topology", "rnig"), "did you mean 'ring'"),
        (("--peers", "0"), "peers: expected `int` >= 1, got 0"),
        (("--epochs", "2", "--steps", "3"), "choose --epochs or --steps, not both"),
        (("--references", "allone"), "there is no reference 'allone'; there are alone, pooled, fedavg"),
        (("--resume",), "--resume needs --out"),
        (("--resume", "--out", "none"), "none holds no run to go on with"),
        (("none.toml",), "none.toml cannot be read: No such file or directory; p2pfl recipe new none.toml writes one"),
        (("--split", "shard"), "did you mean 'shards'?"),
        (("--engine", "event", "--algorithm", "pooled"), "engine event cannot run this"),
        (("--churn", "explode@3=1"), "churn"),
    ],
)
def test_what_cannot_be_is_one_line(run: Run, arguments: tuple[str, ...], says: str) -> None:
    status, _, err = run("simulate", *arguments)
    assert (status, err.count("\n")) == (2, 1)
    assert says in err
    assert not Path("runs").exists()


# Recipes


def test_a_new_recipe_checks_and_says_what_it_would_run(run: Run) -> None:
    status, out, _ = run("recipe", "new", "made/recipe.toml")
    assert (status, "p2pfl simulate made/recipe.toml" in out) == (0, True)
    assert set(tomllib.loads(Path("made/recipe.toml").read_text())) == set(Recipe.__struct_fields__)
    status, out, _ = run("recipe", "check", "made/recipe.toml")
    assert status == 0
    assert "made/recipe.toml is fine: one run" in out
    assert "topology: 16 nodes, 16 edges, degree 2" in out
    assert "data: 500 examples a peer, total variation 0.06; 2000 to test on" in out
    assert "engine: matrix" in out


def test_a_new_sweep_checks_as_one(run: Run) -> None:
    run("recipe", "new", "sweep.toml", "--sweep")
    status, out, _ = run("recipe", "check", "sweep.toml", "--json")
    facts = json.loads(out)
    assert (status, facts["runs"], facts["references"]) == (0, 24, ["alone", "pooled"])
    assert facts["grid"]["seed"] == [0, 1, 2]
    assert "a sweep of 24 runs" in run("recipe", "check", "sweep.toml")[1]


def test_a_file_is_not_written_over_unless_asked(run: Run) -> None:
    run("recipe", "new", "recipe.toml")
    assert "--force to write over it" in run("recipe", "new", "recipe.toml")[2]
    assert run("recipe", "new", "recipe.toml", "--force")[0] == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("alhpa = 0.1", "recipe.toml, line 1: there is no setting 'alhpa'; did you mean 'alpha'?"),
        ("topology = 'torus'\npeers = 7", "recipe.toml: 7 is prime, so there is no torus of 7 peers"),
        ("peers = [4, 7]\ntopology = 'torus'", "recipe.toml: torus of 7 peers: 7 is prime"),
        ("data = 'mnist10j'", "recipe.toml: there is no data 'mnist10j'; did you mean mnist10k?"),
        ("model = 'mpl'", "recipe.toml: there is no model 'mpl'; did you mean mlp?"),
        ("rounds = 0", "recipe.toml: rounds = 0 goes on until stopped"),
    ],
)
def test_check_says_what_is_wrong(run: Run, text: str, says: str) -> None:
    Path("recipe.toml").write_text(text)
    status, out, err = run("recipe", "check", "recipe.toml")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert says in err


# Sweeps


def test_a_sweep_of_a_file_closes_with_a_table_and_its_results(run: Run) -> None:
    Path("grid.toml").write_text('topology = ["ring", "complete"]\nseed = [0, 1]\nrounds = 2\n')
    status, out, _ = run("sweep", "grid.toml", *SMALL, "--at-once", "1")
    assert status == 0
    assert "4/4 runs" in out
    assert "ring" in out
    assert "±" in out
    assert "Results: runs/grid/results.csv" in out
    assert len(pd.read_csv("runs/grid/results.csv")) == 4
    assert "4/4 runs (4 were there)" in run("sweep", "grid.toml", *SMALL, "--at-once", "1")[1]


def test_a_grid_by_flags_and_a_flag_over_the_file(run: Run) -> None:
    Path("grid.toml").write_text("seed = [0, 1]\nrounds = 1\n")
    grid = ("--grid", "topology=ring star", "--grid", "batched=true", "--seed", "5")
    status, out, _ = run("sweep", "grid.toml", *SMALL, *grid, "--at-once", "1", "--json", "--out", "here")
    told = json.loads(out)
    assert (status, told["runs"], told["failed"], told["results"]) == (0, 2, 0, "here/results.csv")
    assert [row["topology"] for row in told["rows"]] == ["ring", "star"]
    assert {json.loads(path.read_text())["seed"] for path in Path("here").glob("*/summary.json")} == {5}


def test_a_sweep_with_a_run_that_failed_says_so_and_leaves_with_1(run: Run) -> None:
    arguments = ("--rounds", "1", "--topology", "torus", "--grid", "peers=4 7", "--at-once", "1")
    status, out, _ = run("sweep", *SMALL[2:], *arguments)
    assert status == 1
    assert "there is no torus of 7 peers" in out
    assert "1 of 2 runs failed: see the column error" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), 'give a SWEEP file, or --grid "topology=ring torus"'),
        (("--grid", "alpha"), "--grid 'alpha' is not of the form"),
        (("--grid", "alpha=x"), "--grid alpha=x: its values are numbers"),
        (("--grid", "seed=.5"), "--grid seed=.5: its values are whole numbers"),
        (("--grid", "alhpa=1"), "unknown field `alhpa`; did you mean 'alpha'?"),
        (("none.toml",), "none.toml cannot be read"),
    ],
)
def test_a_sweep_that_cannot_be_is_one_line(run: Run, arguments: tuple[str, ...], says: str) -> None:
    status, _, err = run("sweep", *arguments)
    assert (status, err.count("\n")) == (2, 1)
    assert says in err


def test_durations_read_well() -> None:
    assert [duration(s) for s in (4.4, 65, 3500, 7260)] == ["4 s", "1 min", "58 min", "2 h 01 min"]
