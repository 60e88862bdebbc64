"""From a recipe to a problem: data, parts, test examples, model and topologies, with every setting made definite."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import networkx as nx
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from p2pfl import partition
from p2pfl.errors import DataError, RecipeError, TopologyError
from p2pfl.graphs import named
from p2pfl.graphs.schedule import Schedule
from p2pfl.graphs.topology import Topology
from p2pfl.graphs.weighting import weighted
from p2pfl.keys import random_key
from p2pfl.learning import quadratic
from p2pfl.learning.data import data_of, load_data, parts_of
from p2pfl.learning.examples import Data, Examples, hold_back
from p2pfl.learning.learner import Loss, Source
from p2pfl.learning.models import Builder, build_model
from p2pfl.learning.tabular import read_csv
from p2pfl.partition import Indices
from p2pfl.recipe import Recipe, nearest, parse_name
from p2pfl.simulation.problem import Problem
from p2pfl.spelling import Spelled, parse
from p2pfl.topology_files import load_topology

SPLITS = {
    "auto": "",
    "iid": "",
    "dirichlet": "alpha",
    "shards": "each",
    "quantity": "alpha",
    "column": "name",
}  # every split, and its option
OWN = "own"  # how a recipe calls a model or data that came as a Python object


def resolve(
    recipe: Recipe,
    *,
    model: nn.Module | Builder | None = None,
    train: Data | Source | None = None,
    test: Source | None = None,
    loss: Loss | None = None,
    topology: Topology | Schedule | nx.Graph | None = None,
) -> Problem:
    """Read the data, split it, and bring everything together that an engine needs.

    Where the split is by chance alone or by label, peer i holds what a live peer with `--part i+1/peers` would.

    Args:
        model: a module, whose weights all peers begin with, or a function that builds one, called as
            function(input_shape, outputs) or without arguments; instead of the recipe's.
        train, test: examples instead of the recipe's data; without `test`, nothing is evaluated.
        loss: (outputs, targets) -> scalar mean, instead of the one that fits the targets.
        topology: instead of the recipe's, one that has no name.

    Raises:
        RecipeError: settings that contradict each other.
        DataError, ModelError, TopologyError: as their names say.
    """
    if recipe.rounds < 1:
        raise RecipeError("rounds = 0 goes on until stopped, and a simulation has to end: give it at least 1 round")
    if test is not None and train is None:
        raise RecipeError("test= comes with train=: give both, or name the data")
    recipe, data = _data(recipe, train, test)
    schedule = schedule_of(recipe, topology)
    parts = _parts(recipe, data)
    if recipe.algorithm == "pooled":
        parts, schedule = (partition.together(parts),), Schedule.of(Topology("pooled", 1, ()))
    if model is None and train is not None and recipe.model == OWN:
        raise RecipeError("the recipe's model was a Python object: give model= again")
    recipe = _with_model_named(recipe, data, model)
    build = _builder(recipe, data, model)
    build()  # what cannot be built is told before anything runs
    recipe = msgspec.structs.replace(recipe, topology=_spelled_out(recipe, topology))
    # Peers average as equals, and the test loss is over samples: with uneven sizes their lowest points lie apart.
    known = _is_quadratic(recipe) and loss is None and len({len(part) for part in parts}) == 1
    return Problem(
        recipe,
        data,
        parts,
        _test(recipe, data),
        schedule,
        build,
        loss or quadratic.loss_of(recipe.data),
        tuple(map(str, range(len(parts)))) if recipe.algorithm != "pooled" else ("pooled",),
        quadratic.lowest_loss(_targets(data)[partition.together(parts)]) if known else None,
    )


def labels_of(data: Data) -> npt.NDArray[np.int64] | None:
    """[n] class of every training example; None for regression."""
    return _targets(data) if data.task == "classification" else None


def _data(recipe: Recipe, train: Data | Source | None, test: Source | None) -> tuple[Recipe, Data]:
    if train is not None:
        return msgspec.structs.replace(recipe, data=train.name if isinstance(train, Data) else OWN), data_of(
            train, test
        )
    if recipe.data == OWN:
        raise RecipeError("the recipe's data was a Python object: give train= and test= again, or name the data")
    if _is_quadratic(recipe):
        # What the recipe leaves open is written into the name, so that it means the same wherever it is read.
        spelled = parse(recipe.data)
        ours = {"groups": recipe.peers, "seed": recipe.seed_of("data")}
        if recipe.samples:
            ours["samples"] = recipe.samples
        options = {**{key: str(value) for key, value in ours.items()}, **spelled.options}
        if options["groups"] != str(recipe.peers):
            raise DataError(f"{recipe.data} has its own groups, and there are {recipe.peers} peers: leave groups out")
        recipe = msgspec.structs.replace(recipe, data=str(Spelled(spelled.name, options)))
    elif recipe.target and Path(recipe.data).suffix.lower() != ".csv":
        raise RecipeError(f"target names the column of a .csv, and data is {recipe.data!r}: leave target out")
    return recipe, load_data(recipe.data, target=recipe.target or None)


def _is_quadratic(recipe: Recipe) -> bool:
    return recipe.data.partition(":")[0] == quadratic.NAME


def schedule_of(recipe: Recipe, topology: Topology | Schedule | nx.Graph | None = None) -> Schedule:
    """The topology of every round, by name, out of a file, or one's own; weighted as the recipe says.

    Raises:
        TopologyError: there is none for so many peers.
    """
    if topology is None:
        if parse_name(recipe.topology) in named.NAMES:
            return recipe.schedule(recipe.peers)
        topology = load_topology(recipe.topology, recipe.peers)
    if isinstance(topology, nx.Graph):
        topology = Topology.from_networkx(topology)
    if isinstance(topology, Topology):
        topology = Schedule.of(topology)
    if topology.nodes != recipe.peers:
        raise TopologyError(
            f"topology {topology.name!r} has {topology.nodes} nodes and there are {recipe.peers} peers: "
            f"give peers={topology.nodes}, or a topology for any number, as 'ring'"
        )
    return weighted(topology, recipe.mixing)


def _spelled_out(recipe: Recipe, topology: Topology | Schedule | nx.Graph | None) -> str:
    """The topology as the recipe tells it: the edges of a file, or of one's own, are written out where they can be."""
    if topology is None:
        if parse_name(recipe.topology) in named.NAMES:
            return recipe.topology
        of_file = load_topology(recipe.topology, recipe.peers)
        return recipe.topology if of_file.weights is not None else named.inline(of_file)
    if isinstance(topology, Schedule):
        if not topology.static:
            return topology.name
        topology = topology.at(0)
    elif isinstance(topology, nx.Graph):
        topology = Topology.from_networkx(topology)
    return topology.name if topology.weights is not None else named.inline(topology)


def _with_model_named(recipe: Recipe, data: Data, model: nn.Module | Builder | None) -> Recipe:
    if model is not None:
        return msgspec.structs.replace(recipe, model=OWN)
    if not _is_quadratic(recipe):
        return recipe
    if recipe.model not in ("mlp", "point"):  # the first is what a recipe has unless it says otherwise
        raise RecipeError(f"quadratic data has no inputs for {recipe.model!r} to look at: leave model out")
    return msgspec.structs.replace(recipe, model="point")


def _builder(recipe: Recipe, data: Data, model: nn.Module | Builder | None) -> Callable[[], nn.Module]:
    dtype = torch.float64 if recipe.dtype == "float64" else torch.float32

    def build() -> nn.Module:
        if isinstance(model, nn.Module):
            built = copy.deepcopy(model)
        else:
            built = build_model(model or recipe.model, data.input_shape, data.outputs, recipe.seed_of("init"))
        return built.to(dtype)

    return build


def _test(recipe: Recipe, data: Data) -> Examples | None:
    if not len(data.test):
        return None
    if not recipe.test_samples or _is_quadratic(recipe):
        return data.test
    if recipe.test_samples > len(data.test):
        raise DataError(
            f"test_samples is {recipe.test_samples} and {data.name} has {len(data.test)} to test on: use 0 for all"
        )
    rng = np.random.default_rng(random_key(recipe.seed_of("data"), "test samples"))
    chosen = np.sort(rng.choice(len(data.test), recipe.test_samples, replace=False))
    return data.test.subset(torch.from_numpy(chosen))


def _parts(recipe: Recipe, data: Data) -> tuple[Indices, ...]:
    """Positions of each peer's examples, by the recipe's split."""
    spelled = parse(recipe.split)
    if spelled.name not in SPLITS:
        near = nearest(spelled.name, SPLITS)
        raise RecipeError(f"there is no split {spelled.name!r}{near}; there are {', '.join(SPLITS)}")
    known = SPLITS[spelled.name]
    for option in spelled.options:
        if option != known:
            raise RecipeError(f"split {spelled.name} has no option {option!r}; it has {known or 'none'}")
    name, alpha = spelled.name, recipe.alpha
    if name == "auto":
        name = "dirichlet" if alpha > 0 else "group" if data.groups else "iid"
    elif name == "dirichlet":
        alpha = _number(spelled, "alpha", recipe.alpha or None)
        if recipe.alpha not in (0, alpha):
            raise RecipeError(f"alpha is {recipe.alpha:g}, and split is {recipe.split}: give one of them")
    elif alpha > 0:
        raise RecipeError(f"alpha is of a Dirichlet split, and split is {name}: leave alpha out, or split")
    key = random_key(recipe.seed_of("data"), "partition")
    labels, peers, samples, n = labels_of(data), recipe.peers, recipe.samples, len(data.train)
    if peers > n and not samples:
        raise DataError(
            f"{data.name} has {n} examples for {peers} peers: ask for at most {n} peers, or say how many samples each "
            "one draws, as samples=100"
        )
    match name:
        case "group":
            return parts_of(data, peers, None, recipe.seed_of("data"))
        case "iid":
            return partition.drawn_iid(n, peers, samples, key) if samples else partition.iid(n, peers, key)
        case "dirichlet":
            _classes_for(name, data)
            if not samples:
                return parts_of(data, peers, alpha, recipe.seed_of("data"))
            assert labels is not None
            return partition.drawn_dirichlet(labels, peers, alpha, samples, key)
        case "shards":
            by = labels if labels is not None else _targets(data)[:, 0]
            return partition.shards(by, peers, int(_number(spelled, "each", 2)), key, samples)
        case "quantity":
            return partition.quantity(n, peers, _number(spelled, "alpha", 0.5), key, samples)
        case _:
            return partition.grouped(_column(recipe, data, spelled), peers, key, samples)


def _classes_for(name: str, data: Data) -> None:
    if data.task != "classification":
        raise DataError(
            f"a {name} split is by class, and {data.name} has numbers for targets: use alpha = 0, or split = shards, "
            "which sorts by the target"
        )


def _number(spelled: Spelled, key: str, default: float | None) -> float:
    text = spelled.options.get(key)
    if text is None:
        if default is None:
            raise RecipeError(f"split {spelled.name} needs {key}, as {spelled.name}:{key}=0.1")
        return default
    try:
        return float(text) if key == "alpha" else int(text)
    except ValueError as error:
        kind = "a number" if key == "alpha" else "a whole number"
        raise RecipeError(f"{key} of split {spelled.name} is {text!r}: write {kind}") from error


def _column(recipe: Recipe, data: Data, spelled: Spelled) -> npt.NDArray[np.str_]:
    """[n] what stands in a column of the training rows of a .csv."""
    column = spelled.options.get("name")
    if Path(recipe.data).suffix.lower() != ".csv":
        raise RecipeError(f"a split by column needs data from a .csv, and data is {recipe.data!r}")
    frame = read_csv(Path(recipe.data).expanduser())
    if column is None or column not in frame:
        columns = ", ".join(map(str, frame.columns))
        raise RecipeError(f"split column needs the name of one, as column:name=site; {data.name} has {columns}")
    train, _ = hold_back(len(frame))
    return frame[column].iloc[train].astype(str).to_numpy(dtype=np.str_)


def _targets(data: Data) -> npt.NDArray[Any]:
    targets: npt.NDArray[Any] = data.train.targets.numpy()
    return targets


def part_counts(problem: Problem) -> tuple[Sequence[str], npt.NDArray[np.int64]]:
    """Label names, and [peers, labels] training examples; one label, "examples", where there are no classes."""
    labels = labels_of(problem.data)
    if labels is None:
        return ("examples",), np.array([[len(part)] for part in problem.parts], dtype=np.int64)
    classes = len(problem.data.labels)
    return problem.data.labels, np.stack([np.bincount(labels[part], minlength=classes) for part in problem.parts])
