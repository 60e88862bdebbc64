"""Faults of models and of whoever sends them, between real peers: a liar is one whose own word was altered.

What a share may hold is tested in `test_refused_shares` (41, 42, 43), the seal by itself in `test_seal` (35, 36), and
slow and late peers in `test_processes_live` (19, 45, 46).
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TypeAlias

import msgspec
import pytest
from nodes import PATIENT, Nodes, Numbers, Watch, scene

from p2pfl.events import Refusal, RoundFinished, ShareRejected
from p2pfl.network.http import HttpTransport
from p2pfl.network.transport import Link, Service
from p2pfl.protocol.messages import VERSIONS, Hello, Message, Offer, decode, encode

Say: TypeAlias = Callable[[Message], list[Message]]  # what is said in place of a message
ROUNDS = 4


class Altered:
    """A link on which other things are said than the peer means to."""

    def __init__(self, link: Link, say: Say) -> None:
        self._link, self._say = link, say
        self.remote, self.proven = link.remote, link.proven
        self.receive, self.close = link.receive, link.close

    async def send(self, data: bytes) -> None:
        for message in self._say(decode(data)):
            await self._link.send(encode(message))


class Liar(HttpTransport):
    """A real transport whose control messages are altered on their way out."""

    def __init__(self, say: Say) -> None:
        super().__init__(("127.0.0.1",), 0)
        self._say = say

    @asynccontextmanager
    async def serving(self, service: Service) -> AsyncIterator[None]:
        async def accept(link: Link) -> None:
            await service.accept(Altered(link, self._say))

        async with super().serving(replace(service, accept=accept)):
            yield

    async def connect(self, address: str) -> Link:
        return Altered(await super().connect(address), self._say)


def run_with(say: Say, rounds: int = ROUNDS) -> tuple[dict[str, list[bytes]], list[Watch]]:
    """Models after each round of a and b, and all that they saw, where c says other things than it means to."""
    learners = {name: Numbers(target) for name, target in zip("abc", (1.0, 2.0, 6.0), strict=True)}
    watches: list[Watch] = []

    async def work() -> None:
        nodes = Nodes(min_peers=3, rounds=rounds, **{**PATIENT, "min_deadline_s": 1.0})
        for name in "abc":
            await nodes.start(name, learners[name], Liar(say) if name == "c" else None)
        await asyncio.gather(*(nodes.all[name].result() for name in "ab"))
        nodes.all["c"].peer.stop()
        await nodes.all["c"].result()
        watches.extend(nodes.all[name].watch for name in "ab")

    scene(work())
    return {name: learners[name].after for name in "ab"}, watches


def honest(message: Message) -> list[Message]:
    """Nothing is altered."""
    return [message]


def refused(watch: Watch) -> list[str]:
    """Reasons, of whatever was refused that had to do with an offer."""
    told = [*watch.all(ShareRejected), *watch.all(Refusal)]
    return [one.reason for one in told if one.reason not in ("missing", "late", "second connection")]


@pytest.mark.fault(35)
@pytest.mark.parametrize("field", ["payload", "round", "degree", "train_s", "signature", "sequence", "incarnation"])
def test_offer_of_which_one_bit_was_changed_is_refused_and_the_others_go_on(field: str) -> None:
    told: list[Offer] = []

    def say(message: Message) -> list[Message]:
        if not isinstance(message, Offer) or message.round < 1:
            return [message]
        value = getattr(message, field)
        value = bytes([value[0] ^ 1]) + value[1:] if isinstance(value, bytes) else value + 1
        told.append(message)
        return [msgspec.structs.replace(message, **{field: value})]

    _, watches = run_with(say)
    assert len(told) >= 2 * (ROUNDS - 1)
    for watch in watches:
        assert refused(watch).count("bad signature") >= ROUNDS - 1
        assert set(refused(watch)) == {"bad signature"}
        finished = watch.all(RoundFinished)
        assert [one.round for one in finished] == list(range(ROUNDS))
        assert [one.missing for one in finished] == [0] + [1] * (ROUNDS - 1)


@pytest.mark.fault(36)
def test_offer_that_is_repeated_counts_once_and_its_repetition_is_refused() -> None:
    told: list[Offer] = []

    def say(message: Message) -> list[Message]:
        if not isinstance(message, Offer):
            return [message]
        told.append(message)
        return [message, message]

    after, watches = run_with(say)
    assert len(told) >= 2 * ROUNDS
    for watch in watches:
        assert refused(watch).count("replayed") >= ROUNDS  # more where an offer was made anew on a second connection
        assert set(refused(watch)) == {"replayed"}
        assert [one.missing for one in watch.all(RoundFinished)] == [0] * ROUNDS
    assert after == run_with(honest)[0]


@pytest.mark.fault(36)
def test_old_offer_in_place_of_a_new_one_is_refused() -> None:
    first: dict[str, Offer] = {}
    told: list[Offer] = []

    def say(message: Message) -> list[Message]:
        if not isinstance(message, Offer):
            return [message]
        old = first.setdefault(message.receiver, message)
        if old is not message:
            told.append(old)
        return [old]

    _, watches = run_with(say)
    assert len(told) >= 2 * (ROUNDS - 1)
    for watch in watches:
        assert set(refused(watch)) == {"replayed"}
        assert [one.missing for one in watch.all(RoundFinished)] == [0] + [1] * (ROUNDS - 1)


@pytest.mark.fault(36)
def test_offer_for_another_receiver_is_refused() -> None:
    last: dict[str, Offer] = {}
    told: list[Offer] = []

    def say(message: Message) -> list[Message]:
        if not isinstance(message, Offer):
            return [message]
        last[message.receiver] = message
        others = [offer for receiver, offer in last.items() if receiver != message.receiver]
        told.extend(others)
        return [*others, message]

    after, watches = run_with(say)
    assert told
    reasons = [reason for watch in watches for reason in refused(watch)]
    assert len(reasons) >= ROUNDS
    assert set(reasons) == {"other receiver"}
    assert after == run_with(honest)[0]


@pytest.mark.fault(36)
def test_body_is_served_to_nobody_but_whom_it_is_for() -> None:
    """c asks a for the share that is for b, by its token, and gets that of the same round that is for itself alone."""
    asked: list[str] = []

    class Curious(HttpTransport):
        """Asks for every body once more, in another's name."""

        async def fetch(self, address: str, token: str, peer: str, into: memoryview, owner: str = "") -> None:
            await super().fetch(address, token, peer, into, owner)
            asked.append(token)
            scratch = memoryview(bytearray(len(into)))
            with pytest.raises(Exception, match="gone"):
                await super().fetch(address, token, "z" * 52, scratch, owner)
            assert bytes(scratch) == bytes(len(into))

    async def work() -> None:
        nodes = Nodes(min_peers=3, rounds=2, **PATIENT)
        for name in "abc":
            await nodes.start(name, Numbers(1.0), Curious(("127.0.0.1",), 0) if name == "c" else None)
        await nodes.results()
        for name in "ab":
            turned = [one for one in nodes.all[name].watch.all(Refusal) if one.reason == "not for you"]
            assert [(one.what, one.other) for one in turned] == [("body", "z" * 52)] * 2
        assert len(asked) == 4

    scene(work())


def versions(lowest: int, highest: int) -> Say:
    """Speak these versions, by what is said."""

    def say(message: Message) -> list[Message]:
        return [msgspec.structs.replace(message, versions=(lowest, highest)) if isinstance(message, Hello) else message]

    return say


@pytest.mark.fault(44)
def test_versions_with_a_common_one_work() -> None:
    _, watches = run_with(versions(VERSIONS[1], VERSIONS[1] + 3), 2)
    for watch in watches:
        assert [one.missing for one in watch.all(RoundFinished)] == [0, 0]
        assert refused(watch) == []


@pytest.mark.fault(44)
def test_disjoint_versions_get_a_refusal_at_both_ends_that_names_both() -> None:
    from p2pfl.errors import NetworkError

    async def work() -> None:
        nodes = Nodes(min_peers=2, rounds=2, wait_s=5.0)
        old = await nodes.start("a", Numbers(1.0))
        new = await nodes.start("b", Numbers(1.0), Liar(versions(VERSIONS[1] + 1, VERSIONS[1] + 2)))
        for one in (new, old):
            with pytest.raises(NetworkError, match="no peer was found within 5 s; another peer speaks another version"):
                await one.result()
        refusal = await old.watch.first(Refusal, reason="no common version")
        assert refusal.what == "hello"
        mine, theirs = VERSIONS[1], VERSIONS[1] + 1
        assert refusal.detail.endswith(f"this peer speaks {mine} to {mine}, the other one {theirs} to {theirs + 1}")
        assert 1 < len(old.watch.all(Refusal)) < 20  # it is tried again, and not without end

    scene(work())
