"""The recipe: settings with defaults that run, refused early, equal wherever they are equal."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import RecipeError, TopologyError, UsageError
from p2pfl.protocol.neighborhood import without_form
from p2pfl.protocol.participant import Rules
from p2pfl.recipe import Asked, NetworkRecipe, complaint, recipe_of, to_toml

COUNTS = st.integers(1, 1 << 31)
POSITIVE = st.floats(1e-300, 1e300)
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "topology": st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
        "rounds": st.integers(0, 1 << 31),
        "seed": st.integers(0, 1 << 62),
        "model": st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
        "epochs": COUNTS,
        "lr": POSITIVE,
        "batch_size": COUNTS,
        "alpha": st.floats(0, 1e300),
        "patience": st.floats(1, 1e300),
        "max_wait_s": POSITIVE,
    },
)


@given(SETTINGS)
def test_toml_reads_back(settings: dict[str, Any]) -> None:
    recipe = recipe_of(settings)
    assert recipe_of(msgspec.toml.decode(to_toml(recipe))) == recipe


@given(SETTINGS)
def test_equal_settings_have_equal_fingerprints_in_any_order(settings: dict[str, Any]) -> None:
    backwards = dict(reversed(settings.items()))
    assert recipe_of(settings).fingerprint == recipe_of(backwards).fingerprint


def test_the_fingerprint_does_not_depend_on_the_process() -> None:
    program = "from p2pfl.recipe import NetworkRecipe; print(NetworkRecipe(model='cnn', lr=0.3).fingerprint)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == NetworkRecipe(model="cnn", lr=0.3).fingerprint


def test_the_fingerprint_tells_every_setting() -> None:
    changed = {"topology": "star", "rounds": 1, "seed": 1, "model": "cnn", "epochs": 2, "steps": 3, "lr": 0.2}
    changed |= {
        "batch_size": 8,
        "alpha": 1.0,
        "min_peers": 3,
        "patience": 4.0,
        "min_deadline_s": 1.0,
        "max_wait_s": 9.0,
        "mixing": "lazy",
        "data_seed": 1,
        "init_seed": 1,
        "topology_seed": 1,
        "healing": "average",
    }
    assert set(changed) == set(NetworkRecipe.__struct_fields__)
    prints = {recipe_of({name: value}).fingerprint for name, value in changed.items()}
    assert len(prints | {NetworkRecipe().fingerprint}) == len(changed) + 1


def test_defaults_and_a_whole_toml() -> None:
    assert to_toml(NetworkRecipe(alpha=0.3)) == (
        "# p2pfl recipe: every setting of the run\n"
        'topology = "ring"\n'
        'mixing = "auto"\n'
        "rounds = 15\n"
        "seed = 0\n"
        "data_seed = -1\n"
        "init_seed = -1\n"
        "topology_seed = -1\n"
        'model = "mlp"\n'
        "epochs = 1\n"
        "steps = 0\n"
        "lr = 0.1\n"
        "batch_size = 32\n"
        "alpha = 0.3\n"
        "min_peers = 2\n"
        "patience = 3.0\n"
        "min_deadline_s = 2.0\n"
        "max_wait_s = 600.0\n"
        'healing = "catch-up"\n'
    )


def test_a_whole_number_is_fine_where_a_fraction_is_due() -> None:
    assert recipe_of({"lr": 1}) == recipe_of({"lr": 1.0})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"round": 5}, "unknown field `round`"),
        ({"rounds": -1}, "rounds: expected `int` >= 0, got -1"),
        ({"rounds": 1 << 64}, "rounds: expected `int` <= 2147483648"),
        ({"rounds": "5"}, "rounds: expected `int`, got `str`, got '5'"),
        ({"rounds": 1.5}, "rounds: expected `int`"),
        ({"seed": -1}, "seed: expected `int` >= 0"),
        ({"epochs": 0}, "epochs: expected `int` >= 1"),
        ({"batch_size": 0}, "batch_size: expected `int` >= 1"),
        ({"min_peers": 0}, "min_peers: expected `int` >= 1"),
        ({"lr": 0.0}, "lr: expected `float` > 0.0"),
        ({"lr": float("nan")}, "lr: expected `float` > 0.0"),
        ({"lr": float("inf")}, "lr: expected a finite number"),
        ({"alpha": -0.1}, "alpha: expected `float` >= 0.0"),
        ({"max_wait_s": float("inf")}, "max_wait_s: expected a finite number"),
        ({"patience": 0.5}, "patience: expected `float` >= 1.0"),
        ({"model": 3}, "model: expected `str`"),
    ],
)
def test_what_cannot_be_is_refused_by_name(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError) as refused:
        recipe_of(settings)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_asked_leaves_out_what_was_not_chosen() -> None:
    assert Asked.of(rounds=3, seed=None, lr=0.5).settings == {"rounds": 3, "lr": 0.5}


def test_epochs_and_steps_contradict_each_other() -> None:
    with pytest.raises(RecipeError, match="choose --epochs or --steps, not both"):
        Asked.of(epochs=1, steps=1)
    assert Asked.of(epochs=1, steps=None).settings == {"epochs": 1}


@pytest.mark.parametrize(
    ("topology", "says"), [("rng", "did you mean 'ring'"), ("there/is/none.toml", "none.toml"), ("nowhere.graphml", "")]
)
def test_a_topology_that_does_not_exist_is_refused(topology: str, says: str) -> None:
    with pytest.raises(TopologyError) as refused:
        Asked.of(topology=topology)
    assert says in str(refused.value)


def test_the_topology_of_a_file_travels_without_the_file(tmp_path: Path) -> None:
    file = tmp_path / "kite.toml"
    file.write_text('name = "kite"\nedges = [[0, 1], [1, 2], [2, 0], [2, 3]]\n')
    settings = Asked.of(topology=str(file)).settings
    file.unlink()
    assert set(recipe_of(settings).build_topology(4).edges) == {(0, 1), (1, 2), (0, 2), (2, 3)}
    with pytest.raises(TopologyError, match="4"):
        recipe_of(settings).build_topology(5)


def test_the_topology_must_fit_the_number_of_peers() -> None:
    with pytest.raises(TopologyError, match="there is no torus of 7 peers: make it 6 or 8 peers"):
        NetworkRecipe(topology="torus").build_topology(7)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"mixing": "lazy:keep=7"}, "weighting 'lazy' cannot keep the part 7.0: take keep from 0 to below 1, as 0.5"),
        ({"mixing": "lazy:kep=.5"}, "weighting 'lazy' has no option 'kep': its options are keep"),
        ({"mixing": "lazy:keep=nan"}, "weighting 'lazy' cannot keep the part nan"),
        ({"mixing": "lazy:"}, "'lazy:' is not of the form NAME or NAME:key=value"),
        ({"mixing": "os:system"}, "mixing: there is no 'os:system'; there are: auto, metropolis, "),
        ({"topology": "torus:rows=banana"}, "option 'rows' of topology 'torus' cannot be 'banana'"),
        ({"topology": "torus:rws=2"}, "topology 'torus' has no option 'rws': its options are rows"),
        ({"topology": "base:k=1000000000000"}, "option 'k' of topology 'base' cannot be 1000000000000"),
        ({"topology": "equi-static:m=1000001"}, "option 'm' of topology 'equi-static' cannot be 1000001"),
        ({"topology": f"tree:k={'9' * 25}"}, f"option 'k' of topology 'tree' cannot be {'9' * 25}"),
        ({"topology": "erdos-renyi:p=nan"}, "option 'p' of topology 'erdos-renyi' cannot be nan"),
        ({"topology": "random-regular:seed=-5"}, "option 'seed' of topology 'random-regular' cannot be -5"),
    ],
)
def test_options_that_cannot_be_are_refused_whoever_tells_them(settings: dict[str, Any], says: str) -> None:
    assert says in complaint(settings)
    with pytest.raises(UsageError) as refused:
        Asked.of(**settings)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"mixing": "lazy:keep=.5"},
        {"mixing": "finite-time", "topology": "torus:rows=2"},
        {"topology": f"random-regular:k=3,seed={1 << 62}"},
        {"topology": "graph:edges=0-1/1-2"},
        {"min_peers": 1 << 31},
    ],
)
def test_options_that_can_be_are_not(settings: dict[str, Any]) -> None:
    assert complaint(settings) == ""
    assert Asked.of(**settings).settings == settings


def test_a_text_too_long_to_travel_is_refused_unread() -> None:
    assert complaint({"topology": "graph:edges=" + "0-1/" * 5000}) == "topology is 20012 characters long"


@pytest.mark.parametrize(
    ("topology", "mixing", "says"),
    [
        ("exponential", "metropolis", "weighting 'metropolis' needs an undirected topology"),
        ("base", "best-constant", "weighting 'best-constant' needs a connected topology"),
        ("torus", "auto", "there is no torus of 5 peers"),
    ],
)
def test_settings_that_do_not_go_together_have_no_form_to_begin_with(topology: str, mixing: str, says: str) -> None:
    recipe = NetworkRecipe(topology=topology, mixing=mixing)
    rules = Rules(recipe.build_topology, rounds=3, min_peers=5, schedule=recipe.schedule)
    text = without_form(rules, 5, 0)
    assert text.startswith("what was asked for cannot begin with 5 peers: ")
    assert says in text
    assert "\n" not in text
    assert without_form(Rules(NetworkRecipe().build_topology, rounds=3, min_peers=5), 5, 0) == ""
