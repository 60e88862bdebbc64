"""Three peers train while their network's key changes; then who holds the former key stays outside.

python examples/trust/rotation.py
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile

import p2pfl

NAMES = ("alice", "bob", "carol")
os.environ["P2PFL_HOME"] = tempfile.mkdtemp()  # so that your own networks stay as they are
missing: list[int] = []


def note(event: object) -> None:
    if type(event).__name__ == "RoundFinished":
        missing.append(event.missing)


def command(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "p2pfl.cli.app", *words], check=True, capture_output=True)
    return done.stdout.decode()


def peer(name: str, **more: object) -> p2pfl.Peer:
    data = p2pfl.load_data("mnist10k", part=(NAMES.index(name) + 1, len(NAMES)))
    model = p2pfl.build_model("logistic", data.input_shape, data.outputs)
    more |= {"network": "example", "interface": "127.0.0.1", "steps": 20, "min_peers": 3, "topology": "complete"}
    return p2pfl.Peer(name, model, data.train, data.test, **more)


async def main() -> None:
    former = p2pfl.create_network("example").key
    peers = [peer(name, sinks=(note,)) for name in NAMES]
    runs = [asyncio.create_task(one.run(rounds=0)) for one in peers]
    await asyncio.sleep(3)
    told = await asyncio.to_thread(command, "network", "rotate", "example", "--json")
    print(f"use the new key: {', '.join(name for name, took in json.loads(told)['running'].items() if took)}")
    await asyncio.to_thread(command, "network", "retire", "example")
    await asyncio.sleep(3)
    print(f"shares missing: {sum(missing)} in {len(missing) // 3} rounds")
    try:
        await peer("carol", key=former, wait_s=3).run(rounds=1)
    except p2pfl.P2pflError as error:
        print(f"with the former key: {error}")
    for one in peers:
        one.stop()
    print(f"accuracy {min(result.accuracy for result in await asyncio.gather(*runs)):.2f} at the least")


asyncio.run(main())
