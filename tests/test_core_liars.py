"""What one member that lies can do to the beginning of a run, and to what others have to send."""

import msgspec
from virtual import Network, fingerprint, identity, network

from p2pfl.events import RoundFinished, Started, ViewTaken
from p2pfl.protocol.dial_budget import BURST, PER_S
from p2pfl.protocol.messages import Join, Member, Offer, Running, Start
from p2pfl.protocol.participant import Dial, Effect
from p2pfl.protocol.records import signed

ELSEWHERE = "10.9.9.9:1"


def ghosts(number: int, start: int) -> tuple[Member, ...]:
    """Records of members that there are not, each under its own signature."""
    ids = [identity(1000 + index) for index in range(number)]
    return tuple(
        signed(Member(one.peer, f"0{index}", f"g{index}", (ELSEWHERE,), 0, "member", start), "test", one)
        for index, one in enumerate(ids)
    )


def count_dials(net: Network) -> list[float]:
    """When any peer from now on dials the address of the ghosts."""
    dials: list[float] = []
    carry_out = net._carry_out

    def counted(node: object, effect: Effect) -> None:
        if isinstance(effect, Dial) and ELSEWHERE in effect.addresses:
            dials.append(net.now)
        carry_out(node, effect)  # type: ignore[arg-type]

    net._carry_out = counted  # type: ignore[method-assign, assignment]
    return dials


def test_of_a_start_those_are_believed_that_there_is_a_connection_to() -> None:
    net = network(5, rounds=12, min_peers=6)
    net.run(until=20.0)
    liar, honest = net[4], net.nodes[:4]
    prepared = liar.core._lobby.prepared
    assert prepared is not None
    running = Running(prepared.settings, prepared.fingerprint, prepared.layout, prepared.tensors, 0)
    here = [msgspec.structs.replace(node.core._table.me, state="member", since=0) for node in net.nodes]
    dials = count_dials(net)
    for node in honest:
        net.tell(liar, node, Start(running, prepared.init, (*here, *ghosts(100, 0))))
    net.run(until=80.0)
    assert [node.of(Started)[0].members for node in honest] == [("n0", "n1", "n2", "n3", "n4")] * 4
    assert [node.rounds() for node in honest] == [list(range(12))] * 4
    assert all(member.name[0] == "n" for node in honest for member in node.core.members)
    assert 0 < len(dials) <= len(honest) * (BURST + PER_S * 60.0)


def test_word_of_a_start_in_a_run_that_is_on_counts_no_more_than_any_hearsay() -> None:
    net = network(5, rounds=0)
    net.run_to_round(3)
    liar, honest = net[4], net.nodes[:4]
    run = liar.core._lobby.running
    assert run is not None
    dials, views = count_dials(net), [len(node.of(ViewTaken)) for node in honest]
    for node in honest:
        net.tell(liar, node, Start(run, "another", ghosts(100, 0)))
    net.run(until=net.now + 60.0)
    assert [len(node.of(ViewTaken)) for node in honest] == views
    assert all(len(node.core.members) == 5 for node in honest)
    assert all(not any(event.missing for event in node.of(RoundFinished)) for node in honest)
    assert 0 < len(dials) <= len(honest) * (BURST + PER_S * 60.0)


def test_offers_of_another_view_draw_the_table_now_and_then() -> None:
    net = network(5, rounds=0)
    net.run_to_round(3)
    liar, told = net[4], net.sent["Update"]
    began, round = net.now, net[0].core.round
    for number in range(200):
        net.tell(liar, net[0], Offer("share", round, f"{number}", 100, "three", fingerprint(liar.asked), "other view"))
    net.run(until=began + 3.0)
    assert (round, liar.peer, "view mismatch") in net[0].rejected()
    assert 1 <= net.sent["Update"] - told <= 2


def test_a_newcomer_that_asks_again_is_answered_alone() -> None:
    net = network(5, rounds=0)
    net.run_to_round(3)
    late = net.add(5, at=net.now, asked={})
    net.run(when=lambda: late.core._table.me.since is not None)
    net.run(until=net.now + 0.1)  # all have heard of it
    assert late.core.state == "joining"
    told = net.sent["Update"]
    for _ in range(20):
        net.tell(late, net[0], Join(late.layout, late.data))
    net.run(until=net.now + 0.1)
    assert net.sent["Update"] - told == 20
