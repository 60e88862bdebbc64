"""Each example runs, shortened, and prints what it promises."""

import re
import subprocess
import sys
from pathlib import Path

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
