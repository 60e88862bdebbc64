"""What goes wrong, when, and with whom: drawn by a seed, so that the same soak can be run again."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from p2pfl.errors import UsageError

_GAP_S = (1.0, 10.0)  # between the beginnings of two faults
_RECOVERY_S = 12.0  # a peer is left alone this long after a fault of its own


@dataclass(frozen=True)
class Kind:
    """One kind of fault, and what must hold when it happens."""

    numbers: str  # in the list of faults
    promise: str
    seconds: tuple[float, float]  # how long it lasts
    disturbs: bool  # whether its target may fall behind, or be taken for dead meanwhile
    hosts: bool = False  # takes hosts of their own
    all: bool = False  # it is everybody's


KINDS: Mapping[str, Kind] = {
    "kill": Kind("1, 47", "dropped at once, back from its checkpoint", (1.0, 8.0), True),
    "replace": Kind("1, 46", "dropped at once, a newcomer takes its seat", (1.0, 8.0), True),
    "leave": Kind("19, 20", "seen as left, not dead, and back", (1.0, 8.0), True),
    "pause": Kind("16", "declares nobody dead, and is back", (2.0, 20.0), True),
    "slow": Kind("45", "nobody waits for it", (5.0, 15.0), True),
    "disk": Kind("32", "a warning, and training goes on", (4.0, 12.0), False),
    "garbage": Kind("26, 40", "refused, and training goes on", (2.0, 5.0), False),
    "half-open": Kind("21, 22", "closed within 5 s, and training goes on", (6.0, 8.0), False),
    "stranger": Kind("34", "refused, and learns nothing", (2.0, 5.0), False),
    "liar": Kind("18, 35, 36, 37", "nobody dies of a member's lies", (3.0, 8.0), False),
    "ghosts": Kind("13", "dials are bounded, no member comes of them", (5.0, 10.0), False),
    "hog": Kind("17", "nobody is taken for dead", (3.0, 10.0), False),
    "link": Kind("2, 3", "dropped in 6 s, back with the same id", (3.0, 20.0), True, hosts=True),
    "pair": Kind("4", "both stay members", (5.0, 15.0), False, hosts=True),
    "split": Kind("5", "both halves go on, and become one again", (8.0, 20.0), True, hosts=True, all=True),
    "bandwidth": Kind("29", "heartbeats pass", (5.0, 15.0), True, hosts=True),
    "loss": Kind("30", "finishes or times out, training goes on", (5.0, 15.0), True, hosts=True),
}


@dataclass(frozen=True)
class Injection:
    """One fault of a plan. `at_s` counts from when all peers have begun."""

    at_s: float
    kind: str
    targets: tuple[int, ...]  # positions of peers
    seconds: float

    @property
    def until_s(self) -> float:
        """When it is over."""
        return self.at_s + self.seconds


def plan(seed: int, peers: int, seconds: float, kinds: Sequence[str]) -> tuple[Injection, ...]:
    """Faults for a soak of so many seconds, in their order.

    Every kind comes once before any comes again. At most a third of the peers is disturbed at a time, and who was is
    left alone for a while.

    Args:
        seconds: until the last of them is over.

    Raises:
        UsageError: no such kind, or too few peers.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise UsageError(f"{', '.join(unknown) or 'none'} is no fault: choose among {', '.join(KINDS)}")
    if peers < 4:
        raise UsageError(f"{peers} peers are too few: with 4 or more the others can go on without one")
    draw = random.Random(f"p2pfl chaos {seed}")
    # In a short soak the faults are short, and come fast.
    longest, widest_s = seconds / 4, min(_GAP_S[1], max(2 * _GAP_S[0], seconds / 30))
    recovery_s = min(_RECOVERY_S, longest)
    free_at = [0.0] * peers
    deck: list[str] = []
    planned: list[Injection] = []
    at_s = draw.uniform(*_GAP_S) / 4
    while at_s < seconds:
        if not deck:
            deck = draw.sample(list(kinds), len(kinds))
        free = [peer for peer in range(peers) if free_at[peer] <= at_s]
        disturbed = peers - len(free)
        for name in deck:
            kind = KINDS[name]
            low, high = (min(bound, longest) for bound in kind.seconds)
            lasts = draw.uniform(low, high)
            enough = not disturbed if kind.all else disturbed < max(1, peers // 3) and len(free) > 1
            if (kind.disturbs and not enough) or len(free) < 2 or at_s + lasts > seconds:
                continue
            targets = _targets(draw, name, free, peers)
            planned.append(Injection(round(at_s, 3), name, targets, round(lasts, 3)))
            if kind.disturbs:
                for peer in range(peers) if kind.all else targets:
                    free_at[peer] = at_s + lasts + recovery_s
            deck.remove(name)
            break
        at_s += draw.uniform(_GAP_S[0], widest_s)
    return tuple(planned)


def _targets(draw: random.Random, kind: str, free: list[int], peers: int) -> tuple[int, ...]:
    """Whom it happens to; the half that is cut off for a split, the two that cannot reach each other for a pair."""
    if kind == "split":
        return tuple(sorted(draw.sample(range(peers), peers // 2)))
    if kind == "pair":
        return tuple(sorted(draw.sample(free, 2)))
    return (draw.choice(free),)
