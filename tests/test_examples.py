"""Each example runs, shortened, and prints what it promises."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(*arguments: str) -> str:
    """What an example prints; it must end well and without a warning."""
    command = [sys.executable, "-W", "error", *arguments]
    done = subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_alice_and_bob_learn_digits_that_they_hardly_hold() -> None:
    output = run("in_process/alice_and_bob.py", "2")
    accuracies = [float(text) for text in re.findall(r"accuracy (0\.\d+)", output)]
    assert len(accuracies) == 2
    assert min(accuracies) > 0.6


def test_a_regression_on_a_csv_beats_guessing_the_mean() -> None:
    output = run("own_model/regression.py", "10")
    guess = float(re.search(r"the mean: ([\d.]+)", output)[1])
    errors = [float(text) for text in re.findall(r"^(?:north|south|west): ([\d.]+)", output, re.MULTILINE)]
    assert len(errors) == 3
    assert max(errors) < 0.8 * guess


def test_two_peers_on_the_lan_find_each_other() -> None:
    command = [sys.executable, "-W", "error", "lan/peer.py"]
    with subprocess.Popen(
        [*command, "1/2", "127.0.0.1", "2"], cwd=EXAMPLES, stdout=subprocess.PIPE, text=True
    ) as first:
        try:
            second = run("lan/peer.py", "2/2", "127.0.0.1", "2")
            output, _ = first.communicate(timeout=60)
        finally:
            first.kill()
    assert "with peer-1, peer-2" in output
    assert "with peer-1, peer-2" in second


def test_a_key_changes_while_three_peers_train() -> None:
    output = run("trust/rotation.py")
    assert "use the new key: alice, bob, carol" in output
    assert re.search(r"shares missing: 0 in [1-9]\d* rounds", output)
    assert "with the former key: no peer was found within 3 s" in output
    assert float(re.search(r"accuracy (0\.\d+) at the least", output)[1]) > 0.8


def test_the_picture_of_the_demo_is_drawn_from_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    demo = ["-m", "p2pfl.cli.app", "demo", "--peers", "2", "--rounds", "1", "--out", str(folder), "--json"]
    run(*demo)
    output = run("demo/picture.py", str(folder), str(tmp_path / "picture.png"))
    assert "mean accuracy" in output
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_every_example_is_short_and_has_a_guide() -> None:
    for path in EXAMPLES.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) < 60, path
        assert (path.parent / "README.md").exists(), path


def test_topologies_are_compared_in_thirty_lines(tmp_path: Path) -> None:
    output = run("experiments/compare.py", str(tmp_path / "compare.png"), "4")
    assert "noise floor" in output
    assert "rho of noise floor and consensus distance: 1.00" in output
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    code = (EXAMPLES / "experiments/compare.py").read_text(encoding="utf-8").splitlines()
    assert len(code) <= 32


def test_a_topology_of_ones_own_is_predicted_and_trained() -> None:
    output = run("experiments/own_topology.py", "10")
    assert "villages: 16 peers, 24 edges, gap 0.0656" in output
    distances = {name: float(text) for name, text in re.findall(r"^(\w+): .* distance ([\d.]+)", output, re.MULTILINE)}
    assert distances["torus"] < distances["villages"]


def test_a_study_is_drawn_from_the_files_of_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shared = ["--data", "digits", "--peers", "4", "--rounds", "3", "--steps", "2", "--model", "logistic", "--json"]
    run("-m", "p2pfl.cli.app", "simulate", *shared, "--out", str(folder))
    output = run("experiments/from_csv.py", str(folder / "metrics.csv"), str(tmp_path / "study.png"))
    assert "MB a peer" in output
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")
    output = run("experiments/convergence.py", str(folder), str(tmp_path / "distance.png"), ".3")
    assert "measured over predicted consensus distance" in output
    assert (tmp_path / "distance.png").read_bytes().startswith(b"\x89PNG")


def test_the_topology_table_orders_distances_even_when_short() -> None:
    output = run("topology_table.py", "40", "1", "0.1")
    assert "the order of distances holds" in output


@pytest.mark.parametrize("data", ["digits", "mnist10k"])
def test_prediction_ranks_twelve_topologies(data: str) -> None:
    output = run("prediction.py", data, "30", "1")
    assert len(re.findall("floor", output)) == 12
    assert float(re.search(r"with distance: ([\d.]+)", output)[1]) >= 0.9
