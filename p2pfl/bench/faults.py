"""How fast faults are seen and over: a crash, a lost cable, a split, a held process, busy cores. Limits, measured."""

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

from p2pfl.chaos import hosts as machines
from p2pfl.chaos.hosts import Host
from p2pfl.chaos.promises import Book
from p2pfl.chaos.soak import recipe
from p2pfl.chaos.swarm import Swarm
from p2pfl.errors import P2pflError
from p2pfl.events import PeerGone, RoundFinished, RunEvent
from p2pfl.network_key import NetworkKey
from p2pfl.processes import Processes

_PATIENCE_S = 90.0
_HELD_S = 20.0
_DOWN_S = 30.0
_MOMENT_S = 1.0  # until this process has heard of the end of another


class Watched:
    """A network of peers on which faults are timed."""

    def __init__(self, processes: Processes, peers: int, hosts: Sequence[Host] = ()) -> None:
        """All of them learn when this returns.

        Raises:
            P2pflError: they did not begin.
        """
        self.gone: list[tuple[float, PeerGone]] = []
        self.names = [f"peer-{position + 1}" for position in range(peers)]
        self.book = Book(self.names, 1e9, 1e9)
        key = NetworkKey(f"bench-{os.getpid()}", os.urandom(32))
        self.swarm = Swarm(processes, self.book, key, recipe(peers, 0), None, hosts, self._note)
        for position in range(peers):
            self.swarm.launch(position)
        self.until("all peers learn", self.whole)

    def until(self, what: str, fact: Callable[[], bool], within_s: float = _PATIENCE_S) -> float:
        """Wait for a fact; returns the seconds that it took."""
        begun = time.monotonic()
        while not fact():
            self.swarm.pump(0.02)
            if time.monotonic() - begun > within_s:
                raise P2pflError(f"not within {within_s:g} s: {what}")
        return time.monotonic() - begun

    def passes(self, seconds: float) -> None:
        """Let time pass, and listen."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.swarm.pump(0.05)

    def whole(self, positions: Sequence[int] | None = None) -> bool:
        """Whether these peers, or all, have one view of all that run."""
        running = {self.names[position] for position in self.swarm.alive}
        asked = self.swarm.alive if positions is None else positions
        return all(set(self.book.now(position).members) == running for position in asked)

    def dead_for(self, position: int, since_s: float) -> set[str]:
        """The peers that have taken one for dead since a time."""
        return {
            event.peer
            for at_s, event in self.gone
            if event.other == self.book.now(position).peer and event.reason == "dead" and at_s >= since_s
        }

    def _note(self, event: RunEvent) -> None:
        if isinstance(event, PeerGone):
            self.gone.append((self.swarm.now_s, event))


def measure(minutes: float, between_hosts: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds until each fault is seen, and over; and how many were taken for dead that were not.

    Args:
        minutes: how long both cores are saturated.
        between_hosts: also what takes network namespaces: lost cables and splits.
        say: takes a line of progress.
    """
    figures: dict[str, Any] = {}
    for peers in (4, 16):
        say(f"{peers} peers on loopback: one is killed, another is held for {_HELD_S:g} s")
        with _watched(peers) as watched:
            if peers == 4:
                figures |= _hold(watched)
            figures[f"reset_s_{peers}"] = _kill(watched)
    if between_hosts:
        for peers in (4, 16):
            say(f"{peers} peers between hosts: a cable is pulled for {_DOWN_S:g} s")
            with machines.lan(peers) as hosts, _watched(peers, hosts) as watched:
                figures |= {f"{name}_{peers}": value for name, value in _pull(watched, hosts[-1]).items()}
        say("8 peers between hosts: a split for 30 s")
        with machines.lan(8) as hosts, _watched(8, hosts) as watched:
            figures |= _split(watched, hosts)
    say(f"8 peers on loopback, both cores busy for {minutes:g} minutes")
    with _watched(8) as watched:
        figures |= _busy(watched, minutes * 60.0)
    return figures


@contextmanager
def _watched(peers: int, hosts: Sequence[Host] = ()) -> Iterator[Watched]:
    with Processes() as processes:
        yield Watched(processes, peers, hosts)


def _kill(watched: Watched, times: int = 3) -> float:
    """Seconds until the last of the others has dropped a killed peer; the longest of some."""
    seconds = []
    for position in range(min(times, len(watched.names) - 2)):
        since_s = watched.swarm.now_s
        watched.swarm.kill(position)
        seconds.append(watched.until("it is dropped", partial(_by_all, watched, position, since_s)))
        watched.until("one view", watched.whole)
    return max(seconds)


def _by_all(watched: Watched, position: int, since_s: float) -> bool:
    others = {watched.book.now(other).peer for other in watched.swarm.alive if other != position}
    return others <= watched.dead_for(position, since_s)


def _hold(watched: Watched) -> dict[str, float]:
    """A process is held: seconds until it is dropped, until it is back, and whom it took for dead."""
    (*_, position) = watched.swarm.alive
    since_s = watched.swarm.now_s
    watched.swarm.signal(position, signal.SIGSTOP)
    try:
        dropped_s = watched.until("it is dropped", lambda: _by_all(watched, position, since_s))
        watched.passes(_HELD_S - dropped_s)
    finally:
        watched.swarm.signal(position, signal.SIGCONT)
    back_s = watched.until("it is back", watched.whole)
    peer = watched.book.now(position).peer
    false = sum(event.peer == peer and at_s >= since_s for at_s, event in watched.gone)
    return {"held_dropped_s": dropped_s, "held_back_s": back_s, "held_false_deaths": false}


def _pull(watched: Watched, host: Host) -> dict[str, float]:
    """A cable is pulled and plugged in again."""
    position = len(watched.names) - 1
    since_s, peer = watched.swarm.now_s, watched.book.now(position).peer
    host.cable("down")
    dropped_s = watched.until("it is dropped", lambda: _by_all(watched, position, since_s))
    watched.passes(_DOWN_S - dropped_s)
    false = sum(event.peer != peer and event.other != peer for at_s, event in watched.gone if at_s >= since_s)
    host.cable("up")
    back_s = watched.until("it is back", watched.whole)
    return {"power_loss_s": dropped_s, "back_s": back_s, "power_loss_false_deaths": false}


def _split(watched: Watched, hosts: Sequence[Host]) -> dict[str, float]:
    """Two halves apart for 30 s: seconds until there is one view again."""
    machines.split(hosts[:4], hosts[4:])
    watched.passes(_DOWN_S)
    apart = len({watched.book.now(position).members for position in range(8)})
    machines.heal(hosts)
    return {"split_views": apart, "healed_s": watched.until("one view", watched.whole)}


def _busy(watched: Watched, seconds: float) -> dict[str, float]:
    """All cores saturated, peers training beside: deaths of who lives."""
    since_s, rounds = watched.swarm.now_s, watched.book.rounds
    burn = f"import time\nend = time.monotonic() + {seconds}\nwhile time.monotonic() < end: pass"
    with ExitStack() as stack:
        for _ in range(os.cpu_count() or 1):
            hog = subprocess.Popen([sys.executable, "-c", burn])
            stack.callback(hog.wait)
            stack.callback(hog.kill)
        watched.passes(seconds)
    false = sum(event.reason == "dead" for at_s, event in watched.gone if at_s >= since_s)
    done = watched.book.rounds - rounds
    return {"busy_minutes": seconds / 60.0, "busy_rounds": done / len(watched.names), "busy_false_deaths": false}


def churn(peers: int, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """A fifth of the peers is killed and as many join in mid-run, against the same run left alone.

    Returns:
        Accuracies, a round's usual time, the longest time between two rounds of any peer that lived on (building,
        training and waiting), how much of such a time was spent waiting for others, at most, and how long anybody may
        be waited for.
    """
    say(f"{peers} peers, {rounds} rounds, nobody comes or goes")
    calm = _run(peers, rounds, 0, say)
    few = max(1, peers // 5)
    say(f"the same, and {few} are killed and {few} join")
    disturbed = _run(peers, rounds, few, say)
    return {
        "peers": peers,
        "killed": few,
        "joined": few,
        "accuracy": disturbed["accuracy"],
        "accuracy_undisturbed": calm["accuracy"],
        "lost_points": 100.0 * (calm["accuracy"] - disturbed["accuracy"]),
        "round_s": disturbed["round_s"],
        "longest_round_s": disturbed["longest_round_s"],
        "longest_round_undisturbed_s": calm["longest_round_s"],
        "longest_wait_s": disturbed["longest_wait_s"],
        "longest_wait_undisturbed_s": calm["longest_wait_s"],
        "deadline_s": disturbed["deadline_s"],
        "false_deaths": disturbed["false_deaths"],
        "false_deaths_undisturbed": calm["false_deaths"],
    }


def _run(peers: int, rounds: int, few: int, say: Callable[[str], None]) -> dict[str, Any]:
    names = [f"peer-{position + 1}" for position in range(peers + peers // 5)]
    book = Book(names, 1e9, 1e9)
    settings = {**recipe(peers, 0), "rounds": rounds, "steps": 20, "min_peers": peers}
    gone: list[tuple[float, PeerGone]] = []
    waits: dict[str, list[float]] = {}
    key = NetworkKey(f"churn-{os.getpid()}-{few}", os.urandom(32))

    def note(event: RunEvent) -> None:
        if isinstance(event, RoundFinished):
            waits.setdefault(event.peer, []).append(event.wait_s)
        if isinstance(event, PeerGone) and event.reason == "dead":
            gone.append((swarm.now_s, event))

    with Processes() as processes:
        swarm = Swarm(processes, book, key, settings, None, sink=note)
        for position in range(peers):
            swarm.launch(position)
        due = [(rounds // 4 + (rounds // 2) * number // max(1, few), number) for number in range(few)]
        deadline = time.monotonic() + 60.0 + 20.0 * rounds
        while swarm.alive:
            swarm.pump(0.05)
            reached = max((book.now(position).round for position in swarm.alive), default=0)
            while due and reached >= due[0][0]:
                _, number = due.pop(0)
                swarm.kill(2 * number)
                swarm.launch(peers + number)
                say(f"round {reached}: {names[2 * number]} is killed, {names[peers + number]} comes")
            if time.monotonic() > deadline:
                raise P2pflError(f"the run did not end; {len(swarm.alive)} peers still run")
    killed = {book.now(2 * number).peer for number in range(few)}
    lives = [lives[-1] for lives in book.lives if lives and lives[-1].peer not in killed]
    accuracies = [life.accuracies[-1] for life in lives if life.accuracies]
    gaps = [after - before for life in lives for before, after in pairwise(life.returned_s)]
    round_s = statistics.median(gaps)
    false = [  # who had ended, a moment ago at the latest, was not taken for dead in error
        (at_s, event)
        for at_s, event in gone
        if event.other not in killed
        and ((life := book.of(event.other)) is None or life.ended_s is None or life.ended_s > at_s + _MOMENT_S)
    ]
    for at_s, event in false[:10]:
        say(f"{at_s:.1f} s: {event.peer[:6]} took {event.name} for dead, who was not")
    return {
        "accuracy": sum(accuracies) / len(accuracies),
        "round_s": round_s,
        "longest_round_s": max(gaps),
        "longest_wait_s": max(wait for peer, those in waits.items() if peer not in killed for wait in those),
        "deadline_s": max(2.0, 3.0 * round_s),
        "false_deaths": len(false),
    }
