"""Who is shut out hears why, and those who keep it out can tell: a key that was changed meanwhile, or a ban."""

import asyncio
from pathlib import Path

import pytest
from test_tls import NEXT, THERE, Host, credentials, host
from test_transport import NETWORK, closed, run

from p2pfl import home as kept
from p2pfl.errors import Unreachable
from p2pfl.events import PeerGone, PeerJoined, Refusal, Started
from p2pfl.network.http import HttpTransport, Limits, fetch_status
from p2pfl.network.transport import Turned
from p2pfl.network_key import MOST_RETIRED, KeyRing, NetworkKey
from p2pfl.shut_out import ShutOut

WAITS = Limits(idle_s=0.4, stall_s=1, connect_s=2, rekeyed_s=0.8)
MET = "192.0.2.1:7470"


def key(number: int) -> NetworkKey:
    return NetworkKey("home", bytes([number]) * 32)


# Keys that open nothing any more are known by their tags


def test_a_ring_knows_the_tags_of_keys_that_it_honors_no_longer() -> None:
    rotated = KeyRing(key(0)).rotated(key(1))
    assert rotated.retired == ()
    assert rotated.without_former().retired == (key(0).tag,)
    banned = rotated.rotated(key(2), ["p" * 52]).without_former()
    assert banned.retired == (key(1).tag, key(0).tag)
    assert rotated.joined(banned).retired == (key(1).tag, key(0).tag)


def test_so_many_tags_are_kept_and_no_more_the_latest_first() -> None:
    ring = KeyRing(key(0))
    for number in range(1, 40):
        ring = ring.rotated(key(number)).without_former()
    assert ring.retired == tuple(key(number).tag for number in range(38, 38 - MOST_RETIRED, -1))


def test_tags_of_retired_keys_are_kept_on_disk_and_no_secret_of_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("P2PFL_HOME", str(tmp_path))
    ring = kept.create_network("home")
    first = ring.key
    kept.store_ring(ring.rotated(key(1)))
    kept.store_ring(ring.rotated(key(1)).without_former())
    found = kept.ring_of("home")
    assert found is not None
    assert (found.former, found.retired) == ((), (first.tag,))
    replaced = kept.join_network(KeyRing(key(2), 5).token, replace=True)
    assert replaced.retired == (key(1).tag, first.tag)
    text = (kept.folder_of("home") / "ring.json").read_text()
    assert first.tag in text
    assert first.token not in text


# At the door


async def refused(one: Host, other: Host) -> Unreachable:
    with pytest.raises(Unreachable) as failure:
        await one.transport.connect(other.address)
    return failure.value


@pytest.mark.fault(39)
def test_who_comes_with_a_retired_key_is_counted_as_such_and_hears_what_any_stranger_does() -> None:
    async def scene() -> None:
        now = KeyRing(NETWORK).rotated(NEXT).without_former()
        a, late = host(credentials(1, now)), host(credentials(2))
        stranger = host(credentials(3, KeyRing(NetworkKey("elm", b"e" * 32))))
        async with a.transport.serving(a.service()):
            texts = []
            for other in (late, stranger):
                async with other.transport.serving(other.service()):
                    error = await refused(other, a)
                    texts.append(str(error))
                    assert error.reason == "other key"
            assert texts[0] == texts[1]
            assert [one.reason for one in a.turned] == ["former key", "other network"]

    run(scene())


@pytest.mark.fault(34)
def test_who_is_banned_and_proves_it_is_told_so_and_nothing_else() -> None:
    async def scene() -> None:
        a = host(credentials(1, KeyRing(NETWORK, banned=frozenset({THERE.peer}))))
        b = host(credentials(2))
        async with a.transport.serving(a.service()), b.transport.serving(b.service()):
            error = await refused(b, a)
            assert (error.reason, error.refused) == ("banned there", False)
            assert str(error).endswith("it has banned this peer")
            with pytest.raises(Unreachable, match="it has banned this peer"):
                await fetch_status(a.address, credentials=credentials(2))
            assert set(a.turned) == {Turned("connection", "banned", "127.0.0.1", THERE.peer)}
            assert len(a.turned) == 2  # once each, not again when the connection is swept away
            assert a.accepted.empty()
            assert isinstance(a.transport, HttpTransport)
            assert a.transport.admitted == 0

    run(scene())


@pytest.mark.fault(39)
@pytest.mark.parametrize("alone", [True, False], ids=["retired at one end", "retired at both"])
@pytest.mark.parametrize("dials", [True, False], ids=["dialed here", "dialed there"])
def test_links_under_a_key_that_was_retired_are_closed_and_new_ones_stay(alone: bool, dials: bool) -> None:
    async def scene() -> None:
        rotated = KeyRing(NETWORK).rotated(NEXT)
        proofs = [credentials(1), credentials(2)]
        a, b = (host(proof, WAITS) for proof in proofs)
        async with a.transport.serving(a.service()), b.transport.serving(b.service()):
            one, other = (a, b) if dials else (b, a)
            near, far = await one.link_to(other)
            for proof in proofs:
                proof.use(rotated)
            fresh, opposite = await one.link_to(other)
            for proof in proofs[: 1 if alone else 2]:
                proof.use(rotated.without_former())
            await near.send(b"the new key comes this way")  # not at once
            assert await far.receive() == b"the new key comes this way"
            await closed(far)
            await closed(near)
            await asyncio.sleep(2 * WAITS.rekeyed_s)  # the new one is not swept away after it
            await fresh.send(b"stays")
            assert await opposite.receive() == b"stays"

    run(scene())


# What the person reads


def other_key(**facts: str) -> Refusal:
    return Refusal(peer="me", what="dial", reason="other key", **facts)


def test_another_key_at_a_members_address_counts_while_nobody_talks_to_this_peer() -> None:
    out = ShutOut("home", [MET])
    assert not out.take(other_key(remote="192.0.2.9:7470"))
    assert out.news() == ""
    assert out.take(other_key(remote=f"192.0.2.9:7470, {MET}"))
    assert "peers that were members of network 'home' speak another key" in out.text
    assert "p2pfl network join --replace -" in out.text
    out.take(PeerJoined(peer="me", other="p", name="p", seat="p"))
    assert out.text == ""
    assert not out.over


def test_it_is_told_once() -> None:
    out = ShutOut("home", [])
    out.take(other_key(other="p"))
    assert out.news() != ""
    assert out.news() == ""


def test_a_ban_ends_a_run_where_all_others_say_so_and_never_one_that_waits() -> None:
    out = ShutOut("home", [])
    said = [Refusal(peer="me", what="connection", reason="banned there", other=other) for other in "pq"]
    out.take(said[0])
    assert out.text == "this peer was banned from network 'home' by one of its members"
    assert not out.over  # a liar can be the first to be met
    for other in "pqr":
        out.take(PeerJoined(peer="me", other=other, name=other, seat=other))
    out.take(Started(peer="me", settings={}, members=("me", "p", "q", "r"), round=0))
    for one in said:
        out.take(one)
    assert not out.over
    out.take(PeerGone(peer="me", other="r", name="r", reason="dead"))
    assert out.over
