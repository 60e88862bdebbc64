"""How many dials to strangers are begun: what a peer hears on the LAN must not decide how busy it is."""

import math
from dataclasses import dataclass, field

# A peer that answers is off the budget at once; only addresses that nobody has vouched for wait in line.
AT_ONCE = 16  # more finds one real peer among silent ghosts sooner, and keeps more sockets waiting
BURST = 16  # begun at once after a quiet time; more joins a large network at once
PER_S = 3.0  # in the long run; more finds a real peer among many false records sooner, and makes these cost more

_ROUNDING = 1e-9  # of tokens: a wait worked out by `next_at` is long enough


@dataclass
class DialBudget:
    """A limit on dials to candidates that never answered: so many under way, and so many new ones a second.

    A token bucket. Dials to known members go past it.

    Args:
        at_once: dials under way, at least 1.
        per_s: dials begun a second in the long run, above 0.
        burst: dials begun at once after a quiet time, at least 1.
    """

    at_once: int = AT_ONCE
    per_s: float = PER_S
    burst: int = BURST
    under_way: int = 0
    _tokens: float = field(default=0.0, init=False)
    _filled_at: float = field(default=-math.inf, init=False)

    def begin(self, now: float) -> bool:
        """Whether one more dial may begin; it is counted until `end`."""
        self._fill(now)
        if self.under_way >= self.at_once or self._tokens < 1.0 - _ROUNDING:
            return False
        self._tokens -= 1.0
        self.under_way += 1
        return True

    def end(self) -> None:
        """A dial that was begun came to its end, whichever."""
        self.under_way = max(0, self.under_way - 1)

    def next_at(self, now: float) -> float:
        """When one more may begin if nothing else happens; infinity while `end` must come first."""
        self._fill(now)
        if self.under_way >= self.at_once:
            return math.inf
        return now + max(0.0, 1.0 - self._tokens) / self.per_s

    def _fill(self, now: float) -> None:
        if now > self._filled_at:
            # From nothing at first: a minus-infinite past fills it.
            self._tokens = min(self.burst, self._tokens + (now - self._filled_at) * self.per_s)
            self._filled_at = now
