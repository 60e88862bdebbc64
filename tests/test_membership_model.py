"""Membership against an executable reference: what peers hold, and what follows from every claim ever made."""

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from virtual import identity

from p2pfl.errors import ProtocolError
from p2pfl.protocol.membership import Table
from p2pfl.protocol.messages import MAX_MEMBERS, Member
from p2pfl.protocol.records import Verified, signed

NET = "home"
PEERS = 4
RANK = {"lobby": 0, "observer": 1, "member": 2, "dead": 3, "left": 4}
INDEX = st.integers(0, PEERS - 1)


class Membership(RuleBasedStateMachine):
    """Some peers who make claims about each other, lie, and pass messages on: late, twice, in any order, or never."""

    most = MAX_MEMBERS

    def __init__(self) -> None:
        super().__init__()
        self.ids = [identity(number) for number in range(PEERS)]
        self.tables = [
            Table(Member(one.peer, str(n), f"n{n}"), lambda m, one=one: signed(m, NET, one), most=self.most)
            for n, one in enumerate(self.ids)
        ]
        self.verified = [Verified(NET) for _ in self.ids]
        self.said: list[Member] = [table.me for table in self.tables]  # the reference: every claim that was ever made
        self.alive: dict[str, int] = {}  # the highest incarnation in which a peer was ever held dead or gone

    def take(self, to: int, records: list[Member]) -> None:
        sound = []
        for record in records:
            try:
                self.verified[to].check(record)
            except ProtocolError:
                continue
            sound.append(record)
        self.tables[to].merge(sound)

    @rule(about=INDEX, by=INDEX, state=st.sampled_from(["member", "dead"]), round=st.integers(0, 5))
    def claim(self, about: int, by: int, state: str, round: int) -> None:
        """Anybody may say that another takes part since a round, or is dead."""
        known = self.tables[by].get(self.ids[about].peer)
        if by == about or known is None or RANK[known.state] > RANK[state]:
            return
        until = round + 2 if state == "dead" else None
        self.said.append(self.tables[by].change(known.peer, state=state, since=round, until=until))

    @rule(who=INDEX)
    def refute(self, who: int) -> None:
        me = self.tables[who].me
        if me.state != "left":
            self.said.append(self.tables[who].change(me.peer, incarnation=me.incarnation + 1))

    @rule(who=INDEX, round=st.integers(0, 5))
    def leave(self, who: int, round: int) -> None:
        if self.tables[who].me.state != "left":
            self.said.append(self.tables[who].change(self.ids[who].peer, state="left", until=round))

    @rule(to=INDEX, pick=st.integers(0, 1 << 20), more=st.integers(1, 3))
    def deliver(self, to: int, pick: int, more: int) -> None:
        """Old ones as well as new ones, and again."""
        self.take(to, [self.said[(pick + i) % len(self.said)] for i in range(more)])

    @rule(to=INDEX, pick=st.integers(0, 1 << 20), lie=st.sampled_from(["incarnation", "left", "address", "key"]))
    def lie(self, to: int, pick: int, lie: str) -> None:
        """What nobody but the peer may say is taken from nobody else."""
        true = self.said[pick % len(self.said)]
        fields: dict[str, object] = {
            "incarnation": {"incarnation": true.incarnation + 1},
            "left": {"state": "left", "until": 77},
            "address": {"addresses": ("6.6.6.6:1",)},
            "key": {"key": self.ids[0].public if true.peer != self.ids[0].peer else self.ids[1].public},
        }[lie]
        before = list(self.tables[to])
        self.take(to, [msgspec.structs.replace(true, **fields)])
        assert list(self.tables[to]) == before

    @rule(who=INDEX, to=INDEX)
    def greet(self, who: int, to: int) -> None:
        """One says hello to another, with its own record."""
        if who != to:
            self.tables[to].met(self.ids[who].peer)
            self.take(to, [self.tables[who].me])

    @rule(a=INDEX, b=INDEX)
    def exchange(self, a: int, b: int) -> None:
        """Tables are told to each other."""
        told = [list(self.tables[a]), list(self.tables[b])]
        self.take(b, told[0])
        self.take(a, told[1])
        mine = {self.ids[a].peer, self.ids[b].peer}
        assert [m for m in self.tables[a] if m.peer not in mine] == [m for m in self.tables[b] if m.peer not in mine]

    @rule()
    def quiet(self) -> None:
        """Everybody has heard everything: all hold the same of all others, and what the reference says."""
        for to in range(PEERS):
            self.take(to, self.said)
        for peer in (one.peer for one in self.ids):
            claims = [record for record in self.said if record.peer == peer]
            newest = max(record.incarnation for record in claims)
            rank = max(RANK[record.state] for record in claims if record.incarnation == newest)
            held = {table.get(peer) for table in self.tables if table.me.peer != peer}
            [record] = held
            assert record is not None
            assert (record.incarnation, RANK[record.state]) == (newest, rank)

    @invariant()
    def no_table_holds_more_than_it_may(self) -> None:
        assert all(len(table) <= self.most for table in self.tables)

    @invariant()
    def nobody_rises_without_a_higher_incarnation(self) -> None:
        for number, table in enumerate(self.tables):
            for record in table:
                key = f"{number} {record.peer}"
                if record.state in ("dead", "left"):
                    self.alive[key] = max(self.alive.get(key, -1), record.incarnation)
                else:
                    assert record.incarnation > self.alive.get(key, -1)


class Crowded(Membership):
    """The same with tables that have no room for all: who was forgotten does not rise either."""

    most = 3
    quiet = exchange = None  # of what was forgotten tables may differ


Crowded.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestCrowded = Crowded.TestCase
Membership.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestMembership = Membership.TestCase
TestMembership.pytestmark = [pytest.mark.fault(18)]
