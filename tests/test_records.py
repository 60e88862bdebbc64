import msgspec
import pytest
from virtual import identity

from p2pfl.errors import ProtocolError
from p2pfl.protocol.messages import Member
from p2pfl.protocol.records import Patience, Verified, signed

ANN, BOB = identity(0), identity(1)
RECORD = signed(Member(ANN.peer, "0", "ann", ("h:1",), 3), "home", ANN)


def refusal(record: Member, network: str = "home") -> str:
    try:
        Verified(network).check(record)
    except ProtocolError as error:
        return error.reason
    return ""


def changed(**fields: object) -> Member:
    return msgspec.structs.replace(RECORD, **fields)


def test_what_others_may_add_needs_no_other_signature() -> None:
    for claim in (
        {},
        {"state": "member", "since": 3},
        {"state": "observer"},
        {"state": "dead", "since": 3, "until": 9},
    ):
        assert refusal(changed(**claim)) == ""


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"incarnation": 4}, "bad signature"),
        ({"addresses": ("h:2",)}, "bad signature"),
        ({"seat": "1"}, "bad signature"),
        ({"name": "bob"}, "bad signature"),
        ({"state": "left", "until": 5}, "bad signature"),
        ({"signature": b""}, "bad signature"),
        ({"key": b""}, "bad signature"),
        ({"key": b"short"}, "bad signature"),
        ({"key": BOB.public}, "foreign record"),
        ({"peer": BOB.peer}, "foreign record"),
        ({"state": "member", "until": 5}, "foreign record"),
    ],
)
def test_what_only_the_peer_may_say_cannot_be_changed(fields: dict[str, object], reason: str) -> None:
    assert refusal(changed(**fields)) == reason


def test_a_record_of_one_network_is_none_in_another() -> None:
    assert refusal(RECORD, "lab") == "bad signature"


def test_that_a_peer_left_and_when_is_its_own_word() -> None:
    left = signed(changed(state="left", until=5), "home", ANN)
    assert refusal(left) == ""
    assert refusal(msgspec.structs.replace(left, until=6)) == "bad signature"
    assert refusal(msgspec.structs.replace(left, state="member", until=None)) == "bad signature"


def test_a_record_that_was_verified_once_is_still_checked_for_what_it_says() -> None:
    verified = Verified("home")
    for _ in range(2):
        verified.check(RECORD)
        with pytest.raises(ProtocolError):
            verified.check(changed(incarnation=4))


def test_a_teller_has_a_thousand_new_records_verified_at_once_and_two_hundred_a_second() -> None:
    patience = Patience()
    assert sum(patience.takes("liar", 10.0) for _ in range(5000)) == 1024
    assert sum(patience.takes("liar", 11.0) for _ in range(5000)) == 200
    assert patience.takes("other", 11.0)
    verified = Verified("home")
    assert not verified.knows(RECORD)
    verified.check(RECORD)
    assert verified.knows(changed(state="dead"))
    assert not verified.knows(changed(incarnation=4))
