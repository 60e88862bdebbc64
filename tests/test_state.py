"""Nested values as named tensors and JSON, and back, bit for bit."""

import math
from collections import Counter
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import ModelError
from p2pfl.state import State, Stateful, pack, unpack

LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=5)
KEYS = st.integers(-(2**63), 2**63 - 1) | st.text(max_size=5)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner, max_size=4) | st.tuples()
    ),
)


def through_json(state: State) -> State:
    return State(state.tensors, msgspec.json.decode(msgspec.json.encode(state.facts)))


def same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b) and (not isinstance(a, float) or math.copysign(1, a) == math.copysign(1, b))


@given(VALUES)
def test_values_come_back_as_they_were(value: Any) -> None:
    assert same(unpack(through_json(pack(value))), value)


def test_tensors_are_named_by_their_place_and_copied() -> None:
    momentum = torch.tensor([1.0, 2.0])
    state = pack({"state": {0: {"exp_avg": momentum, "step": torch.tensor(3.0)}}, "betas": (0.9, 0.5)})
    momentum.zero_()
    assert list(state.tensors) == ["state/0/exp_avg", "state/0/step"]
    assert state.tensors["state/0/exp_avg"].tolist() == [1.0, 2.0]
    back = unpack(through_json(state))
    assert back["betas"] == (0.9, 0.5)
    assert back["state"][0]["step"].item() == 3.0


def test_keys_that_are_written_alike_keep_their_tensors_apart() -> None:
    back = unpack(pack({1: torch.tensor(1.0), "1": torch.tensor(2.0)}))
    assert (back[1].item(), back["1"].item()) == (1.0, 2.0)


def test_infinities_and_counters_come_back() -> None:
    value = {"best": math.inf, "worst": -math.inf, "milestones": Counter({30: 1, 80: 2})}
    back = unpack(through_json(pack(value)))
    assert back == value
    assert type(back["milestones"]) is Counter
    assert math.isnan(unpack(through_json(pack([math.nan])))[0])


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"lr": [lambda: 1]}, "lr/0 is a function"),
        (object(), "it is a object"),
        (2**70, "it is a int"),
        (torch.zeros(1, dtype=torch.complex64), "it is a Tensor"),
    ],
)
def test_what_cannot_be_written_down_is_refused_by_its_place(value: Any, says: str) -> None:
    with pytest.raises(ModelError, match=f"{says}, which a checkpoint cannot hold"):
        pack(value)


@pytest.mark.parametrize("facts", [{"tensor": "none"}, {"eval": "1"}, {}, {"tuple": 3}, {"dict": [1]}, {"float": "x"}])
def test_what_pack_did_not_make_is_refused(facts: Any) -> None:
    with pytest.raises(ModelError, match="cannot be understood"):
        unpack(State({}, facts))


def test_a_learner_without_state_is_no_stateful_one() -> None:
    class Plain:
        layout = data = None

    assert not isinstance(Plain(), Stateful)
