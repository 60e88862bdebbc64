"""A peer's transport in a process that may hold few descriptors; run as a child, told what to do line by line.

python limited_process.py plain|tls LIMIT
fill     take every descriptor that is left       → {"taken": N}
free     give them back                           → {"taken": 0}
report   who was turned away, CPU seconds so far  → {"turned": {reason: N}, "cpu_s": S, "inside": N}
"""

import asyncio
import json
import os
import resource
import sys
import time
from collections import Counter
from contextlib import suppress

from p2pfl.identity import Identity
from p2pfl.network.http import HttpTransport, Limits
from p2pfl.network.tls import Credentials
from p2pfl.network.transport import Body, Link, Service, Turned
from p2pfl.network_key import KeyRing, NetworkKey


async def _serve(secure: bool) -> None:
    turned: Counter[str] = Counter()
    taken: list[int] = []

    async def accept(link: Link) -> None:
        await link.close("not here")

    def body(token: str, peer: str) -> Body | None:
        return None

    def count(who: Turned) -> None:
        turned[who.reason] += 1

    proof = Credentials(Identity(b"\x01" * 32), KeyRing(NetworkKey("oak", b"k" * 32))) if secure else None
    transport = HttpTransport(("127.0.0.1",), 0, limits=Limits(idle_s=60), credentials=proof)
    async with transport.serving(Service(accept, body, lambda *_: None, lambda: b"{}", count)):
        print(json.dumps({"port": transport.port}), flush=True)
        while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
            if line == "fill":
                with suppress(OSError):
                    while True:
                        taken.append(os.open(os.devnull, os.O_RDONLY))
            while line == "free" and taken:
                os.close(taken.pop())
            if line == "report":
                print(json.dumps({"turned": turned, "cpu_s": time.process_time(), "admitted": transport.admitted}))
            else:
                print(json.dumps({"taken": len(taken)}))
            sys.stdout.flush()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]),) * 2)
    asyncio.run(_serve(sys.argv[1] == "tls"))
