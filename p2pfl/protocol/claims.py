"""Who may have an identity or a seat that two peers claim. Both ends come to the same answer from their two hellos."""

from collections.abc import Iterable
from dataclasses import dataclass

from p2pfl.protocol.messages import Hello, Member
from p2pfl.types import PeerId, is_index, seat_order

_RESUMED_TWICE = "another process resumed the same run folder: stop one of the two"


@dataclass(frozen=True)
class Clash:
    """The other end claims who or what is taken."""

    reason: str  # "self" where a peer has reached itself
    detail: str  # for a person to read
    mine: bool  # whether it is this peer that yields


def clash(hello: Hello, me: Member, instance: str, known: Hello | None, connected: Iterable[Member]) -> Clash | None:
    """What stands against the other end's claims, or None.

    Args:
        hello: what the other end says.
        me: this peer's own record.
        instance: this process.
        known: the hello of an earlier connection to that peer, if it still stands.
        connected: whom there are connections to.
    """
    newcomer = hello.me
    if newcomer.peer == me.peer:
        if hello.instance == instance:
            return Clash("self", "", mine=False)
        mine = (me.state != "member", instance) > (newcomer.state != "member", hello.instance)
        return Clash("duplicate identity", _RESUMED_TWICE, mine)
    if known is not None and known.instance != hello.instance:
        return Clash("duplicate identity", _RESUMED_TWICE, mine=False)
    if not is_index(newcomer.seat):
        return None
    text = f"part {int(newcomer.seat) + 1} is taken by {{}} already; choose another --part"
    if seat_order(newcomer.seat) == seat_order(me.seat):
        mine = standing(me) > standing(newcomer)
        return Clash("duplicate seat", text.format(newcomer.name if mine else me.name), mine)
    holder = _holder(newcomer, connected)
    return None if holder is None else Clash("duplicate seat", text.format(holder), mine=False)


def _holder(newcomer: Member, connected: Iterable[Member]) -> str | None:
    """Who has the newcomer's seat and need not yield it; one who must is told by the newcomer itself."""
    for member in connected:
        if (
            member.peer != newcomer.peer
            and seat_order(member.seat) == seat_order(newcomer.seat)
            and member.state not in ("dead", "left")
            and standing(member) < standing(newcomer)
        ):
            return str(member.name)
    return None


def standing(member: Member) -> tuple[bool, PeerId]:
    """Of two peers with one seat the lower one keeps it: who takes part already, then the lower id."""
    return member.state != "member", member.peer
