"""The Ray engine: the matrix engine where one machine is outgrown, its peers spread over the actors of a Ray cluster.

Each actor has the vectors and examples of its own peers. After training, the rows that cross shards go from actor to
actor, each once to whoever hears it; this process says who does what and sees them only where a checkpoint is due.
Numbers are the bits of the matrix engine; where most peers hear most others, and in fedavg, they are the same but for
rounding, as the order of a sum is.

Ray sends the model and the user's functions by its own serialization, which can run code: for clusters one trusts.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from p2pfl.errors import NetworkError
from p2pfl.layout import Layout, layout_of
from p2pfl.learning.learner import GENERATOR
from p2pfl.simulation.batches import steps_of
from p2pfl.simulation.engine import Begin, Counts, Ending, Floats, Keeper, RoundReport
from p2pfl.simulation.matrix import MatrixEngine
from p2pfl.simulation.problem import Problem
from p2pfl.simulation.ray_cluster import cluster, missing
from p2pfl.simulation.shard import Shard, neighborhood, piece_of
from p2pfl.simulation.steppers import PATHS, best_path, diverged, stepper_for
from p2pfl.simulation.vectorized import blocks_of
from p2pfl.simulation.workers import one_thread

_PATIENCE_S = 180.0  # until every actor has its core and has imported what it needs
_CPU = torch.device("cpu")


class RayEngine:
    """See `Engine`. As many actors as the recipe has workers; 0 is one for each core of the cluster."""

    def __init__(self, address: str | None = None) -> None:
        """Nothing happens yet.

        Args:
            address: of a cluster, as host:port, or `auto`; None starts one on this machine for the time of the run.
        """
        self._address = address

    def objection(self, problem: Problem) -> str:
        """See `Engine`."""
        if problem.recipe.device not in ("cpu", "auto"):
            return f"its actors compute on the CPU, and device is {problem.recipe.device}: set device = cpu"
        return MatrixEngine().objection(problem) or missing()

    def run(self, problem: Problem, keeper: Keeper, begin: Begin) -> Ending:
        """See `Engine`.

        Raises:
            TrainingError: a loss is not finite.
            NetworkError: there is no cluster, it has no free cores, or an actor was lost.
            ModelError, TopologyError: what cannot be averaged.
        """
        with cluster(self._address, problem.recipe.workers) as ray:
            actors: list[Any] = []
            try:
                return spread_over(ray, actors, problem, keeper, begin)
            finally:
                for actor in actors:
                    ray.kill(actor)


@dataclass(frozen=True)
class _Crew:
    """The actors, and the peers of each, ascending."""

    ray: Any
    actors: Sequence[Any]
    peers: Sequence[npt.NDArray[np.int64]]

    def all(self, method: str, *arguments: Any) -> list[Any]:
        """Ask every actor for the same; promises of their answers."""
        return [getattr(actor, method).remote(*arguments) for actor in self.actors]

    def get(self, promises: Any) -> Any:
        """Wait for answers."""
        return self.ray.get(promises)

    def column(self, answers: Sequence[npt.ArrayLike]) -> Floats:
        """[peers] out of the actors' [own], or of one number for all of an actor's peers."""
        whole = np.empty(sum(map(len, self.peers)))
        for peers, answer in zip(self.peers, answers, strict=True):
            whole[peers] = answer
        return whole

    def vectors(self, layout: Layout) -> torch.Tensor:
        """[peers, size] all vectors."""
        whole = torch.empty(sum(map(len, self.peers)), layout.size, dtype=layout.torch_dtype)
        for peers, promise in zip(self.peers, self.all("vectors"), strict=True):
            whole[torch.from_numpy(peers)] = torch.tensor(self.get(promise))
        return whole


def spread_over(ray: Any, actors: list[Any], problem: Problem, keeper: Keeper, begin: Begin) -> Ending:
    """Run a problem on a cluster that is connected.

    Args:
        ray: the module.
        actors: takes in those that are started, for the caller to end.

    Raises:
        TrainingError, ModelError, TopologyError, NetworkError: as `RayEngine.run`, and what Ray raises.
    """
    recipe = problem.recipe
    dtype = torch.float64 if recipe.dtype == "float64" else torch.float32
    with GENERATOR, one_thread():
        module = problem.build().to(dtype)
        layout = layout_of(module)
        path, why = best_path(problem, dtype, _CPU)
        if path == "learners" and why:
            keeper.warn(f"the model is trained peer by peer, which is slower: {why}")
        at_once = stepper_for(path, problem, dtype, _CPU).peers_at_once
    cores = int(ray.cluster_resources().get("CPU", 1))
    shards = _divided(problem, at_once, min(recipe.workers or cores, cores))
    test = ray.put(problem.test)
    kind = ray.remote(num_cpus=1, max_restarts=0, scheduling_strategy="SPREAD")(Shard)
    peers = []
    for blocks in shards:
        piece = piece_of(problem, blocks, path, module)
        own = np.array(piece.peers, dtype=np.int64)
        peers.append(own)
        actors.append(kind.remote(piece, test, None if begin.vectors is None else begin.vectors[own].numpy()))
    crew = _Crew(ray, actors, peers)
    waiting = crew.all("ready")
    _, late = ray.wait(waiting, num_returns=len(waiting), timeout=_PATIENCE_S)
    if late:
        raise NetworkError(
            f"{len(late)} of {len(waiting)} Ray actors did not start within {_PATIENCE_S:.0f} s: the cluster may have "
            "no free cores; see `ray status`, or set workers"
        )
    crew.get(waiting)
    rounds = _Rounds(problem, keeper, crew, layout)
    done = rounds.run(begin.round)
    nodes = len({node["NodeID"] for node in ray.nodes() if node["Alive"]})
    facts = {
        "path": path,
        "path_is": PATHS[path],
        "why": why,
        "workers": len(actors),
        "nodes": nodes,
        "rows_crossing": rounds.rows_crossing,
    }
    return Ending(crew.vectors(layout), done, {}, facts)


class _Rounds:
    """The loop of rounds over the actors."""

    def __init__(self, problem: Problem, keeper: Keeper, crew: _Crew, layout: Layout) -> None:
        self._problem, self._keeper, self._crew, self._layout = problem, keeper, crew, layout
        self._mixes = problem.recipe.algorithm == "d-psgd" and problem.peers > 1
        self._exchanges: dict[int, list[list[tuple[int, list[int], list[int]]]]] = {}
        self._steps: Counts = np.array([steps_of(problem.recipe, len(part)) for part in problem.parts], dtype=np.int64)
        self._home = np.empty(problem.peers, dtype=np.int64)  # the actor of each peer
        for actor, peers in enumerate(crew.peers):
            self._home[peers] = actor
        self.rows_crossing = 0  # vectors that went from actor to actor in the last round

    def run(self, begin: int) -> int:
        """All rounds from `begin` on; the rounds that are done."""
        recipe, done = self._problem.recipe, begin
        for round in range(begin, recipe.rounds):
            self._keeper.keep(round, lambda: self._crew.vectors(self._layout))
            begun = time.perf_counter()
            training = self._crew.all("train", round)
            mixing = self._mix(round) if self._mixes else []
            losses, train_s = (self._crew.column(part) for part in zip(*self._crew.get(training), strict=True))
            bad = np.flatnonzero(~np.isfinite(losses))
            if len(bad):
                raise diverged(float(losses[bad[0]]), int(bad[0]), round)
            mixed = self._crew.get(mixing)
            distances = self._crew.column([distance for distance, _ in mixed]) if mixed else None
            mix_s = self._crew.column([seconds for _, seconds in mixed]) if mixed else np.zeros(len(losses))
            done = round + 1
            last = self._keeper.stopped or done == recipe.rounds
            self._report(round, last, begun, losses, train_s, distances, mix_s)
            if last:
                break
        return done

    def _mix(self, round: int) -> list[Any]:
        """Let rows go from actor to actor, and mix; promises of what `Shard.mix` answers."""
        period = self._problem.schedule.period
        phase = round % period if period else round
        if phase not in self._exchanges:
            self._meet(phase, forget=period is None)
        exchange = self._exchanges[phase]
        self.rows_crossing = sum(len(peers) for parts in exchange for _, peers, _ in parts)
        promises = []
        # All give before any mixes: an actor does what it is asked in the order it was asked.
        given = [[self._crew.actors[source].give.remote(peers) for source, peers, _ in parts] for parts in exchange]
        for actor, parts, rows in zip(self._crew.actors, exchange, given, strict=True):
            promises.append(actor.mix.remote(phase, [places for _, _, places in parts], *rows))
        return promises

    def _meet(self, phase: int, forget: bool) -> None:
        """Tell every actor whom its peers hear in a phase, and note which rows that makes cross."""
        topology = self._problem.schedule.at(phase)
        exchange = []
        for actor, peers in zip(self._crew.actors, self._crew.peers, strict=True):
            hood = neighborhood(topology, peers.tolist(), self._layout.torch_dtype)
            actor.meet.remote(phase, hood, forget)
            homes = self._home[hood.foreign]
            exchange.append(
                [
                    (int(source), hood.foreign[homes == source].tolist(), np.flatnonzero(homes == source).tolist())
                    for source in np.unique(homes)
                ]
            )
        if forget:
            self._exchanges.clear()
        self._exchanges[phase] = exchange

    def _report(
        self,
        round: int,
        last: bool,
        begun: float,
        losses: Floats,
        train_s: Floats,
        distances: Floats | None,
        mix_s: Floats,
    ) -> None:
        crew, peers, recipe = self._crew, self._problem.peers, self._problem.recipe
        mean = (np.sum(crew.get(crew.all("total")), axis=0) / peers).astype(self._layout.dtype)
        held = crew.ray.put(mean)
        if recipe.algorithm == "fedavg":
            crew.get(crew.all("level", held))
        apart = float(sum(crew.get(crew.all("apart", held))))
        evaluated = self._problem.test is not None and (last or (round + 1) % recipe.evaluate_every == 0)
        test_loss = test_accuracy = mean_loss = mean_accuracy = None
        if evaluated:
            of_mean, each = crew.actors[0].evaluate_mean.remote(held), crew.all("evaluate")
            mean_loss, mean_accuracy = (None if np.isnan(value) else float(value) for value in crew.get(of_mean))
            test_loss, test_accuracy = (crew.column(part) for part in zip(*crew.get(each), strict=True))
        nothing = np.full(peers, np.nan)
        arcs = self._problem.schedule.at(round).arc_array if self._mixes else np.zeros((0, 2), dtype=np.int64)
        sent, received = (np.bincount(arcs[:, end], minlength=peers) for end in (0, 1))
        share = self._layout.framed_bytes
        self._keeper.report(
            RoundReport(
                round=round,
                present=np.ones(peers, dtype=np.bool_),
                steps=self._steps,
                train_loss=losses,
                neighbors=received,
                neighbor_distance=nothing if distances is None else distances,
                arcs=arcs,
                share_bytes=share,
                bytes_sent=sent * share,
                bytes_received=received * share,
                consensus_distance=apart / peers,
                norm=float(np.linalg.norm(mean.astype(np.float64))),
                wall_s=time.perf_counter() - begun,
                train_s=train_s,
                wait_s=np.zeros(peers),
                mix_s=mix_s,
                simulated_time_s=nothing,
                evaluated=evaluated,
                test_loss=test_loss,
                test_accuracy=test_accuracy,
                mean_accuracy=mean_accuracy,
                mean_loss=mean_loss,
            )
        )


def _divided(problem: Problem, at_once: int, shards: int) -> list[list[list[int]]]:
    """Blocks of peers for each shard: peers side by side, which hear each other most, and blocks never parted."""
    sizes = [len(part) for part in problem.parts]
    blocks = blocks_of(sizes, at_once) if at_once > 1 else [[peer] for peer in range(problem.peers)]
    work = np.array([sum(steps_of(problem.recipe, sizes[peer]) for peer in block) for block in blocks])
    middle = work.cumsum() - work / 2
    home = (middle * shards / work.sum()).astype(int)
    divided = [[block for block, at in zip(blocks, home, strict=True) if at == shard] for shard in range(shards)]
    return [some for some in divided if some]
