"""What this peer has offered and keeps for others, and so how far it may go ahead of them.

A share is kept until everybody it was for needs it no more: is past its round, has declined it, or was given up. Where
neighbors change from round to round, or links go one way, others may need it for several rounds. So a round does not
begin before the shares of `AHEAD` rounds earlier are done with, and there are never more than `AHEAD` of them. In a
topology that stays, with links that go both ways, a neighbor is at most one round behind, and two are all there are.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from p2pfl.layout import Vector
from p2pfl.protocol.messages import Offer
from p2pfl.protocol.participant import Drop, Effect, Serve
from p2pfl.types import PeerId

AHEAD = 4  # rounds; more hides a slow moment of somebody better and takes memory for as many models


@dataclass
class _Share:
    offer: Offer | None  # None for a round without neighbors: nothing is kept, but it is no reason to run away either
    pending: set[PeerId] = field(default_factory=set)  # who may still need it, or is kept step with


class Served:
    """The bodies that others may fetch: shares, and snapshots for newcomers."""

    def __init__(self) -> None:
        self._shares: dict[int, _Share] = {}  # by round, in order
        self._snapshots: dict[str, int] = {}  # token and round

    def share(self, offer: Offer, vector: Vector, targets: tuple[PeerId, ...], pending: set[PeerId]) -> list[Effect]:
        """Keep a share; whoever was waited for in vain so long that it would be one too many goes without.

        Args:
            pending: targets that may need it; the others are past the round already.
        """
        effects = self._make_room(offer.round)
        self._shares[offer.round] = _Share(offer, pending)
        return [*effects, Serve(offer.token, vector, targets)]

    def keep_step(self, round: int, others: set[PeerId]) -> list[Effect]:
        """A round of which nobody gets anything: whom this peer stays with nevertheless."""
        effects = self._make_room(round)
        self._shares[round] = _Share(None, others)
        return effects

    def passed(self, peer: PeerId, round: int) -> None:
        """A peer needs no share of an earlier round than this any more, or is given up for them."""
        for number, share in self._shares.items():
            if number < round:
                share.pending.discard(peer)

    def declined(self, peer: PeerId, token: str) -> None:
        """A peer will not fetch a share."""
        for share in self._shares.values():
            if share.offer is not None and share.offer.token == token:
                share.pending.discard(peer)

    def done(self) -> list[Effect]:
        """Drop the shares that nobody needs any more."""
        if all(share.pending for share in self._shares.values()):
            return []
        done = {round: share for round, share in self._shares.items() if not share.pending}
        self._shares = {round: share for round, share in self._shares.items() if share.pending}
        return _dropped(done.values())

    def needed_before(self, round: int) -> set[PeerId]:
        """Who is so far behind that this peer cannot begin a round without leaving it behind."""
        return {peer for number, share in self._shares.items() if number <= round - AHEAD for peer in share.pending}

    def needed(self) -> bool:
        """Whether somebody may still need a share."""
        return any(share.pending for share in self._shares.values())

    def offers_to(self, peer: PeerId) -> list[Offer]:
        """The shares a peer may still need, by round."""
        return [share.offer for share in self._shares.values() if share.offer is not None and peer in share.pending]

    def snapshot(self, round: int, token: str, vector: Vector) -> list[Effect]:
        """Keep the model with which a round begins, once however many ask for it."""
        if token in self._snapshots:
            return []
        self._snapshots[token] = round
        return [Serve(token, vector)]

    def forget_snapshots(self, before: int) -> list[Drop]:
        """Drop the snapshots of earlier rounds than this."""
        stale = [token for token, round in self._snapshots.items() if round < before]
        for token in stale:
            del self._snapshots[token]
        return [Drop(token) for token in stale]

    def drop(self) -> list[Effect]:
        """All of it is given up."""
        return [*_dropped(self._shares.values()), *map(Drop, self._snapshots)]

    def _make_room(self, round: int) -> list[Effect]:
        stale = {number: share for number, share in self._shares.items() if number <= round - AHEAD}
        for number in stale:
            del self._shares[number]
        return _dropped(stale.values())


def _dropped(shares: Iterable[_Share]) -> list[Effect]:
    return [Drop(share.offer.token) for share in shares if share.offer is not None]
