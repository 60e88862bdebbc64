"""Checkpoints: complete or not there, whatever ends the writer; the one before stands in for a bad one."""

import io
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from checkpoint_process import LARGE, SMALL, Disk, limited, nobody, reported, saving, started
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from p2pfl.checkpoint import Saved
from p2pfl.errors import ModelError
from p2pfl.layout import Layout
from p2pfl.model_files import Checkpoint, read_vector
from p2pfl.state import State

WHO = Checkpoint(
    peer="a" * 52,
    seat="0",
    name="alice",
    network="home",
    incarnation=2 << 16,
    round=5,
    settings={"rounds": 3, "lr": 0.1},
    members=("127.0.0.1:4000", "[::1]:4001"),
)
MOMENTUM = State({"0/exp_avg": torch.arange(3.0), "0/step": torch.tensor(7.0)}, {"lr": [0.1, None]})
TRACKER = State({"y": torch.tensor([True, False]), "none": torch.zeros(0, 2)}, [1])


def rounds_of(folder: Path) -> tuple[int, float]:
    """The round of the newest, and the number its model has."""
    found = Disk(folder).of.read(SMALL)
    return found.facts.round, found.vector[0].item()


# One generation


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    vector = torch.randn(SMALL.size)
    Disk(tmp_path).of.write(Saved(WHO, vector, MOMENTUM, TRACKER), SMALL)
    generations = Disk(tmp_path).of
    assert generations.newest() == WHO
    back = generations.read(SMALL)
    assert back.facts == WHO
    assert torch.equal(back.vector, vector)
    for found, kept in ((back.learner, MOMENTUM), (back.algorithm, TRACKER)):
        assert found is not None
        assert found.facts == kept.facts
        assert found.tensors.keys() == kept.tensors.keys()
        assert all(torch.equal(found.tensors[name], kept.tensors[name]) for name in kept.tensors)
        assert all(found.tensors[name].dtype == kept.tensors[name].dtype for name in kept.tensors)


def test_states_that_are_not_there_come_back_as_none(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.of.write(Saved(WHO, torch.zeros(SMALL.size)), SMALL)
    back = disk.of.read(SMALL)
    assert (back.learner, back.algorithm) == (None, None)


def test_it_is_plain_safetensors_and_its_model_can_be_begun_with(tmp_path: Path) -> None:
    vector = torch.randn(SMALL.size)
    disk = Disk(tmp_path)
    disk.of.write(Saved(WHO, vector, MOMENTUM), SMALL)
    with safe_open(disk.of.path, framework="pt") as file:
        assert set(file.keys()) == {"a", "b", ".learner/0/exp_avg", ".learner/0/step"}
        assert torch.equal(file.get_tensor("a").reshape(-1), vector[:6])
    assert torch.equal(read_vector(disk.of.path, SMALL), vector)


def test_another_model_is_refused_by_the_tensor_that_differs(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.save(1)
    with pytest.raises(ModelError, match=r"b is \[\] torch.float32, the model has \[1\] torch.float32"):
        disk.of.read(Layout((("a", (2, 3)), ("b", (1,)))))


# Two generations


def test_the_one_before_is_kept(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    assert not disk.of.exist
    for round in (1, 2, 3):
        assert disk.save(round)
    assert disk.names == ["alice.previous.safetensors", "alice.safetensors"]
    assert rounds_of(tmp_path) == (3, 3.0)
    disk.of.path.unlink()
    again = Disk(tmp_path)
    assert again.of.exist
    assert again.of.newest().round == 2
    assert again.said == [
        f"there is no file {disk.of.path}; check the path; going on from the checkpoint before, of round 2"
    ]


def damaged(path: Path, how: str) -> str:
    whole = bytearray(path.read_bytes())
    match how:
        case "a bit of a number":
            whole[-3] ^= 1
            says = "is damaged: its content is not what was written"
        case "a bit of the header":
            place = whole.index(b"alice")
            whole[place] ^= 1
            says = "is damaged: its content is not what was written"
        case "torn":
            del whole[-1]
            says = "the tensors end at byte 56 of 55"
        case "empty":
            whole.clear()
            says = "0 bytes hold no header"
        case "another version's":
            whole = whole.replace(b'"sha256"', b'"sha512"')
            says = "is no checkpoint, or one of another version"
    path.write_bytes(whole)
    return says


HARM = ("a bit of a number", "a bit of the header", "torn", "empty", "another version's")


@pytest.mark.parametrize("how", HARM)
def test_a_bad_one_is_passed_over_with_its_name_the_reason_and_the_round(tmp_path: Path, how: str) -> None:
    writer = Disk(tmp_path)
    writer.save(1)
    writer.save(2)
    says = damaged(writer.of.path, how)
    reader = Disk(tmp_path)
    assert reader.of.newest().round == 1
    assert reader.of.read(SMALL).vector[0] == 1.0
    (warning,) = reader.said
    assert str(reader.of.path) in warning
    assert says in warning
    assert warning.endswith("going on from the checkpoint before, of round 1")


@pytest.mark.parametrize("how", HARM)
def test_a_bad_one_never_takes_the_place_of_the_good_one_before(tmp_path: Path, how: str) -> None:
    writer = Disk(tmp_path)
    writer.save(1)
    writer.save(2)
    damaged(writer.of.path, how)
    resumed = Disk(tmp_path)
    resumed.of.newest()
    resumed.save(2)
    assert rounds_of(tmp_path) == (2, 2.0)
    damaged(resumed.of.path, how)
    assert rounds_of(tmp_path) == (1, 1.0)


def test_two_bad_ones_are_one_error_with_both_reasons(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.save(1)
    disk.save(2)
    damaged(disk.of.path, "empty")
    damaged(disk.of.previous, "a bit of a number")
    with pytest.raises(ModelError, match=r"no checkpoint can be read.*0 bytes.*the one before.*is damaged") as caught:
        Disk(tmp_path).of.newest()
    assert str(caught.value).endswith("put back a copy, or start without --resume")
    assert "\n" not in str(caught.value)


def test_a_new_run_in_an_old_place_keeps_nothing_of_the_old_one(tmp_path: Path) -> None:
    old = Disk(tmp_path)
    old.save(7)
    old.save(8)
    new = Disk(tmp_path)
    new.save(1)
    assert new.names == ["alice.safetensors"]
    new.save(2)
    damaged(new.of.path, "torn")
    assert rounds_of(tmp_path) == (1, 1.0)


@given(st.integers(min_value=0), st.integers(0, 7))
def test_any_bit_that_changed_is_noticed(tmp_path_factory: pytest.TempPathFactory, place: int, bit: int) -> None:
    disk = Disk(tmp_path_factory.mktemp("bit"))
    disk.save(1)
    whole = bytearray(disk.of.path.read_bytes())
    whole[place % len(whole)] ^= 1 << bit
    disk.of.path.write_bytes(whole)
    with pytest.raises(ModelError):
        Disk(disk.folder.parent).of.newest()


# Fault 32: a disk that is full, or may not be written to


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a file system takes root on Linux; the limits of file sizes are tested in any case")
    folder = tmp_path / "tiny"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(file: io.FileIO) -> None:
    while True:
        file.write(bytes(4096))


@pytest.mark.fault(32)
def test_a_full_disk_is_told_once_and_written_again_when_there_is_room(tiny: Path) -> None:
    disk = Disk(tiny)
    assert disk.save(1)
    filler = tiny / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        fill(file)
    assert [disk.save(round) for round in (2, 3, 4)] == [False] * 3
    assert len(disk.said) == 1
    assert disk.said[0].startswith("the checkpoint of round 2 was not written: [Errno 28] No space left on device")
    assert disk.said[0].endswith("training goes on, and checkpoints do once they can be written")
    assert disk.names == ["alice.safetensors"]
    assert rounds_of(tiny) == (1, 1.0)
    filler.unlink()
    assert disk.save(5)
    assert disk.said[1:] == ["checkpoints are written again, from round 5 on"]
    assert disk.names == ["alice.previous.safetensors", "alice.safetensors"]
    assert rounds_of(tiny) == (5, 5.0)


@pytest.mark.fault(32)
def test_a_disk_that_became_read_only_is_told_once(tiny: Path) -> None:
    disk = Disk(tiny)
    assert disk.save(1)
    subprocess.run(["mount", "-o", "remount,ro", tiny], check=True)
    assert [disk.save(round) for round in (2, 3)] == [False] * 2
    assert len(disk.said) == 1
    assert "Read-only file system" in disk.said[0]
    assert rounds_of(tiny) == (1, 1.0)
    subprocess.run(["mount", "-o", "remount,rw", tiny], check=True)
    assert disk.save(4)
    assert rounds_of(tiny) == (4, 4.0)
    assert disk.names == ["alice.previous.safetensors", "alice.safetensors"]


@pytest.mark.fault(32)
@pytest.mark.skipif(sys.platform == "win32", reason="file-size limits are of POSIX")
def test_a_file_that_may_not_grow_is_told_once_and_leaves_no_temporary(tmp_path: Path) -> None:
    done, names, said = reported(limited, tmp_path)
    assert done == [True, False, False, True]
    assert names == ["alice.safetensors"]
    assert ["File too large" in said[0], said[1:]] == [True, ["checkpoints are written again, from round 4 on"]]
    assert rounds_of(tmp_path) == (4, 4.0)


@pytest.mark.fault(32)
@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="becoming somebody else takes root")
def test_a_folder_that_may_not_be_written_to_is_told_once() -> None:
    with tempfile.TemporaryDirectory() as name:  # unlike pytest's own, one that others may look into
        folder = Path(name)
        folder.chmod(0o755)
        Disk(folder).save(1)
        done, names, said = reported(nobody, folder)
        assert (done, names, len(said)) == ([False, False], ["alice.safetensors"], 1)
        assert "Permission denied" in said[0]
        assert rounds_of(folder) == (1, 1.0)


# Fault 47: killed in the middle of it

KILLS = 100


@pytest.mark.fault(47)
@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is of POSIX")
def test_killed_at_a_hundred_instants_it_always_goes_on_from_a_complete_one(tmp_path: Path) -> None:
    draw = random.Random(47)
    written, torn, exits = 0, 0, set()
    for _ in range(KILLS):
        process, report = started(saving, tmp_path)
        assert report.poll(60)  # it writes
        time.sleep(draw.uniform(0, 0.03))  # the instant is the subject
        process.kill()
        process.join()
        exits.add(process.exitcode)
        with suppress(EOFError):
            while report.poll():
                news = report.recv()
                assert isinstance(news, int), news  # no file was ever bad
                written = news
        report.close()
        disk = Disk(tmp_path)
        temporaries = sum(name.endswith(".tmp") for name in disk.names)
        assert temporaries <= 2  # each start clears up
        torn += temporaries > 0
        found = disk.of.read(LARGE)
        assert disk.said == []
        assert found.facts.round >= written
        assert found.learner is not None
        assert found.learner.facts == found.facts.round
        assert found.vector.eq(found.facts.round).all()
        assert found.learner.tensors["m"].eq(found.facts.round).all()
    print(f"{torn} of {KILLS} kills left a temporary; {written} checkpoints were written")
    assert exits == {-signal.SIGKILL}
    assert torn >= KILLS // 10
