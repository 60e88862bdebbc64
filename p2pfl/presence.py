"""How a peer is reached, found and finds others: over HTTP and by mDNS, unless the caller brings other ways."""

from collections.abc import Callable
from typing import TypeAlias

from p2pfl.belonging import Belonging
from p2pfl.network.discovery import Candidate, Discovery, Found, NoDiscovery, ignore
from p2pfl.network.http import HttpTransport
from p2pfl.network.interfaces import listening_hosts, local_addresses
from p2pfl.network.mdns import MdnsDiscovery
from p2pfl.network.tls import Credentials
from p2pfl.protocol.messages import Member
from p2pfl.protocol.participant import Found as FoundEvent
from p2pfl.shell import Shell
from p2pfl.types import PeerId

DiscoveryFactory: TypeAlias = Callable[[Found, Callable[[str], None]], Discovery]


class Presence:
    """One peer's presence on its network while it runs: announced to others, and told of them."""

    def __init__(
        self,
        belonging: Belonging,
        shell: Shell,
        members: Callable[[], tuple[Member, ...]],
        announced: Callable[[], tuple[str, ...]],
    ) -> None:
        """Nothing is looked for before `last`.

        Args:
            members: those known by now.
            announced: the addresses that others are told.
        """
        self._belonging = belonging
        self._shell = shell
        self._members = members
        self._announced = announced
        self._verified: Callable[[PeerId], None] = ignore  # tells discovery whose candidate proved its key

    async def last(self, make: DiscoveryFactory) -> None:
        """Look for others and be announced to them, anew with each key, until cancelled."""
        belonging = self._belonging
        async with make(self._found, self._shell.warn) as discovery:
            self._verified = discovery.verified
            while True:
                belonging.changed.clear()
                discovery.listen_for(belonging.tags)
                await discovery.announce(belonging.announcement(self._announced()))
                await belonging.changed.wait()

    def joined(self, peer: PeerId) -> None:
        """A peer has proved who it is: what discovery heard of it is no ghost's."""
        for name in self._belonging.names(peer):
            self._verified(name)

    def _found(self, candidate: Candidate) -> None:
        known = self._belonging.known(candidate.peer, self._members())
        if known is not None:
            # What a peer has signed comes first: the LAN may add to it, and takes nothing away.
            addresses = tuple(dict.fromkeys((*known.addresses, *candidate.addresses)))
            self._shell.handle(FoundEvent(known.peer, addresses))
        else:
            self._shell.handle(FoundEvent("" if self._belonging.encrypted else candidate.peer, candidate.addresses))


def lan_transport(interface: str | None, port: int | None, credentials: Credentials | None) -> HttpTransport:
    """HTTP on one interface, or on all of them."""
    hosts = listening_hosts(interface)
    return HttpTransport(hosts, port, advertised=lambda: local_addresses(interface), credentials=credentials)


def mdns(tags: tuple[str, ...], interface: str | None) -> DiscoveryFactory:
    """By multicast on the LAN."""
    return lambda found, warn: MdnsDiscovery(tags, found, warn, interface=interface)


def no_discovery(found: Found, warn: Callable[[str], None]) -> Discovery:
    """For peers that are named by address alone."""
    return NoDiscovery()
