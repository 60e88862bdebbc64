"""Plans of faults, and the book that finds broken promises: no process is started here."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from p2pfl.chaos.plan import KINDS, Injection, plan
from p2pfl.chaos.promises import Book, Life, Seen, Vitals, growth
from p2pfl.cli import app
from p2pfl.errors import UsageError
from p2pfl.events import (
    Listening,
    PeerGone,
    PeerJoined,
    Refusal,
    RoundFinished,
    ShareReceived,
    ShareRejected,
    ViewTaken,
    Warned,
)

LOOPBACK = [name for name, kind in KINDS.items() if not kind.hosts]


# Plans


def test_a_seed_gives_the_same_faults_at_the_same_times() -> None:
    assert plan(1, 8, 300.0, LOOPBACK) == plan(1, 8, 300.0, LOOPBACK)
    assert plan(1, 8, 300.0, LOOPBACK) != plan(2, 8, 300.0, LOOPBACK)


def test_a_plan_is_as_it_was() -> None:
    """A seed in a report is of use as long as it gives the same plan."""
    first, second, *_ = plan(1, 4, 60.0, ["kill", "pause"])
    assert (first, second) == (
        Injection(at_s=0.842, kind="kill", targets=(1,), seconds=6.658),
        Injection(at_s=20.81, kind="pause", targets=(2,), seconds=2.057),
    )


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 1000), peers=st.integers(4, 16), seconds=st.floats(30.0, 2000.0))
def test_enough_peers_are_always_well(seed: int, peers: int, seconds: float) -> None:
    planned = plan(seed, peers, seconds, list(KINDS))
    assert [one.at_s for one in planned] == sorted(one.at_s for one in planned)
    for one in planned:
        assert one.until_s <= seconds + 0.01
        assert all(0 <= target < peers for target in one.targets)
        at_once = [
            target
            for other in planned
            if KINDS[other.kind].disturbs and other.at_s <= one.at_s < other.until_s
            for target in other.targets
        ]
        assert len(at_once) == len(set(at_once))
        assert len(at_once) <= max(1, peers // 3) or any(
            KINDS[other.kind].all and other.at_s <= one.at_s < other.until_s for other in planned
        )


def test_every_kind_comes_before_any_comes_again() -> None:
    planned = [one.kind for one in plan(3, 8, 1800.0, LOOPBACK)]
    assert len(planned) > 200
    counts = [planned.count(kind) for kind in LOOPBACK]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    ("peers", "kinds", "text"),
    [
        (8, ["kill", "flood"], "flood is no fault: choose among kill, replace, leave"),
        (8, [], "none is no fault: choose among kill"),
        (3, ["kill"], "3 peers are too few: with 4 or more the others can go on without one"),
    ],
)
def test_impossible_plans_say_the_mend(peers: int, kinds: Sequence[str], text: str) -> None:
    with pytest.raises(UsageError) as raised:
        plan(0, peers, 60.0, kinds)
    assert str(raised.value).startswith(text)


# The book


def book_of(count: int = 2) -> tuple[Book, list[Life]]:
    """Peers that listen."""
    book = Book([f"peer-{number + 1}" for number in range(count)], longest_wait_s=9.0, back_within_s=10.0)
    lives = [book.begin(position, 0.0) for position in range(count)]
    for life in lives:
        name = book.names[life.position]
        book.take(life, Listening(peer=f"id-{life.position}", name=name, seat="0", addresses=()), 0.0)
    return book, lives


def finished(round: int, neighbors: int = 0, missing: int = 0, **facts: Any) -> RoundFinished:
    return RoundFinished(peer="id-0", round=round, steps=1, neighbors=neighbors, missing=missing, **facts)


def during(book: Book, kind: str, targets: tuple[int, ...], began_s: float, ended_s: float | None = None) -> Seen:
    """A fault that goes on since a time."""
    seen = Seen(Injection(began_s, kind, targets, 1.0), began_s, ended_s)
    book.seen.append(seen)
    return seen


def test_good_rounds_break_nothing() -> None:
    book, (life, _) = book_of()
    book.take(life, ShareReceived(peer="id-0", round=0, other="id-1", bytes=8), 1.0)
    book.take(life, finished(0, 2, 1, row_sum=1.0), 2.0)
    book.take(life, finished(1, 2, 2, row_sum=1.0 - 1e-12), 4.0)
    assert (book.broken, book.rows, book.rounds, book.longest_gap_s) == ({}, 2, 2, 2.0)


@pytest.mark.parametrize(
    ("events", "promise"),
    [
        ([finished(0, row_sum=0.999)], "rows sum to one"),
        ([finished(3), finished(3)], "rounds only grow"),
        ([finished(3), finished(2)], "rounds only grow"),
        ([finished(0, 2, 1)], "what was received is what was mixed"),
        (
            [
                ShareRejected(peer="id-0", round=0, other="id-1", reason="not finite"),
                ShareReceived(peer="id-0", round=0, other="id-1", bytes=8),
            ],
            "no refused share is taken in",
        ),
        (
            [PeerGone(peer="id-0", other="id-1", name="peer-2", reason="dead")],
            "nobody is declared dead who can be reached",
        ),
    ],
)
def test_a_broken_promise_is_told(events: Sequence[Any], promise: str) -> None:
    book, (life, _) = book_of()
    for number, event in enumerate(events):
        book.take(life, event, 100.0 + number)
    assert book.broken == {promise: 1}
    assert promise in book.told[0]
    assert "peer-1 (life 1)" in book.told[0]


def test_shares_of_a_round_that_was_given_up_or_refused_after_all_are_not_missed_in_another() -> None:
    book, (life, _) = book_of()
    book.take(life, ShareReceived(peer="id-0", round=3, other="id-1", bytes=8), 1.0)
    book.take(life, ShareReceived(peer="id-0", round=5, other="id-1", bytes=8), 1.0)
    book.take(life, ShareReceived(peer="id-0", round=5, other="id-2", bytes=8), 1.0)
    book.take(life, ShareRejected(peer="id-0", round=5, other="id-2", reason="absurd norm"), 1.5)
    book.take(life, finished(5, 2, 1), 2.0)
    assert book.broken == {}


@pytest.mark.parametrize(("meets_again", "faults"), [(False, 0), (True, 1)])
def test_word_of_the_death_of_one_that_ended_is_true_until_the_next_one_was_met(meets_again: bool, faults: int) -> None:
    book, (life, other) = book_of()
    joined = PeerJoined(peer="id-0", other="id-1", name="peer-2", seat="1")
    book.take(life, joined, 1.0)
    other.expected_end = True
    book.end(other, 2.0, "killed")
    again = book.begin(1, 3.0)
    book.take(again, Listening(peer="id-1", name="peer-2", seat="1", addresses=()), 3.0)
    if meets_again:
        book.take(life, joined, 99.0)
    book.take(life, PeerGone(peer="id-0", other="id-1", name="peer-2", reason="dead"), 100.0)
    assert book.broken.total() == faults


def test_a_lost_share_may_come_yet() -> None:
    book, (life, _) = book_of()
    book.take(life, ShareRejected(peer="id-0", round=0, other="id-1", reason="broken off"), 1.0)
    book.take(life, ShareReceived(peer="id-0", round=0, other="id-1", bytes=8), 2.0)
    assert (book.broken, book.failures) == ({}, {"broken off": 1})


def test_a_stall_is_excused_by_a_fault_of_ones_own_alone() -> None:
    book, (life, other) = book_of()
    during(book, "pause", (0,), began_s=101.0, ended_s=111.0)
    book.take(life, finished(0), 100.0)
    book.take(life, finished(1), 112.0)
    assert book.broken == {}
    book.take(other, finished(0), 100.0)
    book.take(other, finished(1), 112.0)
    assert book.broken == {"no stall is longer than a round may wait": 1}
    assert book.longest_gap_s == 12.0


@pytest.mark.parametrize(
    ("kind", "target", "excused"),
    [
        ("pause", 1, True),  # the one that was held is taken for dead
        ("pause", 0, False),  # who was held takes another for dead
        ("link", 0, True),  # who is cut off takes the others for dead
        ("garbage", 1, False),
        ("hog", 1, False),
        ("split", 0, True),
        ("split", 1, True),
    ],
)
def test_a_death_is_excused_by_what_cuts_off_or_holds(kind: str, target: int, excused: bool) -> None:
    book, (life, _) = book_of()
    during(book, kind, (target,), began_s=10.0)
    book.take(life, PeerGone(peer="id-0", other="id-1", name="peer-2", reason="dead"), 17.0)
    assert (book.broken == {}) is excused


def test_a_former_life_may_be_called_dead() -> None:
    book, (life, other) = book_of()
    other.expected_end = True
    book.end(other, 5.0, "its process ended with signal 9")
    book.take(life, PeerGone(peer="id-0", other="id-1", name="peer-2", reason="dead"), 50.0)
    assert book.broken == {}


def test_a_process_that_ends_by_itself_is_told() -> None:
    book, (life, _) = book_of()
    book.end(life, 5.0, "its process ended with status 1")
    assert book.broken == {"no process ends by itself": 1}


def test_evidence_is_counted_for_the_fault_that_goes_on() -> None:
    book, (life, other) = book_of()
    killed = during(book, "kill", (1,), began_s=1.0)
    full = during(book, "disk", (0,), began_s=1.0)
    noise = during(book, "garbage", (0,), began_s=1.0)
    book.end(other, 1.1, "")
    book.take(life, PeerGone(peer="id-0", other="id-1", name="peer-2", reason="dead"), 2.0)
    book.take(life, Refusal(peer="id-0", what="connection", reason="said nothing"), 2.0)
    book.take(life, Warned(peer="id-0", text="the checkpoint of round 3 was not written"), 2.0)
    assert (killed.proofs, full.proofs, noise.proofs) == ({"dead": 1}, {"warnings": 1}, {"refusals": 1})
    assert book.refusals == {"said nothing": 1}


def test_who_is_not_back_in_time_and_a_view_that_is_not_whole_are_told_at_the_end() -> None:
    book, (life, other) = book_of()
    back, cut = during(book, "kill", (0,), 1.0, 2.0), during(book, "kill", (1,), 1.0, 2.0)
    book.take(life, ViewTaken(peer="id-0", round=0, members=("peer-1", "peer-2"), topology="ring"), 3.0)
    book.take(other, ViewTaken(peer="id-1", round=0, members=("peer-2",), topology="ring"), 3.0)
    book.take(life, finished(0), 5.0)
    book.close(60.0)
    assert back.back_s == 3.0
    assert cut.back_s is None
    assert book.broken == {"all views are equal, and whole, in the end": 1, "who had a fault is back in time": 1}


def test_a_split_is_over_once_all_have_each_other_in_view() -> None:
    book, lives = book_of(4)
    split = during(book, "split", (0, 1), 1.0, 9.0)
    halves, whole = ("peer-1", "peer-2"), tuple(book.names)
    for life in lives:
        book.take(life, ViewTaken(peer=life.peer, round=0, members=halves, topology="ring"), 5.0)
        book.take(life, finished(0), 10.0)
    assert split.back_s is None
    for number, life in enumerate(lives):
        book.take(life, ViewTaken(peer=life.peer, round=1, members=whole, topology="ring"), 11.0)
        book.take(life, finished(1), 12.0 + number)
        assert split.back_s == (6.0 if number == 3 else None)


def test_accuracy_is_the_mean_of_the_last_rounds_of_all() -> None:
    book, (life, other) = book_of()
    for round, accuracy in enumerate((0.1, 0.8, 0.8, 0.8, 0.8, 0.8)):
        book.take(life, finished(round, test_accuracy=accuracy), round)
    book.take(other, finished(0, test_accuracy=0.6), 0.0)
    assert book.accuracy == pytest.approx(0.7)


def vitals(memory_mb: float = 200.0, descriptors: int = 40, tasks: int = 20, growth: float = 1.0) -> list[Vitals]:
    """A minute and a half, with what grows over it to so many times what it was."""
    samples = 46
    grown = [1.0 + (growth - 1.0) * index / (samples - 1) for index in range(samples)]
    return [
        Vitals(2.0 * index, memory_mb * factor, int(descriptors * factor), int(tasks * factor))
        for index, factor in enumerate(grown)
    ]


def test_growth_is_told_and_noise_is_not() -> None:
    assert list(growth(vitals())) == []
    assert list(growth(vitals(growth=1.05))) == []
    told = list(growth(vitals(growth=2.0)))
    assert [text.split(" grew")[0] for text in told] == ["memory", "descriptors", "tasks"]
    assert list(growth(vitals(growth=2.0)[:20])) == []  # too short a life to say
    assert list(growth([])) == []


# The command


@pytest.mark.parametrize(
    ("faults", "text"),
    [
        ("kill,flood", "flood is no fault: choose among kill, replace, leave"),
        ("kill,link,loss", "link, loss happens between hosts: add --hosts"),
    ],
)
def test_command_refuses_faults_that_it_cannot_make_in_one_line(tmp_path: Path, faults: str, text: str) -> None:
    result = CliRunner().invoke(app.app, ["chaos", "--faults", faults, "--out", str(tmp_path / "run")])
    assert isinstance(result.exception, UsageError)
    assert str(result.exception).startswith(text)
    assert not (tmp_path / "run" / "events.jsonl").exists()
