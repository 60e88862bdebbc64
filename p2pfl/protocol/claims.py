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


def clash(hello: Hello, me: Member, said: Hello, known: Hello | None, connected: Iterable[Member]) -> Clash | None:
    """What stands against the other end's claims, or None.

    Args:
        hello: what the other end says.
        me: this peer's own record, as it is now.
        said: what this peer said on this connection.
        known: the hello of an earlier connection to that peer, if it still stands.
        connected: whom there are connections to.
    """
    newcomer = hello.me
    if newcomer.peer == me.peer:
        if hello.instance == said.instance:
            return Clash("self", "", mine=False)
        mine = _standing(me, said) > _standing(newcomer, hello)
        return Clash("duplicate identity", _RESUMED_TWICE, mine)
    if known is not None and known.instance != hello.instance:
        return Clash("duplicate identity", _RESUMED_TWICE, mine=False)
    if not is_index(newcomer.seat):
        return None
    text = f"part {int(newcomer.seat) + 1} is taken by {{}} already; choose another --part"
    if seat_order(newcomer.seat) == seat_order(me.seat):
        mine = _standing(me, said) > _standing(newcomer, hello)
        return Clash("duplicate seat", text.format(newcomer.name if mine else me.name), mine)
    holder = _holder(newcomer, connected)
    return None if holder is None else Clash("duplicate seat", text.format(holder), mine=False)


def _holder(newcomer: Member, connected: Iterable[Member]) -> str | None:
    """Who takes part with the newcomer's seat; two that both wait settle it between themselves."""
    for member in connected:
        if (
            member.peer != newcomer.peer
            and seat_order(member.seat) == seat_order(newcomer.seat)
            and member.state == "member"
            and newcomer.state != "member"
        ):
            return str(member.name)
    return None


def _standing(member: Member, hello: Hello) -> tuple[bool, float, PeerId, str]:
    """Of two the lower one stays: who takes part already, who came first, and if all is equal, by their ids."""
    return member.state != "member", -hello.waited_s, member.peer, hello.instance
