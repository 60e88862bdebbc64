"""Processes for a measurement: children of one server that has imported torch, in step with each other."""

import multiprocessing
import multiprocessing.connection
import resource
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from p2pfl.errors import P2pflError

_PRELOADED = ["p2pfl.peer", "p2pfl.learning.by_name", "p2pfl.bench.children"]


def run_children(function: Callable[..., None], count: int, *arguments: object) -> list[dict[str, Any]]:
    """Call `function(index, barrier, pipe, *arguments)` in `count` processes; returns what each sent at its end.

    `function` is a module's own; it sends one dictionary through its pipe.

    Raises:
        P2pflError: a child died.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    barrier = context.Barrier(count)
    pipes: list[Connection] = []
    processes = []
    for index in range(count):
        near, far = context.Pipe()
        process = context.Process(target=function, args=(index, barrier, far, *arguments), daemon=True)
        process.start()
        far.close()
        pipes.append(near)
        processes.append(process)
    results: dict[int, dict[str, Any]] = {}
    try:
        while len(results) < count:
            open_pipes = [pipe for index, pipe in enumerate(pipes) if index not in results]
            for ready in multiprocessing.connection.wait(open_pipes):
                index = pipes.index(ready)  # type: ignore[arg-type]  # pipes alone were waited for
                try:
                    results[index] = pipes[index].recv()
                except EOFError as error:
                    raise P2pflError("a process of the measurement died; see its message above") from error
    finally:
        for process in processes:
            if len(results) < count:
                process.kill()
            process.join()
        for pipe in pipes:
            pipe.close()
    return [results[index] for index in range(count)]


def resident_mb() -> float:
    """What this process holds in memory now; its peak where the system tells no more."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return peak_mb()
    return float(next(line for line in text.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def reset_peak() -> None:
    """Begin to measure the peak anew, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # then the peak is that of the whole process, which is more, never less


def peak_mb() -> float:
    """The most this process has held since `reset_peak`."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    return float(next(line for line in text.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
