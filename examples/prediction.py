"""How well the noise floor, known before any training, ranks topologies by what training makes of them.

python examples/prediction.py [digits|mnist10k] [rounds] [seeds]

Prints the predicted floor beside measured consensus distance and accuracy, and Spearman's rank correlation of each.
"""

import sys
import tempfile

import p2pfl
from p2pfl.analysis.measures import curves, settled
from p2pfl.analysis.statistics import spearman
from p2pfl.graphs import named
from p2pfl.graphs.prediction import Prediction

data = sys.argv[1] if len(sys.argv) > 1 else "digits"
rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 400
seeds = list(range(int(sys.argv[3]) if len(sys.argv) > 3 else 2))
PEERS = 25
TOPOLOGIES = ("star", "chain", "tree", "ring", "base:k=1", "random-matching", "one-peer-exponential", "base:k=2")
TOPOLOGIES += ("torus", "epidemic-oracle:s=4", "exponential", "exponential-symmetric")


def main() -> None:
    """Run every topology, and compare."""
    shared = {"data": data, "model": "mlp:hidden=32", "peers": PEERS, "alpha": 0.1, "batch_size": 16, "steps": 1}
    shared |= {"rounds": rounds, "evaluate_every": max(1, rounds // 4), "engine": "matrix"}
    with tempfile.TemporaryDirectory() as folder:
        rows = p2pfl.sweep(shared, {"topology": TOPOLOGIES, "seed": seeds}, out=folder)
        rows["settled"] = [settled(curves(p2pfl.load_run(run))["consensus_distance"]) for run in rows["folder"]]
    means = rows.groupby("topology")[["settled", "accuracy_mean"]].mean()
    floors = [Prediction(named.schedule(name, PEERS)).noise_floor.value for name in TOPOLOGIES]
    distances, accuracies = (means.loc[list(TOPOLOGIES), column].tolist() for column in means.columns)
    print(f"{data}, {PEERS} peers, alpha 0.1, {rounds} rounds, {len(seeds)} seeds")
    for name, floor, distance, accuracy in zip(TOPOLOGIES, floors, distances, accuracies, strict=True):
        print(f"{name:>22}  floor {floor:7.3f}  distance {distance:.5f}  accuracy {100 * accuracy:.1f} %")
    print(f"rank correlation with distance: {spearman(floors, distances).rho:.3f}")
    print(f"rank correlation with accuracy: {-spearman(floors, accuracies).rho:.3f}")


if __name__ == "__main__":
    main()
