"""Faults of a busy machine with many peers on loopback: held processes, saturated cores, comings and goings, a soak."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from threading import Event
from time import monotonic
from typing import Any

import pytest
from live import PATIENCE_S, SLACK, Live, Running
from namespaces import namespaces_available

from p2pfl.chaos.plan import KINDS
from p2pfl.chaos.soak import Soak, run

SHORT = bool(os.environ.get("CI"))  # in CI the long ones are shortened; `p2pfl bench faults` has them in full
HELD_S = 20.0
BUSY_S = 20.0 if SHORT else 60.0
CHURN_S = 20 if SHORT else 60
DEAD_WITHIN_S = 6.0 * SLACK
BACK_WITHIN_S = 10.0 * SLACK
WORK: dict[str, Any] = {"rounds": 0, "steps": 4, "step_s": 0.05, "max_wait_s": 8.0}


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    with Live(tmp_path) as live:
        yield live


def peers(live: Live, count: int, **settings: Any) -> list[Running]:
    """So many peers, that have done a few rounds together."""
    names = [f"p{number:02}" for number in range(count)]
    started = [
        live.peer(name, seat=str(i), target=1.0 + i, **{"min_peers": count, **WORK, **settings})
        for i, name in enumerate(names)
    ]
    live.until("all have met, and learn", lambda: all(one.rounds()[-1:] >= [3] for one in started), 3 * PATIENCE_S)
    return started


def view(one: Running) -> list[str]:
    """The members of its latest rounds."""
    members: list[str] = one.of("ViewTaken")[-1]["members"]
    return members


def deaths(processes: Sequence[Running]) -> set[str]:
    """Who was taken for dead by any of these."""
    return {gone["name"] for one in processes for gone in one.of("PeerGone", reason="dead")}


def leave(processes: Sequence[Running]) -> None:
    """All leave well, and none ever went back."""
    for one in processes:
        one.signal(signal.SIGTERM)
    for one in processes:
        assert one.code() == 0, one.told()
        assert all(before < after for before, after in pairwise(one.rounds())), one.rounds()


def state(one: Running) -> str:
    """As the system has it: T is held."""
    return Path(f"/proc/{one.pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.fault(16)
def test_a_held_peer_is_dropped_comes_back_and_takes_nobody_for_dead(live: Live) -> None:
    *others, held = processes = peers(live, 4)
    began = held.signal(signal.SIGSTOP)
    for one in others:
        live.until("it is dropped", lambda one=one: one.has("PeerGone", other=held.id), DEAD_WITHIN_S)
        assert one.of("PeerGone")[0]["reason"] == "dead"
    Event().wait(HELD_S - (monotonic() - began))
    assert state(held) == "T"  # the fault
    held.signal(signal.SIGCONT)
    names = [one.name for one in processes]
    live.until("one view", lambda: all(view(one) == names for one in others), BACK_WITHIN_S)
    live.until("it learns", lambda: view(held) == names and held.of("RoundFinished")[-1]["at"] > began + HELD_S)
    assert deaths([held]) == set()
    assert deaths(others) == {held.name}
    leave(processes)


@pytest.mark.fault(17)
def test_nobody_is_taken_for_dead_while_both_cores_are_busy(live: Live) -> None:
    processes = peers(live, 8)
    hog = [sys.executable, "-c", f"import time\nend = time.monotonic() + {BUSY_S}\nwhile time.monotonic() < end: pass"]
    hogs = [subprocess.Popen(hog) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        idle_before, began = idle_s(), monotonic()
        Event().wait(BUSY_S - 1.0)
        idle_share = (idle_s() - idle_before) / (monotonic() - began) / (os.cpu_count() or 1)
        assert all(one.poll() is None for one in hogs)
    finally:
        for one in hogs:
            one.kill()
            one.wait()
    assert idle_share < 0.05  # the fault
    for one in processes:
        assert not one.has("PeerGone")
        assert one.of("RoundFinished")[-1]["at"] > began
    leave(processes)


def idle_s() -> float:
    """Seconds that all cores together had nothing to do so far."""
    return int(Path("/proc/stat").read_text().split()[4]) / os.sysconf("SC_CLK_TCK")


@pytest.mark.fault(20)
def test_peers_that_come_and_go_leave_nothing_behind(live: Live) -> None:
    """One comes or goes every second, among sixteen."""
    stay = peers(live, 12)
    guests: list[Running] = []
    came = left = 0

    def come() -> None:
        nonlocal came
        guests.append(live.peer(f"g{came:02}", seat=f"{20 + came}", target=3.0, **WORK))
        came += 1

    for _ in range(4):
        come()
    live.until("all sixteen", lambda: agree(stay, [*stay, *guests]), 2 * PATIENCE_S)
    before = {one.name: held_by(live, one) for one in stay}
    began = monotonic()
    for second in range(CHURN_S):
        if second % 2:
            come()
        else:
            gone = guests.pop(0)
            gone.signal(signal.SIGTERM)
            left += 1
        Event().wait(max(0.0, began + second + 1 - monotonic()))
    assert came - 4 == left == CHURN_S // 2  # the fault
    live.until("equal views", lambda: agree([*stay, *guests], [*stay, *guests]), 2 * BACK_WITHIN_S)
    assert deaths([*stay, *guests]) == set()
    for one in stay:
        memory_mb, descriptors, tasks = held_by(live, one)
        memory_before, descriptors_before, tasks_before = before[one.name]
        assert memory_mb - memory_before < 16.0
        assert descriptors - descriptors_before <= 4
        assert tasks - tasks_before <= 4
    leave([*stay, *guests])


def agree(those: Sequence[Running], members: Sequence[Running]) -> bool:
    """Whether each of those has these members, who are told by seat."""
    names = [one.name for one in members]
    return all(one.has("ViewTaken") and view(one) == names for one in those)


def held_by(live: Live, one: Running) -> tuple[float, float, float]:
    """What a process holds: MB, descriptors, tasks; medians of a few looks, as rounds go on."""
    looks = []
    for number in range(5):
        asked = len(one.of("Pulse"))
        one.signal(signal.SIGUSR1)
        live.until("its tasks", lambda asked=asked: len(one.of("Pulse")) > asked)
        memory_mb = int(Path(f"/proc/{one.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
        descriptors = len(list(Path(f"/proc/{one.pid}/fd").iterdir()))
        looks.append((memory_mb, descriptors, one.of("Pulse")[-1]["tasks"]))
        Event().wait(0.05 * number)
    memory, descriptors_, tasks = zip(*looks, strict=True)
    return median(memory), median(descriptors_), median(tasks)


def promises_hold(soak: Soak, folder: Path) -> dict[str, Any]:
    """Run a soak; whatever was broken is in the message."""
    lines: list[str] = []
    report = run(soak, folder, lines.append)
    assert report["told"] == [], "\n".join([*report["told"], *lines])
    assert report["held"]
    assert report["rows_summed"] == report["rounds_of_all"] > 20 * soak.peers
    assert report["accuracy"] > 0.8
    for row in report["faults"]:
        assert row["seen"] == row["times"] == row["held"] > 0, row
    return report


@pytest.mark.fault(48)
def test_soak_on_loopback_keeps_every_promise(tmp_path: Path) -> None:
    """`p2pfl chaos --peers 8 --minutes 30` by hand."""
    report = promises_hold(Soak(peers=8, seconds=180.0, seed=1, slack=SLACK), tmp_path)
    assert len(report["faults"]) >= 8
    assert abs(report["accuracy"] - report["reference_accuracy"]) < 0.02


@pytest.mark.fault(48)
@pytest.mark.namespaces
@pytest.mark.skipif(namespaces_available() is not None, reason=str(namespaces_available()))
def test_soak_between_hosts_keeps_every_promise(tmp_path: Path) -> None:
    """`p2pfl chaos --peers 8 --minutes 30 --hosts` by hand."""
    kinds = ["kill", *(name for name, kind in KINDS.items() if kind.hosts)]
    soak = Soak(peers=6, seconds=120.0, seed=2, kinds=kinds, hosts=True, reference=False, slack=SLACK)
    assert len(promises_hold(soak, tmp_path)["faults"]) >= 5
