"""A script for hosts of their own: `serve` listens on all of the host, `dial ADDRESS…` says where it got through."""

import asyncio
import json
import os
import sys
import time

from p2pfl.errors import LinkClosed, Unreachable
from p2pfl.identity import Identity
from p2pfl.network.dialing import connect_to_any
from p2pfl.network.http import HttpTransport
from p2pfl.network.interfaces import listening_hosts
from p2pfl.network.tls import Credentials
from p2pfl.network.transport import Link, Service
from p2pfl.network_key import KeyRing, NetworkKey

PORT = 7700


async def serve() -> None:
    """Accept connections until standard input ends."""
    transport = HttpTransport(listening_hosts(), PORT, credentials=_credentials())
    async with transport.serving(_service()):
        print(json.dumps({"listening": transport.port}), flush=True)
        await asyncio.to_thread(sys.stdin.read)


async def dial(addresses: list[str]) -> None:
    """Connect to the first that answers, and tell how long it took."""
    transport = HttpTransport(("127.0.0.1",), None, credentials=_credentials())
    async with transport.serving(_service()):
        began = time.monotonic()
        try:
            link = await connect_to_any(transport, addresses)
        except Unreachable as error:
            print(json.dumps({"failed": str(error), "refused": error.refused, "took_s": time.monotonic() - began}))
            return
        print(json.dumps({"remote": link.remote, "proven": link.proven, "took_s": time.monotonic() - began}))
        await link.close("done")


def _credentials() -> Credentials:
    """Of a member, another one in each process."""
    return Credentials(Identity(os.urandom(32)), KeyRing(NetworkKey("dialing", bytes(32))))


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
