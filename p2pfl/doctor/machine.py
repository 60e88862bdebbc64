"""What on this machine itself keeps a peer from running: descriptors, ports, files."""

import errno
import os
import shlex
import socket
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from p2pfl.doctor.findings import Finding, note, problem

_AS_OWNER = " (as its owner)"
ENOUGH_DESCRIPTORS = 256  # a link and a body to each of a hundred peers


def judge_descriptors(limit: int | None) -> list[Finding]:
    """Whether this process may have as many open connections as it needs."""
    if limit is None or limit >= ENOUGH_DESCRIPTORS:
        return []
    text = f"a process may have {limit} files and connections open: newcomers are refused for lack of descriptors"
    return [problem("few descriptors", "this machine", text, "ulimit -n 4096, before p2pfl start")]


def descriptor_limit() -> int | None:
    """How many descriptors this process may have; None where there is no limit, or the system does not tell."""
    if sys.platform == "win32":
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def judge_ports(ports: Sequence[int], host: str = "0.0.0.0") -> list[Finding]:
    """Whether a port is free of those that a peer tries, the usual one first."""
    for position, port in enumerate(ports):
        if _free(host, port):
            if position == 0:
                return []
            text = f"port {ports[0]} is in use, by a peer or another program: the next peer takes {port}"
            return [note("port in use", "this machine", text)]
    text = f"the ports {ports[0]} to {ports[-1]} are all in use"
    return [problem("no free port", "this machine", text, "end what listens there, or choose another by --port")]


def _free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        if os.name == "posix":  # as peers do: a port that only waits for its last packets is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
        return True


def judge_folder(folder: Path) -> list[Finding]:
    """Whether the folder of keys and identities is this user's alone, and can be written to."""
    try:
        found = folder.stat()
    except FileNotFoundError:
        return []  # made by the first `p2pfl network create` or `join`
    except OSError as error:
        return [problem("no access", str(folder), f"it cannot be read: {error.strerror}", _elsewhere(folder))]
    if not stat.S_ISDIR(found.st_mode):
        return [problem("no access", str(folder), "it is no folder", _elsewhere(folder))]
    told = []
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        told.append(problem("no access", str(folder), "this user may not read and write it", _elsewhere(folder)))
    if os.name == "posix" and found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        told.append(_loose(folder))
    return told


def judge_exposed(warnings: Sequence[str]) -> list[Finding]:
    """Secret files that others can read, and folders in which they can put theirs, as `home.exposed` tells them."""
    told = []
    for warning in warnings:
        words = shlex.split(warning.partition("; mend it by: ")[2].removesuffix(_AS_OWNER))
        if words[:2] == ["chmod", "700"]:
            told.append(_loose(Path(words[2])))
        else:
            told.append(_exposed(Path(words[2])))
    return told


def _loose(folder: Path) -> Finding:
    return problem("folder of others", str(folder), "other users may change what is in it", _chmod("700", folder))


def _exposed(path: Path) -> Finding:
    mend = _chmod("600", path)
    if others_reach(path):
        return problem("exposed key", str(path), "other users of this machine can read it", mend)
    text = "other users could read it, were it not in a folder that they cannot enter: a copy of it is open to all"
    return note("exposed key", str(path), text, mend)


def others_reach(path: Path) -> bool:
    """Whether other users come as far as a file: one folder above it that they cannot enter is enough."""
    try:
        modes = [folder.stat().st_mode for folder in path.absolute().parents]
    except OSError:
        return True
    return all(mode & (stat.S_IXGRP | stat.S_IXOTH) for mode in modes)


def _chmod(mode: str, path: Path) -> str:
    return f"chmod {mode} {shlex.quote(str(path))}"


def _elsewhere(folder: Path) -> str:
    return f"set its rights ({_chmod('700', folder)}), or give another folder by P2PFL_HOME"
