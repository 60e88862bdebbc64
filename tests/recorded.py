"""Runs for tests of analysis: decentralized SGD on quadratics in numpy, with the tables and files of any run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd

from p2pfl.events import Started
from p2pfl.graphs.mixing import mixing_matrix
from p2pfl.recipe import Recipe, to_toml

SHARE = 1000  # bytes
PARAMETERS = 5


@dataclass(frozen=True)
class Recorded:
    """What a run is to analysis."""

    recipe: Recipe
    summary: dict[str, Any]
    metrics: pd.DataFrame
    edges: pd.DataFrame
    partition: pd.DataFrame
    rounds: pd.DataFrame


def recorded(topology: str = "ring", *, evaluate_every: int = 1, simulated: bool = True, **settings: Any) -> Recorded:
    """A run of `peers` on quadratics that lie apart; accuracy falls with a peer's distance to the optimum, 0."""
    recipe = Recipe(topology=topology, evaluate_every=evaluate_every, **{"peers": 9, "rounds": 40} | settings)
    n, generator = recipe.peers, np.random.default_rng(recipe.seed)
    optima = generator.standard_normal((n, PARAMETERS))
    optima -= optima.mean(axis=0)
    x = np.full((n, PARAMETERS), 2.0)
    schedule = recipe.schedule(n)
    rows, edges, rounds = [], [], []
    for round in range(recipe.rounds):
        graph = schedule.at(round)
        x = x - recipe.lr * (x - optima + 0.3 * generator.standard_normal(x.shape))
        near = [float(np.mean([np.sum((x[i] - x[j]) ** 2) for j in graph.sources(i)])) for i in range(n)]
        x = mixing_matrix(graph) @ x
        distance = float(np.square(x - x.mean(axis=0)).sum() / n)
        evaluated = (round + 1) % evaluate_every == 0 or round == recipe.rounds - 1
        accuracy = 1 / (1 + np.square(x).sum(axis=1))
        for i in range(n):
            rows.append(
                {
                    "round": round,
                    "step": 3 * (round + 1),
                    "peer": str(i),
                    "steps": 3,
                    "wall_time_s": 0.5,
                    "simulated_time_s": 2.0 * (round + 1) if simulated else None,
                    "train_loss": 1 / (round + 1),
                    "test_loss": float(np.square(x[i]).sum()) if evaluated else None,
                    "test_accuracy": float(accuracy[i]) if evaluated else None,
                    "consensus_distance": distance,
                    "neighbor_distance": near[i],
                    "neighbors": graph.degree(i),
                    "bytes_sent": SHARE * len(graph.targets(i)),
                    "bytes_received": SHARE * graph.degree(i),
                    "train_s": 0.1,
                    "wait_s": 0.1,
                    "mix_s": 0.1,
                }
            )
        edges += [{"round": round, "from": str(a), "to": str(b), "bytes": SHARE} for a, b in graph.arcs]
        rounds.append(
            {
                "round": round,
                "mean_model_accuracy": 1 / (1 + float(np.square(x.mean(axis=0)).sum())) if evaluated else None,
                "relative_distance": distance**0.5 / float(np.linalg.norm(x.mean(axis=0))),
            }
        )
    metrics = pd.DataFrame(rows)
    last = metrics[metrics["round"] == recipe.rounds - 1]["test_accuracy"]
    summary = {
        "peers": n,
        "rounds": recipe.rounds,
        "topology": recipe.topology,
        "algorithm": recipe.algorithm,
        "seed": recipe.seed,
        "wall_s": 0.5 * recipe.rounds,
        "accuracy": {"mean": float(last.mean()), "worst": float(last.min())},
        "alone": {"mean": 0.2, "worst": 0.1},
        "pooled": {"mean": 0.98},
        "fedavg": None,
        "consensus_distance": distance,
        "bytes_sent": int(metrics["bytes_sent"].sum()),
        "bytes_received": int(metrics["bytes_received"].sum()),
        "failures": {},
        "parameters": PARAMETERS,
    }
    counts = generator.integers(0, 40, (n, 4))
    partition = pd.DataFrame(
        [(str(i), "abcd"[c], int(counts[i, c]) + (c == i % 4)) for i in range(n) for c in range(4)],
        columns=["peer", "label", "count"],
    )
    return Recorded(recipe, summary, metrics, pd.DataFrame(edges), partition, pd.DataFrame(rounds))


def write(run: Recorded, folder: Path) -> Path:
    """The run's files, as `load_run` reads them."""
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(to_toml(run.recipe), encoding="utf-8")
    (folder / "summary.json").write_bytes(msgspec.json.encode(run.summary))
    names = tuple(map(str, range(run.recipe.peers)))
    started = Started(peer="simulation", settings=msgspec.structs.asdict(run.recipe), round=0, members=names)
    (folder / "events.jsonl").write_bytes(msgspec.json.encode(started) + b"\n")
    for name in ("metrics", "edges", "partition", "rounds"):
        getattr(run, name).to_csv(folder / f"{name}.csv", index=False)
    return folder
