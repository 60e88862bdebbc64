"""Several runs side by side: what varies between them, seeds brought together, prediction beside measurement."""

import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from p2pfl.analysis import measures
from p2pfl.analysis.measured import Measured, peers_of, schedule_of, topology_label
from p2pfl.analysis.runs import Run, load_run
from p2pfl.analysis.statistics import Paired, RankCorrelation, holm, paired, spearman
from p2pfl.errors import DataError
from p2pfl.graphs.prediction import Prediction
from p2pfl.recipe import Recipe

if TYPE_CHECKING:
    import pandas as pd


SEEDS = ("seed", "data_seed", "init_seed", "topology_seed")
# What changes how a run is carried out, and not what is studied.
# How long peers wait does: it says which shares come in time.
_MANNER = {"engine", "device", "workers", "batched", "evaluate_every", "min_peers", *SEEDS}
_REFERENCES_IGNORE = {"topology", "mixing", "step_s", "latency", "bandwidth", "loss_rate", "churn"}
_NOTHING = 1e-12  # what rounding leaves of a noise floor of 0
_COMPARED_FIRST = ("topology", "algorithm", "mixing")  # the first of them that varies is what is compared


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds alone.

    Attributes:
        label: of what is compared, as "ring".
        within: values of everything else that varies, in the order of `Study.within`.
        runs: by their seeds.
    """

    label: str
    within: tuple[Any, ...]
    runs: Mapping[Hashable, Measured]

    @cached_property
    def curves(self) -> dict[Hashable, "pd.DataFrame"]:
        """`measures.curves` of every run, by its seeds."""
        return {seeds: measures.curves(run) for seeds, run in self.runs.items()}

    @cached_property
    def mean(self) -> "pd.DataFrame":
        """The curves' mean over seeds, round by round, over the rounds that all runs have."""
        return _over_seeds(self.curves, "mean")

    @cached_property
    def std(self) -> "pd.DataFrame":
        """Their sample standard deviation over seeds; NaN for a single seed."""
        return _over_seeds(self.curves, "std")

    @property
    def first(self) -> Measured:
        """One of the runs, where what is asked is the same in all."""
        return next(iter(self.runs.values()))

    @property
    def noise_floor(self) -> float:
        """The predicted noise floor, mean over the runs' topologies; NaN where it is infinite or not known."""
        floor = _mean([found.noise_floor.value for found in self._predicted if found.noise_floor is not None])
        return 0.0 if abs(floor) < _NOTHING else floor

    @property
    def spectral_gap(self) -> float:
        """The gap by eigenvalues, mean over the runs' topologies; NaN where it is not known."""
        return _mean([found.spectral_gap for found in self._predicted if found.spectral_gap is not None])

    @cached_property
    def _predicted(self) -> list[Prediction]:
        """One for every different topology of the runs: graphs drawn by seed differ, fresh draws do not."""
        found: dict[Hashable, Prediction] = {}
        for run in self.runs.values():
            schedule = schedule_of(run)
            if schedule is not None:
                edges = schedule.at(0).edges if schedule.static else None
                found.setdefault((schedule.period, edges), Prediction(schedule))
        return list(found.values())


@dataclass(frozen=True)
class Comparison:
    """Two groups of one block, compared over their seeds by `Study.figure`."""

    label: str
    against: str
    within: tuple[Any, ...]
    test: Paired


@dataclass(frozen=True)
class Agreement:
    """How well noise floors rank the topologies of one block.

    Attributes:
        distance: Spearman's ρ of the floor and the settled consensus distance.
        accuracy: of the floor and the loss of accuracy: 1 where the least floor has the best accuracy.
    """

    within: tuple[Any, ...]
    distance: RankCorrelation
    accuracy: RankCorrelation


@dataclass(frozen=True)
class Study:
    """Runs in groups.

    Attributes:
        compared: the setting that is compared, "topology" where it varies.
        within: the other settings that vary; each combination of their values is a block of its own.
        groups: sorted by block, and within a block by mean accuracy, else by loss, the best first.
        beside: runs of alone, fedavg and pooled that came along: what the groups are measured against.
    """

    compared: str
    within: tuple[str, ...]
    groups: tuple[Group, ...]
    beside: tuple[Measured, ...] = ()

    @property
    def blocks(self) -> dict[tuple[Any, ...], list[Group]]:
        """The groups by block."""
        found: dict[tuple[Any, ...], list[Group]] = {}
        for group in self.groups:
            found.setdefault(group.within, []).append(group)
        return found

    def describe(self, within: tuple[Any, ...]) -> str:
        """A block in words, as "alpha = 0.1"; empty where there is only one."""
        return ", ".join(
            f"{name} = {value:g}" if isinstance(value, float) else f"{name} = {value}"
            for name, value in zip(self.within, within, strict=True)
        )

    def references_of(self, group: Group) -> dict[str, float]:
        """Mean accuracy of each reference of a group: what its runs tell, and runs of them that fit its settings."""
        found: dict[str, list[float]] = {}
        for run in group.runs.values():
            for name, value in measures.references(run).items():
                found.setdefault(name, []).append(value)
        wanted = {**dict(zip(self.within, group.within, strict=True)), self.compared: group.label}
        matters = {name: str(value) for name, value in wanted.items() if name not in _REFERENCES_IGNORE}
        for run in self.beside:
            own, final = _settings(run), measures.final_accuracy(run)
            if len(final) and all(str(own[name]) == value for name, value in matters.items()):
                found.setdefault(run.recipe.algorithm, []).append(float(final.mean()))
        return {name: float(np.mean(found[name])) for name in measures.REFERENCES if name in found}

    def references(self, within: tuple[Any, ...]) -> dict[str, float]:
        """Those that all groups of a block share; none where what is compared changes them, as alpha does."""
        groups = self.blocks[within]
        if self.compared not in _REFERENCES_IGNORE and len(groups) > 1:
            return {}
        found: dict[str, list[float]] = {}
        for group in groups:
            for name, value in self.references_of(group).items():
                found.setdefault(name, []).append(value)
        return {name: float(np.mean(found[name])) for name in measures.REFERENCES if name in found}

    @cached_property
    def figure(self) -> str:
        """What groups are ranked by: "accuracy", or "test_loss" where no run has one."""
        return "accuracy" if any(_last(group, "accuracy") for group in self.groups) else "test_loss"

    def comparisons(self) -> list[Comparison]:
        """Every group against the best of its block, over the seeds both have; p values corrected by Holm in a block.

        The best was chosen by the same figures, so its lead is flattered a little.
        """
        found = []
        for within, groups in self.blocks.items():
            best, *others = groups
            ours = _last(best, self.figure)
            tests = []
            for group in others:
                theirs = _last(group, self.figure)
                if set(ours) & set(theirs):
                    tests.append((group.label, paired(theirs, ours)))
            corrected = holm([test.t_p for _, test in tests])
            for (label, test), p in zip(tests, corrected, strict=True):
                found.append(Comparison(label, best.label, within, _with_holm(test, p)))
        return found

    def agreements(self) -> list[Agreement]:
        """Spearman's ρ of predicted against measured, a block; empty where topologies are not what is compared."""
        if self.compared != "topology":
            return []
        found = []
        for within, groups in self.blocks.items():
            floors = [group.noise_floor for group in groups]
            distances = [_mean([measures.settled(c["consensus_distance"]) for c in g.curves.values()]) for g in groups]
            accuracies = [_mean(list(_last(group, "accuracy").values())) for group in groups]
            found.append(
                Agreement(within, spearman(floors, distances), spearman(floors, [-accuracy for accuracy in accuracies]))
            )
        return found


def study(runs: Sequence[Measured]) -> Study:
    """Bring runs together that differ in their seeds alone, and find out what else varies.

    Raises:
        DataError: no runs, or two of the same recipe.
    """
    if not runs:
        raise DataError("there are no runs to compare")
    beside = tuple(run for run in runs if run.recipe.algorithm in measures.REFERENCES)
    if len(beside) < len(runs):
        runs = [run for run in runs if run.recipe.algorithm not in measures.REFERENCES]
    else:
        beside = ()  # nothing but references: then they are what is compared
    settings = [_settings(run) for run in runs]
    varying = [key for key in settings[0] if len({repr(own[key]) for own in settings}) > 1]
    compared = next((key for key in (*_COMPARED_FIRST, *varying) if key in varying), "topology")
    within = tuple(key for key in varying if key != compared)
    found: dict[tuple[tuple[Any, ...], str], dict[Hashable, Measured]] = {}
    for run, own in zip(runs, settings, strict=True):
        key = tuple(own[name] for name in within), str(own[compared])
        seeds = (run.recipe.seed, *(run.recipe.seed_of(what) for what in ("data", "init", "topology")))
        if seeds in found.setdefault(key, {}):
            where = " and ".join(_name(twin) for twin in (found[key][seeds], run))
            raise DataError(f"{where} are runs of one recipe with one seed: analyze one of them, or change the seed")
        found[key][seeds] = run
    groups = [Group(label, block, members) for (block, label), members in found.items()]
    groups.sort(key=lambda group: (_sortable(group.within), -_rank(group), group.label))
    return Study(compared, within, tuple(groups), beside)


def find_runs(paths: Sequence[str | Path], warn: Callable[[str], None] = lambda text: None) -> list[Run]:
    """The runs in these folders: each is a run, or holds runs, as a sweep's folder does, its references among them.

    Args:
        warn: is told of a run inside a folder that was not finished, or was stopped, and is left out, and of one that
            was stopped and given by itself, or that ended because nobody was left: it is taken as it is.

    Raises:
        DataError: a path that holds no run.
    """
    found: dict[Path, Run] = {}
    for path in map(Path, paths):
        if (path / "events.jsonl").exists():
            run = found[path.resolve()] = load_run(path)
            if cut := _cut_short(run):
                warn(f"{path} {cut}: its figures are those of its last rounds")
            continue
        if not path.is_dir():
            raise DataError(f"{path} is no folder: give the folder of a run or of a sweep, as runs/demo-…")
        inside = [file.parent for file in sorted(path.rglob("events.jsonl")) if not _is_of_a_run(file.parent)]
        ended = {folder: load_run(folder) for folder in inside if (folder / "summary.json").exists()}
        for folder in sorted(set(inside) - set(ended)):
            warn(f"{folder} is not finished and is left out")
        if not ended:
            raise DataError(f"{path} holds no finished run: none of its folders has events.jsonl and summary.json")
        taken = {folder: run for folder, run in ended.items() if not run.summary.get("stopped")}
        for folder, run in ended.items():
            if cut := _cut_short(run):
                then = "its figures are those of its last rounds"
                warn(f"{folder} {cut}" + (f": {then}" if folder in taken else " and is left out; resume it"))
        if not taken:
            raise DataError(f"{path} holds no run with all its rounds; resume them, or give their folders one by one")
        found |= {folder.resolve(): run for folder, run in taken.items()}
    return list(found.values())


def _cut_short(run: Run) -> str:
    """What a run that has fewer rounds than its recipe says of itself; empty where it has them all."""
    behind, planned = run.summary.get("rounds"), run.recipe.rounds
    if not isinstance(behind, int) or not planned or behind >= planned:
        return ""
    how = "was stopped" if run.summary.get("stopped") else "ended"
    return f"{how} after {behind} of {planned} rounds"


def _is_of_a_run(folder: Path) -> bool:
    """Whether it is the reference of one run, whose summary tells of it."""
    return folder.parent.name == "references" and (folder.parent.parent / "events.jsonl").exists()


def _settings(run: Measured) -> dict[str, Any]:
    recipe: Recipe = run.recipe
    settings = {key: value for key, value in msgspec.structs.asdict(recipe).items() if key not in _MANNER}
    settings["peers"] = peers_of(run)
    settings["topology"] = topology_label(run)
    # Where data are drawn, their seed is written into the name; it is a seed like the others.
    settings["data"] = re.sub(r"(?<=[:,])seed=\d+,?", "", recipe.data).rstrip(",:")
    if recipe.algorithm != "d-psgd":
        settings["algorithm"] = "d-psgd"  # the label says it: a reference stands in the row of topologies
    return settings


def _over_seeds(curves: Mapping[Hashable, "pd.DataFrame"], how: str) -> "pd.DataFrame":
    import pandas as pd

    stacked = pd.concat(list(curves.values()), keys=range(len(curves)), names=["seed", "round"])
    by_round = stacked.groupby(level="round")
    found: pd.DataFrame = by_round.mean() if how == "mean" else by_round.std(ddof=1)
    return found[by_round.size() == len(curves)]


def _last(group: Group, column: str) -> dict[Hashable, float]:
    found = {}
    for seeds, curve in group.curves.items():
        known = curve[column].dropna()
        if len(known):
            found[seeds] = float(known.iloc[-1])
    return found


def _rank(group: Group) -> float:
    accuracies = list(_last(group, "accuracy").values())
    if accuracies:
        return _mean(accuracies)
    losses = list(_last(group, "test_loss").values())
    return -_mean(losses) if losses else 0.0


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _with_holm(test: Paired, p: float | None) -> Paired:
    from dataclasses import replace

    return replace(test, holm_p=p)


def _sortable(values: tuple[Any, ...]) -> tuple[tuple[int, float, str], ...]:
    return tuple((0, float(v), "") if isinstance(v, int | float) else (1, 0.0, str(v)) for v in values)


def _name(run: Measured) -> str:
    return str(getattr(run, "folder", "a run in memory"))
