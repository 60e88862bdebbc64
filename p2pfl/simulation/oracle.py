"""Membership told by an oracle: one table, shared by all, of who is a member from which round until which.

Live peers agree on this by gossip over a mesh of connections, which thousands of simulated peers cannot have. The views
it gives are the same values that live peers compare; each is built once, so its digest and positions are shared.
"""

from bisect import bisect_right
from collections.abc import Iterable

from p2pfl.protocol.membership import View
from p2pfl.protocol.messages import Member


class Oracle:
    """Who takes part in which round."""

    def __init__(self, members: tuple[Member, ...], there: Iterable[int], round: int) -> None:
        """Begin with some of the members.

        Args:
            members: all there may ever be, by seat.
            there: positions of those that take part from `round` on.
        """
        self._members = members
        self._spans: dict[int, list[tuple[int, int | None]]] = {peer: [(round, None)] for peer in there}
        self._changes: list[int] = []  # rounds at which the view changes, sorted
        self._views: dict[int, View] = {}  # by the number of changes before a round
        self._of_round: dict[int, View] = {}

    def view(self, round: int) -> View:
        """The members of a round."""
        view = self._of_round.get(round)
        if view is None:
            if len(self._of_round) > 1 << 12:
                self._of_round.clear()
            view = self._of_round[round] = self._build(round)
        return view

    def admit(self, peer: int, since: int) -> None:
        """Let a peer take part from a round on that nobody has begun."""
        self.end(peer, since)
        self._spans.setdefault(peer, []).append((since, None))
        self._changed(since)

    def end(self, peer: int, until: int) -> None:
        """Let a peer take part no more from a round on that nobody has begun."""
        spans = self._spans.get(peer)
        if spans and spans[-1][1] is None:
            since, _ = spans.pop()
            if since < until:
                spans.append((since, until))
            self._changed(min(since, until))
            self._changed(until)

    def _changed(self, round: int) -> None:
        if round not in self._changes:
            self._changes = sorted([*self._changes, round])
        self._views.clear()
        self._of_round.clear()

    def _build(self, round: int) -> View:
        epoch = bisect_right(self._changes, round)
        if epoch not in self._views:
            present = sorted(
                peer
                for peer, spans in self._spans.items()
                if any(since <= round and (until is None or round < until) for since, until in spans)
            )
            self._views[epoch] = View(tuple(self._members[peer] for peer in present))
        return self._views[epoch]
