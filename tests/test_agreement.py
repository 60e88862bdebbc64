from hypothesis import given
from hypothesis import strategies as st

from p2pfl.protocol.agreement import Conflict, agree, conflict
from p2pfl.types import Setting

wishes = st.dictionaries(st.sampled_from(["rounds", "lr", "seed", "model"]), st.integers(0, 3))


def test_somebodys_wish_beats_everybodys_default() -> None:
    assert agree([("ann", {}), ("bob", {"rounds": 3}), ("eve", {})]) == {"rounds": 3}
    assert agree([]) == {}


def test_of_two_wishes_the_lower_seats_stands() -> None:
    asked: list[tuple[str, dict[str, Setting]]] = [("ann", {"lr": 0.1}), ("bob", {"lr": 0.2, "rounds": 3})]
    assert agree(asked) == {"lr": 0.1, "rounds": 3}
    assert conflict(asked[0][1], agree(asked), asked) is None
    assert conflict(asked[1][1], agree(asked), asked) == Conflict("lr", 0.1, "ann", "lr", 0.2)


def test_a_conflict_names_both_values_and_the_mend() -> None:
    assert str(Conflict("batch_size", 32, "ann", "batch_size", 64)) == (
        "ann asked for batch_size=32, you asked for batch_size=64; leave out --batch-size, or choose another --network"
    )
    found = conflict({"rounds": 2}, {"rounds": 3}, [])
    assert found is not None
    assert found.by == "the network"


@given(st.lists(wishes, max_size=5))
def test_who_is_in_no_conflict_got_all_they_asked_for(all_wishes: list[dict[str, Setting]]) -> None:
    asked = [(f"n{index}", wish) for index, wish in enumerate(all_wishes)]
    settings = agree(asked)
    assert list(settings) == sorted(settings)
    for _, wish in asked:
        clash = conflict(wish, settings, asked)
        assert (clash is None) == (wish.items() <= settings.items())
        if clash is not None:
            assert (clash.mine, clash.stands) == (wish[clash.setting], settings[clash.setting])
    if asked:
        assert conflict(asked[0][1], settings, asked) is None
