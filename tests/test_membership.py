import random

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.protocol.membership import Table, View, display_names
from p2pfl.protocol.messages import MAX_MEMBERS, MAX_MESSAGE_BYTES, Member, Update, encode

ME = Member("mememememe", "0", "me", ("h:1",))
OTHERS = ["aaaaaaaa", "bbbbbbbb", "cccccccc"]
RANK = {"lobby": 0, "observer": 1, "member": 2, "dead": 3, "left": 4}

records = st.builds(
    Member,
    peer=st.sampled_from(OTHERS),
    seat=st.sampled_from(["1", "2"]),
    name=st.sampled_from(["x", "y"]),
    addresses=st.sampled_from([(), ("h:2",)]),
    incarnation=st.integers(0, 2),
    state=st.sampled_from(sorted(RANK)),
    since=st.none() | st.integers(0, 3),
    until=st.none() | st.integers(0, 3),
)


def table(*batches: list[Member]) -> Table:
    made = Table(ME)
    for batch in batches:
        made.merge(batch)
    return made


@settings(max_examples=200)
@given(st.lists(records, max_size=12), st.randoms(use_true_random=False))
def test_merging_is_commutative(batch: list[Member], order: random.Random) -> None:
    shuffled = list(batch)
    order.shuffle(shuffled)
    assert list(table(batch)) == list(table(shuffled))


@given(st.lists(records, max_size=6), st.lists(records, max_size=6), st.lists(records, max_size=6))
def test_merging_is_associative(a: list[Member], b: list[Member], c: list[Member]) -> None:
    left = table(a, b)
    right = table(b, c)
    assert list(table(list(left), c)) == list(table(a, list(right))) == list(table(a + b + c))


@given(st.lists(records, max_size=8))
def test_merging_again_is_no_news(batch: list[Member]) -> None:
    made = table(batch)
    before = list(made)
    assert made.merge(batch) == []
    assert made.merge(before) == []
    assert list(made) == before


@given(st.lists(records, max_size=10))
def test_incarnation_and_state_never_go_back(batch: list[Member]) -> None:
    made = Table(ME)
    for record in batch:
        old = made.get(record.peer)
        news = made.merge([record])
        new = made.get(record.peer)
        assert new is not None
        if old is not None:
            assert (new.incarnation, RANK[new.state]) >= (old.incarnation, RANK[old.state])
        assert news == ([] if new == old else [new])


def test_a_table_believes_nobody_about_its_own_peer() -> None:
    for claim in ({"state": "dead"}, {"state": "left"}, {"incarnation": 4}, {"state": "member", "since": 7}):
        made = table()
        assert made.merge([msgspec.structs.replace(made.me, **claim)]) == []
        assert made.me == ME


def test_a_change_of_the_own_record_is_signed_and_one_of_anothers_is_not() -> None:
    signed: list[Member] = []

    def sign(record: Member) -> Member:
        signed.append(record)
        return msgspec.structs.replace(record, signature=b"mine")

    made = Table(ME, sign)
    made.merge([Member("aaaaaaaa", "1", "a", signature=b"theirs")])
    assert made.change(ME.peer, incarnation=1).signature == b"mine"
    assert made.change("aaaaaaaa", state="dead").signature == b"theirs"
    assert [record.incarnation for record in signed] == [0, 1]


@given(st.lists(records, max_size=8), st.lists(records, max_size=8))
def test_digests_are_equal_where_tables_are(a: list[Member], b: list[Member]) -> None:
    a, b = (
        [msgspec.structs.replace(m, signature=repr((m.seat, m.name, m.addresses)).encode()) for m in c] for c in (a, b)
    )
    one, other = table(a), table(b)
    assert (one.digest == other.digest) == (list(one) == list(other))
    one.merge(list(other))
    other.merge(list(one))
    assert one.digest == other.digest


def test_a_table_too_long_for_a_message_is_told_in_parts_that_fit() -> None:
    made = Table(ME)
    made.merge([Member(f"peer{n:05d}", str(n), "n", ("h" * 120,) * 16) for n in range(200)])
    parts = list(made.chunks())
    assert len(parts) == 4
    assert sorted(m.peer for part in parts for m in part) == sorted(m.peer for m in made)
    assert all(len(encode(Update(part))) < MAX_MESSAGE_BYTES for part in parts)
    assert made.told() == parts[0]


def test_a_view_holds_who_takes_part_in_that_round_by_seat() -> None:
    made = Table(Member(ME.peer, "10", "me", state="member", since=0))
    made.merge(
        [
            Member("aaaaaaaa", "9", "a", state="member", since=3),
            Member("bbbbbbbb", "lab", "b", state="dead", since=0, until=5),
            Member("cccccccc", "2", "c", state="lobby"),
        ]
    )
    assert made.view(2).names == ("me", "b")
    assert made.view(3).names == made.view(4).names == ("a", "me", "b")
    assert made.view(5).names == ("a", "me")
    assert made.view(3).positions == {"aaaaaaaa": 0, ME.peer: 1, "bbbbbbbb": 2}
    assert len(made.view(3)) == 3


def test_views_are_alike_if_seats_and_identities_are() -> None:
    one = Member("aaaaaaaa", "1", "a", state="member", since=0)
    other = Member("bbbbbbbb", "2", "b", state="member", since=0)
    view = View((one, other))
    assert view.digest == View((msgspec.structs.replace(one, name="z", incarnation=5, state="dead"), other)).digest
    assert view.digest != View((one,)).digest
    assert view.digest != View((msgspec.structs.replace(one, seat="3"), other)).digest
    assert view.digest != View((msgspec.structs.replace(one, peer="cccccccc"), other)).digest


def test_equal_names_are_told_apart_by_the_beginning_of_the_id() -> None:
    members = [Member("aaaabbbb", "1", "pi"), Member("ccccdddd", "2", "pi"), Member("eeeeffff", "3", "mac")]
    assert display_names(members) == {"aaaabbbb": "pi-aaaa", "ccccdddd": "pi-cccc", "eeeeffff": "mac"}


def test_a_full_table_forgets_the_dead_and_then_takes_no_strangers() -> None:
    made = Table(ME)
    crowd = [Member(f"peer{number:05d}", str(number + 1), "n") for number in range(MAX_MEMBERS + 5)]
    made.merge([msgspec.structs.replace(crowd[0], state="dead"), *crowd[1:]])
    assert len(list(made)) == MAX_MEMBERS
    assert made.get(crowd[0].peer) is None
    assert made.get(crowd[MAX_MEMBERS - 1].peer) is not None
    assert made.get(crowd[MAX_MEMBERS].peer) is None
    assert made.me == ME
