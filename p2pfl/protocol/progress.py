"""How far the other peers are, as they told: when a change of view can hold everywhere, and whom nobody waits for."""

from collections.abc import Iterable, Sequence
from statistics import median_low

from p2pfl.protocol.messages import MAX_ROUND
from p2pfl.protocol.served import AHEAD
from p2pfl.types import PeerId

ROUNDS_AHEAD = 2  # a change of view is announced for this many rounds after the latest round known


class Progress:
    """The round of each peer, and who is done."""

    def __init__(self) -> None:
        self._round_of: dict[PeerId, int] = {}
        self._done: set[PeerId] = set()

    def met(self, peer: PeerId, round: int) -> None:
        """A peer is here, or here again; it is not done until it says so."""
        self._done.discard(peer)
        self._round_of[peer] = round

    def told(self, peer: PeerId, round: int) -> None:
        """A peer is in this round now, whatever was known before."""
        self._round_of[peer] = round

    def offered(self, peer: PeerId, round: int) -> None:
        """A peer has a share of this round, so it is no earlier."""
        self._round_of[peer] = max(self.round_of(peer), round)

    def forget(self, peer: PeerId) -> None:
        """There is no connection to a peer any more; on the next one it tells its round first."""
        self._round_of.pop(peer, None)
        self._done.discard(peer)

    def done(self, peer: PeerId) -> None:
        """A peer needs nothing more."""
        self._done.add(peer)

    def round_of(self, peer: PeerId) -> int:
        """The last round it told, 0 where it told none."""
        return self._round_of.get(peer, 0)

    @property
    def told_so_far(self) -> tuple[tuple[PeerId, int], ...]:
        """The last round of each peer that told one."""
        return tuple(self._round_of.items())

    def all_done(self, peers: Iterable[PeerId]) -> bool:
        """Whether none of them needs anything more."""
        return all(peer in self._done for peer in peers)


def furthest(own: int, others: int) -> int:
    """The latest round in which another member is believed to be, whatever it says.

    Members are at most as many rounds apart as there are of them, or a few more where few of them change neighbors.

    Args:
        own: the round of this peer.
        others: how many other members there are.
    """
    return own + max(others + 1, 2 * AHEAD)


def latest_change(base: int, others: int) -> int:
    """The last round for which any member can have announced a change of view.

    Args:
        base: the round of this peer, or of most.
        others: how many other members there are.
    """
    return min(furthest(base, others) + ROUNDS_AHEAD, MAX_ROUND)


def change_round(known: Sequence[int], own: int, *, joining: bool) -> int:
    """The first round for which a change of view announced now can hold everywhere, as far as others are believed.

    Args:
        known: the rounds of the members that can be reached.
        own: the round of this peer; while it is joining it counts only where nothing else is known.
    """
    if joining and known:
        own = median_low(known)
    latest = max((*known, own))
    return min(min(latest, furthest(own, len(known))) + ROUNDS_AHEAD, MAX_ROUND)
