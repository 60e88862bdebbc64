"""Before the first round: settings agreed on by those present, a model built for them, and the decision to begin."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from p2pfl.protocol.agreement import agree, conflict
from p2pfl.protocol.messages import Member, Ready, Running, Settings
from p2pfl.protocol.participant import Prepare, Prepared
from p2pfl.types import PeerId


@dataclass(frozen=True)
class Beginning:
    """This peer, of the lowest seat, begins the run."""

    running: Running
    members: frozenset[PeerId]


class Lobby:
    """The recipe of one peer: asked for, agreed on, built, and in the end the one that stands."""

    def __init__(self, me: PeerId, network: str, asked: Settings, wait_until: float | None, wait_s: float) -> None:
        self._me = me
        self._network = network
        self._asked = asked
        self._wait_until = wait_until
        self._wait_s = wait_s
        self._ready: dict[PeerId, Ready] = {}
        self.data_of: dict[PeerId, str] = {}  # fingerprints of training data, as told
        self._same_data: set[PeerId] = set()
        self.wanted: Settings | None = None  # settings a model is being, or has been, built for
        self.prepared: Prepared | None = None
        self._told_of_difference = False
        self.running: Running | None = None
        self.init = ""  # digest of the model that the run begins with

    # Those present

    def told(self, peer: PeerId, ready: Ready) -> None:
        """A peer has built a model."""
        self._ready[peer] = ready

    def lost(self, peer: PeerId) -> None:
        """A peer cannot be reached any more."""
        self._ready.pop(peer, None)

    def found_same_data(self, peer: PeerId, data: str) -> bool:
        """Whether a peer now turns out to train on the same data; once for each. An empty fingerprint is unknown."""
        self.data_of[peer] = data
        if self.prepared is None or not data or data != self.prepared.data or peer in self._same_data:
            return False
        self._same_data.add(peer)
        return True

    # Decisions

    def settle(
        self, present: Sequence[tuple[Member, Settings]], reachable: Callable[[PeerId], bool]
    ) -> str | Prepare | Beginning | None:
        """Settle on settings with those present, and begin if this is the lowest seat and enough are ready.

        A text is for the person to read: what was asked for here does not stand.

        Args:
            present: who waits, this peer too, by seat, and what each asked for.
            reachable: whether there is a connection to a peer.
        """
        asked = [(member.name, wishes) for member, wishes in present]
        settings = agree(asked)
        clash = conflict(self._asked, settings, asked)
        if clash is not None:
            return str(clash)
        if settings != self.wanted:
            self.wanted = settings
            return Prepare(settings)
        prepared = self.prepared
        if prepared is None or prepared.settings != settings:
            return None
        order = [member.peer for member, _ in present]
        told = {peer: ready for peer, ready in self._ready.items() if reachable(peer) and peer in order}
        told[self._me] = ready_message(prepared)
        if any(peer not in told for peer in order[: order.index(self._me)]):
            return None  # a lower seat is still building
        groups: dict[str, list[PeerId]] = {}  # by layout, each by seat
        for peer in order:
            if peer in told and told[peer].fingerprint == prepared.fingerprint:
                groups.setdefault(told[peer].layout, []).append(peer)
        # The layout that most have is the network's; among equals, that of the lowest seat.
        chosen = max(groups.values(), key=lambda peers: (len(peers), -order.index(peers[0])))
        if chosen[0] != self._me or len(chosen) < prepared.rules.min_peers:
            return None
        ready = {peer: told[peer].round for peer in chosen if peer != self._me}
        start = max([prepared.round, *ready.values()])
        # With the defaults: who comes later and asks for something else is told of it, asked for here or not.
        standing = prepared.standing or settings
        self.running = Running(standing, prepared.fingerprint, prepared.layout, prepared.tensors, start)
        self.init = prepared.init
        return Beginning(self.running, frozenset({self._me, *ready}))

    def differing(self, present: int) -> str:
        """What keeps enough peers from beginning together, for the person to read, once: their models differ."""
        prepared = self.prepared
        if prepared is None or self._told_of_difference or len(self._ready) + 1 < present:
            return ""
        alike = 1 + sum(ready.layout == prepared.layout for ready in self._ready.values())
        other = next((ready for ready in self._ready.values() if ready.layout != prepared.layout), None)
        if other is None or present < prepared.rules.min_peers or alike >= prepared.rules.min_peers:
            return ""
        self._told_of_difference = True
        return (
            f"the peers here have different models ({difference(prepared.tensors, other.tensors, 'another peer')}): "
            f"{prepared.rules.min_peers} of one model are needed to begin"
        )

    def built(self, prepared: Prepared) -> bool:
        """Take a model; returns whether it is still for the settings wanted."""
        if prepared.settings != self.wanted:
            return False  # they changed while it was being built
        self.prepared = prepared
        return True

    def set_aside(self) -> None:
        """No run can begin with the settings wanted: wait for others."""
        self.prepared = None

    def let_go(self) -> None:
        """The run has begun with the model: it need not be kept here too."""
        if self.prepared is not None:
            self.prepared = replace(self.prepared, vector=None)

    def adopt(self, running: Running) -> str | Prepare | None:
        """A run is on, or begins, and its recipe stands; None where the model for it is built already.

        A text as in `settle`.
        """
        clash = conflict(self._asked, running.settings, [])
        if clash is not None:
            return str(clash).replace("the network asked for", f"network {self._network!r} runs with")
        self.running = running
        if self.prepared is not None and self.prepared.fingerprint == running.fingerprint:
            return None
        self.wanted, self.prepared = running.settings, None
        return Prepare(running.settings)

    # Waiting

    @property
    def wait_until(self) -> float | None:
        """When waiting for enough peers is given up; None once a run is known, or without a limit."""
        return self._wait_until if self.running is None else None

    def nobody(self, found: int, told_off: Sequence[str]) -> str:
        """What the person reads then.

        Args:
            found: how many peers there is a connection to.
            told_off: why others would not talk, as far as they said.
        """
        seen = "no peer was found" if not found else f"only {found} of the peers needed were found"
        if told_off:
            return f"{seen} within {self._wait_s:g} s; {'; '.join(told_off)}"
        mend = "start p2pfl on another machine, or give --peer HOST:PORT; p2pfl doctor says what may be in the way"
        return f"{seen} within {self._wait_s:g} s; {mend}"


def ready_message(prepared: Prepared) -> Ready:
    """Word to the others that a model is built."""
    return Ready(prepared.fingerprint, prepared.layout, prepared.tensors, prepared.data, prepared.round)


def difference(mine: Sequence[str], theirs: Sequence[str], whose: str = "the network") -> str:
    """What tells this peer's tensors from the network's, for a person to read."""
    pairs = [(a, b) for a, b in zip(mine, theirs, strict=False) if a != b]
    return f"this peer's {pairs[0][0]}, {whose}'s {pairs[0][1]}" if pairs else "the number of tensors"
