"""`p2pfl peers`, against peers and strangers on 127.0.0.1."""

import asyncio
import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from aiohttp import web
from torch import nn

from p2pfl import home as kept
from p2pfl.cli import app
from p2pfl.cli.peers import NO_ANSWER, NOT_A_PEER, Seen, Status, merged, read_status
from p2pfl.events import Listening, RunEvent
from p2pfl.network.discovery import Announcement, ignore
from p2pfl.network.mdns import MdnsDiscovery
from p2pfl.peer import Peer
from p2pfl.plain import printable

LOOPBACK = "127.0.0.1"
STATUS = {"name": "eve", "id": "e" * 52, "network": "n", "round": 3, "state": "training", "extra": [1]}

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `p2pfl …` in this process: (exit status, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["p2pfl", *arguments])
        with pytest.raises(SystemExit) as left:
            app.main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return run


@pytest.fixture
def network() -> str:
    """A name that no other test on this machine uses at the same time."""
    return f"n-{uuid.uuid4().hex[:12]}"


@asynccontextmanager
async def living_peer(network: str, insecure: bool = False) -> AsyncIterator[Peer]:
    """A peer that waits for a second one; its network's key is on this machine."""
    if not insecure:
        kept.create_network(network, exist_ok=True)
    listening = asyncio.Event()

    def sink(event: RunEvent) -> None:
        if isinstance(event, Listening):
            listening.set()

    examples = (torch.zeros(8, 2), torch.zeros(8, dtype=torch.int64))
    where = {"network": network, "insecure": insecure, "interface": LOOPBACK}
    peer = Peer("alice", nn.Linear(2, 2), examples, **where, device="cpu", sinks=(sink,))
    task = asyncio.create_task(peer.run())
    try:
        async with asyncio.timeout(10):
            await listening.wait()
        yield peer
    finally:
        peer.stop()
        async with asyncio.timeout(10):
            await task


@asynccontextmanager
async def stranger(answer: bytes, status: int = 200) -> AsyncIterator[str]:
    """The address of a server that answers everything in the same way."""

    async def handle(_: web.Request) -> web.Response:
        return web.Response(body=answer, status=status)

    server = web.Server(handle)
    listener = await asyncio.get_running_loop().create_server(server, LOOPBACK, 0)
    try:
        yield f"{LOOPBACK}:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()
        await server.shutdown(1.0)


@asynccontextmanager
async def mute() -> AsyncIterator[str]:
    """The address of a server that accepts connections and says nothing."""
    listener = await asyncio.get_running_loop().create_server(asyncio.Protocol, LOOPBACK, 0)
    try:
        yield f"{LOOPBACK}:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()


def ask(run: Run, address: str, *more: str) -> dict[str, Any]:
    code, out, _ = run("peers", "--seconds", "0", "--peer", address, "--json", *more)
    assert code == 0
    (only,) = json.loads(out)["peers"]
    return dict(only)


def asked(run: Run, answer: bytes, status: int = 200) -> dict[str, Any]:
    async def scenario() -> dict[str, Any]:
        async with stranger(answer, status) as address:
            return await asyncio.to_thread(ask, run, address)

    return asyncio.run(scenario())


# Peers


@pytest.mark.parametrize("insecure", [False, True], ids=["encrypted", "insecure"])
def test_a_peer_found_by_mdns_and_by_address_is_listed_once(run: Run, network: str, insecure: bool) -> None:
    async def scenario() -> tuple[tuple[int, str, str], Peer]:
        async with living_peer(network, insecure) as peer:
            (address,) = peer._transport.addresses
            arguments = ["peers", "--seconds", "1", "--interface", LOOPBACK, "--network", network, "--json"]
            return await asyncio.to_thread(run, *arguments, "--peer", address), peer

    (code, out, _), peer = asyncio.run(scenario())
    assert code == 0
    (row,) = json.loads(out)["peers"]
    assert row["name"] == "alice"
    assert row["id"] == peer.id
    assert row["network"] == network
    assert row["state"] == "waiting"
    assert row["round"] == 0
    assert row["answered"] is True
    assert row["encrypted"] is not insecure
    assert [address.rpartition(":")[0] for address in row["addresses"]] == [LOOPBACK]


def test_a_stranger_is_told_how_many_there_are_and_nothing_else(
    run: Run, network: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> tuple[list[tuple[int, str, str]], Peer, str]:
        async with living_peer(network) as peer:
            (address,) = peer._transport.addresses
            with monkeypatch.context() as stranger:
                stranger.setenv("P2PFL_HOME", str(home.parent / "stranger"))
                heard = await asyncio.to_thread(run, "peers", "--interface", LOOPBACK, "--json")
                asked = await asyncio.to_thread(run, "peers", "--seconds", "0", "--peer", address, "--json")
                return [heard, asked], peer, address

    (heard, asked), peer, address = asyncio.run(scenario())
    # Another test's peers may be on this machine's loopback at the same time.
    assert json.loads(heard[1])["strangers"] >= 1
    assert re.search(r"[1-9]\d* peers? of networks whose key is not on this machine", heard[2])
    (row,) = json.loads(asked[1])["peers"]
    assert (row["name"], row["id"], row["network"], row["answered"]) == ("", "", "", False)
    assert row["addresses"] == [address]
    ring = kept.ring_of(network)
    assert ring is not None
    for text in (*heard[1:], *asked[1:]):
        assert not any(word in text for word in ("alice", network, peer.id, ring.key.tag, ring.key.alias(peer.id)))


def test_table_in_a_pipe_is_plain_and_narrow(network: str) -> None:
    command = [sys.executable, "-W", "error", "-m", "p2pfl.cli.app", "peers", "--seconds", "3"]
    command += ["--interface", LOOPBACK, "--network", network]

    def run_outside() -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "60", "PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment)

    async def scenario() -> tuple["subprocess.CompletedProcess[str]", str]:
        async with living_peer(network) as peer:
            return await asyncio.to_thread(run_outside), peer.id

    done, peer_id = asyncio.run(scenario())
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 60
    assert done.stdout.split()[:2] == ["name", "id"]
    assert "alice" in done.stdout
    assert peer_id[:8] in done.stdout
    assert peer_id not in done.stdout


def test_announced_peer_whose_address_leads_to_another_does_not_answer(run: Run, network: str) -> None:
    async def scenario() -> tuple[int, str, str]:
        async with (
            stranger(json.dumps(STATUS).encode()) as address,
            MdnsDiscovery(network, ignore, ignore, interface=LOOPBACK) as discovery,
        ):
            await discovery.announce(Announcement("f" * 52, network, (address,)))
            return await asyncio.to_thread(
                run, "peers", "--seconds", "1", "--interface", LOOPBACK, "--network", network, "--json"
            )

    code, out, _ = asyncio.run(scenario())
    assert code == 0
    (row,) = json.loads(out)["peers"]
    assert (row["id"], row["name"], row["state"], row["answered"]) == ("f" * 52, "", NO_ANSWER, False)


@pytest.mark.fault(12)
def test_who_advertises_as_a_member_without_the_key_is_not_named(run: Run, network: str) -> None:
    ring = kept.create_network(network)
    alias = ring.key.alias("v" * 52)  # as overheard on the LAN

    async def scenario() -> tuple[int, str, str]:
        async with (
            stranger(json.dumps({**STATUS, "id": "v" * 52, "network": network}).encode()) as address,
            MdnsDiscovery(ring.key.tag, ignore, ignore, interface=LOOPBACK) as discovery,
        ):
            await discovery.announce(Announcement(alias, ring.key.tag, (address,)))
            return await asyncio.to_thread(
                run, "peers", "--seconds", "1", "--interface", LOOPBACK, "--network", network, "--json"
            )

    code, out, _ = asyncio.run(scenario())
    assert code == 0
    (row,) = json.loads(out)["peers"]
    assert (row["id"], row["name"], row["answered"]) == (alias, "", False)


def test_network_leaves_out_peers_of_others(run: Run) -> None:
    async def scenario() -> tuple[int, str, str]:
        async with stranger(json.dumps(STATUS).encode()) as address:
            return await asyncio.to_thread(
                run, "peers", "--seconds", "0", "--peer", address, "--network", "home", "--json"
            )

    code, out, err = asyncio.run(scenario())
    assert code == 0
    assert json.loads(out) == {"peers": [], "strangers": 0}
    assert err == "p2pfl: nobody of network 'home'; heard of: n\n"


# Strangers


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"<html>", 200),
        (b"\xff\xfe", 200),
        (b'{"x":' + b"[" * 60_000, 200),
        (json.dumps({**STATUS, "name": "x" * 129}).encode(), 200),
        (json.dumps({**STATUS, "round": 10**30}).encode(), 200),
        (b"{}", 200),
        (json.dumps(STATUS).encode(), 404),
    ],
    ids=["html", "bytes", "deep", "long name", "large round", "empty", "not found"],
)
def test_garbage_is_no_peer(run: Run, answer: bytes, status: int) -> None:
    row = asked(run, answer, status)
    assert (row["state"], row["answered"], row["name"], row["round"]) == (NOT_A_PEER, False, "", None)


def test_texts_of_a_stranger_cannot_steer_the_terminal(run: Run) -> None:
    status = {**STATUS, "name": "\x1b[31m[red]ev\ne", "state": "\u202e[/]x\x07"}

    async def scenario() -> tuple[int, str, str]:
        async with stranger(json.dumps(status).encode()) as address:
            return await asyncio.to_thread(run, "peers", "--seconds", "0", "--peer", address)

    code, out, _ = asyncio.run(scenario())
    assert code == 0
    assert "[31m[red]ev e" in out
    assert "[/]x" in out
    assert not {"\x1b", "\x07", "\u202e"} & set(out)


def test_nobody_at_the_address_is_no_answer(run: Run) -> None:
    row = ask(run, f"{LOOPBACK}:1")
    assert (row["addresses"], row["state"], row["answered"]) == ([f"{LOOPBACK}:1"], NO_ANSWER, False)


def test_a_mute_server_is_given_up(run: Run) -> None:
    async def scenario() -> dict[str, Any]:
        async with mute() as address, asyncio.timeout(6):
            return await asyncio.to_thread(ask, run, address)

    assert asyncio.run(scenario())["state"] == NO_ANSWER


# Nobody, and wrong inputs


def test_nobody_is_an_empty_list_and_a_hint(run: Run, network: str) -> None:
    code, out, err = run("peers", "--seconds", "0.1", "--interface", LOOPBACK, "--network", network, "--json")
    assert code == 0
    assert json.loads(out)["peers"] == []
    assert err.startswith("p2pfl: nobody ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--seconds", "0"], "--peer HOST:PORT"),
        (["--seconds", "nan"], "0 to 3600"),
        (["--seconds", "-1"], "0 to 3600"),
        (["--peer", "localhost"], "host:port"),
        (["--interface", "nope0"], "nope0"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(run: Run, arguments: list[str], says: str) -> None:
    code, out, err = run("peers", *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert says in err


# Pieces


def test_status_needs_a_name_and_an_id_alone() -> None:
    assert read_status(b'{"name": "a", "id": "b"}') == Status(name="a", id="b")
    assert read_status(b'{"name": "a"}') is None


def test_printable_keeps_letters_of_all_scripts() -> None:
    assert printable("Zoë 李\t\r\n\x00\x9b\u200f!") == "Zoë 李   !"  # what stood on lines of its own stands on one


def test_merged_lists_who_answered_once_and_first() -> None:
    by_mdns = Seen("a", "1", ("10.0.0.1:1", "10.0.0.2:1"), "n", "mlp", 2, "training", True)
    by_hand = Seen("a", "1", ("10.0.0.3:1",), "n", "mlp", 2, "training", True)
    stale = Seen("", "1", ("10.0.0.9:1",), "n", "", None, NO_ANSWER, False)
    unheard = Seen("", "", ("10.0.0.2:1",), "", "", None, NO_ANSWER, False)
    silent = Seen("", "2", ("10.0.0.4:1",), "n", "", None, NO_ANSWER, False)
    both = Seen("a", "1", ("10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"), "n", "mlp", 2, "training", True)
    assert merged([silent, by_mdns, stale, unheard, by_hand]) == [both, silent]
