"""Recipes and sweeps as TOML files: read with the place of what is wrong, and written with what every key buys.

A sweep is a recipe in which any setting may be a list, and every combination is a run. It may name references, too.
"""

import itertools
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from p2pfl.errors import RecipeError
from p2pfl.recipe import NetworkRecipe, Recipe, about, nearest, run_recipe_of

_SWEEP_KEYS = ("references",)
_SWEPT: Mapping[str, Sequence[Any]] = {
    "topology": ("ring", "torus", "exponential", "complete"),
    "alpha": (0.1, 10.0),
    "seed": (0, 1, 2),
}


@dataclass(frozen=True)
class Sweep:
    """Runs that differ in a few settings.

    Attributes:
        base: settings that all runs share.
        grid: the values of each setting that varies; every combination is a run.
        references: alone, pooled or fedavg, run once for all runs that they serve.
    """

    base: Mapping[str, Any]
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    references: Sequence[str] = ()

    def __len__(self) -> int:
        return len(list(self.recipes()))

    def over(self, base: Mapping[str, Any], grid: Mapping[str, Any]) -> "Sweep":
        """The same with these settings and values over its own.

        Epochs that are asked for stand over the steps it has, and steps over epochs. A value that stands twice in the
        grid is one run; a value alone is a list of one.

        Raises:
            RecipeError: a grid without values, an unknown setting, a value of the wrong kind, or epochs that no run
                would heed.
        """
        more = {key: _values(key, values) for key, values in grid.items()}
        asked = {*base, *more}
        for one, other in (("epochs", "steps"), ("steps", "epochs")):
            if one in asked and other not in asked and any([base.get(one), *more.get(one, ())]):
                asked.add(other)
                break
        kept = {key: value for key, value in self.base.items() if key not in asked}
        varied = {key: _values(key, values) for key, values in self.grid.items() if key not in asked}
        shared = {key: value for key, value in base.items() if key not in more}
        plan = Sweep({**kept, **shared}, {**varied, **more}, self.references)
        if plan.contradicts:
            raise RecipeError(plan.contradicts)
        return plan

    @property
    def contradicts(self) -> str:
        """Why some runs would not be what the grid says, with the mend; empty where all are."""
        steps = self.grid.get("steps", [self.base.get("steps", 0)])
        epochs = self.grid.get("epochs", ())
        if any(steps) and any(value != 1 for value in epochs):
            return "epochs: steps stand instead of them, so they cannot vary beside steps: leave steps out, or epochs"
        return ""

    def recipes(self) -> Iterator[Recipe]:
        """Every combination, the last setting of the grid varying fastest. Raises RecipeError."""
        for values in itertools.product(*self.grid.values()):
            yield run_recipe_of({**self.base, **dict(zip(self.grid, values, strict=True))})


def read_recipe(path: Path) -> Recipe:
    """The recipe in a file, defaults where it says nothing.

    Raises:
        RecipeError: no such file, no TOML, an unknown setting, or a value of the wrong kind; with file, line and mend.
    """
    text, settings = _read(path)
    lists = [key for key, value in settings.items() if isinstance(value, list)]
    if lists:
        where = _place(path, text, lists[0])
        raise RecipeError(f"{where}{lists[0]} is a list, and this is one run: give one value, or use p2pfl sweep")
    _check(path, text, settings, Recipe.__struct_fields__)
    return _recipe(path, text, settings)


def read_sweep(path: Path) -> Sweep:
    """The sweep in a file; a plain recipe is a sweep of one run.

    Raises:
        RecipeError: as `read_recipe`, of any of the combinations.
    """
    text, settings = _read(path)
    _check(path, text, settings, (*Recipe.__struct_fields__, *_SWEEP_KEYS))
    references = settings.pop("references", [])
    if not isinstance(references, list) or not set(references) <= {"alone", "pooled", "fedavg"}:
        where = _place(path, text, "references")
        raise RecipeError(f'{where}references is {references!r}; write any of ["alone", "pooled", "fedavg"]')
    grid = {key: value for key, value in settings.items() if isinstance(value, list)}
    base = {key: value for key, value in settings.items() if key not in grid}
    for key, values in grid.items():
        if not values:
            raise RecipeError(f"{_place(path, text, key)}{key} is an empty list: give at least one value")
        for value in values:
            _recipe(path, text, {**base, key: value})
    plan = Sweep(base, grid, tuple(references))
    if plan.contradicts:
        raise RecipeError(f"{_place(path, text, 'epochs')}{plan.contradicts}")
    return plan


def is_sweep(path: Path) -> bool:
    """Whether a file's settings have lists. Raises RecipeError where it cannot be read."""
    return any(isinstance(value, list) for value in _read(path)[1].values())


def commented(sweep: bool = False) -> str:
    """A recipe with every setting, its default, and what more or less of it buys; or a sweep."""
    plain = msgspec.structs.asdict(Recipe())
    head = (
        "# A sweep of p2pfl: every setting may be a list, and each combination is a run.  p2pfl sweep THIS-FILE"
        if sweep
        else "# A recipe of p2pfl: delete what you leave at its default.  p2pfl simulate THIS-FILE"
    )
    lines = [head]
    if sweep:
        lines += ["", "# runs to compare with: alone, pooled, fedavg; each once for all runs that it serves"]
        lines += ['references = ["alone", "pooled"]']
    network = NetworkRecipe.__struct_fields__
    for title, names in (
        ("What a network agrees on", network),
        ("The simulated world", [name for name in plain if name not in network]),
    ):
        lines += ["", f"# {title}"]
        for name in names:
            value = list(_SWEPT[name]) if sweep and name in _SWEPT else plain[name]
            lines += ["", f"# {about(name)}", f"{name} = {_toml(value)}"]
    return "\n".join(lines) + "\n"


def _values(key: str, values: Any) -> list[Any]:
    """The values of a setting, each once, as plain Python has them: a grid may come from numpy."""
    listed = [values] if isinstance(values, str) or not isinstance(values, Iterable) else list(values)
    plain = [value.item() if hasattr(value, "item") else value for value in listed]
    if not plain:
        raise RecipeError(f"the grid has no values for {key}: give at least one")
    for value in plain:
        run_recipe_of({key: value})  # what cannot be is told before anything runs
    return list(dict.fromkeys(plain))


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = path.expanduser().read_text(encoding="utf-8")
        return text, tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise RecipeError(f"{path} cannot be read: {why}; p2pfl recipe new {path} writes one") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(
            f'{path} is no TOML: {error}; settings are lines as alpha = 0.1 or topology = "ring"'
        ) from error


def _check(path: Path, text: str, settings: Mapping[str, Any], known: Sequence[str]) -> None:
    for key, value in settings.items():
        if key not in known:
            more = nearest(key, known) or "; p2pfl recipe new FILE writes all there are"
            raise RecipeError(f"{_place(path, text, key)}there is no setting {key!r}{more}")
        if isinstance(value, dict):
            raise RecipeError(f"{_place(path, text, key)}{key} is a table; settings stand side by side, without tables")


def _recipe(path: Path, text: str, settings: Mapping[str, Any]) -> Recipe:
    try:
        return run_recipe_of(settings)
    except RecipeError as error:
        key = str(error).partition(":")[0]
        raise RecipeError(f"{_place(path, text, key)}{error}") from error


def _place(path: Path, text: str, key: str) -> str:
    """ "FILE, line 3: ", or without the line where the key does not begin one."""
    for number, line in enumerate(text.splitlines(), start=1):
        if re.match(rf"\s*\[?\s*[\"']?{re.escape(key)}[\"']?\s*[=\].]", line):
            return f"{path}, line {number}: "
    return f"{path}: "


def _toml(value: Any) -> str:
    # JSON is TOML for numbers, text and lists of them.
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return msgspec.json.encode(value).decode()
