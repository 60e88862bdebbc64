"""The scalars engine: peers that hold one number each and only average, up to a million of them.

Consensus is all there is to see: how fast a scheme or topology agrees, and what failures cost it. In every round a peer
fails with a given probability, apart from all others and from other rounds.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from p2pfl.errors import UsageError
from p2pfl.graphs.schedule import Schedule
from p2pfl.graphs.topology import Topology
from p2pfl.graphs.weighting import weighted
from p2pfl.keys import random_key
from p2pfl.recipe import Recipe
from p2pfl.simulation.schemes import Draws, Floats, Scheme, needs_topology, scheme
from p2pfl.topology_files import load_schedule

if TYPE_CHECKING:
    import pandas as pd

THRESHOLDS = (1e-4, 1e-9)  # of the variance: those of the published table
_AT_ONCE = 1 << 20  # numbers a batch of restarts holds: what one core's caches and a laptop's memory like


@dataclass(frozen=True)
class Averaging:
    """What came of averaging, of every restart and round.

    Attributes:
        scheme, topology: as they are spelled; no topology where the scheme has none.
        peers: how many numbers were averaged.
        failure: probability with which a peer fails in a round.
        seed: of all random draws.
        variance: [restarts, rounds + 1] (1/n) Σ (x_i − x̄)² of what the peers hold, Ξ² of one number; column 0 is before
            the first round. NaN in rounds that a restart did not need.
        error: [restarts, rounds + 1] (1/n) Σ (x_i − a)², where a is the average the peers began with.
        values: [restarts, peers] what each peer takes the average to be, at the end.
        wall_s: seconds it took, building included.
    """

    scheme: str
    topology: str
    peers: int
    failure: float
    seed: int
    variance: Floats
    error: Floats
    values: Floats
    wall_s: float

    @property
    def restarts(self) -> int:
        """How often it was begun anew."""
        return len(self.variance)

    @property
    def rounds(self) -> int:
        """How many there were at most."""
        return int(self.variance.shape[1]) - 1

    def rounds_below(self, threshold: float) -> npt.NDArray[np.int64]:
        """[restarts] rounds until the variance was first below; those that never came there count all rounds."""
        below = self.variance < threshold
        return np.where(below.any(axis=1), below.argmax(axis=1), self.rounds)

    def contraction(self, round: int = 0) -> npt.NDArray[np.float64]:
        """[restarts] the variance after a round, from 0, over that before it; NaN where there was none left."""
        before, after = self.variance[:, round], self.variance[:, round + 1]
        ratios: npt.NDArray[np.float64] = np.divide(after, before, out=np.full(self.restarts, np.nan), where=before > 0)
        return ratios

    @cached_property
    def metrics(self) -> "pd.DataFrame":
        """A row for each restart and round that was run: restart, round (0: before the first), variance, error."""
        import pandas as pd

        restart, round = np.nonzero(np.isfinite(self.variance))
        return pd.DataFrame(
            {
                "restart": restart,
                "round": round,
                "variance": self.variance[restart, round],
                "error": self.error[restart, round],
            }
        )

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What `--json` prints: the keys of every run's summary, and the figures of averaging over the restarts."""
        last = np.isfinite(self.variance).sum(axis=1) - 1
        each = np.arange(self.restarts)
        return {
            "peers": self.peers,
            "rounds": self.rounds,
            "topology": self.topology or None,
            "algorithm": self.scheme,
            "seed": self.seed,
            "wall_s": self.wall_s,
            "accuracy": None,
            "alone": None,
            "pooled": None,
            "consensus_distance": float(self.variance[each, last].mean()),
            "bytes_sent": None,
            "bytes_received": None,
            "failures": {},
            "engine": "scalars",
            "failure": self.failure,
            "restarts": self.restarts,
            "error": float(self.error[each, last].mean()),
            "rounds_below": {f"{threshold:g}": self._reaching(threshold) for threshold in THRESHOLDS},
        }

    def _reaching(self, threshold: float) -> Mapping[str, float | None]:
        rounds = self.rounds_below(threshold)
        spread = float(rounds.std(ddof=1) / np.sqrt(self.restarts)) if self.restarts > 1 else None
        reached = float((self.variance < threshold).any(axis=1).mean())
        return {"mean": float(rounds.mean()), "standard_error": spread, "reached": reached}


def average(
    spec: str = "gossip",
    topology: str | Topology | Schedule = "ring",
    *,
    peers: int,
    rounds: int = 100,
    values: npt.ArrayLike | None = None,
    failure: float = 0.0,
    restarts: int = 1,
    seed: int = 0,
    mixing: str = "auto",
    until: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> Averaging:
    """Average one number a peer.

    Args:
        spec: the scheme: gossip, push-sum, groups:size=32, moshpit:size=32,dims=2 or all-reduce.
        topology: who shares with whom in gossip and push-sum; a name, a file, a topology or a schedule.
        peers: how many.
        rounds: at most.
        values: [peers] or [restarts, peers] to begin with; N(0, 1) drawn for each restart unless given.
        failure: probability with which a peer fails in a round, from 0 to 1: in all-reduce one failure voids the round
            for all; elsewhere who fails sits out, and the weight of what is missing stays with who misses it.
        restarts: how often, each with draws of its own; restart k draws the same however many there are.
        seed: of all random draws.
        mixing: weights of gossip by name.
        until: a restart ends once its variance is below; 0 runs all rounds.
        progress: told the rounds that are behind, and all there are.

    Raises:
        UsageError: no such scheme, or values, probability or counts that cannot be.
        TopologyError: no such topology, or one that gossip cannot run on.
    """
    _check(peers, rounds, failure, restarts, until)
    begun = time.perf_counter()
    chosen = _schedule(topology, peers, seed, mixing) if needs_topology(spec) else None
    built = scheme(spec, peers, chosen)
    given = None if values is None else _given(values, restarts, peers)
    batch = max(1, _AT_ONCE // peers)
    variance = np.full((restarts, rounds + 1), np.nan)
    error = np.full((restarts, rounds + 1), np.nan)
    ends = np.empty((restarts, peers))
    for first in range(0, restarts, batch):
        some = range(first, min(first + batch, restarts))
        at = slice(some.start, some.stop)
        begin = _drawn(some, peers, seed) if given is None else given[at].copy()
        told = None if progress is None else _told(progress, first, len(some), rounds, restarts)
        _run(built, begin, some, failure, seed, until, variance[at], error[at], ends[at], told)
    return Averaging(
        scheme=built.name,
        topology="" if chosen is None else chosen.name,
        peers=peers,
        failure=failure,
        seed=seed,
        variance=variance,
        error=error,
        values=ends,
        wall_s=time.perf_counter() - begun,
    )


def run_scalars(
    recipe: Recipe,
    scheme: str = "gossip",
    failure: float = 0.0,
    restarts: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Averaging:
    """The recipe's peers, rounds, topology, mixing and seed, with nothing to train. Raises as `average`."""
    topology: str | Schedule = "ring"
    if needs_topology(scheme):
        topology = _schedule(recipe.topology, recipe.peers, recipe.seed_of("topology"), recipe.mixing)
    return average(
        scheme,
        topology,
        peers=recipe.peers,
        rounds=recipe.rounds,
        failure=failure,
        restarts=restarts,
        seed=recipe.seed,
        progress=progress,
    )


def _run(
    scheme: Scheme,
    values: Floats,
    restarts: range,
    failure: float,
    seed: int,
    until: float,
    variance: Floats,
    error: Floats,
    ends: Floats,
    progress: Callable[[int], None] | None,
) -> None:
    """Carry some restarts through all rounds, and write their figures to the rows given."""
    failures, draws = _generators(seed, "failures", restarts), _generators(seed, "scheme", restarts)
    aims = values.mean(axis=1)
    rows = np.arange(len(restarts))  # of the restarts that still run
    state = scheme.begin(values, draws)
    for round in range(variance.shape[1]):
        held = scheme.read(state)
        variance[rows, round], error[rows, round] = _figures(held, aims[rows])
        left = variance[rows, round] >= until
        if round == variance.shape[1] - 1 or not left.all():
            ends[rows] = held
        if not left.all():
            state = {name: array[left] for name, array in state.items()}
            rows = rows[left]
        if progress is not None:
            progress(round)
        if round == variance.shape[1] - 1 or not len(rows):
            return
        alive = None
        if failure > 0:
            alive = np.stack([failures[row].random(values.shape[1]) >= failure for row in rows.tolist()])
        state = scheme.step(state, round, alive, [draws[row] for row in rows.tolist()])


def _figures(values: Floats, aims: npt.NDArray[np.float64]) -> tuple[Floats, Floats]:
    """Variance and squared error of each row; the mean square about a is the variance plus (x̄ − a)²."""
    means = values.mean(axis=1)
    apart = values - means[:, None]
    variance = np.einsum("ij,ij->i", apart, apart) / values.shape[1]
    return variance, variance + (means - aims) ** 2


def _generators(seed: int, purpose: str, restarts: range) -> Draws:
    return [np.random.default_rng(random_key(seed, f"averaging {purpose}", restart)) for restart in restarts]


def _drawn(restarts: range, peers: int, seed: int) -> Floats:
    return np.stack([draw.standard_normal(peers) for draw in _generators(seed, "values", restarts)])


def _told(
    progress: Callable[[int, int], None], first: int, some: int, rounds: int, restarts: int
) -> Callable[[int], None]:
    return lambda round: progress(first * rounds + some * round, restarts * rounds)


def _schedule(topology: str | Topology | Schedule, peers: int, seed: int, mixing: str) -> Schedule:
    return weighted(load_schedule(topology, peers, seed), mixing)


def _given(values: npt.ArrayLike, restarts: int, peers: int) -> Floats:
    """[restarts, peers], read only."""
    array = np.asarray(values, dtype=np.float64)
    if array.shape not in ((peers,), (restarts, peers)):
        raise UsageError(f"values have the shape {list(array.shape)}; give [{peers}] or [{restarts}, {peers}]")
    if not np.isfinite(array).all():
        raise UsageError("values are not all finite numbers")
    return np.broadcast_to(array, (restarts, peers))


def _check(peers: int, rounds: int, failure: float, restarts: int, until: float) -> None:
    for name, count in (("peers", peers), ("rounds", rounds), ("restarts", restarts)):
        if count < 1:
            raise UsageError(f"{name} is {count}; give at least 1")
    if not 0 <= failure <= 1:
        raise UsageError(f"failure is {failure:g}; it is a probability, from 0 to 1")
    if not until >= 0:
        raise UsageError(f"until is {until:g}; it is a variance, at least 0")
