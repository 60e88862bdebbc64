"""How long peers take from launch to their first round, against importing torch in as many processes at once."""

import os
import subprocess
import sys
import time
from typing import Any

from p2pfl.errors import P2pflError
from p2pfl.events import StateChanged
from p2pfl.processes import Ended, PeerSpec, Processes

_PATIENCE_S = 120.0


def measure(peers: int = 5) -> dict[str, Any]:
    """Seconds until every peer trains, found by mDNS on loopback; and until as many bare imports are done."""
    begun = time.perf_counter()
    programs = [subprocess.Popen([sys.executable, "-c", "import torch"]) for _ in range(peers)]
    for program in programs:
        program.wait()
    import_s = time.perf_counter() - begun
    settings: dict[str, str | int | float | bool] = {"min_peers": peers, "rounds": 1, "alpha": 0.3}
    network = f"bench-{os.getpid()}"
    begun = time.perf_counter()
    training: set[int] = set()
    start_s = 0.0
    with Processes() as processes:
        for index in range(peers):
            processes.launch(
                PeerSpec(
                    name=f"peer-{index}",
                    seat=str(index),
                    network=network,
                    data="mnist10k",
                    part=(index + 1, peers),
                    settings=settings,
                )
            )
        while len(training) < peers:
            for number, told in processes.told(0.5):
                if isinstance(told, StateChanged) and told.state == "training":
                    training.add(number)
                    start_s = time.perf_counter() - begun
                if isinstance(told, Ended) and told.error:
                    raise P2pflError(told.error)
            if time.perf_counter() - begun > _PATIENCE_S:
                raise P2pflError(f"the peers did not begin within {_PATIENCE_S:g} s")
    return {"peers": peers, "start_s": start_s, "import_s": import_s, "over_import_s": start_s - import_s}
