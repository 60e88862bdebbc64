"""Sinks: where events go. Each is a callable `(RunEvent) -> None`; the files of a run are written by one of them."""

import csv
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

import msgspec

from p2pfl import durable
from p2pfl.events import (
    Finished,
    Listening,
    PeerJoined,
    RoundFinished,
    RunEvent,
    ShareReceived,
    ShareRejected,
    ShareSent,
    Sink,
    Started,
)
from p2pfl.recipe import recipe_of, to_toml
from p2pfl.telemetry.repeats import Seldom

_EDGES_REMEMBERED = 1 << 16  # both ends of a share tell of it about the same time: old rounds need no memory
METRICS = (
    "round",
    "step",
    "peer",
    "steps",
    "wall_time_s",
    "simulated_time_s",
    "train_loss",
    "test_loss",
    "test_accuracy",
    "consensus_distance",
    "neighbor_distance",
    "neighbors",
    "bytes_sent",
    "bytes_received",
    "train_s",
    "wait_s",
    "mix_s",
)

_FILES = ("events.jsonl", "metrics.csv", "edges.csv")


def tee(*sinks: Sink) -> Sink:
    """Hand each event to all of the sinks."""

    def every(event: RunEvent) -> None:
        for sink in sinks:
            sink(event)

    return every


class RunFiles:
    """Writes `runs/<name>/`: events, metrics, edges, partition, recipe and summary, of one peer or of many.

    A disk that fails costs the files, not the run: the first trouble is told to `warn`, and writing ends.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self.folder = folder
        self._warn = warn
        self._events: TextIO | None = None
        self._metrics: TextIO | None = None
        self._edges: TextIO | None = None
        self._names: dict[str, str] = {}  # peer id -> name
        self._seen_edges: set[tuple[int, str, str]] = set()
        self._steps: dict[str, int] = {}
        self._rows: Any = None
        self._extra: tuple[str, ...] | None = None
        self._seldom = Seldom()
        self._made = False
        self._began = False
        self._failed = False
        self._unreported: dict[str, int] = {}  # bytes sent since a peer's last round: its last share, say
        self.failures: dict[str, int] = {}
        self.last: dict[str, RoundFinished] = {}
        self._bytes_sent = 0
        self.bytes_received = 0
        self.control_bytes_sent = 0
        self.settings: dict[str, Any] = {}

    def open(self) -> None:
        """Make the folder and its files.

        Raises:
            OSError: it cannot be written to.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._made = not (self.folder / _FILES[0]).exists()
        with ExitStack() as opened:
            events, metrics, edges = (
                opened.enter_context((self.folder / name).open("a", encoding="utf-8", newline="")) for name in _FILES
            )
            opened.pop_all()
        self._events, self._metrics, self._edges = events, metrics, edges
        if edges.tell() == 0:
            csv.writer(edges).writerow(("round", "from", "to", "bytes"))

    def close(self) -> None:
        """Finish the files. A run that never began leaves none, so that its folder can be used for the next try."""
        files = [file for file in (self._events, self._metrics, self._edges) if file is not None]
        self._events = self._metrics = self._edges = None
        try:
            with ExitStack() as last:
                for file in files:
                    last.callback(file.close)
            if files and self._made and not self._began:
                for name in _FILES:
                    (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            self._tell(error)

    @property
    def bytes_sent(self) -> int:
        """Bytes of models that left the peers."""
        return self._bytes_sent + sum(self._unreported.values())

    def __call__(self, event: RunEvent) -> None:
        """Take an event."""
        self._count(event)
        if self._events is None:
            return
        told, _ = self._seldom.told(event)
        if told is None:
            return
        try:
            self._events.write(msgspec.json.encode(told).decode() + "\n")
            self._write(event)
        except OSError as error:
            self._tell(error)
            self.close()

    def _tell(self, error: OSError) -> None:
        if not self._failed:
            self._failed = True
            self._warn(f"the files in {self.folder} end here: {error}; the run goes on")

    def _count(self, event: RunEvent) -> None:
        match event:
            case Listening():
                self._names[event.peer] = event.name
            case PeerJoined():
                self._names.setdefault(event.other, event.name)
            case ShareSent():
                self._unreported[event.peer] = self._unreported.get(event.peer, 0) + event.bytes
            case ShareRejected():
                self.failures[event.reason] = self.failures.get(event.reason, 0) + 1
            case RoundFinished():
                self.last[event.peer] = event
                self._bytes_sent += event.bytes_sent
                self._unreported[event.peer] = 0
                self.bytes_received += event.bytes_received
                self.control_bytes_sent += event.control_bytes_sent
            case Started():
                self.settings, self._began = dict(event.settings), True

    def _write(self, event: RunEvent) -> None:
        match event:
            case Started():
                (self.folder / "recipe.toml").write_text(to_toml(recipe_of(event.settings)), encoding="utf-8")
            case RoundFinished():
                self._row(event)
            case ShareReceived(peer=peer, round=round, other=other, bytes=size):
                self._edge(round, other, peer, size)
            case ShareSent(peer=peer, round=round, other=other, bytes=size):
                self._edge(round, peer, other, size)
            case Finished():
                self.flush()

    def flush(self) -> None:
        """Push what is written to the disk's files, for whoever reads along."""
        for file in (self._events, self._metrics, self._edges):
            if file is not None:
                file.flush()

    def _edge(self, round: int, sender: str, receiver: str, size: int) -> None:
        """A row for each share, though both ends tell of it where both write here."""
        key = (round, sender, receiver)
        if key not in self._seen_edges and self._edges is not None:
            self._seen_edges.add(key)
            csv.writer(self._edges).writerow((round, self.name(sender), self.name(receiver), size))
            if len(self._seen_edges) > _EDGES_REMEMBERED:
                self._seen_edges = {seen for seen in self._seen_edges if seen[0] >= round - 1}

    def _row(self, event: RoundFinished) -> None:
        assert self._metrics is not None
        if self._rows is None:
            self._extra = tuple(sorted(event.metrics))
            self._rows = csv.writer(self._metrics)
            if self._metrics.tell() == 0:
                self._rows.writerow((*METRICS, *self._extra))
        self._steps[event.peer] = self._steps.get(event.peer, 0) + event.steps
        fields = msgspec.structs.asdict(event)
        fields |= {"peer": self.name(event.peer), "step": self._steps[event.peer]}
        values = [fields.get(column) for column in METRICS] + [event.metrics.get(k) for k in self._extra or ()]
        self._rows.writerow(["" if value is None else _short(value) for value in values])

    def name(self, peer: str) -> str:
        """What to call a peer in the files: unique even where names are not."""
        name = self._names.get(peer, peer[:8])
        twins = sum(other == name for other in self._names.values())
        return name if twins <= 1 else f"{name}-{peer[:4]}"

    def write_partition(self, counts: Iterable[tuple[str, str, int]]) -> None:
        """Write `partition.csv`: examples by peer and label."""
        with (self.folder / "partition.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("peer", "label", "count"))
            writer.writerows(counts)

    def write_summary(self, summary: Mapping[str, object]) -> None:
        """Write `summary.json`, whole or not at all."""
        write_summary(self.folder, summary)


def write_summary(folder: Path, summary: Mapping[str, object]) -> None:
    """Write `summary.json` of a run: a crash leaves the old one or the new one, never half of one. Raises OSError."""
    text = msgspec.json.format(msgspec.json.encode(summary), indent=2)
    durable.write(folder / "summary.json", text, b"\n")


def _short(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value
