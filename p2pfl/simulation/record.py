"""What is kept of a simulation while it goes on: rows in memory, and the files of a run as live peers write them."""

import csv
import io
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from p2pfl.events import Finished, RunEvent, Started, Warned
from p2pfl.layout import Layout
from p2pfl.learning.by_name import metrics_of
from p2pfl.recipe import to_toml
from p2pfl.simulation import checkpoints
from p2pfl.simulation.engine import RoundReport
from p2pfl.simulation.problem import Problem
from p2pfl.simulation.resolve import part_counts
from p2pfl.simulation.rows import (
    ROUNDS,
    Cells,
    columns,
    edge_tails,
    metrics_text,
    round_cells,
    short,
    with_round,
)
from p2pfl.sinks import METRICS

SIMULATION = "simulation"  # whose events those are that no single peer has
_TABLES = ("metrics.csv", "edges.csv", "rounds.csv")
_EDGE_ROWS = 10_000_000  # of edges.csv; beyond, the bytes of every peer still stand in metrics.csv
_CHECKPOINT_S = 10.0  # between checkpoints, and at least so many times as long as one takes:
_CHECKPOINT_SHARE = 20.0


@dataclass(frozen=True)
class Moment:
    """How far a simulation is, for whoever shows it.

    Attributes:
        run: empty for the run itself, or the reference that is under way: alone, pooled or fedavg.
        round, rounds: how many are done, of how many.
        accuracy, worst: of the peers when they were last evaluated; None before, and where the task has none.
        loss: mean training loss of the round.
        elapsed_s, left_s: so far, and expected.
    """

    run: str
    round: int
    rounds: int
    accuracy: float | None
    worst: float | None
    loss: float | None
    consensus_distance: float | None
    elapsed_s: float
    left_s: float


class Record:
    """Keeps what an engine reports; a `Keeper`, and a sink for events.

    A disk that fails costs the files, not the run: the first trouble is told to `warn`, and writing ends.
    """

    def __init__(
        self,
        problem: Problem,
        layout: Layout,
        *,
        folder: Path | None = None,
        name: str = "",
        progress: Callable[[Moment], None] | None = None,
        warn: Callable[[str], None] | None = None,
        stopped: Callable[[], bool] | None = None,
        checkpointed: bool = True,
    ) -> None:
        """Nothing is written before `open`.

        Args:
            folder: for the files; None keeps everything in memory only.
            name: of the run in its moments, for references.
            progress: called after every round.
            warn: told what a person should know.
            stopped: whether somebody has asked to end; `stop` asks for it, too.
            checkpointed: whether to write checkpoints, where there is a folder.
        """
        self.problem = problem
        self.folder = folder
        self.warnings: list[str] = []
        self.rounds: list[dict[str, int | float | None]] = []
        self.metrics: list[tuple[dict[str, Cells], npt.NDArray[np.str_]]] = []
        self.edges: list[tuple[int, npt.NDArray[np.int64], int]] = []
        self.last: RoundReport | None = None
        self.last_evaluated: RoundReport | None = None
        self.extra: tuple[str, ...] | None = None  # columns behind those of every run
        self.first_round = 0
        self._simulated_s = 0.0
        self._stop_asked = False
        self._stopped = stopped
        self._layout = layout
        self._name = name
        self._progress = progress
        self._tell = warn
        self._checkpointed = checkpointed and folder is not None
        self._steps = np.zeros(problem.peers, dtype=np.int64)
        self._names = np.array(problem.names)
        self._quoted = [_quoted(name) for name in problem.names]
        self._files: dict[str, TextIO] = {}
        self._events: TextIO | None = None
        self._tails: tuple[npt.NDArray[np.int64], int, str] | None = None
        self._edge_rows = 0
        self._began = time.monotonic()
        self._first_s = 0.0  # seconds of the first round
        self._saved = self._began
        self._save_took = 0.0
        self._contents_written = False
        self._seen: dict[str, int | float | None] | None = None  # the last round in which accuracies were measured

    def open(self, begin: int = 0, steps: npt.NDArray[np.int64] | None = None, simulated_s: float = 0.0) -> None:
        """Make the folder and its files, or open those of a run that goes on.

        Args:
            begin: the first round that will be reported; rows from it on are cut off.
            steps: [peers] gradient steps before it.
            simulated_s: virtual seconds before it: engines count from 0 wherever they begin.

        Raises:
            OSError: the folder cannot be written to.
        """
        self.first_round, self._simulated_s = begin, simulated_s
        if steps is not None:
            self._steps = steps.copy()
        recipe, problem = self.problem.recipe, self.problem
        self._began = self._saved = time.monotonic()
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoints.cut_back(self.folder, begin)
        self.extra = _extra_of(self.folder / "metrics.csv")
        with ExitStack() as opened:
            for name in _TABLES:
                file = (self.folder / name).open("a", encoding="utf-8", newline="")
                self._files[name] = opened.enter_context(file)
            self._events = opened.enter_context((self.folder / "events.jsonl").open("a", encoding="utf-8"))
            if not self._files["rounds.csv"].tell():
                self._files["rounds.csv"].write(",".join(ROUNDS) + "\n")
            if not self._files["edges.csv"].tell():
                self._files["edges.csv"].write("round,from,to,bytes\n")
            (self.folder / "recipe.toml").write_text(to_toml(recipe), encoding="utf-8")
            self._write_partition(self.folder / "partition.csv")
            opened.pop_all()
        settings = msgspec.structs.asdict(recipe)
        self.take(Started(peer=SIMULATION, settings=settings, round=begin, members=problem.names))

    def report(self, report: RoundReport) -> None:
        """See `Keeper`."""
        if self._simulated_s:
            report = replace(report, simulated_time_s=report.simulated_time_s + self._simulated_s)
        self._steps += np.where(report.present, report.steps, 0)
        if self.extra is None:
            # By the data, too: the first report may be of a round without evaluation.
            self.extra = tuple(sorted({*metrics_of(self.problem.data), *report.metrics}))
        self.last = report
        if report.evaluated:
            self.last_evaluated = report
        cells = columns(report, self._steps)
        self.metrics.append((cells, self._names[report.present]))
        self.rounds.append(round_cells(report))
        if self.rounds[-1]["test_accuracy"] is not None:
            self._seen = self.rounds[-1]
        if self.edges and np.array_equal(self.edges[-1][1], report.arcs):
            self.edges.append((report.round, self.edges[-1][1], report.share_bytes))  # one copy, however many rounds
        else:
            self.edges.append((report.round, report.arcs.copy(), report.share_bytes))
        if self._files:
            try:
                self._write(report, cells)
            except OSError as error:
                self._give_up(error)
        if self._progress is not None:
            self._progress(self._moment())

    def keep(self, round: int, vectors: Callable[[], torch.Tensor]) -> None:
        """See `Keeper`. A checkpoint is due every ten seconds, or less often where writing one takes long."""
        due = max(_CHECKPOINT_S, _CHECKPOINT_SHARE * self._save_took)
        goes_on = round < self.problem.recipe.rounds
        if goes_on and self._checkpointed and self._files and time.monotonic() - self._saved >= due:
            self.save(round, vectors())

    def save(self, round: int, vectors: torch.Tensor) -> None:
        """Write the checkpoint with which `round` begins, after everything that belongs to the rounds before it."""
        if not self._checkpointed or self.folder is None:
            return
        begun = time.monotonic()
        try:
            self.flush()
            if not self._contents_written:
                checkpoints.write_contents(self.folder, checkpoints.contents_of(self.problem))
                self._contents_written = True
            checkpoints.write(self.folder, self.problem.recipe, self._layout, round, vectors)
        except OSError as error:
            self._give_up(error)
        self._saved = time.monotonic()
        self._save_took = self._saved - begun

    def warn(self, text: str) -> None:
        """See `Keeper`."""
        if text not in self.warnings:
            self.warnings.append(text)
            self.take(Warned(peer=SIMULATION, text=text))
            if self._tell is not None:
                self._tell(text)

    @property
    def stopped(self) -> bool:
        """See `Keeper`."""
        if not self._stop_asked and self._stopped is not None:
            self._stop_asked = self._stopped()
        return self._stop_asked

    def stop(self) -> None:
        """End after the round under way."""
        self._stop_asked = True

    def take(self, event: RunEvent) -> None:
        """Write an event to events.jsonl."""
        if self._events is None:
            return
        if self._simulated_s and event.peer != SIMULATION:
            event = msgspec.structs.replace(event, time_s=event.time_s + self._simulated_s)
        try:
            self._events.write(msgspec.json.encode(event).decode() + "\n")
        except OSError as error:
            self._give_up(error)

    def flush(self) -> None:
        """Push what is written to the disk's files, for whoever reads along. Raises OSError."""
        for file in (*self._files.values(), self._events):
            if file is not None:
                file.flush()

    def close(self, reason: str = "") -> None:
        """Finish the tables; `reason` is rounds or stopped, empty where the run broke off."""
        if reason:
            done = self.last.round + 1 if self.last is not None else self.first_round
            self.take(Finished(peer=SIMULATION, round=done, reason=reason))
        files = [*self._files.values(), *([self._events] if self._events is not None else [])]
        self._files, self._events = {}, None
        try:
            with ExitStack() as last:
                for file in files:
                    last.callback(file.close)
        except OSError as error:
            self._give_up(error)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._began

    def _write(self, report: RoundReport, cells: dict[str, Cells]) -> None:
        assert self.extra is not None
        metrics = self._files["metrics.csv"]
        if not metrics.tell():
            metrics.write(",".join((*METRICS, *self.extra)) + "\n")
        if report.present.any():
            peers: Sequence[str] = self._quoted
            if not report.present.all():
                peers = [self._quoted[peer] for peer in np.flatnonzero(report.present)]
            metrics.write(metrics_text(cells, peers, self.extra))
        self._files["rounds.csv"].write(",".join(map(short, self.rounds[-1].values())) + "\n")
        if self._edge_rows <= _EDGE_ROWS < self._edge_rows + len(report.arcs):
            self.warn(f"edges.csv ends before round {report.round}: more than {_EDGE_ROWS:,} rows serve nobody")
        self._edge_rows += len(report.arcs)
        if self._edge_rows <= _EDGE_ROWS:
            arcs = self.edges[-1][1]
            if self._tails is None or self._tails[0] is not arcs or self._tails[1] != report.share_bytes:
                self._tails = arcs, report.share_bytes, edge_tails(arcs, self._quoted, report.share_bytes)
            self._files["edges.csv"].write(with_round(report.round, self._tails[2]))

    def _write_partition(self, path: Path) -> None:
        labels, counts = part_counts(self.problem)
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("peer", "label", "count"))
            for name, row in zip(self.problem.names, counts.tolist(), strict=True):
                writer.writerows((name, label, count) for label, count in zip(labels, row, strict=True))

    def _moment(self) -> Moment:
        rounds, done = self.problem.recipe.rounds, len(self.rounds)
        now = self.rounds[-1]
        seen = self._seen or now
        elapsed = self.elapsed_s
        left = rounds - self.first_round - done
        return Moment(
            self._name,
            self.first_round + done,
            rounds,
            seen["test_accuracy"],
            seen["worst_accuracy"],
            now["train_loss"],
            now["consensus_distance"],
            elapsed,
            self._round_s(elapsed) * left,
        )

    def _round_s(self, elapsed: float) -> float:
        """Seconds a round takes; the first one, in which engines warm up, counts only while it is the only one."""
        done = len(self.rounds)
        if done == 1:
            self._first_s = elapsed
            return elapsed
        return (elapsed - self._first_s) / (done - 1)

    def _give_up(self, error: OSError) -> None:
        """Say once that nothing more is written."""
        files = [*self._files.values(), *([self._events] if self._events is not None else [])]
        self._files, self._events, self._checkpointed = {}, None, False
        for file in files:
            try:
                file.close()
            except OSError:
                continue  # what could not be written cannot be flushed either
        self.warn(f"the files in {self.folder} end here: {error}; the run goes on")


def _extra_of(path: Path) -> tuple[str, ...] | None:
    """The columns behind those of every run, in the tables of a run that goes on; None where nothing is written yet."""
    if not path.exists():
        return None
    with path.open(encoding="utf-8", newline="") as file:
        head = next(csv.reader(file), [])
    return tuple(head[len(METRICS) :]) if head else None


def _quoted(name: str) -> str:
    """As a cell of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow((name,))
    return text.getvalue()
