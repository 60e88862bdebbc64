"""Reports of rounds as rows: the columns once, for the files as text and for pandas as arrays.

A column of a round that is the same for all peers is kept and written as one value: thousands of peers and hundreds of
rounds stay small in memory and quick to write.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from p2pfl.simulation.engine import Counts, RoundReport
from p2pfl.sinks import METRICS

if TYPE_CHECKING:
    import pandas as pd

ROUNDS = (
    "round",
    "peers",
    "steps",
    "wall_time_s",
    "simulated_time_s",
    "train_loss",
    "test_loss",
    "test_accuracy",
    "worst_accuracy",
    "consensus_distance",
    "relative_distance",
    "mean_model_loss",
    "mean_model_accuracy",
    "norm",
    "bytes_sent",
    "bytes_received",
)

Cells: TypeAlias = int | float | npt.NDArray[Any] | None  # one value for all peers, or [peers present]


def columns(report: RoundReport, steps_so_far: Counts) -> dict[str, Cells]:
    """The cells of a round's rows of metrics.csv, a row for each peer present; all but the peers' names.

    Args:
        steps_so_far: [peers] gradient steps up to and with this round.
    """
    present = report.present
    one: dict[str, Cells] = {
        "round": report.round,
        "wall_time_s": report.wall_s,
        "consensus_distance": _plain(report.consensus_distance),
    }
    many: dict[str, npt.NDArray[Any] | None] = {
        "step": steps_so_far,
        "steps": report.steps,
        "simulated_time_s": report.simulated_time_s,
        "train_loss": report.train_loss,
        "test_loss": report.test_loss if report.evaluated else None,
        "test_accuracy": report.test_accuracy if report.evaluated else None,
        "neighbor_distance": report.neighbor_distance,
        "neighbors": report.neighbors,
        "bytes_sent": report.bytes_sent,
        "bytes_received": report.bytes_received,
        "train_s": report.train_s,
        "wait_s": report.wait_s,
        "mix_s": report.mix_s,
        **report.metrics,
    }
    return one | {name: None if cells is None else _compact(cells[present]) for name, cells in many.items()}


def metrics_text(cells: Mapping[str, Cells], peers: Sequence[str], extra: Sequence[str]) -> str:
    """The rows of a round as lines of metrics.csv.

    Args:
        peers: names of the peers present, quoted as CSV wants it.
        extra: columns behind those of every run.
    """
    template: list[str] = []
    changing: list[Iterable[Any]] = []
    for name in (*METRICS, *extra):
        value = cells.get(name)
        if name == "peer":
            template.append("%s")
            changing.append(peers)
        elif isinstance(value, np.ndarray):
            listed: list[Any] = value.tolist()
            if value.dtype.kind != "f":
                template.append("%d")
            elif np.isnan(value).any():
                template.append("%s")
                listed = ["" if number != number else f"{number:.6g}" for number in listed]
            else:
                template.append("%.6g")
            changing.append(listed)
        else:
            template.append(short(value))
    line = ",".join(template) + "\n"
    return "".join([line % row for row in zip(*changing, strict=True)])


def round_cells(report: RoundReport) -> dict[str, int | float | None]:
    """The cells of a round's row of rounds.csv: means over the peers present, sums of steps and bytes."""
    present = report.present
    accuracies = None if report.test_accuracy is None or not report.evaluated else report.test_accuracy[present]
    losses = None if report.test_loss is None or not report.evaluated else report.test_loss[present]
    times = report.simulated_time_s[present]
    return {
        "round": report.round,
        "peers": int(present.sum()),
        "steps": int(report.steps[present].sum()),
        "wall_time_s": report.wall_s,
        "simulated_time_s": _over(np.max, times),
        "train_loss": _over(np.mean, report.train_loss[present]),
        "test_loss": _over(np.mean, losses),
        "test_accuracy": _over(np.mean, accuracies),
        "worst_accuracy": _over(np.min, accuracies),
        "consensus_distance": _plain(report.consensus_distance),
        "relative_distance": _relative(report.consensus_distance, report.norm),
        "mean_model_loss": _plain(report.mean_loss),
        "mean_model_accuracy": _plain(report.mean_accuracy),
        "norm": _plain(report.norm),
        "bytes_sent": int(report.bytes_sent.sum()),
        "bytes_received": int(report.bytes_received.sum()),
    }


def metrics_frame(rounds: Sequence[tuple[Mapping[str, Cells], npt.NDArray[np.str_]]], extra: Sequence[str]) -> Any:
    """All rounds' rows as a DataFrame with the columns of metrics.csv.

    Args:
        rounds: the cells of each round, and the names of the peers present in it.
    """
    import pandas as pd

    table: dict[str, Any] = {}
    for name in (*METRICS, *extra):
        if name == "peer":
            parts = [peers for _, peers in rounds]
            table[name] = np.concatenate(parts).astype(object) if parts else np.empty(0, dtype=object)
            continue
        pieces = []
        for cells, peers in rounds:
            value = cells.get(name)
            filled = np.nan if value is None else value
            pieces.append(filled if isinstance(filled, np.ndarray) else np.full(len(peers), filled))
        table[name] = np.concatenate(pieces) if pieces else np.empty(0)
    return pd.DataFrame(table)


def edges_frame(
    rounds: Sequence[tuple[int, npt.NDArray[np.int64], int]], names: npt.NDArray[np.str_]
) -> "pd.DataFrame":
    """All shares as a DataFrame with the columns of edges.csv: (round, arcs [k, 2], bytes of each) for every round."""
    import pandas as pd

    named = names.astype(object)
    counts = [len(arcs) for _, arcs, _ in rounds]
    ends = np.concatenate([arcs for _, arcs, _ in rounds]) if rounds else np.empty((0, 2), dtype=np.int64)
    return pd.DataFrame(
        {
            "round": np.repeat([round for round, _, _ in rounds], counts).astype(np.int64),
            "from": named[ends[:, 0]],
            "to": named[ends[:, 1]],
            "bytes": np.repeat([size for _, _, size in rounds], counts).astype(np.int64),
        }
    )


def edge_tails(arcs: npt.NDArray[np.int64], names: Sequence[str], size: int) -> str:
    """What stands behind the round in the lines of edges.csv, a line a share, each ended by a line break."""
    return "".join([f",{names[a]},{names[b]},{size}\n" for a, b in arcs.tolist()])


def with_round(round: int, tails: str) -> str:
    """The lines of a round, from what stands behind it: the same tails serve every round of a topology that stays."""
    return str(round) + tails[:-1].replace("\n", f"\n{round}") + "\n" if tails else ""


def short(value: object) -> str:
    """A cell as the files have it: six digits of a fraction, nothing for what is not there."""
    if value is None or value != value:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _compact(cells: npt.NDArray[Any]) -> Cells:
    if cells.dtype.kind == "f":
        if np.isnan(cells).all():
            return None
        if (cells == cells[0]).all():
            return float(cells[0])
        return cells
    if (cells == cells[:1]).all() and len(cells):
        return int(cells[0])
    return cells.astype(np.int32) if len(cells) and np.abs(cells).max() < 1 << 31 else cells


def _over(figure: Any, cells: npt.NDArray[Any] | None) -> float | None:
    if cells is None:
        return None
    known = cells[~np.isnan(cells)]
    return float(figure(known)) if len(known) else None


def _relative(squared: float, norm: float) -> float | None:
    """Ξ/‖x̄‖."""
    return float(np.sqrt(squared)) / norm if norm > 0 and squared == squared else None


def _plain(value: float | None) -> float | None:
    return None if value is None or value != value else float(value)
