"""Training and mixing put off until a round is over, so that all peers' can be done as one batch.

What happens when in virtual time depends on no number in any model. So a peer's training is only noted down when it
begins, and so is its mixing; the vectors that go from peer to peer are rows of matrices that are filled in later, round
by round: all trainings of a round, then all its mixings. Nobody looks into a row before that.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from p2pfl.errors import TrainingError
from p2pfl.layout import Layout, Vector
from p2pfl.learning.learner import Evaluation
from p2pfl.mixing import is_finite, mix
from p2pfl.protocol.participant import Mix
from p2pfl.simulation.engine import Floats

_ROUNDS_PUT_OFF = 6  # of a peer that far behind nobody waits any more


@dataclass(frozen=True)
class Task:
    """Training of one peer for one round."""

    peer: int
    vector: Vector  # to begin with
    steps: int
    out: Vector


class Trainer(Protocol):
    """Trains and evaluates peers."""

    @property
    def layout(self) -> Layout:
        """How a model lies in its vector."""
        ...

    def train(self, round: int, tasks: Sequence[Task]) -> Sequence[float]:
        """Write what training makes of each vector to its `out`; the mean training loss of each."""
        ...

    def evaluate(self, peers: Sequence[int], vectors: torch.Tensor) -> list[Evaluation]:
        """Evaluate vectors [k, size] of these peers on the test part."""
        ...


@dataclass
class _Round:
    """What is noted down for one round, and the matrices [peers, size] that it goes to."""

    trained: tuple[Vector, ...]
    mixed_whole: torch.Tensor
    mixed: tuple[Vector, ...]
    loss: Floats
    distance: Floats  # mean squared distance to the neighbors' shares
    tasks: list[Task] = field(default_factory=list)
    mixes: list[tuple[int, Mix]] = field(default_factory=list)


class Deferred:
    """The work of all peers."""

    def __init__(self, trainer: Trainer, peers: int, batched: bool) -> None:
        self._trainer = trainer
        self._peers = peers
        self._batched = batched
        self._dtype = trainer.layout.torch_dtype
        self._rounds: dict[int, _Round] = {}

    def train(self, round: int, peer: int, vector: Vector, steps: int) -> Vector:
        """Note a training down; returns the row that will hold its result."""
        work = self._round(round)
        out = work.trained[peer]
        work.tasks.append(Task(peer, vector, steps, out))
        return out

    def mix(self, peer: int, effect: Mix) -> Vector:
        """Note a mixing down; returns the row that will hold its result."""
        work = self._round(effect.round)
        work.mixes.append((peer, effect))
        return work.mixed[peer]

    def complete(self, round: int) -> None:
        """Do all that was noted down for rounds up to this one. Raises TrainingError."""
        for number in sorted(number for number in self._rounds if number <= round):
            work = self._rounds[number]
            # In the order of peers, whatever the order in which things happened.
            tasks, work.tasks = sorted(work.tasks, key=lambda task: task.peer), []
            mixes, work.mixes = sorted(work.mixes, key=lambda one: one[0]), []
            if tasks:
                self._train(number, work, tasks)
            for peer, effect in () if self._batched else mixes:
                distance = mix(effect.own, effect.own_weight, effect.received, work.mixed[peer])
                work.distance[peer] = np.nan if distance is None else distance
            if self._batched:
                _mix_together(work, mixes)

    def losses(self, round: int) -> Floats:
        """[peers] mean training loss of a round; NaN where a peer did not train."""
        return self._round(round).loss

    def distances(self, round: int) -> Floats:
        """[peers] mean squared distance of each peer to its neighbors' shares; NaN where none came."""
        return self._round(round).distance

    def models(self, round: int) -> torch.Tensor:
        """[peers, size] the models after a round; rows of peers that did not finish it mean nothing."""
        return self._round(round).mixed_whole

    def forget(self, round: int) -> None:
        """Let go of a round; its rows live on where somebody holds them."""
        self._rounds.pop(round, None)

    def _train(self, round: int, work: _Round, tasks: list[Task]) -> None:
        losses = self._trainer.train(round, tasks)
        peers = [task.peer for task in tasks]
        work.loss[peers] = losses
        for task, loss in zip(tasks, losses, strict=True):
            if not np.isfinite(loss) or not is_finite(task.out):
                what = "training loss" if not np.isfinite(loss) else "model"
                raise TrainingError(
                    f"the {what} of peer {task.peer} is not finite after round {round}; lower lr, or look at the data"
                )

    def _round(self, round: int) -> _Round:
        work = self._rounds.get(round)
        if work is None:
            self.complete(round - _ROUNDS_PUT_OFF)
            shape = (self._peers, self._trainer.layout.size)
            trained, mixed = torch.empty(shape, dtype=self._dtype), torch.empty(shape, dtype=self._dtype)
            loss, distance = np.full(self._peers, np.nan), np.full(self._peers, np.nan)
            work = self._rounds[round] = _Round(trained.unbind(0), mixed, mixed.unbind(0), loss, distance)
        return work


def _mix_together(work: _Round, mixes: Sequence[tuple[int, Mix]]) -> None:
    """As `mixing.mix`, to the bit, of many at once: multiply, then add, self first, then by seat."""
    by_count: dict[int, list[tuple[int, Mix]]] = {}
    for one in mixes:
        by_count.setdefault(len(one[1].received), []).append(one)
    for count, alike in by_count.items():
        size = max(1, (1 << 18) // work.mixed_whole.shape[1])
        for begin in range(0, len(alike), size):
            _mix_alike(work, alike[begin : begin + size], count)


def _mix_alike(work: _Round, mixes: Sequence[tuple[int, Mix]], count: int) -> None:
    dtype = work.mixed_whole.dtype
    own = torch.stack([effect.own for _, effect in mixes])
    mixed = own * torch.tensor([effect.own_weight for _, effect in mixes], dtype=dtype)[:, None]
    squared = torch.zeros(len(mixes), dtype=dtype)
    product = torch.empty_like(own)
    for slot in range(count):
        theirs = torch.stack([effect.received[slot][1] for _, effect in mixes])
        weights = torch.tensor([effect.received[slot][0] for _, effect in mixes], dtype=dtype)
        torch.sub(own, theirs, out=product)
        squared += torch.linalg.vecdot(product, product)
        mixed += theirs.mul_(weights[:, None])
    peers = [peer for peer, _ in mixes]
    work.mixed_whole.index_copy_(0, torch.tensor(peers), mixed)
    if count:
        work.distance[peers] = (squared.double() / count).numpy()
