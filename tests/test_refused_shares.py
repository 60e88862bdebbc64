"""Shares that a peer gets over HTTP and does not mix, and the one it does."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cache
from math import inf, nan
from typing import TypeAlias

import pytest
from nodes import PATIENT, THREE, Nodes, Numbers, scene

from p2pfl.events import PeerJoined, Refusal, RoundFinished, ShareRejected, ShareSent, StateChanged, Warned
from p2pfl.layout import Layout, Vector
from p2pfl.learning.learner import Training
from p2pfl.network.http import HttpTransport
from p2pfl.network.transport import Body, Service, body_of

Alter: TypeAlias = Callable[[int, bytes], bytes | None]  # (round, framed model); None withdraws it


class FalseNumbers(Numbers):
    """Says from its second round on that it has learned other numbers: its peer signs them, as any liar would."""

    def __init__(self, target: float, falsify: Callable[[Vector], None], layout: Layout = THREE) -> None:
        super().__init__(target, layout)
        self._falsify = falsify
        self._rounds = 0

    def train(self, round: int, budget_s: float | None, stopped: Callable[[], bool]) -> Training:
        self._rounds = round
        return super().train(round, budget_s, stopped)

    def parameters(self, out: Vector) -> None:
        super().parameters(out)
        if self._rounds >= 1:
            self._falsify(out)


class Lying(HttpTransport):
    """Serves other bodies than it was given."""

    def __init__(self, alter: Alter) -> None:
        super().__init__(("127.0.0.1",), 0)
        self._alter = alter
        self.told: list[int] = []  # rounds whose body was altered and fetched

    @asynccontextmanager
    async def serving(self, service: Service) -> AsyncIterator[None]:
        def body(token: str, peer: str) -> Body | None:
            honest = service.body(token, peer)
            if honest is None:
                return None
            data, round = b"".join(honest.pieces()), int(token.partition(".")[0])
            altered = self._alter(round, data)
            if altered != data:
                self.told.append(round)
            return None if altered is None else body_of(memoryview(altered))

        async with super().serving(replace(service, body=body)):
            yield


# Shares that are refused


def liar_and_two(alter: Alter, size: int, rounds: int) -> tuple[dict[str, list[bytes]], dict[str, dict[str, int]], int]:
    """Models after each round of a and b, their failures, and how often c lied."""
    layout = THREE if size == 3 else Layout((("w", (size,)),))
    learners = {name: Numbers(target, layout) for name, target in zip("abc", (1.0, 2.0, 6.0), strict=True)}
    liar = Lying(alter)
    failures: dict[str, dict[str, int]] = {}

    async def work() -> None:
        nodes = Nodes(min_peers=3, rounds=rounds, **PATIENT)
        for name in "abc":
            await nodes.start(name, learners[name], liar if name == "c" else None)
        failures.update({name: dict(result.failures) for name, result in (await nodes.results()).items()})

    scene(work())
    assert failures.pop("c") == {}  # nobody lied to it
    return {name: learners[name].after for name in "ab"}, failures, len(liar.told)


@cache
def with_shares_missing(size: int, first: int, rounds: int) -> dict[str, list[bytes]]:
    """What a and b come to where c's shares of some rounds are withdrawn."""
    after, failures, withdrawn = liar_and_two(lambda round, data: None if round >= first else data, size, rounds)
    assert failures == {name: {"gone": rounds - first} for name in "ab"}
    assert withdrawn == 2 * (rounds - first)
    return after


def changes_no_bit(alter: Alter, reason: str, size: int, rounds: int) -> None:
    """As if c's shares of the last two rounds, in which it lies, were missing."""
    after, failures, lies = liar_and_two(alter, size, rounds)
    assert lies == 4
    assert failures == {name: {reason: 2} for name in "ab"}
    assert after == with_shares_missing(size, rounds - 2, rounds)


def signed_liar_and_two(
    falsify: Callable[[Vector], None],
) -> tuple[dict[str, list[bytes]], dict[str, dict[str, int]], int]:
    """As `liar_and_two`, for three rounds, where c signs false numbers in the last two."""
    learners = {"a": Numbers(1.0), "b": Numbers(2.0), "c": FalseNumbers(6.0, falsify)}
    failures: dict[str, dict[str, int]] = {}
    told: list[int] = []

    async def work() -> None:
        nodes = Nodes(min_peers=3, rounds=3, **PATIENT)
        for name, learner in learners.items():
            await nodes.start(name, learner)
        failures.update({name: dict(result.failures) for name, result in (await nodes.results()).items()})
        told.extend(sent.round for sent in nodes.all["c"].watch.all(ShareSent) if sent.round >= 1)

    scene(work())
    assert failures.pop("c") == {}  # nobody lied to it
    return {name: learners[name].after for name in "ab"}, failures, len(told)


def one_number(value: float) -> Callable[[Vector], None]:
    def falsify(vector: Vector) -> None:
        vector[1] = value

    return falsify


def test_a_dial_that_comes_to_nothing_is_no_share_that_did_not_count() -> None:
    async def work() -> None:
        hangs_up = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        port = hangs_up.sockets[0].getsockname()[1]
        nodes = Nodes(min_peers=2, rounds=3, **PATIENT)
        first = await nodes.start("a", Numbers(1.0))
        second = await nodes.start("b", Numbers(2.0), peers=(first.address, f"127.0.0.1:{port}"))
        results = await nodes.results()
        hangs_up.close()
        await hangs_up.wait_closed()
        assert "dial" in {refusal.what for refusal in second.watch.all(Refusal)}
        assert {name: dict(result.failures) for name, result in results.items()} == {"a": {}, "b": {}}

    scene(work())


@pytest.mark.fault(41)
@pytest.mark.parametrize(
    ("value", "reason"),
    [(nan, "not finite"), (inf, "not finite"), (-inf, "not finite"), (1e38, "absurd norm"), (-3e19, "absurd norm")],
)
def test_share_with_an_impossible_number_changes_no_bit(value: float, reason: str) -> None:
    """As if that share were missing, though its owner has signed it."""
    after, failures, lies = signed_liar_and_two(one_number(value))
    assert lies == 4
    assert failures == {name: {reason: 2} for name in "ab"}
    assert after == with_shares_missing(3, 1, 3)


@pytest.mark.fault(41)
@pytest.mark.parametrize("falsify", [one_number(5.0), Vector.zero_, Vector.neg_])
def test_share_of_a_usual_size_counts_whatever_its_numbers(falsify: Callable[[Vector], None]) -> None:
    """The lies above would have been mixed, but for their size; zeros and turned signs are for robust rules."""
    after, failures, lies = signed_liar_and_two(falsify)
    assert lies == 4
    assert failures == {name: {} for name in "ab"}
    assert after != with_shares_missing(3, 1, 3)


@pytest.mark.fault(35)
def test_share_of_which_one_bit_was_changed_on_the_way_changes_no_bit() -> None:
    def alter(round: int, data: bytes) -> bytes:
        return data if round < 1 else data[:-1] + bytes([data[-1] ^ 1])

    changes_no_bit(alter, "wrong payload", 3, rounds=3)


@pytest.mark.fault(36)
def test_old_model_served_for_a_new_one_changes_no_bit() -> None:
    first: list[bytes] = []

    def alter(round: int, data: bytes) -> bytes:
        if round == 0:
            first.append(data)
        return first[0]

    changes_no_bit(alter, "wrong payload", 3, rounds=3)


def reframed(text: bytes) -> Alter:
    """A body of the same length with another header, and what fits of the numbers."""

    def alter(round: int, data: bytes) -> bytes:
        body = len(text).to_bytes(8, "little") + text
        return body + data[len(body) :] if len(body) <= len(data) else data

    return alter


HEADER = THREE.header[8:]
MANY = b"{%s}" % b",".join(b'"t%05d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(100_000))
HEADERS: dict[str, tuple[Alter, int]] = {
    "truncated": (lambda round, data: THREE.header[:-16] + data[len(THREE.header) :] + bytes(16), 3),
    "with a length of 2^63": (lambda round, data: (1 << 63).to_bytes(8, "little") + data[8:], 3),
    "with a length of 0": (lambda round, data: bytes(8) + data[8:], 3),
    "longer than the body": (lambda round, data: len(data).to_bytes(8, "little") + data[8:], 3),
    "with overlapping offsets": (reframed(HEADER.replace(b"[8,12]", b"[4,8] ")), 3),
    "with duplicate keys": (reframed(HEADER.replace(b'"b"', b'"a"')), 3),
    "of another type": (reframed(HEADER.replace(b"F32", b"I32")), 3),
    "of 100,000 tensors": (reframed(MANY), 2_000_000),
    "no header at all": (lambda round, data: b"\xff" * len(data), 3),
}


@pytest.mark.parametrize(("alter", "size"), HEADERS.values(), ids=HEADERS)
def test_body_with_a_header_that_is_not_the_layouts_is_not_mixed(alter: Alter, size: int) -> None:
    """43"""
    changes_no_bit(alter, "malformed header", size, rounds=2)


@pytest.mark.parametrize("alter", [lambda _, data: data[:-4], lambda _, data: data + b"tail", lambda *_: b""])
def test_body_of_another_length_is_not_mixed(alter: Alter) -> None:
    """43: truncated, or with a tail."""
    changes_no_bit(alter, "wrong size", 3, rounds=2)


@pytest.mark.fault(42)
def test_peer_with_another_layout_watches_and_is_told_why() -> None:
    """The others do as without it."""

    def others(third: bool) -> dict[str, list[bytes]]:
        learners = {"a": Numbers(1.0), "b": Numbers(2.0)}

        async def work() -> None:
            nodes = Nodes(min_peers=2, rounds=3, **PATIENT)
            first = await nodes.start("a", learners["a"])
            if third:
                observer = await nodes.start("c", Numbers(9.0, Layout((("a", (2,)), ("c", (4,))))))
                await first.watch.first(PeerJoined, name="c")
            await nodes.start("b", learners["b"])
            results = await nodes.results()
            assert [results[name].round for name in "ab"] == [3, 3]
            assert [results[name].failures for name in "ab"] == [{}, {}]
            assert [results[name].members for name in "ab"] == [("a", "b")] * 2
            if third:
                assert observer.watch.all(RoundFinished) == []
                assert "observer" in [event.state for event in observer.watch.all(StateChanged)]
                (why,) = [event.text for event in observer.watch.all(Warned) if "differs" in event.text]
                assert "b [1] float32" in why
                assert "c [4] float32" in why
                assert all(
                    "c" not in event.other for node in "ab" for event in nodes.all[node].watch.all(ShareRejected)
                )

        scene(work())
        return {name: learner.after for name, learner in learners.items()}

    assert others(third=True) == others(third=False)
