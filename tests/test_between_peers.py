"""Facts between whole peers, over the memory network: nonsense from others, resuming, models that differ."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from p2pfl.errors import RecipeError, UsageError
from p2pfl.events import RoundFinished, RunEvent, ShareReceived, Started, Warned
from p2pfl.identity import Identity
from p2pfl.local import LocalNetwork
from p2pfl.network.discovery import MemoryDiscovery, MemoryLan
from p2pfl.network.memory import MemoryNetwork, MemoryTransport
from p2pfl.peer import Peer, Result
from p2pfl.protocol.agreement import agree, conflict
from p2pfl.protocol.core import PeerCore
from p2pfl.protocol.messages import VERSIONS, Hello, Member, Refused, Running, Start, encode
from p2pfl.protocol.participant import Done, Effect, LinkOpened, Prepare, Received, Send, Tick
from p2pfl.protocol.progress import change_round
from p2pfl.protocol.records import signed
from p2pfl.recipe import complaint, recipe_of, standing_settings


def data(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 3, generator=generator)
    return x, x @ torch.tensor([[1.0], [-2.0], [0.5]])


def together(folder: Path | None, resume: bool, **asked: Any) -> dict[str, Result]:
    """Two peers of one event loop; each run has a network of its own."""

    async def run() -> dict[str, Result]:
        memory, lan = MemoryNetwork(), MemoryLan()
        torch.manual_seed(5)
        peers = [
            Peer(
                name,
                nn.Linear(3, 1),
                data(seed),
                data(9),
                network="n",
                transport=memory.transport(),
                discovery=lambda found, _: MemoryDiscovery(lan, "n", found),
                out=folder / name if folder else None,
                resume=resume,
                **asked,
            )
            for seed, name in enumerate("ab")
        ]
        async with asyncio.TaskGroup() as group:
            tasks = {peer.name: group.create_task(peer.run()) for peer in peers}
        return {name: task.result() for name, task in tasks.items()}

    return asyncio.run(run())


@pytest.mark.parametrize(
    "asked",
    [{"bogus": 1}, {"lr": -1.0}, {"rounds": "many"}, {"topology": "/etc/passwd"}, {"mixing": "os:system"}],
)
def test_settings_that_no_recipe_can_have_cost_their_sender_alone(asked: dict[str, Any]) -> None:
    core, stranger = core_in_a_lobby()
    effects = core.handle(Received(1, Hello(VERSIONS, "n", "two", stranger, 1, asked)), 0.0)
    assert reasons(effects) == ["impossible settings"]
    assert not any(isinstance(e, Prepare | Done) for e in effects)


def test_a_start_with_impossible_settings_is_refused() -> None:
    core, other = core_in_a_lobby()
    assert reasons(core.handle(Received(1, Hello(VERSIONS, "n", "two", other, 1, {})), 0.0)) == []
    effects = core.handle(Received(1, Start(Running({"lr": 0.0}, "f", "l", (), 0), "i", ())), 0.0)
    assert reasons(effects) == ["impossible settings"]
    assert core.state == "lobby"


def core_in_a_lobby() -> tuple[PeerCore, Member]:
    """A core with one connection, and the record of who is at its other end."""
    mine, theirs = Identity(bytes(32)), Identity(bytes([1]) * 32)
    core = PeerCore(Member(mine.peer, "a", "a"), "n", "one", {}, max_body=1, complaint=complaint, identity=mine)
    core.handle(Tick(), 0.0)
    core.handle(LinkOpened(1), 0.0)
    return core, signed(Member(theirs.peer, "b", "b"), "n", theirs)


def reasons(effects: Sequence[Effect]) -> list[str]:
    """What the other end is told of why it is refused."""
    return [e.message.reason for e in effects if isinstance(e, Send) and isinstance(e.message, Refused)]


def test_a_mixing_that_does_not_exist_is_refused_where_it_is_asked_for() -> None:
    with pytest.raises(RecipeError, match="mixing: there is no 'metropolitan'; there are: auto, metropolis, "):
        Peer("p", nn.Linear(1, 1), mixing="metropolitan")


def test_weights_that_let_the_average_drift_are_warned_of_once_at_the_beginning() -> None:
    told: dict[str, list[RunEvent]] = {"drifting": [], "kept": []}
    for name, mixing in (("drifting", "uniform"), ("kept", "metropolis")):
        network = LocalNetwork(topology="star", mixing=mixing, rounds=3, sinks=(told[name].append,))
        for index in range(4):
            network.add(f"p{index}", nn.Linear(3, 1), data(index))
        network.run()
    warnings = [event.text for event in told["drifting"] if isinstance(event, Warned)]
    assert len(warnings) == 4
    assert "do not keep the network's average" in warnings[0]
    assert not [event for event in told["kept"] if isinstance(event, Warned)]


def test_epochs_of_one_and_steps_of_another_are_a_conflict_and_the_lower_seat_stands() -> None:
    asked = [("ann", {"epochs": 2}), ("ben", {"steps": 5}), ("cat", {})]
    stands = agree(asked)
    assert stands == {"epochs": 2}
    assert recipe_of(stands).epochs == 2
    assert str(conflict({"steps": 5}, stands, asked)).startswith("ann asked for epochs=2, you asked for steps=5")
    assert conflict({"epochs": 2}, stands, asked) is conflict({}, stands, asked) is None


def test_one_absurd_round_number_postpones_a_change_by_no_more_than_there_are_members_or_a_few() -> None:
    assert change_round([3, 4, 10**9], 4, joining=False) == 4 + 8 + 2
    assert change_round([4] * 20 + [10**9], 4, joining=False) == 4 + 21 + 1 + 2
    assert change_round([5, 6], 5, joining=False) == 8
    assert change_round([7, 7, 10**9], 0, joining=True) == 7 + 8 + 2


def test_resuming_with_more_rounds_goes_on_where_the_run_stopped(tmp_path: Path) -> None:
    whole = together(None, False, rounds=5, lr=0.01)
    together(tmp_path, False, rounds=3, lr=0.01)
    resumed = together(tmp_path, True, rounds=5)
    assert [event.round for event in resumed["a"].history] == [3, 4]
    assert resumed["a"].settings["lr"] == 0.01  # remembered, not asked for again
    for name in "ab":
        assert torch.equal(resumed[name].vector, whole[name].vector)


def test_resuming_with_another_recipe_is_refused_with_both_values(tmp_path: Path) -> None:
    together(tmp_path, False, rounds=1, lr=0.01)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    with pytest.raises(ExceptionGroup) as caught:
        together(tmp_path, True, rounds=2, lr=0.5)
    (first, *_) = caught.value.exceptions
    assert isinstance(first, RecipeError)
    assert "lr=0.01" in str(first)
    assert "lr=0.5" in str(first)
    assert {path: path.read_bytes() for path in before} == before


def test_two_peers_of_different_models_are_told_why_nothing_begins() -> None:
    async def run() -> list[str]:
        memory, lan = MemoryNetwork(), MemoryLan()
        told: asyncio.Queue[str] = asyncio.Queue()

        def take(event: RunEvent) -> None:
            if isinstance(event, Warned):
                told.put_nowait(event.text)

        peers = [
            Peer(
                f"p{width}",
                nn.Sequential(nn.Linear(3, width), nn.Linear(width, 1)),
                data(width),
                network="n",
                transport=memory.transport(),
                discovery=lambda found, _: MemoryDiscovery(lan, "n", found),
                sinks=(take,),
            )
            for width in (2, 3)
        ]
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            for peer in peers:
                group.create_task(peer.run())
            texts = [await told.get(), await told.get()]
            for peer in peers:
                peer.stop()
        return texts

    for text in asyncio.run(run()):
        assert "different models" in text
        assert "2 of one model are needed" in text


def test_a_sink_that_fails_ends_the_run_with_its_error_and_the_other_peer_goes_on() -> None:
    def fail(event: RunEvent) -> None:
        if isinstance(event, RoundFinished) and event.round == 1:
            raise RuntimeError("the disk of the dashboard is full")

    async def run() -> tuple[BaseException | None, Result]:
        memory, lan = MemoryNetwork(), MemoryLan()
        peers = [
            Peer(
                name,
                nn.Linear(3, 1),
                data(1),
                network="n",
                transport=memory.transport(),
                discovery=lambda found, _: MemoryDiscovery(lan, "n", found),
                sinks=sinks,
                rounds=4,
                min_deadline_s=0.2,
            )
            for name, sinks in (("bad", (fail,)), ("good", ()))
        ]
        async with asyncio.timeout(30):
            bad, good = await asyncio.gather(*(peer.run() for peer in peers), return_exceptions=True)
        return bad, good

    bad, good = asyncio.run(run())
    assert isinstance(bad, RuntimeError)
    assert good.round == 4


def test_peers_of_one_process_train_all_their_steps_whatever_the_others_take() -> None:
    class Slow(nn.Module):
        """Takes its time: a large product for each batch."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            waste = torch.ones(300, 300)
            for _ in range(20):
                waste = waste @ waste / 300
            return self.layer(x) + 0 * waste[0, 0]

    network = LocalNetwork(rounds=3, batch_size=8)
    for index in range(6):
        network.add(f"p{index}", Slow(), data(index))
    for result in network.run().values():
        assert [(event.steps, event.reduced, event.missing) for event in result.history] == [(8, False, 0)] * 3


def test_one_module_for_two_peers_is_refused() -> None:
    network = LocalNetwork()
    module = nn.Linear(3, 1)
    network.add("a", module, data(1))
    with pytest.raises(UsageError, match="shares its module"):
        network.add("b", module, data(2))


def test_an_error_in_one_peer_of_a_local_network_is_raised_as_it_is() -> None:
    network = LocalNetwork(rounds=2, lr=1e30)
    for index in range(2):
        network.add(f"p{index}", nn.Linear(3, 1), data(index))
    with pytest.raises(Exception, match="became") as caught:
        network.run()
    assert not isinstance(caught.value, BaseExceptionGroup)


def test_a_peer_that_was_stopped_after_its_end_runs_again() -> None:
    network = LocalNetwork(rounds=2)
    peer = network.add("only", nn.Linear(3, 1), data(1))
    assert network.run()["only"].round == 2
    peer.stop()
    assert network.run()["only"].round == 2


def test_every_share_that_counts_is_one_row_however_peers_are_named(tmp_path: Path) -> None:
    from p2pfl.sinks import RunFiles

    files = RunFiles(tmp_path, lambda text: None)
    files.open()
    files(
        Started(peer="a,b\n1", settings={"seed": 1}, round=0, members=())
    )  # files of a run that never began are not kept
    for event in (ShareReceived(peer="a,b\n1", round=0, other="x\ny", bytes=5),) * 2:
        files(event)
    files.close()
    import pandas as pd

    assert pd.read_csv(tmp_path / "edges.csv")["bytes"].tolist() == [5]


def test_settings_of_others_never_exceed_what_a_message_takes() -> None:
    with pytest.raises(UsageError, match="characters"):
        Peer("p", nn.Linear(1, 1), topology="graph:edges=" + "/".join(f"{i}-{i + 1}" for i in range(4000)))
    assert len(encode(Start(Running({}, "f", "l", (), 0), "i", ()))) < 200


def test_an_error_before_the_peer_has_begun_ends_its_run() -> None:
    class Homeless(MemoryTransport):
        @property
        def addresses(self) -> tuple[str, ...]:
            raise ValueError("no address")

    lan = MemoryLan()
    peer = Peer(
        "alice",
        nn.Linear(1, 1),
        (torch.ones(4, 1), torch.ones(4, 1)),
        transport=Homeless(MemoryNetwork(), "memory:1"),
        discovery=lambda found, _: MemoryDiscovery(lan, "home", found),
    )
    with pytest.raises(ValueError, match="no address"):
        asyncio.run(asyncio.wait_for(peer.run(1), 30))


def test_who_comes_later_and_asks_for_another_value_than_a_default_is_told_it() -> None:
    async def run() -> None:
        memory, lan = MemoryNetwork(), MemoryLan()

        def peer(name: str, began: asyncio.Event, **asked: Any) -> Peer:
            def take(event: RunEvent) -> None:
                if isinstance(event, RoundFinished):
                    began.set()

            return Peer(
                name,
                nn.Linear(3, 1),
                data(len(name)),
                data(9),
                loss=nn.functional.mse_loss,
                transport=memory.transport(),
                discovery=lambda found, _: MemoryDiscovery(lan, "home", found),
                sinks=(take,),
                **asked,
            )

        begun = asyncio.Event()
        first, second = peer("alice", begun, rounds=0), peer("bob", begun)
        late = peer("carol", asyncio.Event(), lr=0.5)
        async with asyncio.TaskGroup() as group:
            group.create_task(first.run())
            group.create_task(second.run())
            async with asyncio.timeout(60):
                await begun.wait()
            with pytest.raises(RecipeError, match=r"runs with lr=0\.1, you asked for lr=0\.5; leave out --lr"):
                async with asyncio.timeout(60):
                    await late.run()
            first.stop()
            second.stop()

    asyncio.run(run())


def test_settings_that_stand_are_all_but_those_that_do_not_matter_any_more() -> None:
    standing = standing_settings({"lr": 0.5})
    assert standing["lr"] == 0.5
    assert standing["topology"] == "ring"
    assert "min_peers" not in standing
    assert ("epochs" in standing, "steps" in standing) == (True, False)
    assert ("epochs" in (by_steps := standing_settings({"steps": 3, "min_peers": 4})), by_steps["min_peers"]) == (
        False,
        4,
    )
    assert recipe_of(standing).fingerprint == recipe_of({"lr": 0.5}).fingerprint
