"""What to expect of a topology before any training: how fast peers agree, and how far apart noise keeps them.

The noise floor ranks topologies as training on lopsided data does: on 12 topologies of 25 peers it gave the order of
measured consensus distances with a rank correlation of .99.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
from scipy.sparse import csr_array

from p2pfl.graphs.links import DRAWS, Links, counted, links
from p2pfl.graphs.mixing import mixing_csr
from p2pfl.graphs.noise import (
    Estimate,
    Simulated,
    contraction_rounds,
    effective_neighbors_over,
    mean_of,
    noise_floor_over,
    rounds_to_simulate,
    share_left,
    simulate,
)
from p2pfl.graphs.schedule import Schedule
from p2pfl.graphs.spectra import (
    DENSE_NODES,
    NOTHING,
    SYMMETRIC_NODES,
    Dense,
    Eigenvalues,
    Matrix,
    effective_neighbors_of,
    gap_of,
    is_normal,
    looks_the_same_everywhere,
    noise_floor_of,
    singular_gap,
    spectral_gap,
    whole_spectrum,
)
from p2pfl.graphs.topology import Topology

GAMMAS = (0.9, 0.99)  # of the effective neighbors
MIXED = 1e-3  # of its first length: what a distance to consensus has shrunk to after the mixing time
_SURELY = 0.1  # an eigenvalue that rounding alone does not make of 0
_LONGEST_WALK = 2000  # rounds of mixing time beyond which a simulation would take minutes


@dataclass(frozen=True)
class Prediction:
    """What to expect of a schedule; each figure is found when it is first asked for, and None where it cannot be.

    Rounds drawn anew are judged in the mean square, by draws: their gaps are 1 − √(contraction), the rate at which the
    expected distance to consensus falls.

    Attributes:
        schedule: of which, its weights included.
        seed: of simulations, where there is no formula.
    """

    schedule: Schedule
    seed: int = 0

    @property
    def how(self) -> str:
        """How gaps, contraction and mixing time were found: `exact`, or `monte carlo` where rounds are drawn anew."""
        return "exact" if self.schedule.period else "monte carlo"

    @cached_property
    def doubly_stochastic(self) -> bool:
        """Whether every node counts the same in every round, so that the network's average is preserved."""
        if self.schedule.period is None:
            return self._drawn[2]
        return all(self.schedule.at(t).doubly_stochastic for t in range(self.schedule.period))

    @cached_property
    def links(self) -> Links:
        """What a round's links cost."""
        return self._drawn[0] if self.schedule.period is None else links(self.schedule)

    @cached_property
    def _drawn(self) -> tuple[Links, Estimate, bool]:
        """Links, contraction and whether doubly stochastic where drawn anew, each drawn once: it takes longest."""
        even, shares = [], []

        def seen() -> Iterator[Topology]:
            for round in range(max(DRAWS, contraction_rounds(self.schedule.nodes))):
                topology = self.schedule.at(round)
                even.append(topology.doubly_stochastic)
                shares.append(share_left(topology))
                yield topology

        rounds = seen()
        found = counted(islice(rounds, DRAWS))
        deque(rounds, maxlen=0)  # the rest tell the contraction alone
        return found, mean_of(shares), all(even)

    @cached_property
    def eigenvalues(self) -> Eigenvalues | None:
        """All of the mixing matrix, of a period the product; None where drawn anew or too many nodes."""
        matrix = self._product
        return None if matrix is None else whole_spectrum(matrix)

    @cached_property
    def spectral_gap(self) -> float | None:
        """1 − the second largest |eigenvalue|; of a period the root that makes it a round's."""
        if self._by_formula:
            assert self.eigenvalues is not None
            return gap_of(self.eigenvalues)
        return 1.0 if self._vanishes else self._rate(spectral_gap)

    @cached_property
    def singular_gap(self) -> float | None:
        """1 − ‖W − J‖₂; of a period 1 − ‖ΠW_t − J‖₂^(1/T). Negative where a round can take models further apart."""
        return self.spectral_gap if self._by_formula else self._rate(singular_gap)

    @cached_property
    def contraction(self) -> Estimate | None:
        """E[new V]/V of V = (1/n)Σ‖x_i − x̄‖² in a round, x̄ the mean before it.

        Exact for what stays or repeats: of the worst direction, over a period the geometric mean. By draws where rounds
        are drawn anew, over all directions: exact up to the draws, and their standard error. Where the average drifts
        the new V counts the way to the old mean too (EL-Local's nodes come nearer to each other than it says).
        """
        if self.schedule.period is None:
            return self._drawn[1]
        return None if self.singular_gap is None else Estimate((1 - self.singular_gap) ** 2, "exact")

    @cached_property
    def mixing_time(self) -> int | None:
        """Rounds until the distance to consensus ‖x − x̄‖ is at most 1/1,000 of what it was, whatever it began with.

        Exact for normal matrices and within a first period; else an upper bound from the gap by singular values (from
        eigenvalues where that is not positive). In the mean square where rounds are drawn anew. None for never.
        """
        if self.schedule.nodes == 1:
            return 0
        if self._vanishes:
            return self._vanishes
        if self.schedule.period and self.schedule.period > 1 and self._passed is not None:
            within = [round for round, norm in enumerate(self._passed, start=1) if norm <= MIXED]
            if within:
                return within[0]
        positive = [gap for gap in (self.singular_gap, self.spectral_gap) if gap is not None and gap > NOTHING]
        if not positive:
            return None
        turns = self.schedule.period or 1
        # Whole periods: what holds over a period need not hold in each of its rounds. 1e-9 against a rounded log.
        left = math.log(1 - positive[0]) * turns if positive[0] < 1 else -math.inf
        return turns * max(1, math.ceil(math.log(MIXED) / left - 1e-9))

    @cached_property
    def exact_rounds(self) -> int | None:
        """Rounds after which all hold the exact average, whatever they began with; None for never, or not known."""
        if self.schedule.nodes == 1:
            return 0
        if self.schedule.settled_after is not None or self.schedule.period is None:
            return self.schedule.settled_after
        if self.schedule.period == 1:
            if self._vanishes:
                return self._vanishes
            return 1 if self.singular_gap is not None and 1 - self.singular_gap <= NOTHING else None
        if self._passed is None:
            return self._first_exact
        exact = (round for round, norm in enumerate(self._passed, start=1) if norm <= NOTHING)
        return next(exact, None)

    @cached_property
    def exact_unknown(self) -> bool:
        """Whether there may be exact consensus after all, though `exact_rounds` is None: too large to multiply out."""
        period = self.schedule.period
        if self.exact_rounds is not None or period is None or self._by_formula or self.schedule.nodes <= DENSE_NODES:
            return False
        if period == 1 and not self.doubly_stochastic:
            return False
        # An eigenvalue of the product other than 0 never dies away; where 0 is a multiple one, rounding makes it .04.
        return self.spectral_gap is None or (1 - self.spectral_gap) ** period < _SURELY

    def effective_neighbors(self, gamma: float) -> Estimate | None:
        """How many peers' noise each model effectively averages, at most the number of nodes."""
        if self._by_formula:
            assert self.eigenvalues is not None
            return Estimate(effective_neighbors_of(self.eigenvalues, gamma), "formula")
        if self._solvable:
            return Estimate(effective_neighbors_over(self._turns, gamma), "exact")
        if not self._walkable:
            return None
        if gamma in GAMMAS:
            return self._simulated.effective_neighbors[gamma]
        return simulate(self.schedule, (gamma,), *self._walk, self.seed).effective_neighbors[gamma]

    @cached_property
    def noise_floor(self) -> Estimate | None:
        """The consensus distance that unit noise at every node and round keeps up; None where infinite or not found.

        By formula for one normal matrix, as every symmetric one; exact for any other up to 1,024 nodes, and for what
        repeats; else by simulation.
        """
        if self._by_formula:
            assert self.eigenvalues is not None
            found = Estimate(noise_floor_of(self.eigenvalues), "formula")
        elif self._solvable:
            found = Estimate(noise_floor_over(self._turns), "exact")
        elif self._walkable:
            found = self._simulated.noise_floor
        else:
            return None
        return found if math.isfinite(found.value) else None

    @cached_property
    def _turns(self) -> list[csr_array]:
        """The matrices of a period, none where rounds are drawn anew."""
        return [mixing_csr(self.schedule.at(t)) for t in range(self.schedule.period or 0)]

    @cached_property
    def _product(self) -> csr_array | Dense | None:
        if len(self._turns) == 1:
            return self._turns[0]
        if not self._turns or self.schedule.nodes > SYMMETRIC_NODES:
            return None
        product = np.eye(self.schedule.nodes)
        for matrix in self._turns:
            product = np.asarray(matrix @ product)
        return product

    @cached_property
    def _first_exact(self) -> int | None:
        """The round of a first period after which the product is the exact average, where it can be multiplied out."""
        mean = 1 / self.schedule.nodes
        if self._product is None or len(self._turns) < 2 or np.abs(self._product - mean).max() > NOTHING:
            return None
        product = np.eye(self.schedule.nodes)
        for round, matrix in enumerate(self._turns, start=1):
            product = np.asarray(matrix @ product)
            if np.abs(product - mean).max() <= NOTHING:
                return round
        return None

    @cached_property
    def _passed(self) -> list[float] | None:
        """‖(I − J) W_t … W_0‖₂ after each round of a first period, or a number as far above `MIXED`."""
        if self.schedule.nodes > DENSE_NODES:
            return None
        norms, product = [], np.eye(self.schedule.nodes)
        for matrix in self._turns:
            product = np.asarray(matrix @ product)
            product -= product.mean(axis=0)
            norm = float(np.linalg.norm(product))
            # The quick norm is at most √n times as large: only near the mixing time is the other asked for.
            near = NOTHING < norm <= MIXED * math.sqrt(len(product))
            norms.append(float(np.linalg.norm(product, 2)) if near else norm)
        return norms

    @cached_property
    def _vanishes(self) -> int | None:
        """Of one matrix that is not normal: the power that is the exact average, as of a de Bruijn graph.

        Its other eigenvalues are then 0, and come out as anything up to the root of the rounding error.
        """
        if self._by_formula or self.schedule.period != 1 or self.schedule.nodes > DENSE_NODES:
            return None
        if self.eigenvalues is None or gap_of(self.eigenvalues) < 0.9 or not self.doubly_stochastic:
            return None
        matrix = self._turns[0]
        power = np.eye(self.schedule.nodes)
        for round in range(1, self.schedule.nodes + 1):
            power = np.asarray(matrix @ power)
            if np.abs(power - 1 / self.schedule.nodes).max() <= NOTHING:
                return round
        return None

    @cached_property
    def _by_formula(self) -> bool:
        matrix = self._product
        if self.schedule.period != 1 or matrix is None or self.eigenvalues is None:
            return False
        # Products of large matrices only where they are needed: what looks the same everywhere is normal.
        normal = not np.iscomplexobj(self.eigenvalues) or looks_the_same_everywhere(matrix) or is_normal(matrix)
        return normal and self.doubly_stochastic

    @property
    def _solvable(self) -> bool:
        return bool(self._turns) and self.schedule.nodes <= DENSE_NODES

    @property
    def _walkable(self) -> bool:
        if self.schedule.period is None:
            return self._walk[0] is not None
        return (self.mixing_time or math.inf) <= _LONGEST_WALK

    @property
    def _walk(self) -> tuple[int | None, int | None]:
        """Rounds to simulate and to let pass before; None, None where rounds drawn anew would take too many."""
        if self.schedule.period is None:
            rounds = rounds_to_simulate(self.schedule.nodes, self._drawn[1].value)
            return rounds, rounds and rounds // 5
        slow = max(self.mixing_time or 0, 10)
        return 10 * slow, 2 * slow

    @cached_property
    def _simulated(self) -> Simulated:
        return simulate(self.schedule, GAMMAS, *self._walk, self.seed)

    def _rate(self, gap: Callable[[Matrix, int], float]) -> float | None:
        period, settled = self.schedule.period, self.schedule.settled_after
        if period is None and self.contraction is not None:
            return 1 - math.sqrt(max(self.contraction.value, 0.0))
        if period and period > 1 and settled is not None and settled <= period:
            return 1.0
        return None if self._product is None else gap(self._product, period or 1)


def predict(schedules: Iterable[Schedule], seed: int = 0) -> list[Prediction]:
    """What to expect of each, the lowest noise floor first: the order in which they are expected to do in training.

    Those without a noise floor come last, in the order given.
    """
    return sorted((Prediction(schedule, seed) for schedule in schedules), key=_floor)


def noise_floor(schedule: Schedule, seed: int = 0) -> Estimate | None:
    """As `Prediction.noise_floor`."""
    return Prediction(schedule, seed).noise_floor


def contraction(schedule: Schedule, seed: int = 0) -> Estimate | None:
    """As `Prediction.contraction`."""
    return Prediction(schedule, seed).contraction


def exact_rounds(schedule: Schedule) -> int | None:
    """As `Prediction.exact_rounds`."""
    return Prediction(schedule).exact_rounds


def _floor(prediction: Prediction) -> float:
    return math.inf if prediction.noise_floor is None else prediction.noise_floor.value
