"""A newcomer's way into a run: ask a member for a round, then for that round's model; ask another one, or give up.

The other side of it is here too: which round a member grants.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from p2pfl.protocol.messages import Join, Member, Message, Offer, SnapshotWanted
from p2pfl.protocol.participant import Effect, Prepared
from p2pfl.types import PeerId

RETRY_S = 10.0  # a newcomer without an answer asks somebody else
RETRY_SOON_S = 1.0  # nobody could be asked, or perhaps somebody who waits for a snapshot like this peer
GIVE_UP_S = 60.0  # without a connection to any member; as long as a finished one lingers


class Joining:
    """Whom a newcomer has asked, and when it asks again."""

    def __init__(self, send: Callable[[PeerId, Message], list[Effect]]) -> None:
        self._send = send
        self._asked_of: Counter[PeerId] = Counter()
        self._alone_since: float | None = None  # since when no member can be reached
        self.retry_at: float | None = None  # None while there is nothing to ask for

    def ask(
        self, question: Join | SnapshotWanted, members: Sequence[PeerId], now: float, retry_s: float = RETRY_S
    ) -> list[Effect]:
        """Ask the one who was asked the fewest times.

        Args:
            members: who could answer and can be reached; among those asked equally often the first is.
        """
        self.retry_at = now + (retry_s if members else RETRY_SOON_S)
        if not members:
            return []
        peer = min(members, key=lambda peer: self._asked_of[peer])
        self._asked_of[peer] += 1
        return self._send(peer, question)

    def answered(self) -> None:
        """What was asked for is on its way, or here."""
        self.retry_at = None

    def given_up(self, members: Sequence[PeerId], now: float) -> str:
        """What the person reads where for a minute nobody could be reached who could answer; empty until then.

        To be asked at each retry: the minute begins when it is first asked with no members.
        """
        if members:
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = now
        if self._alone_since is None or now < self._alone_since + GIVE_UP_S:
            return ""
        return f"the run has ended without this peer: for {GIVE_UP_S:g} s no member could be reached"


def in_the_run(members: Iterable[Member], me: Member, start: int) -> list[Member]:
    """Members that began before this peer may, or with it at the start: who came with it waits like it.

    The longest in the run come first: who has only just been granted its round may still wait for a model itself.
    """
    others = (
        m
        for m in members
        if m.peer != me.peer
        and m.state == "member"
        and m.since is not None
        and (me.since is None or m.since < me.since or m.since == start)
    )
    return sorted(others, key=lambda m: m.since or 0)


def timely(snapshot: Offer, since: int | None) -> bool:
    """Whether a snapshot is of no earlier round than the one granted; what was granted before is not any more."""
    return since is not None and snapshot.round >= since


def fits(snapshot: Offer, prepared: Prepared) -> bool:
    """Whether a snapshot is of the model that this peer has built."""
    expected = (prepared.layout, prepared.fingerprint, prepared.bytes)
    return (snapshot.layout, snapshot.recipe, snapshot.bytes) == expected


def granted(newcomer: Member, change_round: int, rounds: int) -> int | None:
    """The round that a member grants to who asks, None where it has one that stands.

    Args:
        change_round: the first round that may have a new member.
        rounds: of the run, 0 = until stopped.
    """
    since = min(change_round, rounds) if rounds else change_round
    stands = newcomer.state == "member" and newcomer.since is not None and newcomer.since >= since
    return None if stands else since
