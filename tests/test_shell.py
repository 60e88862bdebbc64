"""Peers over HTTP on this machine: the asyncio shell, with three-number learners unless torch is the subject."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from math import inf, nan
from typing import Any, TypeAlias, TypeVar

import pytest
import torch
from test_transport import run
from torch import nn

from p2pfl.errors import NetworkError, TrainingError, UsageError
from p2pfl.events import (
    Listening,
    PeerGone,
    PeerJoined,
    RoundFinished,
    RunEvent,
    ShareRejected,
    ShareSent,
    StateChanged,
    Warned,
)
from p2pfl.layout import Layout, Vector
from p2pfl.learning.learner import Evaluation, Learner, TorchLearner, Training
from p2pfl.local import LocalNetwork
from p2pfl.network.discovery import split_address
from p2pfl.network.http import HttpTransport
from p2pfl.network.transport import Body, Service, Transport, body_of
from p2pfl.peer import Peer, Result, no_discovery
from p2pfl.recipe import NetworkRecipe, recipe_of
from p2pfl.types import Setting

E = TypeVar("E", bound=RunEvent)
Fault: TypeAlias = Callable[[int, Callable[[], bool]], None]  # (round, stopped), while training
Alter: TypeAlias = Callable[[int, bytes], bytes | None]  # (round, framed model); None withdraws it
THREE = Layout((("a", (2,)), ("b", (1,))))
NO_DATA = (torch.empty(0), torch.empty(0))  # for peers whose learner brings its own
PATIENT: dict[str, Setting] = {"min_deadline_s": 60.0}


class Numbers:
    """A learner of a few numbers: each round halves the distance to a target of its own."""

    def __init__(self, target: float, layout: Layout = THREE, fault: Fault | None = None) -> None:
        self.layout = layout
        self.data = ""
        self.after: list[bytes] = []  # the model after each round
        self._vector = torch.zeros(layout.size)
        self._target = target
        self._fault = fault

    def parameters(self, out: Vector) -> None:
        out.copy_(self._vector)

    def load(self, vector: Vector) -> None:
        self._vector = vector.clone()

    def train(self, round: int, budget_s: float | None, stopped: Callable[[], bool]) -> Training:
        if self._fault is not None:
            self._fault(round, stopped)
        self._vector += 0.5 * (self._target - self._vector)
        return Training(1, 1, 0.0, 0.0)

    def evaluate(self) -> Evaluation:
        self.after.append(self._vector.numpy().tobytes())
        return Evaluation()


class FalseNumbers(Numbers):
    """Says from its second round on that it has learned other numbers: its peer signs them, as any liar would."""

    def __init__(self, target: float, falsify: Callable[[Vector], None], layout: Layout = THREE) -> None:
        super().__init__(target, layout)
        self._falsify = falsify
        self._rounds = 0

    def train(self, round: int, budget_s: float | None, stopped: Callable[[], bool]) -> Training:
        self._rounds = round
        return super().train(round, budget_s, stopped)

    def parameters(self, out: Vector) -> None:
        super().parameters(out)
        if self._rounds >= 1:
            self._falsify(out)


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


class Lying(HttpTransport):
    """Serves other bodies than it was given."""

    def __init__(self, alter: Alter) -> None:
        super().__init__(("127.0.0.1",), 0)
        self._alter = alter
        self.told: list[int] = []  # rounds whose body was altered and fetched

    @asynccontextmanager
    async def serving(self, service: Service) -> AsyncIterator[None]:
        def body(token: str, peer: str) -> Body | None:
            honest = service.body(token, peer)
            if honest is None:
                return None
            data, round = b"".join(honest.pieces()), int(token.partition(".")[0])
            altered = self._alter(round, data)
            if altered != data:
                self.told.append(round)
            return None if altered is None else body_of(memoryview(altered))

        async with super().serving(replace(service, body=body)):
            yield


@dataclass
class Watch:
    """A sink that can be waited on."""

    events: list[RunEvent] = field(default_factory=list)
    _waiting: list[tuple[Callable[[RunEvent], bool], asyncio.Future[Any]]] = field(default_factory=list)

    def __call__(self, event: RunEvent) -> None:
        self.events.append(event)
        for wanted, future in self._waiting:
            if not future.done() and wanted(event):
                future.set_result(event)

    def all(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    async def first(self, kind: type[E], count: int = 1, **fields: object) -> E:
        """The first event of a kind with these fields, or the count-th of them; waits for it."""

        def wanted(event: RunEvent) -> bool:
            return isinstance(event, kind) and all(getattr(event, key) == value for key, value in fields.items())

        seen = [event for event in self.all(kind) if wanted(event)]
        while len(seen) < count:
            future: asyncio.Future[E] = asyncio.get_running_loop().create_future()
            self._waiting.append((wanted, future))
            async with asyncio.timeout(10):
                seen.append(await future)
        return seen[count - 1]


@dataclass
class Node:
    """A running peer."""

    peer: Peer
    watch: Watch
    task: asyncio.Task[Result]
    address: str

    async def result(self) -> Result:
        async with asyncio.timeout(15):
            return await self.task


class Nodes:
    """Peers over HTTP on this machine; the later ones know the first by its address."""

    def __init__(self, **asked: Setting) -> None:
        self.asked: dict[str, Any] = {"topology": "complete", "rounds": 4, "min_deadline_s": 1.0, **asked}
        self.all: dict[str, Node] = {}

    async def start(
        self,
        name: str,
        learner: Learner | Callable[[NetworkRecipe], Learner],
        transport: Transport | None = None,
        peers: tuple[str, ...] | None = None,
        **more: Any,
    ) -> Node:
        watch = Watch()
        if peers is None:
            peers = tuple(node.address for node in list(self.all.values())[:1])
        peer = Peer(
            name,
            learner if callable(learner) else lambda _: learner,
            transport=transport or HttpTransport(("127.0.0.1",), 0),
            discovery=no_discovery,
            peers=peers,
            sinks=(watch,),
            device="cpu",
            **{**self.asked, **more},
        )
        task = asyncio.create_task(peer.run())
        listening = asyncio.create_task(watch.first(Listening))
        await asyncio.wait((task, listening), return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        if not listening.done():
            await asyncio.gather(listening, return_exceptions=True)
            task.result()
        self.all[name] = Node(peer, watch, task, listening.result().addresses[0])
        return self.all[name]

    async def results(self) -> dict[str, Result]:
        return {name: await node.result() for name, node in self.all.items()}


def scene(work: Coroutine[Any, Any, None]) -> None:
    """Run a scene; no task, socket or thread of it is left."""
    before = set(threading.enumerate())
    run(work, timeout_s=30)
    assert set(threading.enumerate()) == before


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


# Shares that are refused


def liar_and_two(alter: Alter, size: int, rounds: int) -> tuple[dict[str, list[bytes]], dict[str, dict[str, int]], int]:
    """Models after each round of a and b, their failures, and how often c lied."""
    layout = THREE if size == 3 else Layout((("w", (size,)),))
    learners = {name: Numbers(target, layout) for name, target in zip("abc", (1.0, 2.0, 6.0), strict=True)}
    liar = Lying(alter)
    failures: dict[str, dict[str, int]] = {}

    async def work() -> None:
        nodes = Nodes(min_peers=3, rounds=rounds, **PATIENT)
        for name in "abc":
            await nodes.start(name, learners[name], liar if name == "c" else None)
        failures.update({name: dict(result.failures) for name, result in (await nodes.results()).items()})

    scene(work())
    assert failures.pop("c") == {}  # nobody lied to it
    return {name: learners[name].after for name in "ab"}, failures, len(liar.told)


@cache
def with_shares_missing(size: int, first: int, rounds: int) -> dict[str, list[bytes]]:
    """What a and b come to where c's shares of some rounds are withdrawn."""
    after, failures, withdrawn = liar_and_two(lambda round, data: None if round >= first else data, size, rounds)
    assert failures == {name: {"gone": rounds - first} for name in "ab"}
    assert withdrawn == 2 * (rounds - first)
    return after


def signed_liar_and_two(
    falsify: Callable[[Vector], None],
) -> tuple[dict[str, list[bytes]], dict[str, dict[str, int]], int]:
    """As `liar_and_two`, for three rounds, where c signs false numbers in the last two."""
    learners = {"a": Numbers(1.0), "b": Numbers(2.0), "c": FalseNumbers(6.0, falsify)}
    failures: dict[str, dict[str, int]] = {}
    told: list[int] = []

    async def work() -> None:
        nodes = Nodes(min_peers=3, rounds=3, **PATIENT)
        for name, learner in learners.items():
            await nodes.start(name, learner)
        failures.update({name: dict(result.failures) for name, result in (await nodes.results()).items()})
        told.extend(sent.round for sent in nodes.all["c"].watch.all(ShareSent) if sent.round >= 1)

    scene(work())
    assert failures.pop("c") == {}  # nobody lied to it
    return {name: learners[name].after for name in "ab"}, failures, len(told)


def one_number(value: float) -> Callable[[Vector], None]:
    def falsify(vector: Vector) -> None:
        vector[1] = value

    return falsify


@pytest.mark.fault(41)
@pytest.mark.parametrize(
    ("value", "reason"),
    [(nan, "not finite"), (inf, "not finite"), (-inf, "not finite"), (1e38, "absurd norm"), (-3e19, "absurd norm")],
)
def test_share_with_an_impossible_number_changes_no_bit(value: float, reason: str) -> None:
    """As if that share were missing, though its owner has signed it."""
    after, failures, lies = signed_liar_and_two(one_number(value))
    assert lies == 4
    assert failures == {name: {reason: 2} for name in "ab"}
    assert after == with_shares_missing(3, 1, 3)


@pytest.mark.fault(41)
@pytest.mark.parametrize("falsify", [one_number(5.0), Vector.zero_, Vector.neg_])
def test_share_of_a_usual_size_counts_whatever_its_numbers(falsify: Callable[[Vector], None]) -> None:
    """The lies above would have been mixed, but for their size; zeros and turned signs are for robust rules."""
    after, failures, lies = signed_liar_and_two(falsify)
    assert lies == 4
    assert failures == {name: {} for name in "ab"}
    assert after != with_shares_missing(3, 1, 3)


@pytest.mark.fault(35)
def test_share_of_which_one_bit_was_changed_on_the_way_changes_no_bit() -> None:
    def alter(round: int, data: bytes) -> bytes:
        return data if round < 1 else data[:-1] + bytes([data[-1] ^ 1])

    after, failures, lies = liar_and_two(alter, 3, 3)
    assert lies == 4
    assert failures == {name: {"wrong payload": 2} for name in "ab"}
    assert after == with_shares_missing(3, 1, 3)


@pytest.mark.fault(36)
def test_old_model_served_for_a_new_one_changes_no_bit() -> None:
    first: list[bytes] = []

    def alter(round: int, data: bytes) -> bytes:
        if round == 0:
            first.append(data)
        return first[0]

    after, failures, lies = liar_and_two(alter, 3, 3)
    assert lies == 4
    assert failures == {name: {"wrong payload": 2} for name in "ab"}
    assert after == with_shares_missing(3, 1, 3)


def reframed(text: bytes) -> Alter:
    """A body of the same length with another header, and what fits of the numbers."""

    def alter(round: int, data: bytes) -> bytes:
        body = len(text).to_bytes(8, "little") + text
        return body + data[len(body) :] if len(body) <= len(data) else data

    return alter


HEADER = THREE.header[8:]
MANY = b"{%s}" % b",".join(b'"t%05d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(100_000))
HEADERS: dict[str, tuple[Alter, int]] = {
    "truncated": (lambda round, data: THREE.header[:-16] + data[len(THREE.header) :] + bytes(16), 3),
    "with a length of 2^63": (lambda round, data: (1 << 63).to_bytes(8, "little") + data[8:], 3),
    "with a length of 0": (lambda round, data: bytes(8) + data[8:], 3),
    "longer than the body": (lambda round, data: len(data).to_bytes(8, "little") + data[8:], 3),
    "with overlapping offsets": (reframed(HEADER.replace(b"[8,12]", b"[4,8] ")), 3),
    "with duplicate keys": (reframed(HEADER.replace(b'"b"', b'"a"')), 3),
    "of another type": (reframed(HEADER.replace(b"F32", b"I32")), 3),
    "of 100,000 tensors": (reframed(MANY), 2_000_000),
    "no header at all": (lambda round, data: b"\xff" * len(data), 3),
}


@pytest.mark.parametrize(("alter", "size"), HEADERS.values(), ids=HEADERS)
def test_body_with_a_header_that_is_not_the_layouts_is_not_mixed(alter: Alter, size: int) -> None:
    """43"""
    after, failures, lies = liar_and_two(alter, size, 2)
    assert lies == 4
    assert failures == {name: {"malformed header": 2} for name in "ab"}
    assert after == with_shares_missing(size, 0, 2)


@pytest.mark.parametrize("alter", [lambda _, data: data[:-4], lambda _, data: data + b"tail", lambda *_: b""])
def test_body_of_another_length_is_not_mixed(alter: Alter) -> None:
    """43: truncated, or with a tail."""
    after, failures, lies = liar_and_two(alter, 3, 2)
    assert lies == 4
    assert failures == {name: {"wrong size": 2} for name in "ab"}
    assert after == with_shares_missing(3, 0, 2)


@pytest.mark.fault(42)
def test_peer_with_another_layout_watches_and_is_told_why() -> None:
    """The others do as without it."""

    def others(third: bool) -> dict[str, list[bytes]]:
        learners = {"a": Numbers(1.0), "b": Numbers(2.0)}

        async def work() -> None:
            nodes = Nodes(min_peers=2, rounds=3, **PATIENT)
            first = await nodes.start("a", learners["a"])
            if third:
                observer = await nodes.start("c", Numbers(9.0, Layout((("a", (2,)), ("c", (4,))))))
                await first.watch.first(PeerJoined, name="c")
            await nodes.start("b", learners["b"])
            results = await nodes.results()
            assert [results[name].round for name in "ab"] == [3, 3]
            assert [results[name].failures for name in "ab"] == [{}, {}]
            assert [results[name].members for name in "ab"] == [("a", "b")] * 2
            if third:
                assert observer.watch.all(RoundFinished) == []
                assert "observer" in [event.state for event in observer.watch.all(StateChanged)]
                (why,) = [event.text for event in observer.watch.all(Warned) if "differs" in event.text]
                assert "b [1] float32" in why
                assert "c [4] float32" in why
                assert all(
                    "c" not in event.other for node in "ab" for event in nodes.all[node].watch.all(ShareRejected)
                )

        scene(work())
        return {name: learner.after for name, learner in learners.items()}

    assert others(third=True) == others(third=False)


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
