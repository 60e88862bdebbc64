"""What one peer keeps in its folder: the model it ends with, and the checkpoints that it can go on from."""

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import zip_longest
from pathlib import Path

from p2pfl.checkpoint import Generations
from p2pfl.errors import RecipeError, UsageError
from p2pfl.model_files import Checkpoint
from p2pfl.protocol.messages import Member
from p2pfl.recipe import PACE, recipe_of
from p2pfl.types import PeerId, Setting

_REMEMBERED = 64  # addresses of others in a checkpoint; more find a network that has moved, and dial longer in vain


class Folder:
    """The files of one peer in the folder that its user named. Nothing is read or written before it is asked for."""

    def __init__(self, path: Path, name: str, warn: Callable[[str], None]) -> None:
        """warn: takes what the person should read; called in the thread that reads or saves."""
        self._path = path
        file_name = re.sub(r"[^\w. -]+", "-", name).strip(".") or "peer"
        self.model_path = path / "models" / f"{file_name}.safetensors"
        self.generations = Generations(path / "checkpoints" / f"{file_name}.safetensors", warn)

    def newest(self, network: str) -> Checkpoint:
        """What to go on with.

        Raises:
            UsageError: there is nothing, or it is another network's.
            ModelError: nothing of it can be read.
        """
        if not self.generations.exist:
            raise UsageError(f"there is no checkpoint {self.generations.path}; start without --resume")
        checkpoint = self.generations.newest()
        if checkpoint.network != network:
            raise UsageError(f"the checkpoint is of network {checkpoint.network!r}: use --network {checkpoint.network}")
        return checkpoint

    def resumed(self, checkpoint: Checkpoint, asked: Mapping[str, Setting]) -> dict[str, Setting]:
        """The settings of the run that goes on; only how long and how patiently may be asked for anew.

        Raises:
            UsageError: it has as many rounds behind it as are asked for.
            RecipeError: it trained by other settings.
        """
        rounds = asked.get("rounds")
        if isinstance(rounds, int) and 0 < rounds <= checkpoint.round:
            raise UsageError(
                f"the run in {self._path} has {checkpoint.round} rounds behind it: ask for more than that by --rounds, "
                "or leave it out"
            )
        settings: dict[str, Setting] = {**checkpoint.settings, **asked}
        before, after = recipe_of(checkpoint.settings), recipe_of(settings)
        if before.lineage != after.lineage:
            key = next(key for key in asked if key not in PACE and getattr(before, key) != asked[key])
            raise RecipeError(
                f"the run in {self._path} has {key}={getattr(before, key)}, you asked for {key}={asked[key]}; "
                f"leave out --{key.replace('_', '-')}, or start without --resume"
            )
        return settings


def addresses_of_others(members: Iterable[Member], me: PeerId) -> tuple[str, ...]:
    """Where to look for the network the next time: addresses of its members, each one's first one first."""
    others = [m.addresses for m in members if m.peer != me and m.state not in ("dead", "left")]
    by_rank = [address for rank in zip_longest(*others) for address in rank if address is not None]
    return tuple(dict.fromkeys(by_rank))[:_REMEMBERED]
