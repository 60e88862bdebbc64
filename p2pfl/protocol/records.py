"""Records under signature: what only a peer itself may say of itself, and how others check it.

Signed are the peer's id, seat, name, addresses, incarnation and key, bound to the network's name; and, where it has
left, that it has and from which round on. Others may add that it waits, takes part since a round, or is dead, always
to an incarnation that the peer has signed: so no liar raises another's incarnation, moves it, or makes it leave.
"""

from collections import OrderedDict

import msgspec

from p2pfl.errors import ProtocolError
from p2pfl.identity import Identity, peer_id, verifies
from p2pfl.protocol.messages import MAX_MEMBERS, Member
from p2pfl.types import PeerId

MAX_VERIFIED = 4096  # remembered, so that a record that is told again costs no second verification
NEW_PER_S = 200.0  # signatures that are verified here for one teller in the long run; more costs 70 us each
NEW_AT_ONCE = 2 * MAX_MEMBERS  # as when two networks of the largest size meet
_MOST_TELLERS = 1024
_DOMAIN = "p2pfl member 1"


def signed(record: Member, network: str, identity: Identity) -> Member:
    """The peer's own record under its signature."""
    record = msgspec.structs.replace(record, key=identity.public, signature=b"")
    return msgspec.structs.replace(record, signature=identity.sign(_facts(record, network)))


class Verified:
    """Which records of a network were found to be signed by their peer."""

    def __init__(self, network: str) -> None:
        self._network = network
        self._known: OrderedDict[tuple[bytes, bytes], None] = OrderedDict()

    def check(self, record: Member) -> None:
        """Raise ProtocolError unless a record is of the peer that it names, and says nothing that cannot be.

        Raises:
            ProtocolError: `bad signature`, or `foreign record` where another key than the peer's own signs for it, or
                somebody says how long a peer takes part that is not gone.
        """
        if record.until is not None and record.state not in ("dead", "left"):
            raise ProtocolError("foreign record", f"{record.name} is not gone, yet has a last round")
        facts = _facts(record, self._network)
        if (facts, record.signature) in self._known:
            self._known.move_to_end((facts, record.signature))
            return
        try:
            owner = peer_id(record.key)
        except ValueError as error:
            raise ProtocolError("bad signature", f"{record.name} has no key") from error
        if owner != record.peer:
            raise ProtocolError("foreign record", f"{record.name} is signed for by {owner}")
        if not verifies(record.key, facts, record.signature):
            raise ProtocolError("bad signature", f"of the record of {record.name}")
        self._known[facts, record.signature] = None
        if len(self._known) > MAX_VERIFIED:
            self._known.popitem(last=False)

    def knows(self, record: Member) -> bool:
        """Whether to check a record costs no verification."""
        return (_facts(record, self._network), record.signature) in self._known


class Patience:
    """How many new signatures are verified for each teller: sound ones too cost more to check than to repeat."""

    def __init__(self) -> None:
        self._left: OrderedDict[PeerId, tuple[float, float]] = OrderedDict()  # tokens, and when

    def takes(self, teller: PeerId, now: float) -> bool:
        """Take one, if there is one left; they come back with time, on a clock that never goes back."""
        tokens, then = self._left.pop(teller, (float(NEW_AT_ONCE), now))
        tokens = min(float(NEW_AT_ONCE), tokens + (now - then) * NEW_PER_S)
        self._left[teller] = (tokens - (tokens >= 1), now)
        if len(self._left) > _MOST_TELLERS:
            self._left.popitem(last=False)
        return tokens >= 1


def _facts(record: Member, network: str) -> bytes:
    """What the signature is of."""
    left = record.state == "left"
    return msgspec.msgpack.encode(
        (
            _DOMAIN,
            network,
            record.peer,
            record.seat,
            record.name,
            record.addresses,
            record.incarnation,
            record.key,
            left,
            record.until if left else None,
        )
    )
