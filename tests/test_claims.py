import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.protocol.claims import Clash, clash
from p2pfl.protocol.messages import Hello, Member, State

TWICE = "another process resumed the same run folder: stop one of the two"
ALICE = Member("aaaaaaaa", "0", "alice")
BOB = Member("bbbbbbbb", "1", "bob")


def hello(me: Member, waited_s: float = 0.0, instance: str = "one") -> Hello:
    return Hello((1, 1), "net", instance, me, 0, {}, waited_s=waited_s)


def member(peer: Member, seat: str = "0", state: State = "member") -> Member:
    return msgspec.structs.replace(peer, seat=seat, state=state)


def verdict(theirs: Hello, ours: Hello) -> Clash | None:
    """Of two that are all alone."""
    return clash(theirs, ours.me, ours, None, [])


def test_two_identities_with_two_seats_are_both_welcome() -> None:
    assert verdict(hello(BOB), hello(ALICE)) is None


def test_peer_that_reached_itself_is_told_apart_by_its_instance() -> None:
    assert verdict(hello(ALICE), hello(ALICE)) == Clash("self", "", mine=False)
    assert verdict(hello(ALICE, instance="two"), hello(ALICE)) == Clash("duplicate identity", TWICE, mine=False)


@pytest.mark.parametrize(
    ("mine", "theirs", "yields"),
    [
        (hello(ALICE, 5.0), hello(ALICE, 2.0, "two"), False),
        (hello(ALICE, 2.0), hello(ALICE, 5.0, "two"), True),  # who came first stays
        (hello(member(ALICE), 2.0), hello(ALICE, 5.0, "two"), False),  # who takes part stays, however late it came
        (hello(ALICE, 5.0), hello(member(ALICE), 2.0, "two"), True),
        (hello(ALICE, 2.0, "one"), hello(ALICE, 2.0, "two"), False),
        (hello(ALICE, 2.0, "two"), hello(ALICE, 2.0, "one"), True),
    ],
)
def test_of_one_identity_twice_the_one_with_the_lower_standing_yields(mine: Hello, theirs: Hello, yields: bool) -> None:
    assert verdict(theirs, mine) == Clash("duplicate identity", TWICE, yields)


def test_identity_of_a_connection_that_stands_is_taken() -> None:
    known = hello(BOB)
    assert clash(hello(BOB, 9.0, "two"), ALICE, hello(ALICE), known, []) == Clash("duplicate identity", TWICE, False)
    assert clash(hello(BOB), ALICE, hello(ALICE), known, []) is None  # a second connection of the same process


@pytest.mark.parametrize(
    ("mine", "theirs", "detail", "yields"),
    [
        (hello(ALICE, 5.0), hello(member(BOB, "0", "lobby"), 2.0), "part 1 is taken by alice already", False),
        (hello(ALICE, 2.0), hello(member(BOB, "0", "lobby"), 5.0), "part 1 is taken by bob already", True),
        (hello(ALICE, 5.0), hello(member(BOB, "0"), 2.0), "part 1 is taken by bob already", True),
        (hello(ALICE), hello(member(BOB, "00", "lobby")), "part 1 is taken by alice already", False),  # by their ids
    ],
)
def test_of_two_in_one_seat_the_one_with_the_lower_standing_yields(
    mine: Hello, theirs: Hello, detail: str, yields: bool
) -> None:
    assert verdict(theirs, mine) == Clash("duplicate seat", f"{detail}; choose another --part", yields)


def test_seats_that_are_names_are_nobodys() -> None:
    assert verdict(hello(member(BOB, "here")), hello(member(ALICE, "here"))) is None


@pytest.mark.parametrize(
    ("holder", "newcomer", "taken"),
    [
        (member(BOB, "7"), "lobby", True),
        (member(BOB, "07"), "lobby", True),
        (member(BOB, "8"), "lobby", False),
        (member(BOB, "7", "lobby"), "lobby", False),  # two that wait settle it between themselves
        (member(BOB, "7", "left"), "lobby", False),
        (member(BOB, "7"), "member", False),
        (Member("cccccccc", "7", "carol", state="member"), "lobby", False),  # its own earlier record
    ],
)
def test_seat_of_a_connected_member_is_taken(holder: Member, newcomer: State, taken: bool) -> None:
    carol = Member("cccccccc", "7", "carol", state=newcomer)
    expected = Clash("duplicate seat", "part 8 is taken by bob already; choose another --part", mine=False)
    assert clash(hello(carol), ALICE, hello(ALICE), None, [holder]) == (expected if taken else None)


sides = st.tuples(st.sampled_from(["lobby", "member", "observer"]), st.sampled_from([0.0, 1.0, 2.0]))


@given(sides, sides, st.booleans())
def test_of_two_that_clash_both_ends_name_the_same_one(
    left: tuple[State, float], right: tuple[State, float], same_peer: bool
) -> None:
    one = hello(member(ALICE, "0", left[0]), left[1], "one")
    two = hello(member(ALICE if same_peer else BOB, "0", right[0]), right[1], "two")
    here, there = verdict(two, one), verdict(one, two)
    if "lobby" in (left[0], right[0]):
        assert here is not None
        assert there is not None
        assert (here.reason, here.detail, here.mine) == (there.reason, there.detail, not there.mine)
    elif same_peer:  # one cannot be told from the other
        assert here == there == Clash("duplicate identity", TWICE, mine=False)
    else:
        assert here is there is None


@given(sides, sides, st.booleans(), st.floats(0, 1e9))
def test_who_takes_part_gives_way_to_no_hello(
    left: tuple[State, float], right: tuple[State, float], same_peer: bool, waited_s: float
) -> None:
    mine = hello(member(ALICE), left[1], "one")
    theirs = hello(member(ALICE if same_peer else BOB, "0", right[0]), waited_s, "two")
    found = verdict(theirs, mine)
    assert found is None or not found.mine


@pytest.mark.parametrize("state", ["lobby", "member", "observer"])
def test_who_waits_gives_way_to_nobody_of_whom_somebody_here_had_not_heard(state: State) -> None:
    theirs = hello(member(BOB, "0", state), 1e9)
    taken = clash(theirs, ALICE, hello(ALICE), None, [])
    assert taken == Clash("duplicate seat", "part 1 is taken by bob already; choose another --part", mine=True)
    assert clash(theirs, ALICE, hello(ALICE), None, [], unheard_of=True) is None


def test_a_copied_hello_in_the_clear_sends_nobody_away() -> None:
    theirs = hello(member(ALICE), 1e9, "two")
    assert clash(theirs, ALICE, hello(ALICE), None, []) == Clash("duplicate identity", TWICE, mine=True)
    found = clash(theirs, ALICE, hello(ALICE), None, [], proven=False)
    assert found == Clash("duplicate identity", TWICE, mine=False)


def test_waits_beyond_an_hour_are_alike() -> None:
    long, lie = hello(ALICE, 3600.0), hello(member(BOB, "0", "lobby"), 1e9)
    found = verdict(lie, long)
    assert found is not None
    assert not found.mine  # by their ids
