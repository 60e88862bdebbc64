"""A Ray cluster to run on: joined where there is an address, else started here, and left as it was found.

Ray moves Python objects between machines by a serialization of its own that can run code, and its ports, which listen
to the whole network, ask nobody for a password: it is for machines and users one trusts, behind a firewall. What is
started here has no dashboard and tells nobody of its use.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2pfl.errors import NetworkError, P2pflError, UsageError

if TYPE_CHECKING:
    from types import ModuleType

_KNOCK_S = 10.0
_SILENT = {"RAY_USAGE_STATS_ENABLED": "0"}


def missing() -> str:
    """What to do where Ray is not installed; empty where it is."""
    import importlib.util

    if importlib.util.find_spec("ray") is None:
        return "Ray is not installed: pip install 'p2pfl[ray]', or take --engine matrix"
    return ""


@contextmanager
def cluster(address: str | None = None, cpus: int = 0) -> Iterator["ModuleType"]:
    """The module `ray`, connected, for as long as the block lasts.

    A connection that the process has already is used and kept. Failures of Ray and of what runs there come out as
    errors of ours.

    Args:
        address: of a cluster, as host:port or ray://host:port, or `auto` for one that this machine is a node of; None
            starts one here.
        cpus: processes at once on a cluster that is started here; 0 for one a core.

    Raises:
        UsageError: Ray is not installed.
        NetworkError: there is no cluster at the address, or it was lost.
    """
    told = missing()
    if told:
        raise UsageError(told)
    import ray

    if ray.is_initialized():
        with _errors(ray):
            yield ray
        return
    with _handlers():
        try:
            with _errors(ray):
                _connect(ray, address, cpus)
                yield ray
        finally:
            ray.shutdown()


def _connect(ray: Any, address: str | None, cpus: int) -> None:
    # The user's own modules beside the script, or in the folder it was started from, are found by the workers too.
    paths = os.pathsep.join((*_own_paths(), "${PYTHONPATH}"))  # Ray puts in what the worker's machine has
    here = {"env_vars": {"PYTHONPATH": paths}}
    quiet = {"log_to_driver": False, "logging_level": "error", "runtime_env": here}
    if address is not None:
        try:
            _knock(address)
            ray.init(address, **quiet)
        except (OSError, ValueError, RuntimeError) as error:  # what Ray raises where nobody answers
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise NetworkError(
                f"no Ray cluster at {address}: {reason}; start one with `ray start --head`, or leave the address out"
            ) from error
        return
    before = {name: os.environ.get(name) for name in _SILENT}
    os.environ |= _SILENT
    try:
        count = cpus or os.cpu_count() or 1
        ray.init("local", num_cpus=count, include_dashboard=False, **quiet)
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _knock(address: str) -> None:
    """Raises OSError where nobody listens: Ray itself would try for minutes, and then end the process."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _KNOCK_S).close()


def _own_paths() -> list[str]:
    """Where this process looks for modules, but for what comes with Python and its environment."""
    given = dict.fromkeys(Path(path).absolute() for path in sys.path)  # "" is the folder we are in
    installed = (sys.prefix, sys.base_prefix)
    return [str(path) for path in given if path.is_dir() and not any(map(path.is_relative_to, installed))]


@contextmanager
def _errors(ray: Any) -> Iterator[None]:
    """Failures of a task as themselves where they are ours, and of Ray as ours."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, P2pflError):
            raise cause from None
        told = " ".join(f"{type(cause).__name__}: {cause}".splitlines()[:1])
        raise NetworkError(f"a task on Ray failed with {told}") from error
    except ray.exceptions.RayError as error:
        told = (str(error) or type(error).__name__).splitlines()[0]
        raise NetworkError(f"the Ray cluster failed: {told}; look at its nodes with `ray status`") from error


@contextmanager
def _handlers() -> Iterator[None]:
    """Put the handlers of signals back: Ray sets its own when it connects."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
