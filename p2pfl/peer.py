"""A peer: a model, its data, and a network by name."""

import asyncio
import base64
import json
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from torch import nn

from p2pfl.belonging import Belonging, ring_in
from p2pfl.blocking import run_sync
from p2pfl.checkpoint import Saved
from p2pfl.construction import Build, Construction
from p2pfl.errors import NetworkError, RecipeError, UsageError
from p2pfl.events import Listening, PeerJoined, RoundFinished, RunEvent, Sink, StateChanged
from p2pfl.folder import Folder, addresses_of_others
from p2pfl.home import Held
from p2pfl.identity import Identity
from p2pfl.layout import Vector
from p2pfl.learning.learner import Learner, Loss, Metric, OptimizerFactory, ScheduleFactory, Source, choose_device
from p2pfl.model_files import Checkpoint, ModelFacts, save_model
from p2pfl.network.buffers import BufferPool
from p2pfl.network.discovery import split_address
from p2pfl.network.http import HttpTransport
from p2pfl.network.interfaces import insecure_warning, listening_hosts
from p2pfl.network.transport import Transport
from p2pfl.network_key import KeyRing, NetworkKey
from p2pfl.presence import DiscoveryFactory, Presence, lan_transport, mdns, no_discovery
from p2pfl.protocol.core import PeerCore
from p2pfl.protocol.membership import display_names
from p2pfl.protocol.messages import Member, Settings
from p2pfl.protocol.participant import Done, KeyChosen, Prepared, Stop, Tick
from p2pfl.protocol.participant import Found as FoundEvent
from p2pfl.recipe import Asked, NetworkRecipe, complaint, recipe_of
from p2pfl.result import Result
from p2pfl.shell import Outcome, Shell
from p2pfl.shut_out import PATIENCE_S, ShutOut
from p2pfl.sinks import tee
from p2pfl.state import State
from p2pfl.types import PeerId, Setting

__all__ = ["Build", "Peer", "Result", "no_discovery", "run_sync"]

_MAX_BODY = 1 << 40


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
        self._init = Path(init) if init is not None else None
        if insecure and transport is None:
            interface = interface or "127.0.0.1"
        self._interface, self._port = interface, port
        self._own_transport, self._own_discovery = transport, discovery
        self._transport: Transport = transport or lan_transport(interface, port, None)
        self._shell: Shell | None = None
        self._untold: list[str] = []  # warnings from before the run
        self._folder = Folder(Path(out), name, self._warn) if out is not None else None
        if resume and self._folder is None:
            raise UsageError("--resume needs --out: the folder of the run to go on with")
        self._checkpoint = self._folder.newest(self.network) if resume and self._folder is not None else None
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
        self._presence: Presence | None = None  # while it runs
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
        asked = self._folder.resumed(self._checkpoint, firm) if self._checkpoint and self._folder else firm
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
            at_home=(ours and self._ring is None) or self._folder is not None,
            warn=self._warn,
            resumed=saved.peer if saved is not None else "",
            after=saved.incarnation if saved is not None else -1,
        )
        if ours:
            self._transport = lan_transport(self._interface, self._port, belonging.credentials)
            if self._insecure:
                self._warn(insecure_warning(listening_hosts(self._interface)))
        self._belonging, self.id = belonging, belonging.peer
        return belonging

    async def _run(self, belonging: Belonging, asked: dict[str, Setting], firm: dict[str, Setting]) -> Result:
        instance = _new_instance()
        earlier = self._checkpoint.members if self._checkpoint else belonging.met()
        self._shut_out, self._shut_out_look, self._banned = ShutOut(self.network, earlier), None, False
        shell = Shell(
            self.id,
            _NotYet(),
            self._transport,
            self._prepare,
            sink=tee(self._note, *self._sinks),
            status=self._status,
            checkpoints=self if self._folder is not None else None,
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
            presence = self._presence = Presence(belonging, shell, lambda: self._members, self._announced)
            async with asyncio.TaskGroup() as group:  # until the run is over and cancels this
                group.create_task(belonging.watch(lambda to: shell.handle(KeyChosen(to)), lambda: self._members))
                group.create_task(presence.last(self._own_discovery or mdns(belonging.tags, self._interface)))

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
        assert self._folder is not None
        assert self._shell is not None
        assert self._shell.learner is not None
        generations, layout = self._folder.generations, self._shell.learner.layout
        me = next((member for member in self._members if member.peer == self.id), None)
        checkpoint = Checkpoint(
            peer=self.id,
            seat=self.seat,
            name=self.name,
            network=self.network,
            incarnation=me.incarnation if me else 0,
            round=round,
            settings=dict(self._settings),
            members=addresses_of_others(self._members, self.id),
        )
        return lambda: generations.save(Saved(checkpoint, vector, state), layout)

    def _warn(self, text: str) -> None:
        """From any thread, before or while running."""
        if self._shell is None:
            self._untold.append(text)
        else:
            self._shell.warn_from_thread(text)

    @property
    def resumed_from(self) -> tuple[Path, int] | None:
        """The checkpoint with which it goes on, and the round before which that was written; None without `resume`."""
        if self._checkpoint is None or self._folder is None:
            return None
        return self._folder.generations.sound or self._folder.generations.path, self._checkpoint.round

    @property
    def model_path(self) -> Path | None:
        """Where the model is written at the end."""
        return self._folder.model_path if self._folder is not None else None

    # Pieces of a run

    def _admits(self, peer: PeerId) -> bool:
        """Whether a peer may have the model to begin with."""
        return any(member.peer == peer and member.state in ("lobby", "member") for member in self._members)

    @property
    def _members(self) -> tuple[Member, ...]:
        return self._core.members if self._core is not None else ()

    def _prepare(self, settings: Settings) -> tuple[Prepared, Learner]:
        """Model and data for a recipe; runs in the worker thread."""
        resumed = (self._checkpoint, self._folder.generations) if self._checkpoint and self._folder else None
        built = Construction(self._model, self._parts, self._learning, self.seat, self._init, resumed).build(settings)
        self._recipe, self._settings = recipe_of(settings), dict(settings)
        return built

    def _note(self, event: RunEvent) -> None:
        if self._shut_out.take(event) and self._shut_out_look is None:
            self._shut_out_look = asyncio.get_running_loop().call_later(PATIENCE_S, self._tell_shut_out)
        if isinstance(event, RoundFinished):
            self._history.append(event)
        elif isinstance(event, StateChanged):
            self._state = event.state
        elif isinstance(event, PeerJoined) and self._presence is not None:
            self._presence.joined(event.other)

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
            if self._folder is not None:
                try:
                    facts = msgspec.structs.replace(
                        self._facts(), network=self.network, peer=self.name, round=outcome.round
                    )
                    save_model(self._folder.model_path, vector, learner.layout, facts)
                except OSError as error:
                    shell.warn(f"the model was not saved: {error}")
        took_part = [member for member in self._members if member.since is not None]
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


def _new_instance() -> str:
    """26 random characters: 128 bits in base32."""
    return base64.b32encode(secrets.token_bytes(16)).decode().rstrip("=").lower()


class _NotYet:
    """Stands in until the transport serves and its addresses are known."""

    def handle(self, event: object, now: float) -> tuple[Done, ...]:
        return (Done(0),) if isinstance(event, Stop) else ()  # what fails so early ends the run, too

    def next_deadline(self) -> None:
        return None
