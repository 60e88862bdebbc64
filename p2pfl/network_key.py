"""The key of a network: 256 bits that make their holders members. All else is derived from it by HKDF (RFC 5869).

Whoever holds it is trusted to be in the network, and to let others in: it signs the certificates that both ends of a
link require. What it never does is travel in the clear, or stand in an argument, a log or a run's files.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from p2pfl.errors import UsageError
from p2pfl.types import PeerId

KEY_BYTES = 32
_CHECK_BYTES = 3  # of the token: a slip in typing is noticed
_TOKEN = re.compile(r"(?P<name>[^\s:]{1,64}):(?P<key>[a-z2-7-]{56,80})(?:\.(?P<epoch>[0-9]{1,13}))?")
_GROUP = 7  # characters of a token between dashes
_MOST_EPOCHS = 1 << 40  # as a `KeyChange` has room for
MOST_RETIRED = 16  # tags of keys that open nothing any more; more tells who comes with an older one
MOST_FORMER = 4  # more lets in who missed several changes in a row, and whoever stole one of those keys


@dataclass(frozen=True)
class NetworkKey:
    """The key of a network, with the network's name.

    Args:
        name: of the network; 1 to 64 characters without spaces and colons.
        secret: 32 random bytes.
    """

    name: str
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        check_name(self.name)
        if len(self.secret) != KEY_BYTES:
            raise ValueError(f"a network key has {KEY_BYTES} bytes, not {len(self.secret)}")

    @cached_property
    def token(self) -> str:
        """The key as text to copy or type: `NAME:` and eight groups of seven letters and digits."""
        return self._token(0)

    @classmethod
    def of_token(cls, token: str) -> "NetworkKey":
        """The key in a token; dashes, spaces and capitals do not matter.

        Raises:
            UsageError: it is none, or was mistyped. The message does not repeat it.
        """
        return KeyRing.of_token(token).key

    @classmethod
    def _numbered(cls, token: str) -> tuple["NetworkKey", int]:
        name, colon, text = token.strip().partition(":")
        match = _TOKEN.fullmatch(f"{name}{colon}{''.join(text.split()).lower()}")
        try:
            data = base64.b32decode(match["key"].replace("-", "").upper()) if match else b""
        except binascii.Error:
            data = b""
        if match is None or len(data) != KEY_BYTES + _CHECK_BYTES:
            raise UsageError("this is no network's token: it is NAME: and eight groups of seven letters and digits")
        key, epoch = cls(match["name"], data[:KEY_BYTES]), int(match["epoch"] or 0)
        if epoch > _MOST_EPOCHS or not hmac.compare_digest(key._check(epoch), data[KEY_BYTES:]):
            raise UsageError("the token was mistyped: its last characters do not fit the others")
        return key, epoch

    def _token(self, epoch: int) -> str:
        text = base64.b32encode(self.secret + self._check(epoch)).decode().lower()
        groups = "-".join(text[i : i + _GROUP] for i in range(0, len(text), _GROUP))
        return f"{self.name}:{groups}" + (f".{epoch}" if epoch else "")

    def _check(self, epoch: int) -> bytes:
        number = str(epoch).encode() if epoch else b""
        return hashlib.sha256(b"p2pfl token" + self.name.encode() + self.secret + number).digest()[:_CHECK_BYTES]

    def derive(self, purpose: str, length: int = 32) -> bytes:
        """Bytes for one purpose; those for another say nothing about them."""
        info = f"p2pfl {purpose} {self.name}".encode()
        return HKDF(algorithm=SHA256(), length=length, salt=None, info=info).derive(self.secret)

    @cached_property
    def tag(self) -> str:
        """What tells this network from others on a LAN, without its name: 16 characters, fit for a DNS label."""
        return base64.b32encode(self.derive("tag", 10)).decode().lower()

    def alias(self, peer: PeerId) -> str:
        """How a peer is called on the LAN: 26 characters that mean something only to who holds the key and the id."""
        mac = hmac.new(self.derive("alias"), peer.encode(), hashlib.sha256).digest()[:16]
        return base64.b32encode(mac).decode().rstrip("=").lower()


def check_name(name: str) -> None:
    """Raise UsageError where a network cannot have this name."""
    if not re.fullmatch(r"[^\s:/\\]{1,64}", name) or not name.isprintable() or name.startswith("."):
        raise UsageError(f"{name!r} is no name for a network: 1 to 64 characters, without spaces, colons and slashes")


@dataclass(frozen=True)
class KeyRing:
    """What a member goes by: the network's key, former ones that are still honored, and who is banned.

    Of two rings of one network both sides choose alike, see `joined`.

    Args:
        epoch: how often the key was changed.
        key: the one to use.
        former: keys that others may still come with, the latest first.
        banned: ids that are refused whatever key they hold.
        retired: tags of keys that were honored once and are no more, the latest first: for words alone, as of who
            comes with one. They are no part of what two rings are compared by.
    """

    key: NetworkKey
    epoch: int = 0
    former: tuple[NetworkKey, ...] = ()
    banned: frozenset[PeerId] = frozenset()
    retired: tuple[str, ...] = field(default=(), compare=False)

    @property
    def name(self) -> str:
        """The network's name."""
        return self.key.name

    @property
    def keys(self) -> tuple[NetworkKey, ...]:
        """All that are honored, the one to use first."""
        return (self.key, *self.former)

    @property
    def rank(self) -> tuple[int, bytes]:
        """Total order of the rings of a network that ban the same peers."""
        return (self.epoch, hashlib.sha256(self.key.secret).digest())

    @property
    def token(self) -> str:
        """The key as a token that tells its number, too: `.` and the epoch at the end, unless it is the first key."""
        return self.key._token(self.epoch)

    @classmethod
    def of_token(cls, token: str) -> "KeyRing":
        """The ring of who has only just got a token. Raises UsageError as `NetworkKey.of_token`."""
        return cls(*NetworkKey._numbered(token))

    def rotated(self, key: NetworkKey, banned: Iterable[PeerId] = ()) -> "KeyRing":
        """The ring with a new key; the ones before are still honored, unless `without_former`."""
        former, banned = self._with_former(key), self.banned | frozenset(banned)
        return KeyRing(key, self.epoch + 1, former, banned).after(self)

    def without_former(self) -> "KeyRing":
        """The ring once everybody has the new key."""
        return self.honoring(())

    def honoring(self, former: tuple[NetworkKey, ...]) -> "KeyRing":
        """The ring with these former keys, and no others."""
        return replace(self, former=former).after(self)

    def after(self, before: "KeyRing") -> "KeyRing":
        """This ring, which knows the tags of the keys that the one before it honored."""
        honored = {key.tag for key in self.keys}
        gone = (key.tag for key in before.keys)
        tags = (*gone, *self.retired, *before.retired)
        retired = tuple(dict.fromkeys(tag for tag in tags if tag not in honored))[:MOST_RETIRED]
        return replace(self, retired=retired)

    def joined(self, other: "KeyRing") -> "KeyRing":
        """This ring after hearing of another one of the network: the same key and bans whoever hears first of which.

        Bans add up, and come first: a key was handed to all who were members when it was chosen, so one that bans fewer
        gives way, whatever its epoch; among those that ban the same the higher `rank` stands. Where each bans somebody
        whom the other does not, each key may be in the hands of one of the banned: the key is then made of both. A
        former key is honored unless there are new bans: the banned hold it.
        """
        banned = self.banned | other.banned
        whole = [ring for ring in (self, other) if ring.banned == banned]
        if whole:
            winner = max(whole, key=lambda ring: ring.rank)
            key, epoch = winner.key, winner.epoch
        else:
            parts = sorted((self.key.secret, other.key.secret))
            key = NetworkKey(self.name, hashlib.sha256(b"p2pfl keys of two bans" + b"".join(parts)).digest())
            epoch = max(self.epoch, other.epoch) + 1
        former = self._with_former(key) if banned == self.banned else ()
        return KeyRing(key, epoch, former, banned, other.retired).after(self)

    def _with_former(self, key: NetworkKey) -> tuple[NetworkKey, ...]:
        return tuple(one for one in self.keys if one != key)[:MOST_FORMER]
