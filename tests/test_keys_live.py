"""Keys among live peers, each with a home of its own: one identity, rotation, ban, and secrets that show nowhere."""

import asyncio
import base64
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import live as live_processes
import pytest
from live import LOOPBACK, SLACK, Live, Running

from p2pfl import home as kept
from p2pfl.belonging import Belonging
from p2pfl.cli import app
from p2pfl.errors import Unreachable
from p2pfl.identity import Identity
from p2pfl.network.http import Limits, fetch_status
from p2pfl.network.tls import Credentials
from p2pfl.network_key import KeyRing, NetworkKey

NAMES = ("a", "b", "c")
NOTICED_S = 5.0 * SLACK  # a look at the ring on disk every two seconds, and the way to the others
RENEWED_S = NOTICED_S + Limits().rekeyed_s  # for links to be under the new key alone


def play_at(argument: tuple[str, dict[str, Any]]) -> None:
    """A peer of `live.play`, with a home of its own."""
    os.environ["P2PFL_HOME"], spec = argument
    asyncio.run(live_processes.play(**spec))


class Homes:
    """A home for each machine of a test; the first makes the network, the others join by its token."""

    def __init__(self, live: Live, folder: Path) -> None:
        self.live, self.folder = live, folder
        with self.at("a"):
            self.first = kept.create_network(live.network).key
        for name in NAMES[1:]:
            with self.at(name):
                kept.join_network(self.first.token)

    @contextmanager
    def at(self, name: str) -> Iterator[None]:
        """As if on that machine."""
        before = os.environ["P2PFL_HOME"]
        os.environ["P2PFL_HOME"] = str(self.folder / name)
        try:
            yield
        finally:
            os.environ["P2PFL_HOME"] = before

    def ring(self, name: str) -> KeyRing:
        """What that machine goes by."""
        with self.at(name):
            ring = kept.ring_of(self.live.network)
        assert ring is not None
        return ring

    def peer(self, name: str, **settings: Any) -> Running:
        """Start a peer on that machine; it trains until it is stopped."""
        shared = {"rounds": 0, "steps": 4, "min_peers": len(NAMES), "topology": "complete", "step_s": 0.02}
        spec = {"name": name, "network": self.live.network, "interface": LOOPBACK, **shared, **settings}
        return self.live._fork(name, play_at, (str(self.folder / name), spec))


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    with Live(tmp_path) as live:
        yield live


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Runs `p2pfl … --json` in this process; what it tells."""

    def run(*arguments: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["p2pfl", *arguments, "--json"])
        with pytest.raises(SystemExit) as left:
            app.main()
        out, err = capsys.readouterr()
        assert (left.value.code, err) == (0, "")
        return dict(json.loads(out))

    return run


def admitted(address: str, key: NetworkKey) -> bool:
    """Whether who holds this key, and is nobody yet, is let in at an address."""
    credentials = Credentials(Identity(os.urandom(32)), KeyRing(key))
    try:
        return b"network" in asyncio.run(fetch_status(address, 5.0, credentials))
    except Unreachable:
        return False


def stopped(processes: list[Running]) -> None:
    for process in processes:
        process.signal(signal.SIGTERM)
    for process in processes:
        assert process.code() == 0, process.told()


@pytest.mark.fault(39)
def test_a_rotated_key_reaches_all_and_no_round_is_missing(
    live: Live, tmp_path: Path, command: Callable[..., dict[str, Any]]
) -> None:
    homes = Homes(live, tmp_path)
    peers = [homes.peer(name) for name in NAMES]
    live.all_have(peers, "RoundFinished", round=2)
    stranger = NetworkKey(live.network, os.urandom(32))
    assert [admitted(peer.address, homes.first) for peer in peers] == [True] * 3
    assert [admitted(peer.address, stranger) for peer in peers] == [False] * 3

    with homes.at("a"):
        told = command("network", "rotate", live.network)
    assert told["running"] == {"a": True}
    second = homes.ring("a").key
    assert second != homes.first
    live.until(
        "all have the new key", lambda: all(homes.ring(name).key == second for name in NAMES), within_s=NOTICED_S
    )
    rotated = max(peer.rounds()[-1] for peer in peers)
    assert [admitted(peer.address, second) for peer in peers] == [True] * 3
    # Who was away for a moment still gets in, until the former key is retired.
    assert [admitted(peer.address, homes.first) for peer in peers] == [True] * 3
    for name in NAMES:
        with homes.at(name):
            assert command("network", "retire", live.network)["retired"] == 1
    live.until(
        "the former key is refused",
        lambda: not any(admitted(peer.address, homes.first) for peer in peers),
        within_s=NOTICED_S,
    )
    assert [admitted(peer.address, second) for peer in peers] == [True] * 3
    # Their links began under the key that opens nothing now: they are made anew, and no share is lost by that.
    began = monotonic()
    live.until(
        "all learn, though no link is under the former key any more",
        lambda: all(peer.of("RoundFinished")[-1]["at"] > began + RENEWED_S for peer in peers),
        within_s=2 * RENEWED_S,
    )
    live.all_have(peers, "RoundFinished", round=rotated + 5)

    for peer in peers:
        assert peer.rounds() == list(range(len(peer.rounds())))
        assert {one["missing"] for one in peer.of("RoundFinished")} == {0}
        assert not peer.of("PeerGone")
    stopped(peers)


@pytest.mark.fault(39)
def test_who_is_banned_is_out_and_does_not_get_the_new_key(
    live: Live, tmp_path: Path, command: Callable[..., dict[str, Any]]
) -> None:
    homes = Homes(live, tmp_path)
    peers = a, b, c = [homes.peer(name) for name in NAMES]
    live.all_have(peers, "RoundFinished", round=2)
    with homes.at("a"):
        live.until("a has written down whom it met", lambda: len(kept.peers_of(live.network)) == 2)
        told = command("network", "ban", live.network, "c")
    assert (told["banned"], told["running"]) == (c.id, {"a": True})
    second = homes.ring("a").key
    live.until("b has the new key", lambda: homes.ring("b").key == second, within_s=NOTICED_S)
    live.all_have([a, b], "PeerGone", other=c.id)
    last = max(a.rounds()[-1], b.rounds()[-1])
    live.all_have([a, b], "RoundFinished", round=last + 5)
    live.all_have([a, b], "ViewTaken", members=["a", "b"])

    assert [homes.ring(name).banned for name in "ab"] == [{c.id}] * 2
    assert homes.ring("c").keys == (homes.first,)
    for peer in (a, b):
        assert peer.rounds() == list(range(len(peer.rounds())))
        assert not admitted(peer.address, homes.first)  # a second id of the banned would have to use that key
    live.until("c ends", lambda: c.has("Failed"))
    assert c.of("Failed")[0]["text"] == f"this peer was banned from network {live.network!r} by one of its members"
    stopped([a, b])


def test_a_peer_whose_key_was_changed_while_it_was_away_hears_it(
    live: Live, tmp_path: Path, command: Callable[..., dict[str, Any]]
) -> None:
    homes = Homes(live, tmp_path)
    first = [homes.peer(name, min_peers=2) for name in "ab"]
    live.all_have(first, "RoundFinished", round=1)
    with homes.at("b"):
        live.until("b has written down whom it met", lambda: len(kept.peers_of(live.network)) == 1)
    b = first[1]
    stopped([b])
    with homes.at("a"):
        command("network", "rotate", live.network)
        command("network", "retire", live.network)
        live.until("it is in use", lambda: kept.running(live.network)[0].tag != homes.first.tag)
        live.until(
            "the former key opens nothing", lambda: not admitted(first[0].address, homes.first), within_s=NOTICED_S
        )
    again = homes.peer("b", min_peers=2, wait_s=8.0 * SLACK)
    live.until("a counts it", lambda: first[0].has("Refusal", reason="former key"))
    live.until("b says so", lambda: any("speak another key" in one["text"] for one in again.of("Warned")))
    live.until("b gives up", lambda: again.has("Failed"))
    assert "no peer was found within" in again.of("Failed")[0]["text"]
    assert f"p2pfl network token {live.network}  and give it here" in again.of("Failed")[0]["text"]
    stopped([first[0]])


def test_a_key_that_was_rotated_while_nobody_ran_is_handed_on_by_the_next_run(
    live: Live, tmp_path: Path, command: Callable[..., dict[str, Any]]
) -> None:
    homes = Homes(live, tmp_path)
    with homes.at("a"):
        assert command("network", "rotate", live.network)["running"] == {}
    peers = [homes.peer(name, min_peers=2) for name in "ab"]
    live.all_have(peers, "RoundFinished", round=1)
    live.until("b has the new key", lambda: homes.ring("b").key == homes.ring("a").key, within_s=NOTICED_S)
    assert homes.ring("b").former == (homes.first,)
    assert homes.ring("b").key != homes.first
    with homes.at("b"):
        live.until("b has written down whom it met", lambda: len(kept.peers_of(live.network)) == 1)
        assert kept.peers_of(live.network) == (kept.Known(peers[0].id, "a", (peers[0].address,)),)
    stopped(peers)


@pytest.mark.fault(11)
def test_a_second_process_of_an_identity_ends_and_names_the_file(live: Live, tmp_path: Path) -> None:
    path = tmp_path / "alice.json"
    settings = ("--identity", str(path), "--data", "live:row_one", "--model", "live:quick", "--rounds", "0")
    first = live.start("a", *settings)
    live.until("a listens", lambda: first.said("waits in network"))
    second = live.start("b", *settings)
    assert second.code() == 2, second.told()
    (line,) = second.err
    assert line.startswith(f"p2pfl: the identity {path} is in use by another process: stop that peer")
    stopped([first])


def spellings(secret: bytes) -> set[bytes]:
    """A secret as it could be written."""
    texts = {
        base64.b32encode(secret),
        base64.b64encode(secret),
        base64.urlsafe_b64encode(secret),
        secret.hex().encode(),
    }
    return {secret, *(form for text in texts for form in (text.rstrip(b"="), text.rstrip(b"=").lower()))}


def test_secrets_are_in_no_file_of_the_run_no_output_and_no_argument(
    live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = live.key
    live.home = tmp_path / "joins"
    monkeypatch.setenv("P2PFL_HOME", str(live.home))
    token = tmp_path / "token"
    token.write_text(key.token + "\n")
    token.chmod(0o600)
    settings = ("--data", "live:row_one", "--model", "live:quick", "--rounds", "3", "--steps", "2", "--verbose")
    joined = ("--join", str(token), "--log-json", str(tmp_path / "log.jsonl"))
    peers = [live.start("a", *settings, *joined, fork=False)]
    live.until("a has joined", lambda: peers[0].said("waits in network"))
    peers.append(live.start("b", *settings))
    seen_by_ps = [Path(f"/proc/{peers[0].pid}/{what}").read_bytes() for what in ("cmdline", "environ")]
    assert b"--join" in seen_by_ps[0]
    for peer in peers:
        assert peer.code() == 0, peer.told()

    secrets = {key.secret, *(kept.hold(live.network, name).identity.secret for name in "ab")}
    assert len(secrets) == 3
    forms = set().union(*map(spellings, secrets)) | {key.token.encode(), key.token.partition(":")[2].encode()}
    written = [
        path for path in (tmp_path / "a", tmp_path / "b", tmp_path / "log.jsonl") for path in (path, *path.rglob("*"))
    ]
    files = {path: path.read_bytes() for path in written if path.is_file()}
    assert {path.name for path in files} >= {"events.jsonl", "summary.json", "recipe.toml", "log.jsonl"}
    said = {peer.name: "\n".join((*peer.out, *peer.err)).encode() for peer in peers}
    assert all(said.values())
    for content in (*files.values(), *said.values(), *seen_by_ps):
        assert not any(form in content for form in forms)
    # They are where they belong, so that the search can find them.
    assert any(form in kept.key_path(live.network).read_bytes() for form in forms)
    assert any(form in (kept.folder_of(live.network) / "identities" / "a.json").read_bytes() for form in forms)


def test_more_bans_than_can_be_told_stop_no_peer_from_starting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("P2PFL_HOME", str(tmp_path))
    ids = frozenset(Identity(number.to_bytes(2, "big") * 16).peer for number in range(300))
    kept.store_ring(KeyRing(NetworkKey("home", bytes(32)), 1, (), ids))
    warned: list[str] = []

    async def starts() -> None:
        belonging = Belonging("home", "a", key=None, identity=None, encrypted=True, at_home=True, warn=warned.append)
        watching = asyncio.create_task(belonging.watch(lambda change: None, lambda: ()))
        done, _ = await asyncio.wait({watching}, timeout=0.1)
        assert not done
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        belonging.release()

    asyncio.run(starts())
    assert len(warned) == 1
    assert "300 peers are banned, more than 256: make a new network" in warned[0]
