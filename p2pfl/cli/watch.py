"""What a person sees of a run while it goes on: a live table in a terminal, a line a round elsewhere."""

from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from p2pfl.cli.options import percent
from p2pfl.events import (
    Finished,
    Listening,
    PeerGone,
    PeerJoined,
    RoundFinished,
    RoundsSkipped,
    RunEvent,
    ShareReceived,
    ShareRejected,
    ShareSent,
    StateChanged,
    ViewTaken,
    Warned,
)
from p2pfl.plain import printable


@dataclass
class _Row:
    name: str
    state: str = "starting"
    round: int = 0
    known: set[str] = field(default_factory=set)
    last: RoundFinished | None = None
    sent: int = 0
    received: int = 0
    waits: int = 0


class Watch:
    """Shows peers by their events. In a terminal it owns the lower part of the screen while entered."""

    def __init__(self, console: Console, names: list[str], rounds: int) -> None:
        self._console = console
        self._rows = {name: _Row(name) for name in names}
        self._name_of: dict[str, str] = {}
        self._rounds = rounds
        self._told = 0  # rounds told of by a line
        self._live = Live(console=console, auto_refresh=False, transient=False) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self.refresh()
            self._live.stop()

    def say(self, text: str, wrap: bool = True) -> None:
        """A line above the table; what is to be copied is not wrapped."""
        self._console.print(Text(printable(text)), soft_wrap=not wrap)

    def take(self, name: str, event: RunEvent) -> None:
        """Take in an event of the peer of that name."""
        row = self._rows[name]
        match event:
            case Listening():
                self._name_of[event.peer] = name
                row.state = "waiting"
            case StateChanged(state=state, round=round):
                row.state, row.round = state, round
            case PeerJoined(other=other, name=known):
                row.known.add(other)
                self._name_of.setdefault(other, known)
            case PeerGone(other=other, name=gone, reason=reason):
                row.known.discard(other)
                if reason == "dead":
                    self.say(f"{name}: {gone} is gone without a goodbye")
            case ShareSent(bytes=size):
                row.sent += size
            case ShareReceived(bytes=size):
                row.received += size
            case ShareRejected(other=other, reason=reason, round=round):
                if reason != "late":
                    self.say(f"{name}: no share from {self._name_of.get(other, other[:8])} in round {round}: {reason}")
            case RoundsSkipped(after=after, next=following):
                self.say(f"{name}: fell behind, goes from round {after} to {following}")
            case RoundFinished():
                row.last, row.round = event, event.round + 1
                if event.reduced and row.last.steps:
                    self.say(f"{name}: slower than its neighbors, trained {event.steps} steps in round {event.round}")
            case ViewTaken(members=members, round=round):
                if round > 0 and self._live is None and name == next(iter(self._rows)):
                    self.say(f"from round {round} on: {', '.join(members)}")
            case Warned(text=text):
                self.say(f"{name}: {text}")
            case Finished():
                row.state = "done"
            case _:
                pass
        if self._live is None and isinstance(event, RoundFinished):
            self._tell_round()

    def set_rounds(self, rounds: int) -> None:
        """How many rounds there will be, 0 if that is open."""
        self._rounds = rounds

    def set_state(self, name: str, state: str) -> None:
        """Say what became of a peer."""
        self._rows[name].state = state

    def refresh(self) -> None:
        """Draw the table anew."""
        if self._live is not None:
            self._live.update(self._drawn(), refresh=True)

    def _tell_round(self) -> None:
        """One line when the slowest peer has done another round."""
        rows = [row for row in self._rows.values() if row.state not in ("died", "left")]
        done = min((row.last.round + 1 if row.last else 0) for row in rows)
        if done <= self._told:
            return
        self._told = done
        of = f"/{self._rounds}" if self._rounds else ""
        parts = [f"round {done}{of}"]
        losses = [row.last.train_loss for row in rows if row.last and row.last.train_loss is not None]
        accuracies = [row.last.test_accuracy for row in rows if row.last and row.last.test_accuracy is not None]
        if losses:
            parts.append(f"loss {sum(losses) / len(losses):.3f}")
        if accuracies:
            mean = percent(sum(accuracies) / len(accuracies))
            parts.append(f"accuracy {mean}" + (f" (worst {percent(min(accuracies))})" if len(rows) > 1 else ""))
        distances = [row.last.neighbor_distance for row in rows if row.last and row.last.neighbor_distance is not None]
        if distances:
            parts.append(f"distance {sum(distances) / len(distances):.2g}")
        self.say("  ".join(parts))

    def _drawn(self) -> RenderableType:
        width = self._console.width
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        columns = [("peer", "left", 0), ("state", "left", 0), ("round", "right", 0), ("neighbors", "right", 72)]
        columns += [("loss", "right", 52), ("accuracy", "right", 0), ("distance", "right", 62)]
        columns += [("MB sent", "right", 80), ("MB received", "right", 92)]
        shown = [title for title, _, needed in columns if width >= needed]
        for title, justify, _ in columns:
            if title in shown:
                table.add_column(title, justify="right" if justify == "right" else "left", no_wrap=True)
        for row in self._rows.values():
            last = row.last
            cells: dict[str, str | Text] = {
                "peer": Text(row.name, style="bold"),
                "state": Text(row.state, style={"training": "green", "died": "red"}.get(row.state, "")),
                "round": f"{row.round}/{self._rounds}" if self._rounds else str(row.round),
                "neighbors": f"{last.neighbors - last.missing}/{last.neighbors}" if last else "–",
                "loss": "–" if last is None or last.train_loss is None else f"{last.train_loss:.3f}",
                "accuracy": percent(last.test_accuracy if last else None),
                "distance": "–" if last is None or last.neighbor_distance is None else f"{last.neighbor_distance:.2g}",
                "MB sent": f"{row.sent / 1e6:.1f}",
                "MB received": f"{row.received / 1e6:.1f}",
            }
            table.add_row(*(cells[title] for title in shown))
        parts: list[RenderableType] = [table]
        if self._rounds:
            done = sum(min(row.round, self._rounds) for row in self._rows.values())
            total = self._rounds * len(self._rows)
            line = Table.grid(padding=(0, 1, 0, 0))
            line.add_row(ProgressBar(total, done, width=min(40, width // 2)), f"{100 * done // max(1, total)} %")
            parts += [Text(), line]
        return Group(*parts)
