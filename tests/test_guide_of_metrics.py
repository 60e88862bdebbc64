"""The guide to trust names every metric that a peer shows, with its labels, and no other."""

import re
from pathlib import Path

from p2pfl.events import Listening
from p2pfl.telemetry.metrics import Metrics

GUIDE = (Path(__file__).resolve().parents[1] / "examples" / "trust" / "README.md").read_text(encoding="utf-8")


def test_the_guide_names_all_metrics_with_their_labels() -> None:
    metrics = Metrics()
    metrics(Listening(peer="a" * 52, name="ann", seat="0", addresses=()))
    shown = {}
    for collector in metrics.registry._collector_to_names:
        for family in collector.collect():
            name = family.name + "_total" * (family.type == "counter")
            shown[name] = ",".join(getattr(collector, "_labelnames", ()))
    cells = re.findall(r"^\| (`(?:p2pfl|process)_[^|]*) \|", GUIDE, flags=re.MULTILINE)
    named = dict(re.findall(r"`(\w+)(?:\{([\w,]+)\})?`", " ".join(cells)))
    assert {name: labels for name, labels in named.items() if name.startswith("p2pfl_")} == {
        name: labels for name, labels in shown.items() if name.startswith("p2pfl_")
    }
    assert {name for name in shown if name.startswith("process_")} <= named.keys()
