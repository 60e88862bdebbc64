"""How different the data of peers are: labels, and sizes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from p2pfl.partition import Indices


@dataclass(frozen=True)
class Heterogeneity:
    """Figures of one split.

    Attributes:
        total_variation: mean over the peers of ½ Σ_c |p_i(c) − p(c)|, with p the label distribution of all peers'
            examples together: 0 where all are alike, near 1 where every peer has labels that others have not. None
            where there are no classes.
        effective_classes: exp of the entropy of p_i, mean and least over the peers: as many equally frequent classes
            would be as uncertain. None where there are no classes.
        gini: of the peers' numbers of examples: 0 where equal, near 1 where one peer has them all.
    """

    total_variation: float | None
    effective_classes: float | None
    fewest_effective_classes: float | None
    gini: float


def heterogeneity(parts: Sequence[Indices], labels: npt.NDArray[Any] | None) -> Heterogeneity:
    """How uneven the parts are.

    Args:
        parts: positions of each peer's examples; every part holds at least one.
        labels: [n] class of every example, None where there are none.
    """
    sizes = np.array([len(part) for part in parts], dtype=np.float64)
    if labels is None:
        return Heterogeneity(None, None, None, gini(sizes))
    counts = label_counts(parts, labels).astype(np.float64)
    own = counts / counts.sum(axis=1, keepdims=True)
    whole = counts.sum(axis=0) / counts.sum()
    effective = effective_classes(own)
    return Heterogeneity(
        float(0.5 * np.abs(own - whole).sum(axis=1).mean()),
        float(effective.mean()),
        float(effective.min()),
        gini(sizes),
    )


def label_counts(parts: Sequence[Indices], labels: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """[peers, classes] examples by peer and class; classes are the different labels in order."""
    classes, inverse = np.unique(labels, return_inverse=True)
    return np.stack([np.bincount(inverse[part], minlength=len(classes)) for part in parts])


def effective_classes(distributions: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """exp(−Σ_c p(c) ln p(c)) of each row of [peers, classes]: 1 for one class, their number where equal."""
    logarithms = np.log(distributions, out=np.zeros_like(distributions), where=distributions > 0)
    entropy: npt.NDArray[np.float64] = -(distributions * logarithms).sum(axis=1)
    return np.exp(entropy)


def gini(sizes: npt.NDArray[Any]) -> float:
    """Σ_i Σ_j |s_i − s_j| / (2 n Σ s): 0 where all are equal, 1 − 1/n where one has everything.

    Source: Gini, "Measurement of inequality of incomes", 1921.
    """
    ordered = np.sort(np.asarray(sizes, dtype=np.float64))
    n = len(ordered)
    ranks = 2 * np.arange(1, n + 1) - n - 1
    return float((ranks * ordered).sum() / (n * ordered.sum()))
