"""A network of named peers inside one process: the code of live peers, without sockets."""

import asyncio
from typing import Any

from torch import nn

from p2pfl.blocking import run_sync
from p2pfl.construction import Build
from p2pfl.errors import UsageError
from p2pfl.events import Sink
from p2pfl.learning.learner import Source
from p2pfl.network.discovery import MemoryDiscovery, MemoryLan
from p2pfl.network.memory import MemoryNetwork
from p2pfl.peer import Peer
from p2pfl.result import Result
from p2pfl.types import Setting

_PATIENT_S = 86_400.0


class LocalNetwork:
    """Named peers inside one process: the code of live peers, without sockets; for notebooks, tests and studies."""

    def __init__(self, *, sinks: tuple[Sink, ...] = (), **asked: Setting | None) -> None:
        """asked: settings of the recipe, as `topology="ring", seed=1`."""
        self._asked = asked
        self._sinks = sinks
        self._memory = MemoryNetwork()
        self._lan = MemoryLan()
        self._modules: list[object] = []
        self.peers: dict[str, Peer] = {}

    def add(self, name: str, model: nn.Module | Build, train: Source, test: Source | None = None, **more: Any) -> Peer:
        """Add a peer; further arguments as for `Peer`.

        Raises:
            UsageError: the name is taken.
        """
        if name in self.peers:
            raise UsageError(f"there is a peer {name!r} already; give another name")
        if isinstance(model, nn.Module) and any(model is other for other in self._modules):
            raise UsageError(f"{name!r} shares its module with another peer; make one for each, or copy.deepcopy it")
        self._modules.append(model)
        # Peers of one process train in turn: one that waits for its turn is not slow.
        asked = {"min_deadline_s": _PATIENT_S, "max_wait_s": _PATIENT_S, **self._asked, **more}
        peer = Peer(
            name,
            model,
            train,
            test,
            network="local",
            transport=self._memory.transport(),
            discovery=lambda found, _: MemoryDiscovery(self._lan, "local", found),
            sinks=(*self._sinks, *asked.pop("sinks", ())),
            **asked,
        )
        self.peers[name] = peer
        return peer

    def run(self, rounds: int | None = None) -> dict[str, Result]:
        """`run_async`, for programs and notebooks without async code of their own."""
        return run_sync(lambda: self.run_async(rounds))

    async def run_async(self, rounds: int | None = None) -> dict[str, Result]:
        """Run all peers to the end; results by name.

        Raises:
            UsageError: there is no peer.
        """
        if not self.peers:
            raise UsageError("the network has no peers: add some first")
        for peer in self.peers.values():
            peer.ask(min_peers=len(self.peers))
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {name: group.create_task(peer.run(rounds)) for name, peer in self.peers.items()}
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return {name: task.result() for name, task in tasks.items()}
