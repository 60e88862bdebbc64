"""Jobs of a sweep on the cores of this machine: a process a core, each with one job at a time.

Each is a program of its own, and not a fork, so that a script that calls `sweep` needs no guard around its main part.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from queue import Empty, SimpleQueue

import msgspec

from p2pfl.simulation.jobs import Job, Row, run_job

_PAUSE_S = 0.1  # how soon a request to stop is heard


def run_in_processes(jobs: Sequence[Job], at_once: int, stopped: Callable[[], bool]) -> Generator[Row, None, None]:
    """Rows of the jobs as they come; one at once, or a single job, runs in this process.

    When `stopped`, no job begins any more, and those under way end after their round. Closing it ends them at once.
    """
    if at_once == 1 or len(jobs) <= 1:
        for job in jobs:
            if stopped():
                return
            yield run_job(job, stopped)
        return
    waiting = list(jobs)
    told: SimpleQueue[tuple[int, bytes]] = SimpleQueue()  # which process, and its line; an empty one where it ended
    processes: list[subprocess.Popen[bytes]] = []
    running: dict[int, Job] = {}
    stopping = False
    try:
        for number in range(min(at_once, len(jobs))):
            running[number] = waiting.pop(0)
            processes.append(_start(number, told))
            _tell(processes[number], msgspec.json.encode(running[number]))
        while running:
            if not stopping and stopped():
                stopping = True
                waiting.clear()
                for process in processes:
                    _tell(process, b"")
            try:
                number, line = told.get(timeout=_PAUSE_S)
            except Empty:
                continue
            if number not in running:
                continue  # the end of a process whose work was done
            job = running.pop(number)
            if line:
                yield msgspec.json.decode(line, type=Row)
            else:
                code = processes[number].wait()
                yield {"folder": job.folder, "error": f"its process ended with status {code}", "summary": None}
                if waiting:
                    processes[number] = _start(number, told)
            if waiting:
                running[number] = waiting.pop(0)
                _tell(processes[number], msgspec.json.encode(running[number]))
    finally:
        for process in processes:
            _end(process, at_once=bool(running))


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(number: int, told: "SimpleQueue[tuple[int, bytes]]") -> "subprocess.Popen[bytes]":
    paths = [path or os.getcwd() for path in sys.path]  # noqa: PTH109  # text, for the environment
    process = subprocess.Popen(
        [sys.executable, "-m", "p2pfl.simulation.sweep_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        start_new_session=True,  # a terminal's Ctrl-C is for the parent alone, which tells the others
    )

    def listen() -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                told.put((number, line))
        told.put((number, b""))

    threading.Thread(target=listen, daemon=True).start()
    return process


def _tell(process: "subprocess.Popen[bytes]", line: bytes) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(line + b"\n")
        process.stdin.flush()
    except OSError:
        return  # it has ended, and its row will say so


def _end(process: "subprocess.Popen[bytes]", at_once: bool) -> None:
    """Close its input, at which it leaves; nobody waits for rounds under way where the sweep is broken off."""
    if at_once:
        process.kill()
    try:
        if process.stdin is not None:
            process.stdin.close()
    except OSError:
        pass  # what it was told last never arrived
    process.wait()
