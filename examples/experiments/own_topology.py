"""A topology of your own from networkx: what to expect of it, and what training makes of it.

python examples/experiments/own_topology.py [rounds]
"""

import sys

import networkx as nx

import p2pfl
from p2pfl.graphs.prediction import Prediction
from p2pfl.graphs.schedule import Schedule

rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 200
graph = nx.connected_caveman_graph(4, 4)  # four villages of four, one road from each to the next
graph.name = "villages"
topology = p2pfl.Topology.from_networkx(graph)

expected = Prediction(Schedule.of(topology))
print(f"{topology.name}: {topology.nodes} peers, {len(topology.edges)} edges, gap {expected.spectral_gap:.4f}")
print(f"noise floor {expected.noise_floor.value:.3f}")

shared = {"data": "digits", "model": "mlp:hidden=32", "alpha": 0.1, "peers": 16, "steps": 1, "rounds": rounds}
for name in (topology, "ring", "torus"):
    run = p2pfl.simulate(topology=name, evaluate_every=rounds, **shared)
    called = name if isinstance(name, str) else name.name
    figures = run.summary
    print(f"{called}: accuracy {figures['accuracy']['mean']:.3f}, distance {figures['consensus_distance']:.4f}")
