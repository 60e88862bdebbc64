"""Identities: the id is the hash of the key, and nobody signs for another."""

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.identity import Identity, id_of_info, peer_id, verifies

# RFC 8032, section 7.1, test 1.
SECRET = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
SIGNED_NOTHING = bytes.fromhex(
    "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
)


def test_key_pair_and_signature_are_those_of_the_rfc() -> None:
    identity = Identity(SECRET)
    assert identity.public == PUBLIC
    assert identity.sign(b"") == SIGNED_NOTHING


def test_id_is_base32_of_the_hash_of_the_public_key_info() -> None:
    # The prefix of an Ed25519 SubjectPublicKeyInfo: RFC 8410, section 4.
    info = bytes.fromhex("302a300506032b6570032100") + PUBLIC
    expected = base64.b32encode(hashlib.sha256(info).digest()).decode().rstrip("=").lower()
    assert Identity(SECRET).peer == peer_id(PUBLIC) == id_of_info(info) == expected
    assert len(expected) == 52
    made = Ed25519PrivateKey.from_private_bytes(SECRET).public_key()
    assert made.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == info


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=64), st.integers(0, 64 * 8 - 1))
def test_a_changed_bit_of_the_signature_does_not_verify(secret: bytes, message: bytes, bit: int) -> None:
    identity = Identity(secret)
    signature = bytearray(identity.sign(message))
    assert verifies(identity.public, message, bytes(signature))
    signature[bit // 8] ^= 1 << bit % 8
    assert not verifies(identity.public, message, bytes(signature))
    assert not verifies(identity.public, message + b"x", identity.sign(message))


@pytest.mark.parametrize("public", [b"", b"short", b"x" * 33])
def test_what_is_no_key_verifies_nothing(public: bytes) -> None:
    assert not verifies(public, b"", SIGNED_NOTHING)
    with pytest.raises(ValueError):  # noqa: PT011  # the library's own words
        peer_id(public)


def test_the_secret_does_not_show() -> None:
    text = repr(Identity(SECRET)) + str(Identity(SECRET))
    assert SECRET.hex() not in text
    assert repr(SECRET) not in text


def test_a_secret_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes, not 31"):
        Identity(SECRET[:-1])
