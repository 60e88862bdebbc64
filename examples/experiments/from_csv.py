"""A convergence study from nothing but the metrics.csv of a run: pandas for the figures, matplotlib for the picture.

python examples/experiments/from_csv.py runs/…/metrics.csv picture.png
"""

import sys

import pandas as pd
from matplotlib.figure import Figure

if len(sys.argv) != 3:
    sys.exit(__doc__)
rows = pd.read_csv(sys.argv[1], dtype={"peer": str})
evaluated = rows.dropna(subset=["test_accuracy"])
accuracy = evaluated.groupby("round")["test_accuracy"].agg(["mean", "min", "max"]) * 100
sent = rows.groupby("round")["bytes_sent"].mean().cumsum() / 1e6

figure = Figure(figsize=(6.4, 2.6), layout="constrained")
left, right = figure.subplots(1, 2)
left.plot(accuracy.index + 1, accuracy["mean"], color="#0072B2", label="mean over peers")
left.fill_between(accuracy.index + 1, accuracy["min"], accuracy["max"], color="#0072B2", alpha=0.2, label="all peers")
left.set(xlabel="rounds", ylabel="test accuracy, %")
left.legend(loc="lower right", frameon=False)
if rows["consensus_distance"].notna().any():
    distance = rows.groupby("round")["consensus_distance"].mean()
    right.set_ylabel("consensus distance")
else:  # a live network: no process saw all models
    distance = rows.groupby("round")["neighbor_distance"].mean()
    right.set_ylabel("distance² to neighbors")
right.semilogy(sent, distance, color="#D55E00")
right.set(xlabel="sent by a peer, MB")
figure.savefig(sys.argv[2], dpi=150)

rising = accuracy["mean"].idxmax()
print(f"best mean accuracy {accuracy['mean'].max():.1f} % after round {rising + 1}, {sent[rising]:.2f} MB a peer")
print(f"wrote {sys.argv[2]}")
