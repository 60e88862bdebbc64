"""The README's table of faults is true, whole, and nothing in it can be passed over in CI."""

import os

import fault_table
import pytest
from fault_table import FAULTS, README, Proof, proofs, proofs_in, table, written
from namespaces import namespaces_available

PROOFS = proofs()


@pytest.mark.parametrize("number", FAULTS)
def test_every_fault_is_proven_with_the_tool_that_it_needs(number: int) -> None:
    tools = {proof.tool for proof in PROOFS if proof.fault == number}
    assert tools, f"no test carries @pytest.mark.fault({number}): {FAULTS[number][0]}"
    for needed in FAULTS[number][1]:
        # What is shown between hosts is shown with real sockets, too.
        assert tools & ({"L", "N"} if needed == "L" else {needed}), f"fault {number} needs a test with tool {needed}"


def test_every_mark_is_of_a_fault_in_the_list() -> None:
    assert [proof for proof in PROOFS if proof.fault not in FAULTS] == []
    assert list(FAULTS) == list(range(1, 49))


def test_the_readme_has_the_table() -> None:
    text = README.read_text()
    assert text == written(text, table(PROOFS)), "run: python tests/fault_table.py"


def test_no_proof_may_be_skipped_or_fail() -> None:
    assert [proof for proof in PROOFS if proof.skips] == []


def test_namespaces_can_be_made_in_ci() -> None:
    """Elsewhere the tests between hosts are skipped where they cannot be."""
    assert namespaces_available() is None or not os.environ.get("CI")


def test_marks_are_read_wherever_they_stand() -> None:
    source = """
import pytest
from live import Live
pytestmark = [pytest.mark.namespaces, pytest.mark.skipif(namespaces_available() is not None, reason="")]

@pytest.mark.fault(2, 3)
def test_one(): ...

@pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.fault(4))])
def test_two(x): ...

class TestThree:
    @pytest.mark.fault(5)
    @pytest.mark.xfail(reason="later")
    async def test_four(self): pytest.skip("no")

TestMachine = Machine.TestCase
TestMachine.pytestmark = pytest.mark.fault(18)
def helper(): ...
def test_unmarked(): ...
"""
    found = list(proofs_in("test_x.py", source))
    assert [(proof.fault, proof.test, proof.tool) for proof in found] == [
        (2, "test_one", "N"),
        (3, "test_one", "N"),
        (4, "test_two", "N"),
        (5, "TestThree::test_four", "N"),
        (18, "TestMachine", "N"),
    ]
    assert [proof.skips for proof in found[:4]] == [
        (),
        (),
        (),
        ("pytest.mark.xfail(reason='later')", "pytest.skip('no')"),
    ]


@pytest.mark.parametrize(
    ("source", "tool"),
    [
        ("import asyncio\n@pytest.mark.fault(1)\ndef test_a(): ...", "L"),
        ("from live import Live\n@pytest.mark.fault(1)\ndef test_a(): ...", "L"),
        ("import asyncio\nfrom virtual import Net\n@pytest.mark.fault(1)\ndef test_a(): ...", "P"),
        ("import live\n@pytest.mark.fault(1)\n@given(st.binary())\ndef test_a(data): ...", "F"),
        ("@pytest.mark.fault(1)\n@pytest.mark.namespaces\ndef test_a(data): ...", "N"),
    ],
)
def test_the_tool_is_told_by_what_a_test_uses(source: str, tool: str) -> None:
    found = list(proofs_in("test_x.py", source))
    assert found == [Proof(1, "test_x.py", "test_a", tool)]


def test_rows_replace_rows_and_nothing_else() -> None:
    text = f"before\n{fault_table.BEGIN}\n\nold\n\n{fault_table.END}\nafter\n"
    once = written(text, "new")
    assert once == f"before\n{fault_table.BEGIN}\n\nnew\n\n{fault_table.END}\nafter\n"
    assert written(once, "new") == once
