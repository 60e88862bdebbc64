"""The recipe of a run: what a whole network has to agree on, as one frozen value."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Annotated, Any, Literal, TypeAlias, TypedDict, TypeVar, get_args, get_type_hints

import msgspec
from msgspec import Meta

from p2pfl.errors import RecipeError, UsageError
from p2pfl.graphs import named
from p2pfl.graphs.schedule import Schedule
from p2pfl.graphs.topology import Topology
from p2pfl.graphs.weighting import WEIGHTINGS, weighted
from p2pfl.topology_files import load_schedule
from p2pfl.types import Setting

# How long and how patiently a run goes on: a model can be trained further under other values of these.
PACE: Mapping[str, Any] = {
    "rounds": 0,
    "min_peers": 1,
    "patience": 1.0,
    "min_deadline_s": 1.0,
    "max_wait_s": 1.0,
    "healing": "catch-up",
}
_R = TypeVar("_R", bound="NetworkRecipe")
LONGEST_TEXT = 1 << 14  # characters of a setting, as the hello takes them

_MOST = 1 << 31  # of anything that is counted
_LARGEST_SEED = 1 << 62
_LARGEST_OPTION = 10**6  # of a topology, whatever it counts: others are told it, and build with it
_Count: TypeAlias = Annotated[int, Meta(ge=1, le=_MOST)]
_CountOrNone: TypeAlias = Annotated[int, Meta(ge=0, le=_MOST)]
_SeedOrSame: TypeAlias = Annotated[int, Meta(ge=-1, le=_LARGEST_SEED)]
_Seconds: TypeAlias = Annotated[float, Meta(gt=0)]
Engine: TypeAlias = Literal["auto", "event", "matrix", "scalars", "ray"]
Healing: TypeAlias = Literal["catch-up", "average"]
Algorithm: TypeAlias = Literal["d-psgd", "alone", "fedavg", "pooled"]


class LocalTraining(TypedDict):
    """What a recipe says of how each peer trains by itself."""

    lr: float
    batch_size: int
    epochs: int
    steps: int | None
    seed: int


class NetworkRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the members of a network have to agree on, with defaults that run. What each key buys: `about`."""

    topology: str = "ring"
    mixing: str = "auto"
    rounds: _CountOrNone = 15
    seed: Annotated[int, Meta(ge=0, le=_LARGEST_SEED)] = 0
    data_seed: _SeedOrSame = -1
    init_seed: _SeedOrSame = -1
    topology_seed: _SeedOrSame = -1
    model: str = "mlp"
    epochs: _Count = 1
    steps: _CountOrNone = 0
    lr: Annotated[float, Meta(gt=0)] = 0.1
    batch_size: _Count = 32
    alpha: Annotated[float, Meta(ge=0)] = 0.0
    min_peers: _Count = 2
    patience: Annotated[float, Meta(ge=1)] = 3.0
    min_deadline_s: _Seconds = 2.0
    max_wait_s: _Seconds = 600.0
    healing: Healing = "catch-up"

    @property
    def fingerprint(self) -> str:
        """Equal for equal recipes, on every machine."""
        return hashlib.blake2b(msgspec.json.encode(self, order="sorted"), digest_size=16).hexdigest()

    @property
    def lineage(self) -> str:
        """Equal for recipes under which a model can go on training: all but how long and how patiently."""
        return msgspec.structs.replace(self, **PACE).fingerprint

    @property
    def training(self) -> LocalTraining:
        """How each peer trains, as `TorchLearner` takes it."""
        return LocalTraining(
            lr=self.lr, batch_size=self.batch_size, epochs=self.epochs, steps=self.steps or None, seed=self.seed
        )

    def seed_of(self, what: Literal["data", "init", "topology"]) -> int:
        """The seed of the split, of the initial weights or of random topologies: its own, or the recipe's."""
        own: int = getattr(self, f"{what}_seed")
        return self.seed if own < 0 else own

    def schedule(self, nodes: int) -> Schedule:
        """The topology of every round, weighted as the recipe says. Raises TopologyError where it has no such form."""
        return _schedule(self.topology, nodes, self.seed_of("topology"), self.mixing)

    def build_topology(self, nodes: int, round: int = 0) -> Topology:
        """The topology of a round for a number of members. Raises TopologyError where it has no such form."""
        return self.schedule(nodes).at(round)


@lru_cache(maxsize=16)
def _schedule(topology: str, nodes: int, seed: int, mixing: str) -> Schedule:
    """Asked for in every round: what was drawn and weighted already is not drawn and weighted again."""
    return weighted(named.schedule(topology, nodes, seed), mixing)


class Recipe(NetworkRecipe, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings of one run: what a network agrees on, and the world that a simulation puts it in.

    A live peer finds its world as it is, and reads the first part only.
    """

    peers: _Count = 16
    algorithm: Algorithm = "d-psgd"
    data: str = "mnist10k"
    target: str = ""
    split: str = "auto"
    samples: _CountOrNone = 0
    engine: Engine = "auto"
    dtype: Literal["float32", "float64"] = "float32"
    device: str = "cpu"
    workers: _CountOrNone = 0
    evaluate_every: _Count = 1
    test_samples: _CountOrNone = 0
    step_s: str = "0.01"
    latency: str = "0.01"
    bandwidth: str = "0"
    loss_rate: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    churn: str = ""
    batched: bool = True

    @property
    def network(self) -> NetworkRecipe:
        """The part that a live network agrees on."""
        fields = msgspec.structs.asdict(self)
        return NetworkRecipe(**{name: fields[name] for name in NetworkRecipe.__struct_fields__})


_ABOUT: Mapping[str, str] = {
    "topology": "who averages with whom; more edges agree faster and cost more bytes",
    "mixing": "weights: auto, metropolis, max-degree, uniform, lazy, best-constant or finite-time",
    "rounds": "of training and averaging; 0 = until stopped (live only)",
    "seed": "of all random draws: split, initial weights, order of examples, dropout, random topologies",
    "data_seed": "of the split into parts; -1 = as seed",
    "init_seed": "of the initial weights; -1 = as seed",
    "topology_seed": "of random topologies that name no seed= of their own; -1 = as seed",
    "model": "mlp, mlp:hidden=256-128, cnn, logistic, or package.module:function",
    "epochs": "passes over the own data each round; more drifts further apart",
    "steps": "gradient steps each round instead of epochs, if above 0",
    "lr": "learning rate of SGD; more learns faster until it diverges",
    "batch_size": "examples a step; more is smoother and takes fewer steps an epoch",
    "alpha": "Dirichlet alpha of the split by label; lower is more lopsided, 0 even",
    "min_peers": "the first round waits for this many (live only)",
    "patience": "a round waits this many times as long as its median neighbor took",
    "min_deadline_s": "but at least this long",
    "max_wait_s": "and this long while fewer than half have come",
    "healing": "a split network meets again: its smaller part takes over the others' model (catch-up), or average",
    "peers": "how many are simulated",
    "algorithm": "d-psgd, or a reference: alone (nobody averages), fedavg (the exact average each round), pooled",
    "data": "mnist10k, digits, quadratic:dim=10, a torchvision name, .csv, .npz, a folder, or module:function",
    "target": "the column of a .csv to predict",
    "split": "auto (by alpha), iid, dirichlet:alpha=.1, shards:each=2, quantity:alpha=.5 or column:name=site",
    "samples": "examples a peer holds, drawn with repetition where there are not enough; 0 = all are dealt out",
    "engine": "auto, event (live code in virtual time), matrix (all peers as one array), ray, or scalars (no training)",
    "dtype": "float32, or float64 where engines are compared",
    "device": "of the matrix engine: cpu, cuda, mps or auto",
    "workers": "processes of the matrix engine, actors of Ray; 0 = one a core",
    "evaluate_every": "rounds between evaluations; the last round is always evaluated",
    "test_samples": "test examples to evaluate on; 0 = all",
    "step_s": "seconds a gradient step takes, a number or a law drawn once a peer: lognormal:median=.01,sigma=.5",
    "latency": "seconds a message takes over an edge, a number, a law drawn for each message, or a .csv file",
    "bandwidth": "megabytes a second of an edge, a number, a law drawn once an edge, or a .csv file; 0 = unlimited",
    "loss_rate": "probability that a share is lost on its way",
    "churn": "who comes and goes: crash:rate=.01 (a second), or events crash@3.5=4;leave@7=2;join@9=17 (seconds, peer)",
    "batched": "event engine: what starts at one virtual time trains as one batch; faster, other bits",
}


def about(setting: str) -> str:
    """One line on what a setting is, and what more or less of it buys."""
    return _ABOUT[setting]


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
        recipe = recipe_of(chosen)
        _check_topology(recipe.topology)
        _check_mixing(recipe.mixing)
        return cls(chosen)


def recipe_of(settings: Mapping[str, Any]) -> NetworkRecipe:
    """What a network agrees on, with these settings, and defaults for the rest.

    Raises:
        RecipeError: an unknown setting, or a value of the wrong kind or out of range.
    """
    return _convert(settings, NetworkRecipe)


def standing_settings(settings: Mapping[str, Setting]) -> dict[str, Setting]:
    """The settings that a network goes by once it has begun: those asked for, and the defaults of all others.

    But for how many peers it took to begin, and for the one of epochs and steps that the other one overrules.
    """
    recipe = recipe_of(settings)
    overruled = "epochs" if recipe.steps else "steps"
    left_out = {key for key in ("min_peers", overruled) if key not in settings}
    every = {name: getattr(recipe, name) for name in NetworkRecipe.__struct_fields__ if name not in left_out}
    return {**every, **settings}


def run_recipe_of(settings: Mapping[str, Any]) -> Recipe:
    """The whole recipe of a run, simulated or live, with these settings, and defaults for the rest.

    Raises:
        RecipeError: an unknown setting, or a value of the wrong kind or out of range.
    """
    return _convert(settings, Recipe)


def _convert(settings: Mapping[str, Any], kind: type[_R]) -> _R:
    """As `recipe_of`.

    Raises:
        RecipeError: an unknown setting, or a value of the wrong kind or out of range.
    """
    try:
        recipe = msgspec.convert(dict(settings), kind, strict=True)
    except msgspec.ValidationError as error:
        text = str(error)
        key = text.rsplit("`$.", 1)[-1].rstrip("`") if "`$." in text else ""
        what = text.split(" - at ")[0].lower()
        if "unknown field" in text:
            what += nearest(text.split("`")[1], kind.__struct_fields__)
        if key and "invalid enum value" in what:
            what = f"there is no {settings.get(key)!r}; there are {', '.join(get_args(get_type_hints(kind)[key]))}"
            raise RecipeError(f"{key}: {what}") from error
        raise RecipeError(f"{key or 'recipe'}: {what}, got {settings.get(key)!r}" if key else what) from error
    for name, value in msgspec.structs.asdict(recipe).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise RecipeError(f"{name}: expected a finite number, got {value!r}")
    return recipe


def nearest(key: str, keys: Iterable[str]) -> str:
    """How a message goes on about a key that does not exist: with the nearest spelling, if one is near."""
    near = get_close_matches(key.lower().replace("-", "_"), list(keys), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def complaint(settings: Mapping[str, Any]) -> str:
    """What is wrong with settings that somebody else tells, empty where a recipe can have them.

    Nothing as large as what is told is built for it: an answer takes no longer for a large number than for a small one.
    """
    try:
        for key, value in settings.items():
            if isinstance(value, str) and len(value) > LONGEST_TEXT:
                return f"{key[:64]} is {len(value)} characters long"
        recipe = recipe_of(settings)
        _check_topology(recipe.topology)
        _check_mixing(recipe.mixing)
    except UsageError as error:
        return str(error)
    return ""


def _check_topology(topology: str) -> None:
    """Look at the name and options of a topology that travels; whether there is one of so many peers shows later.

    Raises:
        RecipeError: a number that no network needs.
        TopologyError: an unknown name or option, or a value of the wrong kind.
        UsageError: the text is not of the form NAME or NAME:key=value,….
    """
    for key, value in named.options_of(topology).items():
        if isinstance(value, int | float):
            least, most = (0, _LARGEST_SEED) if key == "seed" else (-_LARGEST_OPTION, _LARGEST_OPTION)
            if not least <= value <= most:  # which is so of nan too
                raise RecipeError(f"option {key!r} of topology {parse_name(topology)!r} cannot be {value}")


def _check_mixing(mixing: str) -> None:
    """Look at the name and options of a weighting.

    Raises:
        RecipeError: there is no such weighting.
        TopologyError: an unknown option, or a value it cannot have.
        UsageError: the text is not of the form NAME or NAME:key=value,….
    """
    if parse_name(mixing) not in WEIGHTINGS:
        raise RecipeError(f"mixing: there is no {mixing!r}; there are: {', '.join(WEIGHTINGS)}")
    weighted(named.schedule("complete", 2), mixing)  # which every weighting fits


def travelling(topology: str) -> str:
    """The topology in a form that every peer can build: a file's edges are written out.

    Raises:
        TopologyError: there is no such topology.
    """
    if parse_name(topology) in named.NAMES and not topology.partition(":")[2].strip().startswith("files="):
        return topology
    return named.inline(load_schedule(topology, None))


def parse_name(topology: str) -> str:
    """What stands before the options."""
    return topology.partition(":")[0].strip()


def to_toml(recipe: NetworkRecipe) -> str:
    """The whole recipe as TOML, complete enough to repeat the run."""
    lines = ["# p2pfl recipe: every setting of the run"]
    for name, value in msgspec.structs.asdict(recipe).items():
        # JSON is TOML here, but for one character.
        text = msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")
        lines.append(f"{name} = {text}")
    return "\n".join(lines) + "\n"
