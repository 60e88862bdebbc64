"""Peers over HTTP on this machine, with learners of three numbers, for tests of the asyncio shell."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import torch
from test_transport import run

from p2pfl.events import Listening, RunEvent
from p2pfl.layout import Layout, Vector
from p2pfl.learning.learner import Evaluation, Learner, Training
from p2pfl.network.http import HttpTransport
from p2pfl.network.transport import Transport
from p2pfl.peer import Peer, Result, no_discovery
from p2pfl.recipe import NetworkRecipe
from p2pfl.types import Setting

E = TypeVar("E", bound=RunEvent)
Fault: TypeAlias = Callable[[int, Callable[[], bool]], None]  # (round, stopped), while training
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
