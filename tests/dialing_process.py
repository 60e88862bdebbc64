"""A script for hosts of their own: `serve` listens on all of the host, `dial ADDRESS…` says where it got through."""

import asyncio
import json
import sys
import time

from p2pfl.errors import LinkClosed, Unreachable
from p2pfl.network.dialing import connect_to_any
from p2pfl.network.http import HttpTransport
from p2pfl.network.interfaces import listening_hosts
from p2pfl.network.transport import Link, Service

PORT = 7700


async def serve() -> None:
    """Accept connections until standard input ends."""
    transport = HttpTransport(listening_hosts(), PORT)
    async with transport.serving(_service()):
        print(json.dumps({"listening": transport.port}), flush=True)
        await asyncio.to_thread(sys.stdin.read)


async def dial(addresses: list[str]) -> None:
    """Connect to the first that answers, and tell how long it took."""
    transport = HttpTransport(("127.0.0.1",), None)
    async with transport.serving(_service()):
        began = time.monotonic()
        try:
            link = await connect_to_any(transport, addresses)
        except Unreachable as error:
            print(json.dumps({"failed": str(error), "refused": error.refused, "took_s": time.monotonic() - began}))
            return
        print(json.dumps({"remote": link.remote, "took_s": time.monotonic() - began}))
        await link.close("done")


def _service() -> Service:
    async def accept(link: Link) -> None:
        try:
            while True:
                await link.receive()
        except LinkClosed:
            return

    return Service(accept, lambda token, peer: None, lambda token, peer, count: None, lambda: b"{}")


if __name__ == "__main__":
    asyncio.run(serve() if sys.argv[1] == "serve" else dial(sys.argv[2:]))
