"""Peers as processes of this machine: launched from one server that has imported torch once, watched, and ended.

The parent needs no torch. Each child has a pipe of its own to the parent: events come up as JSON lines, commands go
down; a child whose pipe ends has lost its parent and leaves, so a killed parent leaves no orphan.
"""

import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import secrets
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import msgspec

from p2pfl.events import Listening, RunEvent
from p2pfl.types import Setting

_PRELOADED = ["p2pfl.peer", "p2pfl.learning.by_name", "p2pfl.processes", "aiohttp", "zeroconf"]
_CLONE_NEWNET = 0x40000000
_GRACE_S = 5.0  # for a child to leave by itself


class PeerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a child is told: one peer of a run."""

    name: str
    seat: str
    network: str
    data: str
    part: tuple[int, int]
    settings: dict[str, Setting]
    target: str | None = None
    own_model: str | None = None
    out: str | None = None
    interface: str = "127.0.0.1"
    port: int = 0
    mdns: bool = True
    peers: tuple[str, ...] = ()
    key: str | None = None  # the network's, as a token; without it nothing is encrypted
    identity: str | None = None  # the file of its own key; one for this run alone unless given
    resume: bool = False  # from the checkpoint in `out`
    namespace: str | None = None  # the network namespace to live in: a host of its own, on Linux and as root

    def __repr__(self) -> str:
        return f"PeerSpec(name={self.name!r}, network={self.network!r})"  # the key is nobody's to read


class Job(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A reference without a network: the peer alone, or (`pooled`) one model on everybody's data."""

    spec: PeerSpec
    pooled: bool = False


class Partition(msgspec.Struct, frozen=True, tag=True):
    """A child's training examples by label."""

    counts: dict[str, int]


class Ended(msgspec.Struct, frozen=True, tag=True):
    """A child's run is over: its accuracy, or the error that ended it."""

    accuracy: float | None = None
    loss: float | None = None
    error: str = ""
    kind: str = ""  # class of the error


class Pulse(msgspec.Struct, frozen=True, tag=True):
    """A child's answer to `pulse`: its event loop goes round, with so many tasks."""

    tasks: int


Told: TypeAlias = RunEvent | Partition | Ended | Pulse
_decoder_events: msgspec.json.Decoder[RunEvent] = msgspec.json.Decoder(RunEvent)
_decoder_others: msgspec.json.Decoder[Partition | Ended | Pulse] = msgspec.json.Decoder(Partition | Ended | Pulse)


class Processes:
    """The children of one parent; used as a context manager, which ends them all."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_PRELOADED)
        self._running: dict[int, tuple[ForkServerProcess, Connection]] = {}
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        deadline = time.monotonic() + _GRACE_S
        for process, pipe in self._running.values():
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
            pipe.close()
        self._running.clear()

    def launch(self, work: PeerSpec | Job) -> int:
        """Start a child; returns its number."""
        _ensure_server()
        near, far = self._context.Pipe()
        function = _peer if isinstance(work, PeerSpec) else _reference
        process = self._context.Process(target=function, args=(msgspec.json.encode(work), far), daemon=True)
        process.start()
        far.close()
        self._count += 1
        self._running[self._count] = (process, near)
        return self._count

    def pid(self, number: int) -> int | None:
        """The process id of a child."""
        return self._running[number][0].pid

    def told(self, timeout_s: float) -> Iterator[tuple[int, Told]]:
        """What the children said meanwhile; waits up to the timeout for a first word. A dead child's is `Ended`."""
        pipes = {pipe: number for number, (_, pipe) in self._running.items()}
        for ready in multiprocessing.connection.wait(list(pipes), timeout_s):
            assert isinstance(ready, Connection)
            number = pipes[ready]
            try:
                while ready.poll():
                    yield number, _told(ready.recv_bytes())
            except (EOFError, OSError):
                process, pipe = self._running.pop(number)
                pipe.close()
                process.join(_GRACE_S)
                if process.exitcode != 0:
                    yield number, Ended(error=f"its process ended with {_exit(process.exitcode)}", kind="died")

    @property
    def alive(self) -> bool:
        """Whether any child may still say something."""
        return bool(self._running)

    def command(self, number: int, *words: str) -> None:
        """Tell a child something: `stop`, `peer HOST:PORT`, or `pulse`."""
        if number in self._running:
            try:
                self._running[number][1].send_bytes(" ".join(words).encode())
            except OSError:
                return  # it is gone; `told` will say so

    def stop(self) -> None:
        """Ask all children to leave in good order."""
        for number in self._running:
            self.command(number, "stop")


def _ensure_server() -> None:
    """Ctrl-C is the parent's alone: the server inherits this mask, and would otherwise fall over while it imports."""
    multiprocessing.resource_tracker.ensure_running()  # here, as starting it would lift the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_jobs(processes: Processes, jobs: Sequence[Job], at_once: int, done: Callable[[int], None]) -> list[Ended]:
    """Run references, some at once; `done` is called with how many are finished."""
    results: dict[int, Ended] = {}
    waiting = list(enumerate(jobs))
    running: dict[int, int] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            index, job = waiting.pop(0)
            running[processes.launch(job)] = index
        for number, told in processes.told(0.2):
            if isinstance(told, Ended) and number in running:
                results[running.pop(number)] = told
                done(len(results))
    return [results[index] for index in range(len(jobs))]


def _told(data: bytes) -> Told:
    if data.startswith(b'{"event"'):
        return _decoder_events.decode(data)
    return _decoder_others.decode(data)


def _exit(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"status {code}"


# In the child


class _Pipe:
    """The child's end: tells the parent, and listens to it in a thread."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def tell(self, message: Told) -> None:
        try:
            self._pipe.send_bytes(msgspec.json.encode(message))
        except OSError:
            return  # the parent is gone; the listening thread ends this process

    def listen(self, heard: Callable[[list[str]], None]) -> None:
        """Call `heard` for each command; an end of the pipe is a `stop`, and soon the end of this process."""

        def listen() -> None:
            try:
                while True:
                    heard(self._pipe.recv_bytes().decode().split())
            except (EOFError, OSError):
                heard(["stop"])
                time.sleep(_GRACE_S)  # a grace period, in a thread of its own, before the hard end
                os._exit(1)

        threading.Thread(target=listen, daemon=True, name="p2pfl-parent").start()


def _ignore_interrupts() -> None:
    """Ctrl-C is the parent's, which tells its children. The server's mask ends here: it is not for what they start."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _peer(encoded: bytes, connection: Connection) -> None:
    """A child that is a peer."""
    import asyncio

    from p2pfl.identity import SECRET_BYTES, Identity
    from p2pfl.learning.by_name import NamedLearning
    from p2pfl.peer import Peer, no_discovery
    from p2pfl.shell import single_thread

    _ignore_interrupts()
    single_thread()
    spec = msgspec.json.decode(encoded, type=PeerSpec)
    if spec.namespace is not None:
        enter_namespace(spec.namespace)
    pipe = _Pipe(connection)
    learning = NamedLearning(
        data=spec.data, part=spec.part, target=spec.target, seat=spec.seat, own_model=spec.own_model
    )

    def build(recipe: Any) -> Any:
        learner = learning(recipe)
        pipe.tell(Partition(learning.label_counts()))
        return learner

    async def run() -> Ended:
        loop = asyncio.get_running_loop()

        def heard(words: list[str]) -> None:
            acts: dict[str, Callable[[], None]] = {
                "stop": peer.stop,
                "peer": lambda: peer.add_peer(words[1]),
                "pulse": lambda: pipe.tell(Pulse(len(asyncio.all_tasks(loop)))),
            }
            act = acts[words[0]]
            with suppress(RuntimeError):  # the run is over, and its loop closed
                loop.call_soon_threadsafe(act)

        def sink(event: RunEvent) -> None:
            pipe.tell(event)
            if isinstance(event, Listening):  # from here on a peer heeds what it is told
                pipe.listen(heard)

        peer = Peer(
            spec.name,
            build,
            network=spec.network,
            key=spec.key,
            insecure=spec.key is None,
            identity=Identity(secrets.token_bytes(SECRET_BYTES)) if spec.identity is None else Path(spec.identity),
            seat=spec.seat,
            interface=spec.interface,
            port=spec.port,
            peers=spec.peers,
            out=spec.out,
            resume=spec.resume,
            sinks=(sink,),
            discovery=None if spec.mdns else no_discovery,
            facts=learning.facts,
        )
        peer.ask(**spec.settings)
        try:
            result = await peer.run()
        except Exception as error:  # whatever it is, the user's own functions included: the parent tells it in one line
            return _failed(error)
        return Ended(result.accuracy, result.loss)

    pipe.tell(asyncio.run(run()))


def enter_namespace(name: str) -> None:
    """Sockets made from here on, in this thread and those it starts, are of that network namespace.

    Raises:
        OSError: there is none of that name, or this process may not.
    """
    import ctypes

    with Path("/var/run/netns", name).open() as file:  # `os.setns` comes with Python 3.12
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"the network namespace {name} cannot be entered")


def _reference(encoded: bytes, connection: Connection) -> None:
    """A child that trains without a network, for as many rounds and with the same draws as the peer would."""
    from p2pfl.learning.by_name import NamedLearning
    from p2pfl.recipe import recipe_of
    from p2pfl.shell import single_thread

    _ignore_interrupts()
    single_thread()
    job = msgspec.json.decode(encoded, type=Job)
    spec, pipe = job.spec, _Pipe(connection)
    stopped = threading.Event()
    pipe.listen(lambda words: stopped.set())
    recipe = recipe_of(spec.settings)
    learning = NamedLearning(
        data=spec.data,
        part=None if job.pooled else spec.part,
        target=spec.target,
        seat="pooled" if job.pooled else spec.seat,
        own_model=spec.own_model,
    )
    try:
        learner = learning(recipe)
        for round in range(recipe.rounds):
            learner.train(round, None, stopped.is_set)
            if stopped.is_set():
                return
        result = learner.evaluate()
    except Exception as error:  # as above
        pipe.tell(_failed(error))
        return
    pipe.tell(Ended(result.accuracy, result.loss))


def _failed(error: Exception) -> Ended:
    """In one line, with the place where code that is not ours to know (a user's own, say) raised it."""
    from p2pfl.errors import P2pflError

    kind = type(error).__name__
    if isinstance(error, P2pflError):
        return Ended(error=str(error), kind=kind)
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    return Ended(error=f"{kind}: {text} ({place.filename}, line {place.lineno})", kind=kind)


def consensus_of_files(paths: Sequence[Path]) -> float | None:
    """Ξ² = (1/n) Σ‖x_i − x̄‖² over saved models, None if one is missing."""
    import numpy as np
    from safetensors.numpy import load_file

    if not paths or not all(path.exists() for path in paths):
        return None
    models: list[Mapping[str, Any]] = [load_file(path) for path in paths]
    total = 0.0
    for name in models[0]:
        stack = np.stack([model[name].astype(np.float64) for model in models])
        total += float(np.square(stack - stack.mean(axis=0)).sum())
    return total / len(paths)
