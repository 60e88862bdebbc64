"""What a round costs beyond its training: peers on a ring, against the same work without a network."""

import asyncio
import statistics
import time
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any

from p2pfl.bench.children import run_children

MODEL = "mlp:hidden=256-128"
_WARM_UP = 2  # rounds left out: first touches of memory, first connections


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
    from p2pfl.events import RoundFinished, RunEvent
    from p2pfl.learning.by_name import NamedLearning
    from p2pfl.network.http import HttpTransport
    from p2pfl.peer import Peer, no_discovery
    from p2pfl.recipe import recipe_of
    from p2pfl.shell import single_thread

    single_thread()
    settings: dict[str, Any] = {"model": MODEL, "topology": "ring", "min_peers": peers, "rounds": rounds}
    settings["max_wait_s"] = 60.0
    learning = NamedLearning(part=(index + 1, peers), seat=str(index))
    ports = [_port(turn, peer) for turn in range(turns) for peer in range(peers)]
    live: list[float] = []
    waits: list[float] = []
    mixes: list[float] = []
    plain: list[float] = []
    finished: list[float] = []

    def take(event: RunEvent) -> None:
        if isinstance(event, RoundFinished):
            finished.append(time.perf_counter())
            if event.round >= _WARM_UP:
                waits.append(event.wait_s)
                mixes.append(event.mix_s)

    for turn in range(turns):
        barrier.wait()
        here = ports[turn * peers : (turn + 1) * peers]
        finished.clear()
        peer = Peer(
            f"peer-{index}",
            learning,
            network="bench",
            seat=str(index),
            transport=HttpTransport(("127.0.0.1",), here[index]),
            discovery=no_discovery,
            peers=tuple(f"127.0.0.1:{port}" for port in here if port != here[index]),
            sinks=(take,),
        )
        peer.ask(**settings)
        asyncio.run(peer.run())
        live += [after - before for before, after in zip(finished[_WARM_UP:], finished[_WARM_UP + 1 :], strict=False)]
        learner = learning(recipe_of(settings))
        barrier.wait()
        for round in range(rounds):
            begun = time.perf_counter()
            learner.train(round, None, lambda: False)
            learner.evaluate()
            if round >= _WARM_UP:
                plain.append(time.perf_counter() - begun)
    samples = len(learning.loaded.train) if learning.loaded is not None else 0
    pipe.send({"round_s": live, "training_only_s": plain, "wait_s": waits, "mix_s": mixes, "samples": samples})


def _port(turn: int, peer: int) -> int:
    """Ports apart from those that peers take by themselves."""
    return 17470 + 16 * turn + peer
