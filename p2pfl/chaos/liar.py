"""A member that lies: it holds the network's key, and says whatever it likes over a link that proves who it is."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from p2pfl.errors import NetworkError, ProtocolError
from p2pfl.identity import Identity
from p2pfl.network.limits import Limits
from p2pfl.network.reach import reaching
from p2pfl.network.tls import Credentials
from p2pfl.network.transport import Link
from p2pfl.network_key import KeyRing, NetworkKey
from p2pfl.protocol.messages import (
    VERSIONS,
    Hello,
    Member,
    Message,
    Offer,
    Suspicion,
    Update,
    decode,
    encode,
)
from p2pfl.protocol.records import signed
from p2pfl.types import PeerId

_TURN_S = 0.5


async def lie(address: str, key: NetworkKey, victims: Sequence[PeerId], seconds: float, counts: Counter[str]) -> None:
    """Join the network at an address as somebody new, and lie about others for some seconds.

    It claims that live peers are dead, left, or elsewhere, repeats what it was told, offers models that are none, and
    in between sends bytes that mean nothing.

    Args:
        counts: of the lies told, and of the links that were ended by the other side.
    """
    identity = Identity(bytes([7]) * 32)
    until = time.monotonic() + seconds
    async with reaching(Limits(), Credentials(identity, KeyRing(key))) as reach:
        while time.monotonic() < until:
            with suppress(NetworkError):
                link = await reach.connect(address)
                counts["links"] += 1
                try:
                    await _talk(link, identity, key, victims, until, counts)
                except NetworkError:
                    counts["links ended by the peer"] += 1
                finally:
                    await link.close("enough")
            await asyncio.sleep(_TURN_S)  # the pace of a liar


async def _talk(
    link: Link, identity: Identity, key: NetworkKey, victims: Sequence[PeerId], until: float, counts: Counter[str]
) -> None:
    known: dict[PeerId, Member] = {}
    heard: list[bytes] = []
    me = signed(Member(identity.peer, "99", "liar", (), 1 << 16), key.name, identity)
    await link.send(encode(Hello(VERSIONS, key.name, "liar-instance", me, 1 << 40, {})))
    turn = 0
    while time.monotonic() < until:
        with suppress(TimeoutError):
            async with asyncio.timeout(_TURN_S):
                while True:
                    data = await link.receive()
                    heard.append(data)
                    with suppress(ProtocolError):
                        message = decode(data)
                        if isinstance(message, Hello):
                            known |= {member.peer: member for member in (*message.members, message.me)}
        lies = _lies(known, victims, heard, identity)
        data = lies[turn % len(lies)]
        turn += 1
        await link.send(data)
        counts["lies"] += 1


def _lies(known: dict[PeerId, Member], victims: Sequence[PeerId], heard: list[bytes], liar: Identity) -> list[bytes]:
    """One of each kind, about a peer that is well."""
    messages: list[Message] = []
    about = [known[peer] for peer in victims if peer in known]
    for member in about[:2]:
        change = msgspec.structs.replace
        messages += [
            Suspicion(member.peer, member.incarnation),
            Update((change(member, state="dead", until=1),)),
            Update((change(member, state="left", until=1),)),
            Update((change(member, incarnation=member.incarnation + 1, addresses=("127.0.0.1:9",)),)),
            Update((change(member, seat="98", signature=liar.sign(b"anything")),)),
        ]
    messages.append(Offer("share", 1, "1.liar", 64, "layout", "recipe", payload=bytes(32), receiver="a" * 52))
    return [*(encode(message) for message in messages), *heard[-2:], b"\x00nothing", bytes(300)]
