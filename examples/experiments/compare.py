"""Topologies side by side on the same lopsided digits: what they reach, and what theory said before.

python examples/experiments/compare.py [picture.png] [rounds]
"""

import sys
from pathlib import Path

import p2pfl
from p2pfl.analysis import plates, style, tables
from p2pfl.analysis.study import study

out = Path(sys.argv[1] if len(sys.argv) > 1 else "compare.png")
rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 200

shared = {"data": "digits", "model": "mlp:hidden=32", "alpha": 0.1, "peers": 16, "steps": 1, "batch_size": 16}
runs = [
    p2pfl.simulate(topology=topology, rounds=rounds, evaluate_every=max(1, rounds // 20), seed=seed, **shared)
    for topology in ("ring", "torus", "one-peer-exponential", "complete")
    for seed in (0, 1)
]

found = study(runs)
table = tables.comparison_table(found)
print(tables.readable(table, ["topology"], ["accuracy", "worst", "consensus_distance", "noise_floor"]).to_string())
for agreement in found.agreements():
    print(f"Spearman's rho of noise floor and consensus distance: {agreement.distance.rho:.2f}")

accuracy = plates.of_study(found)[""][0]
style.save(accuracy.figure, out)
print(f"wrote {out}: {accuracy.caption}")
