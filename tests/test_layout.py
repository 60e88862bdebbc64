import json
from collections.abc import Callable

import pytest
import safetensors.torch
import torch
from torch import nn

from p2pfl.errors import ModelError
from p2pfl.layout import Layout, first_difference, layout_of

SMALL = Layout((("a", (2, 3)), ("b", ()), ("c.ä", (4,))))


def framed(layout: Layout, vector: torch.Tensor) -> bytearray:
    return bytearray(layout.header + vector.numpy().tobytes())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_header_and_numbers_are_a_safetensors_file(dtype: str) -> None:
    layout = Layout(SMALL.tensors, dtype)  # type: ignore[arg-type]
    vector = torch.arange(11, dtype=layout.torch_dtype)
    data = framed(layout, vector)
    assert len(data) == layout.framed_bytes == len(layout.header) + layout.vector_bytes
    loaded = safetensors.torch.load(bytes(data))
    assert list(loaded["a"].shape) == [2, 3]
    assert loaded["a"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert loaded["b"].item() == 6.0
    assert loaded["c.ä"].tolist() == [7.0, 8.0, 9.0, 10.0]
    assert loaded["a"].dtype == layout.torch_dtype


def test_the_header_says_where_each_tensor_lies_and_is_aligned() -> None:
    length = int.from_bytes(SMALL.header[:8], "little")
    assert len(SMALL.header) == 8 + length
    assert len(SMALL.header) % 8 == 0
    assert json.loads(SMALL.header[8:]) == {
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "F32", "shape": [], "data_offsets": [24, 28]},
        "c.ä": {"dtype": "F32", "shape": [4], "data_offsets": [28, 44]},
    }
    assert SMALL.size == 11


def test_the_vector_in_a_buffer_is_a_view() -> None:
    data = framed(SMALL, torch.zeros(11))
    vector = SMALL.vector_in(memoryview(data))
    vector[1] = 2.5
    assert SMALL.vector_in(memoryview(data))[1] == 2.5
    assert data[len(SMALL.header) + 4 :][:4] == b"\x00\x00 @"


def test_named_tensors_are_views_of_the_vector() -> None:
    vector = torch.arange(11.0)
    views = SMALL.views(vector)
    assert {name: list(view.shape) for name, view in views.items()} == {"a": [2, 3], "b": [], "c.ä": [4]}
    views["a"][1, 2] = -1.0
    assert vector[5] == -1.0


@pytest.mark.parametrize(
    "other",
    [
        Layout((("z", (2, 3)), ("b", ()), ("c.ä", (4,)))),
        Layout((("a", (3, 2)), ("b", ()), ("c.ä", (4,)))),
        Layout((("b", ()), ("a", (2, 3)), ("c.ä", (4,)))),
        Layout(SMALL.tensors, "float64"),
        Layout(SMALL.tensors[:2]),
    ],
    ids=["name", "shape", "order", "dtype", "fewer"],
)
def test_the_digest_changes_with_names_shapes_order_and_dtype(other: Layout) -> None:
    assert SMALL.digest == Layout(SMALL.tensors).digest
    assert other.digest != SMALL.digest


def test_tied_weights_lie_in_the_vector_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    assert layout_of(model) == Layout((("0.weight", (3, 3)),))
    assert len(model.state_dict()) == 2


def test_parameters_lie_in_their_order_and_buffers_do_not_travel() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.GroupNorm(1, 3))
    model.register_buffer("steps", torch.zeros(1, dtype=torch.int64))
    assert layout_of(model).tensors == (("0.weight", (3, 2)), ("0.bias", (3,)), ("1.weight", (3,)), ("1.bias", (3,)))
    assert layout_of(model.double()).dtype == "float64"


def mixed() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())


def integers() -> nn.Module:
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False)
    return model


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), "1 is a BatchNorm1d.*use GroupNorm or LayerNorm"),
        (lambda: nn.BatchNorm2d(2), "the model is a BatchNorm2d"),
        (lambda: nn.Linear(2, 2).half(), r"has float16 parameters; convert it with model.float\(\) first"),
        (lambda: nn.Linear(2, 2).bfloat16(), "has bfloat16 parameters"),
        (mixed, r"has float32 and float64 parameters; convert it with model.float\(\)"),
        (integers, "has int64 parameters"),
        (nn.ReLU, "no parameters: there is nothing to train"),
        (lambda: nn.ParameterList([nn.Parameter(torch.zeros(0))]), "no parameters"),
    ],
)
def test_a_model_that_cannot_be_averaged_is_refused_with_the_mend(build: Callable[[], nn.Module], text: str) -> None:
    with pytest.raises(ModelError, match=text):
        layout_of(build())


def test_batch_norm_without_running_statistics_is_fine() -> None:
    assert layout_of(nn.BatchNorm1d(2, track_running_stats=False)).size == 4


def test_a_model_without_running_statistics_may_share_parameters_with_its_copy() -> None:
    linear = nn.Linear(2, 1)
    assert layout_of(nn.ModuleList([linear, linear])).size == 3


def test_the_first_difference_is_put_in_words() -> None:
    theirs = Layout((("a", (2, 3)), ("b", (1,)), ("c.ä", (4,))))
    assert first_difference(SMALL, theirs.describe()) == "this peer has b [] float32, the network b [1] float32"
    assert first_difference(SMALL, SMALL.describe()[:2]).startswith("this peer has 3 tensors")
