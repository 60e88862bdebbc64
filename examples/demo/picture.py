"""Draw a run of `p2pfl demo`: who holds which digits, and how well each peer does alone and together.

python examples/demo/picture.py runs/demo-… picture.png
"""

import sys

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt

import p2pfl

run, out = p2pfl.load_run(sys.argv[1]), sys.argv[2]
colors = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#999999"]
counts = run.partition.pivot(index="peer", columns="label", values="count").loc[run.partition["peer"].unique()]
accuracy = run.metrics.pivot(index="round", columns="peer", values="test_accuracy") * 100

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), width_ratios=(1, 1.35), layout="constrained")
left.imshow(counts, cmap="Greys", aspect="auto")
for y, row in enumerate(counts.to_numpy()):
    for x, count in enumerate(row):
        left.text(x, y, count, ha="center", va="center", fontsize=7, color="white" if count > 350 else "black")
left.set(title="What each peer holds", xlabel="digit", xticks=range(len(counts.columns)), xticklabels=counts.columns)
left.set(yticks=range(len(counts)), yticklabels=counts.index)

for color, peer in zip(colors, counts.index, strict=False):
    right.plot(accuracy.index + 1, accuracy[peer], color=color, label=peer)
    right.plot(len(accuracy) + 0.6, 100 * run.summary["alone_by_peer"][peer], "x", color=color, clip_on=False)
right.axhline(100 * run.summary["pooled"]["mean"], color="black", linestyle="--", linewidth=1)
right.text(1, 100 * run.summary["pooled"]["mean"] + 1, "all data in one place", fontsize=8)
right.text(len(accuracy) + 0.2, 100 * run.summary["alone"]["mean"], "each alone", fontsize=8, ha="right", va="center")
right.set(title=f"Together, on a {run.summary['topology']}", xlabel="round", ylabel="test accuracy, %", ylim=(35, 100))
right.legend(loc="lower center", ncols=5, fontsize=8, frameon=False, columnspacing=1.2)
figure.savefig(out, dpi=120)
print(f"wrote {out}: mean accuracy {100 * run.summary['accuracy']['mean']:.1f} %")
