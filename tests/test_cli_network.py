"""`p2pfl network`, and how `p2pfl start` comes to a key: what is asked for, what is said, and what is never said."""

import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2pfl import home as kept
from p2pfl.cli import app, network
from p2pfl.cli.keys import read_token
from p2pfl.errors import UsageError
from p2pfl.home import Known
from p2pfl.identity import Identity
from p2pfl.network_key import KeyRing, NetworkKey

Run = Callable[..., tuple[int, str, str]]

ALICE, BOB = (Identity(bytes([number]) * 32).peer for number in (1, 2))
OTHER = NetworkKey("home", b"\x07" * 32)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs `p2pfl …` in this process, in a folder of its own: (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, typed: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["p2pfl", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        try:
            app.main()
            status = 0
        except SystemExit as left:
            status = int(left.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return run


def told(run: Run, *arguments: str, typed: str = "") -> dict[str, Any]:
    status, out, err = run(*arguments, "--json", typed=typed)
    assert (status, err) == (0, "")
    return dict(json.loads(out))


def refused(run: Run, *arguments: str, typed: str = "") -> str:
    status, out, err = run(*arguments, typed=typed)
    assert (status, out) == (2, "")
    assert err.startswith("p2pfl: ")
    assert "Traceback" not in err
    return err


def says_nothing_of(text: str, key: NetworkKey) -> bool:
    groups = key.token.partition(":")[2].split("-")
    return not any(group in text for group in groups) and key.secret.hex() not in text


# Making, showing and joining a network


def test_create_tells_scripts_everything(run: Run, home: Path) -> None:
    facts = told(run, "network", "create", "lab")
    key = NetworkKey.of_token(facts["token"])
    assert facts == {
        "name": "lab",
        "token": key.token,
        "file": str(home / "networks" / "lab" / "key"),
        "tag": key.tag,
    }
    assert kept.ring_of("lab") == KeyRing(key)


def test_create_tells_where_the_key_is_and_what_to_type_but_not_the_key_into_a_pipe(run: Run, home: Path) -> None:
    status, out, err = run("network", "create", "lab")
    assert (status, err) == (0, "")
    lines = [line.strip() for line in out.splitlines()]
    assert str(home / "networks" / "lab" / "key") in lines
    assert "p2pfl start --network lab" in lines
    assert lines[-1] == "p2pfl start --join key"
    ring = kept.ring_of("lab")
    assert ring is not None
    assert says_nothing_of(out, ring.key)


def in_a_terminal(*arguments: str) -> str:
    """What `p2pfl …` shows in a terminal."""
    screen, end = pty.openpty()
    command = [sys.executable, "-m", "p2pfl.cli.app", *arguments]
    with subprocess.Popen(command, stdin=end, stdout=end, stderr=end, env={**os.environ, "TERM": "dumb"}) as process:
        os.close(end)
        shown = b""
        while True:
            try:
                piece = os.read(screen, 4096)
            except OSError:  # the other end is closed
                break
            shown += piece
            if b"not shown" in shown and piece.endswith(b": "):
                os.write(screen, OTHER.token.encode() + b"\n")
    os.close(screen)
    assert process.returncode == 0, shown
    return shown.decode()


def test_a_token_is_shown_in_a_terminal_alone(run: Run) -> None:
    key = kept.create_network("lab").key
    assert in_a_terminal("network", "token", "lab").strip() == key.token
    assert told(run, "network", "token", "lab")["token"] == key.token
    says = refused(run, "network", "token", "lab")
    assert "a token is shown in a terminal alone, or by --json; or copy the file" in says
    assert says_nothing_of(says, key)


def test_a_token_that_is_typed_is_not_shown() -> None:
    shown = in_a_terminal("network", "join", "-")
    assert "token (not shown):" in shown
    assert "The key of network 'home' is kept" in shown
    assert says_nothing_of(shown, OTHER)
    assert kept.ring_of("home") == KeyRing(OTHER)


@pytest.mark.parametrize("how", ["file", "stdin"])
def test_joining_by_a_copy_of_the_file_or_a_line_of_input(how: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(OTHER.token + "\n")
    (tmp_path / "key").chmod(0o600)
    typed = OTHER.token + "\nmore\n" if how == "stdin" else ""
    facts = told(run, "network", "join", "key" if how == "file" else "-", typed=typed)
    assert (facts["name"], facts["tag"], facts["epoch"]) == ("home", OTHER.tag, 0)
    assert kept.ring_of("home") == KeyRing(OTHER)


def test_a_copy_that_others_can_read_is_told(run: Run, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(OTHER.token)
    (tmp_path / "key").chmod(0o644)
    status, _, err = run("network", "join", "key")
    assert (status, err) == (
        0,
        "p2pfl: key can be read by other users of this machine; remove it, or: chmod 600 key\n",
    )


@pytest.mark.parametrize("command", [["network", "join"], ["start", "--join"]])
@pytest.mark.parametrize("token", [OTHER.token, OTHER.token.partition(":")[2], OTHER.token.replace("-", "")])
def test_a_token_as_an_argument_is_refused_and_not_repeated(command: list[str], token: str, run: Run) -> None:
    says = refused(run, *command, token)
    assert "a token is not given as an argument, where everybody on this machine can read it (ps)" in says
    assert says_nothing_of(says, OTHER)
    assert kept.networks() == []


@pytest.mark.parametrize("typed", ["", "\n", "home:abc\n", OTHER.token[:-1] + "?\n", OTHER.token[:-2] + "aa\n"])
def test_a_token_that_is_none_is_refused_and_not_repeated(typed: str, run: Run) -> None:
    says = refused(run, "network", "join", "-", typed=typed)
    assert re.search("no token came|no network's token|mistyped", says)
    assert says_nothing_of(says, OTHER)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match="the key file nowhere/key cannot be read: No such file or directory"):
        read_token("nowhere/key")


def test_another_key_of_the_same_name_says_how_to_take_it(run: Run) -> None:
    ours = kept.create_network("home").key
    says = refused(run, "network", "join", "-", typed=OTHER.token)
    assert "p2pfl network join --replace FILE" in says
    assert kept.ring_of("home") == KeyRing(ours)
    assert told(run, "network", "join", "--replace", "-", typed=OTHER.token)["tag"] == OTHER.tag
    assert kept.ring_of("home") == KeyRing(OTHER)


# Listing and removing


def test_list_tells_what_is_kept_and_no_secret(run: Run, home: Path) -> None:
    ring = kept.create_network("home")
    kept.store_ring(ring.rotated(OTHER, banned=(BOB,)))
    with kept.hold("home", "alice") as held:
        (one,) = told(run, "network", "list")["networks"]
        _, out, _ = run("network", "list")
    assert one == {
        "name": "home",
        "epoch": 1,
        "tag": OTHER.tag,
        "former": 1,
        "banned": [BOB],
        "identities": {"alice": held.identity.peer},
        "running": ["alice"],
        "file": str(home / "networks" / "home" / "key"),
    }
    assert f"alice {held.identity.peer[:8]} (running)" in out
    shown = out + json.dumps(one)
    assert says_nothing_of(shown, OTHER)
    assert says_nothing_of(shown, ring.key)
    assert held.identity.secret.hex() not in shown


def test_list_warns_of_a_key_that_others_can_read(run: Run, home: Path) -> None:
    kept.create_network("home")
    (home / "networks" / "home" / "key").chmod(0o644)
    status, _, err = run("network", "list")
    assert status == 0
    assert err.count("\n") == 1
    assert err.rstrip().endswith(f"mend it by: chmod 600 {home / 'networks' / 'home' / 'key'}")


def test_without_networks_list_says_how_to_make_one(run: Run) -> None:
    assert told_with_hint(run) == {"networks": []}


def told_with_hint(run: Run) -> dict[str, Any]:
    status, out, err = run("network", "list", "--json")
    assert (status, err) == (0, "")
    assert "p2pfl network create home" in run("network", "list")[2]
    return dict(json.loads(out))


def test_removing_asks_first(run: Run, home: Path) -> None:
    kept.create_network("home")
    assert "give --yes if you mean it" in refused(run, "network", "remove", "home")
    assert kept.ring_of("home") is not None
    assert told(run, "network", "remove", "home", "--yes") == {"name": "home", "removed": True}
    assert kept.ring_of("home") is None
    assert "there is no network 'home' on this machine" in refused(run, "network", "remove", "home")


# Rotating and banning


def test_a_rotation_keeps_the_former_key_until_it_is_retired(run: Run) -> None:
    first = kept.create_network("home").key
    facts = told(run, "network", "rotate", "home")
    ring = kept.ring_of("home")
    assert ring is not None
    assert (facts["epoch"], facts["tag"], facts["former"], facts["running"]) == (1, ring.key.tag, 1, {})
    assert ring.key != first
    assert ring.former == (first,)
    assert told(run, "network", "retire", "home")["retired"] == 1
    assert kept.ring_of("home") == KeyRing(ring.key, 1)


def test_a_rotation_says_who_took_it_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_TAKEN_S", 0.2)
    ring = kept.create_network("home")
    with kept.hold("home", "alice") as alice, kept.hold("home", "bob") as bob:
        alice.uses(ring)
        bob.uses(ring)
        assert told(run, "network", "rotate", "home")["running"] == {"alice": False, "bob": False}
        _, out, _ = run("network", "rotate", "home")
        assert "runs here and has not taken it up yet: look again by p2pfl network list." in out


def test_a_rotation_waits_for_the_peers_that_run_here(run: Run) -> None:
    kept.create_network("home")
    program = """
import sys, time
from p2pfl.home import RingWatch, hold
watch = RingWatch("home")
held = hold("home", "alice")
print("ready", flush=True)
ring = None
while ring is None:
    ring = watch.news()
    time.sleep(0.01)
held.uses(ring)
sys.stdin.read()
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
        assert peer.stdout is not None
        assert peer.stdout.readline() == "ready\n"
        assert told(run, "network", "rotate", "home")["running"] == {"alice": True}
        peer.communicate()


def test_a_ban_drops_the_former_key_at_once(run: Run) -> None:
    kept.create_network("home")
    kept.remember_peers("home", [Known(BOB, "bob", ("10.0.0.2:7470",))])
    facts = told(run, "network", "ban", "home", "bob")
    ring = kept.ring_of("home")
    assert ring is not None
    assert (ring.epoch, ring.former, ring.banned) == (1, (), {BOB})
    assert (facts["banned"], facts["former"], facts["epoch"]) == (BOB, 0, 1)
    status, out, _ = run("network", "ban", "home", ALICE)
    assert status == 0
    assert "p2pfl network join --replace key" in out
    again = kept.ring_of("home")
    assert again is not None
    assert (again.epoch, again.banned) == (2, {ALICE, BOB})


@pytest.mark.parametrize("peer", ["bob", BOB, BOB[:6], BOB[:6].upper()])
def test_a_peer_is_banned_by_name_by_id_or_by_its_first_letters(peer: str, run: Run) -> None:
    kept.create_network("home")
    kept.remember_peers("home", [Known(ALICE, "alice"), Known(BOB, "bob")])
    assert told(run, "network", "ban", "home", peer)["banned"] == BOB


def test_who_cannot_be_banned(run: Run) -> None:
    before = kept.create_network("home")
    kept.remember_peers("home", [Known(ALICE, "twin"), Known(BOB, "twin")])
    kept.hold("home", "own").release()
    assert "no peer 'carol' was met in network 'home'" in refused(run, "network", "ban", "home", "carol")
    assert "no peer 'abc' was met" in refused(run, "network", "ban", "home", "abc")
    assert f"'twin' may be {min(ALICE, BOB)[:12]} (twin), " in refused(run, "network", "ban", "home", "twin")
    assert "'own' is a peer of this machine" in refused(run, "network", "ban", "home", "own")
    assert kept.ring_of("home") == before
    told(run, "network", "ban", "home", BOB)
    assert "is banned from network 'home' already" in refused(run, "network", "ban", "home", BOB)


@pytest.mark.parametrize("command", ["token", "rotate", "retire"])
def test_a_network_that_is_not_here_is_told_with_those_that_are(command: str, run: Run) -> None:
    assert "make it by: p2pfl network create home" in refused(run, "network", command, "home")
    kept.create_network("lab")
    assert "no key of network 'home' on this machine; there are: lab" in refused(run, "network", command, "home")


# How `start` comes to a key


def test_without_a_key_start_says_in_two_lines_how_to_make_or_join_a_network(run: Run, tmp_path: Path) -> None:
    says = refused(run, "start")
    assert says == (
        "p2pfl: no network's key on this machine;\n"
        "  make a network:   p2pfl network create home\n"
        "  or join one:      p2pfl start --join FILE     "
        "(its file `key`, copied from a member; - asks for the token instead)\n"
    )
    assert "p2pfl network create lab" in refused(run, "start", "--network", "lab")
    assert list(tmp_path.iterdir()) == []


def test_of_several_networks_start_asks_which(run: Run) -> None:
    kept.create_network("home")
    kept.create_network("lab")
    assert "say which network: --network home or --network lab" in refused(run, "start")


def test_joining_another_network_than_the_one_named_is_told(run: Run) -> None:
    says = refused(run, "start", "--network", "lab", "--join", "-", typed=OTHER.token)
    assert "--join has the key of network 'home', not of 'lab': leave out --network" in says
    assert kept.networks() == []


def test_a_key_and_no_encryption_contradict_each_other(run: Run) -> None:
    assert "choose one" in refused(run, "start", "--insecure", "--join", "-", typed=OTHER.token)
