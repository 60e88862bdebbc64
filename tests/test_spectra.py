"""Spectra, gaps, noise floors and effective neighbors of one mixing matrix, or of several that take turns."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from p2pfl.graphs import spectra
from p2pfl.graphs.links import bytes_per_round, counted, diameter, finite_time_rounds, links
from p2pfl.graphs.mixing import mixing_csr, mixing_matrix
from p2pfl.graphs.named import build, schedule
from p2pfl.graphs.noise import effective_neighbors_over, noise_floor_over, simulate
from p2pfl.graphs.schedule import Schedule
from p2pfl.graphs.spectra import (
    beside_consensus,
    effective_neighbors,
    is_doubly_stochastic,
    is_normal,
    noise_floor_of,
    singular_gap,
    spectral_gap,
    spectrum,
)
from p2pfl.graphs.topology import Topology

Dense = spectra.Dense


def shuffled(matrix: Dense, seed: int = 0) -> Dense:
    """The same with the nodes in another order: no Fourier transform finds its eigenvalues."""
    order = np.random.default_rng(seed).permutation(len(matrix))
    return matrix[np.ix_(order, order)]


GAPS = {  # theory.md §1
    "ring": (0.050747, 0.020945, 0.003210),
    "chain": (0.012810, 0.005257, 0.000803),
    "star": (0.0625, 0.04, 0.015625),
    "complete": (1, 1, 1),
    "torus": (0.4, 0.276393, 0.117157),
    "grid": (0.131359, 0.083787, 0.032295),
    "hypercube": (0.4, None, 0.285714),
    "exponential": (0.4, 0.489139, 0.285714),
    "exponential-symmetric": (0.5, 0.610085, 0.333333),
    "tree": (0.022040, 0.013371, 0.004448),
    "barbell": (0.022685, 0.005953, 0.001786),
}


@pytest.mark.parametrize(
    ("name", "nodes", "gap"),
    [
        (name, nodes, gap)
        for name, gaps in GAPS.items()
        for nodes, gap in zip((16, 25, 64), gaps, strict=True)
        if gap is not None
    ],
)
def test_gaps_by_eigenvalues_and_singular_values(name: str, nodes: int, gap: float) -> None:
    for matrix in (mixing_csr(build(name, nodes)), mixing_matrix(build(name, nodes))):
        assert spectral_gap(matrix) == pytest.approx(gap, abs=5e-7)
        assert singular_gap(matrix) == pytest.approx(gap, abs=5e-7)  # all of these are normal
    assert spectral_gap(shuffled(mixing_matrix(build(name, nodes)))) == pytest.approx(gap, abs=5e-7)


@pytest.mark.parametrize("nodes", [3, 5, 16, 25, 64])
def test_spectrum_of_a_ring(nodes: int) -> None:
    expected = np.sort(1 / 3 + 2 / 3 * np.cos(2 * np.pi * np.arange(nodes) / nodes))[::-1]
    assert np.abs(spectrum(mixing_csr(build("ring", nodes))) - expected).max() < 1e-12


@pytest.mark.parametrize("side", [3, 4, 5, 8])
def test_spectrum_of_a_torus(side: int) -> None:
    wave = np.cos(2 * np.pi * np.arange(side) / side)
    expected = np.sort((1 / 5 + 2 / 5 * (wave[:, None] + wave)).ravel())[::-1]
    assert np.abs(spectrum(mixing_csr(build("torus", side * side))) - expected).max() < 1e-12


@pytest.mark.parametrize("dimension", [1, 2, 3, 4, 6])
def test_spectrum_of_a_hypercube(dimension: int) -> None:
    expected = [1 - 2 * k / (dimension + 1) for k in range(dimension + 1) for _ in range(math.comb(dimension, k))]
    assert np.abs(spectrum(mixing_csr(build("hypercube", 2**dimension))) - expected).max() < 1e-12


@pytest.mark.parametrize("nodes", [3, 16, 64])
def test_spectrum_of_a_star(nodes: int) -> None:
    expected = [1.0, *[1 - 1 / nodes] * (nodes - 2), 0.0]
    assert np.abs(spectrum(mixing_csr(build("star", nodes))) - expected).max() < 1e-12


@pytest.mark.parametrize(("name", "nodes"), [("exponential", 25), ("torus", 36), ("hypercube", 32), ("ring", 7)])
def test_fourier_transform_finds_what_dense_eigenvalues_are(name: str, nodes: int) -> None:
    matrix = mixing_csr(build(name, nodes))
    assert spectra.looks_the_same_everywhere(matrix)
    dense = shuffled(matrix.toarray())
    assert not spectra.looks_the_same_everywhere(dense)
    one, other = np.asarray(spectrum(matrix)), np.asarray(spectrum(dense))
    assert max(np.abs(other - value).min() for value in one) < 1e-12
    assert max(np.abs(one - value).min() for value in other) < 1e-12
    assert (one**3).sum() == pytest.approx((other**3).sum(), abs=1e-10)  # multiplicities too


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.integers(0, 99))
def test_a_circulant_of_any_weights_has_its_eigenvalues_in_the_transform(nodes: int, seed: int) -> None:
    row = np.random.default_rng(seed).random(nodes) + 0.1
    matrix = np.stack([np.roll(row, shift) for shift in range(nodes)])
    assert spectra.looks_the_same_everywhere(matrix)
    expected = np.linalg.eigvals(matrix)
    assert max(np.abs(expected - value).min() for value in spectrum(matrix)) < 1e-9


def test_asking_changes_nothing_in_the_matrix() -> None:
    matrix = mixing_csr(build("complete", 2))  # both keep a half
    matrix.data[0] = 0
    before = matrix.copy()
    spectrum(matrix)
    assert np.array_equal(matrix.indices, before.indices)
    assert np.array_equal(matrix.data, before.data)


N_W = [  # theory.md §1: γ = .9, .99
    ("ring", 16, 6.60, 13.12),
    ("star", 16, 2.32, 8.22),
    ("torus", 16, 12.23, 15.50),
    ("complete", 16, 16, 16),
    ("ring", 25, 6.63, 16.10),
    ("torus", 25, 15.39, 23.44),
    ("ring", 64, 6.63, 17.81),
    ("torus", 64, 19.11, 50.17),
    ("hypercube", 64, 29.15, 56.81),
    ("barbell", 64, 32.56, 36.86),
]


@pytest.mark.parametrize(("name", "nodes", "at_9", "at_99"), N_W)
def test_effective_neighbors(name: str, nodes: int, at_9: float, at_99: float) -> None:
    matrix = mixing_csr(build(name, nodes))
    assert effective_neighbors(matrix, 0.9) == pytest.approx(at_9, abs=5.1e-3)
    assert effective_neighbors(matrix, 0.99) == pytest.approx(at_99, abs=5.1e-3)
    assert effective_neighbors_over([matrix], 0.9) == pytest.approx(at_9, abs=5.1e-3)


@pytest.mark.parametrize(
    ("name", "nodes", "floor"),
    [
        ("ring", 16, 1.47208),
        ("ring", 25, 2.583),
        ("star", 25, 10.815),
        ("torus", 25, 0.2691),
        ("chain", 25, 5.693),
        ("exponential", 25, 0.1562),
        ("complete", 25, 0),
    ],
)
def test_noise_floors(name: str, nodes: int, floor: float) -> None:  # theory.md §3, §6
    matrix = mixing_csr(build(name, nodes))
    assert noise_floor_of(spectrum(matrix)) == pytest.approx(floor, abs=5.1e-4)
    assert noise_floor_over([matrix]) == pytest.approx(floor, abs=5.1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 14), st.integers(0, 99))
def test_formula_and_matrix_equation_agree_on_any_graph(nodes: int, seed: int) -> None:
    matrix = mixing_matrix(build(f"erdos-renyi:p=0.6,seed={seed}", nodes))
    values = spectrum(matrix)
    assert noise_floor_over([matrix]) == pytest.approx(noise_floor_of(values), rel=1e-9, abs=1e-12)
    assert effective_neighbors_over([matrix], 0.95) == pytest.approx(effective_neighbors(matrix, 0.95), rel=1e-9)
    assert 1 - 1e-9 <= effective_neighbors(matrix, 0.95) <= nodes + 1e-9


def test_one_matrix_taking_turns_with_itself_is_one_matrix() -> None:
    matrix = mixing_csr(build("grid", 12))
    assert noise_floor_over([matrix] * 3) == pytest.approx(noise_floor_over([matrix]), rel=1e-12)
    assert effective_neighbors_over([matrix] * 2, 0.9) == pytest.approx(effective_neighbors(matrix, 0.9), rel=1e-12)
    product = np.linalg.matrix_power(matrix.toarray(), 3)
    assert spectral_gap(product, rounds=3) == pytest.approx(spectral_gap(matrix), rel=1e-9)
    assert singular_gap(product, rounds=3) == pytest.approx(singular_gap(matrix), rel=1e-9)


def test_networks_in_parts_never_agree() -> None:
    parts = csr_array(np.kron(np.eye(2), np.full((2, 2), 0.5)))
    assert spectral_gap(parts) == pytest.approx(0, abs=1e-12)
    assert noise_floor_of(spectrum(parts)) == math.inf
    assert noise_floor_over([parts]) == math.inf
    assert effective_neighbors(parts, 0.9) == pytest.approx(2)


def test_singular_values_see_what_eigenvalues_do_not() -> None:
    # Exact after two rounds, so its eigenvalues are 0, but the first round can keep a direction as it is.
    matrix = np.array([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5], [0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    assert is_doubly_stochastic(matrix)
    assert not is_normal(matrix)
    assert spectral_gap(matrix) > 0.999
    assert singular_gap(matrix) == pytest.approx(0, abs=1e-12)
    assert noise_floor_over([matrix]) == pytest.approx(0.25)  # only the last round's noise, ‖W − J‖²_F / n
    assert spectral_gap(matrix @ matrix, rounds=2) == 1.0


def test_weights_that_are_not_doubly_stochastic_are_told_and_can_lead_apart() -> None:
    star = np.eye(8) / 2
    star[1:, 0], star[0, :] = 0.5, 1 / 8
    assert not is_doubly_stochastic(star)
    assert singular_gap(star) < 0
    assert 0 < spectral_gap(star) < 1


def test_one_node_agrees_with_itself() -> None:
    one = mixing_csr(build("ring", 1))
    assert (spectral_gap(one), singular_gap(one), noise_floor_of(spectrum(one)), noise_floor_over([one])) == (
        1,
        1,
        0,
        0,
    )
    assert len(beside_consensus(spectrum(one))) == 0


def test_large_matrices_by_sparse_solvers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectra, "SYMMETRIC_NODES", 100)
    monkeypatch.setattr(spectra, "DENSE_NODES", 100)
    assert spectral_gap(mixing_csr(build("star", 500))) == pytest.approx(1 / 500, rel=1e-7)
    assert spectral_gap(mixing_csr(build("chain", 900))) == pytest.approx(
        2 / 3 * (1 - math.cos(math.pi / 900)), rel=1e-6
    )
    # The lower end decides: two halves of which each only listens to the other.
    halves = csr_array(np.kron([[0.02, 0.98], [0.98, 0.02]], mixing_matrix(build("random-regular", 60))))
    assert spectral_gap(halves) == pytest.approx(0.04, rel=1e-7)
    directed = shuffled(mixing_matrix(build("exponential", 128)))
    assert spectral_gap(csr_array(directed)) == pytest.approx(0.25, rel=1e-7)
    assert singular_gap(csr_array(directed)) == pytest.approx(0.25, rel=1e-7)
    assert not spectra.has_whole_spectrum(csr_array(directed))


def test_thousands_of_nodes_on_a_torus_by_transform() -> None:
    matrix = mixing_csr(build("torus", 16_384))
    assert spectral_gap(matrix) == pytest.approx(2 / 5 * (1 - math.cos(2 * math.pi / 128)), rel=1e-9)
    assert spectra.has_whole_spectrum(matrix)


@pytest.mark.parametrize("name", ["torus", "random-regular", "one-peer-exponential", "base:k=2"])
def test_simulation_finds_the_exact_figures(name: str) -> None:
    turns = schedule(name, 12)
    matrices = [mixing_csr(turns.at(round)) for round in range(turns.period or 0)]
    found = simulate(turns, (0.9,), rounds=1000, burn_in=100)
    exact = noise_floor_over(matrices)
    assert abs(found.noise_floor.value - exact) < 4 * found.noise_floor.standard_error
    assert found.noise_floor.standard_error < 0.02 * exact
    neighbors = found.effective_neighbors[0.9]
    assert abs(neighbors.value - effective_neighbors_over(matrices, 0.9)) < 4 * neighbors.standard_error


def test_simulation_repeats_with_its_seed() -> None:
    turns = schedule("epidemic-local:s=2", 8)
    assert simulate(turns, rounds=20, seed=1) == simulate(turns, rounds=20, seed=1)
    assert simulate(turns, rounds=20, seed=1) != simulate(turns, rounds=20, seed=2)


# links


def test_links_of_a_round() -> None:
    star = links(schedule("star", 5))
    assert (star.edges, star.degree_min, star.degree_max, star.shares, star.busiest) == (4, 1, 4, 8, 4)
    shift = links(schedule("one-peer-exponential", 8))
    assert (shift.edges, shift.degree_min, shift.degree_max, shift.shares, shift.directed) == (8, 1, 1, 8, True)
    assert links(schedule("random-matching", 9)).shares == 8  # one is left out each round
    assert bytes_per_round(schedule("ring", 10), 400) == 8000


@pytest.mark.parametrize(
    ("name", "nodes", "expected"),
    [
        *(("ring", 9, 4), ("chain", 9, 8), ("star", 9, 2), ("torus", 25, 4), ("exponential", 16, 4), ("ring", 1, 0)),
        *(("one-peer-exponential", 16, 4), ("random-matching", 16, None)),
    ],
)
def test_diameter(name: str, nodes: int, expected: int | None) -> None:
    assert diameter(schedule(name, nodes)) == expected


def test_diameter_of_parts_and_of_one_way_links() -> None:
    assert diameter(Schedule.of(Topology("t", 4, ((0, 1), (2, 3))))) is None
    assert diameter(Schedule.of(Topology("t", 4, ((0, 1), (1, 2), (2, 3), (3, 0)), directed=True))) == 3


@pytest.mark.parametrize(
    ("name", "nodes", "rounds"),
    [
        *(("star", 16, 2), ("hypercube", 16, 4), ("hypercube", 64, 6), ("ring", 16, 8), ("ring", 25, 12)),
        *(("complete", 9, 1), ("torus", 16, 4), ("torus", 25, 5), ("torus", 64, 12), ("exponential", 16, None)),
    ],
)
def test_rounds_of_finite_time_weights(name: str, nodes: int, rounds: int | None) -> None:  # theory.md §2
    assert finite_time_rounds(build(name, nodes)) == rounds


def test_most_shapes_fail_with_a_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    # A grid that closes into rings only at 60 x 84: every other divisor is refused without the whole matrix.
    matrix = mixing_csr(build("torus:rows=60", 5040))
    seen: list[bool] = []
    translated = spectra._translated

    def counting(*arguments: Any) -> bool:
        seen.append(translated(*arguments))
        return seen[-1]

    monkeypatch.setattr(spectra, "_translated", counting)
    assert spectra.looks_the_same_everywhere(matrix)
    assert seen.count(True) == 1
    assert len(seen) > 20


def test_a_matrix_that_differs_in_one_row_alone_is_not_the_same_everywhere() -> None:
    matrix = mixing_csr(build("ring", 64)).copy()
    matrix.data[3 * 17 : 3 * 18] = 0.5, 0.2, 0.3
    assert not spectra.looks_the_same_everywhere(matrix)


def test_counting_lets_each_round_go() -> None:
    of = schedule("base", 25)
    assert counted(of.at(round) for round in range(of.period or 0)) == links(of)
