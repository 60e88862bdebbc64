"""Who comes and goes, as text: events at virtual seconds, or rates by which they are drawn.

`crash@3.5=4;leave@7=2+3;join@9=17` says that peer 4 crashes after 3.5 seconds, 2 and 3 leave in good order after 7, and
17 joins after 9. A peer whose first event is `join` is not there at the beginning; one that crashed or left comes back
by it. `crash:rate=.01` lets every peer crash once, after an exponential time of 1/.01 seconds on average, `leave:rate=`
likewise; `join:rate=2,peers=8` keeps the last 8 peers out, of whom one joins every half second on average. A crash or
leave that is drawn for a time at which its peer has never been there yet is passed over.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

from p2pfl.errors import RecipeError, UsageError
from p2pfl.keys import random_key
from p2pfl.spelling import Spelled, parse

Kind: TypeAlias = Literal["crash", "leave", "join"]
_KINDS: tuple[Kind, ...] = get_args(Kind)
_FORM = "write events as crash@3.5=4;leave@7=2;join@9=17 (seconds, peer), or rates as crash:rate=.01"


@dataclass(frozen=True, order=True)
class Change:
    """One peer comes or goes."""

    time_s: float
    peer: int
    kind: Kind


def parse_churn(text: str, names: Sequence[str], seed: int) -> tuple[Change, ...]:
    """All changes of a run, by time.

    Args:
        names: of the peers, by which the text may call them, too.
        seed: the recipe's, for rates.

    Raises:
        RecipeError: text that is not of the form, a peer that does not exist, or events that contradict each other.
    """
    changes: list[Change] = []
    chances: list[Change] = []  # crashes and leaves by rate, which ask nobody whether the peer is there
    for item in filter(None, (part.strip() for part in text.split(";"))):
        found = _events(item, names) if "@" in item else _drawn(item, names, seed)
        by_chance = "@" not in item and any(change.kind != "join" for change in found)
        (chances if by_chance else changes).extend(found)
    changes.sort()
    late = absent_at_first(changes)
    first = {change.peer: change.time_s for change in reversed(changes) if change.peer in late}
    changes += [change for change in chances if change.time_s > first.get(change.peer, -math.inf)]
    changes.sort()
    _check(changes, names)
    return tuple(changes)


def absent_at_first(changes: Sequence[Change]) -> frozenset[int]:
    """Peers whose first event is that they join."""
    first: dict[int, Kind] = {}
    for change in changes:
        first.setdefault(change.peer, change.kind)
    return frozenset(peer for peer, kind in first.items() if kind == "join")


def _events(item: str, names: Sequence[str]) -> list[Change]:
    what, equals, whom = item.partition("=")
    kind, _, when = (part.strip() for part in what.partition("@"))
    try:
        time_s = float(when)
    except ValueError:
        time_s = math.nan
    if kind not in _KINDS or not (math.isfinite(time_s) and time_s >= 0) or not equals or not whom.strip():
        raise RecipeError(f"churn: {item!r} is no event; {_FORM}")
    index = {name: position for position, name in enumerate(names)}
    changes = []
    for name in (part.strip() for part in whom.split("+")):
        if name not in index:
            raise RecipeError(f"churn: {item!r}: there is no peer {name!r}; there are {names[0]} to {names[-1]}")
        changes.append(Change(time_s, index[name], _kind(kind)))
    return changes


def _drawn(item: str, names: Sequence[str], seed: int) -> list[Change]:
    try:
        spelled = parse(item)
    except UsageError as error:
        raise RecipeError(f"churn: {item!r} cannot be read; {_FORM}") from error
    if spelled.name not in _KINDS:
        raise RecipeError(f"churn: {item!r}: there is no {spelled.name!r}; {_FORM}")
    kind = _kind(spelled.name)
    known = ("rate", "peers") if kind == "join" else ("rate",)
    if set(spelled.options) != set(known):
        form = f"{kind}:" + ",".join({"rate": "rate=.01", "peers": "peers=8"}[key] for key in known)
        raise RecipeError(f"churn: {item!r}: {kind} has {' and '.join(known)}; write {form}")
    mean_s = 1 / _positive(spelled, "rate", item)
    if kind == "join":
        count = int(_positive(spelled, "peers", item))
        if count >= len(names):
            raise RecipeError(f"churn: {item!r}: {count} of {len(names)} peers cannot join: let some be there before")
        times = np.random.default_rng(random_key(seed, "churn", kind)).exponential(mean_s, count).cumsum()
        return [Change(float(time), len(names) - count + order, kind) for order, time in enumerate(times)]
    draws = (np.random.default_rng(random_key(seed, "churn", kind, i)).exponential(mean_s) for i in range(len(names)))
    return [Change(float(time), peer, kind) for peer, time in enumerate(draws)]


def _positive(spelled: Spelled, key: str, item: str) -> float:
    try:
        value = float(spelled.options[key]) if key == "rate" else int(spelled.options[key])
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        what = "a number above 0 (of times a second)" if key == "rate" else "a whole number above 0"
        raise RecipeError(f"churn: {item!r}: {key} must be {what}")
    return value


def _check(changes: Sequence[Change], names: Sequence[str]) -> None:
    """A peer that is there cannot join, one that is not can do nothing else; rates are passed over by events."""
    there = dict.fromkeys(absent_at_first(changes), False)
    if len(there) == len(names):
        raise RecipeError("churn: all peers join later; let at least one be there at the beginning")
    for change in changes:
        if change.kind == "join" and there.get(change.peer, True):
            raise RecipeError(
                f"churn: peer {names[change.peer]} joins at {change.time_s:g} s and is there already; "
                "let it crash or leave before"
            )
        there[change.peer] = change.kind == "join"


def _kind(text: str) -> Kind:
    return next(kind for kind in _KINDS if kind == text)
