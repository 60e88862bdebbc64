"""The one list of reasons: what the package uses is listed, and what is listed is used."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pfl import reasons
from p2pfl.reasons import MEANING, meaning

PACKAGE = Path(__file__).resolve().parents[1] / "p2pfl"
POSITION = {"ProtocolError": 0, "FetchError": 0, "Refused": 0, "Turned": 1}  # where a constructor takes the reason
BY_KEYWORD = {"ShareRejected", "Refusal", "Declined"} | set(POSITION)
REFUSING = ("refus", "reject", "turn", "declin")  # functions of these names, and with a parameter `reason`, take one
ANSWERS = {"mismatch", "objection"}  # functions whose answers are reasons
SILENT = {"duplicate"}  # answered so, but neither told nor counted: it is no fault


def texts(node: ast.expr) -> Iterator[str]:
    """The literal texts that an expression can be."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from (*texts(node.body), *texts(node.orelse))
    elif isinstance(node, ast.BoolOp):
        yield from (text for value in node.values for text in texts(value))


def taking_reasons(trees: list[ast.Module]) -> dict[str, int]:
    """Functions of the package that refuse for a reason that is given, and its position in a call."""
    found = {}
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names = [argument.arg for argument in node.args.args if argument.arg not in ("self", "cls")]
                if "reason" in names and node.name.lstrip("_").startswith(REFUSING):
                    found[node.name] = names.index("reason")
    return found


def used(trees: list[ast.Module]) -> set[str]:
    """Every literal reason in the sources."""
    positions = POSITION | taking_reasons(trees)
    found: set[str] = set()
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name in positions and len(node.args) > positions[name]:
                    found.update(texts(node.args[positions[name]]))
                if name in BY_KEYWORD or name in positions:
                    found.update(text for word in node.keywords if word.arg == "reason" for text in texts(word.value))
            elif isinstance(node, ast.FunctionDef) and node.name in ANSWERS:
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Return) and inner.value is not None:
                        found.update(texts(inner.value))
    return found - {""} - SILENT


def sources() -> dict[str, ast.Module]:
    """Those that talk to other machines; the benchmark's raw servers refuse nobody that matters."""
    paths = [p for p in sorted(PACKAGE.rglob("*.py")) if p.name != "reasons.py" and p.parent.name != "bench"]
    return {str(path.relative_to(PACKAGE)): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def test_every_reason_that_is_used_is_listed() -> None:
    found = used(list(sources().values()))
    assert len(found) > 20
    assert found - set(MEANING) == set()


def test_every_reason_that_is_listed_is_used() -> None:
    written = {
        node.value
        for name, tree in sources().items()
        for node in ast.walk(tree)
        if not name.startswith("simulation/") and isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert set(MEANING) - written == set()


def test_no_reason_is_listed_twice() -> None:
    lists = (reasons.CONNECTION, reasons.HELLO, reasons.MESSAGE, reasons.SHARE, reasons.ANNOUNCEMENT)
    assert sum(map(len, lists)) == len(MEANING)


@pytest.mark.parametrize("reason", MEANING)
def test_a_reason_is_a_short_phrase_with_one_line_of_meaning(reason: str) -> None:
    assert 3 <= len(reason) <= 32
    assert reason == reason.strip()
    assert MEANING[reason].endswith(".")
    assert "\n" not in MEANING[reason]


def test_a_reason_of_a_later_version_means_itself() -> None:
    assert meaning("late").startswith("The share came after")
    assert meaning("too purple") == "too purple"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('raise ProtocolError("bad mood", "detail")', {"bad mood"}),
        ('raise FetchError(reason="bad mood")', {"bad mood"}),
        ('x(Turned("body", "bad mood"))', {"bad mood"}),
        ('Emit(ShareRejected(peer=p, reason="a" if c else "b"))', {"a", "b"}),
        ('def refuse(self, peer, reason): ...\nself.refuse(p, "bad mood")', {"bad mood"}),
        ('def mismatch(o):\n    return "" if o else "bad mood"', {"bad mood"}),
        ('raise ValueError("not one")', set()),
    ],
)
def test_a_reason_is_found_however_it_is_given(source: str, found: set[str]) -> None:
    assert used([ast.parse(source)]) == found
