"""Models for newcomers: who asked for the one with which a round begins, and when it can be offered.

A share is hashed as it is trained. A snapshot is hashed once somebody wants it, which takes a while for a large model,
and it is offered only then.
"""

from collections.abc import Callable

from msgspec.structs import replace

from p2pfl.protocol.messages import Offer
from p2pfl.protocol.participant import Effect, Hash
from p2pfl.types import PeerId


class Snapshots:
    """Who wants a model, and which are being hashed or can be offered."""

    def __init__(self) -> None:
        self.wanted: dict[PeerId, int] = {}  # the round to begin with, or a later one
        self._hashes: dict[str, bytes] = {}  # of those that can be offered, by token
        self._waiting: dict[str, list[tuple[PeerId, Offer]]] = {}  # for the hash

    def due(self, round: int) -> list[PeerId]:
        """Who gets the model with which this round begins; they are not asked for again."""
        due = [peer for peer, wanted in self.wanted.items() if wanted <= round]
        for peer in due:
            del self.wanted[peer]
        return due

    def offer(self, peer: PeerId, offer: Offer, send: Callable[[PeerId, Offer], list[Effect]]) -> list[Effect]:
        """Offer a snapshot at once, or as soon as its hash is known."""
        if offer.token in self._hashes:
            return send(peer, _with(offer, self._hashes[offer.token]))
        hashing = offer.token in self._waiting
        self._waiting.setdefault(offer.token, []).append((peer, offer))
        return [] if hashing else [Hash(offer.token)]

    def hashed(self, token: str, payload: bytes, send: Callable[[PeerId, Offer], list[Effect]]) -> list[Effect]:
        """The hash of a snapshot is known: offer it to whoever waits."""
        waiting = self._waiting.pop(token, None)
        if waiting is None:
            return []
        self._hashes[token] = payload
        return [effect for peer, offer in waiting for effect in send(peer, _with(offer, payload))]

    def drop(self, token: str) -> None:
        """A snapshot is kept no more; who still waits for it gets that of a later round."""
        self._hashes.pop(token, None)
        for peer, offer in self._waiting.pop(token, ()):
            self.wanted.setdefault(peer, offer.round)

    def forget(self, peer: PeerId) -> None:
        """A peer is gone, and asks anew when it is back."""
        self.wanted.pop(peer, None)
        for token, waiting in self._waiting.items():
            self._waiting[token] = [(other, offer) for other, offer in waiting if other != peer]


def _with(offer: Offer, payload: bytes) -> Offer:
    return replace(offer, payload=payload)
