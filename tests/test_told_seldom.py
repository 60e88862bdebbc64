"""What others bring about at will fills no disk, and is counted all the same; and what a person reads of it."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from p2pfl.events import Refusal, RoundFinished, RunEvent, ShareRejected, Warned
from p2pfl.sinks import RunFiles
from p2pfl.telemetry.logs import LOGGER, log_refusals, logged
from p2pfl.telemetry.repeats import Seldom

ME, YOU = "a" * 52, "b" * 52


def rejected(round: int, reason: str = "replayed") -> ShareRejected:
    return ShareRejected(peer=ME, round=round, other=YOU, reason=reason)


def finished(round: int) -> RoundFinished:
    return RoundFinished(peer=ME, round=round, steps=1, neighbors=1, missing=1)


def fail(text: str) -> None:
    raise AssertionError(text)


def files(folder: Path, events: Sequence[RunEvent]) -> list[dict[str, object]]:
    """What a run's `events.jsonl` holds of them."""
    run = RunFiles(folder, fail)
    run.open()
    run._began = True  # or the files are taken away
    for event in events:
        run(event)
    run.close()
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def log(folder: Path, events: Sequence[RunEvent]) -> list[dict[str, object]]:
    """What a log in JSON holds of them."""
    with logged(str(folder / "log"), False, fail) as sinks:
        for event in events:
            for sink in sinks:
                sink(event)
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()]


@pytest.mark.parametrize("written", [files, log])
def test_a_flood_of_shares_is_few_lines_a_round_with_their_counts_whatever_round_they_name(
    written: Callable[[Path, Sequence[RunEvent]], list[dict[str, object]]], tmp_path: Path
) -> None:
    events: list[RunEvent] = [rejected(1000 + number) for number in range(500)]
    lines = written(tmp_path, [*events, finished(0), *events])
    told = [one.get("times", 1) for one in lines if one["event"] == "ShareRejected"]
    assert told == [1, 10, 100, 1, 10, 100]


@pytest.mark.parametrize("written", [files, log])
def test_each_round_without_a_share_is_told(
    written: Callable[[Path, Sequence[RunEvent]], list[dict[str, object]]], tmp_path: Path
) -> None:
    rounds = [event for round in range(30) for event in (rejected(round, "missing"), finished(round))]
    lines = written(tmp_path, rounds)
    assert [one["round"] for one in lines if one["event"] == "ShareRejected"] == list(range(30))


@pytest.mark.parametrize("written", [files, log])
def test_a_warning_that_comes_again_is_told_seldom(
    written: Callable[[Path, Sequence[RunEvent]], list[dict[str, object]]], tmp_path: Path
) -> None:
    lines = written(tmp_path, [Warned(peer=ME, text="the disk is full")] * 1000 + [Warned(peer=ME, text="another")])
    assert [one["text"] for one in lines] == ["the disk is full"] * 4 + ["another"]


def test_the_summary_counts_all_that_is_not_told(tmp_path: Path) -> None:
    run = RunFiles(tmp_path, fail)
    for number in range(500):
        run(rejected(number))
    assert run.failures == {"replayed": 500}


def test_the_memory_for_what_is_told_seldom_is_bounded() -> None:
    seldom = Seldom()
    for number in range(10000):
        seldom.told(Warned(peer=ME, text=str(number)))
    assert len(seldom._repeats._counts) <= 4096


OPENSSL = Refusal(
    peer=ME,
    what="connection",
    reason="other network",
    other=YOU,
    remote="10.0.0.9",
    detail="[SSL: CALLBACK_FAILED] callback failed (_ssl.c:1006)",
)


def test_the_words_of_openssl_are_for_programs_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger=LOGGER):
        log_refusals()(OPENSSL)
    [line] = caplog.messages
    assert line.startswith("refused connection: other network (peer bbbbbbbb, remote 10.0.0.9). It belongs to another")
    [whole] = log(tmp_path, [OPENSSL])
    assert whole["detail"] == OPENSSL.detail
    assert whole["other"] == YOU  # as `p2pfl network ban` needs it


def test_a_warning_of_the_run_is_not_shown_twice(capsys: pytest.CaptureFixture[str]) -> None:
    with logged(None, True, fail) as sinks:
        for sink in sinks:
            sink(Warned(peer=ME, text="the disk is full"))
            sink(OPENSSL)
        logging.getLogger("p2pfl.shell").warning("a fault of ours")
    lines = capsys.readouterr().err.splitlines()
    assert ["other network" in lines[0], "a fault of ours" in lines[1], len(lines)] == [True, True, 2]
