"""One peer of a simulation, from its start to its end: its rounds, and the bodies it serves."""

import math
from collections import Counter

from p2pfl.layout import Vector
from p2pfl.protocol.messages import Offer
from p2pfl.protocol.rounds import SynchronousRound
from p2pfl.types import PeerId


class SimulatedPeer:
    """What the simulation keeps of a peer; one that comes back is another.

    Attributes:
        rounds: the live peer's state machine.
        round: in which it is counted; for a newcomer, the round it was granted.
        begun: whether it has a model and takes part.
        gone_at: virtual seconds at which it crashed or left.
        trains_since: when its last training began.
        wake_at: when it is woken; no later than the deadline of its round.
        fetching: tokens of the bodies it waits for.
        asked: members it has asked for a model to begin with.
    """

    def __init__(self, index: int, id: PeerId) -> None:
        self.index = index
        self.id = id
        self.rounds: SynchronousRound
        self.round = -1
        self.begun = False
        self.gone_at = math.inf
        self.crashed = False
        self.trains_since = 0.0
        self.wake_at = math.inf
        self.fetching: set[str] = set()
        self.asked: list[PeerId] = []
        self._bodies: dict[str, Vector] = {}
        self._withdrawn: dict[str, tuple[Vector, float]] = {}  # and when: somebody is fetching it
        self._uploads: Counter[str] = Counter()  # fetches under way

    @property
    def here(self) -> bool:
        """Whether it has neither crashed nor left."""
        return self.gone_at == math.inf

    def serve(self, token: str, vector: Vector) -> None:
        """Let others fetch a body."""
        self._bodies[token] = vector

    def withdraw(self, token: str, now: float) -> None:
        """Let nobody fetch a body any more, but for those whose request arrives before."""
        vector = self._bodies.pop(token)
        if self._uploads[token]:
            self._withdrawn[token] = (vector, now)

    def begin_upload(self, token: str) -> None:
        """Somebody sends a request for a body."""
        self._uploads[token] += 1

    def end_upload(self, offer: Offer, asked_at: float, now: float) -> Vector | str:
        """What a fetch brings: the body, or the reason of its failure as live peers call it.

        Args:
            asked_at: when the request arrived.
            now: when the body has arrived.
        """
        token = offer.token
        vector, until = self._withdrawn.get(token, (self._bodies.get(token), math.inf))
        self._uploads[token] -= 1
        if not self._uploads[token]:
            del self._uploads[token]
            self._withdrawn.pop(token, None)
        if self.gone_at <= asked_at:
            return "unreachable"
        if self.crashed and self.gone_at < now:
            return "broken off"
        return vector if vector is not None and until > asked_at else "gone"
