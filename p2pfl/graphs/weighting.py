"""Mixing weights by name: how much of what each node receives it takes in."""

from p2pfl.errors import TopologyError
from p2pfl.graphs.schedule import Schedule

WEIGHTINGS = ("auto", "metropolis", "max-degree", "uniform", "lazy", "best-constant", "finite-time")


def weighted(schedule: Schedule, mixing: str) -> Schedule:
    """The schedule with the weights of that name written out; itself for `auto`.

    Raises:
        TopologyError: there is no such weighting, or it does not fit the schedule.
    """
    if mixing == "auto":
        return schedule
    raise TopologyError(f"there is no weighting {mixing!r}; there are: {', '.join(WEIGHTINGS)}")
