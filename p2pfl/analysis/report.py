"""The HTML report of a run, or of several side by side."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from p2pfl.analysis import overview, plates, tables
from p2pfl.analysis.measured import peers_of
from p2pfl.analysis.page import Part, Plate, page
from p2pfl.analysis.study import Study
from p2pfl.recipe import about

if TYPE_CHECKING:
    import pandas as pd

    from p2pfl.analysis.measured import Measured

_TERMS: Mapping[str, str] = {
    "accuracy": "share of the test examples that a peer's own model gets right at the end; mean over peers",
    "worst peer, 5th percentile, std over peers": "the same accuracies: the lowest, the one that 95 % of peers reach, "
    "and their standard deviation",
    "Jain index": "(Σa)² / (n Σa²) of the peers' accuracies: 1 where all are equal",
    "averaged model": "accuracy of the mean of all models, which no peer has unless all agree",
    "Ξ²": "consensus distance, (1/n) Σ ‖x_i − x̄‖² after mixing, in squared units of the parameters; mean over the last "
    "tenth of the rounds",
    "noise floor": "predicted before training: the variance that unit noise at every peer and round keeps up between "
    "peers under the topology's averaging; only its ratio between topologies means something",
    "gap": "1 − the second largest absolute eigenvalue of the mixing matrix; of a periodic schedule, a round's part",
    "MB a peer": "shares sent by a peer, framing included; n·deg·4P is what the topology and the model's size ask for",
    "to target": "what it took until the mean accuracy first reached the target, interpolated between evaluations; "
    "wall seconds of a simulation are the simulator's own",
    "alone, pooled, FedAvg": "references on the same data: nobody averages; one model on all data; the exact average "
    "of all models every round",
    "±": "sample standard deviation over seeds",
    "p, paired t": "scipy.stats.ttest_rel, two-sided, over seeds that both have run; Holm corrects for testing several",
    "p, Wilcoxon": "scipy.stats.wilcoxon, two-sided; with n seeds it cannot fall below 2/2ⁿ",
    "Spearman's ρ": "rank correlation: 1 where the predicted order is the measured one",
}
_MADE = "Made by p2pfl analyze. Figures and tables are in this file; it loads nothing."


def of_run(run: "Measured", facts: dict[str, Any], drawn: Sequence[Plate]) -> str:
    """The page of a single run.

    Args:
        facts: from `overview.of_run`.
        drawn: from `plates.of_run`.
    """
    curves = [plate for plate in drawn if plate.name in ("accuracy", "consensus")]
    parts = [
        Part("Figures of the run", tables=[overview.readable(facts)]),
        Part("Learning and agreement", plates=curves),
        Part("Network and data", plates=[plate for plate in drawn if plate not in curves]),
        Part("What the figures are", terms=_TERMS, folded=True),
        Part("Recipe", terms=_recipe(run), folded=True),
    ]
    lead = f"{facts['rounds']} rounds of {run.recipe.algorithm}, {run.recipe.model} on {run.recipe.data}."
    return page(overview.title(run), lead, [part for part in parts if _filled(part)], _MADE)


def title(study: Study) -> str:
    """What is compared, in a line."""
    groups = study.groups
    peers = {peers_of(group.first) for group in groups}
    who = f", {peers.pop()} peers" if len(peers) == 1 else ""
    names = {"topology": "topologies", "algorithm": "algorithms", "mixing": "weightings"}
    what = names.get(study.compared, f"values of {study.compared}")
    count = len({group.label for group in groups})
    return f"{count} {what} compared{who}" if count > 1 else f"{groups[0].label} over seeds{who}"


def beside_lines(study: Study) -> list[str]:
    """What the groups of each block are measured against, in words."""
    found = []
    for within in study.blocks:
        line = tables.references_line(study.references(within))
        where = f", {study.describe(within)}" if within else ""
        if line:
            found.append(f"For comparison{where}: {line}.")
    return found


def of_study(
    study: Study,
    table: "pd.DataFrame",
    tests: "pd.DataFrame",
    notes: Sequence[str],
    ranks: "pd.DataFrame",
    blocks: Mapping[str, Sequence[Plate]],
    target: float | None,
    folders: Sequence[str],
) -> str:
    """The page of several runs.

    Args:
        table: of `tables.comparison_table`.
        tests, notes: of `tables.tests_table` and `tables.notes`.
        ranks: of `tables.agreements_table`.
        blocks: figures by block, of `plates.of_study`.
        folders: of the runs.
    """
    recipe, labels = study.groups[0].first.recipe, [study.compared, *study.within]
    seeds = max(len(group.runs) for group in study.groups)
    lead = (
        f"{len(folders)} runs: {recipe.model} on {recipe.data}, {recipe.rounds} rounds, up to {seeds} "
        f"seed{'s' * (seeds > 1)} each."
    )
    rated = study.figure == "accuracy"
    reached = f"The target is a mean accuracy of {100 * target:g} %." if target is not None and rated else ""
    text = [line for line in (reached, *beside_lines(study)) if line]
    brief = [tables.readable(table, labels, tables.REACHED if rated else tables.REACHED_LOSS)]
    if target is not None and rated:
        brief.append(tables.readable(table, labels, tables.TO_TARGET))
    parts = [Part("Results", text=text, tables=brief)]
    parts += [Part(f"Figures: {words}" if words else "Figures", plates=drawn) for words, drawn in blocks.items()]
    if len(tests):
        why = (
            f"Each against the best of its block by mean {study.figure.replace('_', ' ')}, seed by seed. The best was "
            "chosen by the same figures, which flatters it a little."
        )
        parts.append(Part("Tests over seeds", text=[why, *(f"{note}." for note in notes)], tables=[tests]))
    if len(ranks):
        why = "Spearman's ρ: how well the noise floor, known before any training, ranks the topologies."
        parts.append(Part("Prediction against measurement", text=[why], tables=[ranks]))
    parts.append(Part("All figures of the runs", tables=[tables.readable(table, labels)], folded=True))
    first = f"Of the first seed of each {study.compared}."
    networks = [plate for drawn in plates.of_groups(study).values() for plate in drawn]
    parts.append(Part("Networks, mixing matrices, spectra and data", [first], plates=networks, folded=True))
    parts.append(Part("What the figures are", terms=_TERMS, folded=True))
    varies = {study.compared, *study.within, "seed", "data_seed", "init_seed", "topology_seed"}
    settings = _recipe(study.groups[0].first)
    shared = {key: value for key, value in settings.items() if key.partition(" ")[0] not in varies}
    parts.append(Part("Recipe that all runs share", terms=shared, folded=True))
    parts.append(Part("Runs", text=list(folders), folded=True))
    return page(title(study), lead, [part for part in parts if _filled(part)], _MADE)


def _recipe(run: "Measured") -> dict[str, str]:
    return {f"{key} = {value}": about(key) for key, value in msgspec.structs.asdict(run.recipe).items()}


def _filled(part: Part) -> bool:
    return bool(part.text or part.tables or part.plates or part.terms)
