"""The command line: what is wrong is one line that names the mend, and help says how to begin."""

import importlib
import json
import os
import re
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.main import get_command

from p2pfl.cli import app
from p2pfl.cli.options import fresh_folder, megabytes, part_of, percent, spread
from p2pfl.errors import TopologyError, UsageError
from p2pfl.home import create_network

Run = Callable[..., tuple[int, str, str]]

ROOT = Path(__file__).resolve().parents[1]
MODELS = """
from torch import nn

def empty(shape, outputs):
    return nn.Flatten()

def normed(shape, outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.BatchNorm1d(8), nn.Linear(8, outputs))

def wrong(shape, outputs):
    raise ValueError("no such thing\\nas this")
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs `p2pfl …` in this process, in a folder of its own, with one network: (exit status, stdout, stderr)."""
    create_network("home")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "faulty_models.py").write_text(MODELS)
    sys.modules.pop("faulty_models", None)
    importlib.invalidate_caches()

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


def refused(run: Run, *arguments: str) -> str:
    """The one line that says why not."""
    status, _, err = run(*arguments)
    assert status == 2, err
    assert err.startswith("p2pfl: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


def start(run: Run, *arguments: str) -> str:
    """Why a peer that would be alone on loopback does not start."""
    alone = ("--interface", "127.0.0.1", "--device", "cpu", "--min-peers", "1", "--rounds", "1")
    network = f"n-{uuid.uuid4().hex[:12]}"
    create_network(network)
    return refused(run, "start", "--network", network, *alone, *arguments)


def program(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """`p2pfl …` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "p2pfl.cli.app", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


# Refused before anything starts


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["demo", "--topology", "rng"], "there is no topology 'rng'; did you mean 'ring'?"),
        (["demo", "--topology", "torus", "--peers", "7"], "make it 6 or 8 peers, or take 'ring'"),
        (["demo", "--topology", "random-regular:k=9", "--peers", "5"], "random-regular"),
        (["demo", "--topology", "random-regular:j=2"], "'j'"),
        (["demo", "--topology", "offices.toml"], "there is no topology file 'offices.toml'; ready ones"),
        (["demo", "--epochs", "1", "--steps", "1"], "choose --epochs or --steps, not both"),
        (["demo", "--lr", "0"], "lr: expected `float` > 0.0"),
        (["demo", "--lr", "nan"], "lr: expected `float` > 0.0"),
        (["demo", "--lr", "inf"], "lr: expected a finite number"),
        (["demo", "--rounds", "99999999999999999999"], "rounds: expected `int` <= 2147483648"),
        (["demo", "--out", "held"], "held holds a run already; give another --out"),
        (["demo", "--out", "file/run"], "cannot be made: Not a directory; give another --out"),
        (["start", "--topology", "rng"], "did you mean 'ring'?"),
        (["start", "--part", "6/5"], "--part 6/5: the part is a number from 1 to 5"),
        (["start", "--part", "0/5"], "--part 0/5: the part is a number from 1 to 5"),
        (["start", "--part", "abc"], "is not of the form I/N, as 2/5 for the second of five"),
        (["start", "--alpha", "1"], "give --part I/N too"),
        (["start", "--epochs", "1", "--steps", "1"], "choose --epochs or --steps, not both"),
        (["start", "--out", "held"], "held holds a run already; give another --out"),
        (["start", "--resume"], "--resume needs --out"),
        (["start", "--resume", "--out", "held"], "start without --resume"),
        (["start", "--interface", "nope0"], "no network interface 'nope0' here; there are"),
        (["start", "--device", "abacus"], "this machine has no device 'abacus'; there is cpu"),
        (["start", "--peer", "nowhere"], "'nowhere' is not of the form host:port"),
        (["start", "--name", "x" * 65, "--interface", "127.0.0.1"], "a peer's name has 1 to 64 characters"),
    ],
)
def test_wrong_options_are_one_line_with_the_mend(run: Run, tmp_path: Path, arguments: list[str], says: str) -> None:
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "events.jsonl").write_text("{}\n")
    (tmp_path / "file").touch()
    assert says in refused(run, *arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_not_there_is_told_with_those_that_are(run: Run) -> None:
    assert "this machine has no device 'cuda'; there is cpu" in refused(run, "start", "--device", "cuda")


# Refused when it begins


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--data", "mnist10"], "there is no data 'mnist10'; did you mean mnist10k?"),
        (["--data", "rows.csv"], "rows.csv has width, height, price"),
        (["--data", "rows.csv", "--target", "prise"], "price"),
        (["--data", "gone.csv"], "there is no file or folder"),
        (["--data", "broken.npz"], "broken.npz cannot be read"),
        (["--data", "empty"], "empty holds no images; put them into one subfolder a class"),
        (["--data", "faulty_models:nothing"], "has no function 'nothing'"),
        (["--model", "mpl"], "there is no model 'mpl'; did you mean mlp?"),
        (["--model", "mlp:width=3"], "mlp has no option 'width'; it has hidden, dropout"),
        (["--model", "cnn:hidden=many"], "as hidden=128"),
        (["--model", "no_such_package:model"], "there is no module 'no_such_package'"),
        (["--model", "faulty_models:empty"], "the model has no parameters"),
        (["--model", "faulty_models:normed"], "use GroupNorm or LayerNorm"),
        (["--init", "gone.safetensors"], "there is no file gone.safetensors; check the path"),
        (["--init", "rows.csv"], "rows.csv is no model file"),
        (["--lr", "1e9", "--steps", "5"], "the training loss became nan in round 0; lower --lr"),
    ],
)
def test_wrong_data_and_models_are_one_line_with_the_mend(
    run: Run, tmp_path: Path, arguments: list[str], says: str
) -> None:
    (tmp_path / "rows.csv").write_text("width,height,price\n" + "".join(f"{i},2,3\n" for i in range(20)))
    (tmp_path / "broken.npz").write_text("not a zip file")
    (tmp_path / "empty").mkdir()
    assert says in start(run, "--out", "run", *arguments)


def test_a_failed_start_can_be_repeated_with_the_same_folder(run: Run, tmp_path: Path) -> None:
    start(run, "--out", "run", "--model", "mpl")
    assert not (tmp_path / "run").exists()
    assert "mpl" in start(run, "--out", "run", "--model", "mpl")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--data", "mnist10"], "there is no data 'mnist10'; did you mean mnist10k?"),
        (["--model", "faulty_models:normed"], "use GroupNorm or LayerNorm"),
        (["--model", "faulty_models:wrong"], "ValueError: no such thing as this ("),
        (["--lr", "1e9"], "lower --lr"),
    ],
)
def test_what_its_processes_refuse_the_demo_tells_once(
    run: Run, tmp_path: Path, arguments: list[str], says: str
) -> None:
    small = ("demo", "--peers", "2", "--rounds", "1", "--no-baselines", "--out", "run")
    assert says in refused(run, *small, *arguments)
    assert not (tmp_path / "run" / "summary.json").exists()


def test_no_process_of_the_demo_adds_to_that_line(tmp_path: Path) -> None:
    done = program("demo", "--model", "mpl", "--out", str(tmp_path / "run"))
    assert done.returncode == 2
    assert done.stderr.startswith("p2pfl: there is no model 'mpl'")
    assert done.stderr.count("\n") == 1
    assert done.stdout == "5 peers, each a process with its own piece of mnist10k, ring\n"
    assert list((tmp_path / "run").iterdir()) == []


def test_a_port_in_use_is_told(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        assert f"port {port} is in use; choose another --port" in start(run, "--port", port)


def test_nobody_within_the_wait_is_told(run: Run) -> None:
    says = start(run, "--min-peers", "2", "--wait", "1")
    assert "no peer was found within 1 s; start p2pfl on another machine, or give --peer HOST:PORT" in says


# Traceback, usage, help


def test_debug_shows_the_traceback() -> None:
    for arguments in (("--debug", "demo", "--topology", "rng"), ("demo", "--topology", "rng", "--debug")):
        done = program(*arguments)
        assert done.returncode != 0
        assert "Traceback" in done.stderr
        assert done.stderr.rstrip().splitlines()[-1].startswith("p2pfl.errors.TopologyError: there is no topology")


def test_debug_raises_the_error_itself(run: Run) -> None:
    with pytest.raises(TopologyError):
        run("--debug", "demo", "--topology", "rng")


@pytest.mark.parametrize("arguments", [["--nonsense"], ["demo", "--nonsense"], ["start", "--part"], ["dmeo"]])
def test_an_unknown_option_is_a_usage_error(run: Run, arguments: list[str]) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert "Error" in err
    assert "Traceback" not in err


def commands() -> list[list[str]]:
    """Every command, by the words that call it."""
    found: list[list[str]] = []

    def walk(command: object, words: list[str]) -> None:
        children = getattr(command, "commands", {})
        for name, child in children.items():
            walk(child, [*words, name])
        if not children:
            found.append(words)

    walk(get_command(app.app), [])
    return found


def test_these_are_the_commands() -> None:
    names = {words[0] for words in commands()}
    assert {"demo", "start", "network", "peers", "evaluate", "predict", "bench"} <= names


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_help_shows_an_example_and_the_defaults(run: Run, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    status, out, err = run(*words, "--help")
    assert (status, err) == (0, "")
    assert re.search(r"Examples?:", out)
    assert re.search(rf"^ *p2pfl {' '.join(words)}( |$)", out, re.MULTILINE)
    assert "\\[" not in out
    assert "Args:" not in out


@pytest.mark.parametrize(
    ("words", "defaults"),
    [
        (
            "demo",
            [
                "5",
                "15",
                "ring",
                "0.3; 0 with --target",
                "mnist10k",
                "mlp",
                "1",
                "0.1",
                "32",
                "0",
                "runs/demo-…",
                "baselines",
            ],
        ),
        (
            "start",
            [
                "this machine's name",
                "the only one that is",
                "mnist10k",
                "refuse",
                "15",
                "2",
                "all",
                "auto",
                "runs/NETWORK-…",
            ],
        ),
    ],
)
def test_help_tells_these_defaults(run: Run, words: str, defaults: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    out = " ".join(run(words, "--help")[1].replace("│", " ").split())
    assert [default for default in defaults if f"[default: {default}]" not in out] == []


def test_without_a_command_help_is_shown() -> None:
    done = program()
    assert done.returncode == 2
    assert "Begin with: p2pfl demo" in done.stdout + done.stderr


def test_version_is_one_line_whether_installed_or_not(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.2.3" if name == "p2pfl" else "")
    assert run("--version") == (0, "p2pfl 1.2.3\n", "")

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert run("--version") == (0, "p2pfl, not installed: run from its sources\n", "")


@pytest.mark.parametrize("arguments", [("--help",), ("demo", "--help"), ("start", "--help"), ("--version",)])
def test_help_imports_no_heavy_library(arguments: tuple[str, ...]) -> None:
    lines = f"""
import sys
from p2pfl.cli import app
sys.argv = ["p2pfl", *{arguments!r}]
try:
    app.main()
except SystemExit:
    heavy = ("torch", "pandas", "scipy", "networkx", "numpy", "aiohttp", "zeroconf")
    print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# A peer that does start


@pytest.mark.parametrize("insecure", [False, True], ids=["encrypted", "insecure"])
def test_a_peer_alone_writes_the_summary_it_prints(run: Run, tmp_path: Path, insecure: bool) -> None:
    settings = ("--min-peers", "1", "--rounds", "2", "--steps", "3", "--part", "1/40", "--seed", "3")
    where = ("--insecure", "--network", f"n-{uuid.uuid4().hex[:12]}") if insecure else ("--interface", "127.0.0.1")
    status, out, err = run("start", *settings, *where, "--device", "cpu", "--name", "alice", "--out", "run", "--json")
    summary = json.loads(out)
    assert status == 0
    assert ("INSECURE: nothing is encrypted" in err) is insecure
    assert summary["encrypted"] is not insecure
    assert summary["network"] == (where[-1] if insecure else "home")  # the only one whose key is here
    assert ("at 127.0.0.1:" in err) is True
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["peers"], summary["rounds"], summary["seed"], summary["failures"]) == (1, 2, 3, {})
    assert (tmp_path / "run" / "models" / "alice.safetensors").exists()


# Options


def test_part_of_reads_what_a_person_counts() -> None:
    assert part_of("1/1") == (1, 1)
    assert part_of("2/5") == (2, 5)


@pytest.mark.parametrize("text", ["", "/", "2/", "/5", "2", "-1/5", "1.0/5", "2 of 5", "²/5", "1/5/5"])
def test_part_of_refuses_the_rest(text: str) -> None:
    with pytest.raises(UsageError, match="--part"):
        part_of(text)


def test_figures_are_written_for_people() -> None:
    assert [percent(None), percent(0.98765), percent(1.0)] == ["–", "98.8 %", "100.0 %"]
    assert [megabytes(1234), megabytes(99_999), megabytes(1_234_567)] == ["1.2 kB", "100.0 kB", "1.2 MB"]
    assert spread([]) is None
    assert spread([0.5, 1.0]) == {"mean": 0.75, "worst": 0.5}


def test_a_new_folder_is_made_under_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert fresh_folder(None, "demo", "now") == Path("runs/demo-now")
    assert (tmp_path / "runs" / "demo-now").is_dir()
    assert fresh_folder(tmp_path / "own", "demo", "now") == tmp_path / "own"
