"""How uneven a split is, by its definitions and its two ends."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.heterogeneity import effective_classes, gini, heterogeneity, label_counts


def test_peers_of_one_class_each_of_two() -> None:
    figures = heterogeneity([np.array([0, 1]), np.array([2, 3])], np.array([0, 0, 1, 1]))
    assert (figures.total_variation, figures.effective_classes, figures.gini) == (0.5, 1.0, 0.0)


def test_peers_alike() -> None:
    figures = heterogeneity([np.array([0, 2]), np.array([1, 3])], np.array([0, 0, 1, 1]))
    assert figures.total_variation == 0.0
    assert figures.effective_classes == pytest.approx(2.0, rel=1e-12)
    assert figures.fewest_effective_classes == pytest.approx(2.0, rel=1e-12)


def test_unequal_sizes_weigh_in_the_whole_but_not_in_the_mean() -> None:
    # p = (3/4, 1/4), p_1 = (1, 0), p_2 = (0, 1): half of (1/4 + 1/4) and of (3/4 + 3/4), and their mean
    figures = heterogeneity([np.array([0, 1, 2]), np.array([3])], np.array([0, 0, 0, 1]))
    assert figures.total_variation == 0.5
    assert figures.gini == 0.25


def test_repeated_examples_count_as_often_as_they_stand() -> None:
    assert label_counts([np.array([0, 0, 1])], np.array([5, 7, 7])).tolist() == [[2, 1]]


def test_effective_classes_of_three_to_one() -> None:
    assert effective_classes(np.array([[0.75, 0.25, 0.0]])) == pytest.approx(
        [math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))], rel=1e-12
    )


@pytest.mark.parametrize(("sizes", "expected"), [([1, 1, 1], 0.0), ([0, 0, 0, 4], 0.75), ([1, 3], 0.25), ([5], 0.0)])
def test_gini(sizes: list[int], expected: float) -> None:
    assert gini(np.array(sizes)) == pytest.approx(expected, abs=1e-15)


def test_without_classes_only_sizes_are_compared() -> None:
    figures = heterogeneity([np.array([0]), np.array([1, 2, 3])], None)
    assert (figures.total_variation, figures.effective_classes, figures.gini) == (None, None, 0.25)


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=8), min_size=1, max_size=6))
def test_figures_stay_within_their_bounds(peers: list[list[int]]) -> None:
    labels = np.array([label for peer in peers for label in peer])
    ends = np.cumsum([len(peer) for peer in peers])
    figures = heterogeneity(np.split(np.arange(len(labels)), ends[:-1]), labels)
    assert figures.total_variation is not None
    assert figures.effective_classes is not None
    assert 0 <= figures.total_variation < 1
    assert 1 - 1e-12 <= figures.effective_classes <= len(set(labels.tolist())) + 1e-9
    assert 0 <= figures.gini <= 1 - 1 / len(peers) + 1e-12
