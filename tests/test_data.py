"""Data by name, and the examples it is made of."""

import inspect
import random
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from p2pfl.errors import DataError
from p2pfl.learning.data import Data, Examples, load_data, parts_of
from p2pfl.learning.examples import assemble, hold_back
from p2pfl.learning.images import prepare_image, stack
from p2pfl.learning.vision import SOURCES


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("mnist10k")


def _examples(n: int = 4) -> Examples:
    return Examples(torch.arange(n * 2, dtype=torch.uint8).reshape(n, 2), torch.arange(n))


# Examples


def test_bytes_stay_bytes_until_a_batch() -> None:
    examples = Examples(torch.tensor([[0, 255], [51, 102]], dtype=torch.uint8), torch.tensor([3, 4]))
    x, y = examples.batch(torch.tensor([1, 0]))
    assert x.tolist() == torch.tensor([[0.2, 0.4], [0.0, 1.0]]).tolist()
    assert y.tolist() == [4, 3]
    assert examples.inputs.dtype == torch.uint8
    assert examples[1][0].tolist() == torch.tensor([0.2, 0.4]).tolist()


def test_a_batch_of_floats_is_a_copy() -> None:
    examples = Examples(torch.ones(2, 1), torch.zeros(2, 1))
    examples.batch(torch.tensor([0]))[0].add_(1)
    assert examples.inputs.tolist() == [[1], [1]]


def test_examples_iterate_and_end() -> None:
    assert [int(y) for _, y in _examples(3)] == [0, 1, 2]  # type: ignore[attr-defined]


def test_subset_keeps_the_order_asked_for() -> None:
    assert _examples().subset(torch.tensor([2, 0])).targets.tolist() == [2, 0]


def test_the_fingerprint_is_the_same_everywhere() -> None:
    assert _examples().fingerprint() == "8a927f2293f2f5cdddb66b62c992c671"
    assert _examples(0).fingerprint() != _examples().fingerprint()


def test_the_fingerprint_sees_values_types_shapes_and_order() -> None:
    x, y = torch.zeros(4, 2), torch.zeros(4, 1)
    alternatives = [
        Examples(x, y),
        Examples(x, y + 1),
        Examples(x.to(torch.uint8), y),
        Examples(x.reshape(4, 2, 1), y),
        Examples(torch.eye(4)[:, :2], y),
        Examples(torch.eye(4)[:, :2].flip(0), y),
    ]
    assert len({each.fingerprint() for each in alternatives}) == len(alternatives)


def test_the_fingerprint_does_not_depend_on_memory_layout() -> None:
    x, y = torch.arange(12.0).reshape(3, 4), torch.arange(3)
    assert Examples(x.T.contiguous().T, y).fingerprint() == Examples(x, y).fingerprint()


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (torch.zeros(2, 1, dtype=torch.float64), torch.zeros(2, dtype=torch.int64), "make them uint8 or float32"),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int64), "make them uint8 or float32"),
        (torch.zeros(2, 1), torch.zeros(2), r"make them int64 \[n\] or float32 \[n, k\]"),
        (torch.zeros(2, 1), torch.zeros(3, dtype=torch.int64), "2 inputs have 3 targets; give one each"),
    ],
)
def test_tensors_that_are_no_examples_are_refused(inputs: torch.Tensor, targets: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Examples(inputs, targets)


# The embedded digits and their parts


def test_mnist10k_is_8000_and_2000_gray_digits(digits: Data) -> None:
    assert digits.train.inputs.shape == (8000, 1, 28, 28)
    assert digits.test.inputs.shape == (2000, 1, 28, 28)
    assert digits.train.inputs.dtype == torch.uint8
    assert (digits.input_shape, digits.outputs, digits.task) == ((1, 28, 28), 10, "classification")
    assert digits.labels == tuple("0123456789")
    assert digits.preparation == {"kind": "image", "channels": 1, "height": 28, "width": 28}
    counts = torch.bincount(torch.cat([digits.train.targets, digits.test.targets])).tolist()
    assert counts == [1001, 1127, 991, 1032, 980, 863, 1014, 1070, 944, 978]


def test_mnist10k_is_shuffled_the_same_everywhere(digits: Data) -> None:
    assert digits.train.targets[:10].tolist() == [4, 2, 9, 2, 5, 5, 7, 6, 3, 0]
    assert digits.test.fingerprint() == "66c3e12511d53b176e5706e4d2476247"


def test_the_seed_draws_the_parts_and_not_the_test_part(digits: Data) -> None:
    parts = [load_data("mnist10k", part=(i, 3), alpha=0.3, seed=1) for i in (1, 2, 3)]
    assert sum(len(part.train) for part in parts) == 8000
    assert {part.test.fingerprint() for part in parts} == {digits.test.fingerprint()}
    assert len({part.train.fingerprint() for part in parts}) == 3
    other = load_data("mnist10k", part=(1, 3), alpha=0.3, seed=2)
    assert other.train.fingerprint() != parts[0].train.fingerprint()
    assert other.test.fingerprint() == digits.test.fingerprint()


def test_load_data_deals_the_parts_of_parts_of(digits: Data) -> None:
    dealt = parts_of(digits, 4, 0.5, seed=9)
    loaded = load_data("mnist10k", part=(3, 4), alpha=0.5, seed=9)
    assert loaded.train.fingerprint() == digits.train.subset(torch.from_numpy(dealt[2])).fingerprint()


def test_equal_parts_without_alpha() -> None:
    assert len(load_data("mnist10k", part=(5, 5)).train) == 1600


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": (0, 3)}, "part 0/3 cannot be; write I/N with I from 1 to N"),
        ({"part": (4, 3)}, "part 4/3 cannot be; write I/N with I from 1 to N"),
        ({"part": (1, 8001)}, "8000 samples cannot make 8001 parts; ask for at most 8000"),
        ({"alpha": 0.5}, "pass part=(I, N), or leave it out"),
        ({"part": (1, 2), "alpha": 0.0}, "alpha is 0; use one from 0.001 to 1e+06"),
        ({"target": "y"}, "are for .csv files; leave them out for mnist10k"),
        ({"missing": "drop"}, "are for .csv files; leave them out for mnist10k"),
    ],
)
def test_bad_parts_and_options_are_refused_with_the_mend(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        load_data("mnist10k", **options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnist10", "did you mean mnist10k?"),
        ("FashionMnist", "did you mean fashion-mnist?"),
        ("fashion_mnist", "did you mean fashion-mnist?"),
        ("zebra", "there is no data 'zebra'; known: mnist10k, mnist, fashion-mnist,"),
        ("zebra.csv", "there is no file or folder"),
        ("no/such/folder", "there is no file or folder"),
        ("emnist", "emnist:split=balanced"),
        ("emnist:split", "not of the form NAME:key=value"),
        ("emnist:split=greek", "has no option split=greek; it has split=balanced|byclass"),
        ("mnist:split=train", "it has pixels=SIZE"),
        ("food101:pixels=big", "as food101:pixels=64"),
        ("no_such_module:f", "there is no module 'no_such_module'"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        load_data(name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_hold_back_is_fixed() -> None:
    assert [part.tolist() for part in hold_back(5)] == [[2, 1, 4, 0], [3]]
    with pytest.raises(DataError, match="4 samples are too few"):
        hold_back(4)


# torchvision


def _idx(path: Path, values: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}i", *values.shape)
    path.write_bytes(header + values.tobytes())


def _mnist_files(root: Path, name: str) -> None:
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    for prefix, n in (("train", 6), ("t10k", 4)):
        _idx(folder / f"{prefix}-images-idx3-ubyte", np.arange(n, dtype=np.uint8).repeat(784).reshape(n, 28, 28))
        _idx(folder / f"{prefix}-labels-idx1-ubyte", (np.arange(n) % 3).astype(np.uint8))


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send what would be downloaded to a port that nobody listens on, with a network or without."""
    for variable in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)


def test_torchvision_files_are_read_without_a_network(tmp_path: Path, unreachable: None) -> None:
    _mnist_files(tmp_path, "FashionMNIST")
    data = load_data("fashion-mnist", root=tmp_path, part=(1, 2))
    assert data.train.inputs.shape == (3, 1, 28, 28)
    assert data.test.inputs[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert data.test.targets.tolist() == [0, 1, 2, 0]
    assert (data.outputs, data.labels[9]) == (10, "Ankle boot")
    assert data.preparation == {"kind": "image", "channels": 1, "height": 28, "width": 28}


def test_mnist_has_the_labels_of_mnist10k(tmp_path: Path, unreachable: None) -> None:
    _mnist_files(tmp_path, "MNIST")
    assert load_data("mnist", root=tmp_path).labels == tuple("0123456789")


def test_pixels_resizes(tmp_path: Path, unreachable: None) -> None:
    _mnist_files(tmp_path, "MNIST")
    data = load_data("mnist:pixels=14", root=tmp_path)
    assert data.train.inputs.shape == (6, 1, 14, 14)
    assert data.train.inputs[:, 0, 5, 5].tolist() == [0, 1, 2, 3, 4, 5]
    assert data.train.targets.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (
            "fashion-mnist",
            "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-… (or .gz) in the folder FashionMNIST/raw",
        ),
        ("cifar10", "put cifar-10-batches-py there"),
        ("usps", "put usps.bz2 and usps.t.bz2 there"),
    ],
)
def test_without_files_and_network_the_message_says_where_and_what(
    name: str, wanted: str, tmp_path: Path, unreachable: None
) -> None:
    started = time.monotonic()
    with pytest.raises(DataError) as caught:
        load_data(name, root=tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{name} is not in {tmp_path.resolve()} and could not be downloaded (")
    assert wanted in message
    assert message.endswith("or use mnist10k, which needs no network")
    assert "\n" not in message
    assert time.monotonic() - started < 20


def test_every_source_is_torchvisions() -> None:
    from torchvision import datasets

    for source in SOURCES.values():
        parameters = inspect.signature(getattr(datasets, source.type_name)).parameters
        through = any(parameter.kind == inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
        for argument in ("download", source.switch, *source.options):
            assert argument in parameters or through, (source, argument)


def test_heavy_libraries_wait_until_they_are_needed() -> None:
    code = (
        "import sys, p2pfl.learning.data, p2pfl.learning.models\n"
        "print({'torchvision', 'pandas', 'PIL'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


# One's own functions


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that a user might have written."""
    name = f"own_data_{random.getrandbits(64)}"
    (tmp_path / f"{name}.py").write_text(
        "import numpy as np, torch\n"
        "from torch.utils.data import Dataset, TensorDataset\n"
        "from p2pfl.learning.data import load_data\n"
        "class Squares(Dataset):\n"
        "    def __init__(self, n): self.n = n\n"
        "    def __len__(self): return self.n\n"
        "    def __getitem__(self, i): return torch.tensor([float(i)]), float(i * i)\n"
        "class Ragged(Squares):\n"
        "    def __getitem__(self, i): return torch.zeros(i + 1), 0\n"
        "def whole(): return load_data('mnist10k')\n"
        "def tensors(): return (torch.zeros(3, 2), torch.tensor([0, 1, 2])), (torch.zeros(1, 2), torch.tensor([1]))\n"
        "def datasets(): return Squares(3), Squares(2)\n"
        "def wrapped(): return TensorDataset(torch.zeros(2, 4), torch.tensor([1, 0])), whole().test\n"
        "def ragged(): return Ragged(3), Ragged(2)\n"
        "def one(): return torch.zeros(3)\n"
        "def flat(): return torch.zeros(3, 2), torch.zeros(3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_function_may_return_data(own: str, digits: Data) -> None:
    assert load_data(f"{own}:whole").train.fingerprint() == digits.train.fingerprint()


def test_a_function_may_return_pairs_of_tensors(own: str) -> None:
    data = load_data(f"{own}:tensors", part=(1, 3))
    assert (len(data.train), data.labels, data.input_shape) == (1, ("0", "1", "2"), (2,))
    assert data.preparation == {"kind": "array", "shape": [2]}


def test_a_function_may_return_datasets(own: str) -> None:
    data = load_data(f"{own}:datasets")
    assert (data.task, data.outputs) == ("regression", 1)
    assert data.train.targets.tolist() == [[0], [1], [4]]
    with pytest.raises(DataError, match="leave alpha out"):
        load_data(f"{own}:datasets", part=(1, 2), alpha=1.0)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("one", "returned a Tensor; let it return Data or a pair (train, test)"),
        ("flat", "gave a Tensor for examples; give a Dataset with a length, or (inputs, targets)"),
        ("ragged", "its examples are not pairs (input, target) of one shape"),
        ("wrapped", "the shapes [4] and [1, 28, 28]; give both the same"),
        ("absent", "has no function 'absent'"),
    ],
)
def test_what_a_function_must_not_return(own: str, function: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        load_data(f"{own}:{function}")
    assert message in str(caught.value)


# .npz files


def test_npz_of_x_and_y_holds_a_fifth_back(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    np.savez(path, x=np.zeros((10, 4, 5, 3), dtype=np.uint8), y=np.array(list("abcabcabca")))
    data = load_data(path)
    assert (len(data.train), len(data.test)) == (8, 2)
    assert (data.name, data.input_shape, data.labels) == ("own", (3, 4, 5), ("a", "b", "c"))
    assert data.preparation == {"kind": "image", "channels": 3, "height": 4, "width": 5}


def test_npz_of_four_arrays_keeps_its_own_test_part(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    x, y = np.arange(6.0).reshape(3, 2), np.array([0.5, 1.5, 2.5])
    np.savez(path, x_train=x, y_train=y, x_test=x[:1], y_test=y[:1])
    data = load_data(str(path))
    assert (data.task, data.outputs, data.labels) == ("regression", 1, ())
    assert data.train.inputs.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert data.train.targets.tolist() == [[0.5], [1.5], [2.5]]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros(3)}, "has the arrays a; name them x and y, or x_train, y_train, x_test, y_test"),
        ({"x": np.zeros((5, 2)), "y": np.zeros(4)}, "give one y each x"),
        ({"x": np.full((5, 2), np.nan), "y": np.zeros(5)}, "of the inputs are not finite"),
        ({"x": np.full((5, 2), 1e300), "y": np.zeros(5)}, "of the inputs are not finite"),
        ({"x": np.zeros((5, 2)), "y": np.full(5, np.inf)}, "of the targets are not finite"),
        ({"x": np.zeros((5, 2)), "y": np.full(5, -1)}, "class -1 is negative; number the classes from 0"),
        ({"x": np.zeros((5, 2)), "y": np.zeros((5, 3), dtype=int)}, "give one class a sample"),
        ({"x": np.zeros((5, 2)), "y": np.zeros(5, dtype=complex)}, "cannot be learned"),
        ({"x": np.array(list("abcde")), "y": np.zeros(5)}, "make them numbers"),
        ({"x": np.array([{}] * 5), "y": np.zeros(5)}, "without object arrays"),
    ],
)
def test_bad_npz_is_refused_with_the_mend(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(DataError) as caught:
        load_data(tmp_path / "own.npz")
    assert message in str(caught.value)


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "own.npz").write_bytes(b"not a zip file")
    with pytest.raises(DataError, match="cannot be read"):
        load_data(tmp_path / "own.npz")
    (tmp_path / "own.txt").write_text("hello")
    with pytest.raises(DataError, match=r"give a folder of images, a \.csv or an \.npz"):
        load_data(tmp_path / "own.txt")


def test_assemble_wants_one_kind_of_target_and_enough_labels() -> None:
    x, ints, floats = np.zeros((2, 1)), np.array([0, 1]), np.array([0.0, 1.0])
    with pytest.raises(DataError, match="give both integers or both floats"):
        assemble("own", (x, ints), (x, floats))
    with pytest.raises(DataError, match="name each class"):
        assemble("own", (x, ints), (x, ints), ["only"])
    with pytest.raises(DataError, match="give at least 1 of each"):
        assemble("own", (x, ints), (x[:0], ints[:0]))


# Folders of images


def _image(path: Path, color: Any, mode: str = "L", size: tuple[int, int] = (10, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)


def test_a_folder_of_gray_images(tmp_path: Path) -> None:
    for i in range(5):
        _image(tmp_path / "pets" / "cat" / f"{i}.png", 10)
        _image(tmp_path / "pets" / "dog" / f"{i}.png", 20)
    (tmp_path / "pets" / "cat" / ".DS_Store").write_text("")
    data = load_data(tmp_path / "pets")
    assert (data.name, data.labels, data.input_shape) == ("pets", ("cat", "dog"), (1, 8, 10))
    assert (len(data.train), len(data.test)) == (8, 2)
    assert data.train.inputs[:, 0, 0, 0].tolist() == [10 * (1 + y) for y in data.train.targets.tolist()]


def test_one_color_image_makes_all_color_and_the_first_gives_the_size(tmp_path: Path) -> None:
    for part in ("train", "test"):
        _image(tmp_path / part / "a" / "1.png", 50)
        _image(tmp_path / part / "b" / "1.png", (1, 2, 3), "RGB", (40, 40))
    data = load_data(str(tmp_path))
    assert data.train.inputs.shape == data.test.inputs.shape == (2, 3, 8, 10)
    assert data.train.inputs[:, :, 0, 0].tolist() == [[50, 50, 50], [1, 2, 3]]
    assert data.preparation == {"kind": "image", "channels": 3, "height": 8, "width": 10}


def test_unreadable_images_are_named_together(tmp_path: Path) -> None:
    _image(tmp_path / "a" / "1.png", 1)
    (tmp_path / "a" / "broken.png").write_bytes((tmp_path / "a" / "1.png").read_bytes()[:40])
    (tmp_path / "a" / "notes.txt").write_text("hello")
    Image.new("I;16", (4, 4)).save(tmp_path / "a" / "deep.png")
    with pytest.raises(DataError) as caught:
        load_data(tmp_path)
    message = str(caught.value)
    assert all(name in message for name in ("broken.png", "notes.txt", "deep.png (more than 8 bits a channel)"))
    assert "1.png," not in message
    assert message.endswith("convert or remove them")


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    _image(tmp_path / "1.png", 1)
    with pytest.raises(DataError, match="one subfolder a class"):
        load_data(tmp_path)


def test_a_foreign_image_is_prepared_the_same_way() -> None:
    assert prepare_image(Image.new("RGB", (4, 2), (9, 9, 9)), 1, 2, 4).tolist() == [[[9] * 4] * 2]
    assert prepare_image(Image.new("L", (40, 20), 7), 3, 2, 4).shape == (3, 2, 4)
    with pytest.raises(DataError, match="convert it to 8"):
        prepare_image(Image.new("I;16", (4, 2)), 1, 2, 4)


def test_more_pixels_than_memory_is_refused_before_they_are_taken() -> None:
    with pytest.raises(DataError, match="10000 images of big at 1000×1000 take 28 GiB of memory"):
        stack("big", 10_000, lambda index: Image.new("L", (1, 1)), (3, 1000, 1000))
