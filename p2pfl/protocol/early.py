"""Offers of rounds to come: a neighbor may be ahead, and what it offers then is fetched when that round begins here."""

from collections.abc import Mapping

from p2pfl.protocol.messages import Offer
from p2pfl.protocol.served import AHEAD
from p2pfl.types import PeerId


class EarlyOffers:
    """The latest few offers of each peer, by round. Whatever a peer says, no more than `AHEAD` of it are kept."""

    def __init__(self) -> None:
        self._of: dict[PeerId, dict[int, Offer]] = {}

    def hold(self, peer: PeerId, offer: Offer) -> None:
        """Keep an offer; of too many the earliest go, as who is so far ahead waits for this peer no more."""
        held = self._of.setdefault(peer, {})
        held[offer.round] = offer
        for stale in sorted(held)[:-AHEAD]:
            del held[stale]

    def due(self, round: int) -> dict[PeerId, Offer]:
        """Those of a round that begins, by peer; earlier ones are forgotten with them."""
        due = {peer: held[round] for peer, held in self._of.items() if round in held}
        later = {peer: {of: offer for of, offer in held.items() if of > round} for peer, held in self._of.items()}
        self._of = {peer: held for peer, held in later.items() if held}
        return due

    def forget(self, peer: PeerId) -> None:
        """There is no connection to a peer any more: on the next one it offers again what is still of use."""
        self._of.pop(peer, None)

    def counts(self) -> Mapping[PeerId, int]:
        """How many are kept of each peer."""
        return {peer: len(held) for peer, held in self._of.items()}

    def all(self) -> list[tuple[PeerId, Offer]]:
        """All of them, earlier rounds first for each peer."""
        return [(peer, held[round]) for peer, held in self._of.items() for round in sorted(held)]
