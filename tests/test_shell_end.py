"""The end of a run whose training hangs, or that is canceled again and again."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

import pytest
import torch
from nodes import Nodes, Numbers, scene
from test_transport import run

from p2pfl import shell
from p2pfl.events import RunEvent, Warned
from p2pfl.network.memory import MemoryNetwork
from p2pfl.protocol.participant import Done, Effect, Event, Save, Stop, Tick
from p2pfl.shell import Shell
from p2pfl.state import State
from p2pfl.types import PeerId
from p2pfl.worker import Worker


def test_training_that_hangs_is_left_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "STUCK_S", 0.1)
    begun, goes_on, ended = threading.Event(), threading.Event(), threading.Event()
    worker: list[threading.Thread] = []

    def hangs(round: int, stopped: Callable[[], bool]) -> None:
        worker.append(threading.current_thread())
        begun.set()
        goes_on.wait(60)
        ended.set()

    async def work() -> None:
        nodes = Nodes(min_peers=2, rounds=0)
        for name in "ab":
            await nodes.start(name, Numbers(1.0, fault=hangs if name == "a" else None))
        hung = nodes.all["a"]
        assert await asyncio.to_thread(begun.wait, 60)
        hung.peer.stop()
        assert (await hung.result()).round == 0
        assert not ended.is_set()
        [warned] = [event.text for event in hung.watch.all(Warned) if "does not end" in event.text]
        assert warned == "training, or what builds the model, does not end: after 0.1 s it is left to itself"
        nodes.all["b"].peer.stop()
        await nodes.all["b"].result()
        goes_on.set()
        await asyncio.to_thread(worker[0].join, 60)

    try:
        scene(work())
    finally:
        goes_on.set()
    assert ended.wait(60)


class Saves:
    """Asks for a checkpoint at each event, and is done when stopped."""

    def __init__(self) -> None:
        self._round = 0

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        if isinstance(event, Stop):
            return [Done(0)]
        self._round += 1
        return [Save(self._round, torch.zeros(3))]

    def next_deadline(self) -> float | None:
        return None


class Written:
    """Checkpoints that are a list, on a disk that can be slow."""

    def __init__(self) -> None:
        self.rounds: list[int] = []
        self.begun, self.goes_on = threading.Event(), threading.Event()

    def take(self, round: int, vector: torch.Tensor, state: State | None) -> Callable[[], object]:
        def write() -> None:
            self.begun.set()
            self.goes_on.wait(60)
            self.rounds.append(round)

        return write


def test_the_last_checkpoint_is_written_however_often_the_run_is_canceled() -> None:
    written = Written()

    def unused(*_: object) -> None:
        raise AssertionError

    async def work() -> None:
        ready: asyncio.Event = asyncio.Event()

        async def first(driver: Shell) -> None:
            ready.set()
            await asyncio.Event().wait()

        events: list[RunEvent] = []
        driver = Shell(
            PeerId("me" * 5),
            Saves(),
            MemoryNetwork().transport(),
            unused,  # type: ignore[arg-type]
            sink=events.append,
            status=lambda: b"",
            checkpoints=written,
        )
        task = asyncio.create_task(driver.run(first))
        await ready.wait()
        driver.handle(Tick())
        assert await asyncio.to_thread(written.begun.wait, 60)
        driver.handle(Tick())
        for _ in range(50):
            task.cancel()
            await asyncio.sleep(0)
        ended = task.done()
        written.goes_on.set()
        assert not ended
        with suppress(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert written.rounds == [1, 2]

    run(work())


def test_a_worker_does_one_thing_after_the_other_and_hands_on_what_they_raise() -> None:
    worker, done = Worker("test"), []
    first = worker.submit(done.append, 1)
    failing = worker.submit(int, "no number")
    last = worker.submit(lambda: len(done))
    assert last.result(60) == 1
    assert first.result(60) is None
    with pytest.raises(ValueError, match="no number"):
        failing.result(60)
    worker.shutdown()
    assert done == [1]


def test_a_worker_that_was_given_nothing_ends_at_once() -> None:
    Worker("test").shutdown()
