"""The one spelling of named things with options, `NAME[:key=value,…]`, on the command line, in TOML and in Python."""

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from p2pfl.errors import UsageError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Spelled:
    """A name and its options, in the order they were written."""

    name: str
    options: Mapping[str, str]

    def __str__(self) -> str:
        options = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}:{options}" if options else self.name


def parse(text: str) -> Spelled:
    """Read `NAME[:key=value,…]`.

    Raises:
        UsageError: the text is not of that form, or a key stands twice.
    """
    name, colon, rest = text.strip().partition(":")
    if not _NAME.fullmatch(name) or (colon and not rest):
        raise UsageError(f"{text!r} is not of the form NAME or NAME:key=value,…")
    options: dict[str, str] = {}
    for pair in rest.split(",") if rest else []:
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not (key and equals and value):
            raise UsageError(f"{pair!r} in {text!r} is not of the form key=value")
        if key in options:
            raise UsageError(f"{key!r} stands twice in {text!r}")
        options[key] = value
    return Spelled(name, options)


def is_function(text: str) -> bool:
    """Whether the text has the form `package.module:function`."""
    return _FUNCTION.fullmatch(text) is not None


def load_function(text: str) -> Callable[..., Any]:
    """Import the function written `package.module:function`; the current folder is searched too.

    Only for text that this machine's user wrote: importing runs code.

    Raises:
        UsageError: the module cannot be found, or has no such function.
    """
    import sys

    module_name, _, function_name = text.partition(":")
    if "" not in sys.path and "." not in sys.path:
        sys.path.append("")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise UsageError(f"importing {module_name!r} failed: {error}; install what it needs") from error
        raise UsageError(f"there is no module {module_name!r}; run from its folder, or install it") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UsageError(f"module {module_name!r} has no function {function_name!r}")
    return function  # type: ignore[no-any-return]  # callable() narrows to a callable of unknown signature
