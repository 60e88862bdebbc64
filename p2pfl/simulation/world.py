"""The world a simulation puts its peers in: how long steps, messages and transfers take, and which shares are lost.

Every draw has a generator of its own purpose, seeded by the recipe's seed. What belongs to a peer, an edge or a share
(speed, bandwidth, loss) is drawn by its name, so that it is the same however the run goes.
"""

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from p2pfl.errors import RecipeError
from p2pfl.keys import random_key
from p2pfl.recipe import Recipe
from p2pfl.simulation.churn import Change, absent_at_first, parse_churn
from p2pfl.simulation.laws import Law, parse_law

_DRAWN_AT_ONCE = 4096
_MEGA = 1e6
_EVERYBODY = "*"


class World:
    """What the recipe says of steps, messages, transfers, losses and of who comes and goes."""

    def __init__(self, recipe: Recipe, names: Sequence[str]) -> None:
        """Read the recipe's settings.

        Args:
            names: of the peers, by which files and churn call them.

        Raises:
            RecipeError: a setting that cannot be read; the message says which and how to write it.
        """
        seed, peers = recipe.seed, len(names)
        law = parse_law(recipe.step_s, "step_s")
        self.step_s: tuple[float, ...] = tuple(
            float(law.draw(np.random.default_rng(random_key(seed, "step_s", peer)), 1)[0]) for peer in range(peers)
        )  # seconds a gradient step takes, by peer
        self.latency_s, self.ordered = _latency(recipe, names)
        self._bandwidth = _bandwidth(recipe, names)
        self._loss_rate = recipe.loss_rate
        self._seed = seed
        self.churn: tuple[Change, ...] = parse_churn(recipe.churn, names, seed)
        self.absent = absent_at_first(self.churn)

    latency_s: Callable[[int, int], float]  # seconds that one message takes, by sender and receiver
    ordered: bool  # whether messages of an edge arrive in order by themselves

    def transfer_s(self, sender: int, receiver: int, size: int) -> float:
        """Seconds that a body of so many bytes takes on an edge, beside the latency."""
        return size / _MEGA / rate if (rate := self._bandwidth(sender, receiver)) > 0 else 0.0

    def lost(self, round: int, sender: int, receiver: int) -> bool:
        """Whether the share of a round is lost on its way, however often it is fetched."""
        if not self._loss_rate:
            return False
        return random_key(self._seed, "loss", round, sender, receiver) / 2.0**63 < self._loss_rate


def steps_within(budget_s: float | None, step_s: float, full: int) -> int:
    """Gradient steps of equal length that end nearest to the budget, at least one: as live peers count them."""
    if budget_s is None or step_s <= 0:
        return full
    return max(1, min(full, math.floor(budget_s / step_s - 0.5) + 1))


def _latency(recipe: Recipe, names: Sequence[str]) -> tuple[Callable[[int, int], float], bool]:
    if recipe.latency.lower().endswith(".csv"):
        return _lookup(Path(recipe.latency), "latency", "latency_s", names), True
    law = parse_law(recipe.latency, "latency")
    if law.constant is not None:
        constant = law.constant
        return lambda sender, receiver: constant, True
    draws = _stream(law, recipe.seed)
    return lambda sender, receiver: next(draws), False


def _stream(law: Law, seed: int) -> Iterator[float]:
    rng = np.random.default_rng(random_key(seed, "latency"))
    while True:
        yield from law.draw(rng, _DRAWN_AT_ONCE).tolist()


def _bandwidth(recipe: Recipe, names: Sequence[str]) -> Callable[[int, int], float]:
    """Megabytes a second by sender and receiver; 0 is unlimited."""
    if recipe.bandwidth.lower().endswith(".csv"):
        return _lookup(Path(recipe.bandwidth), "bandwidth", "mb_per_s", names)
    law = parse_law(recipe.bandwidth, "bandwidth")
    if law.constant is not None:
        constant = law.constant
        return lambda sender, receiver: constant
    drawn: dict[tuple[int, int], float] = {}

    def rate(sender: int, receiver: int) -> float:
        edge = (sender, receiver)
        if edge not in drawn:
            rng = np.random.default_rng(random_key(recipe.seed, "bandwidth", sender, receiver))
            drawn[edge] = float(law.draw(rng, 1)[0])
        return drawn[edge]

    return rate


def _lookup(path: Path, setting: str, column: str, names: Sequence[str]) -> Callable[[int, int], float]:
    """A figure for each arc, from a .csv with the columns from, to and `column`; `*` stands for all other peers."""
    table = _read(path, setting, column, names)

    def figure(sender: int, receiver: int) -> float:
        for edge in ((sender, receiver), (sender, None), (None, receiver), (None, None)):
            if edge in table:
                return table[edge]
        raise RecipeError(
            f"{setting}: {path} has no row from {names[sender]} to {names[receiver]}; add it, or a row *,*,… for all "
            "that are left out"
        )

    return figure


def _read(path: Path, setting: str, column: str, names: Sequence[str]) -> Mapping[tuple[int | None, int | None], float]:
    index: dict[str, int | None] = {name: position for position, name in enumerate(names)}
    index[_EVERYBODY] = None
    table: dict[tuple[int | None, int | None], float] = {}
    try:
        with path.expanduser().open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if set(rows.fieldnames or ()) != {"from", "to", column}:
                raise RecipeError(f"{setting}: {path} needs a first line from,to,{column}")
            for row in rows:
                place = f"{setting}: {path} line {rows.line_num}"
                if None in row:
                    raise RecipeError(f"{place}: more than three columns")
                for end in (row["from"], row["to"]):
                    if end not in index:
                        raise RecipeError(f"{place}: there is no peer {end!r}; there are {names[0]} to {names[-1]}")
                table[index[row["from"]], index[row["to"]]] = _figure(row[column], place)
    except OSError as error:
        raise RecipeError(f"{setting}: {path} cannot be read: {error.strerror}") from error
    return table


def _figure(text: str | None, place: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise RecipeError(f"{place}: {text!r} is no number of at least 0")
    return value
