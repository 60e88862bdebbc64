"""The live driver: carries out a participant's effects with asyncio, a transport, and one worker thread.

It decides nothing. Events go in one at a time on the event loop; training, mixing and evaluation run in the worker
thread, so that the network is served meanwhile; whatever is started here belongs to one task group.
"""

import asyncio
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import msgspec
import torch

from p2pfl.bodies import Bodies, payload
from p2pfl.conversations import Conversations, Traffic
from p2pfl.errors import ModelError
from p2pfl.events import Refusal, RoundFinished, RunEvent, ShareRejected, Sink, Warned
from p2pfl.layout import Layout, Vector
from p2pfl.learning.learner import Learner
from p2pfl.mixing import measured, mix
from p2pfl.network.buffers import BufferPool
from p2pfl.network.transport import Service, Transport, Turned
from p2pfl.protocol.messages import KeyChange, Settings
from p2pfl.protocol.participant import (
    Abandon,
    Close,
    Dial,
    Done,
    Drop,
    Effect,
    Emit,
    Event,
    Fetch,
    Hash,
    Mix,
    Mixed,
    Participant,
    Prepare,
    Prepared,
    Rekey,
    Save,
    Send,
    Serve,
    Stop,
    Tick,
    Train,
    Trained,
)
from p2pfl.state import State, Stateful
from p2pfl.types import PeerId
from p2pfl.worker import Worker

_RELINK_S = 6.0  # after another key: the others may take it a while later (`rekeying.PAUSE_S`); see `Limits.rekeyed_s`
_BETWEEN_S = 0.05  # two such dials
_FLUSH_S = 1.25  # for the last messages when leaving
STUCK_S = 30.0  # for the step of training under way to end, or what builds the model; then it is left to itself
_T = TypeVar("_T")


class Checkpoints(Protocol):
    """Where models are saved after each round."""

    def take(self, round: int, vector: Vector, state: State | None) -> Callable[[], object]:
        """Take down the model with which a round begins, the learner's state then, and all else as it is now.

        What is returned writes it, in a thread of its own.
        """
        ...


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    round: int
    error: str
    failures: dict[str, int] = field(default_factory=dict)  # shares that were refused or lost, by reason


class Shell:
    """Runs one participant."""

    def __init__(
        self,
        me: PeerId,
        core: Participant,
        transport: Transport,
        prepare: Callable[[Settings], tuple[Prepared, Learner]],
        *,
        sink: Sink,
        status: Callable[[], bytes],
        checkpoints: Checkpoints | None = None,
        pool: BufferPool | None = None,
        admits: Callable[[PeerId], bool] = lambda peer: True,
        rekey: Callable[[KeyChange], None] = lambda change: None,
    ) -> None:
        """Nothing starts before `run`.

        Args:
            prepare: builds model and data for settings, in the worker thread.
            sink: takes the events, on the event loop.
            status: what to tell whoever lists the network, as JSON.
            admits: whether a peer belongs to the network, so that it may have the model to begin with.
            rekey: accepts another key of the network, uses it, keeps it.
        """
        self._me = me
        self._core = core
        self._transport = transport
        self._prepare = prepare
        self._sink = sink
        self._status = status
        self._checkpoints = checkpoints
        self._pool = pool or BufferPool()
        self.traffic = Traffic()
        self._reported = Traffic()
        self.failures: Counter[str] = Counter()
        self._began = time.monotonic()
        self._round_began = self._began
        self._row_sum: float | None = None  # of the weights that were mixed last
        self.learner: Learner | None = None
        self._loaded: Vector | None = None  # what the learner holds, if nothing was trained since
        self._talk = Conversations(me, transport, self.handle, self.traffic, self.emit)
        self._bodies = Bodies(
            me,
            transport,
            self._pool,
            self.traffic,
            lambda: self._learner().layout,
            admits,
            self._talk.seen.get,
            self.handle,
            self.emit,
        )
        self._rekey = rekey
        self._fetches: dict[tuple[PeerId, str], asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._stopping = threading.Event()
        self._worker = Worker("p2pfl-worker")
        self._saver = ThreadPoolExecutor(1, thread_name_prefix="p2pfl-saver")
        self._saving = False
        # The newest one alone; taken out by the thread that writes it: what is canceled before is still there then.
        self._unsaved: deque[Callable[[], object]] = deque(maxlen=1)
        self._state: State | None = None  # the learner's, as of the last mixing
        self._stateless = False  # what it has cannot be written down, and that was told
        self._group: asyncio.TaskGroup | None = None
        self._done: asyncio.Future[Done] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._error: Exception | None = None

    # Running

    async def run(self, first: Callable[["Shell"], Awaitable[None]]) -> Outcome:
        """Serve and drive until the participant is done.

        Args:
            first: called once the transport serves; it hands in the first events and starts discovery. It runs until
                the end and is cancelled then.

        Raises:
            Exception: what preparing or training raised.
        """
        self._loop = asyncio.get_running_loop()
        self._done = self._loop.create_future()
        service = Service(self._talk.accept, self._bodies.body, self._bodies.sent, self._status, self._turned)
        try:
            async with self._transport.serving(service), asyncio.TaskGroup() as group:
                self._group = group
                self._spawn(_await(first(self)))
                done = await self._done
                with suppress(TimeoutError):
                    async with asyncio.timeout(_FLUSH_S):
                        await self._talk.ended()
                self._close()
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        finally:
            self._close()
            # The last checkpoint first: training may take long to end, and whoever waits for it may lose patience.
            try:
                await _insisting(asyncio.to_thread(self._save_all))
                await self._rest()
            finally:
                self._worker.shutdown(wait=False)
        if self._error is not None:
            raise self._error
        return Outcome(done.round, done.error, dict(self.failures))

    def _save_all(self) -> None:
        self._saver.shutdown()
        self._write_unsaved()

    async def _rest(self) -> None:
        """Wait for the worker thread, as long as it can be expected to end."""
        last = self._worker.last
        if last is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.wrap_future(last), STUCK_S)
        if last is None or last.done():
            self._worker.shutdown()
        else:
            self.warn(f"training, or what builds the model, does not end: after {STUCK_S:g} s it is left to itself")

    def _close(self) -> None:
        self._stopping.set()
        self._talk.open = False
        self._group = None
        if self._timer is not None:
            self._timer.cancel()
        for task in tuple(self._tasks):
            task.cancel()

    def use(self, core: Participant) -> None:
        """Drive this participant, before any event; a stop that came earlier is handed on."""
        self._core = core
        if self._stopping.is_set():
            self.handle(Stop())

    def stop(self) -> None:
        """Leave the network in good order; training ends after the step under way."""
        self._stopping.set()
        self.handle(Stop())

    def handle(self, event: Event) -> None:
        """Hand an event to the participant and carry out what it answers."""
        if self._done is None or self._done.done():
            return
        now = time.monotonic()
        for effect in self._core.handle(event, now):
            try:
                self._carry_out(effect)
            except Exception as error:  # a sink's, or of ours: it ends the run, but never half of what is to be done
                self._fail(error)
        self._wake_at(self._core.next_deadline())

    def _fetch_ended(self, fetch: tuple[PeerId, str], task: asyncio.Task[None]) -> None:
        if self._fetches.get(fetch) is task:  # or it is tried again already
            del self._fetches[fetch]

    def _tick(self) -> None:
        try:
            self.handle(Tick())
        except Exception as error:  # in a timer nobody else would hear of it, and the run would stand still
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """End the run with this error, after a goodbye to the others."""
        if self._error is None:
            self._error = error
            self._loop.call_soon(self.stop)

    def _wake_at(self, deadline: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if deadline is not None and self._group is not None:
            delay = max(0.0, deadline - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Send(link, message):
                self._talk.send(link, message)
            case Close(link, why):
                self._talk.close(link, why)
            case Emit(event):
                self.emit(event)
            case Train():
                self._round_began = time.monotonic()
                self._spawn(self._train(effect))
            case Mix():
                self._spawn(self._mix(effect))
            case Serve():
                self._bodies.serve(effect)
            case Drop(token):
                self._bodies.drop(token)
            case Hash(token):
                self._spawn(self._bodies.hash(token))
            case Fetch(peer, _, offer):
                task = self._spawn(self._bodies.fetch(effect))
                if task is not None:
                    self._fetches[peer, offer.token] = task
                    task.add_done_callback(lambda ended: self._fetch_ended((peer, offer.token), ended))
            case Abandon(peer, token):
                if (peer, token) in self._fetches:
                    self._fetches[peer, token].cancel()
            case Dial(key, addresses):
                self._spawn(self._talk.dial(key, self._bodies.addresses(key, addresses)))
            case Prepare(settings):
                self._spawn(self._build(settings))
            case Rekey(change):
                self._rekey(change)
                self._spawn(self._relink())
            case Save(round, vector):
                if self._checkpoints is not None:
                    self._unsaved.append(self._checkpoints.take(round, vector, self._state))
                    self._spawn(self._save())
            case Done():
                self._talk.open = False
                if self._done is not None and not self._done.done():
                    self._done.set_result(effect)

    def emit(self, event: RunEvent) -> None:
        """Hand an event to the sinks, with the time and the figures that only the driver has."""
        fields: dict[str, object] = {"time_s": time.monotonic() - self._began}
        if isinstance(event, RoundFinished):
            before, now = self._reported, self.traffic
            fields |= {
                "wall_time_s": time.monotonic() - self._round_began,
                "bytes_sent": now.sent - before.sent,
                "bytes_received": now.received - before.received,
                "control_bytes_sent": now.control_sent - before.control_sent,
                "control_bytes_received": now.control_received - before.control_received,
                "row_sum": self._row_sum,
            }
            self._reported = Traffic(now.sent, now.received, now.control_sent, now.control_received)
        if isinstance(event, ShareRejected):
            self.failures[event.reason] += 1
        self._sink(msgspec.structs.replace(event, **fields))

    def warn(self, text: str) -> None:
        """Tell the person something that stops nothing."""
        self.emit(Warned(peer=self._me, text=text))

    # Work

    async def _build(self, settings: Settings) -> None:
        prepared, learner = await self._work(self._prepare, settings)
        self.learner, self._loaded = learner, prepared.vector
        self.handle(prepared)

    async def _train(self, effect: Train) -> None:
        learner = self._learner()
        trained = self._vector(learner.layout)

        def work() -> Trained:
            if self._loaded is not effect.vector:
                learner.load(effect.vector)
            self._loaded = None
            result = learner.train(effect.round, effect.budget_s, self._stopping.is_set)
            learner.parameters(trained)
            return Trained(
                effect.round,
                trained,
                result.steps,
                result.full_steps,
                result.loss,
                result.seconds,
                payload(learner.layout, trained),
                measured(trained)[1],
            )

        event = await self._work(work)
        if not self._stopping.is_set():
            self.handle(event)

    async def _mix(self, effect: Mix) -> None:
        learner = self._learner()
        # The participant is done with what it received: the last of it makes room for the result.
        mixed = effect.received[-1][1] if effect.received else self._vector(learner.layout)

        def work() -> Mixed:
            begun = time.perf_counter()
            distance = mix(effect.own, effect.own_weight, effect.received, mixed)
            learner.load(mixed)
            self._loaded = mixed
            result = learner.evaluate()
            self._state = self._state_of(learner)
            self._row_sum = math.fsum((effect.own_weight, *(weight for weight, _ in effect.received)))
            return Mixed(
                effect.round,
                mixed,
                distance,
                time.perf_counter() - begun,
                result.loss,
                result.accuracy,
                dict(result.metrics),
            )

        self.handle(await self._work(work))

    async def _save(self) -> None:
        """Write a checkpoint beside the next round's training; what is overtaken while another is written is left."""
        if self._saving:
            return
        self._saving = True
        loop = asyncio.get_running_loop()
        try:
            while self._unsaved:
                await loop.run_in_executor(self._saver, self._write_unsaved)
        finally:
            self._saving = False

    def _write_unsaved(self) -> None:
        while self._unsaved:
            self._unsaved.pop()()

    def _state_of(self, learner: Learner) -> State | None:
        """A copy for the next checkpoint; taken in the worker thread, where training cannot change it meanwhile."""
        if self._checkpoints is None or self._stateless or not isinstance(learner, Stateful):
            return None
        try:
            return learner.state()
        except ModelError as error:
            self._stateless = True
            text = f"checkpoints have the model alone: {error}; what goes on from one begins with a new optimizer"
            self.warn_from_thread(text)
            return None

    def warn_from_thread(self, text: str) -> None:
        """`warn`, from another thread than the event loop's."""
        self._loop.call_soon_threadsafe(self.warn, text)

    async def _work(self, function: Callable[..., _T], *arguments: object) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, function, *arguments)

    def _learner(self) -> Learner:
        assert self.learner is not None  # a participant prepares before it trains
        return self.learner

    def _vector(self, layout: Layout) -> Vector:
        """A vector in a pooled buffer."""
        buffer = self._pool.take(layout.framed_bytes)
        return layout.vector_in(buffer.data)

    def _turned(self, turned: Turned) -> None:
        """The transport has turned something away."""
        refusal = Refusal(
            peer=self._me,
            what=turned.what,
            reason=turned.reason,
            other=turned.peer,
            remote=turned.remote,
            detail=turned.detail,
        )
        self.emit(refusal)

    async def _relink(self) -> None:
        """Meet everybody under the new key once they have it, before links under the former one are closed.

        Each link is made anew by the end that dialed it: of two by one end, the later stays, and nothing is lost.
        """
        await asyncio.sleep(_RELINK_S)
        for peer, addresses in self._talk.dialed.items():
            self._spawn(self._talk.dial(peer, addresses))
            await asyncio.sleep(_BETWEEN_S)

    # Tasks

    def _spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None] | None:
        if self._group is None:
            work.close()
            return None
        task = self._group.create_task(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _guarded(self, work: Coroutine[object, object, None]) -> None:
        """An error of training or of the user's own code ends the run, after a goodbye to the others."""
        try:
            await work
        except Exception as error:  # raised by `run` once the others are told
            self._fail(error)


async def _await(work: Awaitable[None]) -> None:
    await work


async def _insisting(work: Coroutine[object, object, None]) -> None:
    """Wait for something to end, however often this is canceled meanwhile."""
    task, canceled = asyncio.ensure_future(work), False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            canceled = True
    task.result()
    if canceled:
        raise asyncio.CancelledError


def single_thread() -> None:
    """Compute with one thread in this process: peers that share a machine disturb each other less, bits repeat."""
    torch.set_num_threads(1)
