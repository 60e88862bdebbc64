"""What noise in training leaves of consensus: the stationary state of x ← W_t(x + noise), exact or by simulation.

Unit noise at every node and round stands for the gradients' own. The variance about the mean in which it settles is the
noise floor; with γ of the past kept each round, the variance of one node tells its number of effective neighbors.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from p2pfl.graphs.mixing import mixing_csr
from p2pfl.graphs.schedule import Schedule
from p2pfl.graphs.spectra import NOTHING, Dense, Matrix
from p2pfl.graphs.topology import Topology

_BATCHES = 20  # parts of a simulation whose spread gives the standard error
_VALUES = 1 << 13  # noise values a round: channels beside each other that share the topologies drawn
_LASTING = 5 * _BATCHES  # a part is as long as 5 times what a round's noise lasts, so that parts hardly know each other
_OVERHEAD = 500  # nodes that a round costs beyond its own
_MOST_WORK = 5 * 10**6  # rounds times nodes of a simulation: some 10 s
_DOUBLINGS = 50  # 2^50 periods: what has not died away by then never will


@dataclass(frozen=True)
class Estimate:
    """A figure and how it was found.

    Attributes:
        how: `formula`, from eigenvalues; `exact`, by solving for the stationary state; or `monte carlo`.
        standard_error: of the value, 0 where it is exact.
    """

    value: float
    how: str
    standard_error: float = 0.0


@dataclass(frozen=True)
class Simulated:
    """What a simulation of a schedule found.

    Attributes:
        noise_floor: stationary variance about the mean, averaged over rounds.
        effective_neighbors: n_W by γ.
    """

    noise_floor: Estimate
    effective_neighbors: Mapping[float, Estimate]


def noise_floor_over(matrices: Sequence[Matrix]) -> float:
    """The noise floor where these matrices take turns, averaged over the turns; exact, for any rows that sum to 1.

    Solves S_{t+1} = C W_t (S_t + I) W_tᵀ C with C = I − J over the period, by doubling (Smith's method). Infinite where
    consensus is never reached. Takes a few products of [nodes, nodes] matrices.
    """
    return _stationary(matrices, 1.0, centered=True)


def effective_neighbors_over(matrices: Sequence[Matrix], gamma: float) -> float:
    """As `spectra.effective_neighbors`, exact for any matrices that take turns; variances are averaged over turns."""
    return float(1 / (1 - gamma) / _stationary(matrices, gamma, centered=False))


def contraction_by_draws(schedule: Schedule, rounds: int | None = None) -> Estimate:
    """E[new V]/V for V = (1/n)Σ‖x_i − x̄‖², x̄ the mean before the round, over rounds and all directions of x alike.

    Draws that treat all nodes alike shrink every direction by this factor. For one round it is (‖W‖²_F − 1)/(n − 1), so
    only the draws are random: where all have equal weights, as matchings, the standard error is 0. Where the average
    drifts, as in EL-Local, the new V still counts the way to the old mean, so it is more than the distance between the
    nodes that is left.

    Args:
        rounds: that are drawn, at least 2. Default: 400, fewer of many nodes.
    """
    nodes = schedule.nodes
    return mean_of([share_left(schedule.at(t)) for t in range(rounds or contraction_rounds(nodes))])


def contraction_rounds(nodes: int) -> int:
    """How many rounds tell the contraction unless told: 400, fewer of many nodes, whose draws differ less."""
    return max(40, min(400, 40_000 // nodes))


def share_left(topology: Topology) -> float:
    """(‖W‖²_F − 1)/(n − 1): of V = (1/n)Σ‖x_i − x̄‖², over all directions of x alike, what one round leaves."""
    return (float((mixing_csr(topology).data ** 2).sum()) - 1) / max(topology.nodes - 1, 1)


def mean_of(draws: Sequence[float]) -> Estimate:
    """The mean of at least 2 independent draws, with its standard error."""
    return Estimate(float(np.mean(draws)), "monte carlo", float(np.std(draws, ddof=1) / math.sqrt(len(draws))))


def rounds_to_simulate(nodes: int, contraction: float) -> int | None:
    """How many rounds `simulate` needs of draws that contract so, each part well beyond what a round's noise lasts.

    600, fewer of many nodes, at least 100 c / (1 − c), as the rounds after it that still know of a round's noise are
    c / (1 − c). None where that would take minutes, or forever.
    """
    usual = _usual_rounds(nodes)
    if contraction >= 1:
        return None
    needed = math.ceil(_LASTING * max(contraction, 0.0) / (1 - contraction))
    return usual if needed <= usual else needed if needed * (nodes + _OVERHEAD) <= _MOST_WORK else None


def simulate(
    schedule: Schedule,
    gammas: Sequence[float] = (),
    rounds: int | None = None,
    burn_in: int | None = None,
    seed: int = 0,
) -> Simulated:
    """Walk a schedule's rounds with noise, many independent channels beside each other.

    Noise of the round itself is averaged exactly; the standard errors are of the means of 20 parts. Where rounds drawn
    are not doubly stochastic, n_W takes the draws to treat all nodes alike, as built-in schedules do.

    Args:
        gammas: for the effective neighbors.
        rounds: to average over; made a multiple of 20 and of the period. Default: 600, fewer of many nodes;
            `rounds_to_simulate` tells how many slow draws need.
        burn_in: rounds before, until the start is forgotten. Default: a fifth of them.
        seed: of the noise.
    """
    nodes = schedule.nodes
    step = _BATCHES * (schedule.period or 1)
    rounds = step * math.ceil((rounds or _usual_rounds(nodes)) / step)
    burn_in = rounds // 5 if burn_in is None else burn_in
    generator = np.random.default_rng((seed, nodes))
    turns = [mixing_csr(schedule.at(t)) for t in range(schedule.period or 0)]
    decays = (1.0, *gammas)
    # From near the stationary state: that of draws which shrink all directions alike.
    first = turns[0] if turns else mixing_csr(schedule.at(0))
    # One of several turns may mix nearly nothing and say little of the others.
    slowest = 0.99 if turns else 1 - 1e-6
    shrink = [min(_kept(first)[0] / max(nodes - 1, 1), slowest) * decay for decay in decays]
    channels = math.ceil(_VALUES / nodes)
    noise = generator.standard_normal((nodes, channels))
    states = [_centered(noise) * math.sqrt(c / decay / (1 - c)) for c, decay in zip(shrink, decays, strict=True)]
    variances = np.empty((len(decays), rounds))
    for t in range(-burn_in, rounds):
        at = t + burn_in
        matrix = turns[at % len(turns)] if turns else mixing_csr(schedule.at(at))
        apart, mean = _kept(matrix)
        fresh = matrix @ generator.standard_normal((nodes, channels))
        for place, decay in enumerate(decays):
            old = matrix @ (math.sqrt(decay) * states[place])
            states[place] = _centered(old + fresh)
            if t >= 0:
                drift = old.mean(axis=0)
                variances[place, t] = ((old - drift) ** 2).mean() + apart / nodes
                if decay < 1:  # the mean's own part, of which 1 / (1 − γ) gather
                    variances[place, t] += (mean / nodes + (drift**2).mean()) / (1 - decay)
    floor = _batched(variances[0])
    alone = [(gamma, _batched(variances[place])) for place, gamma in enumerate(gammas, start=1)]
    return Simulated(
        Estimate(floor[0], "monte carlo", floor[1]),
        {g: Estimate(1 / (1 - g) / v, "monte carlo", 1 / (1 - g) / v**2 * error) for g, (v, error) in alone},
    )


def _usual_rounds(nodes: int) -> int:
    return max(40, min(600, 40_000 // nodes))


def _stationary(matrices: Sequence[Matrix], gamma: float, centered: bool) -> float:
    nodes = matrices[0].shape[0]

    def after(matrix: Matrix, covariance: Dense, noise: float) -> Dense:
        inner = gamma * covariance
        inner.flat[:: nodes + 1] += noise
        outer = np.asarray(matrix @ (matrix @ inner).T)
        return _centered(_centered(outer).T) if centered else outer

    gathered, passed = np.zeros((nodes, nodes)), np.eye(nodes)
    for matrix in matrices:
        gathered = after(matrix, gathered, 1.0)
        passed = np.asarray(math.sqrt(gamma) * (matrix @ passed))
        passed = _centered(passed) if centered else passed
    for _ in range(_DOUBLINGS):
        if np.abs(passed).max() < NOTHING * 1e-2:
            break
        gathered = gathered + passed @ gathered @ passed.T
        passed = passed @ passed
    else:
        return math.inf
    variances = []
    for matrix in matrices:
        gathered = after(matrix, gathered, 1.0)
        variances.append(float(np.trace(gathered)) / nodes)
    return float(np.mean(variances))


def _kept(matrix: csr_array) -> tuple[float, float]:
    """Of white noise with variance 1 a node, over all nodes: what is left about the mean, and n times the mean's."""
    columns = np.asarray(matrix.sum(axis=0)).ravel()
    mean = float(columns @ columns) / matrix.shape[0]
    return float((matrix.data**2).sum()) - mean, mean


def _centered(values: Dense) -> Dense:
    return np.asarray(values - values.mean(axis=0))


def _batched(values: Dense) -> tuple[float, float]:
    """The mean, and its standard error by the means of consecutive parts."""
    means = values.reshape(_BATCHES, -1).mean(axis=1)
    return float(means.mean()), float(means.std(ddof=1) / math.sqrt(_BATCHES))
