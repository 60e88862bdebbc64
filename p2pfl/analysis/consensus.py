"""How far the peers' models are apart, measured, and what theory predicts for it."""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from math import prod

import numpy as np
import numpy.typing as npt

from p2pfl.errors import UsageError
from p2pfl.graphs.mixing import mixing_matrix
from p2pfl.graphs.schedule import Schedule
from p2pfl.layout import Layout

Floats = npt.NDArray[np.float64]

_MOST_NODES = 512  # the covariance of more peers takes too long to carry along


def consensus_distance(vectors: npt.ArrayLike) -> float:
    """Ξ² = (1/n) Σ ‖x_i − x̄‖², in squared units of the parameters.

    Args:
        vectors: [peers, size].
    """
    x = np.asarray(vectors, dtype=np.float64)
    return float(np.square(x - x.mean(axis=0)).sum() / len(x))


def relative_distance(vectors: npt.ArrayLike) -> float:
    """Ξ/‖x̄‖, without a unit: comparable between models.

    Args:
        vectors: [peers, size].
    """
    x = np.asarray(vectors, dtype=np.float64)
    norm = float(np.linalg.norm(x.mean(axis=0)))
    return consensus_distance(x) ** 0.5 / norm if norm else float("nan")


def distance_by_layer(vectors: npt.ArrayLike, layout: Layout) -> dict[str, float]:
    """Ξ² of each tensor of the model, by name; they add up to the whole.

    Args:
        vectors: [peers, size], laid out so.
    """
    x = np.asarray(vectors, dtype=np.float64)
    ends = list(accumulate((prod(shape) for _, shape in layout.tensors), initial=0))
    if x.ndim != 2 or x.shape[1] != ends[-1]:
        raise UsageError(f"vectors of shape {x.shape} do not fit a layout of {ends[-1]} numbers")
    return {
        name: consensus_distance(x[:, begin:end])
        for (name, _), (begin, end) in zip(layout.tensors, pairwise(ends), strict=True)
    }


def contraction(before: npt.ArrayLike, after: npt.ArrayLike) -> float:
    """Ξ² after a mix over Ξ² before it; NaN where there was nothing to contract.

    Args:
        before, after: [peers, size].
    """
    had = consensus_distance(before)
    return consensus_distance(after) / had if had else float("nan")


def predicted_contraction(matrices: Sequence[Floats]) -> dict[str, float]:
    """What one mix does to Ξ², predicted from the mixing matrices of one period.

    Returns:
        `worst`: ‖(I − J) ΠW_t‖₂^(2/T), the most that any deviation keeps a mix, on average over the period ·
        `white`: mean over t of ‖(I − J) W_t‖²_F / (n − 1), what deviations that are independent between peers keep.
        The average is taken out after mixing: weights that are not doubly stochastic move it.
    """
    n = len(matrices[0])
    if n == 1:
        return {"worst": 0.0, "white": 0.0}
    product = np.eye(n)
    for matrix in matrices:
        product = matrix @ product
    return {
        "worst": float(np.linalg.norm(product - product.mean(axis=0), 2)) ** (2 / len(matrices)),
        "white": float(np.mean([np.square(matrix - matrix.mean(axis=0)).sum() / (n - 1) for matrix in matrices])),
    }


def predicted_distance(schedule: Schedule, neighbor_distance: Sequence[float]) -> Floats | None:
    """Ξ² after each round's mix, predicted from what peers see of their neighbors before it.

    Local training adds to each peer a drift that is taken to be independent of the others' and of its own before, with
    one variance a round, σ_t². The covariance of the deviations is then carried along, C ← W_t (C + σ_t² I) W_tᵀ, and
    σ_t² is what explains the measured mean squared distance between neighbors. Where peers pull in a lasting
    direction, as on lopsided data, the true distance lies above this: the difference is what heterogeneity costs.

    Args:
        neighbor_distance: mean over peers of the mean squared distance to their neighbors' shares, a value a round
            from round 0; NaN where none was measured: that round then adds no drift.

    Returns:
        [rounds]; None for more peers than can be carried along.

    Source: the covariance recursion of Xiao, Boyd and Kim, "Distributed average consensus with least-mean-square
    deviation", 2007, section 2, with the noise variance of each round identified from the data.
    """
    n = schedule.nodes
    if n > _MOST_NODES:
        return None
    covariance = np.zeros((n, n))
    found = np.zeros(len(neighbor_distance))
    kept: dict[int, Floats] = {}
    for round, measured in enumerate(neighbor_distance):
        at = round % schedule.period if schedule.period else round
        if at not in kept:
            if schedule.period is None:
                kept.clear()
            kept[at] = mixing_matrix(schedule.at(round))
        matrix = kept[at]
        covariance += max(0.0, (measured - _between(matrix, covariance)) / 2) * np.eye(n) if measured > 0 else 0.0
        covariance = matrix @ covariance @ matrix.T
        found[round] = (np.trace(covariance) - covariance.sum() / n) / n
    return found


def implied_drift(distance: float, noise_floor: float) -> float:
    """The variance of one round's drift that explains a settled Ξ² over a topology's noise floor.

    Where prediction holds, runs that differ only in topology agree on it.
    """
    return distance / noise_floor if noise_floor > 0 else float("nan")


def _between(matrix: Floats, covariance: Floats) -> float:
    """Mean over nodes of the mean over its sources of E‖x_i − x_j‖², for a covariance of one component."""
    linked = (matrix != 0) & ~np.eye(len(matrix), dtype=bool)
    degrees = linked.sum(axis=1)
    variance = np.diag(covariance)
    squared = variance[:, None] + variance[None, :] - 2 * covariance
    with_sources = degrees > 0
    if not with_sources.any():
        return 0.0
    return float(((squared * linked).sum(axis=1)[with_sources] / degrees[with_sources]).mean())


def model_vectors(states: Mapping[str, Mapping[str, npt.ArrayLike]]) -> Floats:
    """Models side by side, [peers, size], from their tensors by peer and name."""
    return np.stack(
        [np.concatenate([np.asarray(t, dtype=np.float64).ravel() for t in state.values()]) for state in states.values()]
    )
