"""A process that does nothing but discovery: a script that prints a JSON line for each event, and its handle."""

import asyncio
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SLACK = 3.0 if os.environ.get("CI") else 1.0  # limits hold on a quiet machine; CI allows a factor
FOUND_WITHIN_S = 3.0 * SLACK
_START_WITHIN_S = 30.0  # for the interpreter to start and import, which is not what is measured
_ROOT = Path(__file__).resolve().parents[1]

Start = Callable[..., "subprocess.Popen[str]"]


class DiscoveryProcess:
    """One running process; leaving its `with` lets it say goodbye.

    Args:
        start: runs a command, as `subprocess.Popen` or a host's `start`.
        warnings: what Python does with its warnings; whatever goes to standard error fails the test.
        settings: `peer` (None: announce nothing), `network`, `port`, `interface`, `refresh_s`, `verify` (a candidate
            that proves its key).
    """

    def __init__(self, start: Start, warnings: str = "error", **settings: Any) -> None:
        command: Sequence[str] = [sys.executable, "-W", warnings, __file__, json.dumps(settings)]
        environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
        pipe = subprocess.PIPE
        self.process = start(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)
        self.seen: list[dict[str, Any]] = []
        self._passed: list[dict[str, Any]] = []  # read while another was waited for
        self._lines: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> "DiscoveryProcess":
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stderr is not None
        try:
            if self.process.poll() is None:
                self.stop()
        finally:
            self.process.kill()
            self.process.wait()
            self._reader.join()
            complaints = self.process.stderr.read()
            for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
                assert stream is not None
                stream.close()
        assert complaints == "", complaints

    def stop(self) -> None:
        """Let it say goodbye and end; it must do so within its second, and cleanly."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(timeout=5.0 * SLACK) == 0

    def wait(self, event: str, within_s: float = _START_WITHIN_S, **facts: Any) -> dict[str, Any]:
        """The first line of this event with these facts that no wait returned yet; `TimeoutError` if none comes."""
        deadline = time.monotonic() + within_s
        for line in self._passed:
            if line["event"] == event and facts.items() <= line.items():
                self._passed.remove(line)
                return line
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise TimeoutError(f"no {event} {facts} in {within_s} s, but {self.seen}") from None
            self.seen.append(line)
            if line["event"] == event and facts.items() <= line.items():
                return line
            self._passed.append(line)

    def state(self) -> dict[str, Any]:
        """Who is in its table now, its memory in bytes, and the seconds of processor time it took."""
        self.process.send_signal(signal.SIGUSR1)
        return self.wait("state")

    def events(self, event: str) -> list[dict[str, Any]]:
        """The lines of this event read so far."""
        return [line for line in self.seen if line["event"] == event]

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(json.loads(line))


async def run(settings: dict[str, Any]) -> None:
    """Discover until standard input ends."""
    from p2pfl.network.discovery import Announcement, Candidate
    from p2pfl.network.mdns import MdnsDiscovery

    def tell(event: str, **facts: Any) -> None:
        print(json.dumps({"event": event, "at": time.monotonic(), **facts}), flush=True)

    def found(candidate: Candidate) -> None:
        if candidate.peer == settings.get("verify"):
            discovery.verified(candidate.peer)
        tell("found", peer=candidate.peer, addresses=list(candidate.addresses))

    def state() -> None:
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        tell("state", peers=[one.peer for one in discovery.candidates()], bytes=resident, cpu_s=time.process_time())

    async with MdnsDiscovery(
        settings["network"],
        found,
        lambda text: tell("warning", text=text),
        lost=lambda peer: tell("lost", peer=peer, left=[other.peer for other in discovery.candidates()]),
        interface=settings.get("interface"),
        refresh_s=settings.get("refresh_s", 10.0),
    ) as discovery:
        if settings.get("peer") is not None:
            await discovery.announce(
                Announcement(settings["peer"], settings["network"], (f"0.0.0.0:{settings.get('port', 7700)}",))
            )
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, state)
        tell("ready", torch="torch" in sys.modules)
        await asyncio.to_thread(sys.stdin.read)
    tell("closed")


if __name__ == "__main__":
    asyncio.run(run(json.loads(sys.argv[1])))
