"""Convergence of any run, live or simulated: measured beside predicted.

python examples/experiments/convergence.py runs/… picture.png [target]
"""

import sys
from pathlib import Path

import p2pfl
from p2pfl.analysis import consensus, figures, measures, overview, style
from p2pfl.analysis.measured import schedule_of

run, out = p2pfl.load_run(sys.argv[1]), Path(sys.argv[2])
target = float(sys.argv[3]) if len(sys.argv) > 3 else 0.8
curve = measures.curves(run)

facts = overview.of_run(run, curve, target)
print(overview.title(run))
print(overview.readable(facts).to_string(index=False, header=False))

schedule = schedule_of(run)
predicted = consensus.predicted_distance(schedule, curve["neighbor_distance"].tolist()) if schedule else None
style.save(figures.consensus(curve, ["rounds"], predicted), out)
print(f"wrote {out}")

if predicted is not None and facts["consensus_distance_settled"]:
    ratio = facts["consensus_distance_settled"] / measures.settled(curve["rounds"] * 0.0 + predicted)
    print(
        f"measured over predicted consensus distance: {ratio:.2f} (above 1: drift that lasts, as lopsided data cause)"
    )
