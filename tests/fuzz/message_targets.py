"""Messages, and what is built of them: offers, records, changes of the key, and the core that is fed them in a row."""

from contextlib import suppress
from functools import cache
from typing import Any

import msgspec

from p2pfl.errors import ProtocolError
from p2pfl.identity import Identity
from p2pfl.network_key import KeyRing, NetworkKey
from p2pfl.protocol.messages import (
    VERSIONS,
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
    Settings,
    SnapshotWanted,
    Start,
    Status,
    Suspicion,
    Update,
    decode,
    encode,
)
from p2pfl.protocol.records import Verified, signed
from p2pfl.protocol.rekeying import Rekeying, change
from p2pfl.protocol.seal import Seal

NETWORK = "home"
US, THEM = Identity(bytes(range(32))), Identity(bytes(range(32, 64)))
KEY = NetworkKey(NETWORK, bytes(range(64, 96)))
ASKED: Settings = {"rounds": 3, "model": "mlp", "topology": "ring"}


# Control messages


def them(state: str = "member", **fields: Any) -> Member:
    """The other peer's record, signed."""
    record = Member(THEM.peer, "1", "bob", ("10.0.0.2:7470",), 1 << 16, state, 0 if state == "member" else None)  # type: ignore[arg-type]  # one of its states
    return signed(msgspec.structs.replace(record, **fields), NETWORK, THEM)


@cache
def us() -> Member:
    """The own record, signed."""
    return signed(Member(US.peer, "0", "ann", ("10.0.0.1:7470",), 1 << 16), NETWORK, US)


def running() -> Running:
    return Running(ASKED, "f" * 16, "l" * 32, ("0.weight [2, 2] float32",), 0)


@cache
def sealed() -> Offer:
    """An offer of theirs to us."""
    offer = Offer("share", 1, "1.i0", 1000, "l" * 32, "f" * 16, "v" * 16, 2, 10, 0.5, b"h" * 32)
    return Seal(THEM, NETWORK, lambda: 1 << 16).seal(offer, US.peer)


def hello(**fields: Any) -> Hello:
    return msgspec.structs.replace(Hello(VERSIONS, NETWORK, "i" * 26, them("lobby"), 1 << 20, ASKED), **fields)


def messages() -> list[Message]:
    """One of each, as the other peer would send them to us, in an order that makes sense."""
    return [
        hello(),
        hello(running=running(), members=(them(), us()), round=2),
        Ready("f" * 16, "l" * 32, ("0.weight [2, 2] float32",), "d" * 16),
        Start(running(), "n" * 16, (us(), them())),
        Join("l" * 32, "d" * 16, 2),
        Update((them(incarnation=2 << 16), us())),
        Status(3, True),
        sealed(),
        msgspec.structs.replace(sealed(), kind="snapshot"),
        Declined("1.i0", "late"),
        SnapshotWanted(1),
        Ping(1, b"t" * 16),
        Ack(1, 1 << 16, b"t" * 16),
        Probe(2, THEM.peer),
        Suspicion(US.peer, 1 << 16),
        change(THEM, KeyRing(KEY).rotated(NetworkKey(NETWORK, bytes(32)), ("c" * 52,))),
        Refused("duplicate seat", "seat 0 is taken"),
        Extension("dp", b"\x00\xff"),
        Goodbye(them("left", until=3)),
    ]


def feed_message(data: bytes) -> None:
    try:
        message = decode(data)
    except ProtocolError:
        return
    again = encode(message)
    if decode(again) != message:
        raise AssertionError("a message changes on its way through the encoding")


def message_seeds() -> list[bytes]:
    return [encode(message) for message in messages()]


@cache
def sender() -> Member:
    return them()


def feed_offer(data: bytes) -> None:
    seal = Seal(US, NETWORK, lambda: 1 << 16)
    with suppress(ProtocolError):
        message = decode(data)
        if isinstance(message, Offer):
            opened = seal.open(sender(), message)
            if opened != msgspec.structs.replace(
                sealed(), receiver="", incarnation=0, sequence=0, signature=b"", kind=opened.kind
            ):
                raise AssertionError("an offer was opened that was never sealed")
            try:
                seal.open(sender(), message)
            except ProtocolError:
                return
            raise AssertionError("an offer was opened twice")


def offer_seeds() -> list[bytes]:
    return [encode(sealed()), encode(msgspec.structs.replace(sealed(), sequence=2))]


def feed_records(data: bytes) -> None:
    verified = Verified(NETWORK)
    with suppress(ProtocolError):
        message = decode(data)
        for record in message.members if isinstance(message, Update) else ():
            with suppress(ProtocolError):
                verified.check(record)
                verified.check(record)


def record_seeds() -> list[bytes]:
    return [encode(Update((them(), us()))), encode(Update((them("left", until=4),))), encode(Update(()))]


def feed_key_change(data: bytes) -> None:
    rekeying = Rekeying(NETWORK, KeyRing(KEY).rank)
    with suppress(ProtocolError):
        message = decode(data)
        if isinstance(message, KeyChange) and rekeying.accept(message) and message.by != THEM.peer:
            raise AssertionError("a key change was accepted that nobody signed")


def key_change_seeds() -> list[bytes]:
    return [encode(message) for message in messages() if isinstance(message, KeyChange)]


# The core, fed messages in a row: each with its length in two bytes before it


def framed(parts: list[bytes]) -> bytes:
    return b"".join(len(part).to_bytes(2, "big") + part for part in parts)


def parts_of(data: bytes, most: int = 24) -> list[bytes]:
    parts, position = [], 0
    while position < len(data) and len(parts) < most:
        length = int.from_bytes(data[position : position + 2], "big")
        parts.append(data[position + 2 : position + 2 + length])
        position += 2 + length
    return parts


def under_their_hand(message: Message) -> Message:
    """The message as the other peer would sign it: whatever it says of itself, it may say.

    Otherwise no damaged record or offer would ever come past the signatures, to what lies behind them.
    """

    def again(record: Member) -> Member:
        return signed(record, NETWORK, THEM) if record.peer == THEM.peer else record

    match message:
        case Hello(me=me, members=members):
            return msgspec.structs.replace(message, me=again(me), members=tuple(map(again, members)))
        case Update(members=members) | Start(members=members):
            return msgspec.structs.replace(message, members=tuple(map(again, members)))
        case Goodbye(me=me):
            return Goodbye(again(me))
        case Offer(incarnation=incarnation):
            return Seal(THEM, NETWORK, lambda: incarnation).seal(message, US.peer)
        case _:
            return message


def feed_core(data: bytes) -> None:
    """The first byte says whether the other peer signs anew what was changed."""
    from fuzzed_core import a_core

    from p2pfl.protocol.participant import LinkOpened, Received, Send, Tick

    core = a_core()
    now = 0.0
    effects = [*core.handle(Tick(), now), *core.handle(LinkOpened(1, proven=THEM.peer), now)]
    for part in parts_of(data[1:]):
        now += 0.25
        try:
            message = decode(part)
        except ProtocolError:
            continue
        effects += core.handle(Received(1, under_their_hand(message) if data[0] & 1 else message), now)
    effects += core.handle(Tick(), now + 10.0)
    for effect in effects:
        if isinstance(effect, Send):
            encode(effect.message)
    if len(core.members) > 512:
        raise AssertionError("more members than a network can have")
    core.next_deadline()


def core_seeds() -> list[bytes]:
    each = [encode(message) for message in messages()]
    rows = [[each[0], one] for one in each[1:]] + [[each[0], *each[2:15]], [each[1], *each[2:]]]
    return [flag + framed(row) for row in rows for flag in (b"\0", b"\1")]
