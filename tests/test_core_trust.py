"""Keys, bans and seals, as a whole core keeps them."""

import msgspec
import pytest
from virtual import Network, Node, identity, network

from p2pfl.events import PeerGone, Refusal, ViewTaken
from p2pfl.identity import verifies
from p2pfl.network_key import KeyRing, NetworkKey
from p2pfl.protocol import records
from p2pfl.protocol.messages import KeyChange, Member, Message, Offer, Status, Update
from p2pfl.protocol.participant import Found, KeyChosen
from p2pfl.protocol.rekeying import PAUSE_S, change

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


def test_of_a_message_full_of_bad_signatures_one_is_looked_at_and_it_costs_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = network(3, rounds=0)
    net.run_to_round(2)
    liar = net[1].identity
    looked_at: list[bytes] = []

    def counted(key: bytes, data: bytes, signature: bytes) -> bool:
        looked_at.append(signature)
        return verifies(key, data, signature)

    monkeypatch.setattr(records, "verifies", counted)
    forged = tuple(
        Member(liar.peer, "s", "n", incarnation=number, key=liar.public, signature=bytes([number % 256]) * 64)
        for number in range(512)
    )
    link = net[0].core._links.link_of(net[1].peer)
    net.tell(net[1], net[0], Update(forged))
    net.run(until=net.now + 0.1)
    assert looked_at == [bytes(64)]
    assert net[0].core._links.link_of(net[1].peer) != link
    assert {refused.reason for refused in net[0].of(Refusal)} == {"bad signature"}


def ban_and_evil(net: Network) -> tuple[KeyChange, KeyChange]:
    """A ban of the last peer, and the key that it made beforehand."""
    evil = change(net[3].identity, KeyRing(NetworkKey("test", b"E" * 32), 900))
    return rotation(net, net[0], (net[3],)), evil


@pytest.mark.fault(39)
@pytest.mark.parametrize("relay", [1, 3])
def test_no_key_of_the_banned_is_taken_over_whatever_link(relay: int) -> None:
    net = network(4, rounds=0)
    net.run_to_round(2)
    ban, evil = ban_and_evil(net)
    net.feed(net[0], KeyChosen(ban))
    net.tell(net[relay], net[0], evil)
    net.tell(net[relay], net[2], evil)
    net.run(until=net.now + 10.0)
    assert [node.rekeys[-1].change for node in net.nodes[:3]] == [ban] * 3
    assert [effect.change for effect in net[0].rekeys] == [ban]


@pytest.mark.fault(39)
def test_a_ban_takes_back_a_network_that_the_banned_has_rekeyed_before() -> None:
    net = network(4, rounds=0)
    net.run_to_round(2)
    ban, evil = ban_and_evil(net)
    net.feed(net[3], KeyChosen(evil))
    net.run(until=net.now + 1.0)
    assert [node.rekeys[-1].change for node in net.nodes] == [evil] * 4  # it was a member
    net.feed(net[0], KeyChosen(ban))
    net.run(until=net.now + 10.0)
    assert [node.rekeys[-1].change for node in net.nodes] == [ban, ban, ban, evil]


def test_bans_at_once_in_two_places_leave_one_key_that_neither_of_the_banned_has() -> None:
    net = network(6, rounds=0)
    net.run_to_round(2)
    rings = [RING.rotated(NetworkKey("test", bytes([number]) * 32), (net[number].peer,)) for number in (4, 5)]
    for node, ring in zip(net.nodes, rings, strict=False):
        net.feed(node, KeyChosen(change(node.identity, ring)))
    net.run(until=net.now + 20.0)
    last = [node.rekeys[-1].change for node in net.nodes[:4]]
    assert len({(one.key, one.epoch, one.banned) for one in last}) == 1
    assert set(last[0].banned) == {net[4].peer, net[5].peer}
    told = {effect.change.key for node in net.nodes[4:] for effect in node.rekeys}
    assert last[0].key not in told | {ring.key.secret for ring in rings}


def test_a_member_that_changes_the_key_without_end_is_followed_now_and_then() -> None:
    net = network(3, rounds=0)
    net.run_to_round(2)
    began = net.now
    for number in range(200):
        ring = KeyRing(NetworkKey("test", number.to_bytes(32, "big")), number + 1)
        net.tell(net[2], net[0], change(net[2].identity, ring))
        net.run(until=began + number * 0.1)
    net.run(until=net.now + 6.0)
    assert net[0].rekeys[-1].change.epoch == 200
    assert len(net[0].rekeys) <= 2 + (net.now - began) / PAUSE_S
