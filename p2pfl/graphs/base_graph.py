"""Base-(k+1) graphs: exact consensus in few rounds for any number of nodes, no node with more than k neighbors.

Every round is a list of links (i, j, weight), symmetric, and every node keeps what its links leave. A construction
works on the node numbers of several equal parts of a network at once, [parts, nodes of a part].

Source: Takezawa et al., "Beyond exponential graph: communication-efficient topologies for decentralized learning via
    finite-time convergence", 2023, algorithms 1 to 3.
"""

from functools import cache
from typing import TypeAlias

import numpy as np

from p2pfl.graphs.topology import Floats, Ints, Topology

_Links: TypeAlias = tuple[Ints, Floats]  # pairs [links, 2] and their weights [links]


def base_rounds(nodes: int, k: int, name: str) -> tuple[Topology, ...]:
    """The topologies of one pass; after it every node holds the average of all.

    Where the number of nodes has factors up to k + 1, the simple construction runs within as many equal parts, then
    like is averaged with like across them; if that takes more rounds, the simple construction alone is taken.
    """
    everyone = np.arange(nodes)
    smooth, rest = _split(nodes, k)
    rounds = _simple(everyone[np.newaxis], k)
    if smooth > 1 and rest > 1:
        parts = everyone.reshape(smooth, rest)
        both = [*_simple(parts, k), *_hyper_hypercube(parts.T, k)]
        rounds = both if len(both) <= len(rounds) else rounds
    return tuple(Topology.of_links(name, nodes, *links) for links in rounds)


def _hyper_hypercube(parts: Ints, k: int) -> list[_Links]:
    """Average along one axis a round: each part is laid out as a box whose sides are at most k + 1.

    The shortest side comes first, along neighboring numbers.
    """
    rounds = []
    stride = 1
    for side in _factors(parts.shape[1], k):
        box = parts.reshape(len(parts), -1, side, stride)
        first, second = np.triu_indices(side, 1)
        pairs = np.stack([box[:, :, first].ravel(), box[:, :, second].ravel()], axis=1)
        rounds.append((pairs, np.full(len(pairs), 1 / side)))
        stride *= side
    return rounds


def _simple(parts: Ints, k: int) -> list[_Links]:
    """Parts of any number of nodes, by its digits to the base k + 1.

    The nodes of each digit average among themselves. Then digit by digit, the largest first: each node of the smaller
    digits takes in one of every block of this digit, with weights that leave the average of the smaller ones at that of
    all; from then on the digit's own blocks average within, all of them to the same.
    """
    if _split(parts.shape[1], k)[1] == 1:
        return _hyper_hypercube(parts, k)
    digits = _digits(parts.shape[1], k)
    groups = np.split(parts, np.cumsum([count * block for count, block in digits])[:-1], axis=1)
    whole = [_hyper_hypercube(group, k) for group in groups]
    within = [_hyper_hypercube(group.reshape(-1, block), k) for group, (_, block) in zip(groups, digits, strict=True)]
    start, last = len(whole[0]), len(digits) - 1
    rounds = []
    for round in range(max(start + 1 + at + len(within[at]) for at in range(last))):
        links: list[_Links] = []
        exchange = round - start  # the digit whose nodes the smaller digits' nodes take in
        if 0 <= exchange < last:
            smaller = np.concatenate(groups[:exchange:-1], axis=1)
            links.extend(_exchange(groups[exchange], digits[exchange][0], smaller, k))
        for at in range(len(digits)):
            # Once agreed, averaging again changes nothing, and while learning it mixes what is new.
            if round < start or at == last <= exchange:
                links.extend(_cycled(whole[at], round))
            elif exchange > at:
                links.extend(_cycled(within[at], exchange - at - 1))
        rounds.append(_joined(links))
    return rounds


def _exchange(group: Ints, count: int, smaller: Ints, k: int) -> list[_Links]:
    """Link each smaller digit's node with one of every block of the digit, the last first; [parts, …] both."""
    blocks = group.reshape(len(group), count, -1)
    taken = blocks[:, :, ::-1][:, :, : smaller.shape[1]]
    pairs = np.stack([taken.ravel(), np.repeat(smaller[:, np.newaxis], count, axis=1).ravel()], axis=1)
    links = [(pairs, np.full(len(pairs), group.shape[1] / (group.shape[1] + smaller.shape[1]) / count))]
    # The digit's other nodes have agreed already: averaging among them only mixes what was learned since.
    left = blocks[:, :, : -smaller.shape[1]].reshape(len(group), -1)
    full = left.shape[1] // (k + 1) * (k + 1)
    for among in (left[:, :full].reshape(-1, k + 1), left[:, full:]):
        links.extend(_hyper_hypercube(among, k) if among.size else [])
    return links


def _cycled(rounds: list[_Links], round: int) -> list[_Links]:
    return [rounds[round % len(rounds)]] if rounds else []


def _joined(links: list[_Links] | tuple[_Links, ...]) -> _Links:
    pairs = [np.empty((0, 2), dtype=np.int64), *(pairs for pairs, _ in links)]
    return np.concatenate(pairs), np.concatenate([np.empty(0), *(values for _, values in links)])


def _split(number: int, k: int) -> tuple[int, int]:
    """The number as a product: all its prime factors up to k + 1, and the rest."""
    smooth, rest = 1, number
    for factor in range(2, k + 2):
        while rest % factor == 0:
            smooth, rest = smooth * factor, rest // factor
    return smooth, rest


def _digits(number: int, k: int) -> list[tuple[int, int]]:
    """The number to the base k + 1, without zeros, the largest first: (digit, the power it counts)."""
    digits, power = [], 1
    while number:
        number, digit = divmod(number, k + 1)
        if digit:
            digits.append((digit, power))
        power *= k + 1
    return digits[::-1]


@cache
def _factors(number: int, k: int) -> tuple[int, ...]:
    """The number as the fewest factors from 2 to k + 1, the smallest first; its prime factors must be no larger."""
    if number == 1:
        return ()
    sides = [
        side for side in range(min(k + 1, number), 1, -1) if number % side == 0 and _split(number // side, k)[1] == 1
    ]
    return min((tuple(sorted((side, *_factors(number // side, k)))) for side in sides), key=len)
