"""Who shares with whom in a round, as every peer works it out for itself from the recipe's topology and the view."""

from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from p2pfl.errors import UsageError
from p2pfl.graphs.builders import ring
from p2pfl.graphs.mixing import mixing_weights
from p2pfl.graphs.topology import Topology
from p2pfl.graphs.weighting import drift_warning
from p2pfl.protocol.membership import View
from p2pfl.protocol.messages import MAX_MEMBERS
from p2pfl.protocol.participant import Rules
from p2pfl.protocol.served import AHEAD
from p2pfl.types import PeerId


def without_form(rules: Rules, nodes: int, round: int) -> str:
    """Why a run cannot begin in a round with so many members, for the person to read; empty where it can.

    Later on members come and go and cannot be chosen; whoever begins with what cannot be has asked for it.
    """
    if nodes > MAX_MEMBERS:
        return ""  # so many never come together, and nothing is built for them
    try:
        mixing_weights(rules.topology(nodes, round), 0)
    except UsageError as error:
        peers = "1 peer" if nodes == 1 else f"{nodes} peers"
        return f"what was asked for cannot begin with {peers}: {error}; choose --topology, --mixing or --min-peers anew"
    return ""


@dataclass(frozen=True)
class Neighbors:
    """One peer's edges in one round."""

    node: int  # its position in the view
    sources: tuple[PeerId, ...]  # whose shares come here, by seat
    targets: tuple[PeerId, ...]
    weights: Mapping[int, float]  # on positions in the view, its own included
    topology: Topology
    warning: str = ""  # why the topology is not the recipe's


class Neighborhood:
    """One peer's neighbors, round by round."""

    def __init__(self, me: PeerId, rules: Rules) -> None:
        self._me = me
        self._rules = rules
        # The last two: while one is under way, the next is looked at already.
        self._known: deque[tuple[str, int, Neighbors]] = deque(maxlen=2)

    def at(self, view: View, round: int) -> Neighbors:
        """The neighbors of a round with these members."""
        for digest, number, neighbors in self._known:
            if number == round and digest == view.digest:
                return neighbors
        neighbors = self._at(view, round)
        self._known.append((view.digest, round, neighbors))
        return neighbors

    def _at(self, view: View, round: int) -> Neighbors:
        node, nodes, warning = view.positions[self._me], len(view), ""
        try:
            topology = self._rules.topology(nodes, round)
            for digest, _, known in self._known:
                if known.topology is topology and digest == view.digest:
                    return known  # a topology that stays is worked out once
            weights = mixing_weights(topology, node)
        except UsageError as error:
            # Members came or went and the recipe's topology has no form of this size: every peer falls back alike.
            topology, warning = ring(nodes), f"{error}; the {nodes} peers go on as a ring"
            weights = mixing_weights(topology, node)
        return Neighbors(
            node,
            tuple(view.members[i].peer for i in topology.sources(node)),
            tuple(view.members[i].peer for i in topology.targets(node)),
            weights,
            topology,
            warning,
        )

    def described(self, view: View, neighbors: Neighbors) -> tuple[str, str]:
        """The name of the topology, or of the schedule it is of, and whether its weights let the average drift."""
        if neighbors.warning or self._rules.schedule is None:
            return neighbors.topology.name, ""
        schedule = self._rules.schedule(len(view))
        with suppress(UsageError):  # of a round that has no weights: said when it comes
            return schedule.name, drift_warning(schedule)
        return schedule.name, ""

    def pacer(self, view: View) -> set[PeerId]:
        """Whom a peer stays with in a round without neighbors: the next one by seat."""
        return {view.members[(view.positions[self._me] + 1) % len(view)].peer} - {self._me}

    def listeners(self, view: View, last: int, following: int) -> tuple[PeerId, ...]:
        """Who may wait for word that this peer is past the last round, and perhaps skips some after it."""
        neighbors = self.at(view, last)
        told = list(neighbors.sources)
        before = (neighbors.node - 1) % len(view)
        if not neighbors.topology.sources(before) and not neighbors.topology.targets(before):
            told.append(view.members[before].peer)  # of whom this peer is the pacer
        for round in range(last + 1, min(following, last + 1 + AHEAD)):
            skipped = self.at(view, round)
            told += [*skipped.sources, *skipped.targets]
        return tuple(peer for peer in dict.fromkeys(told) if peer != self._me)
