"""The matrix engine: all peers' parameters are one array [peers, size], trained in blocks and mixed by sparse products.

It trains what live peers train, on the same examples in the same order, and mixes by their weights; what it rounds
otherwise stays within 1e-6 after a round in float32, and 1e-10 after twenty in float64. Rounds are in step and nothing
is lost: for time, loss and churn there is the event engine.
"""

import threading
import time
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from p2pfl.errors import UsageError
from p2pfl.graphs.topology import Topology
from p2pfl.layout import Layout, layout_of
from p2pfl.learning.learner import GENERATOR, choose_device
from p2pfl.simulation.batches import steps_of
from p2pfl.simulation.engine import Begin, Ending, Keeper, RoundReport
from p2pfl.simulation.mixing_rows import column_width
from p2pfl.simulation.problem import Problem
from p2pfl.simulation.station import FIGURES, Station
from p2pfl.simulation.steppers import PATHS, best_path, diverged
from p2pfl.simulation.workers import Task, Workers, can_fork, cores, one_thread, shared

_PIECES = 8  # tasks a worker gets in a phase, so that none waits long for the slowest
_STEP_S = {"stacked": 2e-5, "dense": 3e-5, "vectorized": 2e-4, "learners": 3e-4}  # a step's calls, about
_FLOPS = 5e10  # a core's, about
_WORTH_S = 0.03  # work of a round that is worth being handed out
_WORTH_ALL_S = 0.5  # and of the run
_RUNS = threading.RLock()  # runs set the threads of the whole process: one at a time


class MatrixEngine:
    """See `Engine`. Workers, device and dtype are the recipe's.

    `path` fixes how peers are trained, one of `steppers.PATHS`; None takes the fastest that fits the model.
    """

    def __init__(self, path: str | None = None) -> None:
        self._path = path

    def objection(self, problem: Problem) -> str:
        """See `Engine`."""
        recipe = problem.recipe
        for setting, value in (("loss_rate", recipe.loss_rate), ("churn", recipe.churn)):
            if value:
                return f"it loses no shares and no peers, and {setting} is {value}: take the event engine"
        empty = next((peer for peer, part in enumerate(problem.parts) if not len(part)), None)
        if empty is not None:
            return f"peer {empty} has no examples to train on: give every peer some"
        try:
            choose_device(recipe.device)
        except UsageError as error:
            return str(error)
        return ""

    def run(self, problem: Problem, keeper: Keeper, begin: Begin) -> Ending:
        """See `Engine`.

        Raises:
            TrainingError: a loss is not finite, or a worker process died.
            ModelError, TopologyError: what cannot be averaged.
        """
        with _RUNS, one_thread():
            return self._run(problem, keeper, begin)

    def _run(self, problem: Problem, keeper: Keeper, begin: Begin) -> Ending:
        recipe = problem.recipe
        device = torch.device(choose_device(recipe.device))
        dtype = torch.float64 if recipe.dtype == "float64" else torch.float32
        steps = np.array([steps_of(recipe, len(part)) for part in problem.parts], dtype=np.int64)
        # Modules draw as they are built. And in a forked child, a lock that another thread held stays locked for ever.
        with GENERATOR:
            module = problem.build().to(dtype)
            layout = layout_of(module)
            path, why = (self._path, "") if self._path is not None else best_path(problem, dtype, device)
            if path == "learners" and why:
                keeper.warn(f"the model is trained peer by peer, which is slower: {why}")
            workers = 1 if device.type != "cpu" else _workers(problem, path, layout, int(steps.sum()))
            sides = _sides(problem, layout, begin, workers, device)
            mean = _zeros((layout.size,), dtype, workers, device)
            figures = _zeros((problem.peers, len(FIGURES)), torch.float64, workers, torch.device("cpu"))
            at_once = max(1, problem.peers // (_PIECES * workers))
            station = Station(problem, path, sides, mean, figures, at_once)
            station.prepare(begin.round)
            working = Workers(station.methods, workers)
        with working as crew:
            rounds = _Rounds(problem, keeper, crew, station, sides, figures, layout, steps, path)
            side, done = rounds.run(begin.round)
        facts = {"path": path, "path_is": PATHS[path], "why": why, "workers": workers, "device": str(device)}
        return Ending(sides[side].cpu(), done, {}, facts)


class _Rounds:
    """The loop of rounds, which hands out its phases and reports what came of them."""

    def __init__(
        self,
        problem: Problem,
        keeper: Keeper,
        crew: Workers,
        station: Station,
        sides: tuple[torch.Tensor, torch.Tensor],
        figures: torch.Tensor,
        layout: Layout,
        steps: npt.NDArray[np.int64],
        path: str,
    ) -> None:
        self._problem, self._keeper, self._crew = problem, keeper, crew
        self._sides, self._figures, self._layout, self._steps = sides, figures, layout, steps
        self._blocks = len(station.blocks)
        self._settled = path == "learners"  # a learner stays with the worker that made it
        self._rows = _pieces(problem.peers, _PIECES * crew.count if crew.count > 1 else 1)
        width = column_width(problem.peers)
        blocks = _pieces(-(-layout.size // width), 2 * crew.count if crew.count > 1 else 1)
        self._columns = [(low * width, min(high * width, layout.size)) for low, high in blocks]
        self._shares = _Shares(problem, layout)

    def run(self, begin: int) -> tuple[int, int]:
        """All rounds from `begin` on; the side where the vectors are, and the rounds that are done."""
        recipe, side, done = self._problem.recipe, 0, begin
        for round in range(begin, recipe.rounds):
            at = side
            self._keeper.keep(round, lambda at=at: self._sides[at].cpu().clone())  # type: ignore[misc]  # mypy cannot tell the type of a lambda's default
            begun = time.perf_counter()
            side = self._exchange(round, self._train(round, side))
            done = round + 1
            last = self._keeper.stopped or done == recipe.rounds
            evaluated = self._problem.test is not None and (last or done % recipe.evaluate_every == 0)
            self._report(round, side, begun, evaluated)
            if last:
                break
        return side, done

    def _train(self, round: int, side: int) -> int:
        self._crew.do([("train", (round, side, block)) for block in range(self._blocks)], settled=self._settled)
        losses = self._column("train_loss")
        bad = np.flatnonzero(~np.isfinite(losses))
        if len(bad):
            raise diverged(float(losses[bad[0]]), int(bad[0]), round)
        return side

    def _exchange(self, round: int, side: int) -> int:
        """Average as the algorithm says; the side on which the vectors are then."""
        algorithm = self._problem.recipe.algorithm
        if algorithm == "fedavg":
            self._crew.do([("level", (side, low, high)) for low, high in self._columns])
        elif self._shares.mixes:
            self._crew.do([("mix", (round, side, low, high)) for low, high in self._rows])
            return 1 - side
        return side

    def _report(self, round: int, side: int, begun: float, evaluated: bool) -> None:
        apart, norm = np.array(
            self._crew.do([("measure", (side, low, high)) for low, high in self._columns]), dtype=np.float64
        ).sum(axis=0)
        peers = self._problem.peers
        mean_loss = mean_accuracy = None
        if evaluated:
            tasks: list[Task] = [("evaluate_mean", ()), *(("evaluate", (side, *rows)) for rows in self._rows)]
            mean_loss, mean_accuracy = self._crew.do(tasks)[0]
        arcs, sent, received = self._shares.at(round)
        share = self._layout.framed_bytes
        nothing = np.full(peers, np.nan)
        mixed = self._shares.mixes
        self._keeper.report(
            RoundReport(
                round=round,
                present=np.ones(peers, dtype=np.bool_),
                steps=self._steps,
                train_loss=self._column("train_loss"),
                neighbors=received,
                neighbor_distance=self._column("neighbor_distance") if mixed else nothing,
                arcs=arcs,
                share_bytes=share,
                bytes_sent=sent * share,
                bytes_received=received * share,
                consensus_distance=float(apart) / peers,
                norm=float(np.sqrt(norm)),
                wall_s=time.perf_counter() - begun,
                train_s=self._column("train_s"),
                wait_s=np.zeros(peers),
                mix_s=self._column("mix_s") if mixed else np.zeros(peers),
                simulated_time_s=nothing,
                evaluated=evaluated,
                test_loss=self._column("test_loss") if evaluated else None,
                test_accuracy=self._column("test_accuracy") if evaluated else None,
                mean_accuracy=None if mean_accuracy is None or np.isnan(mean_accuracy) else mean_accuracy,
                mean_loss=None if mean_loss is None or np.isnan(mean_loss) else mean_loss,
            )
        )

    def _column(self, name: str) -> npt.NDArray[np.float64]:
        return self._figures[:, FIGURES.index(name)].numpy().copy()


class _Shares:
    """Who sends to whom in a round."""

    def __init__(self, problem: Problem, layout: Layout) -> None:
        self._problem = problem
        self.mixes = problem.recipe.algorithm == "d-psgd" and problem.peers > 1

    def at(self, round: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Arcs [shares, 2], and how many shares each peer sends and receives."""
        peers = self._problem.peers
        if not self.mixes:
            none = np.zeros(peers, dtype=np.int64)
            return np.zeros((0, 2), dtype=np.int64), none, none
        topology: Topology = self._problem.schedule.at(round)
        arcs = topology.arc_array
        return arcs, np.bincount(arcs[:, 0], minlength=peers), np.bincount(arcs[:, 1], minlength=peers)


def _workers(problem: Problem, path: str, layout: Layout, steps: int) -> int:
    """How many processes are worth it."""
    asked = problem.recipe.workers
    most = min(asked or cores(), problem.peers)
    # Where autograd has started threads for a GPU, a forked process cannot use it.
    if most == 1 or not can_fork() or (path not in ("dense", "stacked") and torch.cuda.is_available()):
        return 1
    if asked:
        return most
    round_s = steps * (_STEP_S[path] + 6 * problem.recipe.batch_size * layout.size / _FLOPS)
    return most if round_s >= _WORTH_S and round_s * problem.recipe.rounds >= _WORTH_ALL_S else 1


def _sides(
    problem: Problem, layout: Layout, begin: Begin, workers: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two arrays, the first filled; the same one twice where nothing is mixed."""
    shape = (problem.peers, layout.size)
    first = _zeros(shape, layout.torch_dtype, workers, device)
    if begin.vectors is not None:
        first.copy_(begin.vectors)
    else:
        parameters = problem.build().to(layout.torch_dtype).parameters()
        first[:] = torch.cat([parameter.detach().reshape(-1) for parameter in parameters]).to(device)
    mixes = problem.recipe.algorithm == "d-psgd" and problem.peers > 1
    return first, _zeros(shape, layout.torch_dtype, workers, device) if mixes else first


def _zeros(shape: Sequence[int], dtype: torch.dtype, workers: int, device: torch.device) -> torch.Tensor:
    """Shared where somebody else looks."""
    return shared(shape, dtype) if workers > 1 else torch.zeros(tuple(shape), dtype=dtype, device=device)


def _pieces(count: int, pieces: int) -> list[tuple[int, int]]:
    """0 … count in so many ranges, or as many as there are."""
    ends = np.linspace(0, count, min(pieces, count) + 1).astype(int).tolist()
    return list(pairwise(ends))
