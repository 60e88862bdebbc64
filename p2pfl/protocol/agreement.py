"""How a network comes to one recipe before its first round."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from p2pfl.types import Setting


@dataclass(frozen=True)
class Conflict:
    """Two users asked for different values of one setting."""

    setting: str
    stands: Setting
    by: str  # the name of who asked for what stands
    mine: Setting

    def __str__(self) -> str:
        return (
            f"{self.by} asked for {self.setting}={self.stands}, you asked for {self.setting}={self.mine}; "
            f"leave out --{self.setting.replace('_', '-')}, or choose another --network"
        )


def agree(asked: Iterable[tuple[str, Mapping[str, Setting]]]) -> dict[str, Setting]:
    """The settings somebody asked for; where two differ, the lower seat's stands.

    An explicit wish beats a default whatever its seat, so that a second machine started without flags never turns
    over what the first was told.

    Args:
        asked: name and explicit settings of each peer, by seat.
    """
    settings: dict[str, Setting] = {}
    for _, wishes in asked:
        for key in sorted(wishes):
            settings.setdefault(key, wishes[key])
    return dict(sorted(settings.items()))


def conflict(
    mine: Mapping[str, Setting], stands: Mapping[str, Setting], asked: Iterable[tuple[str, Mapping[str, Setting]]]
) -> Conflict | None:
    """The first of my wishes that does not stand, or None."""
    for key in sorted(mine):
        if key in stands and stands[key] != mine[key]:
            by = next((name for name, wishes in asked if wishes.get(key) == stands[key]), "the network")
            return Conflict(key, stands[key], by, mine[key])
    return None
