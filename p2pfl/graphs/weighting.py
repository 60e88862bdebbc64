"""Mixing weights by name, `NAME[:key=value,…]`: how much of what each node receives it takes in.

`auto` keeps a topology's own weights, and else takes Metropolis–Hastings (undirected) or 1 / (1 + in-degree)
(directed). Any other name replaces the weights of every round.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from difflib import get_close_matches

import numpy as np

from p2pfl.errors import TopologyError
from p2pfl.graphs.mixing import mixing_csr
from p2pfl.graphs.named import read_options
from p2pfl.graphs.schedule import Schedule, kept
from p2pfl.graphs.spectra import distinct_values
from p2pfl.graphs.topology import Floats, Topology
from p2pfl.spelling import parse

_MOST = 2048  # nodes whose eigenvalues are computed, densely: seconds
_EXACT = 1e-6  # of the models: as far as rounding may leave finite-time from the average
_LOOKED_AT = 4  # rounds of a schedule without a period that `drift_warning` looks at


def weighted(schedule: Schedule, mixing: str) -> Schedule:
    """The schedule with the weights of that name written out; itself for `auto`.

    Raises:
        TopologyError: there is no such weighting, or it does not fit the schedule.
        UsageError: the text is not of the form NAME or NAME:key=value,….
    """
    return schedule if mixing == "auto" else _weighted(schedule.nodes)(schedule, mixing)


def drift_warning(schedule: Schedule) -> str:
    """A sentence if the weights do not keep the network's average, empty if they do.

    Of a schedule without a period the first few rounds are looked at.

    Raises:
        TopologyError: there are no weights, as the topology is directed, of unequal degrees, and not said to drift.
    """
    for round in range(schedule.period or _LOOKED_AT):
        topology = schedule.at(round)
        if not topology.doubly_stochastic:
            sums = mixing_csr(topology).sum(axis=0)
            least, most = (f"{value:.3g}" for value in (np.min(sums), np.max(sums)))
            return (
                f"the weights of {schedule.name!r} do not keep the network's average: in round {round} they give some "
                f"nodes {most} of a say and others {least}, so what all agree on drifts away from the mean"
            )
    return ""


def metropolis(schedule: Schedule) -> Schedule:
    """1 / (1 + the larger degree) on each neighbor; doubly stochastic on any undirected graph.

    Source: Xiao and Boyd, "Fast linear iterations for distributed averaging", 2004, section 4.
    """
    return _each_round(schedule, lambda topology: _plain(_undirected(topology, "metropolis")))


def max_degree(schedule: Schedule) -> Schedule:
    """1 / (1 + the largest degree of all) on each neighbor; doubly stochastic where all send as much as they receive.

    Source: Xiao and Boyd, "Fast linear iterations for distributed averaging", 2004, section 4.
    """

    def weigh(topology: Topology) -> Topology:
        # A draw that may drift is refused at once, though by chance its first round may be even.
        chance = schedule.period is None and topology.drifting
        if chance or not np.array_equal(topology.degrees, topology.out_degrees):
            raise TopologyError(
                f"weighting 'max-degree' would let the average drift on {topology.name!r}, where some nodes send more "
                "than they receive: take 'uniform', which says so, or an undirected topology"
            )
        return _constant(topology, 1 / (1 + int(topology.degrees.max())))

    return _each_round(schedule, weigh)


def uniform(schedule: Schedule) -> Schedule:
    """1 / (1 + its own degree) on each a node receives from; not doubly stochastic where degrees differ: it drifts."""

    def weigh(topology: Topology) -> Topology:
        if topology.regular:
            return _constant(topology, 1 / (1 + int(topology.degrees[0])))
        if topology.directed:
            return Topology(topology.name, topology.nodes, topology.pairs, True, drifting=True)
        values = 1 / (1 + topology.degrees[topology.pairs[:, ::-1]])
        return Topology.of_links(topology.name, topology.nodes, topology.pairs, values, drifting=True)

    return _each_round(schedule, weigh)


def lazy(schedule: Schedule, keep: float = 0.5) -> Schedule:
    """The part keep stays as it is, the rest mixes as by auto: (I + W) / 2 unless told; no negative eigenvalue."""
    if not 0 <= keep < 1:
        raise TopologyError(f"weighting 'lazy' cannot keep the part {keep}: take keep from 0 to below 1, as 0.5")

    def weigh(topology: Topology) -> Topology:
        values = (1 - keep) * _link_values(topology)
        return _relinked(topology, values)

    return _each_round(schedule, weigh)


def best_constant(schedule: Schedule) -> Schedule:
    """One weight on all edges, 2 / (λ₂ + λₙ) of the Laplacian: the fastest of all that weigh every edge alike.

    Source: Xiao and Boyd, "Fast linear iterations for distributed averaging", 2004, section 4.1.
    """

    if schedule.period is None:
        raise TopologyError(
            f"weighting 'best-constant' needs every round connected, and {schedule.name!r} draws each anew, so one to "
            "come may not be: take 'auto', or a topology that stays or repeats"
        )

    def weigh(topology: Topology) -> Topology:
        eigenvalues = _laplacian_eigenvalues(topology, "best-constant")
        return _constant(topology, 2 / (eigenvalues[1] + eigenvalues[-1]) if topology.nodes > 1 else 0.0)

    return _each_round(schedule, weigh)


def finite_time(schedule: Schedule) -> Schedule:
    """I − L/λ with another eigenvalue λ of the Laplacian L each round: exact when each distinct one had its round.

    The eigenvalues are in Leja order, each as far as can be from those before it, to keep rounding small; where that
    does not help, as where degrees differ much, the weighting is refused.

    Source: Sandryhaila, Kar and Moura, "Finite-time distributed consensus through graph filters", 2014; Reichel,
        "Newton interpolation at Leja points", 1990.
    """
    if not schedule.static:
        raise TopologyError(
            f"weighting 'finite-time' needs one topology for all rounds, and {schedule.name!r} changes: take 'auto'"
        )
    topology = schedule.at(0)
    if topology.nodes == 1:
        return schedule
    # The first is 0, and apart from the rest as the topology is connected.
    order = leja(distinct_values(_laplacian_eigenvalues(topology, "finite-time")[1:]))
    off = _rounding(order)
    if off > _EXACT:
        raise TopologyError(
            f"weighting 'finite-time' would not be exact on {topology.name!r}: its {len(order)} rounds blow rounding "
            f"up to about {off:.0e} of the models; take 'best-constant'"
        )
    rounds = tuple(_constant(topology, 1 / eigenvalue) for eigenvalue in order)
    return Schedule(schedule.name, schedule.nodes, len(rounds), rounds.__getitem__, len(rounds))


def serves_finite_time(topology: Topology) -> bool:
    """Whether `finite-time` takes the topology: undirected, connected, not too large, and rounding spares it."""
    try:
        finite_time(Schedule.of(topology))
    except TopologyError:
        return False
    return True


def leja(points: list[float]) -> list[float]:
    """The points, the largest first, then always the one whose distances to those before have the largest product."""
    left = sorted(points)
    ordered = [left.pop()] if left else []
    while left:
        distances = [sum(float(np.log(abs(point - before))) for before in ordered) for point in left]
        ordered.append(left.pop(int(np.argmax(distances))))
    return ordered


def _rounding(order: list[float]) -> float:
    """How far rounding may leave the nodes from the average, as a part of what they began with.

    An error of a round in the direction of an eigenvalue λ grows by |1 − λ/λₖ| in each later one, until λ's own.
    """
    points = np.array(order)
    factors = np.abs(1 - points / points[:, np.newaxis])  # a row a round
    with np.errstate(divide="ignore"):  # the logarithm of its own round's 0
        logarithms = np.log(factors)
    before = np.cumsum(logarithms, axis=0).max(axis=1)
    after = np.cumsum(logarithms[::-1], axis=0)[::-1].max(axis=1)
    worst = max(0.0, float(before.max()), float(after.max()), float((before[:-1] + after[1:]).max(initial=0)))
    return float(np.exp(min(worst, 700.0)) * np.finfo(np.float64).eps)


_WEIGHTINGS: Mapping[str, Callable[..., Schedule]] = {
    "auto": lambda schedule: schedule,
    "metropolis": metropolis,
    "max-degree": max_degree,
    "uniform": uniform,
    "lazy": lazy,
    "best-constant": best_constant,
    "finite-time": finite_time,
}
WEIGHTINGS = tuple(_WEIGHTINGS)


def _new(schedule: Schedule, mixing: str) -> Schedule:
    spelled = parse(mixing)
    if spelled.name not in _WEIGHTINGS:
        near = get_close_matches(spelled.name.lower(), WEIGHTINGS, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ";"
        raise TopologyError(f"there is no weighting {spelled.name!r}{meant} there are: {', '.join(WEIGHTINGS)}")
    options = dict(list(inspect.signature(_WEIGHTINGS[spelled.name]).parameters.items())[1:])  # without the schedule
    values = read_options("weighting", spelled, options)
    return replace(_WEIGHTINGS[spelled.name](schedule, **values), origin=(weighted, (schedule, mixing)))


_weighted = kept(_new)


def _each_round(schedule: Schedule, weigh: Callable[[Topology], Topology]) -> Schedule:
    """The schedule with each round weighed; it still settles if no weight became another."""
    settled = schedule.settled_after
    for round in range(schedule.period or 1):  # and refuse at once what does not fit
        before, after = schedule.at(round), weigh(schedule.at(round))
        if settled is not None and not _equally_weighed(before, after):
            settled = None
    weighed = Schedule(schedule.name, schedule.nodes, schedule.period, lambda round: weigh(schedule.at(round)), settled)
    return weighed if settled is not None else weighed.settled()


def _equally_weighed(one: Topology, other: Topology) -> bool:
    return bool(one.doubly_stochastic and np.abs(_link_values(one) - _link_values(other)).max(initial=0) < 1e-15)


def _link_values(topology: Topology) -> Floats:
    """The weight at each of the topology's links, as `mixing` has it; [arcs]."""
    matrix = mixing_csr(topology).tocoo()
    values: Floats = matrix.data[matrix.row != matrix.col]
    return values


def _relinked(topology: Topology, values: Floats) -> Topology:
    """The topology with a weight at each of its links, [arcs]."""
    own = 1 - np.bincount(topology.links[:, 0], weights=values, minlength=topology.nodes)
    everyone = np.arange(topology.nodes)
    rows = np.column_stack([topology.links, values])
    table = np.concatenate([rows, np.column_stack([everyone, everyone, own])])
    return Topology(topology.name, topology.nodes, topology.pairs, topology.directed, table, topology.drifting)


def _constant(topology: Topology, weight: float) -> Topology:
    values = np.full(len(topology.pairs), weight)
    return Topology.of_links(topology.name, topology.nodes, topology.pairs, values, topology.directed)


def _plain(topology: Topology) -> Topology:
    """Without weights of its own."""
    return Topology(topology.name, topology.nodes, topology.pairs, topology.directed)


def _undirected(topology: Topology, weighting: str) -> Topology:
    if topology.directed:
        raise TopologyError(
            f"weighting {weighting!r} needs an undirected topology, and {topology.name!r} is directed: take 'auto' or "
            "'uniform'"
        )
    return topology


def _laplacian_eigenvalues(topology: Topology, weighting: str) -> Floats:
    """Of the Laplacian, ascending: the first is 0; [nodes]."""
    _undirected(topology, weighting)
    if topology.nodes > _MOST:
        raise TopologyError(
            f"weighting {weighting!r} needs all eigenvalues, too slow for {topology.nodes} nodes: take at most "
            f"{_MOST}, or 'metropolis'"
        )
    if not topology.connected:
        raise TopologyError(
            f"weighting {weighting!r} needs a connected topology, and a round of {topology.name!r} is not: take 'auto'"
        )
    laplacian = np.diag(topology.degrees.astype(np.float64))
    laplacian[topology.links[:, 0], topology.links[:, 1]] = -1
    return np.asarray(np.linalg.eigvalsh(laplacian), dtype=np.float64)
