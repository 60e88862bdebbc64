"""Quadratics: what is known of them stands in the data."""

import numpy as np
import pytest
import torch

from p2pfl.errors import DataError
from p2pfl.learning.by_name import NamedLearning
from p2pfl.learning.data import load_data, parts_of
from p2pfl.learning.models import Point, build_model
from p2pfl.learning.quadratic import Quadratic, half_squared_distance, lowest_loss, quadratic
from p2pfl.recipe import NetworkRecipe


def test_the_test_loss_is_the_objective_of_all_samples() -> None:
    data = quadratic(Quadratic(dim=3, groups=4, samples=20))
    x = torch.tensor([0.3, -1.0, 2.0]).expand(len(data.train), 3)
    objective = half_squared_distance(x, data.train.targets)
    assert half_squared_distance(x[:2], data.test.targets) == pytest.approx(float(objective), rel=1e-5)


def test_the_lowest_loss_is_that_of_the_mean() -> None:
    assert lowest_loss(np.array([[0.0, 0.0], [2.0, 0.0]], dtype=np.float32)) == 0.5
    data = quadratic(Quadratic(dim=2, groups=3, samples=5))
    points = data.train.targets
    at_mean = half_squared_distance(points.mean(dim=0).expand(15, 2), points)
    assert lowest_loss(points.numpy()) == pytest.approx(float(at_mean), rel=1e-5)


def test_groups_lie_as_far_apart_and_samples_as_far_out_as_asked() -> None:
    data = quadratic(Quadratic(dim=50, groups=40, samples=50, heterogeneity=3.0, noise=0.5))
    groups = data.train.targets.numpy().reshape(40, 50, 50)
    assert groups.mean(axis=1).std() == pytest.approx(3.0, rel=0.05)
    assert (groups - groups.mean(axis=1, keepdims=True)).std() == pytest.approx(0.5 * np.sqrt(49 / 50), rel=0.02)


def test_without_heterogeneity_and_noise_all_samples_are_one() -> None:
    data = quadratic(Quadratic(dim=2, groups=3, samples=4, heterogeneity=0.0, noise=0.0))
    assert data.train.targets.abs().max() == 0


def test_the_gradient_at_a_point_is_the_way_to_the_samples_mean() -> None:
    point = Point(2)
    targets = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    half_squared_distance(point(torch.zeros(2, 1)), targets).backward()
    assert point.point.grad is not None
    assert point.point.grad.tolist() == [-2.0, -4.0]


def test_by_name_each_part_is_a_group() -> None:
    data = load_data("quadratic:dim=4,groups=3,samples=5")
    assert (data.outputs, len(data.train), data.task) == (4, 15, "regression")
    assert [part.tolist() for part in parts_of(data, 3, None, seed=9)] == [list(range(i, i + 5)) for i in (0, 5, 10)]
    second = load_data("quadratic:dim=4,groups=3,samples=5", part=(2, 3))
    assert torch.equal(second.train.targets, data.train.targets[5:10])
    assert isinstance(build_model("point", data.input_shape, data.outputs), Point)


def test_a_live_learner_of_quadratics_takes_their_gradient() -> None:
    name = "quadratic:dim=2,groups=1,samples=4"
    learner = NamedLearning(data=name, part=(1, 1))(NetworkRecipe(model="point", lr=0.5, batch_size=4))
    learner.train(0, None, lambda: False)
    vector = torch.empty(2)
    learner.parameters(vector)
    assert torch.allclose(vector, 0.5 * load_data(name).train.targets.mean(dim=0))  # half of the way from 0


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("quadratic:dim=0", "dim of quadratic is '0'; write a whole number of at least 1"),
        ("quadratic:dim=2.5", "dim of quadratic is '2.5'; write a whole number"),
        ("quadratic:noise=-1", "noise of quadratic is '-1'; write a number of at least 0"),
        ("quadratic:noise=nan", "noise of quadratic is 'nan'"),
        ("quadratic:dims=3", "quadratic has no option 'dims'; it has dim, groups, samples, heterogeneity, noise, seed"),
        ("quadratic:dim", "'dim' in 'quadratic:dim' is not of the form key=value"),
        ("quadratik", "did you mean quadratic?"),
    ],
)
def test_what_cannot_be_is_refused(name: str, says: str) -> None:
    with pytest.raises(DataError) as refused:
        load_data(name)
    assert says in str(refused.value)


def test_other_parts_than_groups_are_refused() -> None:
    with pytest.raises(DataError, match="has 3 groups for 2 parts; say groups=2 in its name"):
        parts_of(load_data("quadratic:groups=3"), 2, None, seed=0)


def test_digits_are_scikit_learns() -> None:
    data = load_data("digits")
    assert (len(data.train) + len(data.test), data.input_shape, data.outputs) == (1797, (1, 8, 8), 10)
    assert (float(data.train.inputs.min()), float(data.train.inputs.max())) == (0.0, 1.0)


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match="pip install scikit-learn"):
        load_data("digits")
