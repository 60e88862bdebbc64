"""What trust costs: rounds and hellos of peers that encrypt, against the same peers with --insecure, in turns."""

import asyncio
import os
import statistics
import time
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any

from p2pfl.bench.children import run_children
from p2pfl.bench.round import run_ring, samples_of, settings_of

MODEL = "mlp"  # the default: 784-100-10, of MNIST's size
_PORT = 17970  # of the peer that is greeted over TLS; the next one greets in the clear
_STEP = 1 << 16  # between two incarnations: each call is another start of the caller


def measure(peers: int = 4, rounds: int = 12, turns: int = 6, hellos: int = 40) -> dict[str, Any]:
    """Median seconds of a steady round both ways, and median milliseconds from a dial to the answer to a hello.

    All peers are processes on loopback, and both ways are run by the same ones in turns: which comes first changes, so
    that a machine that grows slower costs neither. `ratio` is the median over the turns; `cpu_ratio` that of a peer's
    processor time in a round, which other programs on this machine disturb less.
    """
    secret = os.urandom(32)
    results = run_children(_child, peers, peers, rounds, turns, secret)
    by_turn = {
        (way, figure): [
            statistics.median(s for one in results for s in one[way][turn][figure]) for turn in range(turns)
        ]
        for way in ("encrypted", "insecure")
        for figure in ("round_s", "cpu_s")
    }
    ratios, cpu_ratios = (
        [ours / plain for ours, plain in zip(by_turn["encrypted", of], by_turn["insecure", of], strict=True)]
        for of in ("round_s", "cpu_s")
    )
    _, greeted = run_children(_greeting, 2, hellos, secret)
    return {
        "peers": peers,
        "topology": "ring",
        "model": MODEL,
        "samples": results[0]["samples"],
        "turns": turns,
        "round_s": statistics.median(by_turn["encrypted", "round_s"]),
        "insecure_round_s": statistics.median(by_turn["insecure", "round_s"]),
        "ratio": statistics.median(ratios),
        "ratio_by_turn": sorted(ratios),
        "cpu_s": statistics.median(by_turn["encrypted", "cpu_s"]),
        "insecure_cpu_s": statistics.median(by_turn["insecure", "cpu_s"]),
        "cpu_ratio": statistics.median(cpu_ratios),
        "hellos": hellos,
        "hello_ms": 1e3 * statistics.median(greeted["encrypted"]),
        "insecure_hello_ms": 1e3 * statistics.median(greeted["insecure"]),
    }


def _child(index: int, barrier: Barrier, pipe: Connection, peers: int, rounds: int, turns: int, secret: bytes) -> None:
    from p2pfl.learning.by_name import NamedLearning
    from p2pfl.shell import single_thread

    single_thread()
    learning = NamedLearning(part=(index + 1, peers), seat=str(index))
    settings = settings_of(MODEL, peers, rounds)
    took: dict[str, list[dict[str, list[float]]]] = {"encrypted": [], "insecure": []}
    for turn in range(turns):
        for step, way in enumerate(sorted(took, reverse=turn % 2 == 1)):
            barrier.wait()
            keyed = secret if way == "encrypted" else b""
            took[way].append(run_ring(index, peers, 2 * turn + step, learning, settings, keyed))
    pipe.send({**took, "samples": samples_of(learning)})


def _greeting(index: int, barrier: Barrier, pipe: Connection, hellos: int, secret: bytes) -> None:
    pipe.send(asyncio.run(_be_greeted(barrier, secret) if index == 0 else _greet(barrier, hellos, secret)))


async def _be_greeted(barrier: Barrier, secret: bytes) -> dict[str, Any]:
    """Two peers in their lobbies, one that encrypts and one that does not, until all has been measured."""
    from p2pfl.events import Listening, RunEvent
    from p2pfl.identity import Identity
    from p2pfl.learning.by_name import NamedLearning
    from p2pfl.network_key import NetworkKey
    from p2pfl.peer import Peer, no_discovery

    listening: asyncio.Queue[Listening] = asyncio.Queue()

    def take(event: RunEvent) -> None:
        if isinstance(event, Listening):
            listening.put_nowait(event)

    peers = []
    for way, keyed in enumerate((True, False)):
        peer = Peer(
            "greeted",
            NamedLearning(part=(1, 4), seat="0"),
            network="bench",
            key=NetworkKey("bench", secret) if keyed else None,
            insecure=not keyed,
            identity=Identity(b"\x01" * 32),
            seat="0",
            interface="127.0.0.1",
            port=_PORT + way,
            discovery=no_discovery,
            sinks=(take,),
        )
        peer.ask(model=MODEL, min_peers=4)
        peers.append(peer)
    async with asyncio.TaskGroup() as group:  # one that cannot begin ends the measurement
        for peer in peers:
            group.create_task(peer.run())
        for _ in peers:
            await listening.get()
        await asyncio.to_thread(barrier.wait)
        await asyncio.to_thread(barrier.wait)
        for peer in peers:
            peer.stop()
    return {}


async def _greet(barrier: Barrier, hellos: int, secret: bytes) -> dict[str, Any]:
    """Seconds of each call, both ways in turns."""
    from p2pfl.identity import Identity
    from p2pfl.network.http import HttpTransport
    from p2pfl.network.tls import Credentials
    from p2pfl.network.transport import Link, Service
    from p2pfl.network_key import KeyRing, NetworkKey

    async def accept(link: Link) -> None:
        await link.close("no control here")

    me = Identity(b"\x02" * 32)
    ways = {"encrypted": Credentials(me, KeyRing(NetworkKey("bench", secret))), "insecure": None}
    service = Service(accept, lambda token, peer: None, lambda *_: None, lambda: b"{}")
    took: dict[str, list[float]] = {way: [] for way in ways}
    transports = {way: HttpTransport(("127.0.0.1",), 0, credentials=one) for way, one in ways.items()}
    await asyncio.to_thread(barrier.wait)
    async with transports["encrypted"].serving(service), transports["insecure"].serving(service):
        for number in range(hellos + 1):
            for offset, (way, transport) in enumerate(transports.items()):
                seconds = await _call(transport, f"127.0.0.1:{_PORT + offset}", me, (number + 1) * _STEP)
                if number:  # the first one imports what it needs
                    took[way].append(seconds)
    await asyncio.to_thread(barrier.wait)
    return took


async def _call(transport: Any, address: str, me: Any, incarnation: int) -> float:
    """Seconds from a dial until the other end has been heard, checked, and has answered a ping behind our hello."""
    from p2pfl.protocol.messages import VERSIONS, Ack, Goodbye, Hello, Member, Ping, decode, encode
    from p2pfl.protocol.records import Verified, signed

    record = Member(me.peer, "1", "caller", transport.addresses, incarnation)
    begun = time.perf_counter()
    link = await transport.connect(address)
    mine = signed(record, "bench", me)
    await link.send(encode(Hello(VERSIONS, "bench", f"{incarnation:026d}", mine, 1 << 40, {})))
    await link.send(encode(Ping(1)))
    verified, met, answered = Verified("bench"), False, False
    while not (met and answered):
        message = decode(await link.receive())
        if isinstance(message, Hello):
            verified.check(message.me)
            met = True
        answered |= isinstance(message, Ack)
    seconds = time.perf_counter() - begun
    left = Member(me.peer, "1", "caller", transport.addresses, incarnation, "left", until=0)
    await link.send(encode(Goodbye(signed(left, "bench", me))))
    await link.close("measured")
    return seconds
