"""How long a round waits, how long a slow peer trains, and with which round one that fell behind goes on."""

from collections.abc import Sequence
from statistics import median_low

from p2pfl.protocol.participant import Rules


def wait_s(rules: Rules, arrivals: Sequence[float], parties: int) -> float:
    """Seconds after its beginning at which a round stops waiting: `patience` times the median party.

    Args:
        arrivals: seconds after the beginning at which shares came, own training counted as one of them.
        parties: this peer and the neighbors that can be reached.
    """
    majority = parties // 2 + 1
    if len(arrivals) < majority:
        return rules.max_wait_s
    typical = sorted(arrivals)[majority - 1]
    return max(rules.min_deadline_s, rules.patience * typical)


def budget_s(
    rules: Rules, own_full_s: float | None, times: Sequence[float], neighbors: int, late_for: int
) -> float | None:
    """Seconds to train for where this peer would hold up its neighbors, else None: all steps.

    Args:
        own_full_s: what all steps take here, None before that is known.
        times: seconds of training that neighbors told.
        neighbors: how many there are.
        late_for: how many of them declined the last offer as late.
    """
    if not times or own_full_s is None:
        return None
    typical = median_low(times)
    if late_for and 2 * late_for >= neighbors:
        return typical / 2  # they may wait no longer: catch up until an offer is in time, then they wait again
    slow = own_full_s > max(rules.min_deadline_s, rules.patience * typical)
    return typical if slow else None


def next_round(number: int, ahead: Sequence[int], neighbors: int) -> int:
    """The round after `number`, or the median one of the neighbors' where most of them are further on.

    Args:
        ahead: the latest round of each neighbor that has offered a share of a later one.
        neighbors: how many there are.
    """
    if 2 * len(ahead) > neighbors:
        return max(number + 1, median_low(ahead))
    return number + 1
