"""`p2pfl topology list`, `show`, `compare` and `plot`: what is printed, what is drawn, and what is refused."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from p2pfl.analysis import drawing
from p2pfl.cli import app
from p2pfl.graphs.mixing import mixing_matrix
from p2pfl.graphs.named import NAMES, build, schedule
from p2pfl.graphs.prediction import Prediction, predict
from p2pfl.topology_files import list_files

Run = Callable[..., tuple[int, str, str]]

KEYS = {"peers", "edges", "degree", "diameter", "spectral_gap", "singular_gap", "effective_neighbors", "exact_rounds"}
EVERY = [
    "ring",
    "chain",
    "star",
    "complete",
    "grid",
    "torus",
    "hypercube",
    "exponential",
    "exponential-symmetric",
    "random-regular",
    "erdos-renyi",
    "small-world",
    "barabasi-albert",
    "tree",
    "barbell",
    "equi-static",
    "one-peer-exponential",
    "one-peer-hypercube",
    "base",
    "random-matching",
    "epidemic-oracle",
    "epidemic-local",
    "equi-dynamic",
    "moshpit",
]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs `p2pfl topology …` in this process, in a folder of its own: (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, columns: int = 100) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["p2pfl", "topology", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as left:
            app.main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return run


def printed(run: Run, *arguments: object) -> str:
    code, out, _ = run(*arguments)
    assert code == 0
    return " ".join(out.split())


def report(run: Run, *arguments: object) -> dict[str, Any]:
    code, out, _ = run(*arguments, "--json")
    assert code == 0
    return dict(json.loads(out))


def refused(run: Run, *arguments: object) -> str:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("p2pfl: ")
    assert err.count("\n") == 1
    return err


def test_list_has_every_topology_and_every_file(run: Run) -> None:
    found = report(run, "list")
    assert [one["name"] for one in found["topologies"]] == list(NAMES)
    assert set(EVERY) <= set(NAMES)
    assert [one["name"] for one in found["files"]] == list(list_files())
    petersen = next(one for one in found["files"] if one["name"] == "petersen")
    assert (petersen["peers"], petersen["edges"]) == (10, 15)
    assert all(one["note"] for one in found["files"] if one["name"] in ("petersen", "icosahedron"))
    text = printed(run, "list")
    assert all(name in text for name in (*NAMES, *list_files()))
    assert "Options: k=4, seed=0." in text


def test_show_prints_the_figures_of_a_torus(run: Run) -> None:
    found = report(run, "show", "torus", "--peers", 25, "--parameters", 1000)
    assert found.keys() >= KEYS | {"noise_floor"}
    assert {key: found[key] for key in ("peers", "edges", "degree", "diameter", "exact_rounds")} == {
        "peers": 25,
        "edges": 50,
        "degree": {"min": 4, "max": 4},
        "diameter": 4,
        "exact_rounds": None,
    }
    assert found["spectral_gap"] == pytest.approx(0.276393, abs=5e-7)
    assert found["singular_gap"] == pytest.approx(0.276393, abs=5e-7)
    assert found["effective_neighbors"] == pytest.approx({"0.9": 15.39, "0.99": 23.44}, abs=5.1e-3)
    assert found["noise_floor"] == pytest.approx(0.2691, abs=5.1e-5)
    assert (found["noise_floor_how"], found["noise_floor_estimate"]) == ("formula", None)
    assert (found["finite_time_rounds"], found["mixing_time"], found["left_out"]) == (5, 22, [])
    assert (found["bytes_per_round"], found["busiest_peer_bytes_per_round"]) == (400_000, 16_000)
    assert found["name"] == "torus:rows=5,cols=5"  # as it was resolved


def test_show_says_that_a_floor_was_simulated(run: Run) -> None:
    found = report(run, "show", "epidemic-oracle:s=4", "--peers", 25)
    assert found["noise_floor"] is None
    estimate = found["noise_floor_estimate"]
    assert abs(estimate["value"] - 0.192) < 4 * estimate["standard_error"] + 5e-4
    assert (found["diameter"], found["period"], found["gaps_how"]) == (None, None, "monte carlo")
    text = printed(run, "show", "epidemic-oracle:s=4", "--peers", 25)
    assert "drawn anew each round" in text
    assert "by Monte Carlo" in text


def test_show_prints_every_topology_there_is(run: Run) -> None:
    for name in EVERY:
        found = report(run, "show", name, "--peers", 8)
        assert (found["peers"], set(found["effective_neighbors"])) == (8, {"0.9", "0.99"})
        assert found["noise_floor"] is not None or found["noise_floor_estimate"]["value"] > 0
        assert found["left_out"] == []
        assert 0 < found["spectral_gap"] <= 1 + 1e-12
    assert "exact consensus after 3 rounds" in printed(run, "show", "one-peer-exponential", "--peers", 8)


def test_show_takes_a_ready_file_and_a_cycle_without_peers(run: Run) -> None:
    assert report(run, "show", "petersen")["spectral_gap"] == pytest.approx(0.5, abs=1e-12)
    assert "de-bruijn: 8 peers" in printed(run, "show", "de-bruijn")
    assert report(run, "show", "cycle:files=petersen+petersen")["period"] == 2


def test_show_says_that_weights_let_the_average_drift(run: Run) -> None:
    assert "Not doubly stochastic" in printed(run, "show", "star", "--peers", 9, "--mixing", "uniform")
    found = report(run, "show", "star", "--peers", 9, "--mixing", "uniform")
    assert (found["doubly_stochastic"], found["mixing"]) == (False, "uniform")
    assert "Not doubly stochastic" not in printed(run, "show", "star", "--peers", 9)


def test_show_takes_other_weights_and_sizes(run: Run) -> None:
    best = report(run, "show", "ring", "--peers", 16, "--mixing", "best-constant", "--model-mb", 2)
    assert best["spectral_gap"] == pytest.approx(0.0733, abs=5.1e-5)
    assert best["bytes_per_round"] == 64e6
    assert report(run, "show", "star", "--peers", 16, "--mixing", "finite-time")["exact_rounds"] == 2


def test_show_of_thousands_takes_seconds_and_says_what_it_left_out(run: Run) -> None:
    torus = report(run, "show", "torus", "--peers", 4096)
    assert torus["noise_floor"] == pytest.approx(1.2569, abs=1e-4)
    assert torus["left_out"] == []
    chain = report(run, "show", "chain", "--peers", 20_000)
    assert chain["left_out"] == ["noise_floor", "effective_neighbors", "diameter", "finite_time_rounds"]
    assert (chain["noise_floor"], chain["effective_neighbors"]["0.9"]) == (None, None)
    assert chain["spectral_gap"] == pytest.approx(8.2247e-9, rel=1e-3)


def test_show_offers_finite_time_only_where_it_serves(run: Run) -> None:
    assert "never (after 5 with --mixing finite-time)" in printed(run, "show", "torus", "--peers", 25)
    assert report(run, "show", "torus", "--peers", 25)["finite_time_serves"]
    assert "with --mixing finite-time" not in printed(run, "show", "barabasi-albert", "--peers", 50)
    assert not report(run, "show", "barabasi-albert", "--peers", 50)["finite_time_serves"]


def test_show_says_unknown_and_not_never(run: Run) -> None:
    arguments = ("show", "one-peer-exponential", "--peers", 5000)
    assert "exact_rounds" in report(run, *arguments)["left_out"]
    assert "exact consensus unknown: too many peers to multiply out" in printed(run, *arguments)


def test_show_leaves_out_a_floor_that_would_take_too_long(run: Run) -> None:
    found = report(run, "show", "equi-dynamic:eta=.002", "--peers", 25)
    assert (found["noise_floor"], found["noise_floor_estimate"]) == (None, None)
    assert found["left_out"] == ["noise_floor", "effective_neighbors"]


def test_compare_ranks_by_prediction(run: Run) -> None:
    names = ["star", "ring", "exponential", "base:k=1", "complete", "torus"]
    found = report(run, "compare", *names, "--peers", 25)["topologies"]
    order = ["complete", "exponential", "torus:rows=5,cols=5", "base:k=1", "ring", "star"]
    assert [one["name"] for one in found] == order
    assert [one["noise_floor"] for one in found] == sorted(one["noise_floor"] for one in found)
    code, out, _ = run("compare", *names, "--peers", 25)
    assert code == 0
    assert [line.split()[1] for line in out.splitlines()[1:7]] == order
    assert "Ranked by the predicted noise floor" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("show", "ring"), "say how many, as --peers 16"),
        (("show", "torus", "--peers", 7), "7 is prime.*6 or 8 peers"),
        (("show", "random-regular:k=3", "--peers", 7), "even; take k=2 or k=4"),
        (("show", "rnig", "--peers", 7), "did you mean 'ring'"),
        (("show", "petersen", "--peers", 7), "has 10 nodes.*use 10 peers"),
        (("show", "hypercube", "--peers", 7), "power of two"),
        (("show", "nowhere.toml"), "there is no topology file"),
        (("show", "ring", "--peers", 7, "--mixing", "nope"), "there is no weighting 'nope'"),
        (("show", "ring", "--peers", 7, "--parameters", 5, "--model-mb", 1), "--parameters or --model-mb, not both"),
        (("show", "ring", "--peers", 7, "--plot", "ring.gif"), r"'ring.gif': end it in \.png, \.svg, \.pdf"),
        (("plot", "ring", "ring", "--peers", 7), r"end it in \.png"),
        (("compare", "ring", "torus", "--peers", 7), "7 is prime"),
    ],
)
def test_bad_input_gets_one_line_with_the_mend(run: Run, arguments: tuple[object, ...], says: str) -> None:
    import re

    assert re.search(says, refused(run, *arguments))


# figures


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_figures_are_written_in_three_formats(run: Run, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"ring.{suffix}"
    assert f"figure: {file}" in printed(run, "plot", "ring", file, "--peers", 9)
    assert file.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml", b"%PDF-")


def test_show_and_compare_draw_beside_what_they_print(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("show", "base", "--peers", 9, "--plot", tmp_path / "base.png", "--json")
    assert (code, json.loads(out)["peers"]) == (0, 9)
    code, _, _ = run("compare", "ring", "complete", "epidemic-local", "--peers", 9, "--plot", tmp_path / "all.png")
    assert code == 0
    for name in ("base", "all"):
        pixels = np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"))
        assert pixels.shape[1] > 1000
        assert pixels.std() > 5


@pytest.mark.parametrize("name", ["ring", "torus", "star", "exponential", "random-regular", "epidemic-local", "base"])
def test_every_kind_is_drawn_with_its_panels(name: str) -> None:
    prediction = Prediction(schedule(name, 12))
    figure = drawing.topology(prediction)
    axes = [one for part in (figure, *figure.subfigs) for one in part.axes]
    labels = {one.get_xlabel() for one in axes} | {one.get_ylabel() for one in axes}
    assert {"weight put on node", "by node", "weight"} <= labels
    assert {"eigenvalue", "number of the eigenvalue"} <= labels or {"real part", "imaginary part"} <= labels


def test_nodes_are_colored_and_edges_as_wide_as_told() -> None:
    topology = build("ring", 4)
    volume = {(0, 1): 5.0, (1, 0): 5.0, (1, 2): 2.5, (2, 1): 2.5}
    axes = drawing.network(topology, [0.1, 0.9, float("nan"), 0.5], volume, ["a", "bob", "carol", "dave"]).axes
    edges, nodes = axes[0].collections
    assert dict(zip(topology.edges, edges.get_linewidths(), strict=True)) == pytest.approx(
        {(0, 1): 3.0, (0, 3): 0.3, (1, 2): 1.65, (2, 3): 0.3}
    )
    assert np.asarray(nodes.get_array()).tolist()[:2] == [0.1, 0.9]
    assert {text.get_text() for text in axes[0].texts} == {"a", "bob", "carol", "dave"}
    assert axes[1].get_ylabel() == "test accuracy"


def test_heat_map_shows_the_weights_and_leaves_the_rest_white() -> None:
    matrix = mixing_matrix(build("ring", 5))
    image = drawing.heat_map(matrix).axes[0].images[0].get_array()
    assert image is not None
    assert np.array_equal(np.ma.getmaskarray(image), matrix == 0)
    assert np.allclose(np.asarray(image)[matrix > 0], 1 / 3)


def test_spectrum_is_drawn_value_by_value() -> None:
    line = drawing.spectrum(mixing_matrix(build("star", 5))).axes[0].lines[0]
    assert np.asarray(line.get_ydata()) == pytest.approx([1, 0.8, 0.8, 0.8, 0], abs=1e-12)


def test_comparison_keeps_the_order_it_is_given() -> None:
    ranked = predict([schedule(name, 9) for name in ("star", "ring", "complete")])
    axes = drawing.comparison(ranked, [3e6, 2e6, 1e6]).axes
    assert [text.get_text() for text in axes[0].get_yticklabels()] == ["complete", "ring", "star"]
    assert [bar.get_width() for bar in axes[2].patches] == [3, 2, 1]
