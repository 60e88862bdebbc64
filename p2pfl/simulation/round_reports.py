"""What the peers tell of their rounds, put together to one report a round once nobody is in it any more."""

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import torch

from p2pfl.events import RoundFinished, RunEvent, ShareRejected, Sink
from p2pfl.learning.learner import Evaluation
from p2pfl.simulation.deferred import Deferred, Trainer
from p2pfl.simulation.engine import Counts, Floats, RoundReport
from p2pfl.types import PeerId


class RoundReports:
    """Takes the events of all peers, counts refused shares, and knows the latest model of every peer.

    A sink gets every event in the order in which it happened, with the virtual time; those from a finished round on
    wait until its numbers are there.
    """

    def __init__(
        self,
        work: Deferred,
        trainer: Trainer,
        index: dict[PeerId, int],
        vectors: torch.Tensor,
        share_bytes: int,
        sink: Sink | None,
    ) -> None:
        """Begin.

        Args:
            index: of every peer.
            vectors: [peers, size] with which the first round begins.
        """
        self._work = work
        self._trainer = trainer
        self._index = index
        self._share_bytes = share_bytes
        self._sink = sink
        self._finished: dict[int, dict[int, tuple[RoundFinished, float]]] = {}  # round -> peer
        self._parties: dict[int, dict[int, tuple[PeerId, ...]]] = {}  # whose shares a peer mixed in
        self._uploads: dict[int, Counts] = {}  # round -> bodies that each peer sent
        self._queue: deque[RunEvent] = deque()
        self._whole: dict[tuple[PeerId, int], RoundFinished] = {}  # with the numbers that came later
        self._since = time.perf_counter()
        self.vectors = vectors  # after the last round that is over
        self.failures: Counter[str] = Counter()

    def event(self, event: RunEvent, now: float) -> None:
        """Take an event of a peer."""
        if isinstance(event, RoundFinished):
            self._finished.setdefault(event.round, {})[self._index[event.peer]] = (event, now)
        elif isinstance(event, ShareRejected):
            self.failures[event.reason] += 1
        if self._sink is not None:
            self._queue.append(msgspec.structs.replace(event, time_s=now))

    def mixed(self, round: int, peer: int, parties: tuple[PeerId, ...]) -> None:
        """Note whose shares a peer took in."""
        self._parties.setdefault(round, {})[peer] = parties

    def sent(self, round: int, peer: int) -> None:
        """Note that a peer sent a body: it costs its bytes whether it arrives or not, and every time it is fetched."""
        self._uploads.setdefault(round, np.zeros(len(self._index), dtype=np.int64))[peer] += 1

    def close(self, round: int, evaluate: bool, mean: Callable[[torch.Tensor], Evaluation]) -> RoundReport:
        """Do the round's work and report it.

        Args:
            mean: evaluates the averaged model.

        Raises:
            TrainingError: a loss or a model is not finite.
        """
        self._work.complete(round)
        finished = self._finished.pop(round, {})
        parties = self._parties.pop(round, {})
        peers = sorted(finished)
        models = self._work.models(round)
        if len(peers) == len(self._index):
            self.vectors = models
        else:
            self.vectors = self.vectors.clone()
            self.vectors[peers] = models[peers]
            models = models[peers]
        losses, distances = self._work.losses(round), self._work.distances(round)
        average = models.mean(0, dtype=torch.float64)
        there = np.zeros(len(self._index), dtype=np.bool_)
        there[peers] = True
        found = dict(zip(peers, self._trainer.evaluate(peers, models), strict=True)) if evaluate else {}
        arcs = [(self._index[other], peer) for peer in peers for other in parties.get(peer, ())]
        links = np.array(arcs, dtype=np.int64).reshape(-1, 2)
        received = np.bincount(links[:, 1], minlength=len(there)) * self._share_bytes
        # What was fetched of earlier rounds after they were over counts here.
        over = [number for number in self._uploads if number <= round]
        sent = sum((self._uploads.pop(number) for number in over), np.zeros_like(received)) * self._share_bytes

        def figures(of: Callable[[RoundFinished, float], float]) -> Floats:
            values = np.full(len(there), np.nan)
            values[peers] = [of(*finished[peer]) for peer in peers]
            return values

        of_mean = mean(average.to(models.dtype)) if evaluate and peers else Evaluation()
        wall = time.perf_counter()
        report = RoundReport(
            round=round,
            present=there,
            steps=np.nan_to_num(figures(lambda event, _: event.steps)).astype(np.int64),
            train_loss=np.where(there, losses, np.nan),
            neighbors=np.nan_to_num(figures(lambda event, _: event.neighbors)).astype(np.int64),
            neighbor_distance=np.where(there, distances, np.nan),
            arcs=links,
            share_bytes=self._share_bytes,
            bytes_sent=sent,
            bytes_received=received,
            consensus_distance=_consensus_distance(models, average),
            norm=float(torch.linalg.vector_norm(average)),
            wall_s=wall - self._since,
            train_s=figures(lambda event, _: event.train_s),
            wait_s=figures(lambda event, _: event.wait_s),
            mix_s=figures(lambda event, _: event.mix_s),
            simulated_time_s=figures(lambda _, when: when),
            evaluated=bool(found),
            test_loss=self._tested(found, lambda one: one.loss) if found else None,
            test_accuracy=self._tested(found, lambda one: one.accuracy) if found else None,
            mean_accuracy=of_mean.accuracy,
            mean_loss=of_mean.loss,
            metrics={
                name: self._tested(found, lambda one, name=name: one.metrics[name])  # type: ignore[misc]  # mypy cannot infer a lambda with a default
                for name in (found[peers[0]].metrics if found else ())
            },
        )
        self._since = wall
        self._work.forget(round)
        if self._sink is not None:
            self._fill_in(finished, losses, distances, found, report)
            self.release()
        return report

    def release(self, end: bool = False) -> None:
        """Hand on the events up to the first finished round whose numbers are still to come; at the end, all."""
        while self._sink is not None and self._queue:
            event = self._queue[0]
            if isinstance(event, RoundFinished):
                whole = self._whole.pop((event.peer, event.round), None)
                if whole is None and not end:
                    return
                event = whole or event
            self._queue.popleft()
            self._sink(event)

    def _tested(self, found: dict[int, Evaluation], of: Callable[[Evaluation], float | None]) -> Floats:
        values = np.full(len(self._index), np.nan)
        for peer, evaluation in found.items():
            value = of(evaluation)
            values[peer] = np.nan if value is None else value
        return values

    def _fill_in(
        self,
        finished: dict[int, tuple[RoundFinished, float]],
        losses: Floats,
        distances: Floats,
        found: dict[int, Evaluation],
        report: RoundReport,
    ) -> None:
        for peer, (event, now) in finished.items():
            evaluation = found.get(peer, Evaluation())
            self._whole[event.peer, event.round] = msgspec.structs.replace(
                event,
                time_s=now,
                train_loss=_number(losses[peer]),
                neighbor_distance=_number(distances[peer]),
                test_loss=evaluation.loss,
                test_accuracy=evaluation.accuracy,
                metrics=dict(evaluation.metrics),
                bytes_sent=int(report.bytes_sent[peer]),
                bytes_received=int(report.bytes_received[peer]),
            )


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _consensus_distance(models: torch.Tensor, average: torch.Tensor) -> float:
    """Ξ² of models [k, size] around their average, NaN of none."""
    total = 0.0
    blocks: Sequence[torch.Tensor] = torch.split(models, max(1, (1 << 20) // models.shape[1])) if len(models) else ()
    for block in blocks:
        total += float((block.double() - average).square().sum())
    return total / len(models) if len(models) else float("nan")
