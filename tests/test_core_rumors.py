"""What peers say of others, false or late: deaths, incarnations, rounds."""

import msgspec
import pytest
from cores import digests, net_found, record
from virtual import Node, network

from p2pfl.events import PeerGone, Refusal, RoundFinished, ViewTaken
from p2pfl.protocol.messages import MAX_ROUND, Hello, Message, Refused, Status, Suspicion, Update
from p2pfl.protocol.participant import Close, LinkOpened, Received


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
