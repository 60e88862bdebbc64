"""A process that serves a status as a member of a network, and announces itself; a script, and what starts it."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from namespaces import Host

_ROOT = Path(__file__).resolve().parents[1]


def member_on(host: Host, token: str, port: int, announced_port: int = 0) -> "subprocess.Popen[str]":
    """A member on a host, there once this returns; it ends with the host.

    Args:
        announced_port: what others are told, where it is not where it listens.
    """
    settings = {"token": token, "port": port, "announced_port": announced_port or port}
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    command = [sys.executable, __file__, json.dumps(settings)]
    process = host.start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


async def run(settings: dict[str, Any]) -> None:
    """Serve and announce until standard input ends."""
    from p2pfl.identity import Identity
    from p2pfl.network.discovery import Announcement, ignore
    from p2pfl.network.http import HttpTransport
    from p2pfl.network.mdns import MdnsDiscovery
    from p2pfl.network.tls import Credentials
    from p2pfl.network.transport import Link, Service
    from p2pfl.network_key import KeyRing, NetworkKey
    from p2pfl.protocol.messages import VERSIONS

    async def accept(link: Link) -> None:
        await link.close("nothing to say")

    key = NetworkKey.of_token(settings["token"])
    credentials = Credentials(Identity(os.urandom(32)), KeyRing(key))
    service = Service(accept, lambda token, peer: None, lambda token, peer, size: None, lambda: b"{}")
    transport = HttpTransport(("0.0.0.0",), settings["port"], credentials=credentials)
    async with transport.serving(service), MdnsDiscovery(None, ignore, ignore) as discovery:
        address = f"0.0.0.0:{settings['announced_port']}"
        await discovery.announce(Announcement(key.alias(credentials.peer), key.tag, (address,), VERSIONS[1]))
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(run(json.loads(sys.argv[1])))
