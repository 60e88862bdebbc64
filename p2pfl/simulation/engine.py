"""What an engine is: it carries a problem through its rounds and reports each one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from p2pfl.simulation.problem import Problem

Floats: TypeAlias = npt.NDArray[np.float64]  # [peers]; NaN where a peer has no such figure
Counts: TypeAlias = npt.NDArray[np.int64]  # [peers]


@dataclass(frozen=True)
class RoundReport:
    """One round of all peers, after mixing.

    Attributes:
        round: from 0.
        present: [peers] whether the peer finished this round; figures of the others mean nothing.
        arcs: [shares, 2] sender and receiver of every share that was received; bytes of each are `share_bytes`.
        consensus_distance: Ξ² = mean over the peers present of ‖x_i − x̄‖², in squared units of the parameters.
        norm: ‖x̄‖ of the averaged model.
        evaluated: whether the test figures below were measured in this round.
        mean_accuracy, mean_loss: of the averaged model on the test part.
    """

    round: int
    present: npt.NDArray[np.bool_]
    steps: Counts
    train_loss: Floats
    neighbors: Counts
    neighbor_distance: Floats
    arcs: npt.NDArray[np.int64]
    share_bytes: int
    bytes_sent: Counts
    bytes_received: Counts
    consensus_distance: float
    norm: float
    wall_s: float
    train_s: Floats
    wait_s: Floats
    mix_s: Floats
    simulated_time_s: Floats  # virtual seconds at which each peer finished the round; NaN where time is not simulated
    evaluated: bool = False
    test_loss: Floats | None = None
    test_accuracy: Floats | None = None
    mean_accuracy: float | None = None
    mean_loss: float | None = None
    metrics: Mapping[str, Floats] = field(default_factory=dict)


@dataclass(frozen=True)
class Begin:
    """Where a run begins, or goes on."""

    round: int
    vectors: torch.Tensor | None = None  # [peers, size]; None: all with the initial weights


@dataclass(frozen=True)
class Ending:
    """How a run ended."""

    vectors: torch.Tensor  # [peers, size], on the CPU, after the last whole round
    round: int  # rounds that are behind it
    failures: Mapping[str, int] = field(default_factory=dict)  # lost or refused shares by reason
    facts: Mapping[str, Any] = field(default_factory=dict)  # what the engine wants in the summary, as its best path


class Keeper(Protocol):
    """Who takes in what an engine reports."""

    def report(self, report: RoundReport) -> None:
        """A round is over; reports come in the order of rounds."""
        ...

    def keep(self, round: int, vectors: Callable[[], torch.Tensor]) -> None:
        """All peers are about to begin `round`, with these vectors [peers, size]; asked for only where one is due."""
        ...

    def warn(self, text: str) -> None:
        """Something a person should know that stops nothing: what fell back, and why."""
        ...

    @property
    def stopped(self) -> bool:
        """Whether to end after the round under way: the user asked for it."""
        ...


class Engine(Protocol):
    """Runs a problem."""

    def objection(self, problem: Problem) -> str:
        """Why this engine cannot run the problem, with the mend; empty where it can."""
        ...

    def run(self, problem: Problem, keeper: Keeper, begin: Begin) -> Ending:
        """All rounds of the recipe from `begin.round` on, or until the keeper says stop. Raises TrainingError."""
        ...
