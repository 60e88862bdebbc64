"""Faults that somebody makes by talking: strangers without the network's key, and a member that lies."""

import asyncio
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from typing import TypeAlias

from p2pfl.chaos.liar import lie
from p2pfl.chaos.plan import Injection
from p2pfl.chaos.promises import Seen
from p2pfl.chaos.swarm import Swarm
from p2pfl.identity import Identity
from p2pfl.network.tls import Credentials
from p2pfl.network_key import KeyRing, NetworkKey
from p2pfl.processes import enter_namespace

Steps: TypeAlias = Generator[None, None, None]
_PATIENCE_S = 3.0


def _stranger(swarm: Swarm, injection: Injection, seen: Seen) -> Steps:
    """Plain HTTP, TLS without a certificate, TLS 1.2, and a member of another network: each asks who is there."""
    (target,) = injection.targets
    address = swarm.address(target)
    told: list[str] = []

    def ask() -> None:
        for who, context in _strangers(swarm.key.tag):
            answer = _ask(address, context, swarm.key.tag) if address is not None else b""
            seen.proofs["tries"] += 1
            if b"200 OK" in answer.split(b"\r\n", 1)[0] or swarm.book.names[target].encode() in answer:
                told.append(who)

    yield from _meanwhile(swarm, target, ask)
    for who in told:
        swarm.book.fault("strangers are refused, and learn nothing", f"{who} was answered", swarm.now_s)


def _strangers(tag: str) -> Iterator[tuple[str, ssl.SSLContext | None]]:
    yield "plain HTTP", None
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname, bare.verify_mode = False, ssl.CERT_NONE
    yield "TLS without a certificate", bare
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    yield "TLS 1.2", old
    other = Credentials(Identity(bytes(32)), KeyRing(NetworkKey("other", bytes(32))))
    (_, foreign), *_ = other.client_contexts()
    foreign.verify_mode = ssl.CERT_NONE
    yield "a member of another network", foreign


def _ask(address: tuple[str, int], context: ssl.SSLContext | None, tag: str) -> bytes:
    """What a stranger is answered who asks for the status."""
    answer = b""
    with suppress(OSError), socket.create_connection(address, _PATIENCE_S) as plain:
        stream = plain if context is None else context.wrap_socket(plain, server_hostname=tag)
        with stream:
            stream.sendall(b"GET /v1/status HTTP/1.1\r\nHost: peer\r\n\r\n")
            while piece := stream.recv(4096):
                answer += piece
    return answer


def _liar(swarm: Swarm, injection: Injection, seen: Seen) -> Steps:
    """A holder of the key with an identity of its own, who claims and repeats what is not so."""
    (target,) = injection.targets
    address = swarm.address(target)
    victims = [life.peer for position in swarm.alive if (life := swarm.book.now(position)).peer and position != target]
    counts: Counter[str] = Counter()

    def talk() -> None:
        if address is not None:
            asyncio.run(lie(f"{address[0]}:{address[1]}", swarm.key, victims, injection.seconds, counts))

    yield from _meanwhile(swarm, target, talk)
    seen.proofs.update(counts)


def _meanwhile(swarm: Swarm, target: int, work: Callable[[], None]) -> Steps:
    """Do it in a thread, on another machine than the target's."""

    def thread() -> None:
        if swarm.hosts:
            enter_namespace(swarm.hosts[(target + 1) % len(swarm.hosts)].namespace)
        work()

    running = threading.Thread(target=thread, daemon=True)
    running.start()
    while running.is_alive():
        yield


OUTSIDERS: Mapping[str, Callable[[Swarm, Injection, Seen], Steps]] = {"stranger": _stranger, "liar": _liar}
