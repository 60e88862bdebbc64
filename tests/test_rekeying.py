"""Key changes: signed, ordered, and the same on every member whatever comes first."""

import itertools
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import ProtocolError, UsageError
from p2pfl.identity import Identity
from p2pfl.network_key import KeyRing, NetworkKey
from p2pfl.protocol.messages import KeyChange, decode, encode
from p2pfl.protocol.rekeying import MOST_AHEAD, MOST_BANNED, PAUSE_S, Rekeying, change, changed

ALICE, BOB, EVE, MAL = (Identity(bytes([number]) * 32) for number in (1, 2, 3, 4))


def key(number: int, name: str = "home") -> NetworkKey:
    return NetworkKey(name, bytes([number]) * 32)


OLD = KeyRing(key(0))


def rekeying(ring: KeyRing = OLD) -> Rekeying:
    return Rekeying(ring.name, ring.rank, ring.banned, ALICE)


def ids(count: int, series: int = 0) -> list[str]:
    """Invented ids."""
    return [Identity(bytes([series]) + number.to_bytes(2, "big") + bytes(29)).peer for number in range(count)]


def test_a_rotation_is_accepted_once() -> None:
    rotated = OLD.rotated(key(1))
    told = change(ALICE, rotated)
    mine = rekeying()
    assert [mine.accept(told), mine.accept(told)] == [True, False]
    assert (mine.rank, mine.latest) == (rotated.rank, told)
    assert changed(OLD, told) == rotated == KeyRing(key(1), 1, (key(0),))


def test_a_change_survives_the_wire() -> None:
    told = change(ALICE, OLD.rotated(key(1), banned=(EVE.peer,)))
    assert decode(encode(told)) == told
    assert rekeying().accept(told)


def test_an_earlier_change_is_no_news() -> None:
    newer = OLD.rotated(key(1)).rotated(key(2))
    mine = rekeying(newer)
    assert not mine.accept(change(ALICE, OLD.rotated(key(1))))
    assert (mine.rank, mine.latest) == (newer.rank, None)
    assert changed(newer, change(ALICE, OLD.rotated(key(1)))) == newer


def test_a_ban_honors_no_former_key() -> None:
    told = change(ALICE, OLD.rotated(key(1), banned=(EVE.peer,)))
    mine = rekeying()
    assert mine.accept(told)
    assert mine.banned == {EVE.peer}
    assert changed(OLD, told) == KeyRing(key(1), 1, (), frozenset({EVE.peer}))


def test_a_ban_outranks_a_key_that_the_banned_was_handed() -> None:
    ours, theirs = sorted((OLD.rotated(key(1)), OLD.rotated(key(2))), key=lambda ring: ring.rank, reverse=True)
    told = change(BOB, KeyRing(theirs.key, theirs.epoch, (), frozenset({EVE.peer})))
    mine = rekeying(ours)
    assert mine.accept(told)
    assert (mine.rank, mine.banned, mine.latest) == (theirs.rank, {EVE.peer}, told)
    assert changed(ours, told) == KeyRing(theirs.key, 1, (), frozenset({EVE.peer}))


def test_what_the_banned_says_is_not_heard_whoever_passes_it_on() -> None:
    ban = change(ALICE, KeyRing(key(1), 1, (), frozenset({EVE.peer})))
    evil = change(EVE, KeyRing(key(9), 500))
    before, after = rekeying(), rekeying()
    assert [before.accept(evil), before.accept(ban)] == [True, True]
    assert [after.accept(ban), after.accept(evil)] == [True, False]
    assert before.latest == after.latest == ban
    assert changed(changed(OLD, evil), ban) == KeyRing(key(1), 1, (), frozenset({EVE.peer}))


def test_of_two_bans_at_once_neither_of_the_banned_has_the_key() -> None:
    one = change(ALICE, OLD.rotated(key(1), (EVE.peer,)))
    other = change(BOB, OLD.rotated(key(2), (MAL.peer,)))
    mine, theirs = rekeying(), rekeying()
    assert [mine.accept(one), mine.accept(other), theirs.accept(other), theirs.accept(one)] == [True] * 4
    assert mine.rank == theirs.rank
    assert mine.latest is not None
    assert mine.latest.key not in (bytes(32), key(1).secret, key(2).secret)
    assert (mine.latest.epoch, mine.latest.by) == (2, ALICE.peer)
    assert set(mine.latest.banned) == mine.banned == {EVE.peer, MAL.peer}
    assert rekeying().accept(mine.latest)
    assert changed(changed(OLD, one), other).key.secret == mine.latest.key


def test_who_comes_later_is_told_every_ban() -> None:
    ban = OLD.rotated(key(1), (EVE.peer,))
    mine = rekeying()
    mine.accept(change(ALICE, ban))
    assert not mine.accept(change(BOB, KeyRing(ban.key, ban.epoch)))
    assert mine.latest == change(ALICE, ban)
    assert not mine.accept(change(BOB, KeyRing(key(3), 9)))  # handed to the banned, for all that is known
    assert mine.latest == change(ALICE, ban)


def test_bans_have_room_for_so_many_and_no_more() -> None:
    mine = rekeying()
    assert mine.accept(change(EVE, OLD.rotated(key(1), ids(200))))
    with pytest.raises(ProtocolError, match="too many bans: 400, more than 256"):
        mine.accept(change(EVE, OLD.rotated(key(2), ids(200, 1))))
    assert len(mine.banned) == 200


@pytest.mark.parametrize("banned", ["abcdefgh", "A" * 52, "1" * 52, EVE.peer])
def test_a_ban_of_itself_or_of_no_peer_is_refused(banned: str) -> None:
    with pytest.raises(ProtocolError, match="bad ban"):
        rekeying().accept(change(EVE, OLD.rotated(key(1), (banned,))))


def test_changes_by_others_wait_for_each_other_unless_they_ban() -> None:
    first, second, third = OLD.rotated(key(1)), OLD.rotated(key(1)).rotated(key(2)), KeyRing(key(3), 3)
    mine = rekeying()
    assert not mine.waits(BOB.peer, change(BOB, first), 10.0)
    assert mine.accept(change(BOB, first))
    mine.took(10.0)
    assert mine.next_deadline() is None
    assert mine.waits(BOB.peer, change(BOB, second), 10.1)
    assert mine.waits(BOB.peer, change(BOB, third), 10.2)
    assert (mine.rank, mine.next_deadline()) == (first.rank, 10.0 + PAUSE_S)
    assert mine.due(10.0 + PAUSE_S - 0.1) == {}
    assert mine.due(10.0 + PAUSE_S) == {BOB.peer: change(BOB, third)}
    assert mine.next_deadline() is None
    assert not mine.waits(BOB.peer, change(BOB, first.rotated(key(4), (EVE.peer,))), 10.3)


def test_two_rotations_at_once_end_alike_on_both() -> None:
    by_alice, by_bob = OLD.rotated(key(1)), OLD.rotated(key(2))
    at_alice = changed(by_alice, change(BOB, by_bob))
    at_bob = changed(by_bob, change(ALICE, by_alice))
    assert at_alice.key == at_bob.key == max((by_alice, by_bob), key=lambda ring: ring.rank).key
    loser = min((by_alice, by_bob), key=lambda ring: ring.rank)
    at_loser = at_alice if loser is by_alice else at_bob
    assert at_loser.former == (loser.key, key(0))  # others may still hold either


def test_who_comes_later_is_told_the_change_in_force() -> None:
    first, second = OLD.rotated(key(1)), OLD.rotated(key(1)).rotated(key(2))
    mine = rekeying()
    mine.accept(change(ALICE, second))
    mine.accept(change(BOB, first))
    assert mine.latest == change(ALICE, second)
    # The own ring of a process that has just begun is no news, but what to tell.
    again = rekeying(second)
    assert not again.accept(change(BOB, second))
    assert again.latest == change(BOB, second)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("epoch", 2, "bad signature"),
        ("key", bytes(32), "bad signature"),
        ("key", b"short", "bad key"),
        ("by", BOB.peer, "bad signature"),
        ("by_key", BOB.public, "bad signature"),
        ("by_key", b"", "bad signature"),
        ("banned", (BOB.peer,), "bad signature"),
        ("signature", b"", "bad signature"),
        ("signature", bytes(64), "bad signature"),
    ],
)
def test_a_change_that_was_tampered_with_changes_nothing(field: str, value: object, reason: str) -> None:
    told = msgspec.structs.replace(change(ALICE, OLD.rotated(key(1))), **{field: value})
    mine = rekeying()
    with pytest.raises(ProtocolError) as caught:
        mine.accept(told)
    assert caught.value.reason == reason
    assert (mine.rank, mine.banned, mine.latest) == (OLD.rank, frozenset(), None)


def test_a_change_for_another_network_is_refused() -> None:
    told = change(ALICE, KeyRing(key(1, "lab"), 1))
    with pytest.raises(ProtocolError, match="bad signature"):
        rekeying().accept(told)


def test_a_liar_cannot_use_up_the_epochs() -> None:
    mine = rekeying()
    with pytest.raises(ProtocolError, match="key change too far ahead: epoch 1025 after 0"):
        mine.accept(change(EVE, KeyRing(key(1), MOST_AHEAD + 1)))
    assert mine.accept(change(EVE, KeyRing(key(1), MOST_AHEAD)))


def test_more_bans_than_a_message_holds_are_refused() -> None:
    banned = ids(MOST_BANNED + 1)
    change(ALICE, OLD.rotated(key(1), banned[1:]))
    with pytest.raises(UsageError, match="257 peers are banned, more than 256: make a new network"):
        change(ALICE, OLD.rotated(key(1), banned))


def test_neither_a_change_nor_its_errors_tell_the_key() -> None:
    told = change(ALICE, OLD.rotated(key(7)))
    with pytest.raises(ProtocolError) as caught:
        rekeying().accept(msgspec.structs.replace(told, epoch=9))
    assert (b"\x07" * 4).hex() not in str(caught.value)
    assert "\x07" not in str(caught.value)


changes = st.builds(
    lambda epoch, number, banned: change(ALICE, KeyRing(key(number), epoch, (), frozenset(banned))),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sets(st.sampled_from((BOB.peer, EVE.peer))),
)


def without_crossing(told: list[KeyChange]) -> bool:
    bans = [set(one.banned) for one in told]
    return all(one <= other or other <= one for one, other in itertools.combinations(bans, 2))


@given(st.lists(changes, max_size=4).filter(without_crossing))
def test_the_order_in_which_changes_come_makes_no_difference(told: list[KeyChange]) -> None:
    ends = set()
    for order in itertools.permutations(told):
        mine, ring = rekeying(), OLD
        for one in (*order, *order):  # each of them twice
            mine.accept(one)
            ring = changed(ring, one)
        assert (mine.rank, mine.banned) == (ring.rank, ring.banned)
        ends.add((ring.key, ring.epoch, ring.banned))
    assert len(ends) == 1


@given(st.lists(changes, max_size=6))
def test_carrying_out_only_the_news_comes_to_the_same_ring(told: list[KeyChange]) -> None:
    mine, ring = rekeying(), OLD
    for one in told:
        before = ring
        if mine.accept(one):
            ring = changed(ring, one)
            assert (ring.key, ring.banned) != (before.key, before.banned) or ring.epoch > before.epoch
        assert (mine.rank, mine.banned) == (ring.rank, ring.banned)
        assert ring.key not in ring.former


@given(st.lists(changes, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_members_that_tell_each_other_end_with_one_ring(told: list[KeyChange], random: Random) -> None:
    """Also where bans cross: each is told one change, and tells the others what it comes to, in any order."""
    members = [Rekeying("home", OLD.rank, (), Identity(bytes([number + 10]) * 32)) for number in range(3)]
    under_way = [(random.randrange(3), one) for one in told]
    for _ in range(1000):
        if not under_way:
            break
        to, one = under_way.pop(random.randrange(len(under_way)))
        latest = members[to].latest if members[to].accept(one) else None
        under_way += [(other, latest) for other in range(3) if other != to and latest is not None]
    assert not under_way
    assert len({(member.rank, member.banned) for member in members}) == 1
    assert members[0].banned == {peer for one in told for peer in one.banned}
