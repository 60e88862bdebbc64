"""The measurements, small: which figures are printed, and that they fit each other. How fast is nobody's claim here."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def bench(folder: Path, *arguments: str) -> str:
    """What `p2pfl bench …` prints."""
    command = [sys.executable, "-m", "p2pfl.cli.app", "bench", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return done.stdout


def figures(folder: Path, *arguments: str) -> dict[str, Any]:
    """What `p2pfl bench … --json` prints: one object and nothing else."""
    printed: dict[str, Any] = json.loads(bench(folder, *arguments, "--json"))
    return printed


def test_round_is_shown_beside_the_same_work_without_a_network(tmp_path: Path) -> None:
    shown = figures(tmp_path, "round", "--peers", "2", "--rounds", "4", "--turns", "1")
    assert shown.keys() >= {"round_s", "training_only_s", "ratio"}
    assert (shown["peers"], shown["rounds"]) == (2, 1)  # of four, without the first two and the way to the third
    assert min(shown[key] for key in ("round_s", "training_only_s", "ratio", "mix_s", "samples")) > 0
    assert shown["wait_s"] >= 0
    assert shown["ratio"] == pytest.approx(shown["round_s"] / shown["training_only_s"])


def test_trust_is_shown_beside_the_same_rounds_and_hellos_with_insecure(tmp_path: Path) -> None:
    shown = figures(tmp_path, "trust", "--peers", "2", "--rounds", "4", "--turns", "2", "--hellos", "3")
    assert (shown["peers"], shown["turns"], shown["hellos"], shown["model"]) == (2, 2, 3, "mlp")
    assert min(shown[f"{way}{of}"] for way in ("", "insecure_") for of in ("round_s", "cpu_s", "hello_ms")) > 0
    assert len(shown["ratio_by_turn"]) == 2
    assert shown["ratio"] == pytest.approx(sum(shown["ratio_by_turn"]) / 2)
    assert shown["cpu_ratio"] > 0
    assert shown["hello_ms"] > shown["insecure_hello_ms"]  # a handshake and certificates come on top
    assert not list(tmp_path.iterdir())


def test_transfer_is_shown_beside_plain_sockets_and_takes_three_buffers_however_often(tmp_path: Path) -> None:
    shown = figures(tmp_path, "transfer", "--model-mb", "8", "--repeats", "4")
    memory = {"transfer_peak_mb", "peer_peak_over_import_mb"}
    assert shown.keys() >= {"model_mb", "mb_per_s", "socket_mb_per_s", "ratio", *memory}
    assert shown["model_mb"] == pytest.approx(8.0, rel=1e-3)
    assert all(shown[key] > 0 for key in shown.keys() - {"ratio_by_turn"})
    assert shown["ratio"] == pytest.approx(shown["mb_per_s"] / shown["socket_mb_per_s"])
    assert len(shown["ratio_by_turn"]) == 2 * 4  # both directions
    assert min(shown["ratio_by_turn"]) > 0
    assert shown["buffers_allocated"] <= 3  # the vector, what comes, what is mixed


def test_idle_peer_is_shown_beside_the_bare_import_and_is_small(tmp_path: Path) -> None:
    shown = figures(tmp_path, "memory")
    assert shown.keys() >= {"idle_over_import_mb"}
    assert shown["idle_over_import_mb"] == pytest.approx(shown["idle_mb"] - shown["import_mb"])
    assert min(shown.values()) > 0
    if sys.platform == "linux":  # elsewhere it is the peak, which is more
        assert shown["idle_over_import_mb"] <= 90  # 82 of late, of which cryptography is 9


def test_start_is_shown_beside_as_many_bare_imports(tmp_path: Path) -> None:
    shown = figures(tmp_path, "start", "--peers", "2")
    assert shown.keys() >= {"start_s", "import_s", "over_import_s"}
    assert shown["peers"] == 2
    assert min(shown["start_s"], shown["import_s"]) > 0
    assert shown["over_import_s"] == pytest.approx(shown["start_s"] - shown["import_s"])  # peers fork: may be below 0


def test_table_has_a_line_for_each_figure_with_its_unit(tmp_path: Path) -> None:
    lines = bench(tmp_path, "transfer", "--model-mb", "4", "--repeats", "1").splitlines()
    shown = {line.rpartition("  ")[0].strip(): float(line.rpartition("  ")[2]) for line in lines if line.strip()}
    assert list(shown) == [
        "model (MB)",
        "each way, both at once (MB/s)",
        "plain sockets, the same (MB/s)",
        "ratio",
        "apart from it: the finite check (s)",
        "apart from it: mixing (s)",
        "memory of the transfer: vector, buffer, mixed (MB)",
        "memory of a whole training peer, beyond imports (MB)",
    ]
    assert shown["model (MB)"] == 4.0
    assert min(shown.values()) > 0
    ratio = shown["each way, both at once (MB/s)"] / shown["plain sockets, the same (MB/s)"]
    assert shown["ratio"] == pytest.approx(ratio, rel=2e-3)  # four digits are printed


def test_simulations_are_shown_beside_plain_loops_and_within_what_memory_they_grow(tmp_path: Path) -> None:
    shown = figures(tmp_path, "simulate", "--quick")
    for name in ("mlp_256", "logistic_256"):
        figure = shown[name]
        paces = {"steps_per_s", "loop_steps_per_s", "bare_loop_steps_per_s", "vmap_steps_per_s"}
        assert figure.keys() >= paces
        assert min(figure[pace] for pace in paces) > 0
        for ratio, over, under in (
            ("ratio", "steps_per_s", "loop_steps_per_s"),
            ("bare_ratio", "steps_per_s", "bare_loop_steps_per_s"),
            ("vmap_ratio", "vmap_steps_per_s", "loop_steps_per_s"),
        ):
            assert figure[ratio] == pytest.approx(figure[over] / figure[under])
            assert figure[f"{ratio}_by_turn"] == [figure[ratio]]
    growth = shown["growth"]
    assert growth.keys() >= {"s_per_peer_256", "s_per_peer_4096", "ratio", "peak_mb", "budget_mb"}
    assert growth["ratio"] == pytest.approx(growth["s_per_peer_4096"] / growth["s_per_peer_256"])
    # 16 peers of 7,850 weights; 10,000 examples of 784 bytes and a label; 16 x 64 positions; 8,000 are for training
    assert growth["budget_mb"] == pytest.approx((4 * 16 * 7850 * 4 + 10_000 * (784 + 8) + 16 * 64 * 8) / 1e6)
    assert shown["event_1000"].keys() >= {"wall_s", "peak_mb"}
    assert shown["event_1000"]["wall_s"] > 0
    assert shown["event_1000"]["peak_mb"] > 100  # imports included
