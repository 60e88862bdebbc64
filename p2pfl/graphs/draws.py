"""Random draws that are the same on every machine and with every numpy: made of PCG64's own 64-bit numbers alone.

numpy keeps those numbers for ever, and says that what its `Generator` makes of them may change.
"""

import numpy as np
from numpy.random import PCG64

from p2pfl.graphs.topology import Floats, Ints, distinct
from p2pfl.keys import random_key


class Draws:
    """A stream of draws for one purpose, as of one round."""

    def __init__(self, seed: int, purpose: str, *parts: object) -> None:
        self._stream = PCG64(random_key(seed, purpose, *parts))

    def below(self, bound: int, count: int) -> Ints:
        """Whole numbers from 0 to below the bound, at most 2⁵³, all as likely to within bound / 2⁶⁴; [count]."""
        return (self._stream.random_raw(count) % np.uint64(bound)).astype(np.int64)

    def unit(self, count: int) -> Floats:
        """Numbers from 0 to below 1, multiples of 2⁻⁵³; [count]."""
        return (self._stream.random_raw(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def order(self, count: int) -> Ints:
        """0 to count−1 in an order of which all are as likely; [count]."""
        return np.argsort(self._stream.random_raw(count), kind="stable")


def others(draws: Draws, nodes: int, each: int) -> Ints:
    """For each node so many different others, any of them as likely: rows (node, other), sorted; [nodes · each, 2]."""
    if each > (nodes - 1) / 2:  # the fewer are drawn: those left out
        left_out = others(draws, nodes, nodes - 1 - each)
        chosen = ~np.eye(nodes, dtype=np.bool_)
        chosen[left_out[:, 0], left_out[:, 1]] = False
        return np.argwhere(chosen)
    keys = np.empty(0, dtype=np.int64)
    lacking = np.full(nodes, each)
    while lacking.any():  # what comes twice is drawn again: the first `each` different ones of an endless row
        node = np.repeat(np.arange(nodes), lacking)
        other = draws.below(nodes - 1, len(node))
        other += other >= node
        keys = distinct(np.concatenate([keys, node * nodes + other]))
        lacking = each - np.bincount(keys // nodes, minlength=nodes)
    return np.stack([keys // nodes, keys % nodes], axis=1)


def regular_pairs(draws: Draws, nodes: int, degree: int) -> Ints:
    """The edges of a random graph in which every node has so many others, connected or not; [nodes · degree / 2, 2].

    Stubs are paired at random; a self-loop or a double edge then swaps an end with an edge drawn at random. The nodes
    are in random order, so that every pair is as likely as any other.

    Args:
        draws: where the randomness comes from.
        nodes: how many.
        degree: below `nodes`; times it even.
    """
    if degree > (nodes - 1) / 2:  # few swaps fit a dense graph; the links left out are as random
        absent = np.triu(np.ones((nodes, nodes), dtype=np.bool_), 1)
        left_out = regular_pairs(draws, nodes, nodes - 1 - degree)
        absent[left_out.min(axis=1), left_out.max(axis=1)] = False
        return np.argwhere(absent)
    while True:
        stubs = np.repeat(np.arange(nodes), degree)[draws.order(nodes * degree)]
        pairs = _untangled(draws, nodes, stubs.reshape(-1, 2))
        if pairs is not None:
            return pairs


def _untangled(draws: Draws, nodes: int, pairs: Ints) -> Ints | None:
    """The pairs with every self-loop and double edge swapped away, None where no swap was found."""
    keys = pairs.min(axis=1) * nodes + pairs.max(axis=1)
    first = np.zeros(len(keys), dtype=np.bool_)
    first[np.unique(keys, return_index=True)[1]] = True
    bad = np.flatnonzero(~first | (pairs[:, 0] == pairs[:, 1])).tolist()
    if not bad:
        return pairs
    ends: list[list[int]] = pairs.tolist()
    good = set(keys.tolist())
    good.difference_update(node * nodes + node for node in range(nodes))
    wrong = set(bad)
    patience = 100 * len(bad) + 1000
    partners = iter(draws.below(len(ends), patience).tolist())
    while bad:
        here = bad[-1]
        there = next(partners, None)
        if there is None:
            return None
        (a, b), (c, d) = ends[here], ends[there]
        one, other = min(a, c) * nodes + max(a, c), min(b, d) * nodes + max(b, d)
        if there in wrong or a == c or b == d or one == other or one in good or other in good:
            continue
        good.remove(min(c, d) * nodes + max(c, d))
        good.update((one, other))
        ends[here], ends[there] = [a, c], [b, d]
        wrong.remove(bad.pop())
    return np.array(ends, dtype=np.int64)
