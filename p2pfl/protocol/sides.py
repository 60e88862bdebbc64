"""Two parts of a network that took each other for dead: which of them goes on once they meet again."""

from collections.abc import Iterable, Mapping

from p2pfl.protocol.messages import Hello, Member
from p2pfl.types import PeerId, seat_order


def goes_on(me: Member, parted: Mapping[PeerId, int | None], said: Hello, hello: Hello) -> bool:
    """Whether this peer's part of the network goes on, and not that of a peer it had taken for dead.

    The larger one does; of equal ones that which is further ahead, then that with the lowest seat. Both ends of a
    connection come to the same answer from their two hellos: what each counts for the other side are those whom it
    took for dead and who live there, so a single liar is a side of one.

    Args:
        me: this peer's own record.
        parted: whom it took for dead, and has not met since, and since which round each took part: who takes part
            since another one has begun anew, and is of that side no more.
        said: what this peer said on this connection.
    """
    if hello.me.state != "member" or hello.me.since != parted.get(hello.me.peer):
        return True
    mine = [m for m in (me, *_alive(said.members)) if m.peer == me.peer or m.peer not in parted]
    there = [m for m in _alive(hello.members) if m.peer in parted and m.since == parted[m.peer]]
    theirs = [hello.me, *there]
    return _order(mine, said.round) < _order(theirs, hello.round)


def _alive(members: Iterable[Member]) -> list[Member]:
    return [member for member in members if member.state == "member"]


def _order(side: Iterable[Member], round: int) -> tuple[int, int, tuple[int, int, str]]:
    """The lower one goes on."""
    seats = {member.peer: seat_order(member.seat) for member in side}
    return -len(seats), -round, min(seats.values())
