"""Files that somebody else may have written: models, what is kept at home, topologies."""

import os
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from message_targets import ASKED, KEY, NETWORK, THEM, US

from p2pfl.errors import ModelError, RecipeError, TopologyError, UsageError


@cache
def scratch() -> Path:
    """A folder in memory where there is one: files are written a million times."""
    memory = Path("/dev/shm")
    folder = tempfile.mkdtemp(prefix="p2pfl-fuzz-", dir=memory if os.access(memory, os.W_OK) else None)
    os.environ["P2PFL_HOME"] = folder
    return Path(folder)


@cache
def a_layout() -> Any:
    from p2pfl.layout import Layout

    return Layout((("0.weight", (2, 2)), ("0.bias", (2,))))


def feed_model_file(data: bytes) -> None:
    from p2pfl.checkpoint import Generations
    from p2pfl.model_files import read_checkpoint, read_facts, read_vector

    path = scratch() / "model.safetensors"
    path.write_bytes(data)
    for read in (read_facts, read_checkpoint, lambda path: read_vector(path, a_layout())):
        with suppress(ModelError):
            read(path)
    with suppress(ModelError):
        Generations(path, lambda text: None).newest()


def model_file_seeds() -> list[bytes]:
    import torch

    from p2pfl.model_files import Checkpoint, ModelFacts, save_model

    path, found = scratch() / "seed.safetensors", []
    vector = torch.arange(6, dtype=torch.float32)
    checkpoint = Checkpoint(
        peer=US.peer, seat="0", name="ann", network=NETWORK, incarnation=1, round=2, settings=dict(ASKED)
    )
    for facts in (ModelFacts(model="mlp", input_shape=(2,), outputs=2, task="classes"), checkpoint):
        save_model(path, vector, a_layout(), facts)
        found.append(path.read_bytes())
    path.unlink()
    return found


def feed_home(data: bytes) -> None:
    """The first byte says which file it is."""
    from p2pfl import home

    scratch()
    folder = home.folder_of(NETWORK)
    names = ("ring.json", "key", "peers.json", "identities/bob.json")
    for name in names:
        (folder / name).unlink(missing_ok=True)
    path = folder / names[(data[:1] or b"\0")[0] % len(names)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data[1:])
    for look in (home.ring_of, home.identities, home.peers_of):
        with suppress(UsageError):
            look(NETWORK)  # type: ignore[operator]  # each takes a network's name


def home_seeds() -> list[bytes]:
    ring = {"key": KEY.token, "epoch": 1, "former": [KEY.token], "banned": [THEM.peer]}
    identity = {"peer": THEM.peer, "secret": THEM.secret, "starts": 2}
    known = [{"peer": THEM.peer, "name": "bob", "addresses": ["10.0.0.2:7470"]}]
    return [
        b"\0" + msgspec.json.encode(ring),
        b"\1" + KEY.token.encode() + b"\n",
        b"\2" + msgspec.json.encode(known),
        b"\3" + msgspec.json.encode(identity),
    ]


def feed_topology_file(data: bytes) -> None:
    """The first byte says of which kind it is."""
    from p2pfl.topology_files import load_topology

    kinds = (".toml", ".graphml", ".txt")
    path = scratch() / f"topology{kinds[(data[:1] or bytes(1))[0] % len(kinds)]}"
    path.write_bytes(data[1:])
    with suppress(TopologyError, RecipeError):
        load_topology(str(path), None)


def topology_file_seeds() -> list[bytes]:
    graphml = (
        b'<graphml xmlns="http://graphml.graphdrawing.org/xmlns"><graph edgedefault="undirected">'
        b'<node id="0"/><node id="1"/><edge source="0" target="1"/></graph></graphml>'
    )
    return [
        b'\0name = "three"\nedges = [[0, 1], [1, 2]]\n',
        b'\0name = "way"\narcs = [["a", "b"], ["b", "a"]]\nnodes = ["a", "b"]\ndirected = true\n',
        b'\0name = "two"\nnodes = 2\nedges = [[0, 1]]\nweights = [[0.5, 0.5], [0.5, 0.5]]\n',
        b"\1" + graphml,
        b"\2# a ring\n0 1\n1 2\n2 0 {}\n",
    ]
