"""p2pfl: a peer-to-peer decentralized learning network.

Peers find each other on the LAN, train a PyTorch model on data that never leaves them, and average weights with their
neighbors on a topology you choose. No server.

    import p2pfl

    data = p2pfl.load_data("mnist10k", part=(1, 2))
    peer = p2pfl.Peer("alice", p2pfl.build_model("mlp", data.input_shape, data.outputs), data.train, data.test)
    print(peer.run_sync(rounds=5).accuracy)

Or many peers, simulated on one machine by the same code:

    print(p2pfl.simulate(topology="torus", peers=64, alpha=0.1).summary["accuracy"])
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2pfl.analysis.runs import Run, load_run
    from p2pfl.errors import P2pflError
    from p2pfl.graphs.topology import Topology
    from p2pfl.home import create_network, join_network
    from p2pfl.learning.data import Data, load_data
    from p2pfl.learning.learner import Learner, TorchLearner
    from p2pfl.learning.models import build_model
    from p2pfl.local import LocalNetwork
    from p2pfl.model_files import load_model
    from p2pfl.peer import Peer, Result
    from p2pfl.recipe import Recipe
    from p2pfl.simulation.scalars import average
    from p2pfl.simulation.simulate import simulate
    from p2pfl.simulation.simulated_run import SimulatedRun
    from p2pfl.simulation.sweep import sweep
    from p2pfl.topology_files import load_topology

# Names are imported when first used: the command line starts without torch.
_HOMES = {
    "Data": "p2pfl.learning.data",
    "Learner": "p2pfl.learning.learner",
    "LocalNetwork": "p2pfl.local",
    "P2pflError": "p2pfl.errors",
    "Peer": "p2pfl.peer",
    "Recipe": "p2pfl.recipe",
    "Result": "p2pfl.peer",
    "Run": "p2pfl.analysis.runs",
    "SimulatedRun": "p2pfl.simulation.simulated_run",
    "Topology": "p2pfl.graphs.topology",
    "TorchLearner": "p2pfl.learning.learner",
    "average": "p2pfl.simulation.scalars",
    "build_model": "p2pfl.learning.models",
    "create_network": "p2pfl.home",
    "join_network": "p2pfl.home",
    "load_data": "p2pfl.learning.data",
    "load_model": "p2pfl.model_files",
    "load_run": "p2pfl.analysis.runs",
    "load_topology": "p2pfl.topology_files",
    "simulate": "p2pfl.simulation.simulate",
    "sweep": "p2pfl.simulation.sweep",
}

__all__ = [
    "Data",
    "Learner",
    "LocalNetwork",
    "P2pflError",
    "Peer",
    "Recipe",
    "Result",
    "Run",
    "SimulatedRun",
    "Topology",
    "TorchLearner",
    "average",
    "build_model",
    "create_network",
    "join_network",
    "load_data",
    "load_model",
    "load_run",
    "load_topology",
    "simulate",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'p2pfl' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
