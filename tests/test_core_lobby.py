"""The lobby: who begins, with what settings and what model, and when nobody can."""

from cores import started
from virtual import Network, network

from p2pfl.events import Started, ViewTaken, Warned

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
