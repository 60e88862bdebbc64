"""Who crashes, leaves and joins in a simulation: an oracle in the place of gossip, with the rules of live peers.

A change of members holds for the round that live peers would announce it for, the second after the latest one begun. A
newcomer asks a member for the model with which its first round begins, and another one where that does not answer.
"""

import math

from p2pfl.events import Finished, PeerGone, PeerJoined, StateChanged
from p2pfl.layout import Vector
from p2pfl.protocol.joining import RETRY_S, granted, timely
from p2pfl.protocol.messages import Member, Offer, SnapshotWanted
from p2pfl.protocol.progress import change_round
from p2pfl.simulation.churn import Change, Kind
from p2pfl.simulation.peers import Peers
from p2pfl.simulation.simulated_peer import SimulatedPeer
from p2pfl.simulation.virtual_time import VirtualTime

DETECTION_S = 1.0  # from a crash until its connections are known to be lost: what live peers promise


class ComingsAndGoings:
    """Carries out the changes of a run."""

    def __init__(self, peers: Peers, clock: VirtualTime, rounds: int) -> None:
        """rounds: of the recipe, 0 = until stopped."""
        self._peers = peers
        self._clock = clock
        self._rounds = rounds
        peers.snapshot = self._snapshot

    def plan(self, changes: tuple[Change, ...]) -> None:
        """Let them happen at their times."""
        for change in changes:
            self._clock.at(change.time_s, self._change, change.peer, change.kind)

    def _change(self, index: int, kind: Kind) -> None:
        peer = self._peers.by_id.get(self._peers.ids[index])
        if kind == "join":
            if peer is None or not peer.here:
                self._join(index)
        elif peer is not None and peer.here:
            self._go(peer, crashed=kind == "crash")

    # Going

    def _go(self, peer: SimulatedPeer, crashed: bool) -> None:
        peer.gone_at, peer.crashed = self._clock.now, crashed
        if crashed:
            self._clock.at(self._clock.now + DETECTION_S, self._notice, peer)
        else:
            self._peers.say(Finished(peer=peer.id, round=peer.round, reason="stopped"))
            self._notice(peer)
        self._peers.count(peer.round, None)

    def _notice(self, peer: SimulatedPeer) -> None:
        """All others learn that a peer is gone: nobody waits for it, and it is left out as soon as can be."""
        if self._peers.by_id[peer.id] is not peer or self._peers.gone.get(peer.id) == math.inf:
            return
        self._peers.gone[peer.id] = math.inf
        self._peers.oracle.end(peer.index, self._change_round())
        name, reason = self._peers.name(peer.index), "dead" if peer.crashed else "left"
        for other in list(self._peers.by_id.values()):
            if other.here:
                self._peers.say(PeerGone(peer=other.id, other=peer.id, name=name, reason=reason))
                self._peers.carry_out(other, other.rounds.advance(self._clock.now))

    def _change_round(self) -> int:
        """The first round for which a change announced now can hold."""
        known = [peer.round for peer in self._peers.members]
        return max(change_round(known, 0, joining=True), max(known, default=self._peers.latest) + 1)

    # Coming

    def _join(self, index: int) -> None:
        known = self._peers.by_id.get(self._peers.ids[index])
        if known is not None:
            self._notice(known)  # who comes back was away
        if not self._peers.members:
            return  # nobody could let it in
        since = self._change_round()
        peer = self._peers.new(index)
        peer.round = peer.rounds.round = min(since, self._rounds) if self._rounds else since
        self._peers.gone[peer.id] = peer.round
        self._peers.oracle.admit(index, peer.round)
        self._peers.count(None, peer.round)
        for other in self._peers.by_id.values():
            if other.here and other is not peer:
                name = self._peers.name(index)
                self._peers.say(PeerJoined(peer=other.id, other=peer.id, name=name, seat=str(index)))
        self._peers.say(StateChanged(peer=peer.id, state="joining", round=peer.round))
        self._ask(peer)

    def _ask(self, peer: SimulatedPeer) -> None:
        """Ask the member that was asked the fewest times for the model to begin with; somebody else after a while."""
        if not peer.here or peer.begun:
            return
        members = self._peers.members
        if not members:
            self._go(peer, crashed=False)  # nobody is left whom it could ask
            return
        if any(other.round > peer.round for other in members):
            record = Member(peer.id, str(peer.index), self._peers.name(peer.index), state="member", since=peer.round)
            since = granted(record, self._change_round(), self._rounds)
            if since is not None:
                self._begins_with(peer, since)
        first, count = peer.index + 1, len(self._peers.ids)  # newcomers ask different members
        asked = min(members, key=lambda other: (peer.asked.count(other.id), (other.index - first) % count))
        peer.asked.append(asked.id)
        self._peers.send(peer, asked.id, SnapshotWanted(peer.round))
        self._clock.at(self._clock.now + RETRY_S, self._ask, peer)

    def _snapshot(self, peer: SimulatedPeer, offer: Offer, found: Vector | str) -> None:
        """The model to begin with is here, or did not come."""
        if peer.begun or not timely(offer, peer.round):
            return
        if isinstance(found, str):
            self._ask(peer)
            return
        self._begins_with(peer, offer.round)
        peer.begun = True
        self._peers.start(peer, offer.round, found)

    def _begins_with(self, peer: SimulatedPeer, round: int) -> None:
        """A newcomer begins with this round, which may be later than the one it was granted first."""
        self._peers.count(peer.round, round)
        peer.round = peer.rounds.round = round
        self._peers.gone[peer.id] = round
