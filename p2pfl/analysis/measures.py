"""What a run measured, as data frames and plain numbers: curves, spread over peers, volume, time to a target."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from p2pfl.analysis.measured import Measured, members, schedule_of
from p2pfl.errors import DataError, UsageError
from p2pfl.heterogeneity import Heterogeneity, heterogeneity

if TYPE_CHECKING:
    import pandas as pd

    from p2pfl.graphs.schedule import Schedule

REFERENCES = ("alone", "fedavg", "pooled")  # what a network is measured against, from worst to best as a rule
COSTS = ("rounds", "steps", "bytes", "wall_s", "simulated_s")  # what a target can be paid in: columns of `curves`


@dataclass(frozen=True)
class Spread:
    """How a figure, accuracy mostly, is spread over the peers.

    Attributes:
        p5: the 5th percentile, linear between the peers.
        std: over the peers, divided by n: they are the whole network, no sample of it.
        jain: (Σa)² / (n Σa²): 1 where all are equal, 1/n where one has everything; NaN where all are 0.
    """

    mean: float
    worst: float
    p5: float
    std: float
    jain: float


@dataclass(frozen=True)
class Volume:
    """What was sent, in bytes of shares: framing included, control messages not.

    Attributes:
        by_peer: bytes sent, by peer.
        by_edge: columns from, to, bytes; a row for each direction.
        by_round: bytes sent by all, by round.
        busiest: who sent the most, and how much.
        analytic_per_round: n · degree · bytes of the parameters, averaged over the rounds; None where the size of the
            model or the topology is not known.
    """

    total: int
    by_peer: "pd.Series[int]"
    by_edge: "pd.DataFrame"
    by_round: "pd.Series[int]"
    busiest: tuple[str, int] | None
    analytic_per_round: float | None

    @property
    def per_round(self) -> float:
        """Bytes sent by all in a round, on average."""
        return self.total / len(self.by_round) if len(self.by_round) else 0.0


def jain_index(values: npt.ArrayLike) -> float:
    """(Σa)² / (n Σa²): 1 where all are equal, 1/n where one has everything.

    Source: Jain, Chiu and Hawe, "A quantitative measure of fairness and discrimination for resource allocation in
    shared computer systems", 1984.
    """
    array = np.asarray(values, dtype=np.float64)
    squares = len(array) * float(np.square(array).sum())
    return float(array.sum()) ** 2 / squares if squares else float("nan")


def spread(values: npt.ArrayLike) -> Spread:
    """The spread of a figure over the peers; NaN are left out.

    Raises:
        DataError: no peer has the figure.
    """
    array = np.asarray(values, dtype=np.float64)
    array = array[~np.isnan(array)]
    if not len(array):
        raise DataError("no peer has that figure: was the run evaluated?")
    return Spread(
        mean=float(array.mean()),
        worst=float(array.min()),
        p5=float(np.percentile(array, 5)),
        std=float(array.std()),
        jain=jain_index(array),
    )


def curves(run: Measured) -> "pd.DataFrame":
    """The whole network round by round, what it knows and what it has cost so far.

    Returns:
        A row a round (the index, from 0), and the columns
        `rounds` behind it · `steps` gradient steps of a peer so far, mean over peers · `bytes` sent by a peer so far,
        mean · `bytes_total` by all · `wall_s` so far, of the slowest peer · `simulated_s` virtual seconds at which the
        last peer finished · `accuracy`, `accuracy_worst`, `accuracy_p5`, `accuracy_std`, `accuracy_jain` over the
        peers, fractions · `mean_model_accuracy` of the averaged model · `test_loss`, `train_loss` ·
        `consensus_distance` Ξ² after mixing and `neighbor_distance` before it, in squared units of the parameters ·
        `relative_distance` Ξ/‖x̄‖ · `peers` that finished the round.
        NaN where it was not measured in that round, or not at all.

    Raises:
        DataError: the run finished no round.
    """
    import pandas as pd

    rows = run.metrics
    if rows.empty:
        raise DataError("the run finished no round, so there is nothing to analyze")
    by_round = rows.groupby("round")
    found = pd.DataFrame(index=by_round.size().index)
    found["rounds"] = found.index + 1
    found["steps"] = _so_far(rows, "steps").mean(axis=1)
    sent = _so_far(rows, "bytes_sent")
    found["bytes"], found["bytes_total"] = sent.mean(axis=1), sent.sum(axis=1)
    found["wall_s"] = _so_far(rows, "wall_time_s").max(axis=1)
    found["simulated_s"] = by_round["simulated_time_s"].max().cummax()
    accuracy = by_round["test_accuracy"]
    found["accuracy"], found["accuracy_worst"] = accuracy.mean(), accuracy.min()
    found["accuracy_p5"], found["accuracy_std"] = accuracy.quantile(0.05), accuracy.std(ddof=0)
    found["accuracy_jain"] = accuracy.agg(lambda a: jain_index(a.dropna()))
    for name in ("test_loss", "train_loss", "consensus_distance", "neighbor_distance"):
        found[name] = by_round[name].mean()
    found["peers"] = by_round.size()
    if found["consensus_distance"].isna().all() and run.summary.get("consensus_distance") is not None:
        # A live network is seen whole only once, when its peers have handed in their last models.
        found.loc[found.index[-1], "consensus_distance"] = run.summary["consensus_distance"]
    return found.join(_of_the_average(run, found.index))


def _so_far(rows: "pd.DataFrame", column: str) -> "pd.DataFrame":
    """[rounds, peers] the sum up to each round; a peer that is away keeps what it had."""
    return (
        rows.pivot_table(index="round", columns="peer", values=column, aggfunc="sum", dropna=False).fillna(0).cumsum()
    )


def _of_the_average(run: Measured, index: "pd.Index[int]") -> "pd.DataFrame":
    """Accuracy and distance that need the averaged model, where somebody saw all models."""
    import pandas as pd

    names = ["mean_model_accuracy", "relative_distance"]
    rounds = getattr(run, "rounds", None)
    folder = getattr(run, "folder", None)
    if rounds is None and folder is not None and (folder / "rounds.csv").exists():
        rounds = pd.read_csv(folder / "rounds.csv")
    if not isinstance(rounds, pd.DataFrame):
        return pd.DataFrame(np.nan, index=index, columns=names)
    return rounds.drop_duplicates("round", keep="last").set_index("round").reindex(index=index, columns=names)


def final_accuracy(run: Measured) -> "pd.Series[float]":
    """The accuracy of the peers that were there at the last evaluation, by name, in the order of seats.

    Who crashed or left before does not count. Empty where nothing was evaluated.
    """
    rows = run.metrics.dropna(subset=["test_accuracy"])
    last: pd.Series[float] = rows[rows["round"] == rows["round"].max()].set_index("peer")["test_accuracy"]
    return last.reindex([name for name in members(run) if name in last.index])


def settled(values: "pd.Series[float]", part: float = 0.1) -> float:
    """Mean over the last part of the rounds that measured it: one round alone is noisy, and schedules take turns.

    Returns NaN where it was never measured.
    """
    known = values.dropna()
    return float(known.iloc[-max(1, round(part * len(known))) :].mean()) if len(known) else float("nan")


def to_target(curve: "pd.DataFrame", target: float, column: str = "accuracy") -> dict[str, float | None]:
    """What it cost until the mean over peers first reached the target.

    Between the last evaluation below the target and the first one at or above it, the cost is interpolated linearly in
    the figure. If the first evaluation is there already, its own cost is given.

    Args:
        curve: from `curves`.
        target: a fraction, above 0 and at most 1.
        column: whose curve, for example `mean_model_accuracy`.

    Returns:
        `rounds`, `steps`, `bytes` (sent by a peer, mean), `wall_s`, `simulated_s`; None where the target was never
        reached, or the cost was not measured.

    Raises:
        UsageError: the target is no fraction.
    """
    if not 0 < target <= 1:
        raise UsageError(f"the target {target:g} is not a fraction: give .9 for 90 %")
    measured = curve.dropna(subset=[column])
    values = measured[column].to_numpy()
    reached = np.flatnonzero(values >= target)
    if not len(reached):
        return dict.fromkeys(COSTS)
    after = int(reached[0])
    before = max(after - 1, 0)
    rise = values[after] - values[before]
    share = (target - values[before]) / rise if rise > 0 else 1.0
    costs: dict[str, float | None] = {}
    for name in COSTS:
        low, high = float(measured[name].iloc[before]), float(measured[name].iloc[after])
        cost = high if share == 1 else low + share * (high - low)
        costs[name] = None if np.isnan(cost) else float(cost)
    return costs


def volume(run: Measured) -> Volume:
    """What the peers sent, beside what the topology and the size of the model say they had to."""
    rows, edges = run.metrics, run.edges
    by_round = rows.groupby("round")["bytes_sent"].sum()
    by_peer = rows.groupby("peer")["bytes_sent"].sum().reindex(members(run)).fillna(0).astype(int)
    by_edge = edges.groupby(["from", "to"])["bytes"].sum().reset_index()
    busiest = (str(by_peer.idxmax()), int(by_peer.max())) if len(by_peer) else None
    return Volume(
        total=int(by_peer.sum()),
        by_peer=by_peer,
        by_edge=by_edge,
        by_round=by_round,
        busiest=busiest,
        analytic_per_round=_analytic(run, len(by_peer), len(by_round)),
    )


def parameters(run: Measured) -> int | None:
    """Numbers in the model, None where the run does not tell."""
    told = run.summary.get("parameters")
    if told is not None:
        return int(told)
    folder = getattr(run, "folder", None)
    saved = sorted((folder / "models").glob("*.safetensors")) if folder is not None else []
    if not saved:
        return None
    from safetensors import safe_open

    total = 0
    with safe_open(saved[0], framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118  # it is no dict
            total += int(np.prod(file.get_slice(name).get_shape()))
    return total


def shares_per_round(schedule: "Schedule", rounds: int) -> float:
    """Shares of all peers in a round: n · degree, averaged over a period, or over the rounds where each is drawn."""
    looked_at = max(1, schedule.period or rounds)
    return sum(len(schedule.at(round).arcs) for round in range(looked_at)) / looked_at


def _analytic(run: Measured, peers: int, rounds: int) -> float | None:
    size, schedule = parameters(run), schedule_of(run)
    if size is None or schedule is None or schedule.nodes != peers:
        return None
    return shares_per_round(schedule, rounds) * size * (8 if run.recipe.dtype == "float64" else 4)


def references(run: Measured) -> dict[str, float]:
    """Mean accuracy of the references the run has, of `alone`, `pooled` and `fedavg`, as fractions."""
    found: dict[str, float] = {}
    if not run.summary.get("accuracy"):
        return found  # a regression: its references are losses
    for name in REFERENCES:
        told = run.summary.get(name)
        if told and told.get("mean") is not None:
            found[name] = float(told["mean"])
    return found


def label_heterogeneity(run: Measured) -> Heterogeneity | None:
    """How uneven the split was; None where the run tells nothing of it."""
    try:
        partition = run.partition
    except DataError:  # peers that brought their own data
        return None
    counts = partition.pivot_table(index="peer", columns="label", values="count", aggfunc="sum", fill_value=0)
    table = counts.to_numpy(dtype=np.int64)
    table = table[table.sum(axis=1) > 0]
    if not len(table):
        return None
    labels = np.repeat(np.tile(np.arange(table.shape[1]), len(table)), table.ravel())
    ends = np.cumsum(table.sum(axis=1))
    parts = np.split(np.arange(len(labels), dtype=np.int64), ends[:-1])
    return heterogeneity(parts, labels if table.shape[1] > 1 else None)
