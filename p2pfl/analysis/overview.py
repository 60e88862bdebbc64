"""One run in figures: everything a study reports of it, measured and predicted, as one nested mapping."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from p2pfl.analysis import consensus, measures
from p2pfl.analysis.measured import Measured, peers_of, schedule_of, topology_label
from p2pfl.graphs.mixing import mixing_matrix
from p2pfl.graphs.prediction import GAMMAS, Prediction

if TYPE_CHECKING:
    import pandas as pd

_MOST_NODES = 1024  # above, matrices are not written out for the contraction


def of_run(run: Measured, curve: "pd.DataFrame", target: float | None = None) -> dict[str, Any]:
    """What a run measured, and what theory predicts for it; None where there is no such figure.

    Args:
        curve: from `measures.curves`.
        target: a fraction, for `to_target`.
    """
    accuracy = measures.final_accuracy(run)
    sent = measures.volume(run)
    uneven = measures.label_heterogeneity(run)
    folder = getattr(run, "folder", None)
    return {
        "folder": str(folder) if folder is not None else None,
        "peers": peers_of(run),
        "rounds": int(curve["rounds"].iloc[-1]),
        "topology": topology_label(run),
        "algorithm": run.recipe.algorithm,
        "seed": run.recipe.seed,
        "accuracy": asdict(measures.spread(accuracy)) if len(accuracy) else None,
        "mean_model_accuracy": _last(curve["mean_model_accuracy"]),
        "references": measures.references(run),
        "test_loss": _last(curve["test_loss"]),
        "consensus_distance": _last(curve["consensus_distance"]),
        "consensus_distance_settled": _or_none(measures.settled(curve["consensus_distance"])),
        "relative_distance": _last(curve["relative_distance"]),
        "predicted": _predicted(run, curve),
        "volume": {
            "total": sent.total,
            "per_peer": sent.total / max(1, len(sent.by_peer)),
            "per_round": sent.per_round,
            "analytic_per_round": sent.analytic_per_round,
            "busiest": {"peer": sent.busiest[0], "bytes": sent.busiest[1]} if sent.busiest else None,
            "busiest_edge": _busiest_edge(sent.by_edge),
        },
        "heterogeneity": asdict(uneven) if uneven is not None else None,
        "to_target": measures.to_target(curve, target) if target is not None else None,
        "wall_s": _last(curve["wall_s"]),
        "simulated_s": _last(curve["simulated_s"]),
    }


def title(run: Measured) -> str:
    """What a run was, in a line."""
    recipe = run.recipe
    alpha = f", alpha {recipe.alpha:g}" if recipe.alpha else ""
    return f"{peers_of(run)} peers on {topology_label(run)}{alpha}, seed {recipe.seed}"


def readable(facts: dict[str, Any]) -> "pd.DataFrame":
    """The figures of `of_run` that there are, as rows of text: what, measured, predicted or reference."""
    import pandas as pd

    rows: list[tuple[str, str, str]] = []
    accuracy, predicted, volume = facts["accuracy"], facts["predicted"], facts["volume"]
    references = {"alone": "alone", "fedavg": "FedAvg", "pooled": "pooled"}
    if accuracy:
        beside = ", ".join(f"{references[name]} {100 * value:.1f} %" for name, value in facts["references"].items())
        rows.append(("accuracy, mean over peers", f"{100 * accuracy['mean']:.1f} %", beside))
        rows.append(("worst peer", f"{100 * accuracy['worst']:.1f} %", ""))
        rows.append(("5th percentile of peers", f"{100 * accuracy['p5']:.1f} %", ""))
        rows.append(("std over peers", f"{100 * accuracy['std']:.2f} points", ""))
        rows.append(("Jain index", f"{accuracy['jain']:.4f}", "1 where all are equal"))
    if facts["mean_model_accuracy"] is not None:
        rows.append(("accuracy of the averaged model", f"{100 * facts['mean_model_accuracy']:.1f} %", ""))
    if not accuracy and facts["test_loss"] is not None:
        rows.append(("test loss, mean over peers", f"{facts['test_loss']:.4g}", ""))
    if facts["consensus_distance_settled"] is not None:
        beside = ""
        if predicted and predicted["consensus_distance"] is not None:
            beside = f"{predicted['consensus_distance']:.3g} from neighbors' distances"
        rows.append(("consensus distance Ξ²", f"{facts['consensus_distance_settled']:.3g}", beside))
    if facts["relative_distance"] is not None:
        rows.append(("relative, Ξ/‖x̄‖", f"{facts['relative_distance']:.3g}", ""))
    if predicted:
        rows += _predicted_rows(predicted)
    rows.append(
        (
            "sent in a round, by all",
            f"{volume['per_round'] / 1e6:.3g} MB",
            f"{volume['analytic_per_round'] / 1e6:.3g} MB = n·deg·4P" if volume["analytic_per_round"] else "",
        )
    )
    if volume["busiest"]:
        rows.append(("busiest peer", f"{volume['busiest']['bytes'] / 1e6:.3g} MB", volume["busiest"]["peer"]))
    uneven = facts["heterogeneity"]
    if uneven and uneven["total_variation"] is not None:
        rows.append(("labels: mean total variation", f"{uneven['total_variation']:.3f}", "0 where all are alike"))
        rows.append(("labels: effective classes", f"{uneven['effective_classes']:.2f}", "a peer, on average"))
    if uneven:
        rows.append(("sizes: Gini", f"{uneven['gini']:.3f}", "0 where all are equal"))
    for name, cost in (facts["to_target"] or {}).items():
        shown = "–" if cost is None else f"{cost / 1e6:.3g} MB a peer" if name == "bytes" else f"{cost:.4g}"
        rows.append((f"to the target: {name.replace('_s', ' s')}", shown, ""))
    return pd.DataFrame(rows, columns=["", "measured", "predicted, or beside it"])


def _predicted_rows(predicted: dict[str, Any]) -> list[tuple[str, str, str]]:
    rows = []
    if predicted["spectral_gap"] is not None:
        singular = predicted["singular_gap"]
        beside = f"{predicted['spectral_gap']:.4g}" + (f", by singular values {singular:.4g}" if singular else "")
        rows.append(("gap", "", beside))
    if predicted["contraction"] is not None:
        kept = predicted["contraction"]
        rows.append(("contraction of Ξ² in a mix", "", f"worst {kept['worst']:.3g}, white noise {kept['white']:.3g}"))
    if predicted["noise_floor"] is not None:
        rows.append(("noise floor for unit noise", "", f"{predicted['noise_floor']:.4g} ({predicted['how']})"))
    neighbors = [f"{n:.3g} at γ = {g}" for g, n in predicted["effective_neighbors"].items() if n is not None]
    if neighbors:
        rows.append(("effective neighbors", "", ", ".join(neighbors)))
    if predicted["implied_drift"] is not None:
        rows.append(("drift of a round that explains Ξ²", f"{predicted['implied_drift']:.3g}", "Ξ² / noise floor"))
    return rows


def _predicted(run: Measured, curve: "pd.DataFrame") -> dict[str, Any] | None:
    schedule = schedule_of(run)
    if schedule is None:
        return None
    prediction = Prediction(schedule)
    floor = prediction.noise_floor
    neighbors = {str(gamma): prediction.effective_neighbors(gamma) for gamma in GAMMAS}
    kept = None
    if schedule.nodes <= _MOST_NODES:
        # Of rounds drawn anew, some stand for all.
        looked_at = schedule.period or min(20, len(curve))
        kept = consensus.predicted_contraction([mixing_matrix(schedule.at(t)) for t in range(looked_at)])
    distances = None
    if schedule.nodes == curve["peers"].max():
        distances = consensus.predicted_distance(schedule, curve["neighbor_distance"].tolist())
    settled = measures.settled(curve["consensus_distance"])
    return {
        "spectral_gap": prediction.spectral_gap,
        "singular_gap": prediction.singular_gap,
        "noise_floor": floor.value if floor is not None else None,
        "how": floor.how if floor is not None else None,
        "effective_neighbors": {g: found.value if found is not None else None for g, found in neighbors.items()},
        "contraction": kept,
        "consensus_distance": None
        if distances is None or curve["neighbor_distance"].isna().all()
        else measures.settled(curve["rounds"] * 0.0 + distances),
        "implied_drift": _or_none(consensus.implied_drift(settled, floor.value)) if floor is not None else None,
    }


def _busiest_edge(by_edge: "pd.DataFrame") -> dict[str, Any] | None:
    if by_edge.empty:
        return None
    row = by_edge.iloc[int(by_edge["bytes"].to_numpy().argmax())]
    return {"from": str(row["from"]), "to": str(row["to"]), "bytes": int(row["bytes"])}


def _last(values: "pd.Series[float]") -> float | None:
    known = values.dropna()
    return float(known.iloc[-1]) if len(known) else None


def _or_none(value: float) -> float | None:
    return value if value == value else None
