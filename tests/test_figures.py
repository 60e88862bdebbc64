"""Figures: what stands in them, in which files, and that they leave matplotlib as it was."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from recorded import recorded

from p2pfl.analysis import figures, plates, style
from p2pfl.analysis.consensus import predicted_distance
from p2pfl.analysis.measured import schedule_of
from p2pfl.analysis.measures import curves
from p2pfl.analysis.study import study
from p2pfl.errors import DataError, UsageError


@pytest.fixture(scope="module")
def curve() -> pd.DataFrame:
    return curves(recorded("ring", rounds=20))


def drawn(figure: Figure) -> dict[str, np.ndarray]:
    """The lines of the first panel by their label: [points, 2]."""
    return {line.get_label(): np.array(line.get_xydata()) for line in figure.axes[0].get_lines()}


def test_accuracy_is_drawn_in_percent_against_rounds(curve: pd.DataFrame) -> None:
    lines = drawn(figures.against({"ring": curve, "other": curve}, "accuracy", ["rounds"]))
    assert lines["ring"][:, 0].tolist() == list(range(1, 21))
    assert lines["ring"][:, 1].tolist() == pytest.approx(list(100 * curve["accuracy"]))


@pytest.mark.parametrize(
    ("cost", "label", "unit"), [("bytes", "sent by a peer, MB", 1e6), ("wall_s", "wall time, s", 1)]
)
def test_costs_are_drawn_in_their_units(curve: pd.DataFrame, cost: str, label: str, unit: float) -> None:
    figure = figures.against({"ring": curve}, "accuracy", [cost])
    assert figure.axes[0].get_xlabel() == label
    assert drawn(figure)["ring"][-1, 0] == pytest.approx(curve[cost].iloc[-1] / unit)


def test_a_panel_a_cost_and_one_scale_of_accuracy(curve: pd.DataFrame) -> None:
    figure = figures.against({"ring": curve}, "accuracy", ["rounds", "bytes", "simulated_s"])
    assert [axes.get_xlabel() for axes in figure.axes] == ["rounds", "sent by a peer, MB", "simulated time, s"]
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    assert figure.get_size_inches()[0] == style.PAGE


def test_references_are_lines_across(curve: pd.DataFrame) -> None:
    lines = drawn(figures.against({"ring": curve}, references={"alone": 0.2, "pooled": 0.98}))
    assert set(lines["each alone"][:, 1]) == {20}
    assert set(lines["all data in one place"][:, 1]) == {98}


def test_bands_are_one_standard_deviation(curve: pd.DataFrame) -> None:
    spread = curve * 0 + 0.05
    figure = figures.against({"ring": curve}, stds={"ring": spread})
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    first = band[band[:, 0] == 1, 1]
    assert first.max() - first.min() == pytest.approx(10)


def test_consensus_is_logarithmic_and_its_band_stays_above_zero(curve: pd.DataFrame) -> None:
    figure = figures.against({"ring": curve}, "consensus_distance", stds={"ring": curve * 10})
    assert figure.axes[0].get_yscale() == "log"
    assert figure.axes[0].collections[0].get_paths()[0].vertices[:, 1].min() > 0


def test_a_line_has_its_color_in_every_figure_even_where_another_has_no_place(curve: pd.DataFrame) -> None:
    exact = curve.assign(consensus_distance=1e-30)
    both = {"complete": exact, "ring": curve}
    lines = [figures.against(both, column).axes[0].get_lines() for column in ("accuracy", "consensus_distance")]
    looks = [{line.get_label(): line.get_color() for line in of} for of in lines]
    assert set(looks[1]) == {"ring"}
    assert looks[0]["ring"] == looks[1]["ring"]


def test_what_nobody_measured_is_told(curve: pd.DataFrame) -> None:
    nothing = curve.assign(accuracy=np.nan, neighbor_distance=np.nan, consensus_distance=np.nan)
    with pytest.raises(DataError, match="none of the runs measured accuracy"):
        figures.against({"ring": nothing})
    with pytest.raises(DataError, match="measured no accuracy"):
        figures.one_run(nothing, ["rounds"])
    with pytest.raises(DataError, match="no distance between models"):
        figures.consensus(nothing, ["rounds"])
    with pytest.raises(DataError, match="no topology has a noise floor"):
        figures.prediction({"ring": (np.nan, 1.0, 0.5)})


def test_one_run_shows_the_averaged_model_beside_mean_and_worst(curve: pd.DataFrame) -> None:
    assert list(drawn(figures.one_run(curve, ["rounds"]))) == ["averaged model", "mean over peers", "worst peer"]
    large = drawn(figures.one_run(curve.assign(peers=25, mean_model_accuracy=np.nan), ["rounds"]))
    assert list(large) == ["mean over peers", "5th percentile", "worst peer"]


def test_prediction_stands_beside_measured_distance(curve: pd.DataFrame) -> None:
    schedule = schedule_of(recorded("ring", rounds=1))
    assert schedule is not None
    predicted = predicted_distance(schedule, curve["neighbor_distance"].tolist())
    lines = drawn(figures.consensus(curve, ["rounds"], predicted))
    assert list(lines) == ["neighbors before mixing", "Ξ² after mixing", "Ξ² predicted"]
    assert lines["Ξ² predicted"][:, 1] == pytest.approx(predicted)


def test_groups_are_ranked_from_top_to_bottom() -> None:
    figure = figures.ranking({"torus": (0.94, 0.01, 0.9), "ring": (0.92, None, 0.8)})
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["torus", "ring"]
    assert figure.axes[0].yaxis_inverted()


def test_topologies_without_a_floor_are_left_out_of_the_prediction() -> None:
    points = {"ring": (2.5, 0.05, 0.92), "torus": (0.3, 0.004, 0.94), "random": (np.nan, 0.01, 0.93)}
    figure = figures.prediction(points)
    assert figure.axes[0].get_xscale() == figure.axes[0].get_yscale() == "log"
    assert {"ring", "torus"} <= set(drawn(figure))
    assert "random" not in drawn(figure)


def test_exact_consensus_has_no_place_on_a_logarithm_but_keeps_its_accuracy() -> None:
    figure = figures.prediction({"ring": (2.5, 0.05, 0.92), "torus": (0.3, 0.0, 0.94)})
    assert "torus" not in drawn(figure)
    assert "torus" in {line.get_label() for line in figure.axes[1].get_lines()}


def test_the_split_shows_every_count() -> None:
    split = pd.DataFrame([("a", "x", 3), ("b", "y", 40), ("b", "x", 0)], columns=["peer", "label", "count"])
    figure = figures.label_split(split, ["b", "a"])
    assert figure.axes[0].images[0].get_array().tolist() == [[0, 40], [3, 0]]
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["3", "40"]


def test_a_large_split_is_a_picture_without_numbers() -> None:
    split = pd.DataFrame([(str(i), "x", i) for i in range(100)], columns=["peer", "label", "count"])
    assert not figures.label_split(split, [str(i) for i in range(100)]).axes[0].texts


def test_no_two_of_thirty_lines_look_alike() -> None:
    looks = [style.line(index) for index in range(30)]
    assert len({(look["color"], look["marker"], str(look["linestyle"])) for look in looks}) == 30
    assert all(looks[i]["linestyle"] != looks[i + 1]["linestyle"] for i in range(29))


def test_colors_stay_apart_for_a_reader_without_green_cones() -> None:
    # Linear RGB to what a deuteranope sees (Viénot, Brettel and Mollon, 1999).
    seen_as = np.array([[0.29275, 0.70725, -0.02234], [0.29275, 0.70725, 0.02234], [0, 0, 1]])
    seen = [np.clip(seen_as @ np.array(to_rgb(color)) ** 2.2, 0, 1) ** (1 / 2.2) for color in style.COLORS]
    apart = [float(np.linalg.norm(a - b)) for at, a in enumerate(seen) for b in seen[:at]]
    assert min(apart) > 0.15


@pytest.mark.parametrize(("suffix", "begin"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_same_figure_is_the_same_file(tmp_path: Path, curve: pd.DataFrame, suffix: str, begin: bytes) -> None:
    written = [
        style.save(figures.against({"ring": curve}), tmp_path / str(at) / f"accuracy.{suffix}").read_bytes()
        for at in range(2)
    ]
    assert written[0].startswith(begin)
    assert written[0] == written[1]


def test_an_unknown_format_is_told(tmp_path: Path, curve: pd.DataFrame) -> None:
    with pytest.raises(UsageError, match=r"end it in \.png, \.svg, \.pdf"):
        style.save(figures.against({"ring": curve}), tmp_path / "accuracy.gif")


def test_drawing_leaves_the_settings_of_the_process_alone(curve: pd.DataFrame) -> None:
    before = dict(mpl.rcParams)
    figures.against({"ring": curve})
    assert dict(mpl.rcParams) == before


def test_one_run_gets_its_plates() -> None:
    run = recorded("ring", rounds=6)
    found = plates.of_run(run, curves(run))
    assert [plate.name for plate in found] == [
        "accuracy",
        "consensus",
        "network",
        "mixing-matrix",
        "spectrum",
        "labels",
    ]
    assert all(plate.caption.endswith(".") for plate in found)


def test_a_study_gets_a_set_of_plates_for_each_block() -> None:
    runs = [recorded(t, rounds=6, alpha=a) for t in ("ring", "star", "complete") for a in (0.1, 10.0)]
    found = plates.of_study(study(runs))
    assert list(found) == ["alpha = 0.1", "alpha = 10"]
    names = [plate.name for plate in found["alpha = 0.1"]]
    assert names == ["accuracy-alpha-0.1", "ranking-alpha-0.1", "consensus-alpha-0.1", "prediction-alpha-0.1"]


def test_a_reference_as_a_run_has_no_network_to_draw() -> None:
    found = plates.of_network(recorded("ring", rounds=2, algorithm="alone"))
    assert [plate.name for plate in found] == ["labels"]


def test_costs_prefer_simulated_seconds() -> None:
    assert figures.costs_of([curves(recorded(rounds=3))]) == ["rounds", "bytes", "simulated_s"]
    live = curves(recorded(rounds=3, simulated=False))
    assert figures.costs_of([live]) == ["rounds", "bytes", "wall_s"]
    assert figures.costs_of([live], wall=False) == ["rounds", "bytes"]


def test_dollars_in_names_are_no_mathematics(tmp_path: Path, curve: pd.DataFrame) -> None:
    name = r"a$\frac$b.graphml"
    drawn = [figures.against({name: curve, "ring": curve}, "consensus_distance", ("rounds",))]
    drawn += [figures.ranking({name: (0.5, 0.1, 0.2), "ring": (0.4, 0.0, 0.1)}, {})]
    for at, figure in enumerate(drawn):
        assert style.save(figure, tmp_path / f"{at}.png").stat().st_size > 1000
        assert style.save(figure, tmp_path / f"{at}.png").stat().st_size > 1000  # and again, with ticks that are there
