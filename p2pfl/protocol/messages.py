"""The control messages between peers, and their one encoding.

Rules that change together: a message's tag is its number here and never reused; fields are only added, with a default;
every text, list and number has a cap, and the encoded message as a whole has `MAX_MESSAGE_BYTES`. Decoding anything
else raises `ProtocolError`. Models never travel here: an `Offer` names a body that the receiver fetches elsewhere.
"""

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from p2pfl.errors import ProtocolError

VERSIONS = (2, 2)  # the lowest and highest protocol spoken here
MAX_MESSAGE_BYTES = 1 << 18
MAX_MEMBERS = 512
MAX_ROUND = 1 << 40

Short: TypeAlias = Annotated[str, Meta(max_length=128)]
Text: TypeAlias = Annotated[str, Meta(max_length=512)]
Id: TypeAlias = Annotated[str, Meta(min_length=8, max_length=64, pattern=r"^[a-z0-9]+$")]
SeatText: TypeAlias = Annotated[str, Meta(min_length=1, max_length=64)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_ROUND)]
Size: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 44)]
SettingValue: TypeAlias = Annotated[str, Meta(max_length=1 << 14)] | int | float | bool
Settings: TypeAlias = Annotated[dict[Annotated[str, Meta(max_length=64)], SettingValue], Meta(max_length=64)]
Addresses: TypeAlias = Annotated[tuple[Short, ...], Meta(max_length=16)]

Digest: TypeAlias = Annotated[bytes, Meta(max_length=32)]
Key: TypeAlias = Annotated[bytes, Meta(max_length=32)]
Signature: TypeAlias = Annotated[bytes, Meta(max_length=64)]

State: TypeAlias = Literal["lobby", "member", "observer", "dead", "left"]


class Member(msgspec.Struct, frozen=True):
    """What the network knows of one peer. `since` and `until` are the rounds between which it takes part.

    What only the peer itself may say stands under its signature: see `records`.
    """

    peer: Id
    seat: SeatText
    name: SeatText
    addresses: Addresses = ()
    incarnation: Count = 0
    state: State = "lobby"
    since: Count | None = None
    until: Count | None = None
    key: Key = b""  # the public key of which `peer` is the hash
    signature: Signature = b""


Members: TypeAlias = Annotated[tuple[Member, ...], Meta(max_length=MAX_MEMBERS)]


class Running(msgspec.Struct, frozen=True):
    """The recipe that stands, as told to whoever comes later."""

    settings: Settings
    fingerprint: Short
    layout: Short
    tensors: Annotated[tuple[Text, ...], Meta(max_length=64)]
    start: Count  # the round the run began with


class Hello(msgspec.Struct, frozen=True, tag=1):
    """The first message on a connection, from both ends."""

    versions: tuple[Count, Count]
    network: Short
    instance: Short  # drawn anew by each process: tells a duplicate identity from a second connection
    me: Member
    max_body: Size
    asked: Settings  # the settings this peer's user asked for
    round: Count = 0
    running: Running | None = None
    members: Members = ()
    waited_s: Annotated[float, Meta(ge=0, le=1e9)] = 0.0  # since the sender came: of two with one seat the later yields


class Refused(msgspec.Struct, frozen=True, tag=2):
    """Why the connection is closed, or why its peer cannot take part."""

    reason: Short
    detail: Text = ""


class Ready(msgspec.Struct, frozen=True, tag=3):
    """In the lobby: a model for these settings is built."""

    fingerprint: Short
    layout: Short
    tensors: Annotated[tuple[Text, ...], Meta(max_length=64)]
    data: Short
    round: Count = 0  # above 0 where it resumes from a checkpoint


class Start(msgspec.Struct, frozen=True, tag=4):
    """The lowest seat begins the run with these members."""

    running: Running
    init: Short  # digest of the initial vector
    members: Members


class Join(msgspec.Struct, frozen=True, tag=5):
    """A newcomer whose model fits asks a member for a round to begin with."""

    layout: Short
    data: Short
    round: Count = 0  # no earlier one, please: it has been that far


class Update(msgspec.Struct, frozen=True, tag=6):
    """Records of members that are news, or all of them where views differ."""

    members: Members


class Status(msgspec.Struct, frozen=True, tag=7):
    """Where a peer is; tells when a view can change and when neighbors are done."""

    round: Count
    finished: bool = False


class Offer(msgspec.Struct, frozen=True, tag=8):
    """A body that can be fetched: a share of a round, or a snapshot for a newcomer."""

    kind: Literal["share", "snapshot"]
    round: Count
    token: Short  # names the body when fetching it
    bytes: Size
    layout: Short
    recipe: Short
    view: Short = ""
    degree: Count = 0  # a check: the weights follow from the view
    steps: Count = 0
    train_s: Annotated[float, Meta(ge=0, le=1e9)] = 0.0
    payload: Digest = b""  # SHA-256 of the framed body
    receiver: Annotated[str, Meta(max_length=64)] = ""
    incarnation: Count = 0  # the sender's
    sequence: Count = 0  # of the offers of that incarnation to that receiver
    signature: Signature = b""  # over all of it, the network and the sender: see `seal`


class Declined(msgspec.Struct, frozen=True, tag=9):
    """An offer that will not be fetched, and why."""

    token: Short
    reason: Short


class SnapshotWanted(msgspec.Struct, frozen=True, tag=10):
    """Offer me the model with which round `round` begins, once you have it."""

    round: Count


class Goodbye(msgspec.Struct, frozen=True, tag=11):
    """The sender leaves on purpose; `me` says from which round on it is missing."""

    me: Member


class Extension(msgspec.Struct, frozen=True, tag=12):
    """A message of a layer above; an unknown kind is ignored."""

    kind: Short
    body: Annotated[bytes, Meta(max_length=1 << 17)]


class Ping(msgspec.Struct, frozen=True, tag=13):
    """Are you there? Answered by `Ack`, at once."""

    number: Count
    table: Annotated[bytes, Meta(max_length=16)] = (
        b""  # digest of the sender's records: where they differ, they are told
    )


class Ack(msgspec.Struct, frozen=True, tag=14):
    """The answer to a ping, or word that the target of a probe has answered."""

    number: Count
    incarnation: Count = 0  # of who answered
    table: Annotated[bytes, Meta(max_length=16)] = b""


class Probe(msgspec.Struct, frozen=True, tag=15):
    """Ping a peer for me that I cannot reach, and pass its answer on under my number."""

    number: Count
    peer: Id


class Suspicion(msgspec.Struct, frozen=True, tag=16):
    """The sender takes a peer for dead unless it hears otherwise: of that incarnation, by its own experience."""

    peer: Id
    incarnation: Count


class KeyChange(msgspec.Struct, frozen=True, tag=17):
    """The network has another key; from one member to another, over a link that proved both."""

    epoch: Count
    key: Key
    by: Id
    by_key: Key
    banned: Annotated[tuple[Id, ...], Meta(max_length=256)] = ()
    signature: Signature = b""

    def __repr__(self) -> str:
        return f"KeyChange(epoch={self.epoch}, by={self.by!r}, banned={self.banned!r})"  # the key is nobody's to read


Message: TypeAlias = (
    Hello
    | Refused
    | Ready
    | Start
    | Join
    | Update
    | Status
    | Offer
    | Declined
    | SnapshotWanted
    | Goodbye
    | Extension
    | Ping
    | Ack
    | Probe
    | Suspicion
    | KeyChange
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """The message as bytes.

    Raises:
        ValueError: it would be longer than a receiver accepts.
    """
    data = _encoder.encode(message)
    if len(data) > MAX_MESSAGE_BYTES:
        raise ValueError(f"a {type(message).__name__} of {len(data)} bytes is over the limit of {MAX_MESSAGE_BYTES}")
    return data


def decode(data: bytes) -> Message:
    """The message in the bytes.

    Raises:
        ProtocolError: anything but one well-formed message within its caps.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise ProtocolError("message too long", f"{len(data)} bytes")
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError("malformed message", str(error)[:200]) from error
