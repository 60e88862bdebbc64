"""What comes before or beside messages: announcements, heads, statuses, certificates, settings, tokens, headers."""

from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import msgspec
from message_targets import ASKED, KEY, NETWORK, THEM

from p2pfl.errors import FetchError, ModelError, ProtocolError, UsageError
from p2pfl.network_key import NetworkKey
from p2pfl.protocol.messages import (
    VERSIONS,
    Settings,
)

HTTP_HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nDate: Mon, 23 Nov 2026 20:00:00 GMT\r\n\r\n"


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
