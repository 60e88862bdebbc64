"""A peer: a model, its data, and a network by name."""

import asyncio
import base64
import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from torch import nn

from p2pfl.errors import NetworkError, RecipeError, UsageError
from p2pfl.events import Listening, RoundFinished, RunEvent, Sink, StateChanged
from p2pfl.layout import Vector, digest_of
from p2pfl.learning.learner import (
    GENERATOR,
    Learner,
    Loss,
    Metric,
    OptimizerFactory,
    ScheduleFactory,
    Source,
    TorchLearner,
    choose_device,
)
from p2pfl.model_files import Checkpoint, ModelFacts, read_checkpoint, read_vector, save_model
from p2pfl.network.buffers import BufferPool
from p2pfl.network.discovery import (
    Announcement,
    Candidate,
    Discovery,
    Found,
    NoDiscovery,
    split_address,
)
from p2pfl.network.http import HttpTransport
from p2pfl.network.interfaces import local_addresses
from p2pfl.network.mdns import MdnsDiscovery
from p2pfl.network.transport import Transport
from p2pfl.protocol.core import PeerCore
from p2pfl.protocol.membership import display_names
from p2pfl.protocol.messages import Member, Settings
from p2pfl.protocol.participant import Found as FoundEvent
from p2pfl.protocol.participant import Prepared, Rules, Tick
from p2pfl.recipe import PACE, Asked, NetworkRecipe, complaint, recipe_of
from p2pfl.shell import Outcome, Shell
from p2pfl.sinks import tee
from p2pfl.types import PeerId, Setting

Build: TypeAlias = Callable[[NetworkRecipe], Learner]  # called in a worker thread, once the network's recipe is known
DiscoveryFactory: TypeAlias = Callable[[Found, Callable[[str], None]], Discovery]
_MAX_BODY = 1 << 40
_T = TypeVar("_T")


@dataclass(frozen=True)
class Result:
    """What came out of one peer's run."""

    name: str
    round: int  # rounds that are behind it
    history: tuple[RoundFinished, ...] = ()
    failures: Mapping[str, int] = field(default_factory=dict)  # refused or lost shares by reason
    settings: Mapping[str, Setting] = field(default_factory=dict)
    members: tuple[str, ...] = ()
    model: nn.Module | None = None
    vector: Vector | None = None

    @property
    def accuracy(self) -> float | None:
        """Accuracy on the test part after the last round, a fraction."""
        return self.history[-1].test_accuracy if self.history else None

    @property
    def loss(self) -> float | None:
        """Loss on the test part after the last round."""
        return self.history[-1].test_loss if self.history else None

    @property
    def metrics(self) -> Mapping[str, float]:
        """The learner's own metrics after the last round."""
        return self.history[-1].metrics if self.history else {}


class Peer:
    """One peer of a network. Nothing starts before `run`."""

    def __init__(
        self,
        name: str,
        model: nn.Module | Build,
        train: Source | None = None,
        test: Source | None = None,
        *,
        network: str = "home",
        loss: Loss | None = None,
        optimizer: OptimizerFactory | None = None,
        schedule: ScheduleFactory | None = None,
        metrics: Mapping[str, Metric] | None = None,
        device: str = "auto",
        seat: str | None = None,
        interface: str | None = None,
        port: int | None = None,
        peers: tuple[str, ...] = (),
        wait_s: float | None = None,
        out: Path | str | None = None,
        resume: bool = False,
        init: Path | str | None = None,
        sinks: tuple[Sink, ...] = (),
        transport: Transport | None = None,
        discovery: DiscoveryFactory | None = None,
        facts: Callable[[], ModelFacts] | None = None,
        **asked: Setting | None,
    ) -> None:
        """Describe a peer.

        Args:
            name: what others call it.
            model: a module, changed in place; or a function that builds a learner once the recipe is known.
            train, test: examples, as a dataset or a pair of tensors; kept on this machine.
            network: peers of one name find each other.
            loss, optimizer, schedule, metrics: see `TorchLearner`.
            device: auto, cpu, cuda or mps.
            seat: orders the members, where the name should not; an index, or a text unique in the network.
            interface: name or address of the network interface to use; all of them unless given.
            port: a fixed port; else the first free one.
            peers: host:port of peers to begin with, where multicast does not reach; one is enough.
            wait_s: give up if the first round has not begun by then; None waits for ever.
            out: folder for models/ and checkpoints/; nothing is written without it.
            resume: go on from the checkpoint in `out`, with the same id and seat.
            init: a model file to begin with, instead of weights drawn by the seed.
            sinks: take the events of the run.
            transport, discovery: how to reach and find others, instead of HTTP and mDNS.
            facts: what to write into the model's file, so that it can be used again.
            asked: settings of the recipe (`NetworkRecipe` lists them), as `topology="torus"`. What is not asked for
                here is taken over from the network.

        Raises:
            UsageError: something given cannot be.
        """
        if not name or len(name) > 64:
            raise UsageError("a peer's name has 1 to 64 characters")
        for address in peers:
            try:
                split_address(address)
            except ValueError as error:
                raise UsageError(f"--peer: {error}") from error
        self.name = name
        self.network = network
        self._model = model
        self._asked = Asked.of(**asked).settings
        self._parts = (train, test)
        self._learning: dict[str, Any] = {
            "loss": loss,
            "optimizer": optimizer,
            "schedule": schedule,
            "metrics": metrics,
            "device": choose_device(device),
        }
        self._wait_s = wait_s
        self._seeds = peers
        self._sinks = sinks
        self._facts = facts or ModelFacts
        self._out = Path(out) if out is not None else None
        self._init = Path(init) if init is not None else None
        self._everywhere = transport is None and interface is None
        self._transport = transport or _lan_transport(interface, port)
        self._discovery = discovery or _mdns(network, interface)
        self._checkpoint = self._read_checkpoint() if resume else None
        self.id: PeerId = self._checkpoint.peer if self._checkpoint else new_id()
        self.seat = self._checkpoint.seat if self._checkpoint else (seat if seat is not None else name)
        self._shell: Shell | None = None
        self._stop_asked = False
        self._ended = False
        self._core: PeerCore | None = None
        self._history: list[RoundFinished] = []
        self._state = "waiting"
        self._recipe: NetworkRecipe | None = None
        self._settings: dict[str, Setting] = {}  # of the network

    def run_sync(self, rounds: int | None = None) -> Result:
        """`run`, for programs and notebooks without async code of their own."""
        return run_sync(lambda: self.run(rounds))

    async def run(self, rounds: int | None = None) -> Result:
        """Join the network and take part until the rounds are over, or `stop` is called.

        Args:
            rounds: how many the network should do, 0 for ever; as the network does if None.

        Raises:
            RecipeError: the network runs with another value of a setting that was asked for here.
            NetworkError: the port is taken, or nobody was found in time.
            TrainingError: the loss is not finite.
        """
        firm = dict(self._asked) if rounds is None else {**self._asked, "rounds": rounds}
        asked = firm if self._checkpoint is None else self._resumed(self._checkpoint, firm)
        recipe_of(asked)
        self._history.clear()
        instance = new_id()
        shell = Shell(
            self.id,
            _NotYet(),
            self._transport,
            self._prepare,
            sink=tee(self._note, *self._sinks),
            status=self._status,
            checkpoints=self if self._out is not None else None,
            pool=BufferPool(),
        )
        self._shell, self._ended = shell, False
        if self._stop_asked:
            shell.stop()

        async def first(shell: Shell) -> None:
            me = Member(
                peer=self.id,
                seat=self.seat,
                name=self.name,
                addresses=self._transport.addresses[:16],
                incarnation=self._checkpoint.incarnation + 1 if self._checkpoint else 0,
            )
            now = time.monotonic()
            wait_until = None if self._wait_s is None else now + self._wait_s
            self._core = PeerCore(
                me,
                self.network,
                instance,
                asked,
                max_body=_MAX_BODY,
                wait_until=wait_until,
                wait_s=self._wait_s or 0.0,
                complaint=complaint,
                firm=firm,
            )
            shell.use(self._core)
            shell.emit(Listening(peer=self.id, name=self.name, seat=self.seat, addresses=me.addresses))
            shell.handle(Tick())
            for address in self._seeds:
                shell.handle(FoundEvent("", (address,)))
            async with self._discovery(self._found, shell.warn) as discovery:
                await discovery.announce(Announcement(self.id, self.network, self._announced()))
                await asyncio.Event().wait()  # until the run is over and cancels this

        try:
            outcome = await shell.run(first)
        finally:
            self._shell, self._stop_asked, self._ended = None, False, True
        if outcome.error:
            conflict = "asked for" in outcome.error or "runs with" in outcome.error
            raise (RecipeError if conflict else NetworkError)(outcome.error)
        return self._result(shell, outcome)

    def stop(self) -> None:
        """Leave the network in good order: a goodbye to the others, and the model as of the last whole round.

        Not from another thread than the run's event loop: `loop.call_soon_threadsafe(peer.stop)` is for that.
        """
        if self._shell is None:
            self._stop_asked = not self._ended  # before the run: it ends as it begins
        else:
            self._shell.stop()

    @property
    def ready(self) -> bool:
        """Whether model and data are built: the peer can begin when the network does."""
        return self._recipe is not None

    def ask(self, **settings: Setting) -> None:
        """Ask for more settings before running."""
        self._asked = Asked.of(**{**self._asked, **settings}).settings

    def add_peer(self, address: str) -> None:
        """Propose one more host:port while running."""
        if self._shell is not None:
            self._shell.handle(FoundEvent("", (address,)))

    def _announced(self) -> tuple[str, ...]:
        """What discovery tells: on all interfaces, it follows their addresses by itself."""
        if self._everywhere and isinstance(self._transport, HttpTransport):
            return (f"0.0.0.0:{self._transport.port}",)
        return self._transport.addresses

    # Checkpoints

    def save(self, round: int, vector: Vector) -> None:
        """Write the checkpoint with which `round` begins; called by the shell."""
        assert self._out is not None
        shell, recipe = self._shell, self._recipe
        if shell is None or shell.learner is None or recipe is None:
            return
        me = next((m for m in self._core.members if m.peer == self.id), None) if self._core else None
        checkpoint = Checkpoint(
            peer=self.id,
            seat=self.seat,
            name=self.name,
            network=self.network,
            incarnation=me.incarnation if me else 0,
            round=round,
            settings=dict(self._settings),
        )
        save_model(self._checkpoint_path, vector, shell.learner.layout, checkpoint)

    @property
    def model_path(self) -> Path | None:
        """Where the model is written at the end."""
        return None if self._out is None else self._out / "models" / f"{self._file_name}.safetensors"

    @property
    def _file_name(self) -> str:
        return re.sub(r"[^\w. -]+", "-", self.name).strip(".") or "peer"

    @property
    def _checkpoint_path(self) -> Path:
        assert self._out is not None
        return self._out / "checkpoints" / f"{self._file_name}.safetensors"

    def _read_checkpoint(self) -> Checkpoint:
        if self._out is None:
            raise UsageError("--resume needs --out: the folder of the run to go on with")
        if not self._checkpoint_path.exists():
            raise UsageError(f"there is no checkpoint {self._checkpoint_path}; start without --resume")
        checkpoint = read_checkpoint(self._checkpoint_path)
        if checkpoint.network != self.network:
            raise UsageError(f"the checkpoint is of network {checkpoint.network!r}: use --network {checkpoint.network}")
        return checkpoint

    def _resumed(self, checkpoint: Checkpoint, asked: dict[str, Setting]) -> dict[str, Setting]:
        """The settings of the run that goes on; only how long and how patiently may be asked for anew."""
        settings: dict[str, Setting] = {**checkpoint.settings, **asked}
        before, after = recipe_of(checkpoint.settings), recipe_of(settings)
        if before.lineage != after.lineage:
            key = next(key for key in asked if key not in PACE and getattr(before, key) != asked[key])
            raise RecipeError(
                f"the run in {self._out} has {key}={getattr(before, key)}, you asked for {key}={asked[key]}; "
                f"leave out --{key.replace('_', '-')}, or start without --resume"
            )
        return settings

    # Pieces of a run

    def _found(self, candidate: Candidate) -> None:
        if self._shell is not None:
            self._shell.handle(FoundEvent(candidate.peer, candidate.addresses))

    def _prepare(self, settings: Settings) -> tuple[Prepared, Learner]:
        """Model and data for a recipe; runs in the worker thread."""
        with GENERATOR:  # a function of the user's own may draw initial weights from it
            return self._build(settings)

    def _build(self, settings: Settings) -> tuple[Prepared, Learner]:
        recipe = recipe_of(settings)
        if recipe.steps and "epochs" in settings:
            raise RecipeError("the network was asked for both epochs and steps; choose one")
        if isinstance(self._model, nn.Module):
            learner: Learner = TorchLearner(
                self._model,
                *self._parts,
                lr=recipe.lr,
                batch_size=recipe.batch_size,
                epochs=recipe.epochs,
                steps=recipe.steps or None,
                seed=recipe.seed,
                seat=self.seat,
                **self._learning,
            )
        else:
            learner = self._model(recipe)
        self._recipe, self._settings = recipe, dict(settings)
        vector, round = self._initial(learner, recipe)
        return Prepared(
            settings=settings,
            fingerprint=recipe.fingerprint,
            rules=Rules(
                topology=recipe.build_topology,
                schedule=recipe.schedule,
                rounds=recipe.rounds,
                min_peers=recipe.min_peers,
                patience=recipe.patience,
                min_deadline_s=recipe.min_deadline_s,
                max_wait_s=recipe.max_wait_s,
            ),
            layout=learner.layout.digest,
            tensors=learner.layout.describe(),
            bytes=learner.layout.framed_bytes,
            data=learner.data,
            vector=vector,
            init=digest_of(vector),
            round=round,
        ), learner

    def _initial(self, learner: Learner, recipe: NetworkRecipe) -> tuple[Vector, int]:
        if self._checkpoint is not None:
            if recipe_of(self._checkpoint.settings).lineage != recipe.lineage:
                raise RecipeError(
                    "the network's recipe is not the one of the checkpoint; start without --resume, in a new --out"
                )
            vector, round = read_vector(self._checkpoint_path, learner.layout), self._checkpoint.round
        elif self._init is not None:
            vector, round = read_vector(self._init, learner.layout), 0
        else:
            vector = torch.empty(learner.layout.size, dtype=learner.layout.torch_dtype)
            learner.parameters(vector)
            return vector, 0
        learner.load(vector)
        return vector, round

    def _note(self, event: RunEvent) -> None:
        if isinstance(event, RoundFinished):
            self._history.append(event)
        elif isinstance(event, StateChanged):
            self._state = event.state

    def _status(self) -> bytes:
        core, recipe = self._core, self._recipe
        facts = {
            "name": self.name,
            "id": self.id,
            "addresses": self._transport.addresses,
            "network": self.network,
            "model": recipe.model if recipe is not None else "",
            "round": core.round if core is not None else 0,
            "state": self._state,
        }
        return json.dumps(facts).encode()

    def _result(self, shell: Shell, outcome: Outcome) -> Result:
        core, learner = self._core, shell.learner
        vector = core.model if core is not None else None
        module = getattr(learner, "model", None)
        if learner is not None and vector is not None:
            learner.load(vector)
            if self.model_path is not None:
                facts = self._facts()
                facts = ModelFacts(
                    **{
                        **{name: getattr(facts, name) for name in facts.__struct_fields__},
                        "network": self.network,
                        "peer": self.name,
                        "round": outcome.round,
                    }
                )
                try:
                    save_model(self.model_path, vector, learner.layout, facts)
                except OSError as error:
                    shell.warn(f"the model was not saved: {error}")
        took_part = [member for member in core.members if member.since is not None] if core is not None else []
        return Result(
            self.name,
            outcome.round,
            tuple(self._history),
            outcome.failures,
            core.settings if core is not None else {},
            tuple(display_names(took_part).values()),
            module if isinstance(module, nn.Module) else None,
            vector,
        )


def run_sync(work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """Run a coroutine to its end, in a thread of its own where an event loop is running already (as in notebooks)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work())
    outcome: list[_T] = []
    failure: list[BaseException] = []

    def thread() -> None:
        try:
            outcome.append(asyncio.run(work()))
        except BaseException as error:
            failure.append(error)

    runner = threading.Thread(target=thread, name="p2pfl")
    runner.start()
    runner.join()
    if failure:
        raise failure[0]
    return outcome[0]


def new_id() -> PeerId:
    """26 random characters: 128 bits in base32."""
    return base64.b32encode(secrets.token_bytes(16)).decode().rstrip("=").lower()


def _lan_transport(interface: str | None, port: int | None) -> HttpTransport:
    if interface is None:
        return HttpTransport(("0.0.0.0",), port, advertised=lambda: local_addresses(None))
    return HttpTransport(local_addresses(interface), port)


def _mdns(network: str, interface: str | None) -> DiscoveryFactory:
    return lambda found, warn: MdnsDiscovery(network, found, warn, interface=interface)


def no_discovery(found: Found, warn: Callable[[str], None]) -> Discovery:
    """For peers that are named by address alone."""
    return NoDiscovery()


class _NotYet:
    """Stands in until the transport serves and its addresses are known."""

    def handle(self, event: object, now: float) -> tuple[()]:
        return ()

    def next_deadline(self) -> None:
        return None
