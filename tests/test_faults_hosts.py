"""Faults of a LAN between hosts of their own: pulled cables, partitions, splits, narrow and lossy links.

Every peer learns one number and is tested against 0, so that its test loss tells its model: the square of it.
"""

import os
import signal
from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import sqrt
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any

import pytest
from live import PATIENCE_S, SLACK, Live, Running
from namespaces import Host, heal, lan, namespaces_available, split

pytestmark = [
    pytest.mark.namespaces,
    pytest.mark.skipif(namespaces_available() is not None, reason=str(namespaces_available())),
]

SHORT = bool(os.environ.get("CI"))  # where a fault's length proves nothing, it is shorter in CI
DEAD_WITHIN_S = 6.0 * SLACK
BACK_WITHIN_S = 10.0 * SLACK
DOWN_S = 10.0 * SLACK if SHORT else 30.0  # longer than it takes to be taken for dead
SPLIT_S = 10.0 * SLACK if SHORT else 30.0
WORK: dict[str, Any] = {"rounds": 0, "steps": 4, "step_s": 0.05, "topology": "complete", "goal": 0.0, "max_wait_s": 8.0}


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    with Live(tmp_path) as live:
        yield live


def peers(live: Live, hosts: Sequence[Host], **settings: Any) -> list[Running]:
    """A peer on each host; they have done a few rounds together."""
    names = "abcdefgh"[: len(hosts)]
    started = [
        live.peer(name, host, seat=str(i), target=1.0 + i, **{"min_peers": len(hosts), **WORK, **settings})
        for i, (name, host) in enumerate(zip(names, hosts, strict=True))
    ]
    live.until("all have met, and learn", lambda: all(one.rounds()[-1:] >= [3] for one in started), 2 * PATIENCE_S)
    for one in started:
        assert one.of("ViewTaken")[-1]["members"] == list(names)
    return started


def lasts(seconds: float) -> None:
    """Let a fault go on for so long: its length is part of it."""
    Event().wait(seconds)


def view(one: Running) -> list[str]:
    """The members of its latest rounds."""
    members: list[str] = one.of("ViewTaken")[-1]["members"]
    return members


def goes_on(live: Live, processes: Sequence[Running], rounds: int = 3) -> None:
    """Each does some rounds more."""
    before = {one.name: len(one.rounds()) for one in processes}
    live.until("they go on", lambda: all(len(one.rounds()) >= before[one.name] + rounds for one in processes))


def leave(processes: Sequence[Running]) -> None:
    """All leave well, and none ever went back."""
    for one in processes:
        one.signal(signal.SIGTERM)
    for one in processes:
        assert one.code() == 0, one.told()
        assert all(before < after for before, after in pairwise(one.rounds())), one.rounds()


def deaths(one: Running) -> set[str]:
    """Whom it took for dead."""
    return {gone["name"] for gone in one.of("PeerGone", reason="dead")}


def model(one: Running, since: float = 0.0) -> float:
    """The number it has learned so far."""
    losses: list[float] = [done["test_loss"] for done in one.of("RoundFinished") if done["at"] >= since]
    return sqrt(losses[-1])


def spread(processes: Sequence[Running]) -> float:
    """How far the models of the peers are from each other."""
    models = [model(one) for one in processes]
    return max(models) - min(models)


@pytest.mark.fault(2, 3)
def test_host_without_its_cable_is_dropped_in_six_seconds_and_is_back_with_its_id(live: Live) -> None:
    with lan(4) as hosts:
        *others, d = processes = peers(live, hosts)
        hosts[3].cable("down")
        pulled = monotonic()
        for one in others:
            live.until("d is dead", lambda one=one: one.has("PeerGone", other=d.id), DEAD_WITHIN_S)
            (gone,) = one.of("PeerGone")
            assert (gone["name"], gone["reason"]) == ("d", "dead")
            assert gone["at"] - pulled > 0.5  # the fault: nothing told them, as a reset would have
        goes_on(live, [*others, d])
        lasts(DOWN_S - (monotonic() - pulled))
        assert view(others[0]) == view(others[1]) == view(others[2]) == ["a", "b", "c"]
        assert view(d) == ["d"]

        hosts[3].cable("up")
        plugged = monotonic()
        live.until("d is back", lambda: all(len(view(one)) == 4 for one in processes), BACK_WITHIN_S)
        for one in others:
            assert deaths(one) == {"d"}
            assert {met["name"]: met["other"] for met in one.of("PeerJoined") if met["at"] > plugged} == {"d": d.id}
        goes_on(live, processes)
        leave(processes)


@pytest.mark.fault(4)
def test_two_hosts_that_cannot_reach_each_other_stay_members_through_the_third(live: Live) -> None:
    with lan(3) as hosts:
        a, b, c = processes = peers(live, hosts)
        hosts[0].unheard_by(hosts[1], "on")
        hosts[1].unheard_by(hosts[0], "on")
        cut = monotonic()
        # Longer than it takes to be taken for dead by who hears nothing.
        lasts(2 * DEAD_WITHIN_S)
        assert hosts[0].unheard_packets(hosts[1]) > 0  # the fault
        assert hosts[1].unheard_packets(hosts[0]) > 0
        goes_on(live, processes)
        for one in processes:
            assert not deaths(one)
            assert view(one) == ["a", "b", "c"]
        for one, far in ((a, b), (b, a)):
            assert one.has("ShareRejected", other=far.id)
            last = one.of("RoundFinished")[-1]
            assert (last["neighbors"], last["missing"]) == (2, 1)
            assert last["at"] > cut
        assert (c.of("RoundFinished")[-1]["neighbors"], c.of("RoundFinished")[-1]["missing"]) == (2, 0)

        hosts[0].unheard_by(hosts[1], "off")
        hosts[1].unheard_by(hosts[0], "off")
        healed = monotonic()
        for one, far in ((a, b), (b, a)):
            live.until("the edge is used again", lambda one=one, far=far: received(one, far, healed), 2 * PATIENCE_S)
        leave(processes)


def received(one: Running, other: Running, since: float) -> bool:
    """Whether it had a share of another since then."""
    return any(share["at"] > since for share in one.of("ShareReceived", other=other.id))


@pytest.mark.fault(5)
def test_both_halves_of_a_split_go_on_and_become_one_again(live: Live) -> None:
    with lan(6) as hosts:
        processes = peers(live, hosts)
        left, right = processes[:3], processes[3:]
        together = spread(processes)
        split(hosts[:3], hosts[3:])
        began = monotonic()
        live.until(
            "each half is alone",
            lambda: all(view(one) == list("abc") for one in left) and all(view(one) == list("def") for one in right),
            DEAD_WITHIN_S + PATIENCE_S,
        )
        lasts(SPLIT_S - (monotonic() - began))
        apart = spread(processes)
        assert apart > 1.0 > together  # the fault: the halves learn 2 and 5
        assert all(deaths(one) == set("def") for one in left)
        assert all(deaths(one) == set("abc") for one in right)

        heal(hosts)
        live.until("one view", lambda: all(view(one) == list("abcdef") for one in processes), BACK_WITHIN_S)
        live.until("the models agree again", lambda: spread(processes) < apart / 2)
        goes_on(live, processes)
        leave(processes)


@pytest.mark.fault(29)
def test_heartbeats_pass_while_a_large_model_crosses_a_narrow_link(live: Live) -> None:
    """At 10 Mbit/s each way 50 MB take 40 s; in CI 12 MB are enough: longer than it takes to be taken for dead."""
    megabytes = 12 if SHORT else 50
    with lan(2) as hosts:
        hosts[1].bandwidth(10.0)
        work = {**WORK, "ballast": megabytes * 250_000, "steps": 1, "rounds": 1, "min_peers": 2}
        work |= {"max_wait_s": 600.0, "min_deadline_s": 600.0}
        processes = [
            live.peer(name, host, seat=str(i), target=1.0 + i, **work)
            for i, (name, host) in enumerate(zip("ab", hosts, strict=True))
        ]
        live.all_have(processes, "StateChanged", 2 * PATIENCE_S, state="gathering")
        began, least_s = monotonic(), 8 * megabytes / 10.0
        live.all_have(processes, "RoundFinished", 2 * least_s + PATIENCE_S)
        assert monotonic() - began > 0.8 * least_s  # the fault: the link is as narrow as that
        for one in processes:
            assert not one.has("PeerGone", reason="dead")
            (done,) = one.of("RoundFinished")
            assert (done["neighbors"], done["missing"]) == (1, 0)
            assert one.code() == 0, one.told()


@pytest.mark.fault(30)
def test_training_goes_on_beside_a_link_that_loses_a_fifth(live: Live) -> None:
    with lan(4) as hosts:
        *others, d = processes = peers(live, hosts)
        hosts[3].loss(20)
        began = monotonic()
        lasts(15.0)
        assert hosts[3].lost_packets() > 20  # the fault
        for one in others:
            times = [done["at"] for done in one.of("RoundFinished") if done["at"] > began]
            assert len(times) >= 5
            waits = [after - before for before, after in pairwise([began, *times, monotonic()])]
            assert max(waits) < (8.0 + 1.0) * SLACK  # no longer than a round may wait
            assert deaths(one) <= {"d"}
        assert d.of("RoundFinished")[-1]["at"] > began
        hosts[3].loss(0)
        live.until("one view", lambda: all(view(one) == list("abcd") for one in processes), BACK_WITHIN_S)
        goes_on(live, processes)
        leave(processes)
