"""The recipe of a run: what a whole network has to agree on, as one frozen value."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from p2pfl.errors import RecipeError, UsageError
from p2pfl.graphs import named
from p2pfl.graphs.named import build
from p2pfl.graphs.topology import Topology
from p2pfl.topology_files import load_topology
from p2pfl.types import Setting

# How long and how patiently a run goes on: a model can be trained further under other values of these.
PACE: Mapping[str, Any] = {"rounds": 0, "min_peers": 1, "patience": 1.0, "min_deadline_s": 1.0, "max_wait_s": 1.0}
LONGEST_TEXT = 1 << 14  # characters of a setting, as the hello takes them

_MOST = 1 << 31  # of anything that is counted
_Count: TypeAlias = Annotated[int, Meta(ge=1, le=_MOST)]
_CountOrNone: TypeAlias = Annotated[int, Meta(ge=0, le=_MOST)]


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run's settings, with defaults that run."""

    topology: str = "ring"  # who averages with whom; more edges agree faster and cost more bytes
    rounds: _CountOrNone = 15  # 0 = until stopped
    seed: Annotated[int, Meta(ge=0, le=1 << 62)] = 0  # initial weights, data split, order of examples, dropout
    model: str = "mlp"
    epochs: _Count = 1  # passes over the own data each round; more drifts further apart
    steps: _CountOrNone = 0  # gradient steps each round instead of epochs, if above 0
    lr: Annotated[float, Meta(gt=0)] = 0.1
    batch_size: _Count = 32
    alpha: Annotated[float, Meta(ge=0)] = 0.0  # Dirichlet alpha of the split into parts; lower is more lopsided, 0 even
    min_peers: _Count = 2  # the first round waits for this many
    patience: Annotated[float, Meta(ge=1)] = 3.0  # a round waits this many times as long as its median neighbor took
    min_deadline_s: Annotated[float, Meta(gt=0)] = 2.0  # but at least this long
    max_wait_s: Annotated[float, Meta(gt=0)] = 600.0  # and this long while fewer than half have come

    @property
    def fingerprint(self) -> str:
        """Equal for equal recipes, on every machine."""
        return hashlib.blake2b(msgspec.json.encode(self, order="sorted"), digest_size=16).hexdigest()

    @property
    def lineage(self) -> str:
        """Equal for recipes under which a model can go on training: all but how long and how patiently."""
        return msgspec.structs.replace(self, **PACE).fingerprint

    def build_topology(self, nodes: int) -> Topology:
        """The topology for a number of members. Raises TopologyError where it has no such form."""
        return build(self.topology, nodes)


@dataclass(frozen=True)
class Asked:
    """The settings somebody chose on purpose; all others are free to be the network's."""

    settings: Mapping[str, Setting]

    @classmethod
    def of(cls, **settings: Setting | None) -> "Asked":
        """From flags or arguments, of which None means "not chosen".

        Raises:
            RecipeError: a value of the wrong kind or out of range, or settings that contradict each other.
        """
        chosen = {key: value for key, value in settings.items() if value is not None}
        if "topology" in chosen:
            chosen["topology"] = travelling(str(chosen["topology"]))
        if chosen.get("steps") and "epochs" in chosen:
            raise RecipeError("choose --epochs or --steps, not both")
        for key, value in chosen.items():
            if isinstance(value, str) and len(value) > LONGEST_TEXT:
                raise RecipeError(f"{key} is {len(value)} characters long; at most {LONGEST_TEXT} travel in a recipe")
        recipe_of(chosen)
        return cls(chosen)


def recipe_of(settings: Mapping[str, Any]) -> Recipe:
    """The recipe with these settings, and defaults for the rest.

    Raises:
        RecipeError: an unknown setting, or a value of the wrong kind or out of range.
    """
    try:
        recipe = msgspec.convert(dict(settings), Recipe, strict=True)
    except msgspec.ValidationError as error:
        text = str(error)
        key = text.rsplit("`$.", 1)[-1].rstrip("`") if "`$." in text else ""
        what = text.split(" - at ")[0].lower()
        raise RecipeError(f"{key or 'recipe'}: {what}, got {settings.get(key)!r}" if key else what) from error
    for name, value in msgspec.structs.asdict(recipe).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise RecipeError(f"{name}: expected a finite number, got {value!r}")
    return recipe


def complaint(settings: Mapping[str, Any]) -> str:
    """What is wrong with settings that somebody else tells, empty where a recipe can have them."""
    try:
        topology = recipe_of(settings).topology
        if parse_name(topology) not in named.NAMES:
            return f"there is no topology {topology!r}"
    except UsageError as error:
        return str(error)
    return ""


def travelling(topology: str) -> str:
    """The topology in a form that every peer can build: a file's edges are written out.

    Raises:
        TopologyError: there is no such topology.
    """
    if parse_name(topology) in named.NAMES:
        return topology
    return named.inline(load_topology(topology, None))


def parse_name(topology: str) -> str:
    """What stands before the options."""
    return topology.partition(":")[0].strip()


def to_toml(recipe: Recipe) -> str:
    """The whole recipe as TOML, complete enough to repeat the run."""
    lines = ["# p2pfl recipe: every setting of the run"]
    for name, value in msgspec.structs.asdict(recipe).items():
        # JSON is TOML here, but for one character.
        text = msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")
        lines.append(f"{name} = {text}")
    return "\n".join(lines) + "\n"
