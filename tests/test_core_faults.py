"""Faults of membership, in virtual time: each test first proves its fault, then the promise."""

from collections import Counter
from itertools import pairwise

import msgspec
import pytest
from virtual import Network, Node, identity, network, pairs

from p2pfl.events import PeerGone, Refusal, RoundFinished, RoundsSkipped, ViewTaken
from p2pfl.protocol.messages import Hello, Member, Refused, Update
from p2pfl.protocol.participant import Dial, Found
from p2pfl.protocol.records import signed

DAY_S = 86_400.0


def dead(net: Network) -> list[tuple[str, str]]:
    return [(node.name, gone.name) for node in net.nodes for gone in node.of(PeerGone) if gone.reason == "dead"]


def tables(net: Network) -> set[bytes]:
    return {node.core._table.digest for node in net.living}


def backward(node: Node) -> list[tuple[int, int]]:
    rounds = node.rounds()
    return [(a, b) for a, b in pairwise(rounds) if b <= a]


@pytest.mark.fault(2)
@pytest.mark.parametrize("peers", [2, 3, 4, 8, 16])
def test_a_power_loss_is_seen_by_all_within_six_seconds_and_nobody_else_dies(peers: int) -> None:
    for seed in range(3):
        net = network(peers, seed=seed, rounds=0)
        net.run_to_round(2)
        net.run(until=net.now + 0.37 * seed)
        net.kill(net[1], silent=True)
        began = net.now
        others = [node for node in net.nodes if node is not net[1]]
        assert all(len(node.ends) == peers - 1 for node in others)  # no connection has broken
        net.run(when=lambda net=net, others=others: all(node.state_of(net[1]) == "dead" for node in others))  # type: ignore[misc]
        assert net.now - began < 6.0
        net.run(until=began + 30.0)
        assert sorted(dead(net)) == sorted((node.name, "n1") for node in others)
        assert len(tables(net)) == 1


@pytest.mark.fault(1)
def test_a_reset_and_a_refused_dial_are_death_at_once() -> None:
    net = network(8, rounds=0)
    net.run_to_round(2)
    net.kill(net[1])
    began = net.now
    net.run(when=lambda: all(node.state_of(net[1]) == "dead" for node in net.living))
    assert net.now - began < 1.0


@pytest.mark.fault(3)
def test_a_link_that_is_back_after_half_a_minute_brings_the_peer_back() -> None:
    net = network(5, rounds=0)
    net.run_to_round(3)
    net.partition(net[4], silent=True)
    net.run(until=net.now + 30.0)
    assert all(node.state_of(net[4]) == "dead" for node in net.nodes[:4])
    net.heal()
    began = net.now
    net.run(when=lambda: len(net[0].of(ViewTaken)[-1].members) == 5 and net[4].core.state == "running")
    assert net.now - began < 10.0
    net.run(until=net.now + 10.0)
    assert len(tables(net)) == 1
    assert not backward(net[4])


@pytest.mark.fault(4)
@pytest.mark.parametrize("peers", [3, 6])
def test_two_who_cannot_reach_each_other_stay_members_and_all_train_on(peers: int) -> None:
    net = network(peers, rounds=0, topology="complete", max_wait_s=30.0)
    net.run_to_round(3)
    net.wall(net[0], net[1])
    net.run(until=net.now + 20.0)
    broken = [len(node.ends) for node in net.nodes[:2]]
    assert broken == [peers - 2, peers - 2]  # the connection was given up
    net.run(until=net.now + 60.0)
    assert dead(net) == []
    assert all(node.state_of(other) == "member" for node in net.nodes for other in net.nodes)
    assert len(tables(net)) == 1
    late = net[0].of(RoundFinished)[-10:]
    assert {event.missing for event in late} == {1}
    assert max(event.wait_s for event in late) < 1.0  # nobody waits at the edge of no use
    assert min(node.core.round for node in net.nodes) > 40


@pytest.mark.fault(4)
def test_a_connection_that_carries_one_way_is_given_up_and_its_ends_stay_members() -> None:
    net = network(5, rounds=0, topology="complete", max_wait_s=30.0)
    net.run_to_round(3)
    before = net[0].core._links.link_of(net[1].peer)
    net.mute(net[1], net[0])
    net.run(until=net.now + 60.0)
    assert net[0].core._links.link_of(net[1].peer) != before
    assert dead(net) == []
    assert all(node.state_of(other) == "member" for node in net.nodes for other in net.nodes)
    net.heal()
    net.run(until=net.now + 15.0)
    assert net[0].core._links.reachable(net[1].peer)


@pytest.mark.fault(5)
@pytest.mark.parametrize("healing", ["catch-up", "average"])
@pytest.mark.parametrize(("smaller", "silent"), [((4, 5, 6, 7), True), ((0, 1, 2, 3), False), ((0, 6), True)])
def test_a_split_that_heals_ends_in_one_view_and_nobody_goes_back(
    smaller: tuple[int, ...], silent: bool, healing: str
) -> None:
    net = network(8, rounds=0)
    for node in net.nodes:
        node.healing = healing
        if node.name in ("n4", "n5", "n6", "n7"):
            node.train_s = lambda round: 1.3
    net.run_to_round(3)
    inside = [net[index] for index in smaller]
    net.partition(*inside, silent=silent)
    net.run(until=net.now + 30.0)
    for node in net.nodes:
        side = {other.name for other in net.nodes if (other in inside) == (node in inside)}
        assert set(node.of(ViewTaken)[-1].members) == side
    net.heal()
    began, rounds = net.now, {node.name: node.core.round for node in net.nodes}
    net.run(when=lambda: len(tables(net)) == 1 and {len(n.of(ViewTaken)[-1].members) for n in net.nodes} == {8})
    assert net.now - began < 12.0
    net.run(until=began + 60.0)
    assert len(tables(net)) == 1
    assert {node.core.state for node in net.nodes} == {"running"}
    assert not [step for node in net.nodes for step in backward(node)]
    assert all(node.core.round > rounds[node.name] for node in net.nodes)
    if len(smaller) < 4:  # the larger side has gone on without a word
        assert all(len(node.of(ViewTaken)) <= 6 for node in net.nodes if node not in inside)
    spread = max((max(n.numbers()[0] for n in net.nodes) - min(n.numbers()[0] for n in net.nodes)), 0.0)
    assert spread < 4.0


@pytest.mark.fault(15)
@pytest.mark.parametrize("leap_s", [DAY_S, -DAY_S])
def test_a_clock_that_leaps_a_day_kills_nobody(leap_s: float) -> None:
    net = network(4, rounds=0)
    net.run_to_round(3)
    net[1].offset += leap_s
    net.run(until=net.now + 30.0)
    net[1].offset -= leap_s
    net.run(until=net.now + 30.0)
    assert dead(net) == []
    assert {reason for node in net.nodes for _, _, reason in node.rejected()} <= {"missing", "late"}
    assert min(node.core.round for node in net.nodes) > 40
    assert len(tables(net)) == 1


@pytest.mark.fault(16)
@pytest.mark.parametrize("peers", [2, 4, 8])
def test_a_process_that_slept_comes_back_and_takes_nobody_for_dead(peers: int) -> None:
    net = network(peers, rounds=0)
    net.run_to_round(3)
    net.sleep(net[1], 20.0)
    net.run(until=net.now + 19.0)
    assert all(node.state_of(net[1]) == "dead" for node in net.nodes if node is not net[1])
    began, before = net.now, net[1].core.round
    net.run(until=net.now + 15.0)
    assert {name for _, name in dead(net)} == {"n1"}
    assert len(tables(net)) == 1
    assert {len(node.of(ViewTaken)[-1].members) for node in net.nodes} == {peers}
    net.run(until=net.now + 10.0)
    assert {node.core.state for node in net.nodes} == {"running"}
    assert not backward(net[1])
    assert net[1].core.round >= max(node.core.round for node in net.nodes) - 2
    assert net[1].core.round > before
    assert began < net.now


@pytest.mark.fault(16)
@pytest.mark.parametrize("back_s", [1.9, 6.3])
@pytest.mark.parametrize("seed", [3, 10])  # in these the new life's hello and the reset of the old one come together
def test_who_slept_while_another_was_killed_and_started_again_does_not_take_the_new_one_for_dead(
    seed: int, back_s: float
) -> None:
    net = network(8, lambda rng: rng.expovariate(200), seed, rounds=0)
    net.run_to_round(3)
    net.run(until=net.now + 0.37 * (seed % 7))
    began = net.now
    net.sleep(net[6], 13.6)
    net.run(until=began + 5.1)
    net.kill(net[2])
    again = net.add(2, at=began + 5.1 + back_s)
    net.run(until=began + 13.5)
    assert all(node.state_of(net[6]) == "dead" for node in net.living if node is not net[6])  # the faults
    assert again.core._table.me.incarnation > net[2].core._table.me.incarnation
    before = len(dead(net))
    net.run(until=began + 40.0)
    assert dead(net)[before:] == []
    assert {node.core.state for node in net.living} == {"running"}
    assert len(tables(net)) == 1


@pytest.mark.fault(16)
def test_a_process_that_slept_while_it_suspected_others_gives_them_their_time_again() -> None:
    net = network(4, rounds=0)
    net.run_to_round(3)
    net.partition(net[1], silent=True)
    net.run(when=lambda: any(net[1].core._watch._detector.suspects(node.peer) for node in net.nodes))
    net.heal()
    net.sleep(net[1], 20.0)
    net.run(until=net.now + 40.0)
    assert {name for _, name in dead(net)} == {"n1"}
    assert len(tables(net)) == 1


@pytest.mark.fault(38)
@pytest.mark.parametrize("of", ["itself", "a stranger", "a crowd"])
def test_an_address_that_points_at_a_third_party_costs_it_one_dial_a_peer_and_no_data(of: str) -> None:
    net = network(4, rounds=0)
    third = net.add(77, network="elsewhere", meets="nobody")
    net.run_to_round(3, *net.nodes[:4])
    strangers = [identity(500 + number) for number in range(20 if of == "a crowd" else 1)]
    lies = [
        signed(Member(one.peer, f"x{number}", "ghost", (third.address,), state="member", since=0), "test", one)
        for number, one in enumerate(strangers)
    ]
    if of == "itself":
        moved = msgspec.structs.replace(net[3].core._table.me, addresses=(third.address,), incarnation=9)
        lies = [signed(moved, "test", net[3].identity)]
    dials: list[tuple[str, str]] = []
    moved_s: list[float] = []
    for node in net.nodes[:4]:
        watch(net, node, third, dials)
    for _ in range(5):
        for node in net.nodes[:3]:
            net.tell(net[3], node, Update(tuple(lies)))
        net.run(until=net.now + 0.015)
        told = {member.peer: member.addresses for member in net[0].core.members}
        if of == "itself" and net[0].core.members[3].incarnation == 9:
            moved_s.append(net.now)
            assert told[net[3].peer] == (third.address,)
        net.run(until=net.now + 20.0)
    if of == "itself":
        assert moved_s  # others believed where it says it is
        assert dials == []  # it has its connections already
    else:
        assert sorted(dials) == sorted((n.name, one.peer) for n in net.nodes[:3] for one in strangers)
        assert all(member.name != "ghost" for node in net.nodes for member in node.core.members)
    assert third.core.members == (third.core._table.me,)


@pytest.mark.fault(38)
def test_a_member_that_points_at_a_third_party_and_goes_sends_nobody_there_for_long_nor_with_data() -> None:
    net = network(4, rounds=0)
    third = net.add(77, network="elsewhere", meets="nobody")
    net.run_to_round(3, *net.nodes[:4])
    moved = msgspec.structs.replace(net[3].core._table.me, addresses=(third.address,), incarnation=9)
    for node in net.nodes[:3]:
        net.tell(net[3], node, Update((signed(moved, "test", net[3].identity),)))
    net.run(until=net.now + 0.015)
    assert {m.peer: m.addresses for m in net[0].core.members}[net[3].peer] == (third.address,)
    dials: list[tuple[str, str]] = []
    for node in net.nodes[:3]:
        watch(net, node, third, dials)
    told: list[object] = []

    def note(sender: Node, receiver: Node, message: object) -> object:
        if receiver is third and not isinstance(message, Hello | Refused):
            told.append(message)
        return message

    net.tamper.append(note)  # type: ignore[arg-type]
    net.kill(net[3])
    began = net.now
    net.run(until=began + 60.0)
    first = Counter(name for name, _ in dials)
    assert set(first) == {"n0", "n1", "n2"}  # it has happened: it is where they look for who is gone
    assert all(count <= 30 for count in first.values())  # once in two or three seconds, or less
    assert all(node.state_of(net[3]) == "dead" for node in net.nodes[:3])
    assert {refused.reason for node in net.nodes[:3] for refused in node.of(Refusal)} <= {
        "wrong peer id",
        "other network",
    }
    assert third.core.members == (third.core._table.me,)
    assert told == []  # beyond the first word


def watch(net: Network, node: Node, third: Node, dials: list[tuple[str, str]]) -> None:
    """Note whom a node dials where the third party is."""
    carry_out = node.core.handle

    def handle(event: object, now: float) -> object:
        effects = carry_out(event, now)  # type: ignore[arg-type]
        dials.extend((node.name, e.key) for e in effects if isinstance(e, Dial) and third.address in e.addresses)
        return effects

    node.core.handle = handle  # type: ignore[method-assign, assignment]


@pytest.mark.fault(34)
def test_a_hello_in_anothers_name_is_refused_and_counted() -> None:
    net = network(3, rounds=0)
    liar = net.add(3, meets="nobody", asked={})

    def pose(sender: Node, receiver: Node, message: object) -> object:
        if sender is liar and isinstance(message, Hello):
            return msgspec.structs.replace(message, me=net[1].core._table.me)
        return message

    net.alter.append(pose)  # type: ignore[arg-type]
    net.at(3.0, lambda: net.feed(liar, Found("", (net[0].address,))))
    net.run(until=10.0)
    [refused] = {r.reason for r in net[0].of(Refusal)}
    assert refused == "wrong peer id"
    assert net[0].of(Refusal)[0].other == liar.peer
    assert [name for judge, name in dead(net) if judge != liar.name] == []
    assert net[0].state_of(liar) == ""


@pytest.mark.fault(12)
def test_who_advertises_the_name_of_connected_ones_does_not_come_between_them() -> None:
    net = network(2, rounds=0, max_wait_s=30.0)
    liar = net.add(3, meets="nobody", asked={})
    net.run_to_round(3, net[0], net[1])
    until = net.now + 30.0

    def lie() -> None:
        net.feed(net[0], Found(net[1].peer, (liar.address,)))
        net.feed(net[1], Found(net[0].peer, (liar.address,)))
        if net.now < until:
            net.at(net.now + 0.5, lie)

    lie()
    net.run(until=net.now + 5.0)
    for end in list(net[0].ends.values()):
        net._end_link(end)
    net.run(until=until + 20.0)
    assert dead(net) == []
    assert net[0].core._links.reachable(net[1].peer)
    assert net[0].of(RoundFinished)[-1].missing == net[1].of(RoundFinished)[-1].missing == 0
    assert all(member.peer != liar.peer for member in net[0].core.members)


@pytest.mark.fault(12)
def test_who_answers_at_anothers_address_is_refused_and_the_other_kept() -> None:
    net = network(2, rounds=0)
    liar = net.add(3, meets="nobody", asked={})
    net.at(3.0, lambda: net.feed(net[0], Found(identity(9).peer, (liar.address,))))
    net.run(until=20.0)
    assert {r.reason for r in net[0].of(Refusal)} == {"wrong peer id"}
    assert all(member.peer != identity(9).peer for member in net[0].core.members)


def test_others_that_skip_rounds_are_none_of_a_split() -> None:
    net = network(4, rounds=0)
    net.run(until=60.0)
    assert not any(node.of(RoundsSkipped) for node in net.nodes)
    assert dead(net) == []
    assert all(a.core._links.reachable(b.peer) for a, b in pairs(net))
