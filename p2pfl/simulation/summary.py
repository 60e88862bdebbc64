"""What a simulated run comes to: the figures of summary.json, those that live runs have first."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from p2pfl.heterogeneity import heterogeneity
from p2pfl.layout import Layout
from p2pfl.simulation.engine import Ending
from p2pfl.simulation.problem import Problem
from p2pfl.simulation.record import Record
from p2pfl.simulation.resolve import labels_of


def summary_of(
    problem: Problem,
    record: Record,
    ending: Ending,
    layout: Layout,
    *,
    engine: str,
    why: str,
    before: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything but what references show.

    Args:
        engine, why: which one ran it, and why that one.
        before: the summary of the part that was run earlier, where the run went on; empty otherwise.
    """
    recipe = problem.recipe
    seen, last = record.last_evaluated, record.last
    accuracies = None if seen is None or seen.test_accuracy is None else seen.test_accuracy[seen.present]
    losses = None if seen is None or seen.test_loss is None else seen.test_loss[seen.present]
    failures = dict(before.get("failures", {}))
    for reason, count in ending.failures.items():
        failures[reason] = failures.get(reason, 0) + count
    final = record.rounds[-1] if record.rounds else {}
    loss = _spread(losses, worst=np.max)
    return {
        "peers": problem.peers,
        "rounds": ending.round,
        # Edges that are written out are no name to show.
        "topology": problem.schedule.name if recipe.topology.startswith("graph:") else recipe.topology,
        "algorithm": recipe.algorithm,
        "seed": recipe.seed,
        "wall_s": round(before.get("wall_s", 0.0) + record.elapsed_s, 3),
        "accuracy": _spread(accuracies, worst=np.min),
        "alone": before.get("alone"),
        "pooled": before.get("pooled"),
        "fedavg": before.get("fedavg"),
        "loss": loss,
        "mean_model": {"accuracy": seen.mean_accuracy, "loss": seen.mean_loss} if seen is not None else None,
        "consensus_distance": final.get("consensus_distance"),
        "relative_distance": final.get("relative_distance"),
        "bytes_sent": before.get("bytes_sent", 0) + sum(int(cells["bytes_sent"] or 0) for cells in record.rounds),
        "bytes_received": before.get("bytes_received", 0)
        + sum(int(cells["bytes_received"] or 0) for cells in record.rounds),
        "failures": failures,
        "stopped": record.stopped and ending.round < recipe.rounds,
        "ended_early": _early(ending, recipe.rounds, record.stopped),
        "engine": engine,
        "why": why,
        "mixing": recipe.mixing,
        "model": recipe.model,
        "parameters": layout.size,
        "data": recipe.data,
        "split": recipe.split,
        "alpha": recipe.alpha,
        "examples": int(sum(len(part) for part in problem.parts)),
        "heterogeneity": asdict(heterogeneity(problem.parts, labels_of(problem.data))),
        "optimum": problem.optimum,
        "steps": before.get("steps", 0) + sum(int(cells["steps"] or 0) for cells in record.rounds),
        "simulated_s": final.get("simulated_time_s"),
        "present": int(last.present.sum()) if last is not None else problem.peers,
        "warnings": [*before.get("warnings", []), *record.warnings],
        "facts": dict(ending.facts),
        "folder": str(record.folder) if record.folder is not None else None,
    }


def reference_figures(summary: Mapping[str, Any]) -> dict[str, float] | None:
    """What a reference's run puts into the summary of the run it belongs to: accuracy, or loss where there is none."""
    figures: dict[str, float] | None = summary["accuracy"] or summary["loss"]
    return figures


def _early(ending: Ending, rounds: int, stopped: bool) -> str | None:
    """Why the run has fewer rounds than were asked for; None where it has them all."""
    if ending.round >= rounds:
        return None
    if stopped:
        return f"stopped after round {ending.round} of {rounds}"
    why = ending.facts.get("ended", f"the engine ended it after round {ending.round}")
    return f"{why} of {rounds}"


def _spread(values: npt.NDArray[np.float64] | None, worst: Any) -> dict[str, float] | None:
    if values is None or np.isnan(values).all():
        return None
    known = values[~np.isnan(values)]
    return {"mean": float(known.mean()), "worst": float(worst(known))}
