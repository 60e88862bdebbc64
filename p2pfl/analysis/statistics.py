"""Statistics over seeds and over topologies: few runs, so every test is named and says how little it can tell."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from p2pfl.errors import UsageError

_K = TypeVar("_K", bound=Hashable)
FEW = 6  # pairs from which on Wilcoxon's two-sided test can go below .05: its smallest p is 2 / 2^n


_EXACT = 8  # pairs up to which all orders are looked at


@dataclass(frozen=True)
class MeanStd:
    """Mean and sample standard deviation (divided by n − 1) of `n` values; `std` is None for a single one."""

    mean: float
    std: float | None
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.4g}" if self.std is None else f"{self.mean:.4g} ± {self.std:.2g}"


@dataclass(frozen=True)
class Paired:
    """Two ways to run, compared pair by pair, a pair being one seed.

    Attributes:
        n: pairs.
        difference: mean of a − b.
        interval: 95 % confidence interval of that mean, by Student's t; None below two pairs.
        t_p: p value of the paired t test (`scipy.stats.ttest_rel`, two-sided); None below two pairs, or where all
            differences are equal.
        wilcoxon_p: p value of Wilcoxon's signed-rank test (`scipy.stats.wilcoxon`, two-sided); None where all
            differences are 0.
        holm_p: `t_p` corrected by Holm for all comparisons that were made together; see `holm`.
        note: what to keep in mind; empty where nothing is.
    """

    n: int
    difference: float
    interval: tuple[float, float] | None
    t_p: float | None
    wilcoxon_p: float | None
    holm_p: float | None
    note: str


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's ρ over `n` pairs, and the two-sided p value, exact up to 8 pairs; None where it is not defined."""

    rho: float | None
    p: float | None
    n: int


def mean_std(values: npt.ArrayLike) -> MeanStd:
    """Mean and sample standard deviation; NaN are left out.

    Raises:
        UsageError: there are none.
    """
    array = np.asarray(values, dtype=np.float64)
    array = array[~np.isnan(array)]
    if not len(array):
        raise UsageError("there is no value to take the mean of")
    return MeanStd(float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None, len(array))


def paired(a: Mapping[_K, float], b: Mapping[_K, float]) -> Paired:
    """Compare two ways to run over the seeds that both have.

    Args:
        a, b: a figure by seed, or by whatever tells pairs apart.

    Raises:
        UsageError: they share no seed.
    """
    from scipy import stats

    seeds = [seed for seed in a if seed in b and not (math.isnan(a[seed]) or math.isnan(b[seed]))]
    if not seeds:
        raise UsageError("no seed was run both ways: a paired test needs the same seeds on both sides")
    left, right = np.array([a[seed] for seed in seeds]), np.array([b[seed] for seed in seeds])
    differences = left - right
    n, mean = len(seeds), float(differences.mean())
    equal = bool(np.ptp(differences) <= 1e-12 * max(1.0, float(np.abs(differences).max())))
    interval = t_p = wilcoxon_p = None
    if n > 1 and not equal:
        half = float(stats.t.ppf(0.975, n - 1) * differences.std(ddof=1) / math.sqrt(n))
        interval = (mean - half, mean + half)
        t_p = float(stats.ttest_rel(left, right).pvalue)
    if np.any(differences):
        # The exact law needs no ties and no zeros; scipy's "auto" knows when to use it.
        wilcoxon_p = float(stats.wilcoxon(differences, method="auto").pvalue)
    return Paired(n, mean, interval, t_p, wilcoxon_p, None, _note(n, equal))


def _note(n: int, equal: bool) -> str:
    if n == 1:
        return "one seed: no test is possible"
    if equal:
        return "all differences are equal: the t test is not defined"
    if n < FEW:
        return f"{n} seeds: Wilcoxon's p cannot fall below {2 / 2**n:.3g}, and the t test leans on normal differences"
    return ""


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction of p values for so many comparisons; None stays None and is not counted.

    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    order = sorted((p, at) for at, p in enumerate(values) if p is not None)
    corrected: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (p, at) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p))
        corrected[at] = highest
    return corrected


def spearman(predicted: Sequence[float], measured: Sequence[float]) -> RankCorrelation:
    """Spearman's rank correlation of what was predicted and what was measured; pairs with a NaN are left out.

    Undefined (None) for fewer than three pairs, or where all values of a side are equal.
    """
    from scipy import stats

    if len(predicted) != len(measured):
        raise UsageError(f"{len(predicted)} predictions for {len(measured)} measurements: give one each")
    x, y = np.asarray(predicted, dtype=np.float64), np.asarray(measured, dtype=np.float64)
    known = ~(np.isnan(x) | np.isnan(y))
    x, y = x[known], y[known]
    if len(x) < 3 or min(len(np.unique(x)), len(np.unique(y))) < 2:
        return RankCorrelation(None, None, len(x))
    result = stats.spearmanr(x, y)
    rho = float(result.statistic)
    return RankCorrelation(rho, _exact_p(x, y, rho) if len(x) <= _EXACT else float(result.pvalue), len(x))


def _exact_p(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], rho: float) -> float:
    """The part of all orders whose |ρ| is at least as large: of a few pairs, Student's law is far from the truth."""
    from scipy import stats

    first, second = stats.rankdata(x), stats.rankdata(y)
    first, second = first - first.mean(), second - second.mean()
    orders = second[np.array(list(permutations(range(len(x)))))]
    reached = np.abs(orders @ first) / float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(np.mean(reached >= abs(rho) - 1e-12))
