"""Splitting one set of samples among peers: equal parts (IID) or parts of uneven classes (Dirichlet).

Every index lands in exactly one part, and the same key gives the same parts on every machine (numpy keeps its streams
within a release): a peer that knows only its own number and the key finds its part without asking anyone.
"""

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
