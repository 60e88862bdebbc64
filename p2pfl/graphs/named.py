"""Topologies by name, `NAME[:key=value,…]`, through one table.

To add one, write a builder whose first parameter is the number of nodes and whose others are annotated and have
defaults, and add it to the table. Text from another peer may be built: nothing is imported and no file is read.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import TypeVar

import msgspec

from p2pfl.errors import TopologyError
from p2pfl.graphs import builders, random_graphs, schedules
from p2pfl.graphs.schedule import Schedule, kept
from p2pfl.graphs.topology import Topology
from p2pfl.spelling import Spelled, parse

_Kind = TypeVar("_Kind", Topology, Schedule)

_BUILDERS: Mapping[str, Callable[..., Topology | Schedule]] = {
    "ring": builders.ring,
    "chain": builders.chain,
    "star": builders.star,
    "complete": builders.complete,
    "grid": builders.grid,
    "torus": builders.torus,
    "hypercube": builders.hypercube,
    "exponential": builders.exponential,
    "exponential-symmetric": builders.exponential_symmetric,
    "random-regular": builders.random_regular,
    "erdos-renyi": random_graphs.erdos_renyi,
    "small-world": random_graphs.small_world,
    "barabasi-albert": random_graphs.barabasi_albert,
    "tree": builders.tree,
    "barbell": builders.barbell,
    "equi-static": random_graphs.equi_static,
    "one-peer-exponential": schedules.one_peer_exponential,
    "one-peer-hypercube": schedules.one_peer_hypercube,
    "base": schedules.base,
    "random-matching": schedules.random_matching,
    "epidemic-oracle": schedules.epidemic_oracle,
    "epidemic-local": schedules.epidemic_local,
    "equi-dynamic": schedules.equi_dynamic,
    "moshpit": schedules.moshpit,
    "cycle": schedules.cycle,
    "graph": builders.graph,
}
NAMES = tuple(_BUILDERS)


def build(spec: str | Topology | Schedule, nodes: int, round: int = 0, seed: int = 0) -> Topology:
    """The topology of a round; of every round where the spec names one that stays. See `schedule`."""
    return schedule(spec, nodes, seed).at(round)


def schedule(spec: str | Topology | Schedule, nodes: int, seed: int = 0) -> Schedule:
    """Build what the spec names for so many nodes; a topology or schedule already made is only checked to fit.

    Args:
        spec: `NAME` or `NAME:key=value,…`.
        seed: for what draws at random and whose spec has no `seed=` of its own.

    Raises:
        TopologyError: an unknown name or option, a wrong value, or no such topology of so many nodes.
        UsageError: the text is not of the form NAME or NAME:key=value,….
    """
    if isinstance(spec, Schedule):
        return fitting(spec, nodes)
    if isinstance(spec, Topology):
        return Schedule.of(fitting(spec, nodes))
    return _schedule(nodes)(spec, nodes, seed)


def _new(spec: str, nodes: int, seed: int) -> Schedule:
    spelled = parse(spec)
    options = _options(spelled.name)
    values = read_options("topology", spelled, options)
    if "seed" in options:
        values.setdefault("seed", seed)
    built = _BUILDERS[spelled.name](nodes, **values)
    made = built if isinstance(built, Schedule) else Schedule.of(built)
    return replace(made, origin=(schedule, (made.name, nodes)))  # its name says all, the seed too


_schedule = kept(_new)


def options_of(spec: str) -> dict[str, object]:
    """The options that the spec spells out, of a topology of any number of nodes: nothing is built.

    Raises:
        TopologyError: an unknown name or option, or a value of the wrong kind.
        UsageError: the text is not of the form NAME or NAME:key=value,….
    """
    spelled = parse(spec)
    return read_options("topology", spelled, _options(spelled.name))


def read_options(what: str, spelled: Spelled, options: Mapping[str, inspect.Parameter]) -> dict[str, object]:
    """The values of the options that are spelled out, as the parameters are annotated.

    Args:
        what: the kind of thing that has them, for the message.
        spelled: the name and its options.
        options: the parameters there are.

    Raises:
        TopologyError: there is no such option, or it cannot have that value.
    """
    values: dict[str, object] = {}
    for key, text in spelled.options.items():
        if key not in options:
            exist = f"its options are {', '.join(options)}" if options else "it has none"
            raise TopologyError(f"{what} {spelled.name!r} has no option {key!r}: {exist}")
        number = f"0{text}" if text.startswith(".") else text  # which msgspec wants
        try:
            values[key] = msgspec.convert(number, options[key].annotation, strict=False)
        except msgspec.ValidationError as error:
            raise TopologyError(f"option {key!r} of {what} {spelled.name!r} cannot be {text!r}: {error}") from error
    return values


def inline(topology: Topology | Schedule) -> str:
    """The edges themselves as a spec that `schedule` reads, so that it can travel to peers that do not have the file.

    Explicit weights travel with every bit; what a node keeps is not written, as it is what its links leave.

    Raises:
        TopologyError: rounds of which some are directed and some not, or that are drawn without end.
    """
    if isinstance(topology, Topology):
        return f"graph:{_written([topology])}"
    if topology.period is None:
        raise TopologyError(
            f"topology {topology.name!r} is drawn anew each round and cannot be written out: give its name"
        )
    rounds = [topology.at(round) for round in range(topology.period)]
    if len({(each.directed, each.drifting) for each in rounds}) > 1:
        raise TopologyError(
            f"of the rounds of {topology.name!r} some are directed or drifting and some not: write all as arcs"
        )
    return f"{'graph' if topology.static else 'cycle'}:{_written(rounds)}"


def describe(name: str) -> str:
    """One line: what it is, and its options with their defaults (none shown where it depends on the nodes)."""
    options = _options(name).values()
    shown = ", ".join(
        option.name if option.default is None else f"{option.name}={_spelled(option.default)}" for option in options
    )
    first = (inspect.getdoc(_BUILDERS[name]) or name).splitlines()[0]
    return f"{first} Options: {shown}." if shown else first


def fitting(topology: _Kind, nodes: int) -> _Kind:
    """The same topology or schedule, if it has so many nodes.

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


def _written(rounds: list[Topology]) -> str:
    first = rounds[0]
    edges = "|".join("/".join(_edges(topology)) or "-" for topology in rounds)
    return builders.graph_options(edges, first.directed, first.nodes, first.drifting)


def _edges(topology: Topology) -> Iterator[str]:
    weights = [topology.weights_on(node) for node in range(topology.nodes)]
    for i, j in topology.edges:
        if topology.link_weights is None:
            yield f"{i}-{j}"
        elif topology.directed or weights[j][i] == weights[i][j]:
            yield f"{i}-{j}:{weights[j][i]!r}"
        else:
            yield f"{i}-{j}:{weights[j][i]!r}:{weights[i][j]!r}"


def _spelled(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _options(name: str) -> dict[str, inspect.Parameter]:
    if name not in _BUILDERS:
        raise unknown(name, NAMES)
    return dict(list(inspect.signature(_BUILDERS[name]).parameters.items())[1:])  # without the nodes
