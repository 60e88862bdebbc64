"""What a run is to analysis: its tables, its peers in the order of their seats, and the network they ran on."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from p2pfl.errors import DataError, TopologyError
from p2pfl.types import seat_order

if TYPE_CHECKING:
    import pandas as pd

    from p2pfl.graphs.schedule import Schedule
    from p2pfl.recipe import Recipe

_LONGEST_LABEL = 40


class Measured(Protocol):
    """A run that can be analyzed: a folder read by `load_run`, or what `simulate` returned."""

    @property
    def recipe(self) -> "Recipe": ...
    @property
    def summary(self) -> Mapping[str, Any]: ...
    @property
    def metrics(self) -> "pd.DataFrame": ...
    @property
    def edges(self) -> "pd.DataFrame": ...
    @property
    def partition(self) -> "pd.DataFrame": ...


def members(run: Measured) -> tuple[str, ...]:
    """Names of the peers in the order of their seats: position i is node i of the topology.

    From what the run told as it began; where it did not, as the split lists them, else by name.
    """
    if hasattr(run, "folder"):
        from p2pfl.events import Started

        named = [event.members for event in getattr(run, "events", ()) if isinstance(event, Started)]
        if named:
            return max(named, key=len)
    try:
        listed = tuple(dict.fromkeys(run.partition["peer"].astype(str)))
    except DataError:  # a run without a split: peers that brought their own data
        listed = ()
    told = set(run.metrics["peer"].astype(str))
    if told <= set(listed):
        return listed
    return tuple(sorted(told, key=seat_order))


def schedule_of(run: Measured) -> "Schedule | None":
    """The topology of every round of a run; None where it had none, or its name says too little to build it again."""
    from p2pfl.graphs import named
    from p2pfl.graphs.schedule import Schedule
    from p2pfl.graphs.weighting import weighted
    from p2pfl.recipe import parse_name
    from p2pfl.topology_files import load_topology

    recipe, peers = run.recipe, peers_of(run)
    if recipe.algorithm != "d-psgd":
        return None
    problem = getattr(run, "problem", None)
    if problem is not None:  # simulated just now: also what has no name
        own: Schedule = problem.schedule
        return own
    try:
        if parse_name(recipe.topology) in named.NAMES:
            return recipe.schedule(peers)
        return weighted(Schedule.of(load_topology(recipe.topology, peers)), recipe.mixing)
    except TopologyError:
        return None


def is_simulated(run: Measured) -> bool:
    """Whether a simulator carried it out: it says which of its engines did."""
    return run.summary.get("engine") is not None


def peers_of(run: Measured) -> int:
    """How many peers took part: of a live run its recipe does not know."""
    if run.recipe.algorithm == "pooled":  # one model, of the data that so many peers would hold
        return run.recipe.peers
    return int(run.summary.get("peers") or len(members(run)))


def topology_label(run: Measured) -> str:
    """What to call the topology of a run: as it is spelled, shortened where its edges are written out."""
    spelled = run.recipe.topology
    if run.recipe.algorithm != "d-psgd":
        return run.recipe.algorithm
    if spelled.startswith("graph:") or len(spelled) > _LONGEST_LABEL:
        told = str(run.summary.get("topology", ""))
        if told and not told.startswith("graph:") and len(told) <= _LONGEST_LABEL:
            return told
        edges = spelled.partition("edges=")[2].partition(",")[0]
        return f"graph of {edges.count('/') + 1} edges"
    return spelled
