"""Network keys: tokens that survive a copy and notice a slip, and what is derived from them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import UsageError
from p2pfl.network_key import KeyRing, NetworkKey, check_name

KEY = NetworkKey("home", bytes(range(32)))
secrets = st.binary(min_size=32, max_size=32)


def test_token_is_the_name_and_eight_groups_of_seven() -> None:
    assert re.fullmatch(r"home:[a-z2-7]{7}(-[a-z2-7]{7}){7}", KEY.token)
    assert KEY.token.startswith("home:aaaqeay-eaudaoc-ajbifqy-diob4ib")


@given(secrets)
def test_token_comes_back_as_the_key_however_it_is_typed(secret: bytes) -> None:
    key = NetworkKey("lab", secret)
    name, text = key.token.split(":")
    for typed in (key.token, f"  {name}:{text.upper()}\n", f"{name}:{text.replace('-', '')}", f"{name}: {text}"):
        assert NetworkKey.of_token(typed) == key


@given(secrets, st.integers(0, 51), st.sampled_from("abcdefghijklmnopqrstuvwxyz234567"))
def test_a_slip_is_noticed_and_not_repeated(secret: bytes, place: int, letter: str) -> None:
    token = NetworkKey("lab", secret).token
    text = list(token.replace("-", ""))
    if text[4 + place] == letter:
        return
    text[4 + place] = letter
    typed = "".join(text)
    with pytest.raises(UsageError, match="mistyped") as error:
        NetworkKey.of_token(typed)
    assert typed[4:] not in str(error.value)


@pytest.mark.parametrize("token", ["", "home", "home:", "home:abc", f"home {KEY.token[5:]}", KEY.token[:-1], "a:1"])
def test_what_is_no_token_is_said_to_be_none(token: str) -> None:
    with pytest.raises(UsageError, match="no network's token"):
        NetworkKey.of_token(token)


def test_the_token_belongs_to_the_name() -> None:
    with pytest.raises(UsageError, match="mistyped"):
        NetworkKey.of_token(KEY.token.replace("home:", "work:"))


def test_nothing_shows_the_secret() -> None:
    shown = repr(KEY) + repr(KeyRing(KEY)) + KEY.tag + KEY.alias("peer")
    assert KEY.secret.hex() not in shown
    assert repr(KEY.secret)[2:-1] not in shown
    assert KEY.token[5:] not in shown


def test_what_is_derived_differs_by_purpose_key_and_name() -> None:
    other, named = NetworkKey("home", bytes(32)), NetworkKey("work", KEY.secret)
    derived = [key.derive(purpose) for key in (KEY, other, named) for purpose in ("a", "b")]
    assert len(set(derived)) == len(derived) == 6
    assert KEY.derive("a") == NetworkKey("home", bytes(range(32))).derive("a")
    assert re.fullmatch("[a-z2-7]{16}", KEY.tag)
    assert re.fullmatch("[a-z2-7]{26}", KEY.alias("peer"))
    assert len({KEY.tag, other.tag, named.tag}) == 3
    assert len({KEY.alias("peer"), KEY.alias("other"), other.alias("peer")}) == 3


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a/b", "a\\b", ".hidden", "x" * 65, "tab\t", "bell\x07"])
def test_a_name_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no name for a network"):
        check_name(name)


def test_rotation_honors_the_last_key_until_it_is_dropped() -> None:
    second = NetworkKey("home", bytes(32))
    ring = KeyRing(KEY).rotated(second, ["mallory"])
    assert (ring.key, ring.epoch, ring.former, ring.banned) == (second, 1, (KEY,), {"mallory"})
    assert ring.keys == (second, KEY)
    assert ring.rotated(KEY).keys == (KEY, second)
    assert ring.without_former().keys == (second,)
    assert ring.without_former().rank == ring.rank > KeyRing(KEY).rank


def test_a_token_tells_the_number_of_the_key_and_a_slip_in_it_is_noticed() -> None:
    assert KeyRing(KEY).token == KEY.token
    token = KeyRing(KEY, 12).token
    assert token.endswith(".12")
    assert KeyRing.of_token(f" {token}\n") == KeyRing(KEY, 12)
    assert NetworkKey.of_token(token) == KEY
    for wrong in (token[:-1], token[:-3], f"{token}3", KEY.token + ".12", KEY.token + ".9999999999999"):
        with pytest.raises(UsageError, match="mistyped"):
            KeyRing.of_token(wrong)


def test_former_keys_are_honored_for_a_few_changes() -> None:
    ring = KeyRing(KEY)
    for number in range(1, 7):
        ring = ring.rotated(NetworkKey("home", bytes([number]) * 32))
    assert [key.secret[0] for key in ring.keys] == [6, 5, 4, 3, 2]
