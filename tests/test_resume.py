"""Whole peers that stop and go on from their files, over the memory network: bit for bit, also after trouble."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from p2pfl.errors import ModelError, UsageError
from p2pfl.events import RoundFinished, RunEvent, Warned
from p2pfl.model_files import read_checkpoint
from p2pfl.network.memory import MemoryNetwork
from p2pfl.peer import Peer, Result, no_discovery

Make = Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]


def data(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 3, generator=generator)
    return x, x @ torch.tensor([[1.0], [-2.0], [0.5]])


def dropping() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 1))


def adam(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.02)


def momentum(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.02, momentum=0.9)


def halving(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)


def together(
    folder: Path | None,
    rounds: int,
    *,
    resume: bool = False,
    optimizer: Make | None = adam,
    sink: Callable[[RunEvent], None] = lambda event: None,
    introduced: bool = True,
    addresses: Sequence[int] = (1, 2, 3),
) -> dict[str, Result]:
    """Three peers of one event loop do their rounds; on a network of their own, at these addresses."""

    async def run() -> dict[str, Result]:
        memory = MemoryNetwork()
        transports = {number: memory.transport() for number in range(1, 10)}
        peers = [
            Peer(
                name,
                dropping(),
                data(seat),
                data(9),
                network="n",
                optimizer=optimizer,
                schedule=halving if optimizer else None,
                transport=transports[addresses[seat]],
                discovery=no_discovery,
                peers=(f"memory:{addresses[0]}",) if introduced and seat else (),
                out=folder / name if folder else None,
                resume=resume,
                sinks=(sink,),
                device="cpu",
                min_peers=3,
                rounds=rounds,
                topology="complete",
                min_deadline_s=60.0,
                wait_s=20.0,
            )
            for seat, name in enumerate("abc")
        ]
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            tasks = {peer.name: group.create_task(peer.run()) for peer in peers}
        return {name: task.result() for name, task in tasks.items()}

    return asyncio.run(run())


def checkpoint(folder: Path, name: str, generation: str = "") -> Path:
    return folder / name / "checkpoints" / f"{name}{generation}.safetensors"


@pytest.mark.parametrize("optimizer", [None, momentum, adam], ids=["plain", "momentum", "adam"])
def test_stopped_whole_and_resumed_a_run_goes_on_bit_for_bit(tmp_path: Path, optimizer: Make | None) -> None:
    straight = together(None, 10, optimizer=optimizer)
    before = together(tmp_path, 4, optimizer=optimizer)
    resumed = together(tmp_path, 10, resume=True, optimizer=optimizer)
    for name in "abc":
        assert [event.round for event in resumed[name].history] == [4, 5, 6, 7, 8, 9]
        assert straight[name].vector is not None
        assert not torch.equal(before[name].vector, straight[name].vector)
        assert torch.equal(resumed[name].vector, straight[name].vector)
        assert [e.test_loss for e in straight[name].history[4:]] == [e.test_loss for e in resumed[name].history]


def test_without_the_optimizers_state_the_bits_would_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from p2pfl.learning.learner import TorchLearner

    straight = together(None, 5)
    together(tmp_path, 3)
    monkeypatch.setattr(TorchLearner, "restore", lambda self, state: None)
    resumed = together(tmp_path, 5, resume=True)
    assert not torch.equal(resumed["a"].vector, straight["a"].vector)


def test_peers_that_nobody_introduces_find_each_other_where_they_were(tmp_path: Path) -> None:
    together(tmp_path, 2)
    assert set(read_checkpoint(checkpoint(tmp_path, "b")).members) == {"memory:1", "memory:3"}
    resumed = together(tmp_path, 4, resume=True, introduced=False)
    assert {name: result.round for name, result in resumed.items()} == dict.fromkeys("abc", 4)


@pytest.mark.parametrize("harm", ["cut", "gone", "a bit"])
def test_a_bad_checkpoint_is_told_and_the_one_before_goes_on_to_the_same_bits(tmp_path: Path, harm: str) -> None:
    straight = together(None, 6)
    together(tmp_path, 3)
    together(tmp_path, 4, resume=True)  # of one round, whose checkpoint nothing overtakes
    for name in "abc":
        path = checkpoint(tmp_path, name)
        whole = bytearray(path.read_bytes())
        whole[-5] ^= 16
        path.write_bytes(whole if harm == "a bit" else whole[:-1])
        if harm == "gone":
            path.unlink()
    said: list[str] = []
    resumed = together(
        tmp_path, 6, resume=True, sink=lambda event: said.append(event.text) if isinstance(event, Warned) else None
    )
    assert len([text for text in said if text.endswith("going on from the checkpoint before, of round 3")]) == 3
    for name in "abc":
        assert [event.round for event in resumed[name].history] == [3, 4, 5]
        assert torch.equal(resumed[name].vector, straight[name].vector)


def test_two_bad_checkpoints_end_the_start_with_one_line(tmp_path: Path) -> None:
    together(tmp_path, 2)
    for generation in ("", ".previous"):
        checkpoint(tmp_path, "a", generation).write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"no checkpoint can be read.*the one before.*or start without --resume"):
        together(tmp_path, 4, resume=True)


def test_where_there_is_no_checkpoint_the_mend_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no checkpoint .*; start without --resume"):
        together(tmp_path, 4, resume=True)


@pytest.mark.parametrize("rounds", [1, 4])
def test_no_more_rounds_than_there_were_are_refused(rounds: int, tmp_path: Path) -> None:
    together(tmp_path, 4)
    with pytest.raises(ExceptionGroup) as caught:
        together(tmp_path, rounds, resume=True)
    (refusal,) = {str(one).partition(" has ")[2] for one in caught.value.exceptions if isinstance(one, UsageError)}
    assert refusal == "4 rounds behind it: ask for more than that by --rounds, or leave it out"


def test_another_optimizer_than_the_checkpoints_is_refused(tmp_path: Path) -> None:
    together(tmp_path, 2, optimizer=momentum)
    with pytest.raises(ExceptionGroup) as caught:
        together(tmp_path, 4, resume=True, optimizer=adam)
    assert "optimizer was SGD and is Adam: use the one with which the run began" in str(caught.value.exceptions[0])


@pytest.mark.fault(32)
def test_where_checkpoints_cannot_be_written_training_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    straight = together(None, 4)
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "checkpoints").write_text("in the way")
    said: list[str] = []
    finished: list[int] = []

    def sink(event: RunEvent) -> None:
        if isinstance(event, Warned):
            said.append(event.text)
        if isinstance(event, RoundFinished):
            finished.append(event.round)

    done = together(tmp_path, 4, sink=sink)
    assert len(finished) == 12
    assert len([text for text in said if "was not written" in text and "training goes on" in text]) == 3
    assert torch.equal(done["a"].vector, straight["a"].vector)
    assert (tmp_path / "a" / "checkpoints").read_text() == "in the way"


def test_an_optimizer_whose_state_cannot_be_written_is_told_once_and_its_model_is_saved(tmp_path: Path) -> None:
    def odd(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = momentum(parameters)
        optimizer.param_groups[0]["hook"] = len
        return optimizer

    said: list[Any] = []
    together(tmp_path, 3, optimizer=odd, sink=lambda event: said.append(event) if isinstance(event, Warned) else None)
    odd_ones = [event.text for event in said if "hook" in event.text]
    assert len(odd_ones) == 3
    assert odd_ones[0].startswith("checkpoints have the model alone: optimizer/1/param_groups/0/hook is a builtin")
    assert read_checkpoint(checkpoint(tmp_path, "a")).round == 3
