"""Certificates of a network, who is turned away at an encrypted door and why, and changes of the key at run time."""

import asyncio
import hashlib
import os
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from test_transport import NETWORK, Host, closed, credentials, hosts, run

from p2pfl.errors import FetchError, Unreachable
from p2pfl.identity import Identity
from p2pfl.network import tls
from p2pfl.network.discovery import split_address
from p2pfl.network.http import HttpTransport, Limits, fetch_status
from p2pfl.network.tls import Credentials, authority, leaf, peer_of
from p2pfl.network.transport import Turned, body_of
from p2pfl.network_key import KeyRing, NetworkKey

OTHER = NetworkKey("elm", b"e" * 32)
NEXT = NetworkKey("oak", b"n" * 32)
HERE, THERE = Identity(b"\x01" * 32), Identity(b"\x02" * 32)
QUICK = Limits(idle_s=0.4, stall_s=1, connect_s=2)


def host(proof: Credentials | None, limits: Limits = QUICK) -> Host:
    return Host(HttpTransport(("127.0.0.1",), 0, limits=limits, credentials=proof))


# Certificates


def test_authority_is_the_same_for_every_holder_of_the_key() -> None:
    certificate = authority(NETWORK).public_bytes(Encoding.DER)
    assert certificate == authority(NetworkKey("oak", b"k" * 32)).public_bytes(Encoding.DER)
    assert hashlib.sha256(certificate).hexdigest() == "c2a912f33258f9f1f56071e81912ea0d5f1c1e8d89a7f022c13e6780414ec9e5"
    assert certificate != authority(NetworkKey("oak", b"l" * 32)).public_bytes(Encoding.DER)
    assert certificate != authority(NetworkKey("ash", b"k" * 32)).public_bytes(Encoding.DER)


def test_leaf_says_the_id_and_nothing_else_and_signs_for_nobody() -> None:
    certificate, above = leaf(HERE, NETWORK), authority(NETWORK)
    certificate.verify_directly_issued_by(above)
    assert certificate.subject.rfc4514_string() == f"CN={HERE.peer}"
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [HERE.peer]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert b"oak" not in certificate.public_bytes(Encoding.DER)
    assert b"oak" not in above.public_bytes(Encoding.DER)
    with pytest.raises(InvalidSignature):
        certificate.verify_directly_issued_by(authority(NEXT))


@pytest.mark.parametrize("certificate", [authority(NETWORK), leaf(HERE, NETWORK)], ids=["authority", "leaf"])
def test_no_wrong_clock_makes_a_certificate_invalid(certificate: x509.Certificate) -> None:
    assert certificate.not_valid_before_utc.year == 2020
    assert certificate.not_valid_after_utc.year == 2099


class Shown:
    """The other end of a connection, with the certificate that it has shown."""

    def __init__(self, certificate: bytes | None) -> None:
        self._certificate = certificate

    def getpeercert(self, binary_form: bool) -> bytes | None:
        assert binary_form
        return self._certificate


def test_peer_of_a_certificate_is_the_id_of_its_key() -> None:
    shown = leaf(HERE, NETWORK).public_bytes(Encoding.DER)
    assert peer_of(Shown(shown)) == HERE.peer  # type: ignore[arg-type]  # a connection is not needed
    assert peer_of(Shown(None)) == ""  # type: ignore[arg-type]  # as above
    assert peer_of(None) == ""


def test_private_key_is_read_from_memory_and_no_folder_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(os, "memfd_create"):
        pytest.skip("this system has no files in memory")
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    assert Credentials(HERE, KeyRing(NETWORK)).peer == HERE.peer


def test_elsewhere_it_is_in_a_private_folder_encrypted_and_gone_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with tls._in_a_file(HERE, leaf(HERE, NETWORK)) as (path, password):
        file = Path(path)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
        assert b"BEGIN ENCRYPTED PRIVATE KEY" in file.read_bytes()
        assert password is not None
        assert password not in file.read_bytes()
    assert list(tmp_path.iterdir()) == []
    Credentials(HERE, KeyRing(NETWORK))
    assert list(tmp_path.iterdir()) == []


def test_contexts_take_only_tls_1_3_with_certificates_and_resume_nothing() -> None:
    proof = Credentials(HERE, KeyRing(NETWORK).rotated(NEXT))
    assert [tag for tag, _ in proof.client_contexts()] == [NEXT.tag, NETWORK.tag]
    for context in (proof.server_context, *(context for _, context in proof.client_contexts())):
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
    assert proof.server_context.num_tickets == 0
    assert proof.server_context.cert_store_stats() == {"x509": 0, "crl": 0, "x509_ca": 0}


# Who both ends are


def test_each_end_knows_who_the_other_is() -> None:
    async def scene() -> None:
        async with hosts(lambda: HttpTransport(("127.0.0.1",), 0, credentials=credentials(1)), 1) as (a,):
            b = host(credentials(2))
            async with b.transport.serving(b.service()):
                near, far = await b.link_to(a)
                assert near.proven == HERE.peer
                assert far.proven == THERE.peer
                await near.send(b"hello")
                assert await far.receive() == b"hello"

    run(scene())


def test_body_is_fetched_from_its_owner_alone_and_nobody_else_is_even_asked() -> None:
    """A liar that advertises another's address gets no token, and gives no body."""

    async def scene() -> None:
        a, b = host(credentials(1)), host(credentials(2))
        async with a.transport.serving(a.service()), b.transport.serving(b.service()):
            a.bodies["t"] = body_of(memoryview(b"body"))
            into = bytearray(4)
            with pytest.raises(FetchError) as failure:
                await b.transport.fetch(a.address, "t", "me", memoryview(into), credentials(3).peer)
            assert failure.value.reason == "wrong peer"
            assert into == bytes(4)
            assert a.asked == []
            for _ in range(2):  # also over a connection that was kept
                await b.transport.fetch(a.address, "t", "me", memoryview(into), HERE.peer)
                with pytest.raises(FetchError, match="wrong peer"):
                    await b.transport.fetch(a.address, "t", "me", memoryview(into), credentials(3).peer)
            assert into == b"body"
            assert a.asked == [("t", THERE.peer)] * 2

    run(scene())


def test_small_bodies_share_one_handshake() -> None:
    async def scene() -> None:
        a, b = host(credentials(1)), host(credentials(2))
        async with a.transport.serving(a.service()), b.transport.serving(b.service()):
            a.bodies["t"] = body_of(memoryview(bytes(400_000)))
            for _ in range(5):
                await b.transport.fetch(a.address, "t", "me", memoryview(bytearray(400_000)), HERE.peer)
            assert len(a.sent) == 5
            assert isinstance(a.transport, HttpTransport)
            assert a.transport.admitted == 1

    run(scene())


# Who is turned away: 34


def client_context(proof: bool, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    """That of a stranger who takes any server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = newest
    if proof:
        with tls._in_a_file(THERE, leaf(THERE, OTHER)) as (path, password):
            context.load_cert_chain(path, password=password)
    return context


REQUEST = b"GET /v1/body/t?peer=me HTTP/1.1\r\nHost: p2pfl\r\n\r\n"
STRANGERS: dict[str, tuple[Callable[[], ssl.SSLContext | None], str, str]] = {
    "in the clear": (lambda: None, "", "no TLS"),
    "TLS 1.2": (lambda: client_context(proof=True, newest=ssl.TLSVersion.TLSv1_2), NETWORK.tag, "old TLS"),
    "another network": (lambda: client_context(proof=True), OTHER.tag, "other network"),
    "no network named": (lambda: client_context(proof=True), "", "other network"),
    "another network's certificate": (lambda: client_context(proof=True), NETWORK.tag, "foreign certificate"),
    "no certificate": (lambda: client_context(proof=False), NETWORK.tag, "no certificate"),
}


@pytest.mark.fault(34)
@pytest.mark.parametrize(("context", "tag", "reason"), STRANGERS.values(), ids=STRANGERS)
def test_stranger_is_turned_away_with_a_reason_of_its_own_and_is_sent_nothing(
    context: Callable[[], ssl.SSLContext | None], tag: str, reason: str
) -> None:
    async def scene() -> None:
        a = host(credentials(1))
        async with a.transport.serving(a.service()):
            a.bodies["t"] = body_of(memoryview(b"secret"))
            encrypted = context()
            end = socket.create_connection(split_address(a.address))
            end.settimeout(5)

            def ask() -> bytes:
                """All that the stranger can get out of it, encrypted or not."""
                taken = b""
                try:
                    if encrypted is None:
                        way: socket.socket = end
                    else:
                        way = encrypted.wrap_socket(end, server_hostname=tag or None)
                    with way:
                        way.sendall(REQUEST)
                        while data := way.recv(1000):
                            taken += data
                except OSError:  # the refusal, from the stranger's side
                    end.close()
                return taken

            taken = await asyncio.to_thread(ask)
            await a.has_turned(1)
            assert [(turned.what, turned.reason) for turned in a.turned] == [("connection", reason)]
            assert a.turned[0].remote == "127.0.0.1"
            assert taken in (b"", b"\x15\x03\x03\x00\x02\x02\x46")  # at most an alert
            assert a.asked == []
            assert a.accepted.empty()
            assert await fetch_status(a.address, credentials=credentials(2)) == b"{}"  # members are let in

    run(scene())


@pytest.mark.fault(34)
@pytest.mark.parametrize(
    ("proof", "other", "text"),
    [
        (None, credentials(1), "speaks TLS: this end is --insecure, that one is not"),
        (credentials(2), None, "speaks no TLS: that end is --insecure, this one is not"),
        (credentials(2, KeyRing(OTHER)), credentials(1), "of another network, or its key was changed"),
        (credentials(2, KeyRing(OTHER).rotated(NEXT)), credentials(1), "of another network, or its key was changed"),
        (credentials(2), credentials(1, KeyRing(NETWORK, banned=frozenset({THERE.peer}))), "has banned this peer"),
        (credentials(2, KeyRing(NETWORK, banned=frozenset({HERE.peer}))), credentials(1), "it is banned"),
    ],
    ids=["plain to TLS", "TLS to plain", "other network", "two other keys", "banned there", "banned here"],
)
def test_who_is_turned_away_learns_why_at_once(proof: Credentials | None, other: Credentials | None, text: str) -> None:
    async def scene() -> None:
        a, b = host(other, Limits()), host(proof, Limits())
        async with a.transport.serving(a.service()), b.transport.serving(b.service()):
            begin = asyncio.get_running_loop().time()
            with pytest.raises(Unreachable) as failure:
                await b.transport.connect(a.address)
            assert text in str(failure.value)
            assert a.address in str(failure.value)
            assert not failure.value.refused
            with pytest.raises(Unreachable) as failure:
                await fetch_status(a.address, credentials=proof)
            assert text in str(failure.value)
            with pytest.raises(FetchError):
                await b.transport.fetch(a.address, "t", "me", memoryview(bytearray(4)))
            assert asyncio.get_running_loop().time() - begin < 2
            assert a.asked == []
            assert a.accepted.empty()

    run(scene())


@pytest.mark.fault(34)
def test_banned_peer_is_counted_by_its_id() -> None:
    async def scene() -> None:
        a, b = host(credentials(1, KeyRing(NETWORK, banned=frozenset({THERE.peer})))), host(credentials(2))
        async with a.transport.serving(a.service()), b.transport.serving(b.service()):
            with pytest.raises(Unreachable):
                await b.transport.connect(a.address)
            assert set(a.turned) == {Turned("connection", "banned", "127.0.0.1", THERE.peer)}
            assert a.accepted.empty()

    run(scene())


def test_peer_that_is_banned_while_connected_is_cut() -> None:
    async def scene() -> None:
        proof = credentials(1)
        a, b = host(proof), host(credentials(2))
        async with a.transport.serving(a.service()), b.transport.serving(b.service()):
            near, _ = await b.link_to(a)
            proof.use(KeyRing(NETWORK, banned=frozenset({THERE.peer})))
            await closed(near)
            assert a.turned == [Turned("connection", "banned", "127.0.0.1", THERE.peer)]

    run(scene())


@pytest.mark.fault(21)
@pytest.mark.parametrize(
    ("said", "reason"),
    [(b"", "said nothing"), (b"\x16", "handshake too slow"), (b"\x16\x03\x01\xff", "handshake too slow")],
)
def test_handshake_that_never_ends_is_closed_and_counted(said: bytes, reason: str) -> None:
    async def scene() -> None:
        a = host(credentials(1))
        async with a.transport.serving(a.service()):
            reader, writer = await asyncio.open_connection(*split_address(a.address))
            writer.write(said)
            begin = asyncio.get_running_loop().time()
            assert await reader.read() == b""
            assert 0.3 <= asyncio.get_running_loop().time() - begin < 2
            await a.has_turned(1)
            assert [turned.reason for turned in a.turned] == [reason]
            writer.close()

    run(scene())


def test_stalled_handshakes_of_one_host_leave_room_for_another() -> None:
    async def scene() -> None:
        a = host(credentials(1), Limits(idle_s=3, max_handshakes=4, max_handshakes_per_host=2))
        async with a.transport.serving(a.service()):
            stalled = []
            for _ in range(10):
                reader, writer = await asyncio.open_connection(*split_address(a.address))
                writer.write(b"\x16")
                stalled.append((reader, writer))
            ((tag, context),) = credentials(2).client_contexts()
            async with asyncio.timeout(2):
                _, writer = await asyncio.open_connection(
                    *split_address(a.address), ssl=context, server_hostname=tag, local_addr=("127.0.0.2", 0)
                )
            writer.transport.abort()
            assert a.turned == []  # the others still stall
            for _, writer in stalled:
                writer.transport.abort()
            await a.has_turned(10)

    run(scene())


@pytest.mark.fault(40)
def test_bytes_that_are_no_handshake_are_refused_each_with_a_reason() -> None:
    """40, at the door: whatever follows the first byte of a handshake."""

    async def scene() -> None:
        a = host(credentials(1))
        async with a.transport.serving(a.service()):
            for number in range(60):
                noise = hashlib.shake_128(bytes([number])).digest(200)
                said = [noise, b"\x16\x03\x01\x00\xc3" + noise, b"\x16\x03\x01\x00\xc3\x01\x00\x00\xbf\x03\x03" + noise]
                reader, writer = await asyncio.open_connection(*split_address(a.address))
                writer.write(said[number % 3])
                writer.write_eof()
                try:
                    answer = await reader.read()
                except ConnectionError:
                    answer = b""
                assert answer[:1] in (b"", b"\x15")
                writer.close()
            await a.has_turned(60)
            reasons = {turned.reason for turned in a.turned}
            assert reasons <= {"no TLS", "broken handshake", "old TLS", "other network"}
            assert await fetch_status(a.address, credentials=credentials(2)) == b"{}"

    run(scene())


# Changes of the key: 39


@pytest.mark.fault(39)
def test_peers_on_the_old_and_on_the_new_key_meet_both_ways_until_the_old_one_is_taken_away() -> None:
    async def scene() -> None:
        old, new = KeyRing(NETWORK), KeyRing(NETWORK).rotated(NEXT)
        first, second = credentials(1, old), credentials(2, old)
        a, b = host(first), host(second)
        async with a.transport.serving(a.service()), b.transport.serving(b.service()):
            a.bodies["t"] = b.bodies["t"] = body_of(memoryview(b"body"))
            standing = await a.link_to(b)

            async def meet() -> None:
                for one, other, owner in ((a, b, second.peer), (b, a, first.peer)):
                    near, far = await one.link_to(other)
                    await near.send(b"hello")
                    assert await far.receive() == b"hello"
                    into = bytearray(4)
                    await one.transport.fetch(other.address, "t", "me", memoryview(into), owner)
                    assert into == b"body"

            await meet()
            first.use(new)  # one has the new key, the other has not
            await meet()
            second.use(new)
            await meet()
            first.use(new.without_former())
            await meet()  # both come under the new one
            second.use(old)  # and now somebody who never got it
            for one, other in ((a, b), (b, a)):
                with pytest.raises(Unreachable, match="of another network, or its key was changed"):
                    await one.transport.connect(other.address)
            assert {turned.reason for turned in a.turned} == {"former key"}
            await standing[0].send(b"connections that stood are not touched at once")
            assert await standing[1].receive() == b"connections that stood are not touched at once"

    run(scene())


@pytest.mark.fault(39)
def test_no_session_of_a_former_key_can_be_resumed() -> None:
    async def scene() -> None:
        a = host(credentials(1))
        async with a.transport.serving(a.service()):
            ((tag, context),) = credentials(2).client_contexts()

            def ask() -> bool:
                with context.wrap_socket(
                    socket.create_connection(split_address(a.address)), server_hostname=tag
                ) as end:
                    end.sendall(b"GET /v1/status HTTP/1.1\r\nHost: p2pfl\r\n\r\n")
                    assert b" 200 " in end.recv(1000)
                    return end.session is not None and end.session.has_ticket

            assert not await asyncio.to_thread(ask)

    run(scene())


@pytest.mark.fault(34)
def test_certificate_over_a_key_that_no_peer_can_have_is_foreign() -> None:
    """A holder of the network's key could sign any key; only Ed25519 ones have ids."""
    key = ec.generate_private_key(ec.SECP256R1())
    own = leaf(HERE, NETWORK)
    signed = (
        x509.CertificateBuilder(own.issuer, own.subject, key.public_key(), 7)
        .not_valid_before(own.not_valid_before_utc)
        .not_valid_after(own.not_valid_after_utc)
        .sign(Ed25519PrivateKey.from_private_bytes(NETWORK.derive("authority")), None)
    )
    assert peer_of(Shown(signed.public_bytes(Encoding.DER))) == ""  # type: ignore[arg-type]  # as above
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + signed.public_bytes(Encoding.PEM)

    async def scene() -> None:
        a = host(credentials(1))
        async with a.transport.serving(a.service()):
            context = client_context(proof=False)
            with tempfile.NamedTemporaryFile() as file:
                file.write(pem)
                file.flush()
                context.load_cert_chain(file.name)
            reader, writer = await asyncio.open_connection(
                *split_address(a.address), ssl=context, server_hostname=NETWORK.tag
            )
            assert await reader.read() == b""
            assert await a.has_turned(1) == ["foreign certificate"]
            writer.close()

    run(scene())


def test_a_name_that_is_no_ascii_prints_nothing_and_is_refused() -> None:
    """In a process of its own: CPython writes past every log, straight to stderr."""
    program = """
import ssl
from p2pfl.identity import Identity
from p2pfl.network.tls import Credentials
from p2pfl.network_key import KeyRing, NetworkKey

door = Credentials(Identity(bytes(32)), KeyRing(NetworkKey("home", bytes(32)))).server_context
plain = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
plain.check_hostname, plain.verify_mode = False, ssl.CERT_NONE
out = ssl.MemoryBIO()
try:
    plain.wrap_bio(ssl.MemoryBIO(), out, server_hostname="abcdefgh").do_handshake()
except ssl.SSLWantReadError:
    pass
come = ssl.MemoryBIO()
come.write(out.read().replace(b"abcdefgh", b"\\xff\\xfe\\x1b]0;\\x07x"))
try:
    door.wrap_bio(come, ssl.MemoryBIO(), server_side=True).do_handshake()
except ssl.SSLWantReadError:
    raise
except ssl.SSLError as error:
    print(error.reason)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "CALLBACK_FAILED\n", "")
