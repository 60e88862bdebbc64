"""Averaging with failures: the table of Ryabinin et al., "Moshpit SGD", 2021, measured beside the published figures.

python examples/averaging_with_failures.py [RESTARTS]

N(0,1) numbers, rounds until their variance is below 1e-9, in brackets 1e-4, at most 50. Read as its authors ran it:
- all-reduce: one failure voids the round for all; (1 − (1−q)^50) / q rounds with q = (1−p)^n, the column "formula";
- groups: those who are there are dealt into ⌊there/32⌋ random groups, the remainder one each to the first of them;
- Moshpit: peers on cells of 32 × 32 drawn at random, which 512, 768 or 900 of them do not fill; rows and columns take
  turns, and each averages those who are there. The published 10 restarts share one draw of the cells, ours do not;
- gossip on a ring: weights 1/3; who fails neither sends nor receives;
- push-sum: the source's graph is not told and its rows are normalized, so that the sum is not kept. Ours keeps it, on
  the directed exponential graph: reported, not compared.
"""

import sys

from p2pfl.simulation.scalars import Averaging, average

PUBLISHED = {  # (peers, failure): all-reduce, groups and Moshpit, below 1e-9 and below 1e-4
    (512, 0.0): ((1.0, 1.0), (6.1, 3.0), (8.2, 3.6)),
    (512, 0.005): ((10.9, 10.9), (6.3, 3.0), (8.8, 3.9)),
    (768, 0.0): ((1.0, 1.0), (6.2, 3.0), (6.0, 3.0)),
    (900, 0.0): ((1.0, 1.0), (6.4, 3.0), (5.0, 2.9)),
    (900, 0.01): ((50.0, 50.0), (7.0, 3.1), (6.5, 3.0)),
}
restarts = int(sys.argv[1]) if len(sys.argv) > 1 else 1000


def run(scheme: str, peers: int, failure: float, restarts: int, topology: str = "ring") -> Averaging:
    return average(scheme, topology, peers=peers, rounds=50, failure=failure, restarts=restarts, until=1e-9)


def shown(result: Averaging) -> str:
    return f"{result.rounds_below(1e-9).mean():5.2f} ({result.rounds_below(1e-4).mean():5.2f})"


print("peers failure | all-reduce ± error  formula  z published | groups of 32  published | Moshpit 32×32 published |")
worst = 0.0
for (peers, failure), (voided, groups, moshpit) in PUBLISHED.items():
    rounds = run("all-reduce", peers, failure, restarts).rounds_below(1e-9)
    q = (1 - failure) ** peers
    formula, error = (1 - (1 - q) ** 50) / q, rounds.std() / restarts**0.5
    z = (rounds.mean() - formula) / error if error else 0.0
    line = f"{peers:5} {failure:7} | {rounds.mean():10.3f} ± {error:.3f} {formula:8.3f} {z:+.1f} {voided[0]:9.1f} |"
    for scheme, published in (("groups:size=32", groups), ("moshpit:size=32,dims=2", moshpit)):
        result = run(scheme, peers, failure, restarts)
        line += f" {shown(result)}  {published[0]} ({published[1]}) |"
        for threshold, there in zip((1e-9, 1e-4), published, strict=True):
            ours = result.rounds_below(threshold)
            worst = max(worst, abs(ours.mean() - there) / max(0.1 * there, ours.std() / 10**0.5))
    others = run("gossip", peers, failure, 5), run("push-sum", peers, failure, 50, "exponential")
    print(f"{line} ring {shown(others[0])}, push-sum on the exponential graph {shown(others[1])}")
print(f"largest distance of groups and Moshpit: {worst:.2f} × the larger of 10 % and the published error")
