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
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from torch import nn

from p2pfl.belonging import Belonging, ring_in
from p2pfl.checkpoint import Generations, Saved
from p2pfl.errors import NetworkError, RecipeError, UsageError
from p2pfl.events import Listening, PeerJoined, RoundFinished, RunEvent, Sink, StateChanged
from p2pfl.home import Held
from p2pfl.identity import Identity
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
from p2pfl.model_files import Checkpoint, ModelFacts, read_vector, save_model
from p2pfl.network.buffers import BufferPool
from p2pfl.network.discovery import (
    Candidate,
    Discovery,
    Found,
    NoDiscovery,
    ignore,
    split_address,
)
from p2pfl.network.http import HttpTransport
from p2pfl.network.interfaces import insecure_warning, listening_hosts, local_addresses
from p2pfl.network.mdns import MdnsDiscovery
from p2pfl.network.tls import Credentials
from p2pfl.network.transport import Transport
from p2pfl.network_key import KeyRing, NetworkKey
from p2pfl.protocol.core import PeerCore
from p2pfl.protocol.membership import display_names
from p2pfl.protocol.messages import Member, Settings
from p2pfl.protocol.participant import Done, KeyChosen, Prepared, Rules, Stop, Tick
from p2pfl.protocol.participant import Found as FoundEvent
from p2pfl.recipe import PACE, Asked, NetworkRecipe, complaint, recipe_of, standing_settings
from p2pfl.shell import Outcome, Shell
from p2pfl.shut_out import PATIENCE_S, ShutOut
from p2pfl.sinks import tee
from p2pfl.state import State, Stateful
from p2pfl.types import PeerId, Setting

Build: TypeAlias = Callable[[NetworkRecipe], Learner]  # called in a worker thread, once the network's recipe is known
DiscoveryFactory: TypeAlias = Callable[[Found, Callable[[str], None]], Discovery]
_MAX_BODY = 1 << 40
_REMEMBERED = 64  # addresses of others in a checkpoint; more find a network that has moved, and dial longer in vain
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
        network: str | None = None,
        key: str | NetworkKey | KeyRing | None = None,
        insecure: bool = False,
        identity: Held | Identity | Path | str | None = None,
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
            network: peers of one name and key find each other; "home" unless the key says otherwise.
            key: the network's key, as a token say; else the one that this machine keeps, see `p2pfl.create_network`.
                Not needed with a transport of one's own.
            insecure: encrypt nothing, and take in whoever comes; on this machine alone unless `interface` is given.
            identity: who to be: a file of this peer's own key, or an identity for this run; else the one that this
                machine keeps for the name.
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
        self._ring = ring_in(key)
        if self._ring is not None and (insecure or network not in (None, self._ring.name)):
            asked_for = "no key at all" if insecure else f"network {network!r}"
            raise UsageError(f"the key is of network {self._ring.name!r}, and you asked for {asked_for}: choose one")
        self.network = network or (self._ring.name if self._ring is not None else "home")
        self._identity = Path(identity) if isinstance(identity, str) else identity
        self._insecure = insecure
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
        if insecure and transport is None:
            interface = interface or "127.0.0.1"
        self._interface, self._port = interface, port
        self._own_transport, self._own_discovery = transport, discovery
        self._transport: Transport = transport or _lan_transport(interface, port, None)
        self._shell: Shell | None = None
        self._untold: list[str] = []  # warnings from before the run
        self._generations = Generations(self._checkpoint_path, self._warn) if self._out is not None else None
        self._checkpoint = self._read_checkpoint() if resume else None
        self._belonging: Belonging | None = None  # while it runs
        self.id: PeerId = self._checkpoint.peer if self._checkpoint else ""  # known once it runs
        self.seat = self._checkpoint.seat if self._checkpoint else (seat if seat is not None else name)
        self._stop_asked = False
        self._ended = False
        self._core: PeerCore | None = None
        self._history: list[RoundFinished] = []
        self._state = "waiting"
        self._shut_out = ShutOut(self.network, ())
        self._shut_out_look: asyncio.TimerHandle | None = None
        self._banned = False
        self._verified: Callable[[PeerId], None] = ignore  # tells discovery whose candidate proved its key
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
            UsageError: this machine has no key of the network, or another process has this peer's identity.
        """
        firm = dict(self._asked) if rounds is None else {**self._asked, "rounds": rounds}
        asked = firm if self._checkpoint is None else self._resumed(self._checkpoint, firm)
        recipe_of(asked)
        self._history.clear()
        belonging = self._belong()
        try:
            return await self._run(belonging, asked, firm)
        finally:
            belonging.release()

    def _belong(self) -> Belonging:
        """Take identity and keys for one run, and the transport that goes with them."""
        saved = self._checkpoint
        ours = self._own_transport is None
        belonging = Belonging(
            self.network,
            self.name,
            key=self._ring,
            identity=self._identity,
            encrypted=self._ring is not None or (ours and not self._insecure),
            at_home=(ours and self._ring is None) or self._out is not None,
            warn=self._warn,
            resumed=saved.peer if saved is not None else "",
            after=saved.incarnation if saved is not None else -1,
        )
        if ours:
            self._transport = _lan_transport(self._interface, self._port, belonging.credentials)
            if self._insecure:
                self._warn(insecure_warning(listening_hosts(self._interface)))
        self._belonging, self.id = belonging, belonging.peer
        return belonging

    async def _run(self, belonging: Belonging, asked: dict[str, Setting], firm: dict[str, Setting]) -> Result:
        instance = new_id()
        earlier = self._checkpoint.members if self._checkpoint else belonging.met()
        self._shut_out, self._shut_out_look, self._banned = ShutOut(self.network, earlier), None, False
        shell = Shell(
            self.id,
            _NotYet(),
            self._transport,
            self._prepare,
            sink=tee(self._note, *self._sinks),
            status=self._status,
            checkpoints=self if self._out is not None else None,
            pool=BufferPool(),
            admits=self._admits,
            rekey=belonging.rekey,
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
                incarnation=belonging.incarnation,
                key=belonging.identity.public,
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
                identity=belonging.identity,
                banned=belonging.banned,
                rank=belonging.rank,
            )
            shell.use(self._core)
            shell.emit(Listening(peer=self.id, name=self.name, seat=self.seat, addresses=me.addresses))
            shell.handle(Tick())
            for text in self._untold:
                shell.warn(text)
            self._untold.clear()
            for address in (*self._seeds, *earlier):
                shell.handle(FoundEvent("", (address,), address in self._seeds))
            async with asyncio.TaskGroup() as group:  # until the run is over and cancels this
                group.create_task(
                    belonging.watch(
                        lambda change: shell.handle(KeyChosen(change)),
                        lambda: self._core.members if self._core is not None else (),
                    )
                )
                group.create_task(self._be_found(belonging, shell))

        try:
            outcome = await shell.run(first)
        finally:
            self._shell, self._stop_asked, self._ended = None, False, True
        if self._banned:
            raise NetworkError(self._shut_out.text)
        if outcome.error:
            if "asked for" in outcome.error or "runs with" in outcome.error:
                raise RecipeError(outcome.error)
            raise NetworkError("\n".join(filter(None, (outcome.error, self._shut_out.text))))
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
            self._shell.handle(FoundEvent("", (address,), True))

    def _announced(self) -> tuple[str, ...]:
        """What discovery tells: on all interfaces, it follows their addresses by itself."""
        if self._interface is None and self._own_transport is None and isinstance(self._transport, HttpTransport):
            return (f"0.0.0.0:{self._transport.port}",)
        return self._transport.addresses

    # Checkpoints

    def take(self, round: int, vector: Vector, state: State | None) -> Callable[[], object]:
        """The checkpoint with which `round` begins, to be written; called by the shell."""
        assert self._generations is not None
        assert self._shell is not None
        assert self._shell.learner is not None
        generations, layout = self._generations, self._shell.learner.layout
        me = next((m for m in self._core.members if m.peer == self.id), None) if self._core else None
        checkpoint = Checkpoint(
            peer=self.id,
            seat=self.seat,
            name=self.name,
            network=self.network,
            incarnation=me.incarnation if me else 0,
            round=round,
            settings=dict(self._settings),
            members=self._addresses_of_others(),
        )
        return lambda: generations.save(Saved(checkpoint, vector, state), layout)

    def _addresses_of_others(self) -> tuple[str, ...]:
        """Where to look for the network the next time: addresses of its members, each one's first one first."""
        members = self._core.members if self._core is not None else ()
        others = [m.addresses for m in members if m.peer != self.id and m.state not in ("dead", "left")]
        by_rank = [address for rank in zip_longest(*others) for address in rank if address is not None]
        return tuple(dict.fromkeys(by_rank))[:_REMEMBERED]

    def _warn(self, text: str) -> None:
        """From any thread, before or while running."""
        if self._shell is None:
            self._untold.append(text)
        else:
            self._shell.warn_from_thread(text)

    @property
    def resumed_from(self) -> tuple[Path, int] | None:
        """The checkpoint with which it goes on, and the round before which that was written; None without `resume`."""
        if self._checkpoint is None or self._generations is None:
            return None
        return self._generations.sound or self._generations.path, self._checkpoint.round

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
        if self._generations is None or not self._generations.exist:
            raise UsageError(f"there is no checkpoint {self._checkpoint_path}; start without --resume")
        checkpoint = self._generations.newest()
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

    async def _be_found(self, belonging: Belonging, shell: Shell) -> None:
        """Look for others and be announced to them, anew with each key."""
        make = self._own_discovery or _mdns(belonging.tags, self._interface)
        async with make(self._found, shell.warn) as discovery:
            self._verified = discovery.verified
            while True:
                belonging.changed.clear()
                discovery.listen_for(belonging.tags)
                await discovery.announce(belonging.announcement(self._announced()))
                await belonging.changed.wait()

    def _found(self, candidate: Candidate) -> None:
        shell, belonging = self._shell, self._belonging
        if shell is None or belonging is None:
            return
        known = belonging.known(candidate.peer, self._core.members if self._core is not None else ())
        if known is not None:
            # What a peer has signed comes first: the LAN may add to it, and takes nothing away.
            shell.handle(FoundEvent(known.peer, tuple(dict.fromkeys((*known.addresses, *candidate.addresses)))))
        else:
            shell.handle(FoundEvent("" if belonging.encrypted else candidate.peer, candidate.addresses))

    def _admits(self, peer: PeerId) -> bool:
        """Whether a peer may have the model to begin with."""
        members = self._core.members if self._core is not None else ()
        return any(member.peer == peer and member.state in ("lobby", "member") for member in members)

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
                healing=recipe.healing,
            ),
            layout=learner.layout.digest,
            tensors=learner.layout.describe(),
            bytes=learner.layout.framed_bytes,
            data=learner.data,
            vector=vector,
            init=digest_of(vector),
            round=round,
            standing=standing_settings(settings),
        ), learner

    def _initial(self, learner: Learner, recipe: NetworkRecipe) -> tuple[Vector, int]:
        if self._checkpoint is not None:
            if recipe_of(self._checkpoint.settings).lineage != recipe.lineage:
                raise RecipeError(
                    "the network's recipe is not the one of the checkpoint; start without --resume, in a new --out"
                )
            assert self._generations is not None
            saved = self._generations.read(learner.layout)
            learner.load(saved.vector)
            if saved.learner is not None and isinstance(learner, Stateful):
                learner.restore(saved.learner)
            return saved.vector, saved.facts.round
        if self._init is not None:
            vector = read_vector(self._init, learner.layout)
            learner.load(vector)
        else:
            vector = torch.empty(learner.layout.size, dtype=learner.layout.torch_dtype)
            learner.parameters(vector)
        return vector, 0

    def _note(self, event: RunEvent) -> None:
        if self._shut_out.take(event) and self._shut_out_look is None:
            self._shut_out_look = asyncio.get_running_loop().call_later(PATIENCE_S, self._tell_shut_out)
        if isinstance(event, RoundFinished):
            self._history.append(event)
        elif isinstance(event, StateChanged):
            self._state = event.state
        elif isinstance(event, PeerJoined) and self._belonging is not None:
            for name in self._belonging.names(event.other):
                self._verified(name)

    def _tell_shut_out(self) -> None:
        self._shut_out_look = None
        shell = self._shell
        if shell is not None and self._shut_out.over:
            self._banned = True
            shell.stop()
        elif shell is not None and (text := self._shut_out.news()):
            shell.warn(text)

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
            "encrypted": self._belonging is not None and self._belonging.encrypted,
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


def _lan_transport(interface: str | None, port: int | None, credentials: Credentials | None) -> HttpTransport:
    hosts = listening_hosts(interface)
    return HttpTransport(hosts, port, advertised=lambda: local_addresses(interface), credentials=credentials)


def _mdns(tags: tuple[str, ...], interface: str | None) -> DiscoveryFactory:
    return lambda found, warn: MdnsDiscovery(tags, found, warn, interface=interface)


def no_discovery(found: Found, warn: Callable[[str], None]) -> Discovery:
    """For peers that are named by address alone."""
    return NoDiscovery()


class _NotYet:
    """Stands in until the transport serves and its addresses are known."""

    def handle(self, event: object, now: float) -> tuple[Done, ...]:
        return (Done(0),) if isinstance(event, Stop) else ()  # what fails so early ends the run, too

    def next_deadline(self) -> None:
        return None
