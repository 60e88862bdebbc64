import torch
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.protocol.early import EarlyOffers
from p2pfl.protocol.messages import Offer
from p2pfl.protocol.participant import Drop, Serve
from p2pfl.protocol.served import AHEAD, Served

VECTOR = torch.zeros(3)


def offer(round: int, token: str | None = None) -> Offer:
    return Offer("share", round, token or f"{round}.me", 12, "layout", "recipe")


def serving(*rounds: int, to: str = "ab") -> Served:
    served = Served()
    for round in rounds:
        served.share(offer(round), VECTOR, tuple(to), set(to))
    return served


def test_share_is_kept_until_everybody_it_was_for_is_past_its_round() -> None:
    served = Served()
    assert served.share(offer(3), VECTOR, ("a", "b", "c"), {"a", "b"}) == [Serve("3.me", VECTOR, ("a", "b", "c"))]
    served.passed("a", 4)
    served.passed("b", 3)
    assert served.done() == []
    assert served.offers_to("a") == []
    assert served.offers_to("b") == [offer(3)]
    served.passed("b", 4)
    assert served.done() == [Drop("3.me")]
    assert served.done() == []
    assert not served.needed()


def test_who_is_past_a_round_is_past_all_before_it() -> None:
    served = serving(3, 4, 5)
    for peer in "ab":
        served.passed(peer, 5)
    assert served.done() == [Drop("3.me"), Drop("4.me")]
    assert served.offers_to("a") == [offer(5)]


def test_who_declines_a_share_needs_that_one_no_more_and_others_still() -> None:
    served = serving(3, 4, to="a")
    served.declined("a", "3.me")
    served.declined("a", "no such token")
    assert served.done() == [Drop("3.me")]
    assert served.offers_to("a") == [offer(4)]


def test_those_four_rounds_behind_are_left_behind_by_the_next_share_and_not_before() -> None:
    served = serving(0, 1, 2, 3, to="a")
    assert AHEAD == 4
    assert served.needed_before(3) == set()
    assert served.needed_before(4) == {"a"}
    assert served.share(offer(4), VECTOR, ("b",), {"b"}) == [Drop("0.me"), Serve("4.me", VECTOR, ("b",))]
    assert served.needed_before(5) == {"a"}


def test_a_round_without_neighbors_keeps_step_and_no_body() -> None:
    served = Served()
    assert served.keep_step(0, {"a"}) == []
    assert served.needed_before(4) == {"a"}
    assert served.offers_to("a") == []
    served.passed("a", 1)
    assert served.done() == []
    assert served.needed_before(4) == set()


def test_a_snapshot_is_kept_once_and_dropped_by_its_round() -> None:
    served = serving(5)
    assert served.snapshot(5, "snapshot-5", VECTOR) == [Serve("snapshot-5", VECTOR)]
    assert served.snapshot(5, "snapshot-5", VECTOR) == []
    assert served.drop() == [Drop("5.me"), Drop("snapshot-5")]
    assert served.forget_snapshots(before=5) == []
    assert served.forget_snapshots(before=6) == [Drop("snapshot-5")]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30)), max_size=30))
def test_never_more_bodies_than_rounds_ahead_and_each_is_dropped_once(heard: list[tuple[str, int]]) -> None:
    served, bodies = Served(), set()
    for round, (peer, told) in enumerate(heard):
        for effect in [*served.share(offer(round), VECTOR, ("a", "b"), {"a", "b"}), *served.done()]:
            if isinstance(effect, Serve):
                bodies.add(effect.token)
            elif isinstance(effect, Drop):
                bodies.remove(effect.token)
        assert len(bodies) <= AHEAD
        served.passed(peer, told)
    for effect in served.drop():
        assert isinstance(effect, Drop)
        bodies.remove(effect.token)
    assert bodies == set()


def test_of_each_peer_the_latest_four_offers_are_held_until_their_round() -> None:
    early = EarlyOffers()
    for round in (9, 5, 6, 7, 8):
        early.hold("a", offer(round))
    early.hold("b", offer(7))
    assert early.counts() == {"a": 4, "b": 1}
    assert early.due(7) == {"a": offer(7), "b": offer(7)}
    assert early.all() == [("a", offer(8)), ("a", offer(9))]
    assert early.due(12) == {}
    assert early.counts() == {}
    early.hold("a", offer(13))
    early.hold("b", offer(13))
    early.forget("a")
    early.forget("c")
    assert early.all() == [("b", offer(13))]
