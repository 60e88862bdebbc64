"""The peers of a soak as processes: started, killed, held, sampled; what they tell goes into the book."""

import os
import signal
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from p2pfl.chaos.hosts import Host
from p2pfl.chaos.model import PACED
from p2pfl.chaos.promises import Book, Life, Vitals
from p2pfl.events import Listening, RunEvent, Sink
from p2pfl.network_key import NetworkKey
from p2pfl.processes import Ended, PeerSpec, Processes, Pulse, enter_namespace
from p2pfl.types import Setting

_PAGE = os.sysconf("SC_PAGE_SIZE")


class Swarm:
    """Peers by position, each a process at a time."""

    def __init__(
        self,
        processes: Processes,
        book: Book,
        key: NetworkKey,
        settings: Mapping[str, Setting],
        folder: Path | None,
        hosts: Sequence[Host] = (),
        sink: Sink | None = None,
        model: str = PACED,
    ) -> None:
        """Nothing is started yet.

        Args:
            folder: for what the peers keep; None keeps nothing.
            hosts: where each peer lives; loopback if none are given.
            sink: takes the events of all peers.
            model: the one of the settings.
        """
        self.processes = processes
        self.book = book
        self.key = key
        self.hosts = tuple(hosts)
        self._settings = dict(settings)
        self._folder = folder
        self._sink = sink or (lambda event: None)
        self._model = model
        self._began = time.monotonic()
        self._numbers: dict[int, Life] = {}  # of children
        self._number_of: dict[int, int] = {}  # the present child of each position
        self._folders = [folder / name if folder is not None else None for name in book.names]
        self._addresses: dict[int, tuple[str, ...]] = {}
        self._tasks: dict[int, int] = {}
        self._sampled_s = 0.0

    @property
    def now_s(self) -> float:
        """Seconds since the beginning of this soak."""
        return time.monotonic() - self._began

    # The peers

    def launch(self, position: int, *, newcomer: bool = False) -> None:
        """Start a peer: as it was, from its last checkpoint; or as somebody new in the same seat."""
        names = self.book.names
        if newcomer:
            lives = len(self.book.lives[position])
            if self._folder is not None:
                self._folders[position] = self._folder / f"{names[position]}-{lives + 1}"
        folder = self._folders[position]
        spec = PeerSpec(
            name=names[position],
            seat=str(position),
            network=self.key.name,
            key=self.key.token,
            identity=str(folder / "identity.json") if folder is not None else None,
            data="mnist10k",
            part=(position + 1, len(names)),
            settings=self._settings,
            own_model=self._model,
            out=str(folder) if folder is not None else None,
            resume=folder is not None and any(folder.glob("checkpoints/*")),
            namespace=self.hosts[position].namespace if self.hosts else None,
            interface=self.hosts[position].address if self.hosts else "127.0.0.1",
        )
        life = self.book.begin(position, self.now_s)
        number = self.processes.launch(spec)
        self._numbers[number] = life
        self._number_of[position] = number

    def pid(self, position: int) -> int | None:
        """The process of a peer, None where it has ended."""
        number = self._number_of[position]
        return self.processes.pid(number) if self.book.now(position).ended_s is None else None

    def signal(self, position: int, number: signal.Signals) -> None:
        """Send a signal to a peer's process."""
        pid = self.pid(position)
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self, position: int) -> None:
        """End it with -9."""
        self.book.now(position).expected_end = True
        self.signal(position, signal.SIGKILL)

    def leave(self, position: int) -> None:
        """Ask it to leave in good order."""
        self.book.now(position).expected_end = True
        self.processes.command(self._number_of[position], "stop")

    def propose(self, position: int, address: str) -> None:
        """Tell it of an address to dial."""
        self.processes.command(self._number_of[position], "peer", address)

    def stopped(self, position: int) -> bool:
        """Whether its process is held by SIGSTOP."""
        pid = self.pid(position)
        try:
            return pid is not None and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        except OSError:
            return False

    def checkpoints(self, position: int) -> Path:
        """The folder of its checkpoints."""
        folder = self._folders[position]
        assert folder is not None  # only asked where something is kept
        return folder / "checkpoints"

    def address(self, position: int) -> tuple[str, int] | None:
        """Where it listens, once it does."""
        addresses = self._addresses.get(position)
        if not addresses:
            return None
        host, _, port = addresses[0].rpartition(":")
        return host.strip("[]"), int(port)

    def socket(self, seen_from: int) -> socket.socket:
        """A TCP socket on the machine of a peer, closed by the caller."""
        if not self.hosts:
            return socket.socket()
        made: list[socket.socket] = []

        def make() -> None:  # a namespace is entered for a thread alone
            enter_namespace(self.hosts[seen_from].namespace)
            made.append(socket.socket())

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        return made[0]

    # What they tell

    def pump(self, timeout_s: float) -> None:
        """Take in what was told meanwhile."""
        for number, told in self.processes.told(timeout_s):
            life, now_s = self._numbers[number], self.now_s
            if isinstance(told, Ended):
                self.book.end(life, now_s, told.error)
            elif isinstance(told, Pulse):
                self._tasks[number] = told.tasks
            elif isinstance(told, RunEvent):
                if isinstance(told, Listening):
                    self._addresses[life.position] = told.addresses
                self._sink(told)
                self.book.take(life, told, now_s)

    def sample(self, every_s: float = 2.0) -> None:
        """Note what each process holds, now and then."""
        if self.now_s - self._sampled_s < every_s:
            return
        self._sampled_s = self.now_s
        for position, number in self._number_of.items():
            pid, life = self.pid(position), self.book.now(position)
            if pid is None or life.rounds == 0 or self.stopped(position):
                continue
            try:
                memory_mb = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE / 1e6
                descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
            except OSError:
                continue
            if number in self._tasks:
                life.vitals.append(Vitals(self.now_s, memory_mb, descriptors, self._tasks[number]))
            self.processes.command(number, "pulse")

    @property
    def alive(self) -> list[int]:
        """Positions whose process runs."""
        return [position for position in self._number_of if self.book.now(position).ended_s is None]
