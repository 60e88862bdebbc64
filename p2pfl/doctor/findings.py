"""What the doctor found: one thing, where, and what to do about it."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Level: TypeAlias = Literal["problem", "note"]


@dataclass(frozen=True)
class Finding:
    """Something found; a `problem` keeps peers apart, a `note` is worth knowing.

    Args:
        code: a short fixed phrase, for programs.
        place: what it is about: an interface, an address, a file.
        text: what is so.
        mend: what to do; empty where there is nothing to mend.
    """

    level: Level
    code: str
    place: str
    text: str
    mend: str = ""


def problem(code: str, place: str, text: str, mend: str) -> Finding:
    """Something that keeps peers apart."""
    return Finding("problem", code, place, text, mend)


def note(code: str, place: str, text: str, mend: str = "") -> Finding:
    """Something worth knowing."""
    return Finding("note", code, place, text, mend)
