"""The round under way at one peer: whom it shares with, and what has come so far."""

from dataclasses import dataclass, field
from math import sqrt

from p2pfl.graphs.mixing import with_missing
from p2pfl.layout import Vector
from p2pfl.protocol.membership import View
from p2pfl.protocol.messages import Offer
from p2pfl.protocol.neighborhood import Neighbors
from p2pfl.protocol.participant import Fetched, Mix, Prepared, Trained
from p2pfl.types import PeerId

MOST_TIMES = 1e3  # of this peer's norm: no training of one round is as far apart, and a few such numbers end every run


@dataclass
class Gathering:
    """One round, from its beginning to its mixing. View, edges and weights are frozen."""

    number: int
    view: View
    neighbors: Neighbors
    began: float
    norm: float | None = None  # of this peer's last trained model, if it has trained yet
    phase: str = "waiting"  # for those it would leave behind; then training, gathering, mixing
    trained: Trained | None = None
    gathering_since: float = 0.0
    mixing_since: float = 0.0
    reduced: bool = False
    offers: dict[PeerId, Offer] = field(default_factory=dict)  # accepted, being fetched or here
    tries: dict[PeerId, int] = field(default_factory=dict)
    received: dict[PeerId, Vector] = field(default_factory=dict)
    norms: dict[PeerId, float] = field(default_factory=dict)  # of the received
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

    def flaw(self, event: Fetched) -> str:
        """Why a share that is here cannot count, empty where it can."""
        if not event.finite:
            return "not finite"
        own = self.norm if self.trained is None else self.trained.norm
        return "absurd norm" if own is not None and is_absurd(event.norm, own, event.vector.shape[0]) else ""

    def too_large(self, own: Trained) -> list[PeerId]:
        """Whose shares turn out to be absurd: those that came before this peer had a norm to go by."""
        elements = own.vector.shape[0]
        return [peer for peer, norm in self.norms.items() if is_absurd(norm, own.norm, elements)]

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


def is_absurd(norm: float, own: float, elements: int) -> bool:
    """Whether a model is too large to be the work of an honest peer, whose own has the norm `own`.

    A rule against numbers like 1e38, of which one in a single share ruins everybody's model, and against nothing else:
    zeros, turned signs and all else of a usual size pass, and are for a robust rule. A model of elements of the size of
    1 always passes with `MOST_TIMES` to spare, so that who begins with zeros refuses nobody.
    """
    usual = sqrt(elements)
    return not norm <= MOST_TIMES * (own if own > usual else usual)  # an own norm that is NaN is none to go by
