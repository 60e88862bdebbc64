"""One connection to a peer with several addresses: staggered attempts, the first that answers wins.

In the manner of Happy Eyeballs (RFC 8305, section 5): an address that drops packets costs the stagger, not the
transport's whole patience, and one that refuses costs nothing.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from p2pfl.errors import Unreachable, UsageError
from p2pfl.network.discovery import join_address, split_address
from p2pfl.network.interfaces import interfaces, scoped
from p2pfl.network.transport import Link, Transport
from p2pfl.types import PeerId

MAX_ADDRESSES = 8  # tried for one peer: a record that lists thousands aims no more dials than this
_FAREWELL_S = 0.5  # for a connection that came second to be closed in good order


async def connect_to_any(
    transport: Transport,
    addresses: Sequence[str],
    *,
    owner: PeerId = "",
    stagger_s: float = 0.25,
    within_s: float = 5.0,
) -> Link:
    """Open a connection to the first of these addresses that answers.

    Args:
        addresses: host:port, the likeliest first; those beyond `MAX_ADDRESSES` are not tried. An IPv6 address that
            holds on a link alone is tried on each link of this machine.
        owner: who must be there; an address where another peer proves to be is passed over. Anybody if empty.
        stagger_s: how long one attempt is alone before the next joins it; less finds a working address sooner, and
            opens more connections only to close them.
        within_s: for all attempts together.

    Raises:
        Unreachable: no address answered in time; `refused` where at each of them a machine said that nobody listens.
    """
    left = _from_here(addresses)
    if not left:
        raise Unreachable("no address is known")
    attempts: list[asyncio.Task[Link]] = []
    failures: list[Unreachable] = []
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    link: Link | None = None
    try:
        while link is None and (left or attempts):
            remaining_s = deadline - loop.time()
            if remaining_s <= 0:
                failures.append(Unreachable(f"no answer in {within_s:g} s"))
                break
            if left:
                attempts.append(asyncio.create_task(_attempt(transport, left.pop(0), owner)))
            patience_s = min(stagger_s, remaining_s) if left else remaining_s
            await asyncio.wait(attempts, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
            for attempt in [one for one in attempts if one.done()]:
                attempts.remove(attempt)
                try:
                    link = attempt.result()
                    break
                except Unreachable as error:
                    failures.append(error)
    finally:
        try:
            await _end(attempts)
        except asyncio.CancelledError:
            if link is not None:
                await link.close("not needed")
            raise
    if link is None:
        reason = next((one.reason for one in failures if one.reason != "unreachable"), "unreachable")
        refused = all(failure.refused for failure in failures)
        raise Unreachable("; ".join(map(str, failures)), refused=refused, reason=reason)
    return link


def _from_here(addresses: Sequence[str]) -> list[str]:
    """The addresses to try, as they are to be dialed from this machine."""
    here: dict[str, None] = {}
    up = None
    for address in addresses:
        bracket, _, _ = address.partition("]")
        if not bracket.lower().startswith("[fe"):
            here[address] = None
            continue
        if up is None:
            with suppress(OSError, UsageError):
                up = interfaces()
        with suppress(ValueError):
            host, port = split_address(address)
            here.update((join_address(one, port), None) for one in scoped(host, up or ()))
    return list(here)[:MAX_ADDRESSES]


async def _attempt(transport: Transport, address: str, owner: PeerId) -> Link:
    link = await transport.connect(address)
    if owner and link.proven and link.proven != owner:
        await link.close("wrong peer id")
        raise Unreachable(f"{address}: another peer is there")
    return link


async def _end(attempts: Sequence[asyncio.Task[Link]]) -> None:
    """End the attempts that were not chosen, and close what they opened."""
    for attempt in attempts:
        attempt.cancel()
    opened = await asyncio.gather(*attempts, return_exceptions=True)
    with suppress(TimeoutError):
        async with asyncio.timeout(_FAREWELL_S):
            await asyncio.gather(*(one.close("not needed") for one in opened if not isinstance(one, BaseException)))
