"""Models and checkpoints on disk: whole or not at all, and never a reason to run foreign code."""

import json
import os
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import live
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from p2pfl.errors import ModelError
from p2pfl.layout import layout_of
from p2pfl.learning.models import build_model
from p2pfl.model_files import (
    Checkpoint,
    ModelFacts,
    load_model,
    read_checkpoint,
    read_facts,
    read_vector,
    save_model,
)

FACTS = ModelFacts(
    model="mlp:hidden=3",
    input_shape=(4,),
    outputs=2,
    task="classification",
    labels=("cat", "dög"),
    preparation={"kind": "array", "shape": [4]},
    data="pets",
    network="home",
    peer="alice",
    round=7,
)


def mlp(seed: int = 0) -> nn.Module:
    return build_model("mlp:hidden=3", (4,), 2, seed)


def vector_of(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def write(path: Path, model: nn.Module, facts: ModelFacts = FACTS) -> Path:
    save_model(path, vector_of(model), layout_of(model), facts)
    return path


def refused(path: Path, model: nn.Module | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(path, model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Round trips


def test_a_model_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = mlp(1)
    path = write(tmp_path / "new" / "alice.safetensors", model)
    loaded = load_model(path)
    assert torch.equal(vector_of(loaded), vector_of(model))
    assert not loaded.training
    assert read_facts(path) == FACTS
    assert torch.equal(read_vector(path, layout_of(model)), vector_of(model))
    assert os.listdir(path.parent) == ["alice.safetensors"]  # noqa: PTH208  # hidden files count


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    model = mlp(1)
    with safe_open(write(tmp_path / "m.safetensors", model), framework="pt") as file:
        assert {name: tuple(file.get_tensor(name).shape) for name in file.keys()} == {  # noqa: SIM118
            name: tuple(parameter.shape) for name, parameter in model.named_parameters()
        }


def test_double_precision_comes_back(tmp_path: Path) -> None:
    model = nn.Linear(2, 2).double()
    path = write(tmp_path / "m.safetensors", model, ModelFacts())
    loaded = load_model(path, nn.Linear(2, 2).double())
    assert torch.equal(vector_of(loaded), vector_of(model))
    assert "torch.float64" in refused(path, nn.Linear(2, 2))


def test_a_model_of_ones_own_is_filled(tmp_path: Path) -> None:
    model, other = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))
    path = write(tmp_path / "m.safetensors", model, ModelFacts(model="somebody.elses:net"))
    assert load_model(path, other) is other
    assert torch.equal(vector_of(other), vector_of(model))


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    who = Checkpoint(
        peer="a" * 26, seat="0", name="alice", network="home", incarnation=2, round=5, settings={"rounds": 3}
    )
    model = mlp(2)
    path = tmp_path / "alice.safetensors"
    save_model(path, vector_of(model), layout_of(model), who)
    assert read_checkpoint(path) == who
    assert torch.equal(read_vector(path, layout_of(model)), vector_of(model))


# Foreign files


@pytest.mark.parametrize("named", ["danger:net", "os:getcwd", ""])
def test_what_a_file_names_is_never_imported(tmp_path: Path, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "danger.py").write_text("open('ran', 'w')\ndef net():\n    open('ran', 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    path = write(tmp_path / "m.safetensors", nn.Linear(2, 2), ModelFacts(model=named))
    assert "somebody's own making" in refused(path)
    assert "give --model" in refused(path)
    assert "danger" not in sys.modules
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        (ModelFacts(model="transformer", input_shape=(4,), outputs=2), "there is no model 'transformer'"),
        (ModelFacts(model="mlp:hidden=-1", input_shape=(4,), outputs=2), "whole number"),
        (ModelFacts(model="mlp", input_shape=(), outputs=2), "cannot be"),
        (ModelFacts(model="mlp", input_shape=(-4,), outputs=2), "cannot be"),
        (ModelFacts(model="mlp:hidden=4", input_shape=(4,), outputs=2), "1.weight is [3, 4] torch.float32"),
        (ModelFacts(model="logistic", input_shape=(4,), outputs=2), "do not have the same tensors"),
    ],
)
def test_facts_that_do_not_fit_are_refused(tmp_path: Path, facts: ModelFacts, says: str) -> None:
    assert says in refused(write(tmp_path / "m.safetensors", mlp(), facts))


def test_a_module_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", mlp())
    assert "check --model" in refused(path, nn.Linear(4, 2))
    assert "cannot be averaged" in refused(path, nn.BatchNorm1d(3))


def test_what_is_no_model_file_is_refused(tmp_path: Path) -> None:
    assert "there is no file" in refused(tmp_path / "none.safetensors")
    assert "check the path" in refused(tmp_path / "none.safetensors")
    assert "is no model file" in refused(tmp_path)
    path = tmp_path / "m.safetensors"
    for content in (b"", b"hello", b"\xff" * 100):
        path.write_bytes(content)
        assert "is no model file" in refused(path)
    save_file({"weight": torch.zeros(2)}, path)
    assert "not written by p2pfl" in refused(path)
    save_file({"weight": torch.zeros(2)}, path, {"p2pfl": '{"outputs": "many"}'})
    assert "not written by p2pfl, or by another version" in refused(path)


def altered(path: Path, how: str) -> bytes:
    """The bytes of a model's file, with one thing wrong in it."""
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    match how:
        case "tail":
            return whole + b"tail"
        case "length 2^63":
            return (1 << 63).to_bytes(8, "little") + whole[8:]
        case "length of all":
            return (len(whole) - 8).to_bytes(8, "little") + whole[8:]
        case "overlap":
            header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]
        case "twice":
            text = json.dumps(header, separators=(",", ":"))
            text = text[:-1] + f',"{names[0]}":{json.dumps(header[names[0]])}}}'
            return len(text).to_bytes(8, "little") + text.encode() + data
        case "100,000 tensors":
            entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
            header |= {f"t{number}": entry for number in range(100_000)}
        case "huge and empty":
            header["none"] = {"dtype": "F32", "shape": [0, 1 << 61], "data_offsets": [0, 0]}
        case "other dtype":
            header[names[0]]["dtype"] = "I32"
        case "renamed":
            header["other"] = header.pop(names[0])
        case "reshaped":
            header[names[0]]["shape"].reverse()
        case "a name of 10,000 letters":
            header["n" * 10_000] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


WRONG = (
    "tail",
    "length 2^63",
    "length of all",
    "overlap",
    "twice",
    "100,000 tensors",
    "huge and empty",
    "other dtype",
    "renamed",
    "reshaped",
    "a name of 10,000 letters",
)
PASSED_OVER = ("twice", "huge and empty")  # by the library; it takes 100,000 tensors, too, if they are empty


@pytest.mark.fault(43)
@pytest.mark.parametrize("how", WRONG)
def test_a_file_with_one_thing_wrong_is_refused_within_50_ms_and_little_memory(tmp_path: Path, how: str) -> None:
    path = write(tmp_path / "m.safetensors", mlp())
    path.write_bytes(altered(path, how))
    if how in PASSED_OVER:
        with safe_open(path, framework="pt") as file:
            assert file.keys()
    refused(path)  # what is imported or built once is no part of it
    before = torch.default_generator.get_state()
    tracemalloc.start()
    try:
        assert len(refused(path)) < 400 + len(str(path))
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()
    assert torch.equal(torch.default_generator.get_state(), before)
    for read in (lambda: load_model(path), lambda: read_vector(path, layout_of(mlp()))):
        begun = time.perf_counter()
        with pytest.raises(ModelError):
            read()
        assert time.perf_counter() - begun < 0.05 * live.SLACK


@pytest.mark.fault(43)
@pytest.mark.parametrize(
    "facts",
    [
        ModelFacts(model="mlp:hidden=1048576-1048576", input_shape=(1 << 20,), outputs=1),
        ModelFacts(model="logistic", input_shape=(1 << 30, 1 << 30), outputs=1 << 30),
        ModelFacts(model="logistic", input_shape=(4,), outputs=1 << 62),
        ModelFacts(model="mlp:hidden=" + "-".join(["1"] * 100_000), input_shape=(4,), outputs=2),
    ],
    ids=["terabytes", "overflow", "outputs", "layers"],
)
def test_a_file_that_names_a_giant_is_refused_before_memory_is_given_to_it(tmp_path: Path, facts: ModelFacts) -> None:
    path = write(tmp_path / "m.safetensors", mlp(), facts)
    refused(path)
    begun = time.perf_counter()
    assert len(refused(path)) < 500 + len(str(path))
    assert time.perf_counter() - begun < 0.05 * live.SLACK


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(min_value=0), value=st.integers(0, 255), cut=st.integers(0, 40))
def test_any_byte_changed_gives_a_model_or_a_model_error(tmp_path: Path, place: int, value: int, cut: int) -> None:
    path = write(tmp_path / "m.safetensors", mlp())
    whole = bytearray(path.read_bytes())
    whole[place % len(whole)] = value
    path.write_bytes(whole[: len(whole) - cut])
    try:
        load_model(path)
    except ModelError as error:
        assert "\n" not in str(error)  # noqa: PT017  # either is fine


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes are of POSIX")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "no file with a content of its own" in refused(tmp_path / "pipe")


def test_a_model_of_more_tensors_than_a_file_names_is_refused_at_once() -> None:
    with pytest.raises(ModelError, match="10000 tensors are too many to be named in a file; join some of them"):
        layout_of(nn.ParameterList([nn.Parameter(torch.zeros(1)) for _ in range(10_000)]))


def test_a_cut_file_is_refused_at_every_length(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", mlp())
    whole = path.read_bytes()
    for length in (*range(0, len(whole), 7), len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "is no model file" in refused(path)


def test_facts_of_a_later_version_are_read(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"weight": torch.zeros(2)}, path, {"p2pfl": '{"model": "mlp", "invented_later": [1]}'})
    assert read_facts(path) == ModelFacts(model="mlp")


# Whole or not at all


class Crash(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_crash_leaves_the_old_file(tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "m.safetensors", mlp(1))
    crashed = []

    def crash(*arguments: Any) -> None:
        crashed.append(moment)
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(os if moment == "fsync" else Path, moment, crash)
        with pytest.raises(Crash):
            write(path, mlp(2))
    assert crashed == [moment]
    assert torch.equal(vector_of(load_model(path)), vector_of(mlp(1)))
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.skipif(sys.platform == "win32", reason="file-size limits are of POSIX")
def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    import resource
    import signal

    path = write(tmp_path / "m.safetensors", mlp(1))
    old = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(old) - 10, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write(path, mlp(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        write(tmp_path / "file" / "m.safetensors", mlp())
