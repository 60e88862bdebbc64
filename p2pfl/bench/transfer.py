"""How fast a large model moves between two peers, both ways at once, against plain sockets in the same run."""

import asyncio
import json
import socket
import statistics
import threading
import time
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any

from p2pfl.bench.children import peak_mb, reset_peak, resident_mb, run_children

_PORT = 17570
_PIECE = 1 << 20


def measure(model_mb: int = 200, repeats: int = 5) -> dict[str, Any]:
    """MB/s of each direction (medians), and memory.

    `transfer_peak_mb` is what a process grows by when it holds its vector, receives the other's and mixes the two;
    `peer_peak_over_import_mb` what a whole peer that trains such a model holds beyond imports.
    """
    moved = run_children(_mover, 2, model_mb, repeats)
    peers = run_children(_trainer, 2, model_mb)
    ours = statistics.median(s for result in moved for s in result["transfer_s"])
    plain = statistics.median(s for result in moved for s in result["socket_s"])
    size = moved[0]["bytes"] / 1e6
    ratios = [p / o for result in moved for p, o in zip(result["socket_s"], result["transfer_s"], strict=True)]
    return {
        "model_mb": size,
        "mb_per_s": size / ours,
        "socket_mb_per_s": size / plain,
        "ratio": plain / ours,
        "ratio_by_turn": sorted(ratios),
        "finite_check_s": statistics.median(s for result in moved for s in result["finite_s"]),
        "mix_s": statistics.median(s for result in moved for s in result["mix_s"]),
        "transfer_peak_mb": max(result["peak_mb"] for result in moved),
        "buffers_allocated": max(result["allocated"] for result in moved),
        "peer_peak_over_import_mb": max(result["peak_mb"] for result in peers),
        "peer_round_s": statistics.median(s for result in peers for s in result["round_s"]),
    }


def _mover(index: int, barrier: Barrier, pipe: Connection, model_mb: int, repeats: int) -> None:
    pipe.send(asyncio.run(_move(index, barrier, model_mb, repeats)))


async def _move(index: int, barrier: Barrier, model_mb: int, repeats: int) -> dict[str, Any]:
    from p2pfl.layout import Layout
    from p2pfl.mixing import is_finite, mix
    from p2pfl.network.buffers import BufferPool
    from p2pfl.network.http import HttpTransport
    from p2pfl.network.transport import Body, Link, Service, body_of
    from p2pfl.shell import single_thread

    single_thread()
    layout = Layout((("weight", (model_mb * 250_000,)),))
    before = resident_mb()
    reset_peak()
    pool = BufferPool()
    vector = layout.vector_in(pool.take(layout.framed_bytes).data)
    header = memoryview(layout.header)

    def body(token: str, peer: str) -> Body:
        return body_of(header, vector.numpy().view("uint8").data)

    async def accept(link: Link) -> None:
        await link.close("no control here")

    ports = (_PORT, _PORT + 1)
    transport = HttpTransport(("127.0.0.1",), ports[index])
    service = Service(accept, body, lambda token, peer, size: None, lambda: json.dumps({}).encode())
    figures: dict[str, Any] = {"transfer_s": [], "socket_s": [], "finite_s": [], "mix_s": [], "bytes": 0}
    async with transport.serving(service):
        for repeat in range(repeats + 1):  # the first one touches the pages
            buffer = pool.take(layout.framed_bytes)
            await asyncio.to_thread(barrier.wait)
            begun = time.perf_counter()
            await transport.fetch(f"127.0.0.1:{ports[1 - index]}", "model", "bench", buffer.data)
            transfer_s = time.perf_counter() - begun
            await asyncio.to_thread(barrier.wait)  # the other direction may still be under way
            received = layout.vector_in(buffer.data)
            begun = time.perf_counter()
            is_finite(received)
            finite_s = time.perf_counter() - begun
            mixed = layout.vector_in(pool.take(layout.framed_bytes).data)
            begun = time.perf_counter()
            mix(vector, 0.5, [(0.5, received)], mixed)
            mix_s = time.perf_counter() - begun
            del received, mixed
            await asyncio.to_thread(barrier.wait)
            outgoing = vector.numpy().view("uint8").data
            socket_s = await asyncio.to_thread(_by_sockets, index, barrier, outgoing, buffer.data)
            del buffer
            if repeat:
                figures["transfer_s"].append(transfer_s)
                figures["socket_s"].append(socket_s)
                figures["finite_s"].append(finite_s)
                figures["mix_s"].append(mix_s)
    figures |= {"bytes": layout.framed_bytes, "peak_mb": peak_mb() - before, "allocated": pool.allocated}
    return figures


def _by_sockets(index: int, barrier: Barrier, outgoing: memoryview, incoming: memoryview) -> float:
    """The same bytes both ways over one plain socket, sent and received by a thread each; into a touched buffer."""
    if index == 0:
        with socket.create_server(("127.0.0.1", _PORT + 2)) as server:
            barrier.wait()
            connection, _ = server.accept()
    else:
        barrier.wait()
        connection = socket.create_connection(("127.0.0.1", _PORT + 2))
    with connection:
        barrier.wait()
        begun = time.perf_counter()
        sender = threading.Thread(target=connection.sendall, args=(outgoing,))
        sender.start()
        position = 0
        while position < len(outgoing):
            position += connection.recv_into(incoming[position : position + _PIECE])
        seconds = time.perf_counter() - begun
        sender.join()
        barrier.wait()
    return seconds


def _trainer(index: int, barrier: Barrier, pipe: Connection, model_mb: int) -> None:
    """A whole peer with a model of this size, which trains one step a round."""
    import torch
    from torch import nn

    from p2pfl.events import RoundFinished, RunEvent
    from p2pfl.network.http import HttpTransport
    from p2pfl.peer import Peer, no_discovery
    from p2pfl.shell import single_thread

    single_thread()
    width = int((model_mb * 250_000) ** 0.5)
    torch.manual_seed(index)
    examples = (torch.randn(8, width), torch.randn(8, width))
    before = resident_mb()
    reset_peak()
    model = nn.Linear(width, width, bias=False)
    rounds: list[float] = []

    def take(event: RunEvent) -> None:
        if isinstance(event, RoundFinished):
            rounds.append(event.wall_time_s)

    ports = (_PORT + 3, _PORT + 4)
    peer = Peer(
        f"peer-{index}",
        model,
        examples,
        network="bench",
        seat=str(index),
        transport=HttpTransport(("127.0.0.1",), ports[index]),
        discovery=no_discovery,
        peers=(f"127.0.0.1:{ports[1 - index]}",),
        sinks=(take,),
    )
    peer.ask(rounds=5, batch_size=8, min_peers=2, lr=1e-6)
    barrier.wait()
    asyncio.run(peer.run())
    pipe.send({"peak_mb": peak_mb() - before, "round_s": rounds[1:]})
