"""Models by name."""

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from p2pfl.errors import ModelError
from p2pfl.learning.models import build_model, default_model


def _shapes(model: nn.Module) -> list[list[int]]:
    return [list(parameter.shape) for parameter in model.parameters()]


def test_mlp_is_784_128_10_on_digits() -> None:
    assert _shapes(build_model("mlp", (1, 28, 28), 10, 0)) == [[128, 784], [128], [10, 128], [10]]


def test_mlp_takes_widths_and_dropout() -> None:
    model = build_model("mlp:hidden=32-16,dropout=0.2", (5,), 3, 0)
    assert _shapes(model) == [[32, 5], [32], [16, 32], [16], [3, 16], [3]]
    assert [layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)] == [0.2, 0.2]


def test_logistic_is_one_layer() -> None:
    assert _shapes(build_model("logistic", (1, 28, 28), 10, 0)) == [[10, 784], [10]]


def test_cnn_layers_on_digits() -> None:
    expected = [[16, 1, 3, 3], [16], [32, 16, 3, 3], [32], [128, 32 * 7 * 7], [128], [10, 128], [10]]
    assert _shapes(build_model("cnn", (1, 28, 28), 10, 0)) == expected


def test_cnn_stays_small_on_large_images() -> None:
    model = build_model("cnn", (3, 512, 384), 2, 0)
    assert sum(parameter.numel() for parameter in model.parameters()) < 300_000
    assert model(torch.zeros(1, 3, 512, 384)).shape == (1, 2)


@settings(max_examples=25, deadline=None)
@given(channels=st.integers(1, 4), height=st.integers(8, 70), width=st.integers(8, 70))
def test_cnn_works_from_8_by_8_on(channels: int, height: int, width: int) -> None:
    model = build_model("cnn:channels=2,hidden=4", (channels, height, width), 3, 0)
    assert model(torch.zeros(2, channels, height, width)).shape == (2, 3)


@pytest.mark.parametrize("spec", ["mlp", "cnn", "logistic"])
def test_the_seed_decides_the_weights_and_nothing_else_does(spec: str) -> None:
    torch.manual_seed(1)
    first = build_model(spec, (1, 8, 8), 2, seed=5).state_dict()
    torch.manual_seed(2)
    second = build_model(spec, (1, 8, 8), 2, seed=5).state_dict()
    other = build_model(spec, (1, 8, 8), 2, seed=6).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_the_process_generator_is_left_as_it_was() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    build_model("mlp", (4,), 2, seed=5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("shape", "name"),
    [((1, 28, 28), "mlp"), ((3, 32, 32), "cnn"), ((1, 64, 64), "cnn"), ((3, 4, 500), "mlp"), ((5000,), "mlp")],
)
def test_default_model(shape: tuple[int, ...], name: str) -> None:
    assert default_model(shape) == name
    assert isinstance(build_model(default_model(shape), shape, 2, 0), nn.Module)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that a user might have written."""
    name = f"own_models_{random.getrandbits(64)}"
    (tmp_path / f"{name}.py").write_text(
        "from torch import nn\n"
        "def sized(shape, outputs): return nn.Linear(shape[0], outputs)\n"
        "def fixed(): return nn.Linear(7, 2)\n"
        "def keyword(*, width=3): return nn.Linear(width, 2)\n"
        "def three(a, b, c): return None\n"
        "def text(): return 'linear'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_function_of_two_gets_shape_and_outputs(own: str) -> None:
    model = build_model(f"{own}:sized", (4,), 3, seed=1)
    assert _shapes(model) == [[3, 4], [3]]
    again = build_model(f"{own}:sized", (4,), 3, seed=1)
    assert torch.equal(model.get_parameter("weight"), again.get_parameter("weight"))


def test_a_function_without_positional_parameters_gets_none(own: str) -> None:
    assert _shapes(build_model(f"{own}:fixed", (4,), 3, 0)) == [[2, 7], [2]]
    assert _shapes(build_model(f"{own}:keyword", (4,), 3, 0)) == [[2, 3], [2]]


def test_a_function_that_fits_neither_call_is_refused(own: str) -> None:
    with pytest.raises(ModelError, match=r"takes \(a, b, c\); let it take \(input_shape, outputs\) or nothing"):
        build_model(f"{own}:three", (4,), 3, 0)
    with pytest.raises(ModelError, match=r"returned a str; let it return a torch\.nn\.Module"):
        build_model(f"{own}:text", (4,), 3, 0)
    with pytest.raises(ModelError, match="has no function 'absent'"):
        build_model(f"{own}:absent", (4,), 3, 0)
    with pytest.raises(ModelError, match="there is no module 'no_such_module'"):
        build_model("no_such_module:f", (4,), 3, 0)


@pytest.mark.parametrize(
    ("spec", "shape", "outputs", "message"),
    [
        ("mpl", (4,), 2, "did you mean mlp"),
        ("transformer", (4,), 2, "known: mlp, cnn, logistic, or package.module:function"),
        ("mlp:width=3", (4,), 2, "mlp has no option 'width'; it has hidden, dropout"),
        ("logistic:hidden=3", (4,), 2, "it has none"),
        ("mlp:hidden", (4,), 2, "'hidden' in 'mlp:hidden' is not of the form key=value, as mlp:hidden=256-128"),
        ("mlp:hidden=0", (4,), 2, "hidden is '0'"),
        ("mlp:hidden=3-", (4,), 2, "hidden is ''"),
        ("mlp:hidden=a", (4,), 2, "as hidden=128"),
        ("mlp:dropout=1", (4,), 2, "as dropout=0.2"),
        ("mlp:dropout=nan", (4,), 2, "as dropout=0.2"),
        ("mlp:dropout=half", (4,), 2, "as dropout=0.2"),
        ("cnn", (1, 7, 28), 2, "at least 8×8 and got [1, 7, 28]; use mlp"),
        ("cnn", (784,), 2, "use mlp"),
        ("mlp", (), 2, "every number must be at least 1"),
        ("mlp", (4, 0), 2, "every number must be at least 1"),
        ("mlp", (4,), 0, "every number must be at least 1"),
    ],
)
def test_bad_models_are_refused_with_the_mend(spec: str, shape: tuple[int, ...], outputs: int, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        build_model(spec, shape, outputs, 0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
