"""Who may have an identity or a seat that two peers claim. Nobody is believed more than it can show.

Who takes part gives way to nobody. Who waits gives way to who takes part, or came before it; yet not where somebody
that it is connected to had not heard of the other one at their first word: else any member could send any newcomer
away by claiming its seat.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from p2pfl.protocol.messages import Hello, Member
from p2pfl.types import PeerId, is_index, seat_order

MOST_WAITED_S = 3600.0  # how long the other end has waited is its claim: beyond an hour all are alike
_RESUMED_TWICE = "another process resumed the same run folder: stop one of the two"


@dataclass(frozen=True)
class Clash:
    """The other end claims who or what is taken."""

    reason: str  # "self" where a peer has reached itself
    detail: str  # for a person to read
    mine: bool  # whether it is this peer that yields


def clash(
    hello: Hello,
    me: Member,
    said: Hello,
    known: Hello | None,
    connected: Iterable[Member],
    *,
    proven: bool = True,
    unheard_of: bool = False,
) -> Clash | None:
    """What stands against the other end's claims, or None.

    Args:
        hello: what the other end says.
        me: this peer's own record, as it is now.
        said: what this peer said on this connection.
        known: the hello of an earlier connection to that peer, if it still stands.
        connected: whom there are connections to.
        proven: whether the other end has shown that it holds the key of its id.
        unheard_of: whether somebody connected here knew of nobody with that id and seat when they met.
    """
    newcomer = hello.me
    waits = me.state == "lobby"
    later = _standing(me, said) > _standing(newcomer, hello)
    if newcomer.peer == me.peer:
        if hello.instance == said.instance:
            return Clash("self", "", mine=False)
        return Clash("duplicate identity", _RESUMED_TWICE, mine=waits and proven and later)
    if known is not None and known.instance != hello.instance:
        return Clash("duplicate identity", _RESUMED_TWICE, mine=False)
    if not is_index(newcomer.seat):
        return None
    text = f"part {int(newcomer.seat) + 1} is taken by {{}} already; choose another --part"
    if seat_order(newcomer.seat) == seat_order(me.seat):
        if (waits and unheard_of) or (not waits and newcomer.state != "lobby"):
            return None  # both stay: the seat only orders, and equal data is warned of
        mine = waits and later
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
    return member.state == "lobby", -min(hello.waited_s, MOST_WAITED_S), member.peer, hello.instance
