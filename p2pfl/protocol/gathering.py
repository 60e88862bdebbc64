"""The round under way at one peer: whom it shares with, and what has come so far."""

from dataclasses import dataclass, field

from p2pfl.graphs.mixing import with_missing
from p2pfl.layout import Vector
from p2pfl.protocol.membership import View
from p2pfl.protocol.messages import Offer
from p2pfl.protocol.neighborhood import Neighbors
from p2pfl.protocol.participant import Mix, Prepared, Trained
from p2pfl.types import PeerId


@dataclass
class Gathering:
    """One round, from its beginning to its mixing. View, edges and weights are frozen."""

    number: int
    view: View
    neighbors: Neighbors
    began: float
    phase: str = "waiting"  # for those it would leave behind; then training, gathering, mixing
    trained: Trained | None = None
    gathering_since: float = 0.0
    mixing_since: float = 0.0
    reduced: bool = False
    offers: dict[PeerId, Offer] = field(default_factory=dict)  # accepted, being fetched or here
    tries: dict[PeerId, int] = field(default_factory=dict)
    received: dict[PeerId, Vector] = field(default_factory=dict)
    given_up: set[PeerId] = field(default_factory=set)  # refused or failed: its weight goes to self
    arrivals: list[float] = field(default_factory=list)  # seconds after the beginning, own training included

    @property
    def sources(self) -> tuple[PeerId, ...]:
        """Whose shares come here, by seat."""
        return self.neighbors.sources

    @property
    def targets(self) -> tuple[PeerId, ...]:
        """To whom the share of this peer goes."""
        return self.neighbors.targets

    def objection(self, peer: PeerId, offer: Offer, prepared: Prepared) -> str:
        """Why an offer for no later round than this one cannot count, empty where it can."""
        known = self.offers.get(peer)
        if known == offer:
            return "duplicate"
        wrong = mismatch(offer, prepared)
        if wrong in ("schema mismatch", "recipe mismatch"):
            return wrong
        if offer.round < self.number or self.phase == "mixing":
            return "late"
        if known is not None:
            return "second share"
        if offer.view != self.view.digest:
            return "view mismatch"
        if peer not in self.sources:
            return "foreign"
        return wrong

    def open(self) -> list[PeerId]:
        """Neighbors of whom no share is here, and none was given up."""
        return [peer for peer in self.sources if peer not in self.received and peer not in self.given_up]

    def mix(self) -> Mix:
        """Mix what is here; the weight of what is missing goes to self."""
        assert self.trained is not None  # mixing follows training
        positions, node = self.view.positions, self.neighbors.node
        missing = [positions[peer] for peer in self.sources if peer not in self.received]
        weights = with_missing(self.neighbors.weights, node, missing)
        present = tuple(peer for peer in self.sources if peer in self.received)  # by seat
        received = tuple((weights[positions[peer]], self.received[peer]) for peer in present)
        return Mix(self.number, self.trained.vector, weights[node], received, present)


def mismatch(offer: Offer, prepared: Prepared) -> str:
    """Why an offer of any round is none of this network's models, empty where it may be."""
    if offer.layout != prepared.layout:
        return "schema mismatch"
    if offer.recipe != prepared.fingerprint:
        return "recipe mismatch"
    return "" if offer.bytes == prepared.bytes else "wrong size"
