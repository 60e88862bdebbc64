"""Peers over HTTP on this machine: the asyncio shell, with three-number learners unless torch is the subject."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from math import nan

import pytest
import torch
from nodes import NO_DATA, PATIENT, Nodes, Numbers, scene
from torch import nn

from p2pfl.errors import NetworkError, TrainingError, UsageError
from p2pfl.events import PeerGone, PeerJoined, RoundFinished, StateChanged
from p2pfl.learning.learner import Evaluation, Learner, TorchLearner
from p2pfl.local import LocalNetwork
from p2pfl.network.discovery import split_address
from p2pfl.network.http import HttpTransport
from p2pfl.peer import Peer, no_discovery
from p2pfl.recipe import NetworkRecipe, recipe_of
from p2pfl.types import Setting


class Recorded:
    """A learner that keeps the model after each round."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self.after: list[bytes] = []
        self.layout, self.data = learner.layout, learner.data
        self.parameters, self.load, self.train = learner.parameters, learner.load, learner.train

    def evaluate(self) -> Evaluation:
        vector = torch.empty(self.layout.size)
        self.parameters(vector)
        self.after.append(vector.numpy().tobytes())
        return self._learner.evaluate()


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# The same bits everywhere


def torch_build(name: str, kept: dict[str, Recorded]) -> Callable[[NetworkRecipe], Learner]:
    torch.manual_seed(7)  # here, not in the build: that runs in each peer's own thread, and the generator is one
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
    draw = torch.Generator().manual_seed(ord(name))
    data = (torch.randn(40, 6, generator=draw), torch.randint(0, 3, (40,), generator=draw))

    def build(recipe: NetworkRecipe) -> Learner:
        learner = TorchLearner(
            model, data, data, lr=recipe.lr, batch_size=recipe.batch_size, seed=recipe.seed, seat=name
        )
        kept[name] = Recorded(learner)
        return kept[name]

    return build


@pytest.mark.parametrize(
    ("topology", "mixing", "names"),
    [
        ("ring", "auto", "abcde"),
        ("one-peer-exponential", "auto", "abcd"),
        ("random-matching", "auto", "abcd"),
        ("random-matching", "lazy", "abcde"),
    ],
)
def test_memory_and_http_give_the_same_bits_for_every_peer_and_round(
    one_thread: None, topology: str, mixing: str, names: str
) -> None:
    rounds = 6
    asked: dict[str, Setting] = {"topology": topology, "mixing": mixing, "rounds": rounds, "seed": 3, **PATIENT}
    asked |= {"batch_size": 8, "lr": 0.2}

    in_memory: dict[str, Recorded] = {}
    network = LocalNetwork(sinks=(), **asked)
    for name in names:
        network.add(name, torch_build(name, in_memory), NO_DATA)
    before = set(threading.enumerate())
    results = network.run()
    assert {name: result.round for name, result in results.items()} == dict.fromkeys(names, rounds)

    over_http: dict[str, Recorded] = {}

    async def work() -> None:
        nodes = Nodes(min_peers=len(names), **asked)
        for name in names[::-1]:  # the order in which they come must not matter
            await nodes.start(name, torch_build(name, over_http))
        live = await nodes.results()
        assert all(result.failures == {} and result.round == rounds for result in live.values())
        assert [event.missing for result in live.values() for event in result.history] == [0] * (rounds * len(names))
        schedule = recipe_of(asked).schedule(len(names))
        for position, name in enumerate(names):
            neighbors = [len(schedule.at(round).sources(position)) for round in range(rounds)]
            assert [event.neighbors for event in live[name].history] == neighbors
        for name in names:
            ours, theirs = live[name].vector, results[name].vector
            assert ours is not None
            assert theirs is not None
            assert torch.equal(ours.view(torch.int32), theirs.view(torch.int32))

    scene(work())
    assert set(threading.enumerate()) == before
    for name in names:
        assert len(in_memory[name].after) == rounds
        assert in_memory[name].after == over_http[name].after
    # They do differ among each other; in pairs of equal weights both have the same afterwards.
    different = len({after for name in names for after in in_memory[name].after})
    assert different >= rounds * len(names) // 2


def test_peers_of_three_numbers_finish_near_the_mean_of_their_targets() -> None:
    async def work() -> None:
        nodes = Nodes(min_peers=4, rounds=5)
        for name, target in zip("abcd", (1.0, 2.0, 3.0, 6.0), strict=True):
            await nodes.start(name, Numbers(target))
        for name, result in (await nodes.results()).items():
            assert (result.name, result.round, result.failures) == (name, 5, {})
            assert result.members == tuple("abcd")
            assert result.vector is not None
            assert result.vector.tolist() == pytest.approx([3 * (1 - 0.5**5)] * 3, rel=1e-6)

    scene(work())


# Errors of one's own


def test_error_in_training_code_ends_that_peer_after_a_goodbye() -> None:
    class OwnError(Exception):
        pass

    def fault(round: int, stopped: Callable[[], bool]) -> None:
        if round == 1:
            raise OwnError("a bug of the user's")

    async def work() -> None:
        nodes = Nodes(min_peers=3, rounds=4, **PATIENT)
        for name in "abc":
            await nodes.start(name, Numbers(1.0, fault=fault if name == "b" else None))
        with pytest.raises(OwnError, match="a bug of the user's"):
            await nodes.all["b"].result()
        for name in "ac":
            assert (await nodes.all[name].watch.first(PeerGone)).reason == "left"
            assert (await nodes.all[name].result()).round == 4

    scene(work())


def test_error_while_building_the_model_ends_that_peer() -> None:
    def build(recipe: NetworkRecipe) -> Learner:
        raise UsageError("no such data")

    async def work() -> None:
        nodes = Nodes(min_peers=2)
        failing = await nodes.start("b", build)
        with pytest.raises(UsageError, match="no such data"):
            await failing.result()

    scene(work())


def test_loss_that_is_not_finite_is_a_training_error(one_thread: None) -> None:
    inputs = torch.ones(8, 6)

    def build(recipe: NetworkRecipe) -> Learner:
        return TorchLearner(nn.Linear(6, 1), (inputs, torch.full((8, 1), nan)), lr=recipe.lr)

    async def work() -> None:
        nodes = Nodes(min_peers=1)
        failing = await nodes.start("a", build)
        with pytest.raises(TrainingError, match="round 0"):
            await failing.result()

    scene(work())


def slow(round: int, stopped: Callable[[], bool]) -> None:
    """Train for ten seconds, unless stopped after a step."""
    for _ in range(1000):
        time.sleep(0.01)
        if stopped():
            return


def test_stop_in_the_middle_of_training_leaves_in_good_order() -> None:
    async def work() -> None:
        nodes = Nodes(min_peers=3, rounds=2, **PATIENT)
        for name in "abc":
            fault = slow if name == "b" else None
            await nodes.start(name, Numbers(1.0, fault=fault))
        stopping = nodes.all["b"]
        await stopping.watch.first(StateChanged, state="training")
        await nodes.all["a"].watch.first(StateChanged, state="gathering")
        begin = time.monotonic()
        stopping.peer.stop()
        assert (await stopping.result()).round == 0
        assert time.monotonic() - begin < 2
        for name in "ac":
            gone = await nodes.all[name].watch.first(PeerGone)
            assert (gone.name, gone.reason) == ("b", "left")
            assert (await nodes.all[name].result()).round == 2

    scene(work())


def test_stop_before_anybody_came_is_no_error() -> None:
    async def work() -> None:
        nodes = Nodes(min_peers=2)
        alone = await nodes.start("a", Numbers(1.0))
        alone.peer.stop()
        result = await alone.result()
        assert (result.round, result.history) == (0, ())

    scene(work())


def test_cancelled_run_leaves_nothing_behind() -> None:
    async def work() -> None:
        nodes = Nodes(min_peers=2, rounds=0, **PATIENT)
        for name in "ab":
            await nodes.start(name, Numbers(1.0))
        await nodes.all["a"].watch.first(RoundFinished)
        for node in nodes.all.values():
            node.task.cancel()
        for node in nodes.all.values():
            with suppress(asyncio.CancelledError):
                await node.task
            assert node.task.cancelled()

    scene(work())


# Finding each other


def test_peers_that_know_one_address_each_learn_of_all() -> None:
    async def work() -> None:
        nodes = Nodes(min_peers=4, rounds=1)
        address: tuple[str, ...] = ()
        for name in "abcd":  # each knows the one before it
            address = ((await nodes.start(name, Numbers(1.0), peers=address)).address,)
        nodes.all["a"].peer.add_peer(address[0])
        for name, node in nodes.all.items():
            others = {(await node.watch.first(PeerJoined, name=other)).name for other in "abcd" if other != name}
            assert len(others) == 3
            assert (await node.result()).members == tuple("abcd")

    scene(work())


def test_nobody_found_in_time_is_an_error_that_says_the_mend() -> None:
    async def work() -> None:
        nodes = Nodes(min_peers=2)
        begin = time.monotonic()
        alone = await nodes.start("a", Numbers(1.0), wait_s=0.3)
        with pytest.raises(NetworkError, match=r"no peer was found within 0.3 s.*--peer HOST:PORT"):
            await alone.result()
        assert 0.3 <= time.monotonic() - begin < 3

    scene(work())


def test_second_peer_on_a_fixed_port_is_told_so() -> None:
    async def work() -> None:
        nodes = Nodes(min_peers=2, rounds=1)
        first = await nodes.start("a", Numbers(1.0))
        port = split_address(first.address)[1]
        with pytest.raises(NetworkError, match=f"port {port} is in use"):
            await nodes.start("b", Numbers(1.0), HttpTransport(("127.0.0.1",), port))
        first.peer.stop()
        await first.result()

    scene(work())


def test_run_sync_works_inside_a_running_event_loop() -> None:
    async def work() -> None:
        peer = Peer(
            "a",
            lambda _: Numbers(1.0),
            transport=HttpTransport(("127.0.0.1",), 0),
            discovery=no_discovery,
            min_peers=1,
            device="cpu",
        )
        assert peer.run_sync(rounds=2).round == 2
        network = LocalNetwork(topology="complete", rounds=2)
        network.add("a", lambda _: Numbers(1.0), NO_DATA)
        network.add("b", lambda _: Numbers(2.0), NO_DATA)
        assert [result.round for result in network.run().values()] == [2, 2]

    scene(work())


def test_run_sync_raises_what_the_run_raises() -> None:
    async def work() -> None:
        peer = Peer(
            "a",
            lambda _: Numbers(1.0),
            transport=HttpTransport(("127.0.0.1",), 0),
            discovery=no_discovery,
            wait_s=0.1,
            device="cpu",
        )
        with pytest.raises(NetworkError):
            peer.run_sync()

    scene(work())
