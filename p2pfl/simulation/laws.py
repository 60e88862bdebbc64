"""Laws of chance for times and rates, as text: `0.01`, `constant:0.01`, `uniform:low=…,high=…` and so on."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
import numpy.typing as npt

from p2pfl.errors import RecipeError, UsageError
from p2pfl.spelling import parse

Draw = Callable[[np.random.Generator, int], npt.NDArray[np.float64]]

LAWS: Mapping[str, tuple[str, ...]] = {
    "constant": ("value",),
    "uniform": ("low", "high"),
    "lognormal": ("median", "sigma"),
    "exponential": ("mean",),
}  # every law and its options, all of which it needs
_EXAMPLES = "0.01, uniform:low=0.01,high=0.05, lognormal:median=0.01,sigma=0.5 or exponential:mean=0.01"


@dataclass(frozen=True)
class Law:
    """A law that gives numbers of at least 0.

    Attributes:
        text: as it was written.
        constant: the one number it gives, None where it draws.
        draw: (generator, n) -> [n] numbers.
    """

    text: str
    constant: float | None
    draw: Draw


def parse_law(text: str, setting: str) -> Law:
    """Read a law.

    Args:
        setting: whose law it is, for the message.

    Raises:
        RecipeError: no such law or option, an option that is missing, or a number that cannot be.
    """
    plain = _number(text.strip().removeprefix("constant:"))
    if plain is not None:
        if not (math.isfinite(plain) and plain >= 0):
            raise RecipeError(f"{setting} is {text!r}: write a finite number of at least 0")
        return _constant(text, plain)
    try:
        spelled = parse(text)
    except UsageError as error:
        raise RecipeError(f"{setting} is {text!r}: write a number or a law, as {_EXAMPLES}") from error
    if spelled.name not in LAWS:
        near = get_close_matches(spelled.name, LAWS, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise RecipeError(f"{setting} is {text!r}: there is no law {spelled.name!r}; {meant}write {_EXAMPLES}")
    wanted = LAWS[spelled.name]
    if set(spelled.options) != set(wanted):
        form = f"{spelled.name}:" + ",".join(f"{key}=…" for key in wanted)
        raise RecipeError(f"{setting} is {text!r}: a {spelled.name} law has {' and '.join(wanted)}; write {form}")
    values = []
    for key in wanted:
        value = _number(spelled.options[key])
        if value is None or not math.isfinite(value) or value < 0:
            raise RecipeError(f"{setting} is {text!r}: {key} must be a finite number of at least 0")
        values.append(value)
    return _law(text, spelled.name, values, setting)


def _law(text: str, name: str, values: list[float], setting: str) -> Law:
    first, last = values[0], values[-1]
    match name:
        case "constant":
            return _constant(text, first)
        case "uniform":
            if last < first:
                raise RecipeError(f"{setting} is {text!r}: high must not be below low")
            return Law(text, None, lambda rng, n: rng.uniform(first, last, n))
        case "lognormal":
            if not first:
                raise RecipeError(f"{setting} is {text!r}: median must be above 0")
            return Law(text, None, lambda rng, n: rng.lognormal(math.log(first), last, n))
        case _:
            return Law(text, None, lambda rng, n: rng.exponential(first, n))


def _constant(text: str, value: float) -> Law:
    return Law(text, value, lambda rng, n: np.full(n, value))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
