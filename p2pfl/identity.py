"""Who a peer is: an Ed25519 key pair. Its id is the hash of the public key, so nobody else can prove to be it."""

import base64
import hashlib
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from p2pfl.types import PeerId

SECRET_BYTES = 32
PUBLIC_BYTES = 32
SIGNATURE_BYTES = 64


@dataclass(frozen=True)
class Identity:
    """One peer's key pair.

    Args:
        secret: the 32 bytes of the private key; never printed, logged, or sent.
    """

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != SECRET_BYTES:
            raise ValueError(f"a private key has {SECRET_BYTES} bytes, not {len(self.secret)}")

    @cached_property
    def private_key(self) -> Ed25519PrivateKey:
        """As the library has it."""
        return Ed25519PrivateKey.from_private_bytes(self.secret)

    @cached_property
    def public(self) -> bytes:
        """The 32 bytes of the public key."""
        return self.private_key.public_key().public_bytes_raw()

    @cached_property
    def peer(self) -> PeerId:
        """The peer's id."""
        return peer_id(self.public)

    def sign(self, message: bytes) -> bytes:
        """64 bytes that only the holder of the private key can make of this message."""
        return self.private_key.sign(message)


def peer_id(public: bytes) -> PeerId:
    """The id of who holds a key: base32 of SHA-256 of its SubjectPublicKeyInfo, 52 characters.

    Raises:
        ValueError: these bytes are no public key.
    """
    info = Ed25519PublicKey.from_public_bytes(public).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return id_of_info(info)


def id_of_info(subject_public_key_info: bytes) -> PeerId:
    """The id of the key in a certificate, from its SubjectPublicKeyInfo in DER."""
    return base64.b32encode(hashlib.sha256(subject_public_key_info).digest()).decode().rstrip("=").lower()


def verifies(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the holder of a public key has signed this message."""
    try:
        _public_key(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


@lru_cache(maxsize=1024)
def _public_key(public: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(public)
