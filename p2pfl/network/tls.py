"""Certificates of a network: its key makes an authority, each peer signs a leaf for itself, both ends require one.

Python's ssl cannot ask us about a certificate that it does not know, so unknown self-signed ones cannot be pinned to
peer ids. Instead everybody who holds the network's key derives the same authority from it, and a certificate under
that authority proves two things: its maker holds the network's key, and its sender holds the private key to the id
that `peer_of` reads from it.

    client                                       server
    ClientHello, SNI = tag of a network key  →   that key's context, or refused: of another network
    leaf required, under that key's authority ←  leaf
    leaf                                     →   required, under the same authority

No clock is asked in earnest: everything is valid from 2020 to 2099. No session is resumed: it would outlive its key.
"""

import datetime
import hashlib
import os
import ssl
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias
from weakref import WeakSet

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from p2pfl.identity import Identity, id_of_info
from p2pfl.network_key import KeyRing, NetworkKey
from p2pfl.types import PeerId

_FROM = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
_UNTIL = datetime.datetime(2099, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
_AUTHORITY = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "p2pfl network")])

Tls: TypeAlias = ssl.SSLSocket | ssl.SSLObject


class Credentials:
    """What this peer shows to others, and what it requires of them: its identity, and the keys of its network."""

    def __init__(self, identity: Identity, ring: KeyRing) -> None:
        _silence_names()
        self._identity = identity
        self._servers: dict[str, ssl.SSLContext] = {}  # by the tag of the key
        self._clients: dict[str, ssl.SSLContext] = {}  # the newest key first
        self._late: WeakSet[Tls] = WeakSet()  # ends that named a key which is honored no longer
        self._door = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _harden(self._door)  # trusts nobody: whoever comes is handed on to the context of its key, or refused
        self._door.sni_callback = self._pick
        self.use(ring)

    @property
    def peer(self) -> PeerId:
        """Who this peer proves to be."""
        return self._identity.peer

    @property
    def ring(self) -> KeyRing:
        """The keys and bans in force."""
        return self._ring

    def use(self, ring: KeyRing) -> None:
        """Go by another ring from the next handshake on; connections that stand are not touched."""
        servers, clients = {}, {}
        for key in ring.keys:
            servers[key.tag] = self._servers.get(key.tag) or self._context(key, ssl.PROTOCOL_TLS_SERVER)
            clients[key.tag] = self._clients.get(key.tag) or self._context(key, ssl.PROTOCOL_TLS_CLIENT)
        self._ring, self._servers, self._clients = ring, servers, clients

    @property
    def server_context(self) -> ssl.SSLContext:
        """For whoever comes; it stays the same, whatever the ring."""
        return self._door

    def client_contexts(self) -> tuple[tuple[str, ssl.SSLContext], ...]:
        """For going to others: the name to ask for (SNI), and the context, for each honored key, the newest first."""
        return tuple(self._clients.items())

    def bans(self, peer: PeerId) -> bool:
        """Whether a peer is refused whatever key it holds."""
        return peer in self._ring.banned

    def honors(self, context: ssl.SSLContext | None) -> bool:
        """Whether a connection that was made by this context, at either end, is under a key that still counts."""
        return context in self._servers.values() or context in self._clients.values()

    def is_late(self, tls: Tls | None) -> bool:
        """Whether the other end of a refused handshake named a key of this network that is honored no longer."""
        return tls is not None and tls in self._late

    def _pick(self, tls: Tls, tag: str | None, _: ssl.SSLContext) -> int | None:
        context = self._servers.get(tag or "")
        if context is None:  # the answer is the same to all: tags can be overheard, and nobody has proved anything yet
            if tag in self._ring.retired:
                self._late.add(tls)
            return ssl.AlertDescription.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        tls.context = context
        return None

    def _context(self, key: NetworkKey, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        _harden(context)
        context.load_verify_locations(cadata=authority(key).public_bytes(Encoding.DER))
        with _in_a_file(self._identity, leaf(self._identity, key)) as (path, password):
            context.load_cert_chain(path, password=password)
        return context


def _silence_names() -> None:
    """Keep quiet about an SNI that is no ASCII.

    CPython decodes it before it calls `sni_callback`; where it cannot, it refuses the handshake, as we would, and
    writes a traceback to stderr, as often as a stranger likes. Doors count that handshake like any other refused one.
    """
    before = sys.unraisablehook
    if getattr(before, "silences_names", False):
        return

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        if not (isinstance(unraisable.exc_value, UnicodeDecodeError) and isinstance(unraisable.object, bytes)):
            before(unraisable)

    hook.silences_names = True  # type: ignore[attr-defined]  # so that it is put in place once
    sys.unraisablehook = hook


def _harden(context: ssl.SSLContext) -> None:
    context.check_hostname = False  # ids count, not names: see `peer_of`
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET
    if context.protocol is ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # or a session of a key that was taken away could be resumed


def authority(key: NetworkKey) -> x509.Certificate:
    """The certificate that stands over those of a network: the same bytes for every holder of its key."""
    signer = _signer(key)
    public = signer.public_key()
    return (
        x509.CertificateBuilder(_AUTHORITY, _AUTHORITY, public, 1, _FROM, _UNTIL)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(signer, None)
    )


def leaf(identity: Identity, key: NetworkKey) -> x509.Certificate:
    """A peer's own certificate in a network; it says the peer's id, and nothing of its name or addresses."""
    signer = _signer(key)
    public = identity.private_key.public_key()
    serial = int.from_bytes(hashlib.sha256(identity.public).digest()[:16], "big") | 1
    uses = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.peer)])
    return (
        x509.CertificateBuilder(_AUTHORITY, subject, public, serial, _FROM, _UNTIL)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(uses, critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(identity.peer)]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, None)
    )


def peer_of(tls: Tls | None) -> PeerId:
    """Whose key the other end of an encrypted connection has proved to hold; empty where nobody's.

    A certificate with anything but an Ed25519 key proves no peer's id.
    """
    certificate = tls.getpeercert(binary_form=True) if tls is not None else None
    return _peer_in(certificate) if certificate else ""


@lru_cache(maxsize=1024)
def _peer_in(certificate: bytes) -> PeerId:
    try:
        public = x509.load_der_x509_certificate(certificate).public_key()
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion):  # ssl and this library differ in what they bear
        return ""
    if not isinstance(public, Ed25519PublicKey):
        return ""
    return id_of_info(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def _signer(key: NetworkKey) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(key.derive("authority"))


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


@contextmanager
def _in_a_file(identity: Identity, certificate: x509.Certificate) -> Iterator[tuple[str, bytes | None]]:
    """The path of a file with key and certificate, which ssl reads from nowhere else, and its password.

    The file is in memory where the system can do that. Elsewhere it is a private one, gone after the context, whose key
    is encrypted under a password that is nowhere: what is left of it on the disk helps nobody.
    """

    def pem(password: bytes | None) -> bytes:
        lock = BestAvailableEncryption(password) if password else NoEncryption()
        secret = identity.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock)
        return secret + certificate.public_bytes(Encoding.PEM)

    if hasattr(os, "memfd_create") and Path("/proc/self/fd").exists():
        descriptor = os.memfd_create("p2pfl", os.MFD_CLOEXEC)
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem(None))
            file.flush()
            yield f"/proc/self/fd/{descriptor}", None
        return
    with tempfile.TemporaryDirectory(prefix="p2pfl-") as folder:  # of mode 0700
        password = os.urandom(32).hex().encode()
        path = Path(folder) / "leaf.pem"
        path.touch(0o600)
        path.write_bytes(pem(password))
        yield str(path), password
