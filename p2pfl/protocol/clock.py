"""Time as a participant lives it: what passes while its process sleeps does not count, nor does a clock that leaps."""

from math import inf

_ROUNDING_S = 1e-6


class Clock:
    """Turns the driver's time into one that neither goes back nor leaps past a deadline that was due.

    A process that was stopped, or a machine that was asleep, finds on waking that all its deadlines have passed: it
    would take everybody for dead who could not speak to it meanwhile. Here its time goes on where it stood.
    """

    def __init__(self, lag_s: float) -> None:
        """Not begun.

        Args:
            lag_s: how late a deadline may be noticed before that counts as sleep.
        """
        self._lag_s = lag_s
        self._offset_s = 0.0  # of the given time before this one's
        self._due = inf
        self.now = -inf

    def read(self, given: float) -> tuple[float, bool]:
        """The time, and whether this process was kept from noticing a deadline."""
        now = given - self._offset_s
        lagged = now < self.now or now > self._due + self._lag_s
        if lagged:
            lived = self.now if now < self.now else max(self.now, self._due)
            self._offset_s += now - lived
            now = lived
        if now < self._due <= now + _ROUNDING_S:
            now = self._due  # else a deadline lost in rounding would be waited for again and again
        self.now = now
        return now, lagged

    def expect(self, due: float | None) -> None:
        """The next deadline, in this time."""
        self._due = inf if due is None else due

    def given(self, time: float) -> float:
        """A time of this clock as one of the driver's."""
        return time + self._offset_s
