"""Splitting samples among peers."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.errors import DataError
from p2pfl.partition import (
    Indices,
    dirichlet,
    drawn_dirichlet,
    drawn_iid,
    grouped,
    iid,
    quantity,
    shards,
    split,
    together,
)

TEN_CLASSES = np.repeat(np.arange(10), 100)


def test_iid_sizes_differ_by_at_most_one() -> None:
    assert [len(piece) for piece in iid(10, 3, key=1)] == [4, 3, 3]


def test_iid_is_the_same_everywhere() -> None:
    assert [piece.tolist() for piece in iid(6, 2, key=7)] == [[0, 2, 5], [1, 3, 4]]


@settings(max_examples=50, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    parts=st.integers(1, 8),
    alpha=st.sampled_from([None, 0.001, 0.1, 1.0, 1e6]),
    key=st.integers(0, 2**63 - 1),
)
def test_every_index_lands_in_one_part_in_ascending_order(
    labels: list[int], parts: int, alpha: float | None, key: int
) -> None:
    try:
        pieces = split(len(labels), np.array(labels), parts, alpha, key)
    except DataError:
        assert parts > len(labels) or alpha is not None
        return
    assert len(pieces) == parts
    assert all(len(piece) >= 1 and (np.diff(piece) > 0).all() for piece in pieces)
    assert sorted(np.concatenate(pieces).tolist()) == list(range(len(labels)))


def test_small_alpha_gives_a_part_few_classes_and_large_alpha_equal_shares() -> None:
    def largest_share(alpha: float) -> float:
        shares = []
        for piece in dirichlet(TEN_CLASSES, 5, alpha, key=3):
            counts = np.bincount(TEN_CLASSES[piece], minlength=10)
            shares.append(counts.max() / counts.sum())
        return float(np.mean(shares))

    assert largest_share(0.05) > 0.3
    assert largest_share(1e6) < 0.11


def test_huge_alpha_splits_each_class_evenly() -> None:
    counts = [np.bincount(TEN_CLASSES[piece], minlength=10) for piece in dirichlet(TEN_CLASSES, 4, 1e6, key=0)]
    assert np.abs(np.array(counts) - 25).max() <= 1


def test_a_class_of_one_sample_is_not_always_the_last_parts() -> None:
    labels = np.array([0] * 40 + [1])
    owners = {next(p for p, piece in enumerate(dirichlet(labels, 4, 10.0, key)) if 40 in piece) for key in range(40)}
    assert owners == {0, 1, 2, 3}


def test_each_part_has_its_minimum() -> None:
    assert min(len(piece) for piece in dirichlet(TEN_CLASSES, 10, 0.1, key=5, min_samples=30)) >= 30


def test_text_labels_split_like_integers() -> None:
    names = np.array(["cat", "dog"])[TEN_CLASSES % 2]
    for one, other in zip(dirichlet(names, 3, 0.5, 9), dirichlet(TEN_CLASSES % 2, 3, 0.5, 9), strict=True):
        assert one.tolist() == other.tolist()


def test_the_key_alone_decides() -> None:
    np.random.seed(1)
    first = dirichlet(TEN_CLASSES, 3, 0.3, key=11)
    np.random.seed(2)
    second = dirichlet(TEN_CLASSES, 3, 0.3, key=11)
    assert [a.tolist() for a in first] == [b.tolist() for b in second]
    assert [len(piece) for piece in dirichlet(TEN_CLASSES, 3, 0.3, key=12)] != [len(piece) for piece in first]


def test_more_parts_than_samples_is_refused() -> None:
    with pytest.raises(DataError, match="3 samples cannot make 4 parts; ask for at most 3"):
        iid(3, 4, key=0)
    with pytest.raises(DataError, match="3 samples cannot make 4 parts; ask for at most 3"):
        dirichlet(np.array([0, 1, 2]), 4, 1.0, key=0)


def test_no_parts_is_refused() -> None:
    with pytest.raises(DataError, match="ask for at least 1"):
        iid(3, 0, key=0)


def test_an_impossible_minimum_is_refused_with_what_is_possible() -> None:
    with pytest.raises(DataError, match="10 samples cannot give 4 parts 3 each; ask for at most 3 parts"):
        dirichlet(np.arange(10) % 2, 4, 1.0, key=0, min_samples=3)


def test_a_hopeless_alpha_is_refused_with_the_mend() -> None:
    with pytest.raises(DataError, match="raise alpha or ask for fewer parts"):
        dirichlet(np.zeros(100, dtype=np.int64), 50, 0.001, key=0)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf"), 1e-300])
def test_an_unusable_alpha_is_refused(alpha: float) -> None:
    with pytest.raises(DataError, match=r"use one from 0\.001 to 1e\+06"):
        dirichlet(TEN_CLASSES, 2, alpha, key=0)


def test_alpha_for_regression_is_refused() -> None:
    with pytest.raises(DataError, match="leave alpha out for equal parts"):
        split(10, None, 2, 0.5, key=0)
    with pytest.raises(DataError, match="leave alpha out for equal parts"):
        dirichlet(np.linspace(0, 1, 10), 2, 0.5, key=0)


def test_labels_of_another_length_are_refused() -> None:
    with pytest.raises(DataError, match="3 labels for 4 samples"):
        split(4, np.array([0, 1, 2]), 2, 0.5, key=0)


def classes_of(piece: Indices) -> set[int]:
    return set(TEN_CLASSES[piece].tolist())


def test_two_shards_leave_a_part_at_most_two_classes_where_classes_fill_whole_shards() -> None:
    pieces = shards(TEN_CLASSES, 10, each=2, key=4)
    assert [len(piece) for piece in pieces] == [100] * 10
    assert sorted(np.concatenate(pieces).tolist()) == list(range(1000))
    assert max(len(classes_of(piece)) for piece in pieces) == 2


def test_one_shard_is_one_class() -> None:
    assert sorted(map(classes_of, shards(TEN_CLASSES, 10, each=1, key=0)), key=min) == [{c} for c in range(10)]


def test_shards_of_so_many_samples_overlap_where_there_are_not_enough() -> None:
    pieces = shards(TEN_CLASSES, 50, each=2, key=4, samples=60)
    assert [len(piece) for piece in pieces] == [60] * 50
    assert max(len(classes_of(piece)) for piece in pieces) <= 4
    assert {c for piece in pieces for c in classes_of(piece)} == set(range(10))
    assert all((np.diff(piece) >= 0).all() for piece in pieces)


def test_shards_of_numbers_sort_by_them() -> None:
    pieces = shards(np.array([0.3, 0.1, 0.4, 0.2]), 2, each=1, key=0)
    assert sorted(piece.tolist() for piece in pieces) == [[0, 2], [1, 3]]


def test_quantity_gives_uneven_sizes_and_every_sample_once() -> None:
    sizes = [len(piece) for piece in quantity(1000, 10, 0.3, key=2)]
    assert sum(sizes) == 1000
    assert max(sizes) > 3 * min(sizes)
    assert max(len(piece) for piece in quantity(1000, 10, 1e6, key=2)) <= 102


def test_quantity_of_so_many_samples_is_so_many_on_average() -> None:
    pieces = quantity(100, 8, 0.5, key=2, samples=50)
    assert sum(map(len, pieces)) == 400
    longest = max(pieces, key=len)
    assert np.bincount(longest).max() - np.bincount(longest, minlength=100).min() <= 1


def test_whole_groups_go_to_parts_and_the_largest_stand_alone() -> None:
    sites = np.array(["a"] * 6 + ["b"] * 3 + ["c"] * 2)
    assert sorted(piece.tolist() for piece in grouped(sites, 2, key=0)) == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]
    assert [len(piece) for piece in grouped(sites, 3, key=0, samples=4)] == [4, 4, 4]


def test_drawn_samples_repeat_within_a_part_only_where_there_are_too_few() -> None:
    few, many = drawn_iid(10, 3, 7, key=0), drawn_iid(10, 3, 25, key=0)
    assert all(len(set(piece.tolist())) == 7 for piece in few)
    assert all(sorted(np.bincount(piece).tolist()) == [2] * 5 + [3] * 5 for piece in many)
    assert few[0].tolist() != few[1].tolist()


def test_drawn_dirichlet_has_so_many_samples_of_few_classes() -> None:
    pieces = drawn_dirichlet(TEN_CLASSES, 40, 0.1, 60, key=1)
    assert [len(piece) for piece in pieces] == [60] * 40
    assert np.mean([len(classes_of(piece)) for piece in pieces]) < 5
    even = drawn_dirichlet(TEN_CLASSES, 40, 1e5, 600, key=1)
    assert {len(classes_of(piece)) for piece in even} == {10}


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 50), parts=st.integers(1, 9), each=st.integers(1, 3), key=st.integers(0, 2**63 - 1))
def test_every_split_deals_each_sample_once(n: int, parts: int, each: int, key: int) -> None:
    if parts * each > n:
        return
    for pieces in (
        shards(np.arange(n) % 3, parts, each, key),
        quantity(n, parts, 0.5, key),
        grouped(np.arange(n), parts, key),
    ):
        assert sorted(np.concatenate(pieces).tolist()) == list(range(n))
        assert min(map(len, pieces)) >= 1


def test_together_is_each_sample_once() -> None:
    assert together((np.array([1, 3, 3]), np.array([0, 1]))).tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    ("split", "says"),
    [
        (lambda: shards(TEN_CLASSES[:5], 3, 2, 0), "5 samples cannot make 6 shards; ask for at most 1 shards each"),
        (lambda: shards(TEN_CLASSES, 3, 0, 0), "ask for at least 1, as shards:each=2"),
        (lambda: shards(TEN_CLASSES, 3, 4, 0, samples=3), "3 samples cannot make 4 shards; ask for at least 4"),
        (lambda: quantity(3, 4, 1.0, 0), "3 samples cannot make 4 parts; ask for at most 3"),
        (lambda: quantity(9, 4, 0.0, 0), "alpha is 0; use one from 0.001 to"),
        (lambda: grouped(np.array(["a", "b", "a"]), 3, 0), "there are 2 groups for 3 parts; ask for at most 2"),
        (lambda: drawn_dirichlet(np.linspace(0, 1, 5), 2, 1.0, 3, 0), "leave alpha out for equal parts"),
        (lambda: drawn_dirichlet(TEN_CLASSES, 2, 0.0, 3, 0), "alpha is 0; use one from"),
    ],
)
def test_splits_that_cannot_be_say_the_mend(split: Callable[[], object], says: str) -> None:
    with pytest.raises(DataError) as refused:
        split()
    assert says in str(refused.value)
