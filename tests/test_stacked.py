"""Blocks of peers are trained at once as each by itself, whatever their batches; and where that is worth it."""

import math
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_matrix_engine import gap, mlp, numbers, problem, run
from torch import nn

from p2pfl.simulation.dense import dense_layers
from p2pfl.simulation.problem import Problem
from p2pfl.simulation.stacked import StackedStepper, peers_stacked, worth_stacking
from p2pfl.simulation.steppers import best_path, stepper_for
from p2pfl.simulation.vectorized import blocks_of

CPU = torch.device("cpu")


def trained(path: str, some: Problem, peers: list[int], rounds: int = 1) -> tuple[torch.Tensor, list[float]]:
    """Vectors of some peers as one block, from different starts, and their losses in the last round."""
    dtype = torch.float64 if some.recipe.dtype == "float64" else torch.float32
    stepper = stepper_for(path, some, dtype, CPU)
    start = torch.cat([p.detach().reshape(-1) for p in some.build().parameters()])
    rows = start.repeat(len(peers), 1) * torch.linspace(0.5, 1.5, len(peers), dtype=dtype).unsqueeze(1)
    losses: list[float] = []
    for round in range(rounds):
        losses = stepper.train(round, peers, list(rows.unbind()))
    return rows, losses


def layers_of(some: Problem) -> Any:
    layers = dense_layers(some.build(), some)
    assert not isinstance(layers, str)
    return layers


def deep() -> nn.Module:
    """No bias at the ends, three activations."""
    inner = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 5), nn.ReLU())
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8, bias=False), nn.Tanh(), inner, nn.Linear(5, 3, bias=False))


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=7),
    batch_size=st.integers(1, 12),
    plan=st.sampled_from([{"epochs": 1}, {"epochs": 2}, {"steps": 1}, {"steps": 5}]),
    kind=st.sampled_from(["mlp", "deep", "logistic", "regression"]),
)
def test_a_block_is_trained_as_each_of_its_peers_to_1e_12_in_float64(
    sizes: list[int], batch_size: int, plan: dict[str, Any], kind: str
) -> None:
    models = {"mlp": mlp, "deep": deep, "logistic": lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3))}
    data = numbers() if kind == "regression" else None
    some = problem(
        models.get(kind, lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2))),
        data, sizes=tuple(sizes), batch_size=batch_size, lr=0.05, **plan,
    )  # fmt: skip
    peers = list(range(len(sizes)))
    stacked, losses = trained("stacked", some, peers, rounds=2)
    alone, plain = trained("dense", some, peers, rounds=2)
    assert gap(stacked, alone) < 1e-12
    assert losses == pytest.approx(plain, rel=1e-12)


def test_in_float32_a_round_is_within_1e_6() -> None:
    some = problem(deep, dtype="float32", epochs=2)
    stacked, losses = trained("stacked", some, [3, 0, 5])
    alone, plain = trained("dense", some, [3, 0, 5])
    assert 0 < gap(stacked, alone) < 1e-6
    assert losses == pytest.approx(plain, rel=1e-6)


def test_more_steps_than_are_laid_out_together_agree() -> None:
    some = problem(sizes=(50, 3, 41), batch_size=1, epochs=2)  # 100, 6 and 82 steps; 16 are
    stacked, losses = trained("stacked", some, [0, 1, 2])
    alone, plain = trained("dense", some, [0, 1, 2])
    assert gap(stacked, alone) < 1e-12
    assert losses == pytest.approx(plain, rel=1e-12)


def test_a_peer_that_diverges_leaves_the_others_of_its_block_alone() -> None:
    some = problem(sizes=(9, 9, 3), steps=2)
    stepper = stepper_for("stacked", some, torch.float64, CPU)
    rows = [torch.cat([p.detach().reshape(-1) for p in some.build().parameters()]) for _ in range(3)]
    rows[1].fill_(float("inf"))
    losses = stepper.train(0, [0, 1, 2], rows)
    assert torch.isfinite(torch.tensor(losses)).tolist() == [True, False, True]
    assert torch.isfinite(rows[0]).all()
    assert torch.isfinite(rows[2]).all()


def test_a_diverged_peer_leaves_nothing_in_the_buffers_for_the_next_block() -> None:
    some = problem(sizes=(9, 9, 3))  # 3, 3 and 1 steps
    stepper = stepper_for("stacked", some, torch.float64, CPU)
    start = torch.cat([p.detach().reshape(-1) for p in some.build().parameters()])
    assert not math.isfinite(stepper.train(0, [0, 1], [start.clone(), torch.full_like(start, float("inf"))])[1])
    losses = stepper.train(0, [0, 2], [start.clone(), start.clone()])
    plain = stepper_for("dense", some, torch.float64, CPU).train(0, [0, 2], [start.clone(), start.clone()])
    assert losses == pytest.approx(plain, rel=1e-12)


def wide(peers: int, hidden: int = 7, examples: int = 9, **settings: Any) -> Problem:
    """So many peers of a network 12-hidden-3, batches of 4."""
    return problem(lambda: nn.Sequential(*_layers(hidden)), sizes=(examples,) * peers, **settings)


def _layers(hidden: int) -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(12, hidden), nn.ReLU(), nn.Linear(hidden, 3)]


@pytest.mark.parametrize(
    ("some", "path"),
    [
        (wide(16), "stacked"),
        (wide(15), "dense"),  # too few to share calls
        (wide(16, hidden=7000), "stacked"),  # 7,000 x 16 + 3 + 4 x 12 numbers of 4 bytes are 448,204: 9 in 4 MB
        (wide(16, hidden=9000), "dense"),  # 7 in 4 MB
    ],
    ids=["small", "few", "9-fit", "7-fit"],
)
def test_what_is_small_and_many_is_stacked(some: Problem, path: str) -> None:
    some = replace(some, recipe=msgspec.structs.replace(some.recipe, dtype="float32"))
    assert best_path(some, torch.float32, CPU) == (path, "")
    assert worth_stacking(some, layers_of(some)) == (path == "stacked")


@pytest.mark.parametrize(
    ("some", "peers"),
    [
        (wide(20), 20),  # 60 steps: a block of all
        (wide(40), 32),  # 120 steps: as many as are worth it
        (wide(20, examples=60), 8),  # 300 steps: blocks for several workers
        (wide(20, hidden=9000, dtype="float32"), 7),  # that fit
        (wide(20, hidden=60_000, dtype="float32"), 1),
    ],
)
def test_blocks_are_as_large_as_fits_and_leaves_work_for_others(some: Problem, peers: int) -> None:
    assert peers_stacked(some, layers_of(some)) == peers
    stepper = StackedStepper(some, layers_of(some), torch.float32, CPU)
    assert stepper.peers_at_once == peers


@pytest.mark.parametrize("workers", [2, 3])
def test_blocks_and_so_bits_are_the_same_for_any_number_of_workers(workers: int) -> None:
    one, alone = run(wide(20, examples=55, rounds=2, dtype="float32"))
    more, crowd = run(wide(20, examples=55, rounds=2, dtype="float32", workers=workers))
    assert (one.facts["path"], one.facts["workers"], more.facts["workers"]) == ("stacked", 1, workers)
    assert one.facts["path_is"] == "a backward pass written by hand, a block of peers at once"
    assert len(blocks_of([55] * 20, 8)) == 3
    assert torch.equal(one.vectors, more.vectors)
    assert [a.train_loss.tolist() for a in alone.reports] == [b.train_loss.tolist() for b in crowd.reports]
