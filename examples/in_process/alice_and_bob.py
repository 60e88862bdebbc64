"""Alice and Bob, two peers of one process, each with a lopsided half of MNIST, learn together.

python examples/in_process/alice_and_bob.py [ROUNDS]
"""

import sys

import p2pfl

rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5

network = p2pfl.LocalNetwork(topology="ring", seed=1)
for index, name in enumerate(["alice", "bob"]):
    data = p2pfl.load_data("mnist10k", part=(index + 1, 2), alpha=0.3, seed=1)
    digits = sorted(data.train.targets.bincount(minlength=10).topk(3).indices.tolist())
    print(f"{name} has {len(data.train)} digits, most of them {digits}")
    network.add(name, p2pfl.build_model("mlp", data.input_shape, data.outputs, seed=1), data.train, data.test)

results = network.run(rounds=rounds)

for name, result in results.items():
    print(f"{name}: accuracy {result.accuracy:.3f} on all digits after {result.round} rounds")
