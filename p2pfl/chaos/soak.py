"""The soak: peers that learn while one thing after another goes wrong, and what became of every promise."""

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from p2pfl.chaos.hosts import Host, lan, namespaces_available
from p2pfl.chaos.inject import Steps, inject
from p2pfl.chaos.model import PACED, UNPACED
from p2pfl.chaos.plan import KINDS, plan
from p2pfl.chaos.promises import Book, Seen
from p2pfl.chaos.swarm import Swarm
from p2pfl.errors import P2pflError, UsageError
from p2pfl.network_key import NetworkKey
from p2pfl.processes import Processes
from p2pfl.sinks import RunFiles
from p2pfl.types import Setting

_START_S = 60.0  # for all peers to begin
_QUIET_S = (6.0, 25.0)  # at the end, at least and at most: all views become equal
_TICK_S = 0.05
_ACCURACY_POINTS = 0.02
_REFERENCE_ROUNDS = 300  # the model is as good by then as it gets
_LONGEST_WAIT_S = 8.0


@dataclass(frozen=True)
class Soak:
    """What to do.

    Args:
        seconds: from when all peers have begun until the last fault is over.
        kinds: of faults; all that can be made here if empty.
        hosts: peers live in network namespaces of their own (root, Linux), not on loopback.
        slack: by how much longer than on a quiet machine things may take.
    """

    peers: int = 8
    seconds: float = 1800.0
    seed: int = 0
    kinds: Sequence[str] = ()
    hosts: bool = False
    reference: bool = True
    slack: float = 1.0


def recipe(peers: int, seed: int) -> dict[str, Setting]:
    """What the peers of a soak agree on."""
    return {
        "model": PACED,
        "topology": "ring",
        "rounds": 0,
        "steps": 10,
        "batch_size": 32,
        "lr": 0.05,
        "alpha": 1.0,
        "seed": seed,
        "min_peers": peers,
        "max_wait_s": _LONGEST_WAIT_S,
    }


def run(soak: Soak, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the soak; returns its report, which is also written to `folder/chaos.json`.

    Args:
        say: takes a line of progress for a person.

    Raises:
        UsageError: no such fault, too few peers, or no hosts can be made here.
        P2pflError: the peers did not begin.
    """
    if soak.hosts and (why := namespaces_available()) is not None:
        raise UsageError(f"{why}; without --hosts the peers live on loopback")
    kinds = list(soak.kinds) or [name for name, kind in KINDS.items() if soak.hosts or not kind.hosts]
    between = [name for name in kinds if name in KINDS and KINDS[name].hosts]
    if between and not soak.hosts:
        raise UsageError(f"{', '.join(between)} happens between hosts: add --hosts")
    planned = plan(soak.seed, soak.peers, soak.seconds, kinds)
    names = [f"peer-{position + 1}" for position in range(soak.peers)]
    book = Book(names, soak.slack * (_LONGEST_WAIT_S + 1.0), soak.slack * 10.0)
    key = NetworkKey(f"chaos-{os.getpid()}", os.urandom(32))
    begun = time.monotonic()
    files = RunFiles(folder, say)
    files.open()
    with ExitStack() as stack:
        stack.callback(files.close)
        hosts: Sequence[Host] = stack.enter_context(lan(soak.peers)) if soak.hosts else ()
        processes = stack.enter_context(Processes())
        swarm = Swarm(processes, book, key, recipe(soak.peers, soak.seed), folder, hosts, files)
        for position in range(soak.peers):
            swarm.launch(position)
        _begin(swarm, soak.slack)
        say(f"all {soak.peers} peers learn; {len(planned)} faults in {soak.seconds:g} s")
        zero_s = swarm.now_s
        running: list[tuple[Seen, Steps]] = []
        due = list(planned)
        while due or running or swarm.now_s < zero_s + soak.seconds:
            while due and zero_s + due[0].at_s <= swarm.now_s:
                injection = due.pop(0)
                seen = Seen(injection, swarm.now_s)
                book.seen.append(seen)
                who = ", ".join(names[target] for target in injection.targets)
                say(f"{swarm.now_s - zero_s:7.1f} s  {injection.kind} {who}, {injection.seconds:.1f} s")
                running.append((seen, stack.enter_context(closing(inject(swarm, seen)))))
            running = [pair for pair in running if next(pair[1], pair) is None]
            _listen(swarm)
        _calm(swarm, soak.slack)
        book.close(swarm.now_s)
        rounds = min(swarm.book.now(position).round for position in range(soak.peers)) + 1
        processes.stop()
        until = time.monotonic() + 15.0
        for position in range(soak.peers):
            book.now(position).expected_end = True
        while swarm.alive and time.monotonic() < until:
            swarm.pump(_TICK_S)
    reference = _reference(soak, min(rounds, _REFERENCE_ROUNDS), say) if soak.reference else None
    report = _report(soak, book, reference, rounds, time.monotonic() - begun)
    (folder / "chaos.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    return report


def _begin(swarm: Swarm, slack: float) -> None:
    """Until every peer has done a round."""
    while not all(swarm.book.now(position).rounds for position in range(len(swarm.book.names))):
        _listen(swarm)
        if swarm.book.told:
            raise P2pflError(f"the peers did not begin: {swarm.book.told[0]}")
        if swarm.now_s > _START_S * slack:
            waiting = [name for i, name in enumerate(swarm.book.names) if not swarm.book.now(i).rounds]
            raise P2pflError(f"{', '.join(waiting)} did not begin within {_START_S * slack:g} s")


def _calm(swarm: Swarm, slack: float) -> None:
    """Nothing more goes wrong: until all views are whole, and a little longer."""
    began_s = swarm.now_s
    names = set(swarm.book.names)
    while swarm.now_s < began_s + _QUIET_S[1] * slack:
        _listen(swarm)
        whole = all(set(swarm.book.now(position).members) == names for position in range(len(names)))
        back = all(seen.back_s is not None or not KINDS[seen.injection.kind].disturbs for seen in swarm.book.seen)
        if whole and back and swarm.now_s > began_s + _QUIET_S[0]:
            return


def _listen(swarm: Swarm) -> None:
    """One turn: what they tell, and how they are."""
    swarm.pump(_TICK_S)
    swarm.sample()


def _reference(soak: Soak, rounds: int, say: Callable[[str], None]) -> float | None:
    """Mean accuracy of the same network without a fault, without its waits, over as many rounds."""
    say(f"for comparison: {rounds} rounds without a fault")
    names = [f"peer-{position + 1}" for position in range(soak.peers)]
    book = Book(names, 1e9, 1e9)
    key = NetworkKey(f"calm-{os.getpid()}", os.urandom(32))
    settings = {**recipe(soak.peers, soak.seed), "model": UNPACED, "rounds": rounds}
    with Processes() as processes:
        swarm = Swarm(processes, book, key, settings, None, model=UNPACED)
        for position in range(soak.peers):
            swarm.launch(position)
        while swarm.alive:
            swarm.pump(_TICK_S)
    return book.accuracy


def _report(soak: Soak, book: Book, reference: float | None, rounds: int, wall_s: float) -> dict[str, Any]:
    table = []
    for name, kind in KINDS.items():
        mine = [seen for seen in book.seen if seen.injection.kind == name]
        if not mine:
            continue
        proofs = sum((seen.proofs for seen in mine), Counter[str]())
        back = [seen.back_s for seen in mine if seen.back_s is not None]
        happened = sum(seen.happened for seen in mine)
        if happened < len(mine):
            book.fault("each fault is counted", f"{name}: {len(mine)} made, {happened} seen", wall_s)
        table.append(
            {
                "fault": name,
                "numbers": kind.numbers,
                "times": len(mine),
                "seen": happened,
                "proofs": dict(proofs),
                "promise": kind.promise,
                "held": sum(not seen.broken for seen in mine),
                "back_s": max(back) if back and kind.disturbs else None,
            }
        )
    accuracy = book.accuracy
    if accuracy is not None and reference is not None and accuracy < reference - _ACCURACY_POINTS:
        book.fault("the model is as good as without faults", f"{accuracy:.4f} against {reference:.4f}", wall_s)
    return {
        "peers": soak.peers,
        "seconds": soak.seconds,
        "seed": soak.seed,
        "hosts": soak.hosts,
        "wall_s": round(wall_s, 1),
        "rounds": rounds,
        "rounds_of_all": book.rounds,
        "rows_summed": book.rows,
        "lives": sum(len(lives) for lives in book.lives),
        "faults": table,
        "longest_gap_s": round(book.longest_gap_s, 3),
        "longest_wait_s": book.longest_wait_s,
        "accuracy": accuracy,
        "reference_accuracy": reference,
        "refusals": dict(book.refusals),
        "failures": dict(book.failures),
        "broken": dict(book.broken),
        "told": book.told,
        "held": not book.broken,
    }
