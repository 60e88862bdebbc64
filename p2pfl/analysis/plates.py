"""Which figures a run gets, and a study of several: each with a file name and what a reader should see in it."""

import re
from typing import TYPE_CHECKING

import numpy as np

from p2pfl.analysis import consensus, figures, measures
from p2pfl.analysis.measured import Measured, is_simulated, members, schedule_of, topology_label
from p2pfl.analysis.page import Plate
from p2pfl.analysis.study import Group, Study
from p2pfl.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

_MOST_DRAWN = 256  # nodes of a network, a matrix or a label split that still make a picture
_MOST_IN_DETAIL = 12  # groups whose network is drawn, too


def of_run(run: Measured, curve: "pd.DataFrame") -> list[Plate]:
    """Everything there is to draw of one run."""
    found: list[Plate] = []
    costs = figures.costs_of([curve], wall=not is_simulated(run))
    schedule = schedule_of(run)
    if curve["accuracy"].notna().any():
        found.append(
            Plate(
                "accuracy",
                f"Test accuracy of the peers against what it cost, on {topology_label(run)}.",
                figures.one_run(curve, costs, measures.references(run)),
            )
        )
    elif curve["test_loss"].notna().any():
        text = f"Test loss, mean over peers, against what it cost, on {topology_label(run)}."
        found.append(Plate("loss", text, figures.against({topology_label(run): curve}, "test_loss", costs)))
    predicted = None
    if schedule is not None and schedule.nodes == curve["peers"].max():
        predicted = consensus.predicted_distance(schedule, curve["neighbor_distance"].tolist())
    try:
        drawn = figures.consensus(curve, ["rounds"], predicted)
    except DataError:  # nothing was apart, or nobody measured it
        pass
    else:
        text = (
            "How far models are apart: neighbors before mixing, and all peers' distance to their average after it. The "
            "prediction takes each round's drift to be independent between peers; what is measured above it is drift "
            "that lasts, as lopsided data cause it."
        )
        found.append(Plate("consensus", text, drawn))
    return found + of_network(run)


def of_network(run: Measured) -> list[Plate]:
    """The network, its mixing matrix and spectrum, and who holds what."""
    from p2pfl.analysis import drawing
    from p2pfl.graphs.mixing import mixing_matrix

    found: list[Plate] = []
    names, schedule = members(run), schedule_of(run)
    label = topology_label(run)
    if schedule is not None and schedule.nodes == len(names) <= _MOST_DRAWN:
        topology = schedule.at(0)
        which = "" if schedule.static else ", first round"
        accuracy = measures.final_accuracy(run).reindex(list(names))
        at = {name: node for node, name in enumerate(names)}
        volume = {
            (at[sender], at[receiver]): size
            for sender, receiver, size in measures.volume(run).by_edge.itertuples(index=False)
            if sender in at and receiver in at
        }
        widths = "width what an edge carried" if len(set(volume.values())) > 1 else "all edges carried the same"
        found.append(
            Plate(
                "network",
                f"The network, {label}{which}: color is a peer's accuracy, {widths}.",
                drawing.network(
                    topology,
                    np.asarray(accuracy, dtype=np.float64) if len(accuracy.dropna()) else None,
                    volume if len(set(volume.values())) > 1 else None,
                    names,
                ),
            )
        )
        matrix = mixing_matrix(topology)
        found.append(Plate("mixing-matrix", f"The mixing matrix W of {label}{which}.", drawing.heat_map(matrix)))
        found.append(Plate("spectrum", f"The eigenvalues of W of {label}{which}.", drawing.spectrum(matrix)))
    if measures.label_heterogeneity(run) is not None and len(names) <= _MOST_DRAWN:
        text = "Who holds how many training examples of which label."
        found.append(Plate("labels", text, figures.label_split(run.partition, names)))
    return found


def of_study(study: Study) -> dict[str, list[Plate]]:
    """Groups side by side, by block in words; the single block of a study without others is called ''."""
    found: dict[str, list[Plate]] = {}
    for within, groups in study.blocks.items():
        words = study.describe(within)
        found[words] = _block(study, groups, words)
    return found


def of_groups(study: Study) -> dict[str, list[Plate]]:
    """Network, matrix, spectrum and split of the first run of each group; of the first block, of at most 12 groups.

    The split is drawn once where topologies are compared: they share it.
    """
    groups = next(iter(study.blocks.values()))[:_MOST_IN_DETAIL]
    found = {group.label: of_network(group.first) for group in groups}
    if study.compared == "topology":
        for label in list(found)[1:]:
            found[label] = [plate for plate in found[label] if plate.name != "labels"]
    return found


def _block(study: Study, groups: list[Group], words: str) -> list[Plate]:
    suffix = f"-{file_name(words)}" if words else ""
    where = f" ({words})" if words else ""
    means = {group.label: group.mean for group in groups}
    stds = {group.label: group.std for group in groups}
    costs = figures.costs_of(means.values(), wall=not is_simulated(groups[0].first))
    seeds = max(len(group.runs) for group in groups)
    bands = f" Bands are one standard deviation over {seeds} seeds." if seeds > 1 else ""
    found: list[Plate] = []
    references = study.references(groups[0].within)
    if any(mean["accuracy"].notna().any() for mean in means.values()):
        found.append(
            Plate(
                f"accuracy{suffix}",
                f"Mean accuracy over peers against what it cost{where}.{bands}",
                figures.against(means, "accuracy", costs, stds, references),
            )
        )
        values = {group.label: _ended_with(group) for group in groups}
        found.append(
            Plate(
                f"ranking{suffix}",
                f"What each {study.compared} ended with{where}: mean over peers, and the worst peer.",
                figures.ranking({label: value for label, value in values.items() if value[0] == value[0]}, references),
            )
        )
    elif any(mean["test_loss"].notna().any() for mean in means.values()):
        text = f"Test loss, mean over peers, against what it cost{where}.{bands}"
        found.append(Plate(f"loss{suffix}", text, figures.against(means, "test_loss", costs, stds)))
    if any((mean["consensus_distance"] > 0).any() for mean in means.values()):
        found.append(
            Plate(
                f"consensus{suffix}",
                f"Consensus distance after mixing{where}. What agrees exactly has no place here.{bands}",
                figures.against(means, "consensus_distance", costs, stds),
            )
        )
    if study.compared == "topology":
        points = {
            group.label: (
                group.noise_floor,
                _mean([measures.settled(curve["consensus_distance"]) for curve in group.curves.values()]),
                _ended_with(group)[0],
            )
            for group in groups
        }
        try:
            drawn = figures.prediction(points)
        except DataError:  # no topology of this block has a noise floor
            return found
        text = (
            f"Predicted before training, and measured{where}. The grey line is where topologies would lie if a round's "
            "drift were the same on all of them."
        )
        found.append(Plate(f"prediction{suffix}", text, drawn))
    return found


def file_name(words: str) -> str:
    """Words as part of a file's name."""
    return re.sub(r"[^\w.]+", "-", words).strip("-.") or "all"


def _ended_with(group: Group) -> tuple[float, float | None, float]:
    finals = [measures.final_accuracy(run) for run in group.runs.values()]
    means = [float(final.mean()) for final in finals if len(final)]
    if not means:
        return float("nan"), None, float("nan")
    worst = float(np.mean([final.min() for final in finals if len(final)]))
    return float(np.mean(means)), float(np.std(means, ddof=1)) if len(means) > 1 else None, worst


def _mean(values: list[float]) -> float:
    known = [value for value in values if value == value]
    return float(np.mean(known)) if known else float("nan")
