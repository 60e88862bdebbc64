"""A full table: who is forgotten for whom, and that nobody comes back from the dead by it."""

import msgspec
import pytest
from virtual import identity, network

from p2pfl.protocol import membership
from p2pfl.protocol.membership import Table
from p2pfl.protocol.messages import MAX_MEMBERS, Member, Update
from p2pfl.protocol.records import signed

ME = Member("mememememe", "0", "me", ("h:1",))


def peer(number: int, state: str = "member", incarnation: int = 0, until: int | None = None) -> Member:
    return Member(f"peer{number:05d}", str(number + 1), "n", ("h:2",), incarnation, state, 0, until)  # type: ignore[arg-type]


def names(table: Table) -> list[str]:
    return [member.peer for member in table if member.peer != ME.peer]


def test_who_was_gone_and_is_forgotten_comes_back_by_a_higher_incarnation_alone() -> None:
    table = Table(ME, most=3)
    table.merge([peer(0, "dead", 4, 9), peer(1), peer(2)])
    assert names(table) == [peer(1).peer, peer(2).peer]
    table.merge([peer(1, "left", 0, 7)])
    for old in (peer(0, "member", 4), peer(0, "member", 3), peer(0, "left", 4, 5)):
        assert table.merge([old]) == []
    assert table.merge([peer(0, "member", 5)]) == [peer(0, "member", 5)]
    assert names(table) == [peer(0).peer, peer(2).peer]


def test_who_says_hello_and_was_forgotten_as_dead_is_held_dead_until_it_contradicts() -> None:
    table = Table(ME, most=2)
    table.merge([peer(0, "dead", 4, 9), peer(1)])
    assert names(table) == [peer(1).peer]
    table.met(peer(0).peer)
    assert table.merge([peer(0, "member", 4)]) == [peer(0, "dead", 4, 9)]
    assert table.merge([peer(0, "member", 5)]) == [peer(0, "member", 5)]


@pytest.mark.parametrize(
    ("crowd", "met", "forgotten"),
    [
        ([peer(0), peer(1, "dead"), peer(2, "dead")], [0, 1], 2),
        ([peer(0), peer(1, "dead"), peer(2)], [1, 3], 1),
        ([peer(0), peer(1), peer(2, "lobby")], [3], 2),
        ([peer(0), peer(1), peer(2)], [0, 2, 3], 1),
        ([peer(0), peer(1), peer(2)], [0, 1, 2, 3], 3),
        ([peer(0), peer(1), peer(2)], [], 3),
    ],
)
def test_the_gone_make_room_and_strangers_do_for_who_was_met(
    crowd: list[Member], met: list[int], forgotten: int
) -> None:
    table = Table(ME, most=4)
    table.merge(crowd)
    for number in met:
        table.met(peer(number).peer)
    table.merge([peer(3)])
    assert set(names(table)) == {peer(number).peer for number in range(4) if number != forgotten}


def test_no_more_is_kept_of_the_forgotten_than_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "MAX_BURIED", 5)
    table = Table(ME, most=2)
    for number in range(50):
        table.met(peer(number).peer)
        table.merge([peer(number, "dead")])
    assert len(table._buried) == 5
    assert len(table._met) == 2
    assert table.merge([peer(47)]) == []


def test_a_table_full_of_minted_members_keeps_no_newcomer_out() -> None:
    net = network(3, rounds=0)
    net.run_to_round(2)
    ids = [identity(1000 + number) for number in range(MAX_MEMBERS)]
    minted = tuple(
        signed(Member(one.peer, f"x{number}", f"g{number}", (), 0), "test", one) for number, one in enumerate(ids)
    )
    for half in (minted[::2], minted[1::2]):
        net.tell(net[1], net[0], Update(half))
        net.tell(net[2], net[0], Update(half))
    net.run(until=net.now + 1.0)
    assert len(net[0].core.members) == MAX_MEMBERS
    late = net.add(3, at=net.now, asked={})
    net.run(until=net.now + 10.0)
    assert late.core.state == "running"
    assert [node.state_of(late) for node in net.nodes[:3]] == ["member"] * 3
    assert len(net[0].core.members) == MAX_MEMBERS


def test_of_a_record_that_is_held_nothing_changes_by_being_met() -> None:
    table = Table(ME)
    table.merge([peer(0, "dead", 2, 5)])
    table.met(peer(0).peer)
    assert table.merge([peer(0, "member", 2)]) == []
    assert table.get(peer(0).peer) == msgspec.structs.replace(peer(0, "dead", 2), until=5)
