"""Every decoder of bytes that others make, as a function of bytes that must end in one of few typed errors.

A target is fed whatever bytes there are. It lets pass the errors that its decoder promises, and raises on anything
else: another exception, or a promise about what was decoded that does not hold.
"""

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

from p2pfl.errors import FetchError, ModelError, ProtocolError, RecipeError, TopologyError, UsageError
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
HTTP_HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nDate: Mon, 23 Nov 2026 20:00:00 GMT\r\n\r\n"


@dataclass(frozen=True)
class Target:
    """One decoder: fed bytes, and valid inputs to begin with. Those of files and of cores take longer a case."""

    name: str
    feed: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]


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


# Discovery


def feed_announcement(data: bytes) -> None:
    from zeroconf import DNSIncoming
    from zeroconf._cache import DNSCache

    from p2pfl.doctor.multicast import read
    from p2pfl.network.service_records import SERVICE, load_candidate

    read(data)
    incoming = DNSIncoming(data)
    if not incoming.valid:
        return
    cache = DNSCache()
    answers = incoming.answers()
    cache.async_add_records(answers)
    responder: Any = SimpleNamespace(cache=cache)
    for name in {record.name for record in answers} | {getattr(record, "alias", "") for record in answers}:
        if not name.lower().endswith(f".{SERVICE}"):  # others are passed over before
            continue
        with suppress(ProtocolError):
            candidate = load_candidate(name, responder)
            if candidate is not None and (len(candidate.addresses) > 16 or not candidate.network.isprintable()):
                raise AssertionError("a candidate beyond its caps")


def announcement_seeds() -> list[bytes]:
    from zeroconf import DNSOutgoing, ServiceInfo

    from p2pfl.network.discovery import Announcement
    from p2pfl.network.service_records import SERVICE, service_of

    def packet(service: ServiceInfo) -> bytes:
        out = DNSOutgoing(0x8400)
        for record in (
            service.dns_pointer(),
            service.dns_service(),
            service.dns_text(),
            *service.dns_addresses(),
        ):
            out.add_answer_at_time(record, 0)
        return out.packets()[0]

    announcement = Announcement("a" * 26, KEY.tag, ("0.0.0.0:7470",), VERSIONS[1])
    return [
        packet(service_of(announcement, ("10.0.0.2", "fe80::1"))),
        packet(ServiceInfo(SERVICE, f"x.{SERVICE}", port=0, properties={"v": "x"}, server="x.local.")),
        packet(
            ServiceInfo(SERVICE, f"z.{SERVICE}", port=9, properties={"v": "1", "net": "z" * 200}, server="z.local.")
        ),
    ]


# HTTP


def feed_http_head(data: bytes) -> None:
    from aiohttp.http_exceptions import HttpProcessingError
    from aiohttp.http_parser import HttpResponseParser

    from p2pfl.doctor.others import dated
    from p2pfl.network.reach import _check_head, _retry_after_s

    dated(data)
    protocol: Any = SimpleNamespace(pause_reading=lambda: None, resume_reading=lambda **_: None, _reading_paused=False)
    loop: Any = SimpleNamespace()  # no body is waited for; where there is none, the thread's own is looked for
    try:
        parser = HttpResponseParser(protocol, loop, 2**16, auto_decompress=False)
        found, _, _ = parser.feed_data(data)
    except (HttpProcessingError, ValueError):
        return
    for head, _ in found[:1]:
        response: Any = SimpleNamespace(status=head.code, headers=head.headers)
        if not 0 < _retry_after_s(response) < 100 and _retry_after_s(response) != 0:
            raise AssertionError("a wait of any length")
        with suppress(FetchError):
            _check_head(response, 100)
            if head.headers.get("Content-Length") != "100":
                raise AssertionError("a body of another length")


def http_head_seeds() -> list[bytes]:
    return [
        HTTP_HEAD,
        HTTP_HEAD.replace(b"Content-Length: 100", b"Transfer-Encoding: chunked"),
        HTTP_HEAD.replace(b"Content-Length", b"Content-Encoding: deflate\r\nContent-Length"),
        HTTP_HEAD.replace(b"200 OK", b"503 Service Unavailable\r\nRetry-After: 2"),
        HTTP_HEAD.replace(b"200 OK", b"404 Not Found"),
        HTTP_HEAD.replace(b"100", b"-1"),
    ]


def feed_status(data: bytes) -> None:
    from p2pfl.cli.peers import read_status

    status = read_status(data)
    if status is not None and not all(
        text.isprintable() for text in (status.name, status.id, status.network, status.model, status.state)
    ):
        raise AssertionError("text that could steer a terminal")


def status_seeds() -> list[bytes]:
    status = {
        "name": "bob",
        "id": THEM.peer,
        "addresses": ["10.0.0.2:7470"],
        "network": NETWORK,
        "model": "mlp",
        "round": 3,
        "state": "training",
    }
    return [msgspec.json.encode(status), msgspec.json.encode({**status, "name": "\x1b[2J"}), b"[]", b"{}"]


def feed_certificate(data: bytes) -> None:
    from p2pfl.network.tls import peer_of

    tls: Any = SimpleNamespace(getpeercert=lambda binary_form: data)
    if len(peer_of(tls)) not in (0, 52):
        raise AssertionError("an id of another length")


def certificate_seeds() -> list[bytes]:
    from cryptography.hazmat.primitives.serialization import Encoding

    from p2pfl.network.tls import authority, leaf

    return [one.public_bytes(Encoding.DER) for one in (leaf(THEM, KEY), authority(KEY))]


# Settings, tokens, headers


def feed_settings(data: bytes) -> None:
    from p2pfl.recipe import complaint

    try:
        settings = msgspec.msgpack.decode(data, type=Settings)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return
    if not isinstance(complaint(settings), str):
        raise AssertionError("no answer")


def settings_seeds() -> list[bytes]:
    return [
        msgspec.msgpack.encode(settings)
        for settings in (
            ASKED,
            {"topology": "random-regular:k=4,seed=1", "lr": 0.1, "mixing": "metropolis"},
            {"topology": "base:k=4", "steps": 10, "epochs": 0, "seed": -1},
            {"topology": "one-peer-exponential", "alpha": 0.3, "min_peers": 10**9},
            {},
        )
    ]


def feed_token(data: bytes) -> None:
    text = data.decode(errors="replace")
    try:
        key = NetworkKey.of_token(text)
    except UsageError as error:
        if len(text) > 20 and text in str(error):
            raise AssertionError("the message repeats the token") from error
        return
    if NetworkKey.of_token(key.token) != key:
        raise AssertionError("a token changes on its way through the text")


def token_seeds() -> list[bytes]:
    return [KEY.token.encode(), KEY.token.replace("-", " ").upper().encode(), KEY.token[:-1].encode(), b"home:", b":"]


def feed_header(data: bytes) -> None:
    from p2pfl import framing

    with suppress(ModelError):
        end = framing.header_bytes(data[:8], len(data))
        told = framing.read_header(data[8:end], len(data) - end)
        if sum(span.data_offsets[1] - span.data_offsets[0] for span in told.spans.values()) != len(data) - end:
            raise AssertionError("tensors that do not fill the file")


def header_seeds() -> list[bytes]:
    from p2pfl import framing

    one = framing.header([("0.weight", "F32", (2, 2)), ("0.bias", "F32", (2,))], {"p2pfl": "{}"})
    return [one + bytes(24), one, one[:20], (1 << 63).to_bytes(8, "little") + b"{}", bytes(8)]


# Files


@cache
def scratch() -> Path:
    """A folder in memory where there is one: files are written a million times."""
    memory = Path("/dev/shm")
    folder = tempfile.mkdtemp(prefix="p2pfl-fuzz-", dir=memory if os.access(memory, os.W_OK) else None)
    os.environ["P2PFL_HOME"] = folder
    return Path(folder)


@cache
def a_layout() -> Any:
    from p2pfl.layout import Layout

    return Layout((("0.weight", (2, 2)), ("0.bias", (2,))))


def feed_model_file(data: bytes) -> None:
    from p2pfl.checkpoint import Generations
    from p2pfl.model_files import read_checkpoint, read_facts, read_vector

    path = scratch() / "model.safetensors"
    path.write_bytes(data)
    for read in (read_facts, read_checkpoint, lambda path: read_vector(path, a_layout())):
        with suppress(ModelError):
            read(path)
    with suppress(ModelError):
        Generations(path, lambda text: None).newest()


def model_file_seeds() -> list[bytes]:
    import torch

    from p2pfl.model_files import Checkpoint, ModelFacts, save_model

    path, found = scratch() / "seed.safetensors", []
    vector = torch.arange(6, dtype=torch.float32)
    checkpoint = Checkpoint(
        peer=US.peer, seat="0", name="ann", network=NETWORK, incarnation=1, round=2, settings=dict(ASKED)
    )
    for facts in (ModelFacts(model="mlp", input_shape=(2,), outputs=2, task="classes"), checkpoint):
        save_model(path, vector, a_layout(), facts)
        found.append(path.read_bytes())
    path.unlink()
    return found


def feed_home(data: bytes) -> None:
    """The first byte says which file it is."""
    from p2pfl import home

    scratch()
    folder = home.folder_of(NETWORK)
    names = ("ring.json", "key", "peers.json", "identities/bob.json")
    for name in names:
        (folder / name).unlink(missing_ok=True)
    path = folder / names[(data[:1] or b"\0")[0] % len(names)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data[1:])
    for look in (home.ring_of, home.identities, home.peers_of):
        with suppress(UsageError):
            look(NETWORK)  # type: ignore[operator]  # each takes a network's name


def home_seeds() -> list[bytes]:
    ring = {"key": KEY.token, "epoch": 1, "former": [KEY.token], "banned": [THEM.peer]}
    identity = {"peer": THEM.peer, "secret": THEM.secret, "starts": 2}
    known = [{"peer": THEM.peer, "name": "bob", "addresses": ["10.0.0.2:7470"]}]
    return [
        b"\0" + msgspec.json.encode(ring),
        b"\1" + KEY.token.encode() + b"\n",
        b"\2" + msgspec.json.encode(known),
        b"\3" + msgspec.json.encode(identity),
    ]


def feed_topology_file(data: bytes) -> None:
    """The first byte says of which kind it is."""
    from p2pfl.topology_files import load_topology

    kinds = (".toml", ".graphml", ".txt")
    path = scratch() / f"topology{kinds[(data[:1] or bytes(1))[0] % len(kinds)]}"
    path.write_bytes(data[1:])
    with suppress(TopologyError, RecipeError):
        load_topology(str(path), None)


def topology_file_seeds() -> list[bytes]:
    graphml = (
        b'<graphml xmlns="http://graphml.graphdrawing.org/xmlns"><graph edgedefault="undirected">'
        b'<node id="0"/><node id="1"/><edge source="0" target="1"/></graph></graphml>'
    )
    return [
        b'\0name = "three"\nedges = [[0, 1], [1, 2]]\n',
        b'\0name = "way"\narcs = [["a", "b"], ["b", "a"]]\nnodes = ["a", "b"]\ndirected = true\n',
        b'\0name = "two"\nnodes = 2\nedges = [[0, 1]]\nweights = [[0.5, 0.5], [0.5, 0.5]]\n',
        b"\1" + graphml,
        b"\2# a ring\n0 1\n1 2\n2 0 {}\n",
    ]


TARGETS = {
    target.name: target
    for target in (
        Target("messages", feed_message, message_seeds),
        Target("offers", feed_offer, offer_seeds),
        Target("records", feed_records, record_seeds),
        Target("key_changes", feed_key_change, key_change_seeds),
        Target("core", feed_core, core_seeds),
        Target("announcements", feed_announcement, announcement_seeds),
        Target("http_heads", feed_http_head, http_head_seeds),
        Target("status", feed_status, status_seeds),
        Target("certificates", feed_certificate, certificate_seeds),
        Target("settings", feed_settings, settings_seeds),
        Target("tokens", feed_token, token_seeds),
        Target("headers", feed_header, header_seeds),
        Target("model_files", feed_model_file, model_file_seeds),
        Target("home_files", feed_home, home_seeds),
        Target("topology_files", feed_topology_file, topology_file_seeds),
    )
}
