"""Connecting to one of several addresses, on a loop whose clock jumps to the next timer: no test waits."""

import asyncio
import selectors
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import LinkClosed, Unreachable
from p2pfl.network.dialing import MAX_ADDRESSES, connect_to_any
from p2pfl.network.transport import Link, Service
from p2pfl.protocol.dial_budget import DialBudget

T = TypeVar("T")


class _Skipping(selectors.SelectSelector):
    """Waits for nothing: what a timer is waited for counts as passed."""

    passed_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout:
            self.passed_s += timeout
        return super().select(0)


def on_skipping_clock(work: Coroutine[Any, Any, T]) -> T:
    selector = _Skipping()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.passed_s  # type: ignore[method-assign]  # how a loop is given another clock
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()


class End:
    """One end of a connection to nobody."""

    def __init__(self, remote: str, proven: str = "") -> None:
        self.remote, self.proven = remote, proven
        self.closed = ""

    async def send(self, data: bytes) -> None:
        raise LinkClosed("nobody listens")

    async def receive(self) -> bytes:
        raise LinkClosed("nobody speaks")

    async def close(self, why: str) -> None:
        self.closed = why


class Places:
    """A transport whose addresses answer after so many seconds: with a peer's id, `refused`, or never (`silent`)."""

    def __init__(self, **answers: tuple[float, str]) -> None:
        self._answers = answers
        self.dialed: list[tuple[str, float]] = []
        self.opened: list[End] = []

    @property
    def addresses(self) -> tuple[str, ...]:
        return ()

    @asynccontextmanager
    async def serving(self, service: Service) -> AsyncIterator[None]:
        yield

    async def connect(self, address: str) -> Link:
        self.dialed.append((address, asyncio.get_running_loop().time()))
        after_s, answer = self._answers[address]
        await asyncio.sleep(after_s)
        if answer in ("refused", "silent"):
            raise Unreachable(f"{address}: {answer}", refused=answer == "refused")
        self.opened.append(End(address, answer))
        return self.opened[-1]

    async def fetch(self, address: str, token: str, peer: str, into: memoryview, owner: str = "") -> None:
        raise NotImplementedError


def connect(places: Places, addresses: str, **settings: Any) -> str:
    """Where the connection came about."""
    return on_skipping_clock(connect_to_any(places, addresses.split(), **settings)).remote


def test_first_address_is_alone_while_it_may_still_answer() -> None:
    places = Places(a=(0.2, "peer"), b=(0.0, "peer"))
    assert connect(places, "a b") == "a"
    assert places.dialed == [("a", 0.0)]


def test_silent_address_costs_the_stagger_and_is_given_up_when_another_answers() -> None:
    places = Places(a=(60.0, "silent"), b=(0.1, "peer"))
    assert connect(places, "a b") == "b"
    assert places.dialed == [("a", 0.0), ("b", 0.25)]


def test_refusal_costs_nothing() -> None:
    places = Places(a=(0.0, "refused"), b=(0.0, "refused"), c=(0.0, "peer"))
    assert connect(places, "a b c") == "c"
    assert [at for _, at in places.dialed] == [0.0, 0.0, 0.0]


def test_slow_address_still_wins_over_silent_ones() -> None:
    places = Places(a=(1.0, "peer"), b=(60.0, "silent"), c=(60.0, "silent"))
    assert connect(places, "a b c") == "a"
    assert [address for address, _ in places.dialed] == ["a", "b", "c"]


def test_of_two_that_answer_at_once_the_first_is_kept_and_the_other_closed() -> None:
    places = Places(a=(0.5, "peer"), b=(0.25, "peer"))
    assert connect(places, "a b") == "a"
    assert [(end.remote, end.closed) for end in places.opened] in (
        [("a", ""), ("b", "not needed")],
        [("b", "not needed"), ("a", "")],
        [("a", "")],
    )


@pytest.mark.parametrize(
    ("answers", "refused"),
    [
        (["refused"], True),
        (["refused", "refused"], True),
        (["refused", "silent"], False),
        (["silent"], False),
    ],
)
def test_refused_only_where_every_address_refused(answers: list[str], refused: bool) -> None:
    places = Places(**{name: (0.1, answer) for name, answer in zip("ab", answers, strict=False)})
    with pytest.raises(Unreachable) as failure:
        connect(places, " ".join("ab"[: len(answers)]))
    assert failure.value.refused is refused
    assert str(failure.value) == "; ".join(f"{name}: {answer}" for name, answer in zip("ab", answers, strict=False))


def test_all_attempts_together_have_one_deadline() -> None:
    async def scenario() -> None:
        places = Places(a=(60.0, "silent"), b=(0.0, "refused"), c=(60.0, "silent"))
        with pytest.raises(Unreachable, match=r"no answer in 2 s") as failure:
            await connect_to_any(places, ["a", "b", "c"], within_s=2.0)
        assert not failure.value.refused
        assert asyncio.get_running_loop().time() == pytest.approx(2.0)
        assert len(asyncio.all_tasks()) == 1

    on_skipping_clock(scenario())


def test_an_address_where_another_peer_proves_to_be_is_passed_over() -> None:
    places = Places(a=(0.0, "mallory"), b=(0.0, "bob"))
    assert connect(places, "a b", owner="bob") == "b"
    assert [(end.remote, end.closed) for end in places.opened] == [("a", "wrong peer id"), ("b", "")]
    with pytest.raises(Unreachable, match="a: another peer is there") as failure:
        connect(Places(a=(0.0, "mallory")), "a", owner="bob")
    assert not failure.value.refused


def test_a_record_of_a_thousand_addresses_aims_few_dials() -> None:
    names = [f"a{i}" for i in range(1000)]
    places = Places(**dict.fromkeys(names, (0.0, "refused")))
    with pytest.raises(Unreachable):
        connect(places, " ".join(names))
    assert [address for address, _ in places.dialed] == names[:MAX_ADDRESSES]


def test_no_address_is_unreachable_and_repeated_ones_are_tried_once() -> None:
    with pytest.raises(Unreachable, match="no address is known"):
        connect(Places(), "")
    places = Places(a=(0.0, "refused"))
    with pytest.raises(Unreachable):
        connect(places, "a a a")
    assert len(places.dialed) == 1


def test_cancelled_dial_leaves_no_attempt_behind() -> None:
    async def scenario() -> None:
        places = Places(a=(60.0, "silent"), b=(60.0, "silent"))
        dial = asyncio.create_task(connect_to_any(places, ["a", "b"]))
        await asyncio.sleep(1.0)
        dial.cancel()
        await asyncio.wait([dial])
        assert dial.cancelled()
        assert len(places.dialed) == 2
        assert len(asyncio.all_tasks()) == 1

    on_skipping_clock(scenario())


# The budget of dials to strangers


def test_budget_begins_a_burst_then_so_many_a_second() -> None:
    budget = DialBudget(at_once=16, per_s=4.0, burst=4)
    assert [budget.begin(100.0) for _ in range(6)] == [True, True, True, True, False, False]
    assert budget.next_at(100.0) == 100.25
    assert budget.begin(100.2) is False
    assert budget.begin(100.25) is True
    assert budget.under_way == 5


def test_budget_waits_for_an_end_where_all_are_under_way() -> None:
    budget = DialBudget(at_once=2, per_s=8.0)
    assert [budget.begin(0.0) for _ in range(3)] == [True, True, False]
    assert budget.next_at(0.0) == float("inf")
    budget.end()
    assert budget.next_at(0.0) == 0.0
    assert budget.begin(0.0) is True


@given(st.lists(st.tuples(st.floats(0.0, 2.0), st.booleans()), max_size=60))
def test_budget_is_never_exceeded(steps: list[tuple[float, bool]]) -> None:
    budget, now, began = DialBudget(at_once=3, per_s=2.0, burst=2), 0.0, list[float]()
    for pause_s, end in steps:
        now += pause_s
        if end:
            budget.end()
        if budget.begin(now):
            began.append(now)
        assert budget.under_way <= 3
        assert budget.next_at(now) >= now
    for first in range(len(began)):
        for last in range(first, len(began)):
            assert last - first + 1 <= 2.0 + 2.0 * (began[last] - began[first]) + 1e-6
