"""The public names: what they are, that they are there, and that each says what it is."""

import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator

import pytest

import p2pfl

NAMES = [
    "Data",
    "Learner",
    "LocalNetwork",
    "P2pflError",
    "Peer",
    "Recipe",
    "Result",
    "Run",
    "SimulatedRun",
    "Topology",
    "TorchLearner",
    "average",
    "build_model",
    "create_network",
    "join_network",
    "load_data",
    "load_model",
    "load_run",
    "load_topology",
    "simulate",
    "sweep",
]


def public_methods() -> Iterator[tuple[str, object]]:
    """Methods and properties of public classes that are defined in the package."""
    for name in NAMES:
        value = getattr(p2pfl, name)
        if not inspect.isclass(value):
            continue
        for key, member in vars(value).items():
            if key.startswith("_") or not (callable(member) or inspect.isdatadescriptor(member) or _wraps(member)):
                continue
            if inspect.ismemberdescriptor(member):  # the fields of a struct
                continue
            yield f"{name}.{key}", member


def _wraps(member: object) -> bool:
    return isinstance(member, classmethod | staticmethod) or hasattr(member, "func")


def says(member: object) -> str:
    """The docstring, of the function beneath where there is one."""
    return inspect.getdoc(getattr(member, "__func__", member)) or ""


def test_the_public_names_are_these() -> None:
    assert p2pfl.__all__ == NAMES


def test_the_names_for_type_checkers_are_the_same() -> None:
    assert sorted(p2pfl._HOMES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_name_resolves_and_has_a_docstring(name: str) -> None:
    value = getattr(p2pfl, name)
    assert value is getattr(importlib.import_module(value.__module__), name)
    first = says(value).partition("\n")[0]
    assert len(first) > 15
    assert not first.startswith(f"{name}(")  # what dataclasses write where nobody wrote anything


def test_every_public_method_has_a_docstring() -> None:
    methods = dict(public_methods())
    assert {"Peer.run", "Run.metrics", "Recipe.network", "LocalNetwork.add", "Topology.connected"} <= set(methods)
    protocol = {f"TorchLearner.{name}" for name in vars(p2pfl.Learner) if not name.startswith("_")}  # told there
    assert [name for name, method in methods.items() if not says(method) and name not in protocol] == []


def test_a_wrong_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'p2pfl' has no attribute 'Pear'"):
        p2pfl.Pear  # noqa: B018


def test_dir_lists_them_before_they_are_imported() -> None:
    program = "import p2pfl, sys; print(set(p2pfl.__all__) <= set(dir(p2pfl)), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("True False\n", "")
