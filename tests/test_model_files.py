"""Models and checkpoints on disk: whole or not at all, and never a reason to run foreign code."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
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
