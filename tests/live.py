"""Peers as processes of their own, with real sockets and real mDNS. Tests wait for facts, with a deadline.

They are forked from one server that has imported torch once, so that a peer costs milliseconds and not the seconds of
that import; on a host of its own, the child first enters that host's network namespace. Commands on a host are started
afresh. What a process says is read in threads.
"""

import asyncio
import json
import multiprocessing
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO, TypeAlias

from namespaces import Host

from p2pfl.network_key import KEY_BYTES, NetworkKey
from p2pfl.processes import enter_namespace

_LOADED = os.getloadavg()[0] > (os.cpu_count() or 1)
# Limits hold on a quiet machine. CI allows a factor, and so does one with more to do than it has cores.
SLACK = 3.0 if os.environ.get("CI") else 1.5 if _LOADED else 1.0
PATIENCE_S = 30.0 * SLACK  # for what is no promise, but must come
LOOPBACK = "127.0.0.1"
_LIFE_S = 150  # a process left over by a killed test run ends by then
_ROOT = Path(__file__).resolve().parents[1]
_PRELOADED = ["p2pfl.peer", "p2pfl.learning.by_name", "p2pfl.cli.app", "aiohttp", "zeroconf"]

Event: TypeAlias = dict[str, Any]


class Running:
    """One process: what it said so far, and its end."""

    def __init__(
        self,
        name: str,
        process: "BaseProcess | subprocess.Popen[str]",
        out: TextIO,
        err: TextIO,
        news: threading.Condition,
    ) -> None:
        self.name = name
        self.out: list[str] = []
        self.err: list[str] = []
        self.events: list[Event] = []
        self._process = process
        self._streams = (out, err)
        self._news = news
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True) for pair in ((out, self.out), (err, self.err))
        ]
        for reader in self._readers:
            reader.start()

    @property
    def id(self) -> str:
        """The peer's id, once it listens."""
        return str(self.of("Listening")[0]["peer"])

    @property
    def address(self) -> str:
        """The peer's first host:port, once it listens."""
        return str(self.of("Listening")[0]["addresses"][0])

    def of(self, event: str, **facts: Any) -> list[Event]:
        """Its events of this kind with these facts, oldest first."""
        return [one for one in list(self.events) if one["event"] == event and facts.items() <= one.items()]

    def has(self, event: str, **facts: Any) -> bool:
        """Whether there was such an event."""
        return bool(self.of(event, **facts))

    def rounds(self) -> list[int]:
        """The rounds it finished, in the order in which it did."""
        return [one["round"] for one in self.of("RoundFinished")]

    def said(self, text: str) -> bool:
        """Whether a line of its output has this text."""
        return any(text in line for line in [*self.out, *self.err])

    def signal(self, number: signal.Signals) -> float:
        """Send a signal; returns when."""
        os.kill(self.pid, number)
        return time.monotonic()

    @property
    def pid(self) -> int:
        """The process's number."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it said its last word, by ending."""
        return not any(reader.is_alive() for reader in self._readers)

    def code(self, within_s: float = PATIENCE_S) -> int:
        """Its exit status, the negative signal if killed; it must end in time."""
        deadline = time.monotonic() + within_s
        for reader in self._readers:
            reader.join(max(0.0, deadline - time.monotonic()))
        assert self.ended, f"{self.name} goes on after {within_s:g} s\n{self.told()}"
        if isinstance(self._process, subprocess.Popen):
            return self._process.wait(5.0)
        self._process.join(5.0)
        assert self._process.exitcode is not None
        return self._process.exitcode

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        if isinstance(self._process, subprocess.Popen):
            self._process.wait()
        else:
            self._process.join()
        for reader in self._readers:
            reader.join()
        for stream in self._streams:
            stream.close()

    def told(self) -> str:
        """Its last words, for the message of a failed test."""
        return "\n".join(f"  {self.name}: {line}" for line in [*self.out[-12:], *self.err[-12:]])

    def _read(self, stream: TextIO, lines: list[str]) -> None:
        with suppress(ValueError):  # closed
            for line in stream:
                with self._news:
                    lines.append(line.rstrip("\n"))
                    if line.startswith('{"at":'):
                        self.events.append(json.loads(line))
                    self._news.notify_all()
        with self._news:
            self._news.notify_all()


class Live:
    """Processes of one test; leaving it ends them all, and complains of a traceback in any."""

    def __init__(self, folder: Path) -> None:
        self.network = f"n-{uuid.uuid4().hex[:12]}"  # no other test on this machine uses it at the same time
        self.key = NetworkKey(self.network, secrets.token_bytes(KEY_BYTES))
        self.folder = folder
        self.home = folder / "home"  # P2PFL_HOME of all its processes
        kept = self.home / "networks" / self.network
        kept.mkdir(parents=True, mode=0o700)
        (kept / "key").touch(0o600)
        (kept / "key").write_text(f"{self.key.token}\n")
        self._processes: list[Running] = []
        self._news = threading.Condition()
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_PRELOADED)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
        if error is None:
            for process in self._processes:
                assert not process.said("Traceback"), "\n".join([*process.out, *process.err])

    def peer(self, name: str, host: Host | None = None, **settings: Any) -> Running:
        """Start a peer that learns one number: settings of `play`, or of the recipe. Encrypted, unless `insecure`."""
        interface = LOOPBACK if host is None else None
        spec = {"name": name, "network": self.network, "interface": interface, **settings}
        if not settings.get("insecure"):
            # Of a network beside this one, too: the same bits under another name.
            spec.setdefault("key", NetworkKey(spec["network"], self.key.secret).token)
        return self._fork(name, _play, spec, host)

    def command(self, name: str, *arguments: str, host: Host | None = None, fork: bool = True) -> Running:
        """Start `p2pfl …`; its `--out` is the folder `name` where that is for `start` to take."""
        if host is not None or not fork:
            return self._start(name, host, [sys.executable, "-m", "p2pfl.cli.app", *arguments])
        return self._fork(name, _command, arguments)

    def start(self, name: str, *more: str, host: Host | None = None, fork: bool = True) -> Running:
        """Start `p2pfl start` in this test's network, with a folder of its own."""
        arguments = ["start", "--name", name, "--network", self.network, "--device", "cpu", "--threads", "1"]
        if "--out" not in more:
            arguments += ["--out", str(self.folder / name)]
        if host is None:
            arguments += ["--interface", LOOPBACK]
        return self.command(name, *arguments, *more, host=host, fork=fork)

    def until(self, what: str, fact: Callable[[], bool], within_s: float = PATIENCE_S) -> float:
        """Wait for a fact about what the processes said; returns when it was seen."""
        with self._news:
            if self._news.wait_for(fact, within_s):
                return time.monotonic()
        told = "\n".join(process.told() for process in self._processes)
        raise AssertionError(f"not within {within_s:g} s: {what}\n{told}")

    def all_have(self, processes: Iterable[Running], event: str, within_s: float = PATIENCE_S, **facts: Any) -> float:
        """Wait until each of the processes had such an event; returns when that was seen."""
        processes = list(processes)
        what = f"{event} {facts} at {', '.join(process.name for process in processes)}"
        return self.until(what, lambda: all(process.has(event, **facts) for process in processes), within_s)

    def _start(self, name: str, host: Host | None, command: Sequence[str]) -> Running:
        path = os.pathsep.join((str(_ROOT), str(_ROOT / "tests")))
        environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "400", "P2PFL_HOME": str(self.home)}
        start = subprocess.Popen if host is None else host.start
        pipe = subprocess.PIPE
        process = start(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, env=environment)
        assert process.stdout is not None
        assert process.stderr is not None
        return self._watch(Running(name, process, process.stdout, process.stderr, self._news))

    def _fork(self, name: str, function: Callable[..., None], argument: Any, host: Host | None = None) -> Running:
        pipes = [self._context.Pipe(duplex=False) for _ in range(2)]
        writers = [writer for _, writer in pipes]
        namespace = None if host is None else host.namespace
        arguments = (*writers, function, argument, str(self.home), namespace)
        process = self._context.Process(target=_forked, args=arguments, daemon=True)
        process.start()
        streams = []
        for reader, writer in pipes:
            streams.append(os.fdopen(os.dup(reader.fileno()), encoding="utf-8"))
            reader.close()
            writer.close()
        return self._watch(Running(name, process, *streams, self._news))

    def _watch(self, process: Running) -> Running:
        self._processes.append(process)
        return process


# In the processes


def _forked(
    out: Connection, err: Connection, function: Callable[[Any], None], argument: Any, home: str, namespace: str | None
) -> None:
    signal.alarm(_LIFE_S)
    if namespace is not None:
        enter_namespace(namespace)
    # A fork server that `p2pfl.processes` started in this test run has SIGINT blocked, and so would its children.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.environ.update(COLUMNS="400", P2PFL_HOME=home)
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    sys.stdout = open(1, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    out.close()
    err.close()
    function(argument)


def _command(arguments: Sequence[str]) -> None:
    from p2pfl.cli import app

    sys.argv = ["p2pfl", *arguments]
    app.main()


def _tell(event: str, **facts: Any) -> None:
    print(json.dumps({"at": time.monotonic(), "event": event, **facts}), flush=True)


def _play(spec: dict[str, Any]) -> None:
    asyncio.run(play(**spec))


async def play(
    name: str,
    network: str,
    *,
    key: str | None = None,
    target: float = 1.0,
    goal: float = 1.0,
    step_s: float = 0.01,
    ballast: int = 0,
    slow_reader: bool = False,
    rounds: int | None = None,
    **settings: Any,
) -> None:
    """Be a peer that learns the number `target` and prints its events; SIGTERM and SIGINT ask it to leave.

    At SIGUSR1 it tells of its tasks.

    Args:
        goal: the number that its test loss is the squared distance from.
        step_s: how long a training step takes; it waits and does not compute.
        ballast: further weights, to make the model large.
        slow_reader: read the models of others at 40 kB/s, and tell of each that it has begun to come.
    """
    import msgspec

    from p2pfl.errors import P2pflError
    from p2pfl.identity import Identity
    from p2pfl.peer import Peer
    from p2pfl.shell import single_thread

    single_thread()
    transport = None
    if slow_reader:
        assert key is not None
        settings["identity"] = Identity(secrets.token_bytes(32))
        transport = _slow_reader(settings["interface"], key, settings["identity"])

    def sink(event: Any) -> None:
        facts = msgspec.to_builtins(event)
        _tell(facts.pop("event"), **facts)

    train, test = _rows(target, goal)
    peer = Peer(
        name,
        paced(step_s, ballast),
        train,
        test,
        network=network,
        key=key,
        transport=transport,
        sinks=(sink,),
        **settings,
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, peer.stop)
    loop.add_signal_handler(signal.SIGUSR1, lambda: _tell("Pulse", tasks=len(asyncio.all_tasks())))
    try:
        result = await peer.run(rounds)
    except P2pflError as error:
        _tell("Failed", kind=type(error).__name__, text=str(error))
        return
    _tell("Result", round=result.round, failures=dict(result.failures), members=list(result.members))


def paced(step_s: float, ballast: int = 0) -> Any:
    """A module of one weight, and as many more that nothing depends on; each training step takes `step_s`."""
    import torch
    from torch import nn

    class Paced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1, bias=False)
            nn.init.zeros_(self.layer.weight)
            if ballast:
                self.ballast = nn.Parameter(torch.zeros(ballast))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            if self.training:
                threading.Event().wait(step_s)
            outputs: torch.Tensor = self.layer(inputs)
            return outputs

    return Paced()


def _rows(target: float, goal: float = 1.0) -> Any:
    import torch

    inputs = torch.ones(8, 1)
    return (inputs, torch.full((8, 1), target)), (inputs, torch.full((8, 1), goal))


# For `p2pfl start --data live:… --model live:…`


def row_one() -> Any:
    """Examples of one peer."""
    return _rows(1.0)


def row_two() -> Any:
    """Examples of another."""
    return _rows(2.0)


HEAVY = 16_000_000  # weights: 64 MB, more than the system buffers of a connection


def heavy() -> Any:
    """A large model."""
    return paced(0.01, HEAVY)


def quick() -> Any:
    """A small model, ten steps of which take a fifth of a second."""
    return paced(0.02)


def endless() -> Any:
    """A model whose training step takes a minute."""
    return paced(60.0)


def _slow_reader(interface: str, key: str, identity: Any) -> Any:
    from p2pfl.errors import FetchError
    from p2pfl.network.discovery import split_address
    from p2pfl.network.http import HttpTransport
    from p2pfl.network.tls import Credentials
    from p2pfl.network_key import KeyRing

    credentials = Credentials(identity, KeyRing(NetworkKey.of_token(key)))
    ((tag, context),) = credentials.client_contexts()

    class SlowReader(HttpTransport):
        async def fetch(self, address: str, token: str, peer: str, into: memoryview, owner: str = "") -> None:
            total = 0
            with suppress(OSError):
                host, port = split_address(address)
                reader, writer = await asyncio.open_connection(host, port, limit=4096, ssl=context, server_hostname=tag)
                try:
                    writer.write(f"GET /v1/body/{token}?peer={peer} HTTP/1.1\r\nHost: peer\r\n\r\n".encode())
                    while data := await reader.read(4096):
                        total += len(data)
                        if total <= 4096:
                            _tell("Reading", token=token)
                        await asyncio.sleep(0.1)  # the pace: 40 kB/s
                finally:
                    writer.close()
            raise FetchError("broken off", f"after {total} bytes")

    return SlowReader((interface,), None, credentials=credentials)
