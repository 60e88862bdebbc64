"""Processes that write checkpoints and are ended meanwhile, or may not write; nothing heavy is imported for them."""

import itertools
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch

from p2pfl.checkpoint import Generations, Saved
from p2pfl.layout import Layout
from p2pfl.model_files import Checkpoint
from p2pfl.state import State

SMALL = Layout((("a", (2, 3)), ("b", ())))
LARGE = Layout((("weight", (1 << 18,)),))  # with its state 2 MiB: some milliseconds of writing


class Disk:
    """The checkpoints of one run, and what was said of them."""

    def __init__(self, folder: Path, layout: Layout = SMALL) -> None:
        self.said: list[str] = []
        self.folder = folder / "checkpoints"
        self.of = Generations(self.folder / "alice.safetensors", self.said.append)
        self._layout = layout

    def save(self, round: int) -> bool:
        return self.of.save(saved(round, self._layout), self._layout)

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


def saved(round: int, layout: Layout = SMALL) -> Saved:
    """A checkpoint that says its round in every part."""
    facts = Checkpoint(peer="a", seat="0", name="alice", network="home", incarnation=0, round=round, settings={})
    vector = torch.full((layout.size,), float(round))
    return Saved(facts, vector, State({"m": vector}, round))


def reported(play: Callable[[Path, Connection], None], folder: Path) -> Any:
    """What a process of its own reports."""
    process, report = started(play, folder)
    try:
        assert report.poll(60)
        return report.recv()
    finally:
        process.join(10)
        report.close()


def started(play: Callable[[Path, Connection], None], folder: Path) -> tuple[Any, Connection]:
    """A process forked from a server that has imported torch, and the end of a pipe at which it reports."""
    context: ForkServerContext = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["checkpoint_process", "p2pfl.peer", "p2pfl.cli.app", "aiohttp", "zeroconf"])
    mine, other = context.Pipe(duplex=False)
    process = context.Process(target=play, args=(folder, other))
    process.start()
    other.close()
    return process, mine


def saving(folder: Path, report: Connection) -> None:
    """Go on from the newest checkpoint, for ever; tell each one that is on the disk, and each warning."""
    torch.set_num_threads(1)
    disk = Disk(folder, LARGE)
    first = disk.of.read(LARGE).facts.round if disk.of.exist else 0
    for round in itertools.count(first + 1):
        written = disk.save(round)
        report.send(round if written and not disk.said else disk.said)


def limited(folder: Path, report: Connection) -> None:
    """Write under a limit of file sizes that is lifted in the middle: a full disk, for whoever may not mount one."""
    assert sys.platform != "win32"
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    disk = Disk(folder)
    done = [disk.save(1)]
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    done += [disk.save(2), disk.save(3)]
    names = disk.names
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    done.append(disk.save(4))
    report.send((done, names, disk.said))


def nobody(folder: Path, report: Connection) -> None:
    """Write where only root may."""
    os.setuid(65534)
    disk = Disk(folder)
    report.send(([disk.save(2), disk.save(3)], disk.names, disk.said))
