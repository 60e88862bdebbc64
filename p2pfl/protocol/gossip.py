"""What peers tell of each other: records are passed on, and nobody is taken for dead who is heard here.

A claim of the death of somebody with a connection to here goes to that peer, who contradicts it: with the next
incarnation, under its signature, keeping its place. So a liar costs messages alone. Of a stranger one member's word is
no more than an address to dial; who said hello here, or of whom two members tell, is believed to be there. Rounds that
others tell are believed as far as rounds can have got, and that a member takes part from a later one on is for itself
to say. Where a network was in two parts that took each other for dead, the part that goes on keeps its place, and who
is of the other begins anew as a newcomer: see `sides`.

Whoever lies day and night makes a peer raise its incarnation every other second. After a day and a half of that it
takes the numbers of its next start: that one, and all who hear of it, take it for one that had lost count, and go on
from there. There are numbers for seventy thousand years.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from p2pfl.events import PeerGone
from p2pfl.protocol.contacts import Contacts
from p2pfl.protocol.links import Links
from p2pfl.protocol.membership import GONE, Table, display_names
from p2pfl.protocol.messages import MAX_MEMBERS, MAX_ROUND, Hello, Member, Suspicion, Update
from p2pfl.protocol.participant import Close, Effect, Emit
from p2pfl.protocol.sides import goes_on
from p2pfl.types import PeerId

_BETWEEN_REFUTATIONS_S = 2.0  # whoever claims deaths in a row costs this peer a message in so long
_OTHER_SIDE_S = 7.0  # where others were lost here, a claim of this peer's death may be theirs: they are met first
_BETWEEN_WARNINGS_S = 1.0  # of one peer, that somebody claims its death


@dataclass(frozen=True)
class Learned:
    """What came of the records that somebody told."""

    effects: Sequence[Effect]
    news: bool
    of_me: bool = False  # whether this peer's own record is among the news
    before: Member | None = None  # what the record was
    renewed: Sequence[PeerId] = ()  # others that are in a later incarnation than was known


class Gossip:
    """One peer's ear and mouth; the records themselves are in the table."""

    def __init__(
        self,
        table: Table,
        links: Links,
        contacts: Contacts,
        suspects: Callable[[PeerId], bool],
        latest: Callable[[], int] = lambda: MAX_ROUND,
    ) -> None:
        """Nobody was heard of yet.

        Args:
            suspects: whether this peer itself has reason to take another for dead.
            latest: the last round for which anybody can have announced a change of view by now.
        """
        self._latest = latest
        self._suspects = suspects
        self._table = table
        self._links = links
        self._contacts = contacts
        self._met: dict[PeerId, None] = {}  # who has said hello here; the table remembers them longer
        self._tellers: dict[PeerId, set[PeerId]] = {}  # of strangers, who tells of them
        self._lost: set[PeerId] = set()  # had a connection to here, and has none now
        self._parted: dict[PeerId, int | None] = {}  # taken for dead, and not met since; its first round then
        self._of_my_side: dict[PeerId, int] = {}  # when it gave way to the other one, and in which incarnation
        self._of_my_side_until = 0.0
        self._refute_at: float | None = None
        self._refuted_at: float | None = None
        self._warned_at: dict[PeerId, float] = {}
        self.elsewhere: tuple[str, ...] = ()  # where else than here a process with this peer's key is, or was

    def learn(
        self, records: Sequence[Member], teller: PeerId, now: float, *, grant: int | None, trusted: bool = False
    ) -> Learned:
        """Take in records, which are their peers' own word, and pass on what is news.

        Args:
            grant: where this peer waits for a round to begin with, the last one that it takes for one.
            trusted: whether the teller alone is believed that there are others: who begins the run says with whom.
        """
        effects: list[Effect] = []
        me = before = self._table.me
        for record in (r for r in records if r.peer == me.peer):
            self.elsewhere = tuple(a for a in record.addresses if a not in me.addresses) or self.elsewhere
            if trusted and record.incarnation < me.incarnation and grant is not None:
                record = msgspec.structs.replace(record, incarnation=me.incarnation)  # it had not heard of the last one
            effects += self._told_of_me(record, grant, now)
        others = [record for record in records if record.peer != me.peer]
        believed: list[Member] = []
        latest = self._latest()
        for record in others:
            standing = self._table.get(record.peer)
            if record.state == "dead" and standing is not None and standing.state not in GONE and self._hears(standing):
                effects += self.warn(record, now)
            elif trusted and standing is not None and standing.state == "lobby" and _overtaken(record, standing):
                believed.append(msgspec.structs.replace(standing, state="member", since=record.since))
            elif trusted or (record.peer == teller and (record.until or 0) <= latest):
                believed.append(record)
            elif standing is not None and self._hears(standing) and _moved(record, standing):
                effects += self.warn(record, now)  # it tells everybody itself, where it is true
            elif max(record.since or 0, record.until or 0) <= latest and self._is_there(record, teller):
                believed.append(record)
            elif record.state not in GONE and record.addresses:
                self._links.suggest(record.peer, record.addresses, now)
        known = {record.peer: self._table.get(record.peer) for record in believed}
        news = self._table.merge(believed)
        for member in news:
            old = known[member.peer]
            if member.state in GONE:
                effects += self._is_gone(member, old)
            elif member.addresses:
                self._links.propose(member.peer, member.addresses, now, known=True)
                if old is not None and old.state in GONE:
                    self._links.retry(member.peer, now)
        fresh = tuple(self._table.get(member.peer) or member for member in news)
        if fresh:
            effects += self._contacts.spread(Update(fresh), but=teller)
        of_me = self._table.me != before
        if of_me and self._table.me.incarnation == before.incarnation:  # a round was granted; others may not know it
            effects += self._contacts.broadcast(Update((self._table.me,)), but=teller)
        renewed = [m.peer for m in news if (old := known[m.peer]) is not None and m.incarnation > old.incarnation]
        return Learned(effects, bool(news) or of_me, of_me, before, renewed)

    def _hears(self, member: Member) -> bool:
        return self._links.reachable(member.peer) and not self._suspects(member.peer)

    def _is_there(self, record: Member, teller: PeerId) -> bool:
        """Whether a peer is more than hearsay of one member."""
        if record.peer in self._met or record.peer == teller or self._table.get(record.peer) is not None:
            return True
        if record.peer not in self._tellers and len(self._tellers) >= MAX_MEMBERS:
            del self._tellers[next(iter(self._tellers))]
        tellers = self._tellers.setdefault(record.peer, set())
        tellers.add(teller)
        if len(tellers) < min(2, len(self._links.peers)):
            return False
        del self._tellers[record.peer]
        return True

    def _is_gone(self, member: Member, old: Member | None) -> list[Effect]:
        effects: list[Effect] = []
        if member.state == "dead":
            self._parted[member.peer] = member.since
            self._links.gone(member.peer)
            effects += [Close(link, "silent") for link in self._links.links_of((member.peer,))]
        else:
            self._parted.pop(member.peer, None)
            self._links.forget(member.peer)
        return effects if old is None or old.state in GONE else [*effects, self._gone(member.peer, member.state)]

    # Claims of death

    def warn(self, claim: Member | Suspicion, now: float) -> list[Effect]:
        """Let a peer know what is claimed of it, so that it can contradict."""
        known = self._table.get(claim.peer)
        if known is None or claim.incarnation < known.incarnation:
            return []
        if now - self._warned_at.get(claim.peer, -_BETWEEN_WARNINGS_S) < _BETWEEN_WARNINGS_S:
            return []
        self._warned_at[claim.peer] = now
        return self._contacts.send(claim.peer, Update((claim,)) if isinstance(claim, Member) else claim)

    def _told_of_me(self, record: Member, grant: int | None, now: float) -> list[Effect]:
        mine = self._table.me
        if record.incarnation < mine.incarnation:
            return []
        if record.incarnation == mine.incarnation and record.state == "member":
            later = record.since is not None and (mine.since is None or record.since > mine.since)
            if mine.state in ("lobby", "member") and grant is not None and later:
                if record.since is not None and record.since <= grant:
                    self._table.change(mine.peer, state="member", since=record.since, until=None)
            elif mine.state == "member" and record.since != mine.since and record.since is not None and later:
                return self.accused(record.incarnation, now)
            return []
        if mine.state in GONE or not (record.state in GONE or record.incarnation > mine.incarnation):
            return []
        if record.incarnation > mine.incarnation:  # of a former start that this one knows nothing of: it signed that
            mine = self._table.change(mine.peer, incarnation=min(record.incarnation, MAX_ROUND - 1))
        return self.accused(mine.incarnation, now)

    def accused(self, incarnation: int, now: float) -> list[Effect]:
        """Somebody claims, or suspects, that this peer is gone; of another incarnation it may say what it likes."""
        if incarnation != self._table.me.incarnation:
            return []
        if self._refute_at is None:
            soonest = now if self._refuted_at is None else self._refuted_at + _BETWEEN_REFUTATIONS_S
            self._refute_at = max(soonest, now + _OTHER_SIDE_S if self._parted else now)
            for peer in self._parted:
                self._links.retry(peer, now)
        return self.due(now)

    def due(self, now: float) -> list[Effect]:
        """Contradict, once it is time: this peer lives, and keeps its place."""
        if self._refute_at is None or self._refute_at > now:
            return []
        return self._refute(now)

    def next_deadline(self) -> float | None:
        """When to contradict."""
        return self._refute_at

    def _refute(self, now: float, **fields: object) -> list[Effect]:
        self._refute_at, self._refuted_at = None, now
        mine = self._table.me
        if mine.state in GONE or mine.incarnation >= MAX_ROUND:
            return []
        mine = self._table.change(mine.peer, incarnation=mine.incarnation + 1, **fields)
        return self._contacts.broadcast(Update((mine,)))

    def begin_anew(self, now: float) -> Learned:
        """Give up this peer's place: the others have gone on without it, and it comes back as a newcomer."""
        before = self._table.me
        self._parted.clear()
        effects = self._refute(now, state="lobby", since=None, until=None)
        return Learned(effects, True, self._table.me != before, before)

    def met(self, said: Hello, hello: Hello, now: float, *, running: bool) -> Learned | None:
        """A peer said hello; where it is of another part of the network, one of the two begins anew."""
        peer = hello.me.peer
        self._met[peer] = None
        if len(self._met) > MAX_MEMBERS:
            del self._met[next(iter(self._met))]
        self._lost.discard(peer)
        self._tellers.pop(peer, None)
        mine = self._table.me
        if peer not in self._parted:
            return None
        claimed = next((m for m in hello.members if m.peer == mine.peer), None)
        apart = claimed is not None and claimed.state == "dead" and claimed.incarnation == mine.incarnation
        learned = None
        if running and apart and mine.state == "member":
            if goes_on(mine, self._parted, said, hello):
                learned = Learned(self._refute(now), news=True)
            else:
                allies = (m for m in self._table if m.state == "member" and m.peer not in self._parted)
                self._of_my_side = {m.peer: m.incarnation for m in allies}
                self._of_my_side_until = now + _OTHER_SIDE_S
                learned = self.begin_anew(now)
        self._parted.pop(peer, None)
        return learned

    def gives_way(self, peer: PeerId, now: float) -> bool:
        """Whether a peer is of the part that begins anew, as this one does, and may not know it yet."""
        member = self._table.get(peer)
        if member is None or now >= self._of_my_side_until:
            return False
        return self._of_my_side.get(peer) == member.incarnation

    def lost(self, peer: PeerId, now: float) -> None:
        """The last connection to a peer broke: dial it."""
        member = self._table.get(peer)
        self._lost.add(peer)
        if member is not None and member.state not in GONE:
            self._links.propose(peer, member.addresses, now, known=True)
            self._links.retry(peer, now)

    def declare_dead(self, peer: PeerId, change_round: int) -> list[Effect]:
        """Tell the others that a peer is gone, unless it is known to be.

        Args:
            change_round: the first round that may be without it.
        """
        member = self._table.get(peer)
        if member is None or member.state in GONE:
            return []
        until = None if member.since is None else max(member.since, change_round)
        dead = self._table.change(peer, state="dead", until=until)
        return [*self._is_gone(dead, member), *self._contacts.spread(Update((dead,)))]

    def may_answer(self, peer: PeerId, round: int) -> bool:
        """Whether a member is worth waiting for: still, or already, of the round, and connected or about to be."""
        member = self._table.get(peer)
        if member is None or member.state != "member" or member.since is None or member.since > round:
            return False
        return self._links.reachable(peer) or not (peer in self._lost or self._links.failing(peer))

    def name(self, peer: PeerId) -> str:
        """The name to show for a peer."""
        return display_names(self._table).get(peer, peer[:8])

    def _gone(self, peer: PeerId, reason: str) -> Emit:
        return Emit(PeerGone(peer=self._table.me.peer, other=peer, name=self.name(peer), reason=reason))


def _moved(record: Member, standing: Member) -> bool:
    """Whether a member is said to take part from a later round on, in the same life."""
    if standing.state != "member" or record.state != "member" or record.incarnation != standing.incarnation:
        return False
    return (record.since or 0) > (standing.since or 0)


def _overtaken(record: Member, standing: Member) -> bool:
    """Whether who begins a run counts a peer in that has contradicted a rumor of its death meanwhile."""
    return record.state == "member" and record.incarnation < standing.incarnation
