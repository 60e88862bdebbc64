"""The layers of the package: imports run downward, and mathematics and protocol do no I/O."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "p2pfl"

LAYERS = {
    "errors": 0,
    "types": 0,
    "events": 0,
    "spelling": 0,
    "reasons": 0,
    "plain": 0,
    "keys": 1,
    "identity": 1,
    "network_key": 1,
    "framing": 1,
    "layout": 1,
    "state": 1,
    "graphs": 1,
    "mixing": 1,
    "partition": 1,
    "heterogeneity": 1,
    "protocol": 2,
    "network": 3,
    "recipe": 4,
    "recipe_files": 4,
    "learning": 4,
    "model_files": 4,
    "durable": 4,
    "tensor_files": 4,
    "file_lock": 4,
    "home": 4,
    "home_files": 4,
    "checkpoint": 4,
    "topology_files": 4,
    "sinks": 4,
    "telemetry": 4,
    "belonging": 5,
    "bodies": 5,
    "conversations": 5,
    "shell": 5,
    "worker": 4,
    "shut_out": 5,
    "blocking": 5,
    "construction": 5,
    "folder": 5,
    "presence": 5,
    "result": 5,
    "peer": 5,
    "local": 5,
    "simulation": 5,
    "processes": 6,
    "doctor": 6,
    "analysis": 6,
    "bench": 6,
    "chaos": 6,
    "cli": 7,
    "": 8,  # the package itself: the public names, imported when used
}
PURE = 2  # the layers up to this one are given time, randomness and events
IMPURE = {
    "aiohttp",
    "asyncio",
    "ifaddr",
    "io",
    "logging",
    "multiprocessing",
    "os",
    "pathlib",
    "random",
    "secrets",
    "shutil",
    "socket",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "zeroconf",
}
PICKLES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
RUNS_CODE = {"torch.load", "torch.jit.load", "torch.export.load", "eval", "exec", "open"}  # `open` in pure layers alone


def layer_of(module: str) -> int | None:
    """The layer of `p2pfl.…`; None where the table does not know it."""
    return LAYERS.get(module.split(".")[1] if "." in module else "")


def imports(tree: ast.AST) -> Iterator[str]:
    """Everything a module imports, at its head or later, as full names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "the package imports by full names"
            assert node.module is not None
            yield node.module
            if node.module in ("p2pfl", "torch"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls(tree: ast.AST) -> Iterator[str]:
    """Every function called by its plain or dotted name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            yield ast.unparse(node.func)


def faults(module: str, source: str) -> list[str]:
    """What the architecture has against a module."""
    layer = layer_of(module)
    if layer is None:
        return [f"{module} has no layer"]
    found = []
    tree = ast.parse(source)
    for name in imports(tree):
        top = name.partition(".")[0]
        if top == "p2pfl" and name != "p2pfl":
            below = layer_of(name)
            if below is None:
                found.append(f"{module} imports {name}, which has no layer")
            elif below > layer:
                found.append(f"{module} ({layer}) imports {name} ({below})")
        elif name == "p2pfl" and module != "p2pfl" and not any(n.startswith("p2pfl.") for n in imports(tree)):
            found.append(f"{module} imports the package itself")
        if top in IMPURE and layer <= PURE:
            found.append(f"{module} imports {name}")
        if top in PICKLES:
            found.append(f"{module} imports {name}")
    for name in calls(tree):
        if name in RUNS_CODE and (name != "open" or layer <= PURE):
            found.append(f"{module} calls {name}")
    return found


def modules() -> dict[str, str]:
    """The source of every module, by its full name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return found


def test_every_module_keeps_to_its_layer() -> None:
    sources = modules()
    assert len(sources) > 50
    assert [fault for module, source in sources.items() for fault in faults(module, source)] == []


def test_every_layer_of_the_table_exists() -> None:
    assert {name.split(".")[1] for name in modules() if "." in name} == set(LAYERS) - {""}


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("p2pfl.graphs.bad", "from p2pfl.protocol.core import PeerCore", "p2pfl.graphs.bad (1) imports p2pfl.protocol"),
        ("p2pfl.network.bad", "import p2pfl.learning.learner", "p2pfl.network.bad (3) imports p2pfl.learning.learner"),
        ("p2pfl.shell", "def late():\n    from p2pfl.cli import app", "p2pfl.shell (5) imports p2pfl.cli"),
        ("p2pfl.sinks", "from p2pfl import peer", "p2pfl.sinks (4) imports p2pfl.peer (5)"),
        ("p2pfl.protocol.bad", "from time import monotonic", "p2pfl.protocol.bad imports time"),
        ("p2pfl.protocol.bad", "import asyncio.queues", "p2pfl.protocol.bad imports asyncio.queues"),
        ("p2pfl.events", "import random", "p2pfl.events imports random"),
        ("p2pfl.layout", "open('model')", "p2pfl.layout calls open"),
        ("p2pfl.model_files", "import pickle", "p2pfl.model_files imports pickle"),
        ("p2pfl.model_files", "import torch\ntorch.load('model')", "p2pfl.model_files calls torch.load"),
        ("p2pfl.cli.bad", "eval('1')", "p2pfl.cli.bad calls eval"),
        ("p2pfl.novelty", "", "p2pfl.novelty has no layer"),
        ("p2pfl.peer", "from p2pfl.novelty import x", "p2pfl.peer imports p2pfl.novelty, which has no layer"),
    ],
)
def test_a_bad_module_is_told(module: str, source: str, fault: str) -> None:
    assert [told for told in faults(module, source) if told.startswith(fault)]


def test_a_good_module_is_not_told() -> None:
    source = "import math\nimport torch\nfrom p2pfl.errors import ModelError\nmodel.eval()\nfile.open()\n"
    assert faults("p2pfl.layout", source) == []


@pytest.mark.parametrize("module", ["p2pfl", "p2pfl.cli.app", "p2pfl.processes"])
def test_importing_costs_no_heavy_library(module: str) -> None:
    heavy = ("torch", "torchvision", "pandas", "scipy", "networkx", "numpy", "aiohttp", "zeroconf", "matplotlib")
    program = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_core_imports_nothing_that_does_io() -> None:
    program = (
        "import sys, p2pfl.protocol.messages, p2pfl.events; print('asyncio' in sys.modules, 'socket' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("False False\n", "")
