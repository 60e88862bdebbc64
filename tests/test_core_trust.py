"""Keys, bans and seals, as a whole core keeps them."""

import msgspec
import pytest
from virtual import Network, Node, identity, network

from p2pfl.events import PeerGone, Refusal, ViewTaken
from p2pfl.network_key import KeyRing, NetworkKey
from p2pfl.protocol.messages import KeyChange, Message, Offer, Status
from p2pfl.protocol.participant import Found, KeyChosen
from p2pfl.protocol.rekeying import change

RING = KeyRing(NetworkKey("test", b"k" * 32))


def rotation(net: Network, by: Node, banned: tuple[Node, ...] = ()) -> KeyChange:
    return change(by.identity, RING.rotated(NetworkKey("test", b"n" * 32), [node.peer for node in banned]))


@pytest.mark.fault(39)
def test_a_new_key_reaches_every_member_once_and_those_who_come_later() -> None:
    net = network(5, rounds=0)
    net.run_to_round(3)
    chosen = rotation(net, net[2])
    net.feed(net[2], KeyChosen(chosen))
    net.run(until=net.now + 1.0)
    assert [[effect.change for effect in node.rekeys] for node in net.nodes] == [[chosen]] * 5
    late = net.add(5, at=net.now, asked={})
    net.run(until=net.now + 10.0)
    assert [effect.change for effect in late.rekeys] == [chosen]
    assert not any(node.of(PeerGone) for node in net.nodes)


@pytest.mark.fault(39)
def test_who_is_banned_is_cut_off_by_all_is_told_no_key_and_cannot_come_back() -> None:
    net = network(5, rounds=0)
    net.run_to_round(3)
    chosen = rotation(net, net[2], (net[4],))
    net.feed(net[2], KeyChosen(chosen))
    net.run(until=net.now + 10.0)
    assert net[4].rekeys == []
    assert all([effect.change for effect in node.rekeys] == [chosen] for node in net.nodes[:4])
    assert all(node.state_of(net[4]) == "dead" for node in net.nodes[:4])
    assert all(node.of(ViewTaken)[-1].members == ("n0", "n1", "n2", "n3") for node in net.nodes[:4])
    net.feed(net[4], Found(net[0].peer, (net[0].address,)))
    net.run(until=net.now + 60.0)
    assert all(net[4].peer not in node.core._links.peers for node in net.nodes[:4])
    assert "banned" in {refused.reason for refused in net[0].of(Refusal)}
    assert len({node.core._table.digest for node in net.nodes[:4]}) == 1


def test_a_key_is_neither_told_nor_taken_over_a_link_that_proves_nothing() -> None:
    net = Network(min_peers=3, rounds=0)
    net.secure = False
    for index in range(3):
        net.add(index)
    net.run_to_round(2)
    net.feed(net[0], KeyChosen(rotation(net, net[0])))
    net.tell(net[0], net[1], rotation(net, net[0]))
    net.run(until=net.now + 5.0)
    assert [len(node.rekeys) for node in net.nodes] == [1, 0, 0]
    assert {refused.reason for refused in net[1].of(Refusal)} == {"no TLS"}


def test_a_change_of_the_key_that_its_maker_did_not_sign_costs_the_connection() -> None:
    net = network(3, rounds=0)
    net.run_to_round(2)
    forged = msgspec.structs.replace(rotation(net, net[0]), key=b"x" * 32)
    net.tell(net[0], net[1], forged)
    net.run(until=net.now + 0.1)
    assert [len(node.rekeys) for node in net.nodes] == [0, 0, 0]
    assert {refused.reason for refused in net[1].of(Refusal)} == {"bad signature"}


@pytest.mark.fault(35)
@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("steps", 1, "bad signature"),
        ("payload", b"\x01" * 32, "bad signature"),
        ("signature", b"", "bad signature"),
        ("receiver", identity(2).peer, "other receiver"),
    ],
)
def test_an_offer_that_was_changed_on_its_way_costs_that_share_alone(field: str, value: object, reason: str) -> None:
    net = network(3, rounds=4)
    changed: list[Offer] = []

    def spoil(sender: Node, receiver: Node, message: Message) -> Message:
        if isinstance(message, Offer) and sender is net[1] and receiver is net[0] and message.round == 2:
            changed.append(message)
            return msgspec.structs.replace(message, **{field: value})
        return message

    net.tamper.append(spoil)
    net.run()
    assert len(changed) >= 1
    assert (2, net[1].peer, reason) in net[0].rejected()
    assert [node.rounds() for node in net.nodes] == [[0, 1, 2, 3]] * 3
    assert net[0].mixes[2].parties == (net[2].peer,)
    assert net[0].mixes[3].parties == (net[1].peer, net[2].peer)


@pytest.mark.fault(36)
def test_an_offer_said_twice_counts_once() -> None:
    net = network(3, rounds=4)
    kept: list[Offer] = []

    def keep(sender: Node, receiver: Node, message: Message) -> Message:
        if isinstance(message, Offer) and sender is net[1] and receiver is net[0]:
            kept.append(message)
        return message

    net.tamper.append(keep)
    net.run_to_round(2)
    old = next(offer for offer in kept if offer.round == 0)
    net.tamper.append(lambda a, b, m: old if isinstance(m, Status) and (a, b) == (net[1], net[0]) else m)
    net.run()
    assert (0, net[1].peer, "replayed") in net[0].rejected()
    assert all(node.rounds() == [0, 1, 2, 3] for node in net.nodes)
