"""Logs: what is told of refusals, how often, and what is never told."""

import io
import json
import logging
import secrets
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import UsageError
from p2pfl.events import Listening, PeerGone, Refusal, RunEvent, ShareRejected, Warned
from p2pfl.identity import Identity
from p2pfl.network_key import NetworkKey
from p2pfl.telemetry.logs import LOGGER, STRUCK, JsonLines, log_refusals, logged, without_secrets
from p2pfl.telemetry.repeats import Refusals, Repeats, place_of

ME = "a" * 52
NO_TLS = Refusal(
    peer=ME, time_s=1.5, what="connection", reason="no TLS", remote="10.0.0.9:4242", connection=7, detail="GET /"
)


def fail(text: str) -> None:
    raise AssertionError(text)


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_repeat_is_told_first_and_at_powers_of_ten() -> None:
    repeats = Repeats()
    assert [n for _ in range(12345) if (n := repeats.count("x")) is not None] == [1, 10, 100, 1000, 10000]
    assert repeats.count("y") == 1


def test_the_memory_for_repeats_is_bounded() -> None:
    repeats = Repeats(keys=3)
    for key in "abcd":
        assert repeats.count(key) == 1
    assert [repeats.count(key) for key in "bcd"] == [None, None, None]
    assert repeats.count("a") == 1  # forgotten, as the one not seen for longest


def test_what_goes_on_is_told_once_a_minute() -> None:
    now = 0.0
    repeats = Repeats(clock=lambda: now)
    told = []
    for second in range(200):
        now = float(second)
        told.append(repeats.count("x"))
    assert [(second, times) for second, times in enumerate(told) if times] == [
        (0, 1),
        (9, 10),
        (69, 70),
        (99, 100),
        (159, 160),
    ]


@pytest.mark.parametrize(
    ("remote", "place"),
    [
        ("10.0.0.9:4242", "10.0.0.9"),
        ("[2001:db8:1:2:3:4:5:6]:4242", "2001:db8:1:2::/64"),
        ("[fe80::1%eth0]:4242", "fe80::/64"),
        ("some.host:1", "some.host"),
        ("", ""),
    ],
)
def test_a_place_is_a_host_or_the_net_that_a_host_has_to_itself(remote: str, place: str) -> None:
    assert place_of(remote) == place


def test_however_many_addresses_a_flood_has_it_is_few_lines() -> None:
    refusals = Refusals(clock=lambda: 0.0)

    def flood(remotes: list[str]) -> int:
        return sum(refusals.count(msgspec.structs.replace(NO_TLS, remote=remote)) is not None for remote in remotes)

    assert flood([f"[2001:db8::{number:x}]:1" for number in range(5000)]) == 4  # of one net: 1, 10, 100, 1000
    assert flood([f"[2001:db8:0:{number + 1:x}::1]:1" for number in range(5000)]) == 15 + 1 + 3
    assert refusals.count(msgspec.structs.replace(NO_TLS, reason="old TLS")) == 1  # another kind is told at once


def test_names_of_others_forge_no_line_and_steer_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    name = "eve\n20:00:00 info all is well\x1b[2J\x9b1m"
    with logged("-", True, fail) as sinks:
        for sink in sinks:
            sink(PeerGone(peer=ME, other="d" * 52, name=name, reason="dead"))
        logging.getLogger("p2pfl.shell").warning("heard of %s", name)
    err = capsys.readouterr().err
    assert not {"\x1b", "\x9b"} & set(err)
    lines = err.splitlines()
    assert "eve 20:00:00 info all is well[2J1m" in err
    assert [line for line in lines if line.startswith("20:00:00 info all")] == []
    assert sum(line.startswith("  20:00:00 info all is well") for line in lines) == 1


def test_a_refusal_is_logged_with_reason_and_where_it_came_from(caplog: pytest.LogCaptureFixture) -> None:
    sink = log_refusals()
    with caplog.at_level(logging.INFO, logger=LOGGER):
        sink(NO_TLS)
        sink(Refusal(peer=ME, what="hello", reason="wrong peer id", other="b" * 52, connection=8, round=3))
        sink(ShareRejected(peer=ME, round=4, other="c" * 52, reason="not finite"))
        sink(PeerGone(peer=ME, other="d" * 52, name="dan", reason="dead"))
        sink(PeerGone(peer=ME, other="e" * 52, name="eve", reason="left"))
    first, second, third, fourth = caplog.messages
    assert first.startswith("refused connection: no TLS (remote 10.0.0.9:4242, connection 7, detail GET /). It spoke")
    assert second.startswith("refused hello: wrong peer id (peer bbbbbbbb, connection 8, round 3). Its hello names")
    assert third.startswith("no share: not finite (peer cccccccc, round 4). The model has NaN")
    assert fourth == "taken for dead: peer dddddddd, dan"


def test_a_flood_from_one_address_is_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    sink = log_refusals()
    with caplog.at_level(logging.INFO, logger=LOGGER):
        for number in range(1000):  # other ports, connections and ids
            sink(
                Refusal(
                    peer=ME,
                    what="hello",
                    reason="wrong peer id",
                    other=f"{number:052}",
                    remote=f"10.0.0.9:{number}",
                    connection=number,
                )
            )
        sink(Refusal(peer=ME, what="hello", reason="wrong peer id", remote="10.0.0.10:1"))
    assert len(caplog.messages) == 5
    assert [message.rpartition(" (")[2] for message in caplog.messages[1:4]] == [
        "10 times)",
        "100 times)",
        "1000 times)",
    ]


def test_all_events_become_lines_of_json(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with logged(str(path), False, fail) as sinks:
        for event in (Listening(peer=ME, name="ann", seat="0", addresses=("h:1",), time_s=0.25), NO_TLS):
            for sink in sinks:
                sink(event)
        logging.getLogger("p2pfl.shell").warning("a message from %s", "afar")
    listening, refusal, record = lines_of(path)
    assert listening.pop("time").endswith("+00:00")  # type: ignore[attr-defined]  # it is text
    expected = {"event": "Listening", "peer": ME, "time_s": 0.25, "name": "ann", "seat": "0", "addresses": ["h:1"]}
    assert listening == expected
    assert (refusal["reason"], refusal["connection"], refusal["remote"]) == ("no TLS", 7, "10.0.0.9:4242")
    assert (record["event"], record["level"], record["logger"]) == ("Logged", "warning", "p2pfl.shell")
    assert record["text"] == "a message from afar"


def test_a_flood_is_few_lines_of_json_too(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with logged(str(path), False, fail) as sinks:
        for _ in range(100):
            for sink in sinks:
                sink(NO_TLS)
    assert [line.get("times", 1) for line in lines_of(path)] == [1, 10, 100]


def test_verbose_tells_a_person_on_stderr_and_stops_with_the_context(capsys: pytest.CaptureFixture[str]) -> None:
    with logged(None, True, fail) as sinks:
        for sink in sinks:
            sink(NO_TLS)
    for sink in sinks:
        sink(ShareRejected(peer=ME, round=4, other="c" * 52, reason="late"))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert " info refused connection: no TLS (remote" in err


def test_nothing_is_told_unless_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with logged(None, False, fail) as sinks:
        for sink in sinks:
            sink(NO_TLS)
    assert capsys.readouterr() == ("", "")


def test_minus_is_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with logged("-", False, fail) as sinks:
        for sink in sinks:
            sink(NO_TLS)
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err)["reason"] == "no TLS"


def test_a_log_that_cannot_be_opened_says_the_mend(tmp_path: Path) -> None:
    expected = pytest.raises(UsageError, match=r"--log-json .*: Is a directory; choose another file, or - for stderr")
    with expected, logged(str(tmp_path), False, fail):
        pass


@pytest.mark.fault(32)
def test_a_full_disk_costs_the_log_and_is_told_once() -> None:
    told: list[str] = []
    with Path("/dev/full").open("w") as full:
        lines = JsonLines(full, told.append)
        for number in range(3):
            lines(Warned(peer=ME, text=str(number)))
        assert told == ["the log ends here: [Errno 28] No space left on device; the run goes on"]
        with suppress(OSError):  # what could not be written then cannot be now
            full.close()


def test_a_token_in_any_spelling_is_struck_out() -> None:
    token = NetworkKey("home", bytes(range(32))).token
    text = token.partition(":")[2]
    for spelled in (text, text.upper(), text.replace("-", ""), text.replace("-", " ")):
        assert without_secrets(f"joined by home:{spelled}, today") == f"joined by home:{STRUCK}, today"


@given(st.binary(min_size=32, max_size=32), st.sampled_from(["lab", "a-b", "büro"]))
def test_no_token_is_ever_written(secret: bytes, name: str) -> None:
    token = NetworkKey(name, secret).token
    stream = io.StringIO()
    lines = JsonLines(stream, fail)
    events: list[RunEvent] = [
        Warned(peer=ME, text=f"cannot use {token}"),
        Refusal(peer=ME, what="hello", reason="other network", detail=f"'{token}'", remote="10.0.0.1:5"),
    ]
    for event in events:
        lines(event)
    lines.record(logging.LogRecord("p2pfl.x", logging.ERROR, "f", 1, "failed with %r", (token,), None))
    written = stream.getvalue()
    assert written.count("\n") == 3
    assert token.partition(":")[2] not in written
    assert token.partition(":")[2].replace("-", "") not in written


def test_private_keys_are_struck_out_and_ids_are_not() -> None:
    pem = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA==\n-----END PRIVATE KEY-----"
    assert without_secrets(f"key: {pem}.") == f"key: {STRUCK}."
    ids = " ".join(Identity(secrets.token_bytes(32)).peer for _ in range(20))
    assert without_secrets(ids) == ids
