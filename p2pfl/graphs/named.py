"""Topologies by name, `NAME[:key=value,…]`, through one table.

To add one, write a builder whose first parameter is the number of nodes and whose others are annotated and have
defaults, and add it to the table. Text from another peer may be built: nothing is imported and no file is read.
"""

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import lru_cache

import msgspec

from p2pfl.errors import TopologyError
from p2pfl.graphs import builders
from p2pfl.graphs.schedule import Schedule
from p2pfl.graphs.topology import Topology
from p2pfl.spelling import parse

_BUILDERS: Mapping[str, Callable[..., Topology | Schedule]] = {
    "ring": builders.ring,
    "chain": builders.chain,
    "star": builders.star,
    "complete": builders.complete,
    "grid": builders.grid,
    "torus": builders.torus,
    "exponential": builders.exponential,
    "exponential-symmetric": builders.exponential_symmetric,
    "random-regular": builders.random_regular,
    "graph": builders.graph,
}
NAMES = tuple(_BUILDERS)


def build(spec: str | Topology, nodes: int, round: int = 0, seed: int = 0) -> Topology:
    """The topology of a round; of every round where the spec names one that stays. See `schedule`."""
    return schedule(spec, nodes, seed).at(round)


def schedule(spec: str | Topology, nodes: int, seed: int = 0) -> Schedule:
    """Build what the spec names for so many nodes; a topology already made is only checked to fit.

    Args:
        spec: `NAME` or `NAME:key=value,…`.
        seed: for what draws at random and whose spec has no `seed=` of its own.

    Raises:
        TopologyError: an unknown name or option, a wrong value, or no such topology of so many nodes.
        UsageError: the text is not of the form NAME or NAME:key=value,….
    """
    if isinstance(spec, Topology):
        return Schedule.of(fitting(spec, nodes))
    return _schedule(spec, nodes, seed)


@lru_cache(maxsize=16)
def _schedule(spec: str, nodes: int, seed: int) -> Schedule:
    spelled = parse(spec)
    options = _options(spelled.name)
    values: dict[str, object] = {}
    for key, text in spelled.options.items():
        if key not in options:
            exist = f"its options are {', '.join(options)}" if options else "it has none"
            raise TopologyError(f"topology {spelled.name!r} has no option {key!r}: {exist}")
        try:
            values[key] = msgspec.convert(text, options[key].annotation, strict=False)
        except msgspec.ValidationError as error:
            raise TopologyError(f"option {key!r} of topology {spelled.name!r} cannot be {text!r}: {error}") from error
    if "seed" in options:
        values.setdefault("seed", seed)
    built = _BUILDERS[spelled.name](nodes, **values)
    return built if isinstance(built, Schedule) else Schedule.of(built)


def inline(topology: Topology) -> str:
    """The topology itself as a spec that `build` reads, so that it can travel to peers that do not have its file.

    Raises:
        TopologyError: it carries explicit weights, which have no such form.
    """
    if topology.weights is not None:
        raise TopologyError(f"topology {topology.name!r} has explicit weights, which live peers do not take yet")
    edges = "/".join(f"{a}-{b}" for a, b in topology.edges)
    return f"graph:edges={edges or '-'},directed={str(topology.directed).lower()},of={topology.nodes}"


def describe(name: str) -> str:
    """One line: what it is, and its options with their defaults (none shown where it depends on the nodes)."""
    options = _options(name).values()
    shown = ", ".join(
        option.name if option.default is None else f"{option.name}={option.default}" for option in options
    )
    first = (inspect.getdoc(_BUILDERS[name]) or name).splitlines()[0]
    return f"{first} Options: {shown}." if shown else first


def fitting(topology: Topology, nodes: int) -> Topology:
    """The same topology, if it has so many nodes.

    Raises:
        TopologyError: it has more or fewer.
    """
    if topology.nodes != nodes:
        raise TopologyError(
            f"topology {topology.name!r} has {topology.nodes} nodes, the network {nodes} peers: "
            f"use {topology.nodes} peers, or a topology for any number, as 'ring'"
        )
    return topology


def unknown(name: str, names: tuple[str, ...]) -> TopologyError:
    """The error that there is no topology of that name, with the nearest spelling."""
    near = get_close_matches(name.lower(), names, n=1)
    meant = f"; did you mean {near[0]!r}?" if near else "."
    return TopologyError(f"there is no topology {name!r}{meant} There are: {', '.join(names)}")


def _options(name: str) -> dict[str, inspect.Parameter]:
    if name not in _BUILDERS:
        raise unknown(name, NAMES)
    return dict(list(inspect.signature(_BUILDERS[name]).parameters.items())[1:])  # without the nodes
