import random
from collections import Counter

import msgspec
import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from virtual import Network, Node, fingerprint, network, pairs

from p2pfl.events import (
    Finished,
    PeerGone,
    PeerJoined,
    Refusal,
    RoundFinished,
    Started,
    StateChanged,
    ViewTaken,
    Warned,
)
from p2pfl.layout import Vector
from p2pfl.protocol.detector import Swim
from p2pfl.protocol.messages import (
    MAX_ROUND,
    Goodbye,
    Hello,
    Join,
    Member,
    Message,
    Offer,
    Refused,
    Running,
    Start,
    Status,
    Suspicion,
    Update,
    decode,
    encode,
)
from p2pfl.protocol.participant import Close, LinkOpened, Received, Send


def started(net: Network) -> list[tuple[str, ...]]:
    return [node.of(Started)[0].members if node.of(Started) else () for node in net.nodes]


def digests(net: Network) -> set[str]:
    round = max(node.core.round for node in net.living) + 2
    return {node.core._table.view(round).digest for node in net.living}


def links_between(a: Node, b: Node) -> int:
    return sum(end.other is not None and end.other.node is b for end in a.ends.values())


def record(node: Node, **fields: object) -> Member:
    return msgspec.structs.replace(node.core._table.me, **fields)


# Connections


@pytest.mark.parametrize("seed", [*range(12), 70])
def test_simultaneous_dials_end_with_one_link_a_pair_and_lose_no_message(seed: int) -> None:
    patient = Swim(timeout_s=20.0, period_s=40.0)  # messages take half a second each way, or many times that
    net = network(3, lambda rng: rng.expovariate(2), seed, swim=patient, rounds=200, patience=1000.0)
    for index in (0, 1):
        net.later(net[2], net_found(net[index]), 0.0)  # by address, beside the announcement by id
    net.run(until=60.0)
    assert all(links_between(a, b) == links_between(b, a) == 1 for a, b in pairs(net))
    assert all(len(node.of(PeerJoined)) == 2 for node in net.nodes)
    assert all(len(node.of(Started)) == 1 for node in net.nodes)
    assert all(not node.rejected() for node in net.nodes)


def net_found(node: Node) -> object:
    from p2pfl.protocol.participant import Found

    return Found("", (node.address,))


def test_a_peer_is_found_by_its_address_alone_and_introduces_the_others() -> None:
    net = Network(min_peers=3)
    net.add(0, meets="nobody")
    for index in (1, 2):
        net.add(index, at=0.1, meets="nobody")
        net.at(0.2, lambda index=index: net.feed(net[index], net_found(net[0])))
    net.run()
    assert started(net) == [("n0", "n1", "n2")] * 3


def test_another_network_is_refused_and_no_seat_of_it_matters() -> None:
    net = network(2, rounds=3)
    stranger = net.add(1, name="stranger", who=100, network="elsewhere", wait_s=60.0)
    net.run()
    assert [node.rounds() for node in net.nodes] == [[0, 1, 2], [0, 1, 2], []]
    assert stranger.done is not None
    assert "no peer was found within 60 s" in stranger.done.error
    assert all(member.name != "stranger" for node in net.nodes[:2] for member in node.core.members)


@pytest.mark.parametrize("ids", [(100, 101), (101, 100)])
def test_of_two_with_one_seat_the_one_that_came_later_is_refused_and_told(ids: tuple[int, int]) -> None:
    net = Network(min_peers=2)
    for number, who in enumerate(ids):
        net.add(3, name=f"n{number}", who=who, at=1.0 * number, wait_s=60.0)
    net.add(0, at=2.0)
    net.run()
    first, second, third = net.nodes
    assert second.done is not None
    assert second.done.error == "part 4 is taken by n0 already; choose another --part"
    assert first.rounds() == third.rounds() == [0, 1, 2, 3, 4]


def test_a_duplicate_seat_in_a_running_network_costs_the_newcomer() -> None:
    net = network(2, rounds=20)
    late = net.add(1, at=3.0, who=100, name="late", asked={}, wait_s=60.0)
    net.run()
    assert late.done is not None
    assert "part 2 is taken by n1" in late.done.error
    assert all(node.rounds() == list(range(20)) for node in net.nodes[:2])


def test_a_duplicate_identity_costs_the_newcomer() -> None:
    net = network(2, rounds=20)
    twin = net.add(1, at=3.0, name="twin", asked={}, wait_s=60.0)
    net.run()
    assert twin.done is not None
    assert "another process resumed the same run folder" in twin.done.error
    assert all(node.rounds() == list(range(20)) for node in net.nodes[:2])


def test_equal_names_are_shown_with_the_beginning_of_the_id() -> None:
    net = Network(min_peers=2, rounds=1)
    for index in range(2):
        net.add(index, name="laptop")
    net.run()
    assert started(net)[0] == tuple(f"laptop-{node.peer[:4]}" for node in net.nodes)


def test_a_run_that_began_between_hello_and_hello_is_passed_on() -> None:
    net = Network(min_peers=2, rounds=3)
    net.add(0)
    net.add(2)
    third = net.add(1, meets="nobody", asked={})
    held: list[Message] = []

    def hold(sender: Node, receiver: Node, message: Message) -> Message | None:
        if sender is third and isinstance(message, Hello):
            held.append(message)
        return None if sender is third or (sender is net[1] and receiver is third) else message

    net.alter.append(hold)
    net.at(0.0, lambda: net.feed(third, net_found(net[0])))
    net.run(until=0.5)  # two have begun; what the first one told the third in its hello was older than that
    assert [node.core.state for node in net.nodes] == ["running", "running", "lobby"]
    net.alter.clear()
    net.tell(third, net[0], held[0])
    net.run()
    assert third.rounds() == [2]
    assert third.done is not None
    assert third.done.error == ""


# The lobby


def test_the_start_waits_for_enough_peers_and_the_lowest_seat_begins() -> None:
    net = Network(min_peers=3)
    net.add(0)
    net.add(1, at=5.0)
    net.run(until=20.0)
    assert [node.core.state for node in net.nodes] == ["lobby", "lobby"]
    net.add(2, at=20.0)
    net.run()
    assert started(net) == [("n0", "n1", "n2")] * 3
    assert min(time for time, event in net[0].events if isinstance(event, Started)) > 20.0
    assert net.sent["Start"] == 2  # by one peer, to two


def test_a_slow_builder_is_waited_for() -> None:
    net = network(3)
    net[0].prepare_s = 30.0
    net.run()
    assert started(net) == [("n0", "n1", "n2")] * 3
    assert all(node.rounds() == [0, 1, 2, 3, 4] for node in net.nodes)


def test_explicit_settings_beat_defaults_whatever_the_seat() -> None:
    net = Network()
    net.add(0, asked={})
    net.add(1, asked={"rounds": 2, "topology": "complete"})
    net.run()
    for node in net.nodes:
        assert node.of(Started)[0].settings == {"rounds": 2, "topology": "complete"}
        assert node.rounds() == [0, 1]
        assert node.of(ViewTaken)[0].topology == "complete"


def test_two_wishes_that_contradict_each_other_stop_the_higher_seat_with_both_values() -> None:
    net = Network()
    net.add(0, asked={"rounds": 3})
    net.add(1, asked={"rounds": 7})
    net.add(2, asked={})
    net.run()
    assert net[1].done is not None
    assert net[1].done.error == (
        "n0 asked for rounds=3, you asked for rounds=7; leave out --rounds, or choose another --network"
    )
    assert net[0].rounds() == net[2].rounds() == [0, 1, 2]


def test_who_comes_later_and_asks_for_something_else_is_told_what_runs() -> None:
    net = network(2, rounds=20)
    late = net.add(2, at=3.0, asked={"rounds": 7})
    net.run()
    assert late.done is not None
    assert late.done.error == (
        "network 'test' runs with rounds=20, you asked for rounds=7; leave out --rounds, or choose another --network"
    )


def test_a_peer_whose_initial_model_differs_takes_the_starters() -> None:
    net = Network(min_peers=3, rounds=4)
    for index in range(3):
        net.add(index, init=[7.0, 7.0, 7.0] if index else None)
    other = network(3, rounds=4)
    net.run()
    other.run()
    assert [node.rounds() for node in net.nodes] == [[0, 1, 2, 3]] * 3
    assert [node.numbers() for node in net.nodes] == [node.numbers() for node in other.nodes]
    assert all(not node.rejected() for node in net.nodes)


def test_a_wait_without_enough_peers_ends_with_an_error() -> None:
    net = Network(min_peers=3)
    net.add(0, wait_s=30.0)
    net.add(1, wait_s=40.0)
    net.run()
    assert net[0].done is not None
    assert net[0].done.error == (
        "only 1 of the peers needed were found within 30 s; start p2pfl on another machine, or give --peer HOST:PORT; "
        "p2pfl doctor says what may be in the way"
    )
    assert net[1].done is not None
    assert net[1].done.error.startswith("no peer was found within 40 s")


def test_a_wait_is_over_once_a_run_is_joined_however_long_building_takes() -> None:
    net = network(2, rounds=40)
    late = net.add(2, at=3.0, asked={}, wait_s=5.0, prepare_s=10.0)
    net.run()
    assert late.done is not None
    assert late.done.error == ""
    assert late.rounds()[-1] == 39


def test_settings_that_a_passing_peer_asked_for_are_built_anew_without_it() -> None:
    net = Network()
    net.add(0, asked={"min_peers": 3})
    passing = net.add(1, asked={"rounds": 2})
    net.at(2.0, lambda: net.stop(passing))
    net.add(2, at=3.0, asked={})
    net.add(3, at=3.0, asked={})
    net.run()
    assert net[0].of(Started)[0].settings == {"min_peers": 3}
    assert [node.rounds() for node in net.nodes] == [[0, 1, 2, 3, 4], [], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]


def test_peers_on_the_same_data_are_warned() -> None:
    net = Network(min_peers=2, rounds=1)
    for index in range(2):
        net.add(index, data="the same")
    net.run()
    assert [node.of(Warned)[0].text for node in net.nodes] == [
        f"{name} trains on the same data as this peer; give each its own with --part I/N or --data"
        for name in ("n1", "n0")
    ]


def test_a_network_resumes_from_the_latest_checkpoint() -> None:
    net = Network(min_peers=3, rounds=8)
    for index in range(3):
        net.add(index, start_round=[5, 6, 5][index], init=[float(index)] * 3)
    net.run()
    assert [node.rounds() for node in net.nodes] == [[6, 7]] * 3


# Coming and going


@pytest.mark.parametrize("silent", [False, True])
def test_a_peer_killed_in_a_round_leaves_a_smaller_ring(silent: bool) -> None:
    net = network(5, rounds=30)
    net.run_to_round(3)
    net.run(until=net.now + 0.5)
    net.kill(net[2], silent=silent)
    net.run(until=net.now + 30.0)
    survivors = net.living
    assert len(survivors) == 4
    assert len(digests(net)) == 1
    taken = {(view.round, view.members) for node in survivors for view in node.of(ViewTaken)[1:]}
    [(round, members)] = taken  # all at the same, announced, later round
    assert members == ("n0", "n1", "n3", "n4")
    assert round > 4
    assert [gone.reason for node in survivors for gone in node.of(PeerGone)] == ["dead"] * 4
    assert net[1].mixes[round].parties == (net[0].peer, net[3].peer)
    net.run()
    for node in survivors:
        assert node.rounds() == list(range(30))
        assert {reason for _, _, reason in node.rejected()} <= {"missing", "broken off", "late"}


def test_a_joiner_takes_a_snapshot_and_takes_part_and_nobody_goes_back() -> None:
    net = network(3, rounds=15)
    net.run_to_round(5)
    late = net.add(3, at=net.now, asked={})
    net.run()
    first = late.of(Started)[0].round
    assert first in (7, 8)
    assert late.rounds() == list(range(first, 15))
    assert late.trains[first].vector.tolist() in [node.saves[first].tolist() for node in net.nodes[:3]]
    for node in net.nodes[:3]:
        assert node.rounds() == list(range(15))
        [view] = node.of(ViewTaken)[1:]
        assert (view.round, view.members) == (first, ("n0", "n1", "n2", "n3"))
    assert all(not node.rejected() for node in net.nodes)
    assert late.peer in net[0].mixes[first].parties


def test_a_joiner_waits_for_its_round_however_long_rounds_are() -> None:
    net = network(3, rounds=12)
    for node in net.nodes:
        node.train_s = lambda round: 60.0
    net.run_to_round(2)
    late = net.add(3, at=net.now + 1.0, asked={}, train_s=lambda round: 60.0)
    net.run()
    assert late.rounds() == list(range(4, 12))
    assert [node.of(ViewTaken)[1].round for node in net.nodes[:3]] == [4, 4, 4]
    assert all(not node.rejected() for node in net.nodes)


def test_a_joiner_whose_helper_dies_asks_somebody_else() -> None:
    net = network(3, rounds=30)
    net.run_to_round(3)
    late = net.add(3, at=net.now, asked={})
    asked: list[Node] = []

    def mark(sender: Node, receiver: Node, message: Message) -> Message | None:
        if sender is late and isinstance(message, Join) and not asked:
            asked.append(receiver)
            net.at(net.now, lambda: net.kill(receiver))
        return message

    net.alter.append(mark)
    net.run()
    assert late.rounds()[-1] == 29
    assert late.of(Started)[0].round < 20


def test_a_snapshot_that_is_not_finite_is_asked_for_elsewhere() -> None:
    net = network(3, rounds=60)

    def spoil(owner: Node, fetcher: Node, offer: Offer, vector: Vector) -> Vector | str:
        bad = offer.kind == "snapshot" and owner is not net[1]
        return torch.tensor([float("nan")] * 3) if bad else vector

    net.spoil.append(spoil)
    net.run_to_round(3)
    late = net.add(3, at=net.now, asked={})
    net.run()
    assert late.done is not None
    assert late.done.error == ""
    assert all(torch.isfinite(vector).all() for vector in late.saves.values())
    assert late.rounds()


def test_a_joiner_at_the_very_end_leaves_with_the_final_model() -> None:
    net = network(3, rounds=6)
    net.run_to_round(5)
    late = net.add(3, at=net.now, asked={})
    net.run()
    assert late.rounds() == []
    assert late.done is not None
    assert (late.done.round, late.done.error) == (6, "")
    assert late.numbers() in [node.numbers() for node in net.nodes[:3]]


def test_a_joiner_without_anybody_left_gives_up() -> None:
    net = network(2, rounds=50)
    net.run_to_round(2)
    late = net.add(2, at=net.now, asked={}, prepare_s=5.0)
    net.run(until=net.now + 2.0)
    for node in net.nodes[:2]:
        net.kill(node)
    net.run()
    assert late.done is not None
    assert "the run has ended without this peer" in late.done.error


def test_leaving_is_seen_as_leaving_and_not_as_death() -> None:
    net = network(4, rounds=12)
    net.run_to_round(4)
    net.stop(net[3])
    net.run()
    assert net[3].of(Finished)[0].reason == "stopped"
    for node in net.nodes[:3]:
        assert node.rounds() == list(range(12))
        assert next((gone.name, gone.reason) for gone in node.of(PeerGone)) == ("n3", "left")
        assert all(event.wait_s < 1.0 for event in node.of(RoundFinished))


def test_who_left_can_come_back_from_the_same_folder() -> None:
    net = network(3, rounds=25)
    net.run_to_round(4)
    net.stop(net[2])
    again = net.add(2, at=net.now + 3.0, asked={})
    net.run()
    assert again.rounds() == list(range(again.rounds()[0], 25))
    assert net[0].of(ViewTaken)[-1].members == ("n0", "n1", "n2")
    assert again.peer in net[0].mixes[24].parties


@pytest.mark.fault(37)
@pytest.mark.parametrize("told", [(0, 2, 3), (0, 2), (3,)])
def test_a_liars_claim_that_a_live_peer_is_dead_changes_nothing(told: tuple[int, ...]) -> None:
    net, plain = network(4, rounds=20), network(4, rounds=20)
    net.run_to_round(4)
    before = net[3].core._table.me.incarnation
    for index in told:
        net.tell(net[1], net[index], Update((record(net[3], state="dead", until=6),)))
    net.run(until=net.now + 3.0)
    assert net[3].core._table.me.incarnation == before + 1  # it heard of it, and contradicted
    assert [node.state_of(net[3]) for node in net.nodes] == ["member"] * 4
    plain.run()
    net.run()
    assert [node.numbers() for node in net.nodes] == [node.numbers() for node in plain.nodes]
    assert not any(node.of(PeerGone)[:1] and node.of(PeerGone)[0].reason == "dead" for node in net.nodes)


@pytest.mark.fault(37)
def test_a_liar_who_goes_on_claiming_costs_a_message_every_other_second() -> None:
    net = network(4, rounds=0)
    net.run_to_round(4)
    began, before = net.now, net[3].core._table.me.incarnation

    def lie() -> None:
        net.tell(net[1], net[0], Update((record(net[3], state="dead", until=6),)))
        net.tell(net[1], net[3], Suspicion(net[3].peer, net[3].core._table.me.incarnation))
        if net.now < began + 20.0:
            net.at(net.now + 0.05, lie)

    lie()
    net.run(until=began + 22.0)
    assert 5 <= net[3].core._table.me.incarnation - before <= 11
    assert not any(node.of(PeerGone) for node in net.nodes)
    assert len(digests(net)) == 1


@pytest.mark.fault(37)
@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ({"incarnation": 1 << 39}, "bad signature"),
        ({"addresses": ("6.6.6.6:1",), "incarnation": 1}, "bad signature"),
        ({"state": "left", "until": 5}, "bad signature"),
        ({"state": "member", "until": 5}, "foreign record"),
    ],
)
def test_no_liar_raises_another_peers_incarnation_moves_it_or_makes_it_leave(
    lie: dict[str, object], reason: str
) -> None:
    net, plain = network(4, rounds=20), network(4, rounds=20)
    net.run_to_round(4)
    before = [net[index].core._links.link_of(net[1].peer) for index in (0, 2, 3)]
    for index in (0, 2, 3):
        net.tell(net[1], net[index], Update((record(net[3], **lie),)))
    net.run(until=net.now + 0.05)
    assert {r.reason for node in net.nodes for r in node.of(Refusal)} == {reason}
    after = [net[index].core._links.link_of(net[1].peer) for index in (0, 2, 3)]
    assert all(one != other for one, other in zip(before, after, strict=True))  # it costs the liar its connection
    plain.run()
    net.run()
    assert [node.numbers() for node in net.nodes] == [node.numbers() for node in plain.nodes]
    assert record(net[3]).incarnation == record(plain[3]).incarnation


@pytest.mark.fault(37)
@pytest.mark.parametrize("ahead", [1, 1 << 16, MAX_ROUND - (1 << 17)])
def test_a_suspicion_of_another_incarnation_than_ones_own_is_nobodys_word(ahead: int) -> None:
    net = network(4, rounds=0)
    net.run_to_round(4)
    before = net[3].core._table.me
    net.tell(net[1], net[3], Suspicion(net[3].peer, before.incarnation + ahead))
    net.run(until=net.now + 3.0)
    assert net[3].core._table.me == before
    net.partition(net[3], silent=True)  # whose number was burnt could not come back from that
    net.run(until=net.now + 15.0)
    assert [node.state_of(net[3]) for node in net.nodes[:3]] == ["dead"] * 3
    net.heal()
    net.run(until=net.now + 20.0)
    assert [node.state_of(net[3]) for node in net.nodes] == ["member"] * 4


def test_who_has_refuted_for_a_day_and_a_half_goes_on_with_the_numbers_of_its_next_start() -> None:
    net = network(4, rounds=0)
    net.run_to_round(4)
    me = net[3].core._table.change(net[3].peer, incarnation=(1 << 16) - 1)
    for node in net.nodes[:3]:
        net.tell(net[3], node, Update((me,)))
    net.run(until=net.now + 1.0)
    net.tell(net[1], net[0], Update((record(net[3], state="dead", until=6),)))
    net.run(until=net.now + 3.0)
    assert {node.core._table.get(net[3].peer).incarnation for node in net.nodes} == {1 << 16}  # type: ignore[union-attr]
    net.kill(net[3])
    net.run(until=net.now + 10.0)
    again = net.add(3, at=net.now, asked={})  # which counts its starts alone
    assert again.core._table.me.incarnation == 1 << 16
    net.run(until=net.now + 20.0)
    assert [node.state_of(again) for node in (*net.nodes[:3], again)] == ["member"] * 4
    assert again.core.state == "running"


@pytest.mark.fault(37)
@pytest.mark.parametrize("lie", [{"since": 1 << 39}, {"since": 40}, {"state": "dead", "until": 1 << 39}])
def test_no_liar_puts_a_live_peer_off_however_often_it_says_so(lie: dict[str, object]) -> None:
    net = network(4, rounds=0)
    net.run_to_round(4)
    began = net.now

    def tell() -> None:
        for index in (0, 2, 3):
            net.tell(net[1], net[index], Update((record(net[3], **lie),)))
        if net.now < began + 10.0:
            net.at(net.now + 0.1, tell)

    tell()
    net.run(until=began + 12.0)
    assert 1 <= net[3].core._table.me.incarnation <= 6  # it heard of it, and contradicts at most every other second
    assert sum(event.missing for node in net.nodes for event in node.of(RoundFinished)) == 0
    assert all(set(node.of(ViewTaken)[-1].members) == {"n0", "n1", "n2", "n3"} for node in net.nodes)
    assert len(digests(net)) == 1


@pytest.mark.fault(37)
def test_no_liar_keeps_the_dead_in_the_views_of_others() -> None:
    net = network(4, rounds=0)
    net.run_to_round(4)
    known = record(net[3])
    net.kill(net[3], silent=True)
    net.run(when=lambda: all(node.state_of(net[3]) == "dead" for node in net.nodes[:3]))
    for node in (net[0], net[2]):
        net.tell(net[1], node, Update((msgspec.structs.replace(known, state="dead", until=1 << 39),)))
    net.run(until=net.now + 10.0)
    assert set(net[0].of(ViewTaken)[-1].members) == {"n0", "n1", "n2"}
    assert net[0].core._table.get(net[3].peer).until < 40  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("waits_in", ["lobby", "joining"])
def test_who_waits_takes_no_round_that_the_run_cannot_have_reached(waits_in: str) -> None:
    net = network(3, rounds=0)
    net.run_to_round(4)
    late = net.add(3, at=net.now, asked={}, prepare_s=2.0 if waits_in == "lobby" else 0.1)
    net.run(when=lambda: late.core.state == waits_in and len(late.core._links.peers) == 3)
    net.tell(net[1], late, Update((record(late, state="member", since=1 << 39),)))
    net.run(until=net.now + 10.0)
    assert late.core.state == "running"
    assert late.rounds()[0] < 20
    assert late.peer in net[0].mixes[net[0].core.round - 1].parties


@pytest.mark.parametrize("reason", ["duplicate identity", "duplicate seat", "no common version"])
@pytest.mark.parametrize("greeted", [True, False])
def test_a_refusal_ends_nobody_that_waits_and_says_nothing_of_its_own(reason: str, greeted: bool) -> None:
    net = network(2, min_peers=3, rounds=4)
    net.run(until=2.0)
    assert {node.core.state for node in net.nodes} == {"lobby"}
    refusal = Refused(reason, "\x1b[2J rm -rf")
    if greeted:
        net.tell(net[1], net[0], refusal)
    else:
        core = net[0].core
        core.handle(LinkOpened(900), net.now)
        told = core.handle(Received(900, refusal), net.now)
        assert Close(900, "refused") in told
        assert "rm" not in str(told)
    net.run(until=net.now + 1.0)
    assert net[0].done is None
    assert "rm" not in str(net[0].events)
    net.add(2, at=net.now)
    net.run()
    assert [node.rounds() for node in net.nodes] == [[0, 1, 2, 3]] * 3


@pytest.mark.parametrize("secure", [True, False])
def test_a_hello_in_ones_seat_ends_no_running_peer_and_nobody_who_is_known_to_others(secure: bool) -> None:
    net = network(2, min_peers=3, rounds=0)
    net.secure = secure
    liar = net.add(0, name="liar", who=100, at=1.0, meets="nobody")

    def pose(sender: Node, receiver: Node, message: Message) -> Message:
        if isinstance(message, Hello) and sender is liar:
            me = msgspec.structs.replace(message.me, state="member", since=0)
            return msgspec.structs.replace(message, me=me, waited_s=1e9)
        return message

    net.alter.append(pose)
    net.at(2.0, lambda: net.feed(liar, net_found(net[0])))
    net.run(until=3.0)
    assert any(member.peer == liar.peer for member in net[0].core.members) or net[0].of(Refusal)
    assert net[0].core.state == "lobby"
    net.kill(liar)
    net.add(2, at=net.now)
    net.run(when=lambda: all(node.core.state == "running" for node in net.living))
    again = net.add(0, name="again", who=101, at=net.now, meets="nobody")
    liar = again
    net.run(until=net.now + 0.5)
    net.feed(again, net_found(net[0]))
    net.run(until=net.now + 3.0)
    assert net[0].core.state == "running"
    assert net[0].done is None


def test_a_rumor_of_a_peers_last_round_does_not_stop_it() -> None:
    net = network(3, rounds=20)
    net.run_to_round(4)
    for node in (net[0], net[2]):
        net.tell(net[1], node, Update((record(net[2], until=6),)))
    net.run()
    assert net[2].rounds()[-1] == 19
    assert all(node.done is not None and node.done.error == "" for node in net.nodes)


def test_a_round_granted_anew_to_a_running_peer_is_contradicted() -> None:
    net = network(3, rounds=20)
    net.run_to_round(4)
    for node in (net[0], net[2]):
        net.tell(net[1], node, Update((record(net[2], since=MAX_ROUND),)))
    net.run()
    assert net[2].rounds() == list(range(20))
    assert net[2].peer in net[0].mixes[19].parties


def test_a_rumor_of_death_that_reaches_a_finished_peer_does_not_send_it_back() -> None:
    net = network(3, rounds=4)
    net[0].train_s = lambda round: 2.0
    net.run(when=lambda: net[2].core.state == "finished")
    model = net[2].numbers()
    net.tell(net[1], net[2], Update((record(net[2], state="dead", until=4),)))
    net.run()
    assert net[2].numbers() == model
    assert net[2].done is not None
    assert net[2].done.error == ""


def test_a_lying_round_number_makes_no_message_that_cannot_be_read() -> None:
    net = network(4, rounds=6)
    net.run_to_round(2)
    net.tell(net[3], net[0], Status(MAX_ROUND))
    net.run(until=net.now + 0.5)
    net.kill(net[2])
    net.run()
    assert all(node.rounds() == list(range(6)) for node in (net[0], net[1], net[3]))


def test_a_topology_without_a_form_of_the_least_number_of_peers_is_refused_by_all_of_them() -> None:
    net = network(5, rounds=2, topology="torus")
    net.run()
    for node in net.nodes:
        assert node.rounds() == []
        assert node.done is not None
        assert node.done.error.startswith("what was asked for cannot begin with 5 peers: 5 is prime, so there is no ")
        assert node.done.error.endswith("; choose --topology, --mixing or --min-peers anew")


def test_a_topology_without_a_form_of_those_present_is_refused_by_who_would_begin() -> None:
    net = Network(topology="pairs", min_peers=2, rounds=3)
    net.add(0, prepare_s=1.0)
    for index in (1, 2):
        net.add(index)
    net.run()
    assert net[0].done is not None
    assert net[0].done.error.startswith("what was asked for cannot begin with 3 peers: pairs need an even number")
    assert [node.rounds() for node in net.nodes] == [[], [0, 1, 2], [0, 1, 2]]  # two can


def test_what_only_the_wishes_of_others_make_impossible_is_warned_of_and_waited_out() -> None:
    net = Network(rounds=2)
    net.add(0, asked={"min_peers": 3, "rounds": 2})
    net.add(1, asked={"topology": "pairs"})
    net.run(until=5.0)
    assert [node.core.state for node in net.nodes] == ["lobby", "lobby"]
    for node in net.nodes:
        assert [event.text.partition(" need")[0] for event in node.of(Warned)] == [
            "what was asked for cannot begin with 3 peers: pairs"
        ]
    net.stop(net[1])
    for index in (2, 3):
        net.add(index, at=10.0, asked={})
    net.run()
    assert [node.rounds() for node in net.nodes] == [[0, 1], [], [0, 1], [0, 1]]


def test_a_least_number_of_peers_beyond_all_bounds_builds_nothing() -> None:
    net = Network(topology="complete", min_peers=1 << 31)
    net.add(0, wait_s=5.0)
    net.run()
    assert net[0].done is not None
    assert net[0].done.error.startswith("no peer was found within 5 s")


def test_a_partition_heals_into_one_view() -> None:
    net = network(6, rounds=0)
    net.run_to_round(3)
    net.partition(net[4], net[5])
    net.run(until=net.now + 30.0)
    assert {node.of(ViewTaken)[-1].members for node in net.nodes[:4]} == {("n0", "n1", "n2", "n3")}
    assert {node.of(ViewTaken)[-1].members for node in net.nodes[4:]} == {("n4", "n5")}
    net.heal()
    net.run(until=net.now + 60.0)
    assert len(digests(net)) == 1
    assert {node.of(ViewTaken)[-1].members for node in net.nodes} == {("n0", "n1", "n2", "n3", "n4", "n5")}
    rounds = [node.core.round for node in net.nodes]
    assert max(rounds) - min(rounds) <= 2
    assert all(len(node.mixes[node.rounds()[-1]].parties) == 2 for node in net.nodes)


RUN_OVER = "the run has ended without this peer: for 60 s no member could be reached"


@settings(max_examples=25, deadline=None, phases=(Phase.explicit, Phase.generate))
@example(162, 3, ["j", "k", "m"])
@given(st.integers(0, 1 << 30), st.integers(3, 6), st.lists(st.sampled_from("kmsfj"), max_size=3))
def test_views_are_equal_once_it_is_quiet(seed: int, peers: int, fates: list[str]) -> None:
    rng = random.Random(seed)
    net = network(peers, lambda r: r.expovariate(20), seed, rounds=0, min_peers=2)
    for node in net.nodes:
        node.train_s = lambda round: 1.0 + round % 3
    net.run(until=10.0)
    assert any(node.core.state == "running" for node in net.nodes)
    for count, fate in enumerate(fates):
        if not net.living:
            break
        node = rng.choice(net.living)
        if fate == "k":
            net.kill(node)
        elif fate == "m":
            net.kill(node, silent=True)
        elif fate == "s":
            net.stop(node)
        elif fate == "f":
            dead = record(node, state="dead", until=node.core.round + 1)
            for other in list(net.living):
                if other is not node:
                    net.later(other, net_received(other, Update((dead,))))
        else:
            net.add(peers + count, at=net.now, asked={}, train_s=net[0].train_s)
        net.run(until=net.now + rng.uniform(0, 5))
    net.run(until=net.now + 150.0)
    if not any(node.core.state == "running" for node in net.living):
        # Whoever had the model is gone, and with them the run: those who came later say so and end.
        assert all(node.done is not None or not node.alive for node in net.nodes)
        assert {node.done.error for node in net.nodes if node.done is not None} <= {"", RUN_OVER}
        return
    assert len(digests(net)) == 1
    assert {node.core.state for node in net.living} == {"running"}
    assert {len(node.of(ViewTaken)[-1].members) for node in net.living} == {len(net.living)}
    assert all(not node.rejected() or max(node.rejected())[0] < node.core.round - 8 for node in net.living)


def net_received(node: Node, message: Message) -> object:
    from p2pfl.protocol.participant import Received

    return Received(next(iter(node.ends)), decode(encode(message)))


# Observers and the end


def test_a_peer_with_another_model_stays_visible_is_told_and_ends_with_the_network() -> None:
    net = network(3, rounds=8)
    other = net.add(3, at=2.0, asked={}, layout="four")
    net.run(until=5.0)
    assert other.core.state == "observer"
    assert net[0].state_of(other) == "observer"
    [warning] = other.of(Warned)
    assert warning.text == (
        "this peer's model differs from the network's (this peer's four [3] float32, the network's three [3] float32): "
        "it stays visible and is not averaged"
    )
    net.tell(net[1], other, Update((record(other, state="dead"),)))
    net.run(until=6.0)
    assert net[0].state_of(other) == "observer"
    net.run()
    assert other.rounds() == []
    assert other.done is not None
    assert other.done.error == ""
    assert all(node.rounds() == list(range(8)) for node in net.nodes[:3])
    assert net.now < 700


def test_a_finished_peer_serves_its_last_share_until_its_neighbors_are_done() -> None:
    net = network(3, rounds=2, patience=100.0)
    net[2].train_s = lambda round: 30.0
    fetches: list[float] = []

    def slow(owner: Node, fetcher: Node, offer: Offer, vector: Vector) -> Vector | str:
        if fetcher is net[2] and owner is net[0] and offer.round == 1 and len(fetches) < 2:
            fetches.append(net.now)
            return "broken off"
        return vector

    net.spoil.append(slow)
    net.run()
    left = {node.name: time for node in net.nodes for time, e in node.events if isinstance(e, Finished)}
    assert fetches
    assert all(not node.rejected() for node in net.nodes)
    assert left["n0"] >= max(t for t, e in net[2].events if isinstance(e, RoundFinished))


def test_a_finished_peer_leaves_after_a_minute_at_most() -> None:
    net = network(3, rounds=1)
    net[2].train_s = lambda round: 500.0
    net.run()
    for node in net.nodes[:2]:
        states = {e.state: time for time, e in node.events if isinstance(e, StateChanged)}
        assert states["left"] - states["finished"] == pytest.approx(60.0)


def test_nothing_follows_the_end() -> None:
    net = network(3, rounds=0)
    net.run_to_round(3)
    net.run(until=net.now + 0.9)
    core = net[0].core
    net.stop(net[0])  # the driver asserts that Done is the last effect
    assert core.state == "left"
    assert core.next_deadline() is None
    assert core.handle(net_found(net[1]), net.now) == []  # type: ignore[arg-type]


# What others say


def test_one_who_introduces_a_crowd_with_many_addresses_makes_no_message_too_long() -> None:
    net = network(3, rounds=8)
    net.run_to_round(2)
    crowd = [Member(f"crowd{number:05d}", f"x{number}", "n", ("h" * 120,) * 16) for number in range(300)]
    for begin in range(0, 300, 100):
        net.tell(net[2], net[0], Update(tuple(crowd[begin : begin + 100])))
    late = net.add(3, at=net.now + 0.1, asked={})
    net.run()
    assert [node.rounds() for node in net.nodes[:3]] == [list(range(8))] * 3
    assert late.rounds()[-1] == 7


@pytest.mark.parametrize(
    "message",
    [
        Refused("duplicate seat", "whatever"),
        Refused("no such reason", "whatever"),
        Start(Running({"rounds": 99}, "f", "l", (), 0), "init", ()),
        Join("four", "data"),
        Offer("snapshot", 3, "x", 100, "three", fingerprint({})),
        Goodbye(Member("somebody0", "9", "n9", state="left")),
        Status(3, True),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_message_out_of_turn_harms_nobody(message: Message) -> None:
    net, plain = network(4, rounds=8), network(4, rounds=8)
    net.run_to_round(3)
    net.tell(net[3], net[0], message)
    net.run()
    plain.run()
    assert [node.numbers() for node in net.nodes[:3]] == [node.numbers() for node in plain.nodes[:3]]
    assert all(node.rounds() == list(range(8)) for node in net.nodes[:3])


def test_whoever_does_not_begin_with_a_hello_is_refused() -> None:
    net = network(1)
    core = net.add(5, meets="nobody").core
    core.handle(LinkOpened(900), 0.0)
    effects = core.handle(Received(900, Status(0)), 0.0)
    assert effects[1] == Send(900, Refused("no hello", ""))
    core.handle(LinkOpened(901), 0.0)
    future = Hello((7, 9), "test", "i", Member("somebody0", "9", "n9"), 0, {})
    reasons = [e.message.reason for e in core.handle(Received(901, future), 0.0) if isinstance(e, Send)]  # type: ignore[union-attr]
    assert reasons == ["no common version"]


def test_rejections_are_counted_by_few_fixed_phrases() -> None:
    net = network(6, lambda rng: rng.expovariate(2), 4, rounds=20)
    net.at(15.0, lambda: net.kill(net[3]))
    net.at(20.0, lambda: net.partition(net[1]))
    net.at(30.0, net.heal)
    net.run()
    reasons: Counter[str] = Counter()
    for node in net.nodes:
        reasons += Counter(reason for _, _, reason in node.rejected().elements())
    assert set(reasons) <= {"missing", "late", "view mismatch", "broken off", "gone", "foreign"}
