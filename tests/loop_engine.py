"""The plainest engine: one learner a peer, one after the other. What faster ones are measured against, here."""

import time
from collections.abc import Callable

import numpy as np
import torch

from p2pfl.graphs.mixing import mixing_weights
from p2pfl.layout import layout_of
from p2pfl.learning.learner import TorchLearner
from p2pfl.mixing import mix
from p2pfl.simulation.engine import Begin, Ending, Keeper, RoundReport
from p2pfl.simulation.problem import Problem


class LoopEngine:
    """Trains, mixes and evaluates peer by peer, as live peers do; `between` is called before each round."""

    def __init__(self, between: Callable[[int], None] = lambda round: None, refuses: str = "") -> None:
        self._between = between
        self._refuses = refuses

    def objection(self, problem: Problem) -> str:
        return self._refuses

    def run(self, problem: Problem, keeper: Keeper, begin: Begin) -> Ending:
        recipe, n = problem.recipe, problem.peers
        learners = [
            TorchLearner(
                problem.build(),
                problem.examples(peer),
                problem.test,
                loss=problem.loss,
                lr=recipe.lr,
                batch_size=recipe.batch_size,
                epochs=recipe.epochs,
                steps=recipe.steps or None,
                seed=recipe.seed,
                seat=str(peer),
            )
            for peer in range(n)
        ]
        layout = layout_of(problem.build())
        x = torch.empty(n, layout.size, dtype=layout.torch_dtype)
        for learner, row in zip(learners, x, strict=True):
            learner.parameters(row)
        if begin.vectors is not None:
            x.copy_(begin.vectors)
        round = begin.round
        for round in range(begin.round, recipe.rounds):
            self._between(round)
            keeper.keep(round, lambda x=x: x)  # type: ignore[misc]  # the models of this round
            began = time.perf_counter()
            trained = []
            for learner, row in zip(learners, x, strict=True):
                learner.load(row)
                trained.append(learner.train(round, None, lambda: False))
                learner.parameters(row)
            topology = problem.schedule.at(round)
            arcs = [(a, b) for a, b in topology.arcs] if recipe.algorithm == "d-psgd" else []
            mixed = x.clone()
            if recipe.algorithm == "d-psgd":
                for node in range(n):
                    weights = mixing_weights(topology, node)
                    received = [(w, x[other]) for other, w in weights.items() if other != node]
                    mix(x[node], weights[node], received, mixed[node])
            elif recipe.algorithm == "fedavg":
                mixed[:] = x.mean(dim=0)
            x = mixed
            results = []
            for learner, row in zip(learners, x, strict=True):
                learner.load(row)
                results.append(learner.evaluate())
            degree = np.array([topology.degree(i) for i in range(n)]) if arcs else np.zeros(n, dtype=np.int64)
            mean = x.double().mean(dim=0)
            nothing = np.full(n, np.nan)
            keeper.report(
                RoundReport(
                    round=round,
                    present=np.ones(n, dtype=bool),
                    steps=np.array([t.steps for t in trained]),
                    train_loss=np.array([t.loss for t in trained]),
                    neighbors=degree,
                    neighbor_distance=nothing,
                    arcs=np.array(arcs, dtype=np.int64).reshape(-1, 2),
                    share_bytes=layout.framed_bytes,
                    bytes_sent=degree * layout.framed_bytes,
                    bytes_received=degree * layout.framed_bytes,
                    consensus_distance=float((x.double() - mean).square().sum(dim=1).mean()),
                    norm=float(mean.norm()),
                    wall_s=time.perf_counter() - began,
                    train_s=np.array([t.seconds for t in trained]),
                    wait_s=nothing,
                    mix_s=nothing,
                    simulated_time_s=nothing,
                    evaluated=problem.test is not None,
                    test_loss=np.array([np.nan if r.loss is None else r.loss for r in results]),
                    test_accuracy=np.array([np.nan if r.accuracy is None else r.accuracy for r in results]),
                )
            )
            if keeper.stopped:
                return Ending(x, round + 1)
        return Ending(x, recipe.rounds, {"late": 1})
