"""How long a round waits, how long a slow peer trains, and with which round one that fell behind goes on."""

from collections.abc import Callable, Collection, Sequence
from statistics import median_low

from p2pfl.protocol.participant import Rules
from p2pfl.types import PeerId

_LOOKED_AHEAD = 8  # rounds; one that fell further behind goes where the others are
_RECENT = 8  # peers; where neighbors change, what is usual is known from the last few


def wait_s(rules: Rules, arrivals: Sequence[float], parties: int, usual_s: float | None = None) -> float:
    """Seconds after its beginning at which a round stops waiting: `patience` times the median party.

    Args:
        arrivals: seconds after the beginning at which shares came, own training counted as one of them.
        parties: this peer and the neighbors that can be reached.
        usual_s: when shares of others came in rounds before, where neighbors change: it stands in for a majority.
    """
    majority = parties // 2 + 1
    if len(arrivals) >= majority:
        return max(rules.min_deadline_s, rules.patience * sorted(arrivals)[majority - 1])
    if usual_s is None:
        return rules.max_wait_s
    return min(rules.max_wait_s, max(rules.min_deadline_s, rules.patience * max(usual_s, *arrivals)))


def budget_s(
    rules: Rules, own_full_s: float | None, times: Sequence[float], neighbors: int, late_for: int
) -> float | None:
    """Seconds to train for where this peer would hold up its neighbors, else None: all steps.

    Args:
        own_full_s: what all steps take here, None before that is known.
        times: seconds of training that neighbors told.
        neighbors: to how many the last share was offered.
        late_for: how many of them declined it as late.
    """
    if not times or own_full_s is None:
        return None
    typical = median_low(times)
    if late_for and 2 * late_for >= neighbors:
        return typical / 2  # they may wait no longer: catch up until an offer is in time, then they wait again
    slow = own_full_s > max(rules.min_deadline_s, rules.patience * typical)
    return typical if slow else None


def next_round(
    number: int, targets: Callable[[int], Sequence[PeerId]], round_of: Callable[[PeerId], int], furthest: int
) -> int:
    """The round after `number` that is of use: the first of whose share at least half of those it is for have need.

    Nobody is past a round for which it needs a share from here, unless it waited in vain: where all are in good order
    this is the very next round, however far ahead others are.

    Args:
        targets: to whom the share of a round goes.
        round_of: the latest round in which a peer says it is, having no need of shares of earlier ones.
        furthest: the latest round that is believed: a lie costs a few rounds, and who is further behind than that
            catches up in several steps.
    """
    late_for: dict[PeerId, int] = {}
    for round in range(number + 1, number + 1 + _LOOKED_AHEAD):
        receivers = targets(round)
        past = [peer for peer in receivers if round_of(peer) > round]
        if 2 * len(past) <= len(receivers) and (receivers or not late_for):
            return round
        late_for |= {peer: round_of(peer) for peer in past}
    return min(max(number + 1 + _LOOKED_AHEAD, median_low(late_for.values())), furthest)


class Recent:
    """Seconds by peer, of all neighbors where they stay, of the last few where they change."""

    def __init__(self) -> None:
        self._seconds: dict[PeerId, float] = {}

    def note(self, peer: PeerId, seconds: float, neighbors: int) -> None:
        """Take the latest of a peer; with as many as there are neighbors, the one not heard of for longest goes."""
        self._seconds.pop(peer, None)
        self._seconds[peer] = seconds
        if len(self._seconds) > max(_RECENT, neighbors):
            del self._seconds[next(iter(self._seconds))]

    def but(self, peers: Collection[PeerId]) -> list[float]:
        """Of all peers but these."""
        return [seconds for peer, seconds in self._seconds.items() if peer not in peers]

    def keep(self, peers: Collection[PeerId]) -> None:
        """Forget all others."""
        self._seconds = {peer: seconds for peer, seconds in self._seconds.items() if peer in peers}
