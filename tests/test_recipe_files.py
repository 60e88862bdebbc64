"""Recipes and sweeps as files: written with every setting explained, and refused with the place and the mend."""

import tomllib
from pathlib import Path

import pytest

from p2pfl.errors import RecipeError
from p2pfl.recipe import Recipe, about
from p2pfl.recipe_files import Sweep, commented, is_sweep, read_recipe, read_sweep


def written(folder: Path, text: str) -> Path:
    file = folder / "recipe.toml"
    file.write_text(text)
    return file


def test_a_new_recipe_is_the_default_one_with_every_setting_explained(tmp_path: Path) -> None:
    text = commented()
    assert set(tomllib.loads(text)) == set(Recipe.__struct_fields__)
    assert read_recipe(written(tmp_path, text)) == Recipe()
    assert all(f"# {about(name)}\n{name} = " in text for name in Recipe.__struct_fields__)


def test_a_new_sweep_is_a_grid_with_references(tmp_path: Path) -> None:
    file = written(tmp_path, commented(sweep=True))
    plan = read_sweep(file)
    assert is_sweep(file)
    assert (set(plan.grid), tuple(plan.references)) == ({"topology", "alpha", "seed"}, ("alone", "pooled"))
    assert len(plan) == 4 * 2 * 3
    recipes = list(plan.recipes())
    assert [(r.topology, r.alpha, r.seed) for r in recipes[:4]] == [
        ("ring", 0.1, 0),
        ("ring", 10.0, 0),
        ("ring", 0.1, 1),
        ("ring", 10.0, 1),
    ]


def test_a_recipe_is_a_sweep_of_one(tmp_path: Path) -> None:
    file = written(tmp_path, "rounds = 3\n")
    assert not is_sweep(file)
    assert list(read_sweep(file).recipes()) == [Recipe(rounds=3)]
    assert len(Sweep({})) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("\n# so\noptimizer = 3", "recipe.toml, line 3: there is no setting 'optimizer'; p2pfl recipe new FILE writes"),
        ("topologi = 'ring'", "recipe.toml, line 1: there is no setting 'topologi'; did you mean 'topology'?"),
        ("batch-size = 3", "line 1: there is no setting 'batch-size'; did you mean 'batch_size'?"),
        ("rounds = 'five'", "recipe.toml, line 1: rounds: expected `int`, got `str`, got 'five'"),
        ("seed = 1\nrounds = -5", "recipe.toml, line 2: rounds: expected `int` >= 0, got -5"),
        ("engine = 'fast'", "line 1: engine: there is no 'fast'; there are auto, event, matrix, scalars, ray"),
        ("alpha = [1, 2]", "recipe.toml, line 1: alpha is a list, and this is one run: give one value, or use p2pfl"),
        ("[ring]\nrounds = 1", "recipe.toml, line 1: there is no setting 'ring'"),
        ("[topology]\nname = 'ring'", "line 1: topology is a table; settings stand side by side"),
        ("rounds = \n", "is no TOML: Invalid value (at line 1, column 10)"),
        (
            "alpha = .1",
            "is no TOML: Invalid value (at line 1, column 9); settings are lines as alpha = 0.1 or topology",
        ),
    ],
)
def test_what_is_wrong_in_a_recipe_has_its_place_and_mend(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(RecipeError) as refused:
        read_recipe(written(tmp_path, text))
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed = 0\nalpha = [0.1, 'x']", "recipe.toml, line 2: alpha: expected `float`, got `str`, got 'x'"),
        ("alpha = []", "recipe.toml, line 1: alpha is an empty list: give at least one value"),
        ("references = ['pool']", 'line 1: references is [\'pool\']; write any of ["alone", "pooled", "fedavg"]'),
        ("references = 'alone'", "line 1: references is 'alone'"),
        ("reference = ['alone']", "did you mean 'references'?"),
    ],
)
def test_what_is_wrong_in_a_sweep_has_its_place_and_mend(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(RecipeError) as refused:
        read_sweep(written(tmp_path, text))
    assert says in str(refused.value)


def test_a_file_that_is_not_there_or_no_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none.toml cannot be read: No such file or directory; p2pfl recipe new"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="it is not UTF-8 text"):
        read_recipe(tmp_path / "latin.toml")
