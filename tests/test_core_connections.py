"""Who is connected to whom: dials that cross, and newcomers whose seat, name or network is taken."""

import pytest
from cores import net_found, started
from virtual import Network, Node, network, pairs

from p2pfl.events import PeerJoined, Started
from p2pfl.protocol.detector import Swim
from p2pfl.protocol.messages import Hello, Message


def links_between(a: Node, b: Node) -> int:
    return sum(end.other is not None and end.other.node is b for end in a.ends.values())


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
