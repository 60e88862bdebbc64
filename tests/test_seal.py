"""Sealed offers: one sender, one receiver, once."""

from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import ProtocolError
from p2pfl.identity import Identity
from p2pfl.protocol import seal as sealing
from p2pfl.protocol.messages import Member, Offer
from p2pfl.protocol.seal import WINDOW, Seal, Window

PLAIN = Offer("share", 7, "7.abc", 1024, "layout", "recipe", "view", 2, 10, 0.25, b"h" * 32)


@dataclass
class End:
    """One peer with its seal."""

    identity: Identity
    network: str = "home"
    incarnation: int = 1 << 16

    def __post_init__(self) -> None:
        self.seal = Seal(self.identity, self.network, lambda: self.incarnation)
        self.id = self.identity.peer

    @property
    def record(self) -> Member:
        return Member(self.id, "0", "peer", (), self.incarnation, key=self.identity.public)


def end(number: int, **settings: object) -> End:
    return End(Identity(bytes([number]) * 32), **settings)  # type: ignore[arg-type]  # any of the fields


def reason(receiver: End, record: Member, offer: Offer) -> str:
    """Why it does not open, empty where it does."""
    try:
        receiver.seal.open(record, offer)
    except ProtocolError as error:
        return error.reason
    return ""


def test_opened_offer_is_the_one_that_was_sealed() -> None:
    a, b = end(1), end(2)
    sealed = a.seal.seal(PLAIN, b.id)
    assert (sealed.receiver, sealed.incarnation, sealed.sequence, len(sealed.signature)) == (b.id, 1 << 16, 1, 64)
    assert b.seal.open(a.record, sealed) == PLAIN


def test_sequence_rises_for_each_receiver_alone() -> None:
    a, b, c = end(1), end(2), end(3)
    assert [a.seal.seal(PLAIN, receiver.id).sequence for receiver in (b, b, c, b, c)] == [1, 2, 1, 3, 2]


def test_repeated_offer_is_sealed_anew_and_opens_to_the_same() -> None:
    a, b = end(1), end(2)
    assert [b.seal.open(a.record, a.seal.seal(PLAIN, b.id)) for _ in range(3)] == [PLAIN] * 3


def test_offer_survives_the_wire_with_a_whole_number_of_seconds() -> None:
    a, b = end(1), end(2)
    sealed = a.seal.seal(msgspec.structs.replace(PLAIN, train_s=3), b.id)
    arrived = msgspec.msgpack.decode(msgspec.msgpack.encode(sealed), type=Offer)
    assert b.seal.open(a.record, arrived).train_s == 3.0


@pytest.mark.fault(35)
@pytest.mark.parametrize("field", [field for field in Offer.__struct_fields__ if field not in ("receiver", "kind")])
def test_any_changed_field_is_a_bad_signature(field: str) -> None:
    a, b = end(1), end(2)
    sealed = a.seal.seal(PLAIN, b.id)
    value = getattr(sealed, field)
    if isinstance(value, bytes):
        changed: object = bytes([value[0] ^ 1]) + value[1:]
    elif isinstance(value, str):
        changed = value + "x"
    else:
        changed = value + 1
    altered = msgspec.structs.replace(sealed, **{field: changed})
    assert altered != sealed
    assert reason(b, a.record, altered) == "bad signature"
    assert reason(b, a.record, msgspec.structs.replace(sealed, kind="snapshot")) == "bad signature"
    assert reason(b, a.record, sealed) == ""  # nothing of the refused ones was kept


@pytest.mark.fault(35)
def test_offer_signed_by_one_and_sent_by_another_is_refused() -> None:
    a, b, liar = end(1), end(2), end(3)
    sealed = a.seal.seal(PLAIN, b.id)
    assert reason(b, liar.record, sealed) == "bad signature"
    assert reason(b, msgspec.structs.replace(a.record, key=liar.identity.public), sealed) == "bad signature"
    assert reason(b, msgspec.structs.replace(a.record, key=b""), sealed) == "bad signature"


def test_offer_of_another_network_is_refused() -> None:
    a, b = end(1, network="school"), end(2)
    assert reason(b, a.record, a.seal.seal(PLAIN, b.id)) == "bad signature"


def test_offer_without_a_seal_is_refused() -> None:
    a, b = end(1), end(2)
    assert reason(b, a.record, PLAIN) == "other receiver"
    assert reason(b, a.record, msgspec.structs.replace(PLAIN, receiver=b.id)) == "bad signature"


@pytest.mark.fault(36)
def test_offer_for_another_receiver_is_refused() -> None:
    a, b, c = end(1), end(2), end(3)
    sealed = a.seal.seal(PLAIN, c.id)
    assert reason(b, a.record, sealed) == "other receiver"
    assert reason(b, a.record, msgspec.structs.replace(sealed, receiver=b.id)) == "bad signature"


@pytest.mark.fault(36)
def test_replayed_offer_is_refused() -> None:
    a, b = end(1), end(2)
    old = a.seal.seal(PLAIN, b.id)
    assert [reason(b, a.record, old) for _ in range(3)] == ["", "replayed", "replayed"]
    for _ in range(WINDOW):
        assert reason(b, a.record, a.seal.seal(PLAIN, b.id)) == ""
    assert reason(b, a.record, old) == "replayed"


@pytest.mark.fault(36)
def test_offer_of_a_former_start_is_refused_even_where_it_was_never_seen() -> None:
    a, b = end(1), end(2)
    before = [a.seal.seal(PLAIN, b.id) for _ in range(2)]
    assert reason(b, a.record, before[0]) == ""
    again = end(1, incarnation=2 << 16)
    assert reason(b, again.record, before[1]) == "former instance"  # as its record tells
    assert reason(b, a.record, again.seal.seal(PLAIN, b.id)) == ""  # its record lags: the signature is word enough
    assert reason(b, a.record, before[1]) == "former instance"  # as its offer told


def test_refutation_spoils_no_offer_that_is_under_way() -> None:
    a, b = end(1), end(2)
    under_way = a.seal.seal(PLAIN, b.id)
    a.incarnation += 1
    assert reason(b, a.record, a.seal.seal(PLAIN, b.id)) == ""
    assert reason(b, a.record, under_way) == ""
    assert reason(b, a.record, under_way) == "replayed"


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "MAX_PEERS", 2)
    a, ends = end(1), [end(number) for number in range(2, 6)]
    first = a.seal.seal(PLAIN, ends[0].id)
    for other in ends[1:]:
        assert reason(a, other.record, other.seal.seal(PLAIN, a.id)) == ""
        a.seal.seal(PLAIN, other.id)
    assert (len(a.seal._seen), len(a.seal._sent)) == (2, 2)
    # One that is no longer kept is never told a number twice.
    assert a.seal.seal(PLAIN, ends[0].id).sequence > first.sequence


WINDOW_CASES = [
    ([1, 2, 3], [True, True, True]),
    ([1, 1], [True, False]),
    ([0], [False]),
    ([3, 1, 2, 2], [True, True, True, False]),
    ([64, 1, 1], [True, True, False]),
    ([65, 1, 2], [True, False, True]),  # 64 below the highest is too old
    ([1, 1 << 40, 1, (1 << 40) - 1], [True, True, False, True]),
]


@pytest.mark.parametrize(("numbers", "expected"), WINDOW_CASES)
def test_window(numbers: list[int], expected: list[bool]) -> None:
    window = Window()
    assert [window.take(number) for number in numbers] == expected


@given(st.lists(st.one_of(st.integers(0, 200), st.integers(0, 1 << 40)), max_size=100))
def test_window_agrees_with_a_set_of_all_that_was_seen(numbers: list[int]) -> None:
    window, seen = Window(), set[int]()
    for number in numbers:
        new = number >= 1 and number not in seen and number > max(seen, default=0) - WINDOW
        assert window.take(number) == new
        if new:
            seen.add(number)
        assert window.seen < 1 << WINDOW


@given(st.lists(st.integers(0, 30), max_size=60))
def test_each_offer_opens_once_in_any_order(order: list[int]) -> None:
    a, b = end(1), end(2)
    offers = [a.seal.seal(msgspec.structs.replace(PLAIN, round=round), b.id) for round in range(31)]
    opened = [number for number in order if reason(b, a.record, offers[number]) == ""]
    assert opened == list(dict.fromkeys(order))
