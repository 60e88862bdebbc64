"""`p2pfl evaluate` and `p2pfl predict`, on models that a network has trained."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from p2pfl.cli import app
from p2pfl.cli.evaluate import confusion_matrix, match_labels, worst_pairs
from p2pfl.cli.predict import is_bright_around
from p2pfl.layout import layout_of
from p2pfl.learning.data import Data, load_data
from p2pfl.learning.examples import hold_back
from p2pfl.learning.models import build_model
from p2pfl.local import LocalNetwork
from p2pfl.model_files import ModelFacts, save_model
from p2pfl.peer import Result

Run = Callable[..., tuple[int, str, str]]


@dataclass(frozen=True)
class Trained:
    file: str
    data: Data
    result: Result


def facts_of(of: Data, spec: str, **more: Any) -> ModelFacts:
    known = {"model": spec, "input_shape": of.input_shape, "outputs": of.outputs, "task": of.task}
    known |= {"labels": of.labels, "preparation": dict(of.preparation), "data": of.name}
    return ModelFacts(**{**known, **more})


def train(folder: Path, data: Data, spec: str, rounds: int, lr: float) -> Trained:
    network = LocalNetwork(seed=1, lr=lr)
    model = build_model(spec, data.input_shape, data.outputs, 1)
    peer = network.add("alice", model, data.train, data.test, out=folder, facts=lambda: facts_of(data, spec))
    result = network.run(rounds)["alice"]
    return Trained(str(peer.model_path), data, result)


def write_model(file: Path, model: nn.Module, facts: ModelFacts) -> str:
    vector = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
    save_model(file, vector, layout_of(model), facts)
    return str(file)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("digits"), load_data("mnist10k"), "mlp:hidden=32", 2, 0.1)


def price(rooms: float, age: float) -> float:
    return 1000 * rooms - 200 * age


@pytest.fixture(scope="module")
def houses(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("houses")
    rows = [(i % 10, i // 10) for i in range(100)]
    table = folder / "houses.csv"
    table.write_text("rooms,age,price\n" + "".join(f"{a},{b},{price(a, b):.1f}\n" for a, b in rows))
    return train(folder, load_data(table, target="price"), "logistic", 20, 0.1)


@pytest.fixture(scope="module")
def digit(digits: Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """One digit as MNIST has it, the same as a large scan on paper, and what it is; the model knows it well."""
    folder, images = tmp_path_factory.mktemp("digit"), digits.data.test
    assert digits.result.model is not None
    with torch.inference_mode():
        outputs = digits.result.model(images.batch(torch.arange(200))[0]).softmax(1)
    right = outputs[torch.arange(200), images.targets[:200]]
    index = int(right.argmax())
    pixels = images.inputs[index, 0].numpy()
    mnist, scan = folder / "mnist.png", folder / "scan.jpg"
    Image.fromarray(pixels).save(mnist)
    Image.fromarray(255 - pixels).resize((140, 140)).convert("RGB").save(scan)
    return mnist, scan, str(int(images.targets[index]))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `p2pfl …` in this process: (exit status, stdout, stderr)."""

    def run(*arguments: object, columns: int = 80) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["p2pfl", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as left:
            app.main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return run


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


# evaluate


def test_evaluate_agrees_with_the_run_that_wrote_the_model(run: Run, digits: Trained) -> None:
    found = report(run, "evaluate", digits.file, "--data", "mnist10k")
    assert found["accuracy"] == pytest.approx(digits.result.accuracy)
    assert found["loss"] == pytest.approx(digits.result.loss, rel=1e-5)
    assert found["accuracy"] > 0.8
    assert found["examples"] == 2000
    confusion = np.array(found["confusion"])
    assert confusion.sum() == 2000
    assert np.trace(confusion) == round(2000 * found["accuracy"])
    assert confusion.sum(1).tolist() == digits.data.test.targets.bincount().tolist()  # rows are true classes
    assert found["labels"] == [str(n) for n in range(10)]
    assert found["mse"] is None


@pytest.mark.parametrize("columns", [60, 80])
def test_matrix_of_ten_classes_fits(run: Run, digits: Trained, columns: int) -> None:
    code, out, err = run("evaluate", digits.file, "--data", "mnist10k", columns=columns)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert max(map(len, lines)) <= columns
    header = next(index for index, line in enumerate(lines) if line.endswith("accuracy"))
    assert lines[header].split() == [*map(str, range(10)), "accuracy"]
    confusion = report(run, "evaluate", digits.file, "--data", "mnist10k")["confusion"]
    assert lines[header + 6].split()[:11] == ["5", *(str(count or "·") for count in confusion[5])]


def test_matrix_without_room_gives_way_to_the_worst_pairs(run: Run, digits: Trained) -> None:
    _, out, _ = run("evaluate", digits.file, "--data", "mnist10k", columns=40)
    assert "the most frequent mistakes" in out
    assert max(map(len, out.splitlines())) <= 40


def test_long_names_stand_before_rows_and_numbers_above_columns(run: Run, tmp_path: Path) -> None:
    file, table = animals(tmp_path, ("bird", "[red]cat\x1b[31m", "long-haired dog"))
    code, out, _ = run("evaluate", file, "--data", table)
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["0", "1", "2", "accuracy"] in lines
    assert ["1", "[red]cat[31m", "·", "5", "·", "100.0", "%"] in lines
    assert ["2", "long-haired", "dog", "·", "·", "5", "100.0", "%"] in lines
    assert "\x1b" not in out


def animals(folder: Path, labels: tuple[str, ...], shown: tuple[str, ...] | None = None) -> tuple[str, Path]:
    """A model that finds the class at which the input is 1, and five examples of each of the classes shown."""
    shown = shown or labels
    model = nn.Sequential(nn.Flatten(), nn.Linear(len(labels), len(labels), bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(len(labels)))
    data = folder / "animals.npz"
    y = np.array([label for label in shown for _ in range(25)])
    x = np.array([np.eye(len(labels))[labels.index(label)] for label in y], dtype=np.float32)
    half = np.arange(len(y)) % 5 > 0
    np.savez(data, x_train=x[half], y_train=y[half], x_test=x[~half], y_test=y[~half])
    (folder / "identity_model.py").write_text(
        "from torch import nn\n"
        "def net(shape, outputs):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0], outputs, bias=False))\n"
        "open('imported', 'w').close()\n"
    )
    facts = ModelFacts(
        model="logistic", input_shape=(len(labels),), outputs=len(labels), task="classification", labels=labels
    )
    # `logistic` has a bias.
    biased = build_model("logistic", (len(labels),), len(labels), 0)
    with torch.no_grad():
        for parameter in biased.parameters():
            parameter.copy_(torch.eye(len(labels)) if parameter.ndim == 2 else torch.zeros(len(labels)))
    write_model(folder / "own.safetensors", model, ModelFacts(model="identity_model:net"))
    return write_model(folder / "animals.safetensors", biased, facts), data


def test_classes_go_by_name_where_the_data_has_fewer(run: Run, tmp_path: Path) -> None:
    file, data = animals(tmp_path, ("bird", "cat", "dog"), ("cat", "dog"))
    found = report(run, "evaluate", file, "--data", data)
    assert found["accuracy"] == 1.0
    assert found["confusion"] == [[0, 0, 0], [0, 5, 0], [0, 0, 5]]


def test_numbered_classes_go_by_position_and_that_is_told(run: Run, tmp_path: Path) -> None:
    file, _ = animals(tmp_path, ("bird", "cat", "dog"))
    numbers = tmp_path / "numbers.npz"
    np.savez(numbers, x=np.tile(np.eye(3, dtype=np.float32), (10, 1)), y=np.tile(np.arange(3), 10))
    code, out, err = run("evaluate", file, "--data", numbers)
    assert code == 0
    assert out.startswith("accuracy 100.0 %")
    assert err == "p2pfl: the classes of numbers are taken in the model's order: 0 is bird, 1 is cat, 2 is dog\n"


def test_many_classes_show_the_worst_pairs(run: Run, tmp_path: Path) -> None:
    names = tuple(f"class {chr(97 + n)}" for n in range(26))
    file, _ = animals(tmp_path, names)
    data = tmp_path / "wrong.npz"
    x = np.eye(26, dtype=np.float32)[[1] * 100]
    np.savez(data, x_train=x, y_train=np.array(names * 4)[:100], x_test=x[:30], y_test=np.array(names * 2)[:30])
    code, out, _ = run("evaluate", file, "--data", data)
    assert code == 0
    assert ["true", "predicted", "times", "of", "the", "class"] in [line.split() for line in out.splitlines()]
    assert ["class", "a", "class", "b", "2", "100.0", "%"] in [line.split() for line in out.splitlines()]


def test_own_model_is_imported_only_if_its_user_says_so(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, data = animals(tmp_path, ("bird", "cat", "dog"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "--model identity_model:net" in refused(run, "evaluate", "own.safetensors", "--data", data)
    assert not Path("imported").exists()
    found = report(run, "evaluate", "own.safetensors", "--data", data, "--model", "identity_model:net")
    assert found["accuracy"] == 1.0
    assert found["labels"] == ["bird", "cat", "dog"]


def test_errors_are_in_the_units_of_the_target(run: Run, houses: Trained, tmp_path: Path) -> None:
    table = tmp_path / "few.csv"
    rows = [(a, 1) for a in range(10)]
    table.write_text("age,rooms,price\n" + "".join(f"{b},{a},{price(a, b) + 50}\n" for a, b in rows))
    predicted = [row["value"] for row in report(run, "predict", houses.file, table)["predictions"]]
    _, test = hold_back(10)
    errors = np.array([predicted[i] - price(*rows[i]) - 50 for i in test])

    found = report(run, "evaluate", houses.file, "--data", table)
    assert found["mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-3)
    assert found["mse"] == pytest.approx((errors**2).mean(), rel=1e-3)
    assert found["mae"] < 200  # scaled by these ten rows instead of the training rows, it were thousands
    assert (found["target"], found["accuracy"], found["examples"]) == ("price", None, 2)

    _, out, _ = run("evaluate", houses.file, "--data", table)
    expected = f"MAE {found['mae']:.4g} price   MSE {found['mse']:.4g} price²   2 test examples of {table}"
    assert out.split() == expected.split()  # the path may take another line


def test_what_does_not_fit_is_one_line_with_both(run: Run, digits: Trained, houses: Trained, tmp_path: Path) -> None:
    assert "1×28×28" in refused(run, "evaluate", digits.file, "--data", "houses.csv")
    assert "rows of a table" in refused(run, "evaluate", houses.file, "--data", "mnist10k")
    file, data = animals(tmp_path, ("bird", "cat", "dog"))
    said = refused(run, "evaluate", digits.file, "--data", data)
    assert "takes 1×28×28 for classification (10 classes)" in said
    assert "has 3 for classification (3 classes)" in said
    (tmp_path / "other").mkdir()
    _, other = animals(tmp_path / "other", ("ant", "bee", "cow"))
    assert "bird, cat, dog apart, the data has ant, bee, cow" in refused(run, "evaluate", file, "--data", other)
    assert "check --model" in refused(run, "evaluate", digits.file, "--data", "mnist10k", "--model", "cnn")


def test_wrong_files_are_one_line(run: Run, digits: Trained, tmp_path: Path) -> None:
    noise = tmp_path / "noise.safetensors"
    noise.write_bytes(b"\x00" * 100)
    for file in (noise, tmp_path / "absent", tmp_path):
        assert str(file) in refused(run, "evaluate", file, "--data", "mnist10k")
    assert "did you mean mnist10k" in refused(run, "evaluate", digits.file, "--data", "mnist10")
    assert "refuse, drop or mean" in refused(run, "evaluate", digits.file, "--data", "mnist10k", "--missing", "x")


def test_file_that_asks_for_an_enormous_model_is_refused(run: Run, digits: Trained, tmp_path: Path) -> None:
    facts = facts_of(digits.data, "mlp:hidden=1048576-1048576")
    assert digits.result.model is not None
    file = write_model(tmp_path / "huge.safetensors", digits.result.model, facts)
    assert "holds less than its model has" in refused(run, "evaluate", file, "--data", "mnist10k")


# predict


def test_paper_is_inverted_and_says_so(run: Run, digits: Trained, digit: tuple[Path, Path, str]) -> None:
    mnist, scan, label = digit
    code, out, err = run("predict", digits.file, mnist, scan, "--json")
    assert code == 0
    first, second = json.loads(out)["predictions"]
    assert (first["label"], first["inverted"]) == (label, False)
    assert first["probability"] > 0.9
    assert (second["label"], second["inverted"]) == (label, True)
    assert err == f"p2pfl: {scan} has a bright border and is inverted; --invert no leaves it\n"


def test_invert_yes_and_no_are_obeyed(run: Run, digits: Trained, digit: tuple[Path, Path, str]) -> None:
    mnist, scan, _ = digit
    for choice, expected in (("yes", True), ("no", False)):
        code, out, err = run("predict", digits.file, mnist, scan, "--invert", choice, "--json")
        assert (code, err) == (0, "")
        assert [each["inverted"] for each in json.loads(out)["predictions"]] == [expected, expected]


def test_images_of_unknown_kind_are_left_as_they_are(
    run: Run, digits: Trained, digit: tuple[Path, Path, str], tmp_path: Path
) -> None:
    assert digits.result.model is not None
    file = write_model(tmp_path / "m", digits.result.model, facts_of(digits.data, "mlp:hidden=32", data="my-scans"))
    code, out, err = run("predict", file, digit[1], "--json")
    assert code == 0
    assert json.loads(out)["predictions"][0]["inverted"] is False
    assert err.endswith("has a bright border; if the training images had dark ones, --invert yes\n")


def test_top_is_sorted_and_printed(run: Run, digits: Trained, digit: tuple[Path, Path, str]) -> None:
    mnist, _, label = digit
    top = report(run, "predict", digits.file, mnist, "--top", "3")["predictions"][0]["top"]
    assert [each["probability"] for each in top] == sorted((each["probability"] for each in top), reverse=True)
    assert len(top) == 3
    _, out, _ = run("predict", digits.file, mnist, "--top", "3", columns=200)
    lines = out.splitlines()
    assert lines[0].split() == ["input", "label", "probability"]
    assert lines[1].split()[:2] == [str(mnist), label]
    assert [line.split()[0] for line in lines[2:]] == [each["label"] for each in top[1:]]
    everything = report(run, "predict", digits.file, mnist, "--top", "99")["predictions"][0]["top"]
    assert sum(each["probability"] for each in everything) == pytest.approx(1)


def test_rows_become_predictions_in_the_units_of_the_target(run: Run, houses: Trained, tmp_path: Path) -> None:
    table = tmp_path / "new.csv"
    table.write_text("id,age,rooms\nx,1,2\ny,5,8\nz,,8\n")
    code, out, err = run("predict", houses.file, table, "--json")
    assert code == 0
    values = [each["value"] for each in json.loads(out)["predictions"]]
    assert values == pytest.approx([price(2, 1), price(8, 5), price(8, 4.5)], abs=200)
    assert err == f"p2pfl: {table}: 1 empty cells count as the training mean, or as no category\n"
    _, out, _ = run("predict", houses.file, table)
    assert out.splitlines()[0].split() == ["row", "price"]
    assert out.splitlines()[2].split() == ["2", f"{values[1]:.6g}"]


def test_wrong_inputs_are_one_line(
    run: Run, digits: Trained, houses: Trained, digit: tuple[Path, Path, str], tmp_path: Path
) -> None:
    mnist, _, _ = digit
    text = tmp_path / "text.png"
    text.write_text("no image")
    said = refused(run, "predict", digits.file, mnist, text, tmp_path / "absent.png")
    assert f"{text}, {tmp_path / 'absent.png'} (no such file)" in said
    deep = tmp_path / "deep.png"
    Image.fromarray(np.zeros((28, 28), dtype=np.uint16)).save(deep)
    assert "more than 8 bits" in refused(run, "predict", digits.file, deep)
    assert "is a table; give image files" in refused(run, "predict", digits.file, "rows.csv")
    assert "columns rooms, age" in refused(run, "predict", houses.file, mnist)
    assert "auto, yes or no" in refused(run, "predict", digits.file, mnist, "--invert", "perhaps")
    short = tmp_path / "short.csv"
    short.write_text("rooms\n1\n")
    assert "'age'" in refused(run, "predict", houses.file, short)
    short.write_text("rooms,age\n")
    assert "no rows" in refused(run, "predict", houses.file, short)
    file, _ = animals(tmp_path, ("bird", "cat", "dog"))
    assert "does not say how its inputs were prepared" in refused(run, "predict", file, mnist)


@pytest.mark.parametrize(
    "preparation",
    [
        {"kind": "image", "channels": 2, "height": 28, "width": 28},
        {"kind": "image", "channels": 1, "height": 1 << 40, "width": 28},
        {"kind": "image"},
        {"kind": "table", "columns": "all"},
        {"kind": ["image"]},
    ],
)
def test_file_with_an_odd_preparation_is_refused(
    run: Run, digits: Trained, digit: tuple[Path, Path, str], tmp_path: Path, preparation: dict[str, Any]
) -> None:
    assert digits.result.model is not None
    facts = facts_of(digits.data, "mlp:hidden=32", preparation=preparation)
    refused(run, "predict", write_model(tmp_path / "m", digits.result.model, facts), digit[0])


def test_a_pipe_gets_plain_text_and_json_is_alone_on_stdout(digits: Trained, digit: tuple[Path, Path, str]) -> None:
    environment = {**os.environ, "COLUMNS": "60", "NO_COLOR": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "error", "-m", "p2pfl.cli.app", "predict", digits.file, str(digit[1])]
    plain, machine = (
        subprocess.run([*command, *more], capture_output=True, text=True, timeout=60, env=environment)
        for more in ([], ["--json"])
    )
    assert (plain.returncode, machine.returncode) == (0, 0)
    assert "\x1b" not in plain.stdout + plain.stderr
    assert max(map(len, plain.stdout.splitlines())) <= 60
    assert json.loads(machine.stdout)["predictions"][0]["label"] == digit[2]


def test_the_commands_start_without_the_heavy_libraries() -> None:
    code = "import sys, p2pfl.cli.evaluate, p2pfl.cli.predict, p2pfl.cli.peers; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert not {"torch", "pandas", "PIL", "numpy", "aiohttp", "zeroconf"} & set(done.stdout.split())
    assert "p2pfl.cli.peers" in done.stdout.split()


# Pieces


def test_confusion_counts_true_rows_and_predicted_columns() -> None:
    matrix = confusion_matrix(torch.tensor([1, 1, 2, 0]), torch.tensor([1, 0, 0, 0]), 3)
    assert matrix == [[1, 1, 1], [0, 1, 0], [0, 0, 0]]


def test_worst_pairs_are_the_largest_off_the_diagonal() -> None:
    assert worst_pairs([[9, 1, 3], [0, 8, 4], [0, 0, 7]], 2) == [(1, 2, 4), (0, 2, 3)]


@pytest.mark.parametrize(
    ("model", "data", "expected"),
    [
        (("a", "b", "c"), ("a", "b", "c"), [0, 1, 2]),
        (("a", "b", "c"), ("a", "c"), [0, 2]),
        (("a", "b", "c"), ("0", "1"), [0, 1]),
        (("0", "1", "2"), ("a", "b"), [0, 1]),
        (("0", "1", "2"), ("2", "1"), [2, 1]),
        (("a", "b"), ("0", "1", "2"), None),
        (("a", "b"), ("a", "x"), None),
    ],
)
def test_classes_match_by_name_or_number(model: tuple[str, ...], data: tuple[str, ...], expected: object) -> None:
    assert match_labels(model, data) == expected


def test_border_is_bright_by_its_median() -> None:
    pixels = np.full((4, 4), 255, dtype=np.uint8)
    pixels[1:3, 1:3] = 0
    assert is_bright_around(pixels)
    assert not is_bright_around(255 - pixels)
    pixels[0] = 0  # a shadow on one side
    assert is_bright_around(pixels)
