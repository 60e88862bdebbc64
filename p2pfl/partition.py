"""Splitting one set of samples among peers: equal parts (IID), or parts of uneven classes, sizes or origin.

Unless so many samples a part are asked for, every index lands in exactly one part. The same key gives the same parts
on every machine (numpy keeps its streams within a release): a peer that knows only its own number and the key finds
its part without asking anyone.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from p2pfl.errors import DataError

Indices: TypeAlias = npt.NDArray[np.int64]  # [k] positions of samples, ascending

_MAX_DRAWS = 1000
# Outside this range numpy's Dirichlet under- or overflows; inside, both ends already look like "one class" and "equal".
_ALPHA_RANGE = (1e-3, 1e6)


def iid(n: int, parts: int, key: int) -> tuple[Indices, ...]:
    """Deal shuffled samples into parts whose sizes differ by at most one.

    Args:
        n: number of samples.
        key: seeds the shuffle.

    Raises:
        DataError: fewer samples than parts, or fewer than one part.
    """
    _check_parts(n, parts)
    order = np.random.default_rng(key).permutation(n)
    return tuple(np.sort(piece) for piece in np.array_split(order, parts))


def dirichlet(
    labels: npt.NDArray[Any], parts: int, alpha: float, key: int, min_samples: int = 1
) -> tuple[Indices, ...]:
    """Split each class by proportions drawn from Dir(alpha, …, alpha), one entry a part.

    All proportions are drawn again, up to 1,000 times, until each part has its samples: this leans the law slightly
    towards even parts when alpha is small and parts are many.

    Args:
        labels: [n] class of each sample: integers, bools or text.
        alpha: less makes parts more uneven: 0.1 leaves a part one to three classes of ten, 100 is nearly IID.
        key: seeds every draw.
        min_samples: fewest samples of a part; more spares peers that have hardly any data, but needs more draws.

    Raises:
        DataError: alpha, parts or labels are unusable, or no draw left each part its samples.

    Source: Hsu, Qi and Brown, "Measuring the effects of non-identical data distribution for federated visual
    classification", 2019, section 3, in the split by class of Yurochkin et al., "Bayesian nonparametric federated
    learning of neural networks", 2019, section 4.
    """
    if labels.ndim != 1 or labels.dtype.kind == "f":
        raise DataError("a Dirichlet split needs one class a sample; leave alpha out for equal parts")
    if not _ALPHA_RANGE[0] <= alpha <= _ALPHA_RANGE[1]:
        raise DataError(f"alpha is {alpha:g}; use one from {_ALPHA_RANGE[0]:g} to {_ALPHA_RANGE[1]:g}")
    n = len(labels)
    _check_parts(n, parts)
    if min_samples * parts > n:
        raise DataError(
            f"{n} samples cannot give {parts} parts {min_samples} each; ask for at most {n // min_samples} parts"
        )
    rng = np.random.default_rng(key)
    classes, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    for _ in range(_MAX_DRAWS):
        ends = _ends(rng, sizes, parts, alpha)
        if np.diff(ends, prepend=0, axis=1).sum(axis=0).min() >= min_samples:
            break
    else:
        raise DataError(
            f"alpha={alpha:g} leaves some of {parts} parts under {min_samples} of {n} samples in each of {_MAX_DRAWS} "
            "draws; raise alpha or ask for fewer parts"
        )
    owner = np.empty(n, dtype=np.int64)
    for c in range(len(classes)):
        members = rng.permutation(np.flatnonzero(inverse == c))
        owner[members] = np.repeat(np.arange(parts), np.diff(ends[c], prepend=0))
    return tuple(np.flatnonzero(owner == part) for part in range(parts))


def split(n: int, labels: npt.NDArray[Any] | None, parts: int, alpha: float | None, key: int) -> tuple[Indices, ...]:
    """Equal parts without alpha, parts of uneven classes with it.

    Args:
        n: number of samples.
        labels: [n] class of each sample; None for regression.
        alpha: see `dirichlet`; None for equal parts.
        key: seeds every draw.

    Raises:
        DataError: alpha without classes, or a split that cannot be.
    """
    if alpha is None:
        return iid(n, parts, key)
    if labels is None:
        raise DataError("alpha splits by class, and regression targets have none; leave alpha out for equal parts")
    if len(labels) != n:
        raise DataError(f"there are {len(labels)} labels for {n} samples; give one each")
    return dirichlet(labels, parts, alpha, key)


def shards(labels: npt.NDArray[Any], parts: int, each: int, key: int, samples: int = 0) -> tuple[Indices, ...]:
    """Sort samples by class, cut them into equal shards, and deal every part so many of them.

    Args:
        labels: [n] class of each sample, or a number to sort by.
        each: shards of a part; 2 leaves most parts two classes, more is more even.
        key: shuffles the samples within a class, and the shards.
        samples: of each part; the shards are then windows of that size, spread evenly over the sorted samples, which
            overlap where there are not enough. 0 deals out every sample once.

    Raises:
        DataError: fewer samples than shards.

    Source: McMahan et al., "Communication-efficient learning of deep networks from decentralized data", 2017,
    section 3.
    """
    n = len(labels)
    if each < 1:
        raise DataError(f"{each} shards for each part cannot be; ask for at least 1, as shards:each=2")
    _check_parts(n, parts)
    rng = np.random.default_rng(key)
    order = rng.permutation(n)
    order = order[np.argsort(labels[order], kind="stable")]
    count = parts * each
    dealt = rng.permutation(count).reshape(parts, each)
    if not samples:
        if count > n:
            raise DataError(f"{n} samples cannot make {count} shards; ask for at most {n // parts} shards each")
        pieces = np.array_split(order, count)
        return tuple(np.sort(np.concatenate([pieces[shard] for shard in mine])) for mine in dealt)
    if samples < each:
        raise DataError(f"{samples} samples cannot make {each} shards; ask for at least {each} samples")
    sizes = [len(piece) for piece in np.array_split(np.arange(samples), each)]  # of a part's shards, first to last

    def windows(mine: Indices) -> Indices:
        places = (mine / max(1, count - 1)).tolist()
        return np.concatenate([_window(order, place, size) for place, size in zip(places, sizes, strict=True)])

    return tuple(np.sort(windows(mine)) for mine in dealt)


def quantity(n: int, parts: int, alpha: float, key: int, samples: int = 0) -> tuple[Indices, ...]:
    """Deal shuffled samples into parts whose sizes are drawn from Dir(alpha, …, alpha), each at least 1.

    Args:
        n: number of samples.
        alpha: less makes sizes more uneven.
        key: seeds sizes and shuffle.
        samples: of a part on average, drawn again for each part; 0 deals out every sample once.

    Raises:
        DataError: alpha is unusable, or there are fewer samples than parts.

    Source: Li et al., "Federated learning on non-IID data silos: an experimental study", 2022, section 4.3.
    """
    if not _ALPHA_RANGE[0] <= alpha <= _ALPHA_RANGE[1]:
        raise DataError(f"alpha is {alpha:g}; use one from {_ALPHA_RANGE[0]:g} to {_ALPHA_RANGE[1]:g}")
    _check_parts(n, parts)
    rng = np.random.default_rng(key)
    total = samples * parts or n
    # One sample each first: what is left is shared by the drawn proportions, the rounded ends add up to all of it.
    ends = np.floor(rng.dirichlet(np.full(parts, alpha)).cumsum() * (total - parts)).astype(np.int64)
    ends[-1] = total - parts
    sizes = 1 + np.diff(ends, prepend=0)
    if samples:
        everything = np.arange(n)
        return tuple(_drawn(everything, int(size), rng) for size in sizes)
    order = rng.permutation(n)
    return tuple(np.sort(piece) for piece in np.split(order, sizes.cumsum()[:-1]))


def grouped(groups: npt.NDArray[Any], parts: int, key: int, samples: int = 0) -> tuple[Indices, ...]:
    """Give whole groups to parts: the largest group first, always to the part that has least.

    Args:
        groups: [n] the group of each sample: a hospital, a writer, a device.
        key: deals the groups to the parts.
        samples: of each part, drawn from its groups; 0 takes all of them.

    Raises:
        DataError: fewer groups than parts.
    """
    values, inverse, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    _check_parts(len(groups), parts)
    if len(values) < parts:
        raise DataError(f"there are {len(values)} groups for {parts} parts; ask for at most {len(values)} parts")
    rng = np.random.default_rng(key)
    named = rng.permutation(parts)
    load = np.zeros(parts, dtype=np.int64)
    owner = np.empty(len(values), dtype=np.int64)
    for group in np.argsort(-sizes, kind="stable"):
        place = int(load.argmin())
        load[place] += sizes[group]
        owner[group] = named[place]
    owners = owner[inverse]
    pools = [np.flatnonzero(owners == part) for part in range(parts)]
    return tuple(_drawn(pool, samples, rng) for pool in pools) if samples else tuple(pools)


def drawn_iid(n: int, parts: int, samples: int, key: int) -> tuple[Indices, ...]:
    """So many samples for each part, each part drawn anew from all: without repetition while there are enough.

    Raises:
        DataError: no samples, or fewer than one part.
    """
    _check_parts(n, min(parts, 1))
    everything = np.arange(n)
    rng = np.random.default_rng(key)
    return tuple(_drawn(everything, samples, rng) for _ in range(parts))


def drawn_dirichlet(labels: npt.NDArray[Any], parts: int, alpha: float, samples: int, key: int) -> tuple[Indices, ...]:
    """So many samples for each part, of classes in proportions that each part draws from Dir(alpha · p).

    Args:
        labels: [n] class of each sample.
        alpha: as in `dirichlet`; the concentration is spread over the classes by their frequency p, times their number.
        samples: of each part; a class that has fewer than are wanted of it repeats its samples.

    Raises:
        DataError: alpha or parts are unusable.

    Source: Hsu, Qi and Brown, "Measuring the effects of non-identical data distribution for federated visual
    classification", 2019, section 3.
    """
    if labels.ndim != 1 or labels.dtype.kind == "f":
        raise DataError("a Dirichlet split needs one class a sample; leave alpha out for equal parts")
    if not _ALPHA_RANGE[0] <= alpha <= _ALPHA_RANGE[1]:
        raise DataError(f"alpha is {alpha:g}; use one from {_ALPHA_RANGE[0]:g} to {_ALPHA_RANGE[1]:g}")
    _check_parts(len(labels), min(parts, 1))
    rng = np.random.default_rng(key)
    classes, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    pools = [np.flatnonzero(inverse == c) for c in range(len(classes))]
    proportions = rng.dirichlet(alpha * len(classes) * sizes / sizes.sum(), size=parts)
    counts = [rng.multinomial(samples, p) for p in proportions]
    return tuple(
        np.sort(np.concatenate([_drawn(pool, int(k), rng) for pool, k in zip(pools, mine, strict=True)]))
        for mine in counts
    )


def together(parts: Sequence[Indices]) -> Indices:
    """All samples that the parts hold, each once, ascending."""
    return np.unique(np.concatenate(parts))


def _drawn(pool: Indices, count: int, rng: np.random.Generator) -> Indices:
    """`count` of the pool, ascending; each sample stands as often as any other, or once more."""
    whole, rest = divmod(count, len(pool))
    chosen = rng.choice(pool, rest, replace=False)
    return np.sort(np.concatenate([*[pool] * whole, chosen]))


def _window(order: Indices, place: float, size: int) -> Indices:
    """`size` neighbors in the order, the first where `place` is 0, the last where 1; all, and again, if fewer."""
    whole, rest = divmod(size, len(order))
    begin = round(place * (len(order) - rest))
    return np.concatenate([*[order] * whole, order[begin : begin + rest]])


def _ends(rng: np.random.Generator, sizes: Indices, parts: int, alpha: float) -> Indices:
    """[classes, parts] where each part's run ends within each class.

    One uniform offset a class rounds without bias; plain rounding down hands rare classes to the last part.
    """
    cumulative = rng.dirichlet(np.full(parts, alpha), size=len(sizes)).cumsum(axis=1)
    ends = np.floor(cumulative * sizes[:, None] + rng.random((len(sizes), 1))).astype(np.int64)
    ends = np.minimum(ends, sizes[:, None])
    ends[:, -1] = sizes
    return ends


def _check_parts(n: int, parts: int) -> None:
    if parts < 1:
        raise DataError(f"{parts} parts cannot be; ask for at least 1")
    if parts > n:
        raise DataError(f"{n} samples cannot make {parts} parts; ask for at most {n}")
