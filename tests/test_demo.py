"""The demo: real processes that find each other by real mDNS on loopback, seen through, interrupted and killed."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from namespaces import lan, namespaces_available

import p2pfl
from p2pfl.cli import app
from p2pfl.events import Listening, PeerJoined, RoundFinished
from p2pfl.learning.data import load_data
from p2pfl.processes import Ended, Job, Partition, PeerSpec, Processes, consensus_of_files, run_jobs

ROOT = Path(__file__).resolve().parents[1]
SLACK = 3.0 if os.environ.get("CI") else 1.0
PATIENCE_S = 60.0 * SLACK
ORPHANS_S = 15.0 * SLACK  # a child gives itself five seconds to leave in good order

KEYS = {
    "peers",
    "encrypted",
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
COLUMNS = (
    "round,step,peer,steps,wall_time_s,simulated_time_s,train_loss,test_loss,test_accuracy,consensus_distance,"
    "neighbor_distance,neighbors,bytes_sent,bytes_received,train_s,wait_s,mix_s"
)
NAMES = ["alice", "bob", "carol", "dave", "erin"]
SMALL = ("--no-baselines", "--steps", "5", "--rounds", "2")


def demo(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "p2pfl.cli.app", "demo", *arguments]


def environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def until(fact: Callable[[], bool], within_s: float, what: str) -> None:
    """Wait for a fact."""
    deadline = time.monotonic() + within_s
    while not fact():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        threading.Event().wait(0.05)


def gone(processes: list[psutil.Process]) -> bool:
    """Whether all have ended; nobody may have collected their status."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                return False
    return True


class Program:
    """A demo in a process group of its own, read line by line."""

    def __init__(self, *arguments: str, folder: Path | None = None) -> None:
        self.process = subprocess.Popen(
            demo(*arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(COLUMNS="200"),
            start_new_session=True,
            cwd=folder,
        )
        self.descendants: list[psutil.Process] = []

    def read_until(self, text: str) -> None:
        """Read its output up to a line with this text."""
        assert self.process.stdout is not None
        watchdog = threading.Timer(PATIENCE_S, self.process.kill)
        watchdog.start()
        try:
            for line in self.process.stdout:
                if text in line:
                    return
        finally:
            watchdog.cancel()
        raise AssertionError(f"it ended without {text!r}: {self.process.stderr and self.process.stderr.read()}")

    def find_descendants(self) -> None:
        """Remember its processes, for when they are nobody's children."""
        self.descendants = psutil.Process(self.process.pid).children(recursive=True)

    def peers(self) -> list[psutil.Process]:
        """The processes that are peers: children of the server that forks them."""
        return [process for child in psutil.Process(self.process.pid).children() for process in child.children()]

    def is_importing(self) -> bool:
        """Whether the server has loaded some of torch."""
        for process in psutil.Process(self.process.pid).children():
            with suppress(psutil.Error):
                if any("torch" in mapped.path for mapped in process.memory_maps()):
                    return True
        return False

    def rest(self) -> tuple[int, str, str]:
        """Exit status and whatever was not read yet."""
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out, err


@contextmanager
def running(*arguments: str, folder: Path | None = None) -> Iterator[Program]:
    """A demo that is killed at the end, with all its processes."""
    program = Program(*arguments, folder=folder)
    try:
        yield program
    finally:
        with suppress(psutil.NoSuchProcess):
            program.descendants += psutil.Process(program.process.pid).children(recursive=True)
        for process in program.descendants:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        program.process.kill()
        program.process.communicate()


# With its defaults


@dataclass(frozen=True)
class Whole:
    """The one run with all defaults."""

    summary: dict[str, Any]
    said: str
    folder: Path
    run: p2pfl.Run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole") / "run"
    command = demo("--json", "--out", str(folder))
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=4 * PATIENCE_S, check=False, env=environment()
    )
    assert done.returncode == 0, done.stderr
    return Whole(json.loads(done.stdout), done.stderr, folder, p2pfl.load_run(folder))


def test_together_they_learn_what_none_could_alone(whole: Whole) -> None:
    summary = whole.summary
    assert summary["accuracy"]["mean"] >= 0.87
    assert summary["accuracy"]["worst"] >= 0.84
    assert 0.50 <= summary["alone"]["mean"] <= 0.75
    assert summary["alone"]["worst"] < summary["alone"]["mean"]
    assert summary["pooled"]["mean"] >= 0.92
    assert summary["failures"] == {}


def test_the_summary_is_what_the_design_names(whole: Whole) -> None:
    assert set(whole.summary) >= KEYS
    facts = {key: whole.summary[key] for key in ("peers", "rounds", "topology", "algorithm", "seed")}
    assert facts == {"peers": 5, "rounds": 15, "topology": "ring", "algorithm": "d-psgd", "seed": 0}
    assert whole.summary == whole.run.summary
    accuracies = whole.summary["by_peer"]
    assert list(accuracies) == NAMES
    assert whole.summary["accuracy"]["mean"] == pytest.approx(sum(accuracies.values()) / 5)
    assert whole.summary["accuracy"]["worst"] == min(accuracies.values())


def test_progress_went_to_stderr_a_line_a_round(whole: Whole) -> None:
    assert len(re.findall(r"^round \d+/15  loss \d\.\d{3}  accuracy \d+\.\d %", whole.said, re.MULTILINE)) == 15


def test_metrics_have_a_row_a_peer_and_round(whole: Whole) -> None:
    metrics = whole.run.metrics
    assert ",".join(metrics.columns) == COLUMNS
    assert sorted(zip(metrics["peer"], metrics["round"], strict=True)) == [(n, r) for n in NAMES for r in range(15)]
    assert metrics["bytes_received"].sum() == whole.summary["bytes_received"]
    last = metrics[metrics["round"] == 14].set_index("peer")["test_accuracy"]
    assert last.to_dict() == pytest.approx(whole.summary["by_peer"])
    assert (metrics.sort_values("round").groupby("peer")["step"].last() == metrics.groupby("peer")["steps"].sum()).all()


def test_every_model_went_along_every_edge_once(whole: Whole) -> None:
    edges = whole.run.edges
    assert list(edges.columns) == ["round", "from", "to", "bytes"]
    ring = {(NAMES[i], NAMES[(i + step) % 5]) for i in range(5) for step in (1, 4)}
    shares = sorted(zip(edges["round"], edges["from"], edges["to"], strict=True))
    assert shares == sorted((round, a, b) for round in range(15) for a, b in ring)
    assert edges["bytes"].sum() == whole.summary["bytes_received"] == whole.summary["bytes_sent"]


def test_the_pieces_are_lopsided_and_add_up_to_the_training_part(whole: Whole) -> None:
    partition = whole.run.partition
    assert list(partition.columns) == ["peer", "label", "count"]
    assert partition["count"].sum() == 8000
    by_label = partition.groupby("label")["count"].sum()
    training = load_data("mnist10k").train.targets
    assert by_label.to_dict() == {str(digit): int((training == digit).sum()) for digit in range(10)}
    shares = partition.pivot_table(index="peer", columns="label", values="count")
    assert (shares.max(axis=1) > 2 * shares.mean(axis=1)).all()


def test_the_recipe_repeats_the_run(whole: Whole) -> None:
    recipe = whole.run.recipe
    assert recipe == p2pfl.Recipe(alpha=0.3, min_peers=5)
    assert recipe.rounds == 15


def test_the_models_reach_the_accuracy_of_the_summary(whole: Whole) -> None:
    assert whole.run.peers == tuple(NAMES)
    test = load_data("mnist10k").test
    inputs, targets = test.batch(torch.arange(len(test)))
    assert len(targets) == 2000
    with torch.inference_mode():
        found = {n: (whole.run.model(n)(inputs).argmax(1) == targets).double().mean().item() for n in NAMES}
    assert found == pytest.approx(whole.summary["by_peer"], abs=1e-3)  # other threads, other last bits


def test_the_consensus_distance_is_that_of_the_models(whole: Whole) -> None:
    models = [whole.run.model(name) for name in NAMES]
    stack = torch.stack([torch.cat([p.detach().reshape(-1) for p in model.parameters()]) for model in models]).double()
    distance = float((stack - stack.mean(0)).square().sum() / 5)
    assert distance > 0
    assert whole.summary["consensus_distance"] == pytest.approx(distance)


def test_every_event_is_kept(whole: Whole) -> None:
    events = whole.run.events
    assert sum(isinstance(event, RoundFinished) for event in events) == 75
    assert sum(isinstance(event, Listening) for event in events) == 5
    assert sum(isinstance(event, PeerJoined) for event in events) >= 20
    assert not any("127.0.0.1" not in a for e in events if isinstance(e, Listening) for a in e.addresses)


# How it looks


def test_in_a_pipe_it_is_plain_text(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = demo("--peers", "2", *SMALL, "--out", str(folder))
    env = environment(COLUMNS="60")
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert not re.search(r"[^\n -~–…×]", done.stdout)
    assert done.stdout.startswith("2 peers, each a process with its own piece of mnist10k, ring\n")
    assert [line[:9] for line in done.stdout.splitlines() if line.startswith("round")] == ["round 1/2", "round 2/2"]
    assert f"  p2pfl evaluate {folder}/models/alice.safetensors --data mnist10k\n" in done.stdout
    assert p2pfl.load_run(folder).recipe.steps == 5
    assert set(p2pfl.load_run(folder).metrics["steps"]) == {5}


def test_in_a_narrow_terminal_without_color(tmp_path: Path) -> None:
    main, end = pty.openpty()
    command = demo("--peers", "3", *SMALL, "--out", str(tmp_path / "run"))
    env = environment(COLUMNS="40", LINES="24", TERM="xterm-256color", NO_COLOR="1")
    with subprocess.Popen(command, stdin=end, stdout=end, stderr=end, env=env, close_fds=True) as process:
        os.close(end)
        read = bytearray()
        with suppress(OSError):  # Linux: the other end is closed
            while data := os.read(main, 65536):
                read += data
        os.close(main)
        assert process.wait(PATIENCE_S) == 0
    text = read.decode()
    assert "Traceback" not in text
    assert "\x1b[2K" in text  # it was drawn over and over
    assert not re.search(r"\x1b\[[\d;]*3[0-8][;m]", text)
    lines = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", text).replace("\r", "\n").split("\n")
    shown = [line for line in lines if not line.startswith("  p2pfl ")]  # commands are for copying: never broken
    assert max(len(line) for line in shown) <= 40
    assert any(re.match(r"carol +done +2/2", line) for line in shown)
    assert any("100 %" in line for line in shown)


def test_a_complete_graph_sends_more_in_proportion_to_its_edges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    summaries = {}
    for topology in ("ring", "complete"):
        out = str(tmp_path / topology)
        monkeypatch.setattr(
            sys, "argv", ["p2pfl", "demo", "--peers", "4", "--topology", topology, *SMALL, "--json", "--out", out]
        )
        with suppress(SystemExit):
            app.main()
        summaries[topology] = json.loads(capsys.readouterr().out)
    ring, complete = summaries["ring"], summaries["complete"]
    assert ring["failures"] == complete["failures"] == {}
    assert ring["bytes_sent"] > 0
    assert complete["bytes_sent"] / ring["bytes_sent"] == 6 / 4
    assert complete["consensus_distance"] < 1e-6 < ring["consensus_distance"]
    assert (complete["alone"], complete["pooled"]) == (None, None)


# Interrupted


def test_a_killed_parent_leaves_no_orphan(tmp_path: Path) -> None:
    with running("--peers", "3", "--rounds", "2000", "--no-baselines", "--out", str(tmp_path / "run")) as program:
        program.read_until("round 2/")
        program.find_descendants()
        assert len(program.descendants) >= 4
        assert not gone(program.descendants)
        program.process.kill()
        until(lambda: gone(program.descendants), ORPHANS_S, "all processes of the demo are gone")


def test_ctrl_c_ends_all_and_keeps_the_files(tmp_path: Path) -> None:
    with running("--peers", "3", "--rounds", "2000", "--no-baselines", "--out", str(tmp_path / "run")) as program:
        program.read_until("round 2/")
        program.find_descendants()
        os.killpg(program.process.pid, signal.SIGINT)
        status, _, err = program.rest()
        assert (status, err) == (130, "")
        until(lambda: gone(program.descendants), ORPHANS_S, "all processes of the demo are gone")
    run = p2pfl.load_run(tmp_path / "run")
    assert run.recipe.rounds == 2000
    assert len(run.metrics) >= 6
    assert len(run.edges) >= 12
    assert sum(isinstance(event, RoundFinished) for event in run.events) == len(run.metrics)


def test_ctrl_c_while_it_starts_is_quiet(tmp_path: Path) -> None:
    with running("--peers", "2", *SMALL, "--out", str(tmp_path / "run")) as program:
        program.read_until("2 peers")  # the server imports torch now
        until(program.is_importing, PATIENCE_S, "the server is in the middle of its imports")
        program.find_descendants()
        os.killpg(program.process.pid, signal.SIGINT)
        assert program.process.wait(ORPHANS_S) == 130
        until(lambda: gone(program.descendants), 2 * ORPHANS_S, "the server is gone")
        assert program.rest() == (130, "", "")


def test_the_others_finish_when_one_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = ("--peers", "3", "--rounds", "30", "--steps", "20", "--no-baselines")
    with running(*settings, "--out", str(folder)) as program:
        program.read_until("round 2/30")
        victims = program.peers()
        assert len(victims) == 3
        victims[-1].kill()
        status, out, err = program.rest()
    assert (status, err) == (0, "")
    told = re.findall(r"^(\w+): its process ended with signal 9; the others go on$", out, re.MULTILINE)
    assert len(told) == 1
    assert "round 30/30" in out
    run = p2pfl.load_run(folder)
    assert sorted([*run.summary["by_peer"], *told]) == NAMES[:3]
    assert run.summary["accuracy"]["worst"] == min(run.summary["by_peer"].values())
    assert run.summary["consensus_distance"] == pytest.approx(0.0, abs=1e-6)  # two that are left mix to the same
    rounds = run.metrics.groupby("peer")["round"].max().to_dict()
    assert rounds.pop(told[0]) < 29
    assert set(rounds.values()) == {29}


def test_one_killed_before_the_first_round_ends_the_demo_with_its_name(tmp_path: Path) -> None:
    loading = "open('loading', 'w').close(); threading.Event().wait(600)"  # longer than anybody waits
    (tmp_path / "slow_data.py").write_text(f"import threading\n\ndef rows():\n    {loading}\n")
    settings = ("--peers", "2", "--no-baselines", "--data", "slow_data:rows", "--out", "run")
    with running(*settings, folder=tmp_path) as program:
        until((tmp_path / "loading").exists, PATIENCE_S, "a peer loads its data")
        program.peers()[-1].kill()
        status, _, err = program.rest()
    assert status == 2
    assert re.fullmatch(r"p2pfl: (alice|bob): its process ended with signal 9\n", err)


# Without multicast


@pytest.mark.namespaces
@pytest.mark.skipif(namespaces_available() is not None, reason=namespaces_available() or "")
def test_without_multicast_addresses_are_handed_over_and_that_is_told(tmp_path: Path) -> None:
    limit = "echo 0 > /proc/sys/net/ipv4/igmp_max_memberships && exec"
    command = demo("--peers", "3", *SMALL, "--out", str(tmp_path / "run"))
    with lan(1) as (host,):
        process = host.start(
            ["sh", "-c", f'{limit} "$@"', "sh", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(COLUMNS="200"),
        )
        out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (0, "")
    assert "nobody heard anybody by mDNS within 5 s: addresses are handed over instead" in out
    assert "round 2/2" in out
    assert p2pfl.load_run(tmp_path / "run").summary["failures"] == {}


def spec(index: int, folder: Path, **more: Any) -> PeerSpec:
    settings: dict[str, Any] = {"rounds": 2, "steps": 3, "min_peers": 2, "alpha": 0.3}
    known: dict[str, Any] = {"name": NAMES[index], "seat": str(index), "network": f"p-{folder.name}-{os.getpid()}"}
    known |= {"data": "mnist10k", "part": (index + 1, 2), "settings": settings, "out": str(folder)}
    return PeerSpec(**{**known, **more})


def test_peers_without_mdns_meet_by_the_address_they_are_told(tmp_path: Path) -> None:
    told: dict[int, list[Any]] = {}
    with Processes() as processes:
        first, second = (processes.launch(spec(index, tmp_path, mdns=False)) for index in range(2))
        while processes.alive:
            for number, what in processes.told(0.1):
                told.setdefault(number, []).append(what)
                if number == first and isinstance(what, Listening):
                    processes.command(second, "peer", what.addresses[0])
        processes.command(first, "stop")  # to one that is gone: nothing
    for number in (first, second):
        assert sum(isinstance(what, RoundFinished) and what.neighbors == 1 for what in told[number]) == 2
        (ended,) = (what for what in told[number] if isinstance(what, Ended))
        assert ended.error == ""
        assert ended.accuracy is not None
    counts = [what.counts for number in (first, second) for what in told[number] if isinstance(what, Partition)]
    assert sum(sum(count.values()) for count in counts) == 8000
    distance = consensus_of_files([tmp_path / "models" / f"{name}.safetensors" for name in NAMES[:2]])
    assert distance == pytest.approx(0.0, abs=1e-6)  # two peers mix to the same
    assert consensus_of_files([tmp_path / "models" / "nobody.safetensors"]) is None


def test_jobs_tell_in_order_and_an_error_is_one_of_them(tmp_path: Path) -> None:
    counts: list[int] = []
    with Processes() as processes:
        jobs = [
            Job(spec=spec(0, tmp_path)),
            Job(spec=spec(1, tmp_path, data="mnist10")),
            Job(spec=spec(1, tmp_path), pooled=True),
        ]
        one, failed, pooled = run_jobs(processes, jobs, 2, counts.append)
    assert counts == [1, 2, 3]
    assert (failed.kind, failed.accuracy) == ("DataError", None)
    assert "did you mean mnist10k?" in failed.error
    assert one.accuracy is not None
    assert pooled.accuracy is not None
    assert one.accuracy != pooled.accuracy


def test_leaving_the_processes_ends_them(tmp_path: Path) -> None:
    with Processes() as processes:
        number = processes.launch(spec(0, tmp_path, settings={"min_peers": 2, "rounds": 0}))
        pid = processes.pid(number)
        assert pid is not None
        child = psutil.Process(pid)
        assert child.is_running()
        left = time.monotonic()
    assert gone([child])
    assert time.monotonic() - left < 4.0 * SLACK  # by itself, before the grace period is over
