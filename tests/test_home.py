"""What a machine keeps: keys, identities, incarnations; whole files, for the user's eyes only, one peer an identity."""

import os
import stat
import subprocess
import sys
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from p2pfl import home as kept
from p2pfl.errors import UsageError
from p2pfl.file_lock import FileLock
from p2pfl.home import Known, RingWatch
from p2pfl.identity import Identity
from p2pfl.network_key import KeyRing, NetworkKey

EVE = Identity(b"\x03" * 32).peer


def key(number: int, name: str = "home") -> NetworkKey:
    return NetworkKey(name, bytes([number]) * 32)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def in_another_process(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)


# Networks and their keys


def test_home_is_where_the_environment_says(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kept.home() == home
    monkeypatch.setenv("P2PFL_HOME", "~/keys")
    assert kept.home() == Path.home() / "keys"
    monkeypatch.delenv("P2PFL_HOME")
    assert kept.home().name == "p2pfl"


def test_a_new_network_is_there_for_the_next_process(home: Path) -> None:
    assert kept.networks() == []
    ring = kept.create_network("lab")
    assert len(ring.key.secret) == 32
    assert (ring.name, ring.epoch, ring.former, ring.banned) == ("lab", 0, (), frozenset())
    other = kept.create_network("home")
    assert other.key.secret != ring.key.secret
    assert (home / "networks" / "lab" / "key").read_text() == ring.key.token + "\n"
    assert kept.networks() == [other, ring]
    assert kept.ring_of("lab") == ring
    assert kept.ring_of("elsewhere") is None


def test_what_is_secret_is_for_the_user_alone(home: Path) -> None:
    kept.create_network("lab")
    kept.hold("lab", "alice").release()
    kept.remember_peers("lab", [Known(EVE, "eve", ("10.0.0.9:7470",))])
    folder = home / "networks" / "lab"
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert files == [".lock", "identities/.alice.json.lock", "identities/alice.json", "key", "peers.json", "ring.json"]
    assert {mode(folder / name) for name in files} == {0o600}
    assert {mode(path) for path in (home, home / "networks", folder, folder / "identities")} == {0o700}


def test_a_second_network_of_a_name_is_refused() -> None:
    ring = kept.create_network("lab")
    with pytest.raises(UsageError, match="there is a network 'lab' on this machine already") as caught:
        kept.create_network("lab")
    assert "p2pfl network remove lab" in str(caught.value)
    assert kept.create_network("lab", exist_ok=True) == ring
    assert kept.ring_of("lab") == ring


@pytest.mark.parametrize("name", ["", "../lab", "a b", "a:b", ".hidden", "x" * 65])
def test_a_name_that_is_no_folder_is_refused(name: str, home: Path) -> None:
    with pytest.raises(UsageError, match="is no name for a network"):
        kept.create_network(name)
    assert not home.exists()


def test_joining_keeps_the_key_and_again_changes_nothing(home: Path) -> None:
    ring = kept.join_network(f"  {key(1).token.upper().replace('HOME', 'home')} \n")
    assert ring == KeyRing(key(1))
    kept.store_ring(ring.rotated(key(2), banned=(EVE,)))
    assert kept.join_network(key(2).token) == KeyRing(key(2), 1, (key(1),), frozenset({EVE}))


def test_joining_with_another_key_of_the_name_is_refused_and_tells_no_key() -> None:
    kept.join_network(key(1).token)
    with pytest.raises(UsageError) as caught:
        kept.join_network(key(2).token)
    assert str(caught.value) == (
        "there is a network 'home' on this machine with another key: where it has been rotated meanwhile, take the "
        "newer key by: p2pfl network join --replace FILE"
    )
    assert kept.ring_of("home") == KeyRing(key(1))


def test_a_key_can_be_replaced_and_the_identities_and_bans_stay() -> None:
    kept.join_network(key(1).token)
    kept.store_ring(KeyRing(key(1), 0, (), frozenset({EVE})))
    with kept.hold("home", "alice") as held:
        alice = held.identity.peer
    assert kept.join_network(key(2).token, replace=True) == KeyRing(key(2), 0, (), frozenset({EVE}))
    assert kept.identities("home") == {"alice": alice}


def test_a_mistyped_token_is_not_repeated() -> None:
    token = key(1).token
    wrong = token[:-1] + ("a" if token[-1] != "a" else "b")
    with pytest.raises(UsageError, match="mistyped") as caught:
        kept.join_network(wrong)
    assert not any(group in str(caught.value) for group in wrong.partition(":")[2].split("-"))


def test_a_folder_with_the_key_file_alone_is_a_network(home: Path) -> None:
    (home / "networks" / "home").mkdir(parents=True)
    (home / "networks" / "home" / "key").write_text(key(1).token + "\n")
    assert kept.networks() == [KeyRing(key(1))]


def test_a_ring_is_kept_with_its_former_keys_and_bans() -> None:
    ring = KeyRing(key(2), 7, (key(1), key(0)), frozenset({EVE}))
    kept.store_ring(ring)
    assert kept.ring_of("home") == ring
    assert kept.key_path("home").read_text() == ring.token + "\n"
    kept.store_ring(ring.without_former())
    assert kept.ring_of("home") == KeyRing(key(2), 7, (), frozenset({EVE}))


def test_of_two_processes_that_store_a_ring_the_later_ring_stands() -> None:
    newer, older = KeyRing(key(3), 2, (key(1),)), KeyRing(key(2), 1)
    kept.store_ring(newer)
    assert kept.store_ring(older) == newer == kept.ring_of("home")


def test_a_ban_that_is_stored_outranks_a_key_that_the_banned_was_handed() -> None:
    newer, ban = KeyRing(key(3), 2, (key(1),)), KeyRing(key(2), 1, (), frozenset({EVE}))
    kept.store_ring(newer)
    assert kept.store_ring(ban) == ban == kept.ring_of("home")


def test_a_key_that_was_retired_does_not_come_back() -> None:
    ring = KeyRing(key(2), 2, (key(1),))
    kept.store_ring(ring)
    kept.store_ring(ring.without_former())
    assert kept.store_ring(ring).former == ()


def test_who_joins_knows_how_often_the_key_was_changed() -> None:
    ring = kept.create_network("home").rotated(key(2)).rotated(key(3))
    assert kept.store_ring(ring).epoch == 2
    token = kept.key_path("home").read_text()
    kept.remove_network("home")
    assert kept.join_network(token) == KeyRing(key(3), 2)


def test_an_older_key_does_not_replace_a_newer_one() -> None:
    newer = KeyRing(key(3), 2)
    kept.store_ring(newer)
    with pytest.raises(UsageError, match="this is key number 1 of network 'home', and number 2 is here: take the file"):
        kept.join_network(KeyRing(key(2), 1).token, replace=True)
    assert kept.ring_of("home") == newer


def test_a_running_peer_notices_another_ring() -> None:
    ring = kept.create_network("home")
    watch = RingWatch("home")
    assert watch.news() is None
    kept.store_ring(ring.rotated(key(9)))
    news = watch.news()
    assert news is not None
    assert news.key == key(9)
    assert watch.news() is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": 3}', '{"key": "home:aaaa"}', '{"key": "x", "epoch": -1}'])
def test_a_damaged_ring_names_its_file_and_the_mend(content: str, home: Path) -> None:
    kept.create_network("home")
    path = home / "networks" / "home" / "ring.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"is damaged.*bring it back from a copy, or remove it") as caught:
        kept.ring_of("home")
    assert str(path) in str(caught.value)


def test_a_folder_under_another_name_is_told(home: Path) -> None:
    kept.create_network("home")
    (home / "networks" / "home").rename(home / "networks" / "lab")
    with pytest.raises(UsageError, match="has the key of network 'home': move the folder to that name"):
        kept.networks()


def test_a_home_that_cannot_be_made_says_so(home: Path) -> None:
    home.write_text("a file where the folder should be")
    with pytest.raises(UsageError, match=r"cannot be written to .*P2PFL_HOME"):
        kept.create_network("home")


def test_files_that_others_can_read_are_told_with_the_mend(home: Path) -> None:
    kept.create_network("home")
    kept.hold("home", "alice").release()
    assert kept.exposed("home") == []
    path = home / "networks" / "home" / "identities" / "alice.json"
    path.chmod(0o640)
    told = f"{path} can be read by other users of this machine; mend it by: chmod 600 {path}"
    assert kept.exposed("home") == [told]


def test_folders_that_others_can_write_to_are_told_with_the_mend(home: Path) -> None:
    kept.create_network("home")
    home.chmod(0o777)
    told = (
        f"other users of this machine can put their own files into {home}; mend it by: chmod 700 {home} (as its owner)"
    )
    assert kept.exposed("home") == [told]


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_lock_that_leads_to_another_file_is_refused_and_the_file_stays(link: Any, home: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("all I have")
    kept.create_network("home")
    folder = home / "networks" / "home" / "identities"
    folder.mkdir(mode=0o700)
    link(precious, folder / ".alice.json.lock")
    with pytest.raises(UsageError, match=r"\.alice\.json\.lock cannot be written to"):
        kept.hold("home", "alice")
    assert precious.read_text() == "all I have"


def test_a_look_at_who_runs_makes_nobody_another_peer(home: Path) -> None:
    kept.hold("home", "alice").release()
    path = home / "networks" / "home" / "identities" / ".alice.json.lock"
    look = FileLock(path)
    assert look.take()
    Timer(0.03, look.release).start()
    with kept.hold("home", "alice") as held:
        assert held.path.name == "alice.json"


def test_a_removed_network_leaves_nothing(home: Path) -> None:
    kept.create_network("home")
    with kept.hold("home", "alice"), pytest.raises(UsageError, match="alice of network 'home' is running"):
        kept.remove_network("home")
    kept.remove_network("home")
    assert list((home / "networks").iterdir()) == []
    with pytest.raises(UsageError, match="there is no network 'home'"):
        kept.remove_network("home")


# Identities


def test_a_peer_keeps_its_id_and_every_start_counts() -> None:
    with kept.hold("home", "alice") as first:
        pass
    with kept.hold("home", "alice") as second:
        pass
    assert first.identity.peer == second.identity.peer
    assert [first.incarnation, second.incarnation] == [1 << 16, 2 << 16]


def test_a_start_counts_even_if_the_process_is_killed() -> None:
    program = "import os; from p2pfl.home import hold; held = hold('home', 'alice'); os.kill(os.getpid(), 9)"
    assert in_another_process(program).returncode == -9
    with kept.hold("home", "alice") as held:  # and nothing holds the identity any more
        assert held.path.name == "alice.json"
        assert held.incarnation == 2 << 16


def test_the_same_name_twice_is_two_peers() -> None:
    with kept.hold("home", "alice") as first, kept.hold("home", "alice") as second, kept.hold("home", "alice") as third:
        assert [held.path.name for held in (first, second, third)] == ["alice.json", "alice-2.json", "alice-3.json"]
        assert len({held.identity.peer for held in (first, second, third)}) == 3
    with kept.hold("home", "alice") as again:
        assert again.identity.peer == first.identity.peer


def test_networks_know_a_peer_by_different_ids() -> None:
    with kept.hold("home", "alice") as one, kept.hold("lab", "alice") as other:
        assert one.identity.peer != other.identity.peer


@pytest.mark.fault(11)
def test_an_identity_in_use_by_another_process_is_refused_by_the_name_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "id.json"
    program = f"from p2pfl.home import hold; hold('home', 'alice', file={str(path)!r})"
    with kept.hold("home", "alice", file=path):
        refused = in_another_process(program)
    assert refused.returncode != 0
    assert f"the identity {path} is in use by another process" in refused.stderr
    assert in_another_process(program).returncode == 0


@pytest.mark.parametrize("how", ["file", "peer", "strict"])
def test_who_asks_for_one_identity_gets_no_other(how: str) -> None:
    with kept.hold("home", "alice") as held:
        asked = {"file": {"file": held.path}, "peer": {"peer": held.identity.peer}, "strict": {"strict": True}}[how]
        with pytest.raises(UsageError, match="is in use by another process: stop that peer") as caught:
            kept.hold("home", "alice", **asked)
        assert str(held.path) in str(caught.value)
    with kept.hold("home", "alice", **asked) as again:
        assert again.identity == held.identity


def test_an_identity_is_found_by_its_id_whatever_its_file_is_called() -> None:
    with kept.hold("home", "alice"), kept.hold("home", "alice") as second:
        pass
    with kept.hold("home", "alice", peer=second.identity.peer) as again:
        assert (again.path.name, again.incarnation) == ("alice-2.json", 2 << 16)


def test_a_run_of_an_identity_that_is_not_here_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"has no identity of alice with the id {EVE}.*give --identity FILE"):
        kept.hold("home", "alice", peer=EVE)
    with pytest.raises(UsageError, match="there is no identity"):
        kept.hold("home", "alice", peer=EVE, file=tmp_path / "none.json")
    kept.hold("home", "alice", file=tmp_path / "other.json").release()
    with pytest.raises(UsageError, match=r"other\.json is the identity of another peer"):
        kept.hold("home", "alice", peer=EVE, file=tmp_path / "other.json")


def test_an_incarnation_is_above_the_one_that_others_have_seen() -> None:
    with kept.hold("home", "alice", after=(41 << 16) + 5) as held:
        assert held.incarnation == 42 << 16
    with kept.hold("home", "alice", after=3) as held:
        assert held.incarnation == 43 << 16


@pytest.mark.parametrize("name", ["a/b", "../a", "…", ".", "a\0b"])
def test_any_name_of_a_peer_is_a_file_in_its_folder(name: str, home: Path) -> None:
    with kept.hold("home", name) as held:
        assert held.path.parent == home / "networks" / "home" / "identities"
        assert held.path.exists()


@pytest.mark.parametrize("content", ["", "{}", '{"peer": "x", "secret": "AAAA"}'])
def test_a_damaged_identity_is_told_and_not_overwritten(content: str, tmp_path: Path) -> None:
    path = tmp_path / "id.json"
    path.write_text(content)
    with pytest.raises(UsageError, match="is damaged"):
        kept.hold("home", "alice", file=path)
    assert path.read_text() == content


def test_who_runs_is_told_with_the_key_it_uses() -> None:
    ring = kept.create_network("home")
    assert kept.running("home") == []
    with kept.hold("home", "alice") as held:
        assert [(one.name, one.tag) for one in kept.running("home")] == [("alice", "")]
        held.uses(ring)
        assert kept.running("home") == [kept.Running("alice", os.getpid(), ring.key.tag, 0)]
        held.uses(ring.rotated(key(1), banned=(EVE,)))
        assert kept.running("home") == [kept.Running("alice", os.getpid(), key(1).tag, 1)]
    assert kept.running("home") == []


def test_an_identity_never_shows_its_secret() -> None:
    with kept.hold("home", "alice") as held:
        secret = held.identity.secret
        assert secret.hex() not in repr(held) + repr(held.identity)
        assert repr(secret) not in repr(held) + repr(held.identity)


# Who was met


def test_the_peers_of_the_last_run_come_first() -> None:
    kept.remember_peers("home", [Known("a" * 52, "alice", ("10.0.0.1:1",)), Known("b" * 52, "bob", ("10.0.0.2:1",))])
    kept.remember_peers("home", [Known("c" * 52, "carol"), Known("b" * 52, "bob", ("10.0.0.3:1",))])
    assert [(one.name, one.addresses) for one in kept.peers_of("home")] == [
        ("carol", ()),
        ("bob", ("10.0.0.3:1",)),
        ("alice", ("10.0.0.1:1",)),
    ]


def test_the_peers_of_many_runs_are_bounded(home: Path) -> None:
    kept.remember_peers("home", [Known(str(number)) for number in range(300)])
    assert [one.peer for one in kept.peers_of("home")] == [str(number) for number in range(256)]


def test_damaged_peers_are_nobody(home: Path) -> None:
    kept.remember_peers("home", [Known("a")])
    (home / "networks" / "home" / "peers.json").write_text("{")
    assert kept.peers_of("home") == ()
    kept.remember_peers("home", [Known("b")])
    assert kept.peers_of("home") == (Known("b"),)
