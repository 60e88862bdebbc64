"""What an idle peer holds in memory beyond a process that has only imported torch."""

import os
import subprocess
import sys
import tempfile
from typing import Any

from p2pfl.errors import P2pflError

_IMPORT = """
import sys, torch
from p2pfl.bench.children import resident_mb
print(resident_mb(), flush=True)
sys.stdin.read()
"""

_IDLE = """
import asyncio, sys, threading
from p2pfl.bench.children import resident_mb
from p2pfl.home import create_network
from p2pfl.learning.by_name import NamedLearning
from p2pfl.peer import Peer

create_network("bench-memory")
learning = NamedLearning(part=(1, 5))
peer = Peer("idle", learning, network="bench-memory", interface="127.0.0.1", port=0)
peer.ask(min_peers=2)

async def main():
    running = asyncio.create_task(peer.run())
    while not peer.ready and not running.done():
        await asyncio.sleep(0.05)
    if running.done():
        await running  # it could not begin
    await asyncio.sleep(2.0)  # an idle peer: let what was begun come to rest
    print(resident_mb(), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    peer.stop()
    await running

asyncio.run(main())
"""


def measure() -> dict[str, Any]:
    """Resident memory in MB of both, measured while both run."""
    programs: list[subprocess.Popen[str]] = []
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "P2PFL_HOME": home}
        try:
            for program in (_IMPORT, _IDLE):
                command = [sys.executable, "-c", program]
                pipe = subprocess.PIPE
                programs.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment))
            figures = [_figure(program) for program in programs]
        finally:
            for begun in programs:
                begun.communicate()
    return {
        "import_mb": figures[0],
        "idle_mb": figures[1],
        "idle_over_import_mb": figures[1] - figures[0],
    }


def _figure(program: "subprocess.Popen[str]") -> float:
    assert program.stdout is not None
    line = program.stdout.readline()
    if not line:
        raise P2pflError("a process of the measurement died; see its message above")
    return float(line)
