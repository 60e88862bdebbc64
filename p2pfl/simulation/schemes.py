"""Schemes of averaging one number a peer, each a record of functions over arrays [restarts, peers].

A scheme never knows how often, how long or why it is run. A restart draws from its own generator alone, so its numbers
are the same whichever others run beside it. Whoever fails in a round sits it out and keeps what it has.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from p2pfl.errors import UsageError
from p2pfl.graphs.mixing import mixing_csr
from p2pfl.graphs.schedule import Schedule
from p2pfl.graphs.topology import Topology
from p2pfl.spelling import Spelled, parse

Floats: TypeAlias = npt.NDArray[np.float64]  # [restarts, peers]
Ints: TypeAlias = npt.NDArray[np.int64]
Alive: TypeAlias = npt.NDArray[np.bool_]  # [restarts, peers]; who takes part in a round
Draws: TypeAlias = Sequence[np.random.Generator]  # one a restart
State: TypeAlias = Mapping[str, npt.NDArray[np.generic]]  # arrays [restarts, peers] by name

_MOST_CELLS = 1 << 27  # of a grid: a permutation of them all is drawn


@dataclass(frozen=True)
class Scheme:
    """How peers average.

    Attributes:
        name: as it is spelled, every option written out.
        begin: the state in which restarts begin with these values.
        step: the state after a round, numbered from 0; `alive` is None where nobody failed.
        read: what each peer takes the average to be.
    """

    name: str
    begin: Callable[[Floats, Draws], State]
    step: Callable[[State, int, Alive | None, Draws], State]
    read: Callable[[State], Floats]


def gossip(schedule: Schedule) -> Scheme:
    """Each mixes what its neighbors have by the weights of the topology; the weight of who failed goes to self."""
    matrix_at = _per_topology(schedule, mixing_csr)

    def step(state: State, round: int, alive: Alive | None, _: Draws) -> State:
        matrix, values = matrix_at(round), _values(state)
        if alive is None:
            return {"x": _product(matrix, values)}
        heard = _product(matrix, alive.astype(np.float64))  # the weights of those who took part
        mixed = _product(matrix, np.where(alive, values, 0.0)) + (1 - heard) * values
        return {"x": np.where(alive, mixed, values)}

    return Scheme("gossip", _just_values, step, _values)


def push_sum(schedule: Schedule) -> Scheme:
    """Each splits its sum and its weight evenly among itself and those it sends to; the average is their quotient.

    Right on any strongly connected directed graph, whatever its degrees. Σx and Σw = n are conserved in every round: a
    sender keeps what is meant for someone who failed, until it is taken.

    Source: Kempe, Dobra and Gehrke, "Gossip-based computation of aggregate information", 2003, section 2; on graphs,
    Nedić and Olshevsky, "Distributed optimization over time-varying directed graphs", 2015, section 2.
    """
    matrix_at = _per_topology(schedule, _even_shares)
    transposed_at = _per_topology(schedule, lambda topology: csr_array(_even_shares(topology).T))

    def step(state: State, round: int, alive: Alive | None, _: Draws) -> State:
        matrix = matrix_at(round)
        x, w = _values(state), np.asarray(state["w"], dtype=np.float64)
        if alive is None:
            return {"x": _product(matrix, x), "w": _product(matrix, w)}
        kept = np.where(alive, 1 - _product(transposed_at(round), alive.astype(np.float64)), 1.0)

        def pushed(held: Floats) -> Floats:
            return np.where(alive, _product(matrix, np.where(alive, held, 0.0)), 0.0) + kept * held

        return {"x": pushed(x), "w": pushed(w)}

    def read(state: State) -> Floats:
        return _values(state) / np.asarray(state["w"], dtype=np.float64)

    return Scheme("push-sum", lambda values, _: {"x": values, "w": np.ones_like(values)}, step, read)


def groups(peers: int, size: int = 32) -> Scheme:
    """Those who are there are dealt at random into groups of `size`, which average exactly; a rest joins them.

    Source: Ryabinin et al., "Moshpit SGD", 2021, section 4.1, the baseline of random groups.
    """
    if size < 2:
        raise UsageError(f"groups:size={size} average nothing; give a size of at least 2")

    def step(state: State, _: int, alive: Alive | None, draws: Draws) -> State:
        values = _values(state)
        keys = np.stack([draw.random(values.shape[1]) for draw in draws])
        there = np.full(len(values), values.shape[1]) if alive is None else alive.sum(axis=1)
        if alive is not None:
            keys[~alive] = np.inf  # behind all who are there
        order = keys.argsort(axis=1)
        count = np.maximum(1, there // size)[:, None]
        position = np.arange(values.shape[1])[None]
        dealt = np.where(position < count * size, position // size, (position - count * size) % count)
        group = np.empty_like(dealt)
        np.put_along_axis(group, order, dealt, axis=1)
        return {"x": _group_means(values, group, alive, values.shape[1] // size + 1)}

    return Scheme(f"groups:size={size}", _just_values, step, _values)


def moshpit(peers: int, size: int | None = None, dims: int = 2) -> Scheme:
    """Peers on cells of a grid `size`^`dims` drawn once; round t averages along axis t mod dims, exactly in each line.

    On a full grid the average is exact after `dims` rounds. Cells that hold nobody, or someone who failed, are left
    out of their line's mean.

    Args:
        peers: at most as many as there are cells.
        size: of each axis; the smallest that holds all unless given.
        dims: axes; more makes lines shorter and rounds more.

    Source: Ryabinin et al., "Moshpit SGD", 2021, section 3.2.
    """
    if dims < 1:
        raise UsageError(f"moshpit:dims={dims} is no grid; give at least 1")
    if size is None:
        size = max(2, round(peers ** (1 / dims)) - 1)
        while size**dims < peers:
            size += 1
    if not peers <= size**dims <= _MOST_CELLS:
        raise UsageError(
            f"a grid of {size}^{dims} cells cannot hold {peers} peers; give size= so that size^dims is from {peers} "
            f"to {_MOST_CELLS}"
        )
    cells = size**dims
    lines = cells // size

    def begin(values: Floats, draws: Draws) -> State:
        return {"x": values, "cell": np.stack([draw.permutation(cells)[:peers] for draw in draws])}

    def step(state: State, round: int, alive: Alive | None, _: Draws) -> State:
        cell = np.asarray(state["cell"], dtype=np.int64)
        below = size ** (dims - 1 - round % dims)  # what a step along the axis adds to the number of a cell
        line = cell // (below * size) * below + cell % below
        return {"x": _group_means(_values(state), line, alive, lines), "cell": cell}

    return Scheme(f"moshpit:size={size},dims={dims}", begin, step, _values)


def all_reduce() -> Scheme:
    """All have the exact average after one round, unless anybody failed: then nobody has anything."""

    def step(state: State, _: int, alive: Alive | None, __: Draws) -> State:
        values = _values(state)
        whole = np.True_ if alive is None else alive.all(axis=1, keepdims=True)
        return {"x": np.where(whole, values.mean(axis=1, keepdims=True), values)}

    return Scheme("all-reduce", _just_values, step, _values)


_ON_TOPOLOGIES: Mapping[str, Callable[[Schedule], Scheme]] = {"gossip": gossip, "push-sum": push_sum}
_ALONE: Mapping[str, Callable[..., Scheme]] = {
    "groups": groups,
    "moshpit": moshpit,
    "all-reduce": lambda peers: all_reduce(),
}
NAMES = (*_ON_TOPOLOGIES, *_ALONE)


def needs_topology(spec: str) -> bool:
    """Whether the scheme runs on a topology. Raises UsageError where there is none of that name."""
    return _known(spec).name in _ON_TOPOLOGIES


def scheme(spec: str, peers: int, schedule: Schedule | None) -> Scheme:
    """The scheme that is spelled `NAME[:key=value,…]`.

    Args:
        spec: one of `NAMES`, with the options of its function.
        peers: how many.
        schedule: for gossip and push-sum; the others take none.

    Raises:
        UsageError: there is no such scheme or option, or it does not fit.
    """
    spelled = _known(spec)
    if spelled.name in _ON_TOPOLOGIES:
        if spelled.options:
            raise UsageError(f"{spelled.name} has no options: who shares with whom is the topology's")
        if schedule is None:
            raise UsageError(f"{spelled.name} needs a topology, as 'ring'")
        return _ON_TOPOLOGIES[spelled.name](schedule)
    build = _ALONE[spelled.name]
    options = list(inspect.signature(build).parameters)[1:]
    values: dict[str, int] = {}
    for key, text in spelled.options.items():
        if key not in options:
            exist = f"its options are {', '.join(options)}" if options else "it has none"
            raise UsageError(f"scheme {spelled.name!r} has no option {key!r}: {exist}")
        try:
            values[key] = msgspec.convert(text, int, strict=False)
        except msgspec.ValidationError as error:
            raise UsageError(f"option {key!r} of scheme {spelled.name!r} is a whole number, not {text!r}") from error
    return build(peers, **values)


def _known(spec: str) -> Spelled:
    spelled = parse(spec)
    if spelled.name not in NAMES:
        raise UsageError(f"there is no scheme {spelled.name!r}. There are: {', '.join(NAMES)}")
    return spelled


def _values(state: State) -> Floats:
    return np.asarray(state["x"], dtype=np.float64)


def _just_values(values: Floats, _: Draws) -> State:
    return {"x": values}


def _per_topology(schedule: Schedule, build: Callable[[Topology], csr_array]) -> Callable[[int], csr_array]:
    """The matrix of a round: built once for each topology of a period, and each round anew where none repeats."""
    built: dict[int, csr_array] = {}

    def at(round: int) -> csr_array:
        if schedule.period is None:
            return build(schedule.at(round))
        phase = round % schedule.period
        if phase not in built:
            built[phase] = build(schedule.at(phase))
        return built[phase]

    return at


def _even_shares(topology: Topology) -> csr_array:
    """[receivers, senders]: every sender splits what it has evenly; columns sum to 1."""
    n = topology.nodes
    receivers, senders = topology.links.T
    share = 1 / (1 + topology.out_degrees)
    everyone = np.arange(n)
    rows, columns = np.concatenate([everyone, receivers]), np.concatenate([everyone, senders])
    return csr_array((share[columns], (rows, columns)), shape=(n, n))


def _product(matrix: csr_array, values: Floats) -> Floats:
    """`matrix` applied to every row of `values`."""
    if len(values) == 1:
        return np.asarray(matrix @ values[0], dtype=np.float64)[None]
    return np.ascontiguousarray((matrix @ np.ascontiguousarray(values.T)).T, dtype=np.float64)


def _group_means(values: Floats, group: Ints, alive: Alive | None, groups: int) -> Floats:
    """The mean of its group for everyone alive; groups are numbered from 0 in every restart."""
    flat = (group + groups * np.arange(len(values))[:, None]).ravel()
    held = values.ravel()
    if alive is not None:
        flat, held = flat[alive.ravel()], held[alive.ravel()]
    sizes = np.bincount(flat, minlength=groups * len(values))
    means = np.bincount(flat, held, minlength=groups * len(values)) / np.maximum(1, sizes)
    mixed = values.copy()
    mixed[np.ones_like(values, dtype=np.bool_) if alive is None else alive] = means[flat]
    return mixed
