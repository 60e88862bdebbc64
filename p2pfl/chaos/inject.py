"""How each fault is made: generators that begin it, wait, and end it; `yield` gives the turn back for a moment."""

import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, suppress
from typing import TypeAlias

from p2pfl.chaos import hosts as machines
from p2pfl.chaos.outsiders import OUTSIDERS
from p2pfl.chaos.plan import Injection
from p2pfl.chaos.promises import Seen
from p2pfl.chaos.swarm import Swarm

Steps: TypeAlias = Generator[None, None, None]
_HELD_S, _LET_GO_S = 0.2, 0.05  # of a slow peer: a fifth of its pace
_CLOSED_WITHIN_S = 5.0
_GHOSTS = 20


def inject(swarm: Swarm, seen: Seen) -> Steps:
    """Make the fault of an injection; it is over when the iterator is."""
    injection = seen.injection
    kind = injection.kind
    yield from _INJECT[kind](swarm, injection, seen) if kind in _INJECT else OUTSIDERS[kind](swarm, injection, seen)
    seen.ended_s = swarm.now_s


def _pass(swarm: Swarm, seconds: float) -> Steps:
    until_s = swarm.now_s + seconds
    while swarm.now_s < until_s:
        yield


def _gone(swarm: Swarm, position: int) -> Steps:
    """Until its process has ended."""
    life = swarm.book.now(position)
    until_s = swarm.now_s + 15.0
    while life.ended_s is None and swarm.now_s < until_s:
        yield
    if life.ended_s is None:
        swarm.book.fault("who is asked to leave goes", swarm.book.names[position], swarm.now_s)
        swarm.kill(position)


def _kill(swarm: Swarm, injection: Injection, seen: Seen) -> Steps:
    (target,) = injection.targets
    swarm.kill(target)
    yield from _gone(swarm, target)
    seen.proofs["killed"] += 1
    yield from _pass(swarm, injection.seconds)
    swarm.launch(target, newcomer=injection.kind == "replace")


def _leave(swarm: Swarm, injection: Injection, seen: Seen) -> Steps:
    (target,) = injection.targets
    swarm.leave(target)
    yield from _gone(swarm, target)
    yield from _pass(swarm, injection.seconds)
    swarm.launch(target)


def _pause(swarm: Swarm, injection: Injection, seen: Seen) -> Steps:
    (target,) = injection.targets
    try:
        swarm.signal(target, signal.SIGSTOP)
        yield from _pass(swarm, injection.seconds)
        seen.proofs["held"] += swarm.stopped(target)
    finally:
        swarm.signal(target, signal.SIGCONT)


def _slow(swarm: Swarm, injection: Injection, seen: Seen) -> Steps:
    (target,) = injection.targets
    until_s = swarm.now_s + injection.seconds
    try:
        while swarm.now_s < until_s:
            swarm.signal(target, signal.SIGSTOP)
            yield from _pass(swarm, _HELD_S)
            seen.proofs["held"] += swarm.stopped(target)
            swarm.signal(target, signal.SIGCONT)
            yield from _pass(swarm, _LET_GO_S)
    finally:
        swarm.signal(target, signal.SIGCONT)


def _disk(swarm: Swarm, injection: Injection, seen: Seen) -> Steps:
    """A folder that cannot be written to, whoever one is: a file stands in its place."""
    (target,) = injection.targets
    folder = swarm.checkpoints(target)
    away = folder.with_name("checkpoints-away")
    try:
        folder.rename(away)
        folder.write_text("")
        yield from _pass(swarm, injection.seconds)
    finally:
        folder.unlink(missing_ok=True)
        away.rename(folder)


def _hog(swarm: Swarm, injection: Injection, seen: Seen) -> Steps:
    import os

    busy = f"import time\nend = time.monotonic() + {injection.seconds}\nwhile time.monotonic() < end: pass"
    hogs = [subprocess.Popen([sys.executable, "-c", busy]) for _ in range(os.cpu_count() or 1)]
    try:
        yield from _pass(swarm, injection.seconds)
        seen.proofs["hogs"] += len(hogs)
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


def _garbage(swarm: Swarm, injection: Injection, seen: Seen) -> Steps:
    """Random bytes on many connections, at most 200 a second."""
    (target,) = injection.targets
    draw = random.Random(f"garbage {injection.at_s}")
    address, until_s = swarm.address(target), swarm.now_s + injection.seconds
    while swarm.now_s < until_s and address is not None:
        with ExitStack() as opened:
            for _ in range(10):
                one = opened.enter_context(swarm.socket(_other(swarm, target)))
                one.settimeout(1.0)
                with suppress(OSError):
                    one.connect(address)
                    one.sendall(_START[draw.randrange(len(_START))] + draw.randbytes(draw.randrange(600)))
                    seen.proofs["connections"] += 1
            yield from _pass(swarm, 0.1)


_START = (b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n", b"GET /v1/control HTTP/1.1\r\nUpgrade: websocket\r\n")


def _half_open(swarm: Swarm, injection: Injection, seen: Seen) -> Steps:
    """Clients that connect and say nothing, or half of something; the peer closes them."""
    (target,) = injection.targets
    address, began_s = swarm.address(target), swarm.now_s
    with ExitStack() as opened:
        waiting: list[socket.socket] = []
        for number in range(12):
            if address is None:
                break
            one = opened.enter_context(swarm.socket(_other(swarm, target)))
            one.settimeout(1.0)
            with suppress(OSError):
                one.connect(address)
                one.sendall((b"", b"\x16\x03\x01\x02\x00\x01", b"GET /v1/st")[number % 3])
                one.setblocking(False)
                waiting.append(one)
                seen.proofs["connections"] += 1
        while waiting and swarm.now_s < began_s + injection.seconds:
            waiting = [one for one in waiting if _open(one)]
            yield
        if waiting and injection.seconds > _CLOSED_WITHIN_S:
            text = f"{len(waiting)} of 12 connections are open after {swarm.now_s - began_s:.1f} s"
            swarm.book.fault("who says nothing is closed within 5 s", text, swarm.now_s)


def _open(one: socket.socket) -> bool:
    try:
        return bool(one.recv(4096))
    except BlockingIOError:
        return True
    except OSError:
        return False


def _ghosts(swarm: Swarm, injection: Injection, seen: Seen) -> Steps:
    """Addresses of peers that do not exist: some are closed, at some somebody listens and never answers."""
    (target,) = injection.targets
    other = _other(swarm, target)
    with ExitStack() as opened:
        silent = [opened.enter_context(swarm.socket(other)) for _ in range(_GHOSTS // 4)]
        for one in silent:
            one.bind((swarm.hosts[other].address if swarm.hosts else "127.0.0.1", 0))
            one.listen(64)
            one.setblocking(False)
        for one in silent:
            host, port = one.getsockname()[:2]
            swarm.propose(target, f"{host}:{port}")
        for number in range(_GHOSTS - len(silent)):
            swarm.propose(target, f"{silent[0].getsockname()[0]}:{number + 1}")
        until_s = swarm.now_s + injection.seconds
        while swarm.now_s < until_s:
            for one in silent:
                with suppress(BlockingIOError):
                    taken, _ = one.accept()
                    opened.enter_context(taken)
                    seen.proofs["dials"] += 1
            yield
    most = len(silent) * (2 + int(injection.seconds / 2))
    if seen.proofs["dials"] > most:
        text = f"{seen.proofs['dials']} dials of {len(silent)} ghosts in {injection.seconds:.0f} s"
        swarm.book.fault("dials of who never answers are bounded", text, swarm.now_s)


def _other(swarm: Swarm, target: int) -> int:
    """From whose machine a stranger comes."""
    return (target + 1) % len(swarm.book.names)


# Between hosts


def _link(swarm: Swarm, injection: Injection, seen: Seen) -> Steps:
    host = swarm.hosts[injection.targets[0]]
    try:
        host.cable("down")
        seen.proofs["cable pulled"] += 1
        yield from _pass(swarm, injection.seconds)
    finally:
        host.cable("up")


def _split(swarm: Swarm, injection: Injection, seen: Seen) -> Steps:
    cut = [swarm.hosts[target] for target in injection.targets]
    rest = [host for host in swarm.hosts if host not in cut]
    try:
        machines.split(cut, rest)
        seen.proofs["split"] += 1
        yield from _pass(swarm, injection.seconds)
    finally:
        machines.heal(swarm.hosts)


def _pair(swarm: Swarm, injection: Injection, seen: Seen) -> Steps:
    one, other = (swarm.hosts[target] for target in injection.targets)
    try:
        one.unheard_by(other, "on")
        other.unheard_by(one, "on")
        yield from _pass(swarm, injection.seconds)
        seen.proofs["packets dropped"] += one.unheard_packets(other) + other.unheard_packets(one)
    finally:
        one.unheard_by(other, "off")
        other.unheard_by(one, "off")


def _bandwidth(swarm: Swarm, injection: Injection, seen: Seen) -> Steps:
    host = swarm.hosts[injection.targets[0]]
    try:
        host.bandwidth(1.0)
        seen.proofs["throttled"] += 1
        yield from _pass(swarm, injection.seconds)
    finally:
        host.bandwidth(None)


def _loss(swarm: Swarm, injection: Injection, seen: Seen) -> Steps:
    host = swarm.hosts[injection.targets[0]]
    try:
        host.loss(20)
        yield from _pass(swarm, injection.seconds)
        seen.proofs["packets lost"] += host.lost_packets()
    finally:
        host.loss(0)


_INJECT: Mapping[str, Callable[[Swarm, Injection, Seen], Steps]] = {
    "kill": _kill,
    "replace": _kill,
    "leave": _leave,
    "pause": _pause,
    "slow": _slow,
    "disk": _disk,
    "hog": _hog,
    "garbage": _garbage,
    "half-open": _half_open,
    "ghosts": _ghosts,
    "link": _link,
    "split": _split,
    "pair": _pair,
    "bandwidth": _bandwidth,
    "loss": _loss,
}
