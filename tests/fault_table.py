"""The table of `tests/README.md`: each fault of the list, the tests that carry its mark, and the tool that they use.

`python tests/fault_table.py` writes it anew; `test_fault_table.py` holds that it is true. Nothing is imported for it.
"""

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parent
README = TESTS / "README.md"
BEGIN, END = "<!-- faults: written by tests/fault_table.py -->", "<!-- end of faults -->"

# What can go wrong, and the tools that a proof of it must use: hosts in [N]amespaces, real sockets on [L]oopback,
# a virtual clock [P], [F]uzz or properties. Where none is given, any will do.
FAULTS: dict[int, tuple[str, str]] = {
    1: ("a peer is killed with -9", "N"),
    2: ("a link goes down without a reset", "N"),
    3: ("the link is up again 30 s later", "N"),
    4: ("a partition that is not transitive: A cannot reach B, both reach C", "N"),
    5: ("a split in two halves for 30 s, then healed", "N"),
    6: ("multicast is blocked", "N"),
    7: ("started with the network down, or without a default route", "N"),
    8: ("the address is renumbered while running", "N"),
    9: ("two network interfaces, one of them unreachable", "N"),
    10: ("IPv6 alone, and IPv4 alone", ""),
    11: ("two processes with one identity", "L"),
    12: ("a stranger advertises another's name", ""),
    13: ("100 ghost advertisements that never answer", "L"),
    14: ("10,000 services in 10 s", ""),
    15: ("the clock jumps by a day, either way", "P"),
    16: ("SIGSTOP for 20 s, then SIGCONT", ""),
    17: ("both cores busy", "L"),
    18: ("old membership messages replayed, reordered, duplicated", "F"),
    19: ("SIGTERM in the middle of an upload", "L"),
    20: ("join and leave, one a second for 60 s, 16 peers", ""),
    21: ("a client connects and says nothing", "L"),
    22: ("a header never finished, a body that stalls", ""),
    23: ("the connection cut at every offset of the header, and inside the payload", "L"),
    24: ("a Content-Length missing, too large, too small, negative, with chunked", "L"),
    25: ("a compressed body", ""),
    26: ("a control message over the limit, text where binary is due", "L"),
    27: ("1,000 connections from one address", ""),
    28: ("a receiver at 50 kB/s", "L"),
    29: ("a link of 10 Mbit/s, and a model of 50 MB", "N"),
    30: ("20 % packet loss", "N"),
    31: ("the port is in use", "L"),
    32: ("the disk is full, or read-only", ""),
    33: ("at most 64 descriptors", ""),
    34: ("no TLS, TLS 1.2, another network's key, a wrong peer id", "L"),
    35: ("a body signed by A and sent by B; one bit changed", ""),
    36: ("an old model replayed, another receiver's, a former instance's", "L"),
    37: ("a liar claims that a live peer is dead", ""),
    38: ("an address record that points at a third party", ""),
    39: ("the network's key is rotated", "L"),
    40: ("random and mutated bytes into every decoder", "F"),
    41: ("NaN, infinities, 1e38, zeros, a flipped sign", "L"),
    42: ("a missing, extra, renamed, reshaped tensor, another dtype", "L"),
    43: ("safetensors that are cut, or lie", "F"),
    44: ("other versions of the protocol", "L"),
    45: ("a peer that is ten times slower", ""),
    46: ("a peer that is 50 rounds behind", ""),
    47: ("kill -9 while a checkpoint is written, 100 times", "L"),
    48: ("soak: eight peers and random faults by seed", "LN"),
}
TOOLS = {"N": "hosts", "L": "loopback", "P": "in process", "F": "properties"}


@dataclass(frozen=True, order=True)
class Proof:
    """A test that carries the mark of a fault."""

    fault: int
    module: str  # file name
    test: str
    tool: str  # key of TOOLS
    skips: tuple[str, ...] = ()  # what may keep it from running in CI


def proofs(folder: Path = TESTS) -> list[Proof]:
    """Every test with a mark `fault(number, …)` in the folder, by number."""
    return sorted(proof for path in folder.rglob("test_*.py") for proof in proofs_in(path.name, path.read_text()))


def proofs_in(module: str, source: str) -> Iterator[Proof]:
    """The marked tests of one module."""
    tree = ast.parse(source)
    shared = [node.value for node in tree.body if isinstance(node, ast.Assign) and _names(node) == ["pytestmark"]]
    imported = {name for node in ast.walk(tree) for name in _imported(node)}
    for test, node, marks in _marked(tree, shared):
        numbers = [number for mark in marks for number in _numbers(mark)]
        tool = "F" if module.startswith("test_fuzz") else _tool(marks, imported, node)
        for number in dict.fromkeys(numbers):
            yield Proof(number, module, test, tool, tuple(dict.fromkeys(_skips([*marks, node]))))


def table(found: Sequence[Proof]) -> str:
    """The rows of the README."""
    lines = ["| fault | what happens | tests | tool |", "|---|---|---|---|"]
    for number, (text, _) in FAULTS.items():
        mine = [proof for proof in found if proof.fault == number]
        tests = "<br>".join(f"`{proof.module}::{proof.test}`" for proof in mine)
        tools = ", ".join(f"{TOOLS[tool]} [{tool}]" for tool in TOOLS if tool in {proof.tool for proof in mine})
        lines.append(f"| {number} | {text} | {tests} | {tools} |")
    return "\n".join(lines)


def written(text: str, rows: str) -> str:
    """The README with these rows in it."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{rows}\n\n{END}{rest.partition(END)[2]}"


# What is true of no machine of CI: it is a Linux, whose user is root and may make namespaces.
_ELSEWHERE = (
    "pytest.mark.skipif(namespaces_available() is not None",
    "pytest.mark.skipif(sys.platform != 'linux'",
    "pytest.mark.skipif(sys.platform == 'win32'",
)
_Test = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _marked(tree: ast.Module, shared: list[ast.expr]) -> Iterator[tuple[str, ast.AST, list[ast.expr]]]:
    """Tests by name, with their own marks and those of class and module."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node.name, node, [*shared, *node.decorator_list]
        elif isinstance(node, ast.ClassDef):
            own = [*shared, *node.decorator_list]
            tests = [one for one in node.body if isinstance(one, _Test) and one.name.startswith("test_")]
            inside = [one.value for one in node.body if isinstance(one, ast.Assign) and _names(one) == ["pytestmark"]]
            for test in tests:
                yield f"{node.name}::{test.name}", test, [*own, *inside, *test.decorator_list]
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute) and node.value.attr == "TestCase":
            marks = [one.value for one in tree.body if isinstance(one, ast.Assign) and _marks(one, _names(node)[0])]
            bare = [one.value for one in tree.body if isinstance(one, ast.Expr) and _applied(one, _names(node)[0])]
            yield _names(node)[0], node, [*shared, *marks, *bare]


def _names(node: ast.Assign) -> list[str]:
    return [ast.unparse(target) for target in node.targets]


def _marks(node: ast.Assign, test: str) -> bool:
    """`TestThing.pytestmark = …`."""
    return _names(node) == [f"{test}.pytestmark"]


def _applied(node: ast.Expr, test: str) -> bool:
    """`pytest.mark.fault(18)(TestThing)`."""
    return isinstance(node.value, ast.Call) and [ast.unparse(one) for one in node.value.args] == [test]


def _numbers(mark: ast.AST) -> Iterator[int]:
    for node in ast.walk(mark):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
            yield from (one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, int))


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module is not None:
        yield node.module


def _tool(marks: Sequence[ast.AST], imported: set[str], test: ast.AST) -> str:
    text = " ".join(ast.unparse(mark) for mark in marks)
    if "mark.namespaces" in text:
        return "N"
    if re.search(r"\b(given|rule|settings|examples?)\(", text) or isinstance(test, ast.Assign):
        return "F"
    real = {"live", "socket", "subprocess", "discovery_process", "aiohttp", "asyncio", "p2pfl.network.http"}
    return "P" if "virtual" in imported or not real & imported else "L"


def _skips(nodes: Sequence[ast.AST]) -> Iterator[str]:
    for node in nodes:
        for one in ast.walk(node):
            if isinstance(one, ast.Call):
                text = ast.unparse(one)
                forbidden = re.match(r"pytest\.(mark\.)?(skip|skipif|xfail|importorskip)\(", text)
                if forbidden and not text.startswith(_ELSEWHERE):
                    yield text


if __name__ == "__main__":
    README.write_text(written(README.read_text(), table(proofs())))
