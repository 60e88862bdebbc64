"""From a recipe to a problem: what live peers would hold, everything made definite, and mends for what cannot be."""

from collections import Counter
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from torch import nn

from p2pfl.errors import DataError, ModelError, RecipeError, TopologyError, UsageError
from p2pfl.graphs.topology import Topology
from p2pfl.learning.data import load_data
from p2pfl.learning.models import build_model
from p2pfl.recipe import Recipe, run_recipe_of
from p2pfl.simulation.problem import Problem
from p2pfl.simulation.resolve import part_counts, resolve

CSV = "site,size,price\n" + "".join(f"{'abc'[i % 3]},{i},{2 * i}.5\n" for i in range(30))


def problem(**settings: Any) -> Problem:
    return resolve(run_recipe_of({"peers": 4, "model": "logistic", **settings}))


def classes(resolved: Problem, peer: int) -> Counter[int]:
    return Counter(resolved.examples(peer).targets.tolist())


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_peers_hold_what_live_peers_with_a_part_would(alpha: float) -> None:
    resolved = problem(alpha=alpha, seed=3)
    for peer in range(4):
        live = load_data("mnist10k", part=(peer + 1, 4), alpha=alpha or None, seed=3)
        assert resolved.examples(peer).fingerprint() == live.train.fingerprint()


def test_the_seed_of_data_alone_moves_the_split_and_that_of_init_the_weights() -> None:
    def facts(**seeds: int) -> tuple[list[int], float]:
        resolved = problem(seed=5, **seeds)
        return resolved.parts[0][:9].tolist(), float(next(resolved.build().parameters()).detach().sum())

    parts, weights = facts()
    assert facts(data_seed=5, init_seed=5, topology_seed=9) == (parts, weights)
    assert facts(data_seed=6)[0] != parts
    assert facts(data_seed=6)[1] == weights
    assert facts(init_seed=6)[0] == parts
    assert facts(init_seed=6)[1] != weights


def test_the_model_begins_with_the_weights_of_live_peers_each_time() -> None:
    resolved = problem(model="mlp:hidden=8", seed=7)
    live = build_model("mlp:hidden=8", (1, 28, 28), 10, seed=7)
    for built in (resolved.build(), resolved.build()):
        assert all(torch.equal(a, b) for a, b in zip(built.parameters(), live.parameters(), strict=True))


def test_float64_is_the_same_weights_wider() -> None:
    narrow, wide = problem().build(), problem(dtype="float64").build()
    for a, b in zip(narrow.parameters(), wide.parameters(), strict=True):
        assert b.dtype == torch.float64
        assert torch.equal(a.double(), b)


def test_samples_let_thousands_of_peers_share_the_data() -> None:
    resolved = problem(peers=2000, samples=600)
    assert {len(part) for part in resolved.parts} == {600}
    assert all(len(np.unique(part)) == 600 for part in resolved.parts)


def test_samples_of_a_dirichlet_split_have_few_classes() -> None:
    resolved = problem(peers=50, samples=100, alpha=0.1)
    assert {len(part) for part in resolved.parts} == {100}
    assert np.mean([len(classes(resolved, peer)) for peer in range(50)]) < 6


@pytest.mark.parametrize(("split", "most"), [("shards", 4), ("shards:each=1", 3), ("dirichlet:alpha=0.01", 6)])
def test_lopsided_splits_leave_few_classes(split: str, most: int) -> None:
    resolved = problem(split=split, peers=10)
    assert sorted(np.concatenate(resolved.parts).tolist()) == list(range(8000))
    assert np.mean([len(classes(resolved, peer)) for peer in range(10)]) <= most


def test_a_split_by_quantity_has_uneven_sizes() -> None:
    sizes = [len(part) for part in problem(split="quantity:alpha=0.3", peers=10).parts]
    assert (sum(sizes), max(sizes) > 3 * min(sizes)) == (8000, True)


def test_a_split_by_column_gives_each_peer_a_site(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(CSV)
    resolved = problem(data=str(file), target="price", split="column:name=site", peers=3)
    one_hot = [resolved.examples(peer).inputs[:, :3] for peer in range(3)]
    assert [len(torch.unique(rows, dim=0)) for rows in one_hot] == [1, 1, 1]
    assert len(torch.unique(torch.cat(one_hot), dim=0)) == 3


def test_pooled_is_one_peer_with_what_all_hold() -> None:
    assert [part.tolist() for part in problem(algorithm="pooled").parts] == [list(range(8000))]
    drawn = problem(samples=10)
    pooled = problem(samples=10, algorithm="pooled")
    assert pooled.parts[0].tolist() == sorted(set(np.concatenate(drawn.parts).tolist()))
    assert (pooled.peers, pooled.schedule.nodes, pooled.recipe.peers) == (1, 1, 4)


@pytest.mark.parametrize("algorithm", ["alone", "fedavg"])
def test_other_references_keep_the_peers(algorithm: str) -> None:
    reference, network = problem(algorithm=algorithm, alpha=0.5), problem(alpha=0.5)
    for own, other in zip(reference.parts, network.parts, strict=True):
        assert own.tolist() == other.tolist()


def test_test_samples_are_drawn_once_for_all() -> None:
    test = problem(test_samples=50).test
    assert test is not None
    assert len(test) == 50
    again = problem(test_samples=50, alpha=0.5).test
    assert again is not None
    assert again.fingerprint() == test.fingerprint()


def test_quadratics_know_their_optimum_and_keep_their_groups() -> None:
    resolved = problem(data="quadratic:dim=3", model="mlp", seed=4, peers=5, samples=7)
    assert resolved.recipe.data == "quadratic:groups=5,seed=4,samples=7,dim=3"
    assert resolved.recipe.model == "point"
    assert [part.tolist() for part in resolved.parts[:2]] == [list(range(7)), list(range(7, 14))]
    assert resolved.loss is not None
    assert resolved.optimum is not None
    points = resolved.data.train.targets
    at_optimum = resolved.loss(points.mean(dim=0).expand(35, 3), points)
    assert float(at_optimum) == pytest.approx(resolved.optimum, rel=1e-6)


def test_peers_of_uneven_sizes_leave_the_optimum_open() -> None:
    uneven: dict[str, Any] = {"data": "quadratic:dim=3", "model": "mlp", "split": "quantity"}
    assert len({len(part) for part in problem(**uneven).parts}) > 1
    assert problem(**uneven).optimum is None
    assert problem(**uneven, algorithm="pooled").optimum is not None  # whose objective is over samples


def test_a_resolved_recipe_resolves_to_itself() -> None:
    for settings in ({"data": "quadratic:dim=3"}, {"alpha": 0.5}, {"topology": "complete", "samples": 10}):
        resolved = problem(**{"model": "mlp", **settings})
        again = resolve(resolved.recipe)
        assert again.recipe == resolved.recipe
        for own, other in zip(again.parts, resolved.parts, strict=True):
            assert own.tolist() == other.tolist()


def test_own_model_data_and_loss() -> None:
    inputs, targets = torch.randn(40, 3), torch.randint(0, 2, (40,))
    module = nn.Linear(3, 2)
    loss = nn.functional.cross_entropy
    resolved = resolve(Recipe(peers=4), model=module, train=(inputs, targets), loss=loss)
    built = resolved.build()
    assert built is not module
    assert torch.equal(built.weight, module.weight)
    assert (resolved.test, resolved.loss, resolved.recipe.model, resolved.recipe.data) == (None, loss, "own", "own")
    assert sum(len(part) for part in resolved.parts) == 40


def test_a_function_builds_the_model_with_equal_weights_each_time() -> None:
    def narrow(shape: tuple[int, ...], outputs: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(shape[1] * shape[2], outputs))

    state = torch.get_rng_state()
    resolved = resolve(Recipe(peers=2), model=narrow)
    first, second = (next(resolved.build().parameters()) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


def test_own_test_data_is_evaluated_on() -> None:
    train, test = (torch.randn(20, 3), torch.randn(20, 1)), (torch.randn(5, 3), torch.randn(5, 1))
    resolved = resolve(Recipe(peers=2, model="logistic"), train=train, test=test)
    assert resolved.test is not None
    assert (len(resolved.test), resolved.data.task) == (5, "regression")


def test_own_graphs_are_topologies_and_their_edges_are_in_the_recipe() -> None:
    resolved = resolve(Recipe(peers=10), topology=nx.petersen_graph())
    assert len(resolved.schedule.at(0).edges) == 15
    again = resolve(resolved.recipe)
    assert again.schedule.at(0).edges == resolved.schedule.at(0).edges


def test_a_file_is_a_topology(tmp_path: Path) -> None:
    file = tmp_path / "kite.toml"
    file.write_text('name = "kite"\nedges = [[0, 1], [1, 2], [2, 0], [2, 3]]\n')
    resolved = problem(topology=str(file))
    file.unlink()
    assert resolve(resolved.recipe).schedule.at(0).edges == ((0, 1), (0, 2), (1, 2), (2, 3))


def test_explicit_weights_of_ones_own_stay() -> None:
    third = 1 / 3
    weights = tuple((i, j, third) for i in range(3) for j in range(3))
    own = Topology("own", 3, ((0, 1), (0, 2), (1, 2)), weights=weights)
    assert resolve(Recipe(peers=3), topology=own).schedule.at(0).weights is not None


def test_counts_by_label_add_up() -> None:
    labels, counts = part_counts(problem(alpha=0.3))
    assert (labels, counts.shape, int(counts.sum())) == (tuple("0123456789"), (4, 10), 8000)
    labels, counts = part_counts(problem(data="quadratic", model="mlp"))
    assert (labels, counts.tolist()) == (("examples",), [[100]] * 4)


@pytest.mark.parametrize(
    ("settings", "kind", "says"),
    [
        ({"peers": 9000}, DataError, "mnist10k has 8000 examples for 9000 peers: ask for at most 8000 peers, or say"),
        ({"rounds": 0}, RecipeError, "a simulation has to end: give it at least 1 round"),
        ({"split": "shard"}, RecipeError, "there is no split 'shard'; did you mean 'shards'?; there are auto, iid"),
        ({"split": "shards:of=2"}, RecipeError, "split shards has no option 'of'; it has each"),
        ({"split": "shards:each=two"}, RecipeError, "each of split shards is 'two': write a whole number"),
        ({"split": "dirichlet"}, RecipeError, "split dirichlet needs alpha, as dirichlet:alpha=0.1"),
        ({"split": "dirichlet:alpha=x"}, RecipeError, "alpha of split dirichlet is 'x': write a number"),
        ({"split": "dirichlet:alpha=1", "alpha": 0.1}, RecipeError, "alpha is 0.1, and split is dirichlet:alpha=1"),
        ({"split": "iid", "alpha": 0.1}, RecipeError, "alpha is of a Dirichlet split, and split is iid: leave"),
        (
            {"split": "column:name=site"},
            RecipeError,
            "a split by column needs data from a .csv, and data is 'mnist10k'",
        ),
        ({"data": "quadratic", "alpha": 0.1, "model": "mlp"}, DataError, "use alpha = 0, or split = shards"),
        ({"data": "quadratic", "model": "cnn"}, RecipeError, "no inputs for 'cnn' to look at: leave model out"),
        ({"data": "quadratic:groups=3", "model": "mlp"}, DataError, "there are 4 peers: leave groups out"),
        ({"target": "x"}, RecipeError, "target names the column of a .csv, and data is 'mnist10k': leave target out"),
        ({"test_samples": 5000}, DataError, "test_samples is 5000 and mnist10k has 2000 to test on: use 0 for all"),
        ({"model": "mpl"}, ModelError, "did you mean mlp?"),
        ({"topology": "torus", "peers": 7}, TopologyError, "there is no torus of 7 peers: make it 6 or 8 peers"),
        ({"topology": "rnig"}, TopologyError, "did you mean 'ring'"),
        ({"mixing": "magic"}, TopologyError, "there is no weighting 'magic'"),
        ({"model": "own"}, ModelError, "there is no model 'own'"),
        ({"data": "own"}, RecipeError, "the recipe's data was a Python object: give train= and test= again"),
    ],
)
def test_what_cannot_be_says_the_mend(settings: dict[str, Any], kind: type[UsageError], says: str) -> None:
    with pytest.raises(kind) as refused:
        problem(**settings)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_column_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(CSV)
    with pytest.raises(RecipeError, match=r"column:name=site; rows has site, size, price"):
        problem(data=str(file), target="price", split="column:name=sites")
    with pytest.raises(DataError, match="there are 3 groups for 4 parts; ask for at most 3 parts"):
        problem(data=str(file), target="price", split="column:name=site")


def test_a_topology_of_another_size_and_a_test_part_alone_are_refused() -> None:
    with pytest.raises(TopologyError, match="has 10 nodes and there are 4 peers: give peers=10"):
        resolve(Recipe(peers=4), topology=nx.petersen_graph())
    with pytest.raises(RecipeError, match="test= comes with train="):
        resolve(Recipe(), test=(torch.zeros(2, 3), torch.zeros(2, 1)))
