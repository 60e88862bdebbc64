"""What a peer makes of it that members it knew let it in no longer: another key, or a ban.

Nobody's word is proof: who answers at a member's address may be of another network by now, and a member may lie about
a ban. So it counts only while nobody else talks to this peer, and ends a run only where all who took part say it.
"""

from collections.abc import Iterable

from p2pfl.events import PeerGone, PeerJoined, Refusal, RunEvent, Started
from p2pfl.types import PeerId

PATIENCE_S = 3.0  # before it is told; more leaves more time to the members that do let it in


class ShutOut:
    """What the events of one run say of that.

    Args:
        network: its name.
        addresses: where members were in earlier runs.
    """

    def __init__(self, network: str, addresses: Iterable[str]) -> None:
        self._network = network
        self._addresses = frozenset(addresses)
        self._talking: set[PeerId] = set()
        self._banned_by: set[PeerId] = set()
        self._other_key = False
        self._began = False
        self._told: set[str] = set()

    def take(self, event: RunEvent) -> bool:
        """Take in an event of the run; whether it is worth a look at `over` and `news` in a while."""
        match event:
            case PeerJoined(other=other):
                self._talking.add(other)
                self._banned_by.discard(other)
                self._other_key = False
            case PeerGone(other=other):
                self._talking.discard(other)
                return bool(self.text)
            case Started():
                self._began = True
            case Refusal(reason="other key", other=other, remote=remote):
                # A peer was dialed by its id, so it was a member; or at an address, where one may have been.
                known = bool(other) or not self._addresses.isdisjoint(remote.split(", "))
                self._other_key |= known
                return known
            case Refusal(reason="banned there", other=other):
                self._banned_by.add(other)
                self._talking.discard(other)
                return True
            case _:
                pass
        return False

    @property
    def over(self) -> bool:
        """Whether the run is: it had begun, and everybody else in it has banned this peer."""
        return self._began and bool(self._banned_by) and not self._talking

    @property
    def text(self) -> str:
        """What the person reads; empty while others talk to this peer, or nobody turned it down."""
        if self._talking:
            return ""
        if self._banned_by:
            return f"this peer was banned from network {self._network!r} by one of its members"
        if self._other_key:
            return (
                f"peers that were members of network {self._network!r} speak another key: it was probably changed "
                "while this machine was away, or this peer was banned; get the new token on a member's machine by  "
                f"p2pfl network token {self._network}  and give it here to  p2pfl network join --replace -"
            )
        return ""

    def news(self) -> str:
        """`text`, where it was not told yet."""
        text = self.text
        if text in self._told:
            return ""
        self._told.add(text)
        return text
