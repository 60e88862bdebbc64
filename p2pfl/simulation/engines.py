"""Which engine does what, and which one takes a problem."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import cast

from p2pfl.errors import UsageError
from p2pfl.events import Sink
from p2pfl.recipe import Recipe
from p2pfl.simulation.engine import Engine
from p2pfl.simulation.problem import Problem

WORLD = ("step_s", "latency", "bandwidth", "loss_rate", "churn")  # settings that only virtual time can serve


@dataclass(frozen=True)
class EngineFacts:
    """One row of the table of engines."""

    home: str  # package.module:class; imported when it is taken
    what: str
    world: str  # latency, bandwidth, loss, churn, stragglers
    models: str
    size: str
    agrees: str


ENGINES: Mapping[str, EngineFacts] = {
    "event": EngineFacts(
        "p2pfl.simulation.event:EventEngine",
        "live peers' own code in virtual time",
        "all of it, and peers rounds apart",
        "any torch module",
        "about 1,000 peers",
        "live peers, bit for bit without batches",
    ),
    "matrix": EngineFacts(
        "p2pfl.simulation.matrix:MatrixEngine",
        "all peers' parameters as one array, on all cores or a GPU",
        "none: rounds in step, nothing lost",
        "what torch.func vectorizes",
        "thousands of peers",
        "event, to 1e-10 in float64",
    ),
    "ray": EngineFacts(
        "p2pfl.simulation.ray_engine:RayEngine",
        "the matrix engine, peers spread over Ray actors",
        "none: as matrix",
        "as matrix",
        "more than one machine holds",
        "matrix",
    ),
}
_SCALARS = EngineFacts(
    "p2pfl.simulation.scalars",
    "averaging alone, one number a peer: p2pfl average",
    "failures",
    "none: nothing is trained",
    "1,000,000 peers",
    "closed forms",
)


def table() -> list[dict[str, str]]:
    """Which engine does what, a row an engine."""
    rows = []
    for name, facts in (*ENGINES.items(), ("scalars", _SCALARS)):
        row = {"engine": name, "what it runs": facts.what, "delays, loss, churn": facts.world}
        rows.append(row | {"models": facts.models, "up to": facts.size, "agrees with": facts.agrees})
    return rows


def choose(problem: Problem, *, sink: Sink | None = None, address: str | None = None) -> tuple[Engine, str, str]:
    """The engine for a problem: itself, its name, and why it was taken.

    `auto` takes matrix, which is fastest, where nothing of the world is asked for that needs virtual time, and where
    the model can be vectorized; else event.

    Args:
        sink: takes the events of all peers, where the engine has any.
        address: of a Ray cluster; None starts one here where ray is asked for.

    Raises:
        UsageError: the engine asked for cannot run the problem; the message says the mend.
    """
    recipe = problem.recipe
    if recipe.engine == "scalars":
        raise UsageError(
            "engine scalars trains nothing: p2pfl simulate --engine scalars, p2pfl average, or p2pfl.average"
        )
    load = partial(_load, sink=sink, address=address)
    if recipe.engine != "auto":
        ignored = world_of(recipe) if recipe.engine != "event" else ()
        if ignored:
            raise UsageError(
                f"engine {recipe.engine} knows no virtual time and would ignore {' and '.join(ignored)}: "
                "take engine event or auto, or leave that out"
            )
        return _fit(load(recipe.engine), recipe.engine, problem), recipe.engine, "asked for"
    asked = world_of(recipe)
    if asked:
        why = f"{' and '.join(asked)} {'need' if len(asked) > 1 else 'needs'} virtual time"
        return _fit(load("event"), "event", problem), "event", why
    matrix = load("matrix")
    objection = matrix.objection(problem)
    if not objection:
        return matrix, "matrix", "the fastest, and nothing asks for virtual time"
    return _fit(load("event"), "event", problem), "event", f"not matrix: {objection}"


def world_of(recipe: Recipe) -> tuple[str, ...]:
    """The settings of the simulated world that are not at their defaults."""
    plain = Recipe()
    return tuple(key for key in WORLD if getattr(recipe, key) != getattr(plain, key))


def _fit(engine: Engine, name: str, problem: Problem) -> Engine:
    objection = engine.objection(problem)
    if objection:
        raise UsageError(f"engine {name} cannot run this: {objection}")
    return engine


def _load(name: str, sink: Sink | None, address: str | None) -> Engine:
    module, _, kind = ENGINES[name].home.partition(":")
    made = getattr(importlib.import_module(module), kind)
    if name == "event":
        return cast(Engine, made(sink))
    return cast(Engine, made(address) if name == "ray" and address is not None else made())
