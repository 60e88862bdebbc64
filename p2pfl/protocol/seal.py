"""Offers under seal: only its sender can have made one, for this receiver alone, and it counts once.

The signature covers the network, the sender and every field of the offer, the hash of the body among them; so a body
that fits the hash is as good as signed. A replay window like that of IPsec (RFC 4303, section 3.4.3) and no clock tells
an offer from its repetition. A peer that repeats an offer on a new connection seals it anew: opened, both are equal.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from p2pfl.errors import ProtocolError
from p2pfl.identity import Identity, verifies
from p2pfl.protocol.messages import Member, Offer
from p2pfl.types import PeerId

WINDOW = 64  # offers of one sender that may overtake each other, on two connections say
MAX_PEERS = 4096  # of whom the count is kept: eight times the members a network can have
_DOMAIN = "p2pfl offer 1"
_REFUTATION_BITS = 16  # of an incarnation: below them, how often this start refuted; above, which start it is


@dataclass
class Window:
    """Which numbers of a rising sequence have been seen; those `WINDOW` and more below the highest count as seen."""

    highest: int = 0
    seen: int = 0  # bit i: `highest - i` was

    def take(self, number: int) -> bool:
        """Whether a number is new; it is not from then on. Numbers begin with 1."""
        ahead = number - self.highest
        if ahead > 0:
            # A leap may be as long as a number is: shifting by it would make an integer of as many bits.
            self.seen = (self.seen << ahead | 1) & ((1 << WINDOW) - 1) if ahead < WINDOW else 1
            self.highest = number
            return True
        bit = 1 << -ahead if -ahead < WINDOW else 0
        if number < 1 or not bit or self.seen & bit:
            return False
        self.seen |= bit
        return True


class Seal:
    """Seals what one peer offers, and opens what it is offered."""

    def __init__(self, identity: Identity, network: str, incarnation: Callable[[], int]) -> None:
        """Nothing was sent or seen yet.

        Args:
            network: name of the network: an offer of one is none in another.
            incarnation: the present one of this peer.
        """
        self._identity = identity
        self._network = network
        self._incarnation = incarnation
        self._sent: OrderedDict[PeerId, int] = OrderedDict()  # the last sequence for each receiver
        self._sent_to_others = 0  # the highest sequence for receivers that are not kept
        self._seen: OrderedDict[PeerId, tuple[int, Window]] = OrderedDict()  # newest start of each sender

    def seal(self, offer: Offer, receiver: PeerId) -> Offer:
        """The offer for one receiver, signed."""
        sequence = self._sent.pop(receiver, self._sent_to_others) + 1
        self._sent[receiver] = sequence
        if len(self._sent) > MAX_PEERS:
            self._sent_to_others = max(self._sent_to_others, self._sent.popitem(last=False)[1])
        filled = msgspec.structs.replace(
            offer, receiver=receiver, incarnation=self._incarnation(), sequence=sequence, signature=b""
        )
        return msgspec.structs.replace(filled, signature=self._identity.sign(self._signed(self._identity.peer, filled)))

    def open(self, sender: Member, offer: Offer) -> Offer:
        """The offer as it was before it was sealed.

        Raises:
            ProtocolError: `other receiver`, `bad signature`, `former instance` (an offer from before its sender's last
                start) or `replayed`. Nothing is remembered of such an offer.
        """
        if offer.receiver != self._identity.peer:
            raise ProtocolError("other receiver", offer.receiver)
        if not verifies(sender.key, self._signed(sender.peer, offer), offer.signature):
            raise ProtocolError("bad signature", f"of an offer of {sender.name}")
        # A refutation raises the incarnation while offers are under way; only another start begins to count anew.
        start = offer.incarnation >> _REFUTATION_BITS
        newest, window = self._seen.get(sender.peer, (start, Window()))
        if start < max(newest, sender.incarnation >> _REFUTATION_BITS):
            raise ProtocolError("former instance", f"{offer.incarnation} after {max(newest, sender.incarnation)}")
        if start > newest:
            window = Window()
        if not window.take(offer.sequence):
            raise ProtocolError("replayed", f"{offer.sequence}")
        self._seen[sender.peer] = (start, window)
        self._seen.move_to_end(sender.peer)
        if len(self._seen) > MAX_PEERS:  # not even the departed are forgotten, unless so many came after them
            self._seen.popitem(last=False)
        return msgspec.structs.replace(offer, receiver="", incarnation=0, sequence=0, signature=b"")

    def _signed(self, sender: PeerId, offer: Offer) -> bytes:
        """What the signature is of: the fields by their order, as messages only ever grow at their end."""
        plain = msgspec.structs.replace(offer, signature=b"", train_s=float(offer.train_s))
        return msgspec.msgpack.encode((_DOMAIN, self._network, sender, *msgspec.structs.astuple(plain)))
