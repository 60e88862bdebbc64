from contextlib import suppress
from typing import get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.errors import ProtocolError
from p2pfl.protocol.messages import (
    MAX_MEMBERS,
    MAX_MESSAGE_BYTES,
    MAX_ROUND,
    Ack,
    Declined,
    Extension,
    Goodbye,
    Hello,
    Join,
    KeyChange,
    Member,
    Message,
    Offer,
    Ping,
    Probe,
    Ready,
    Refused,
    Running,
    SnapshotWanted,
    Start,
    Status,
    Suspicion,
    Update,
    decode,
    encode,
)

ME = Member("abcdefgh", "0", "ann", ("10.0.0.1:4000",), 1, "member", 0, 7)
RUNNING = Running({"rounds": 3, "lr": 0.1, "topology": "ring", "flag": True}, "f", "l", ("w [3] float32",), 2)
EACH: tuple[Message, ...] = (
    Hello((1, 1), "lan", "i0", ME, 1 << 20, {"rounds": 3}, 4, RUNNING, (ME, ME)),
    Refused("duplicate seat", "part 1 is taken"),
    Ready("f", "l", ("w [3] float32",), "d", 5),
    Start(RUNNING, "init", (ME,)),
    Join("l", "d"),
    Update((ME,)),
    Status(9, True),
    Offer("share", 3, "3.i", 100, "l", "r", "v", 2, 10, 0.5),
    Declined("3.i", "late"),
    SnapshotWanted(4),
    Goodbye(ME),
    Extension("dp", b"\x00\xff"),
    Ping(7, b"t" * 16),
    Ack(7, 1 << 16, b"t" * 16),
    Probe(7, "abcdefgh"),
    Suspicion("abcdefgh", 3),
    KeyChange(2, b"k" * 32, "abcdefgh", b"p" * 32, ("bcdefghi",), b"s" * 64),
)


def build(kind: str, /, **fields: object) -> bytes:
    """Any fields under a message's tag, unchecked."""
    tags = {type(message).__name__: number for number, message in enumerate(EACH, 1)}
    return msgspec.msgpack.encode({"type": tags[kind], **fields})


def plain(message: Message) -> dict[str, object]:
    fields: dict[str, object] = msgspec.msgpack.decode(encode(message))
    del fields["type"]
    return fields


def test_every_message_comes_back_as_it_was() -> None:
    assert {type(message) for message in EACH} == set(get_args(Message))
    for message in EACH:
        assert decode(encode(message)) == message


def test_tags_are_never_given_to_another_message() -> None:
    tags = [msgspec.msgpack.decode(encode(message))["type"] for message in EACH]
    assert tags == list(range(1, 18))


def test_fields_of_a_later_version_are_ignored() -> None:
    assert decode(build("Status", round=3, finished=True, mood="good")) == Status(3, True)


@pytest.mark.parametrize(
    "data",
    [
        build("Refused", reason="x" * 129),
        build("Refused", reason="x", detail="x" * 513),
        build("Status", round=-1),
        build("Status", round=MAX_ROUND + 1),
        build("Status", round=1 << 63),
        build("Status", round="3"),
        build("Status", round=3.5),
        build("Status"),
        build("Offer", **{**plain(EACH[7]), "bytes": (1 << 44) + 1}),
        build("Offer", **{**plain(EACH[7]), "kind": "gift"}),
        build("Offer", **{**plain(EACH[7]), "train_s": -1.0}),
        build("Offer", **{**plain(EACH[7]), "train_s": 1e10}),
        build("Offer", **{**plain(EACH[7]), "train_s": float("nan")}),
        build("Offer", **{**plain(EACH[7]), "train_s": float("inf")}),
        build("Goodbye", me={"peer": "short", "seat": "0", "name": "n"}),
        build("Goodbye", me={"peer": "UPPERCASE", "seat": "0", "name": "n"}),
        build("Goodbye", me={"peer": "abcdefgh", "seat": "", "name": "n"}),
        build("Goodbye", me={"peer": "abcdefgh", "seat": "0", "name": "n" * 65}),
        build("Goodbye", me={"peer": "abcdefgh", "seat": "0", "name": "n", "state": "asleep"}),
        build("Goodbye", me={"peer": "abcdefgh", "seat": "0", "name": "n", "addresses": ["h:1"] * 17}),
        build("Update", members=[{"peer": "abcdefgh", "seat": "0", "name": "n"}] * (MAX_MEMBERS + 1)),
        build("Ready", **{**plain(EACH[2]), "tensors": ["t"] * 65}),
        build("Hello", **{**plain(EACH[0]), "asked": {str(number): 1 for number in range(65)}}),
        build("Hello", **{**plain(EACH[0]), "asked": {"k" * 65: 1}}),
        build("Hello", **{**plain(EACH[0]), "asked": {"k": [1]}}),
        build("Hello", **{**plain(EACH[0]), "asked": {"k": "x" * ((1 << 14) + 1)}}),
        build("Hello", **{**plain(EACH[0]), "versions": [1]}),
        build("Extension", kind="k", body=b"x" * ((1 << 17) + 1)),
        build("Ping", number=1, table=b"x" * 17),
        build("Probe", number=1, peer="short"),
        build("Suspicion", peer="abcdefgh", incarnation=-1),
        build("KeyChange", **{**plain(EACH[16]), "key": b"x" * 33}),
        build("KeyChange", **{**plain(EACH[16]), "banned": ["abcdefgh"] * 257}),
        build("Goodbye", me={"peer": "abcdefgh", "seat": "0", "name": "n", "signature": b"x" * 65}),
        msgspec.msgpack.encode({"type": 99}),
        msgspec.msgpack.encode([]),
        encode(Status(1)) + b"\x00",
        encode(EACH[0])[:-1],
        b"",
        b"\x90" * 10,
        b"\x91" * 100_000,  # nested deeper than anything has a right to be
        b"\x00" * (MAX_MESSAGE_BYTES + 1),
    ],
)
def test_what_is_over_a_cap_or_not_a_message_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError) as error:
        decode(data)
    assert error.value.reason in ("malformed message", "message too long")
    assert len(str(error.value)) < 300


def test_a_message_over_the_limit_is_not_sent() -> None:
    fat = Member("abcdefgh", "0", "n", ("x" * 128,) * 16)
    with pytest.raises(ValueError, match="over the limit of 262144"):
        encode(Update((fat,) * 200))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_random_bytes_raise_only_protocol_errors(data: bytes) -> None:
    with suppress(ProtocolError):
        decode(data)


@settings(max_examples=600, deadline=None)
@given(
    st.sampled_from(EACH),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(-3, 3),
)
def test_mutated_messages_raise_only_protocol_errors(
    message: Message, changes: list[tuple[int, int]], stretch: int
) -> None:
    data = bytearray(encode(message))
    for position, value in changes:
        data[position % len(data)] = value
    mutated = bytes(data[: len(data) + min(stretch, 0)]) + b"\xc1" * max(stretch, 0)
    try:
        again = decode(mutated)
    except ProtocolError:
        return
    assert decode(encode(again)) == again  # what is let in could be sent on
