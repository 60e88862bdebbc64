"""How a network comes to one recipe before its first round."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from p2pfl.types import Setting

# Two ways to say one thing: who asks for one has also answered for the other.
_RIVALS: Mapping[str, str] = {"epochs": "steps", "steps": "epochs"}


@dataclass(frozen=True)
class Conflict:
    """Two users asked for different values of one setting, or of two that exclude each other."""

    setting: str
    stands: Setting
    by: str  # the name of who asked for what stands
    asked: str
    mine: Setting

    def __str__(self) -> str:
        return (
            f"{self.by} asked for {self.setting}={self.stands}, you asked for {self.asked}={self.mine}; "
            f"leave out --{self.asked.replace('_', '-')}, or choose another --network"
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
            if _RIVALS.get(key) not in settings:
                settings.setdefault(key, wishes[key])
    return dict(sorted(settings.items()))


def conflict(
    mine: Mapping[str, Setting], stands: Mapping[str, Setting], asked: Iterable[tuple[str, Mapping[str, Setting]]]
) -> Conflict | None:
    """The first of my wishes that does not stand, or None."""
    asked = list(asked)
    for key in sorted(mine):
        setting = key if key in stands else _RIVALS.get(key, key)
        if setting in stands and (setting, stands[setting]) != (key, mine[key]):
            by = next((name for name, wishes in asked if wishes.get(setting) == stands[setting]), "the network")
            return Conflict(setting, stands[setting], by, key, mine[key])
    return None
