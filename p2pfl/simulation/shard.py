"""A shard: some peers of a simulation, in a process that has their rows of the array of all vectors and no others.

It trains, mixes and evaluates with the matrix engine's own functions, on the same blocks and in the same order, so that
a peer's numbers do not depend on where it is. Who hears whom comes with each mixing: a shard knows no topology.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from torch import nn

from p2pfl.graphs.mixing import mixing_csr
from p2pfl.graphs.schedule import Schedule
from p2pfl.graphs.topology import Topology
from p2pfl.layout import layout_of
from p2pfl.learning.examples import Data, Examples
from p2pfl.learning.learner import Loss
from p2pfl.partition import Indices
from p2pfl.recipe import Recipe
from p2pfl.simulation.mixing_rows import RowMixing
from p2pfl.simulation.problem import Problem
from p2pfl.simulation.station import Examiner
from p2pfl.simulation.steppers import stepper_for

Rows = npt.NDArray[np.float32] | npt.NDArray[np.float64]  # [k, size]
Floats = npt.NDArray[np.float64]
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Piece:
    """What a shard needs of a problem, as it travels to another machine.

    Attributes:
        peers: whose, ascending.
        blocks: the same peers, those together that are trained as one.
        data: their training examples alone.
        parts: positions in these of every peer of the simulation; of the others', a stand-in.
        module: with the initial weights.
    """

    recipe: Recipe
    peers: tuple[int, ...]
    blocks: tuple[tuple[int, ...], ...]
    path: str
    data: Data
    parts: tuple[Indices, ...]
    module: nn.Module
    loss: Loss | None


@dataclass(frozen=True)
class Neighborhood:
    """What a shard needs to mix: its peers come first, in order, then those of other shards that they hear.

    Attributes:
        weights: [own + foreign, own + foreign], rows of its own peers only; each row in the order of all peers.
        links: [k, 2] receiver and sender, by the same numbers.
        foreign: the peers of other shards, ascending.
        dense: whether most peers hear most others.
    """

    weights: csr_array
    links: npt.NDArray[np.int64]
    foreign: Indices
    dense: bool


def piece_of(problem: Problem, blocks: Sequence[Sequence[int]], path: str, module: nn.Module) -> Piece:
    """The piece of a problem that these blocks of peers need."""
    peers = tuple(sorted(peer for block in blocks for peer in block))
    mine = np.unique(np.concatenate([problem.parts[peer] for peer in peers]))
    train = problem.data.train.subset(torch.from_numpy(mine))
    parts = [np.zeros(1, dtype=np.int64)] * problem.peers
    for peer in peers:
        parts[peer] = np.searchsorted(mine, problem.parts[peer])
    data = replace(problem.data, train=train, test=problem.test or train)
    return Piece(problem.recipe, peers, tuple(map(tuple, blocks)), path, data, tuple(parts), module, problem.loss)


def neighborhood(topology: Topology, peers: Sequence[int], dtype: torch.dtype) -> Neighborhood:
    """What these peers, ascending, hear. Raises TopologyError where there are no weights."""
    weights = mixing_csr(topology)
    own = np.array(peers, dtype=np.int64)
    rows = weights[own]
    foreign = np.setdiff1d(rows.indices, own)
    number = np.full(topology.nodes, -1, dtype=np.int64)
    number[own] = np.arange(len(own))
    number[foreign] = len(own) + np.arange(len(foreign))
    count = len(own) + len(foreign)
    starts = np.concatenate([rows.indptr, np.full(len(foreign), rows.indptr[-1])])
    # Columns get other numbers but keep their order: a sum in another order would have other bits. And they get the
    # dtype here, since scipy sorts the columns of a matrix whose dtype is changed.
    data = rows.data.astype(np.float32 if dtype == torch.float32 else np.float64)
    local = csr_array((data, number[rows.indices], starts), shape=(count, count))
    links = topology.links[np.isin(topology.links[:, 0], own)]
    return Neighborhood(local, number[links], foreign, RowMixing.is_dense(weights))


class Shard:
    """Some peers. `vectors` are [own + foreign, size]; the foreign rows are as they were last received."""

    def __init__(self, piece: Piece, test: Examples | None, begin: Rows | None) -> None:
        """Set up.

        Args:
            test: what every peer is evaluated on.
            begin: [own, size] vectors to go on with; None begins with the initial weights.
        """
        torch.set_num_threads(1)
        self._peers = piece.peers
        self._at = {peer: position for position, peer in enumerate(piece.peers)}
        self._blocks = piece.blocks
        nowhere = Schedule.of(Topology("shard", 1, ()))
        self._problem = Problem(
            piece.recipe,
            piece.data,
            piece.parts,
            test,
            nowhere,
            lambda: copy.deepcopy(piece.module),
            piece.loss,
            tuple(map(str, range(len(piece.parts)))),
        )
        self._dtype = layout_of(piece.module).torch_dtype
        self._stepper = stepper_for(piece.path, self._problem, self._dtype, _CPU)
        self._examiner = Examiner(self._problem, self._dtype, _CPU) if test is not None else None
        self._mixings: dict[int, tuple[RowMixing, int]] = {}
        first = torch.cat([parameter.detach().reshape(-1) for parameter in piece.module.parameters()])
        self._vectors = first.repeat(len(piece.peers), 1)
        if begin is not None:
            self._own.numpy()[:] = begin
        self._mixed = torch.empty_like(self._vectors)

    @property
    def _own(self) -> torch.Tensor:
        return self._vectors[: len(self._peers)]

    def ready(self) -> bool:
        """Whether it is set up: an answer says so."""
        return True

    def train(self, round: int) -> tuple[Floats, Floats]:
        """Train every peer for a round; [own] losses and seconds. Raises TrainingError, ModelError."""
        losses, seconds = np.empty(len(self._peers)), np.empty(len(self._peers))
        for block in self._blocks:
            at = [self._at[peer] for peer in block]
            begun = time.perf_counter()
            losses[at] = self._stepper.train(round, block, [self._vectors[position] for position in at])
            seconds[at] = (time.perf_counter() - begun) / len(block)
        return losses, seconds

    def give(self, peers: Sequence[int]) -> Rows:
        """A copy of the vectors of some of its peers."""
        rows: Rows = self._vectors[[self._at[peer] for peer in peers]].numpy()
        return rows

    def meet(self, phase: int, hood: Neighborhood, forget: bool) -> None:
        """Learn who is heard in a phase of the schedule; `forget` the phases before."""
        if forget:
            self._mixings.clear()
        self._mixings[phase] = (RowMixing.of(hood.weights, hood.links, hood.dense, self._dtype), len(hood.foreign))

    def mix(self, phase: int, places: Sequence[Sequence[int]], *received: Rows) -> tuple[Floats, float]:
        """Mix what is here with what came from other shards; [own] neighbor distances, and seconds a peer.

        Args:
            phase: as it was told to `meet`.
            places: of the rows in each array received, among the foreign peers of the phase.
            received: from the other shards.
        """
        begun = time.perf_counter()
        mixing, foreign = self._mixings[phase]
        own = len(self._peers)
        if len(self._vectors) < own + foreign:
            grown = torch.empty(own + foreign, self._vectors.shape[1], dtype=self._dtype)
            grown[:own] = self._own
            self._vectors, self._mixed = grown, torch.empty_like(grown)
        values = self._vectors.numpy()
        for at, rows in zip(places, received, strict=True):
            values[own + np.asarray(at)] = rows
        rows_heard = self._vectors[: own + foreign]
        distances = mixing.distances(rows_heard, 0, own)
        mixing.mix(rows_heard, self._mixed[: own + foreign], 0, own)
        self._vectors, self._mixed = self._mixed, self._vectors
        return distances, (time.perf_counter() - begun) / own

    def level(self, mean: Rows) -> None:
        """Give every peer the average."""
        self._own.numpy()[:] = mean

    def total(self) -> Floats:
        """[size] the sum of its peers' vectors."""
        total: Floats = self._own.sum(dim=0, dtype=torch.float64).numpy()
        return total

    def apart(self, mean: Rows) -> float:
        """Σ‖x_i − x̄‖² over its peers."""
        return float(sum((row - torch.tensor(mean)).double().square().sum() for row in self._own))

    def evaluate(self) -> tuple[Floats, Floats]:
        """[own] test losses and accuracies; NaN where there is none."""
        assert self._examiner is not None  # asked for only where there is a test part
        found = np.array([self._examiner.examine(row) for row in self._own], dtype=np.float64)
        return found[:, 0], found[:, 1]

    def evaluate_mean(self, mean: Rows) -> tuple[float, float]:
        """Loss and accuracy of the averaged model."""
        assert self._examiner is not None  # as above
        return self._examiner.examine(torch.tensor(mean))

    def vectors(self) -> Rows:
        """[own, size] a copy of all its vectors."""
        rows: Rows = self._own.numpy().copy()
        return rows
