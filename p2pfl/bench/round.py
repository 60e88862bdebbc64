"""What a round costs beyond its training: peers on a ring, against the same work without a network."""

import asyncio
import statistics
import time
from collections import defaultdict
from itertools import pairwise
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any

from p2pfl.bench.children import run_children

MODEL = "mlp:hidden=256-128"
WARM_UP = 2  # rounds left out: first touches of memory, first connections
_FIRST_PORT = 17470  # apart from those that peers take by themselves


def measure(peers: int = 4, rounds: int = 12, turns: int = 3) -> dict[str, Any]:
    """Median seconds of a steady round, and of the same trainings and evaluations side by side without a network.

    Both run in the same processes, in turn, on everything this machine has; one thread a process.
    """
    results = run_children(_child, peers, peers, rounds, turns)
    live = [s for result in results for s in result["round_s"]]
    plain = [s for result in results for s in result["training_only_s"]]
    round_s, training_s = statistics.median(live), statistics.median(plain)
    return {
        "peers": peers,
        "topology": "ring",
        "model": MODEL,
        "samples": results[0]["samples"],
        "rounds": len(live) // peers,
        "round_s": round_s,
        "training_only_s": training_s,
        "ratio": round_s / training_s,
        "wait_s": statistics.median(s for result in results for s in result["wait_s"]),
        "mix_s": statistics.median(s for result in results for s in result["mix_s"]),
    }


def _child(index: int, barrier: Barrier, pipe: Connection, peers: int, rounds: int, turns: int) -> None:
    from p2pfl.learning.by_name import NamedLearning
    from p2pfl.recipe import recipe_of
    from p2pfl.shell import single_thread

    single_thread()
    learning = NamedLearning(part=(index + 1, peers), seat=str(index))
    settings = settings_of(MODEL, peers, rounds)
    figures: dict[str, list[float]] = defaultdict(list)
    for turn in range(turns):
        barrier.wait()
        for name, took in run_ring(index, peers, turn, learning, settings).items():
            figures[name] += took
        learner = learning(recipe_of(settings))
        barrier.wait()
        for round in range(rounds):
            begun = time.perf_counter()
            learner.train(round, None, lambda: False)
            learner.evaluate()
            if round >= WARM_UP:
                figures["training_only_s"].append(time.perf_counter() - begun)
    pipe.send({**figures, "samples": samples_of(learning)})


def settings_of(model: str, peers: int, rounds: int) -> dict[str, Any]:
    """A run of a ring that begins with all its peers, and whose rounds wait for each of them."""
    return {"model": model, "topology": "ring", "min_peers": peers, "rounds": rounds, "max_wait_s": 60.0}


def samples_of(learning: Any) -> int:
    """Examples that a peer trains on."""
    return len(learning.loaded.train) if learning.loaded is not None else 0


def run_ring(
    index: int, peers: int, turn: int, learning: Any, settings: dict[str, Any], secret: bytes = b""
) -> dict[str, list[float]]:
    """One peer's part in a ring on loopback: seconds of its steady rounds, and what was waiting, mixing, computing.

    Args:
        turn: another one takes other ports.
        secret: the network's, for a run that is encrypted; else it is as with --insecure.
    """
    from p2pfl.events import RoundFinished, RunEvent
    from p2pfl.identity import Identity
    from p2pfl.network_key import NetworkKey
    from p2pfl.peer import Peer, no_discovery

    ends: list[tuple[float, float]] = []
    steady: list[RoundFinished] = []

    def take(event: RunEvent) -> None:
        if isinstance(event, RoundFinished):
            ends.append((time.perf_counter(), time.process_time()))
            if event.round >= WARM_UP:
                steady.append(event)

    here = [_FIRST_PORT + 16 * turn + one for one in range(peers)]
    peer = Peer(
        f"peer-{index}",
        learning,
        network="bench",
        key=NetworkKey("bench", secret) if secret else None,
        insecure=not secret,
        identity=Identity(bytes([index + 1]) * 32),  # of this measurement alone: nothing is kept
        seat=str(index),
        interface="127.0.0.1",
        port=here[index],
        discovery=no_discovery,
        peers=tuple(f"127.0.0.1:{port}" for port in here if port != here[index]),
        sinks=(take,),
    )
    peer.ask(**settings)
    asyncio.run(peer.run())
    between = list(pairwise(ends[WARM_UP:]))
    return {
        "round_s": [after[0] - before[0] for before, after in between],
        "cpu_s": [after[1] - before[1] for before, after in between],
        "wait_s": [event.wait_s for event in steady],
        "mix_s": [event.mix_s for event in steady],
    }
