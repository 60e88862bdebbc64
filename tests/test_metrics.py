"""The metrics of a peer, and the listener that shows them."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

import pytest
import torch
from live import SLACK
from prometheus_client.parser import text_string_to_metric_families

from p2pfl.checkpoint import Generations, Saved
from p2pfl.errors import NetworkError, UsageError
from p2pfl.events import (
    Listening,
    PeerGone,
    PeerJoined,
    Refusal,
    RoundFinished,
    RoundsSkipped,
    ShareReceived,
    ShareRejected,
    ShareSent,
    StateChanged,
    Warned,
)
from p2pfl.layout import Layout
from p2pfl.model_files import Checkpoint
from p2pfl.telemetry.listener import address_of, shown
from p2pfl.telemetry.metrics import Metrics

# Straight there: `urlopen` keeps the proxy that the environment of an earlier test named.
urlopen = build_opener(ProxyHandler({})).open
ME, YOU = "a" * 52, "b" * 52
EVENTS = (
    Listening(peer=ME, name="ann", seat="0", addresses=("10.0.0.1:7470",)),
    StateChanged(peer=ME, state="waiting", round=0),
    PeerJoined(peer=ME, other=YOU, name="bob", seat="1"),
    StateChanged(peer=ME, state="training", round=3),
    ShareSent(peer=ME, round=3, other=YOU, bytes=100),
    ShareReceived(peer=ME, round=3, other=YOU, bytes=60),
    ShareReceived(peer=ME, round=3, other=YOU, bytes=40),
    ShareRejected(peer=ME, round=3, other=YOU, reason="late"),
    ShareRejected(peer=ME, round=3, other=YOU, reason="a phrase that a stranger made up"),
    Refusal(peer=ME, what="connection", reason="no TLS", remote="10.0.0.9"),
    Refusal(peer=ME, what="connection", reason="no TLS", remote="10.0.0.8"),
    Refusal(peer=ME, what="spell", reason="abracadabra"),
    RoundsSkipped(peer=ME, after=3, next=7),
    RoundFinished(
        peer=ME,
        round=3,
        steps=10,
        neighbors=1,
        missing=0,
        train_loss=0.5,
        test_accuracy=0.75,
        train_s=2.0,
        wait_s=0.5,
        mix_s=0.25,
        control_bytes_sent=7,
        control_bytes_received=8,
    ),
    Warned(peer=ME, text="the checkpoint of round 4 was not written: disk full; training goes on"),
    PeerGone(peer=ME, other=YOU, name="bob", reason="dead"),
)


def values(metrics: Metrics) -> dict[str, float]:
    """`name{label=value,…}` -> value, of our own series."""
    found = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics()
    for event in EVENTS:
        metrics(event)
    return metrics


def test_events_become_metrics(metrics: Metrics) -> None:
    expected = {
        f"p2pfl_peer_info{{name=ann,peer={ME},seat=0}}": 1,
        "p2pfl_state{state=training}": 1,
        "p2pfl_state{state=waiting}": 0,
        "p2pfl_round": 3,
        "p2pfl_rounds_total": 1,
        "p2pfl_rounds_skipped_total": 3,
        "p2pfl_steps_total": 10,
        "p2pfl_round_seconds_sum": 2.75,
        "p2pfl_round_seconds_count": 1,
        "p2pfl_phase_seconds_total{phase=train}": 2,
        "p2pfl_phase_seconds_total{phase=wait}": 0.5,
        "p2pfl_phase_seconds_total{phase=mix}": 0.25,
        "p2pfl_train_loss": 0.5,
        "p2pfl_test_accuracy_ratio": 0.75,
        "p2pfl_peers{state=connected}": 0,
        "p2pfl_peers{state=dead}": 1,
        "p2pfl_shares_total{direction=received}": 2,
        "p2pfl_share_bytes_total{direction=received}": 100,
        "p2pfl_share_bytes_total{direction=sent}": 100,
        "p2pfl_control_bytes_total{direction=sent}": 7,
        "p2pfl_control_bytes_total{direction=received}": 8,
        "p2pfl_shares_rejected_total{reason=late}": 1,
        "p2pfl_refusals_total{reason=no TLS,what=connection}": 2,
        "p2pfl_checkpoint_failures_total": 1,
        "p2pfl_warnings_total": 1,
    }
    found = values(metrics)
    assert {name: found.get(name) for name in expected} == expected


def test_what_strangers_make_up_makes_no_new_series(metrics: Metrics) -> None:
    before = set(values(metrics))
    for number in range(100):
        metrics(Refusal(peer=ME, what=f"w{number}", reason=f"r{number}", remote=f"10.0.0.{number}"))
        metrics(ShareRejected(peer=ME, round=number, other=f"{number:052}", reason=f"r{number}"))
    found = values(metrics)
    assert set(found) == before
    assert found["p2pfl_refusals_total{reason=other,what=other}"] == 101
    assert found["p2pfl_shares_rejected_total{reason=other}"] == 101


def test_memory_of_peers_is_bounded() -> None:
    metrics = Metrics()
    for number in range(5000):
        metrics(PeerJoined(peer=ME, other=f"{number:052}", name="n", seat="s"))
    assert values(metrics)["p2pfl_peers{state=connected}"] == 4096


def test_a_peer_that_comes_back_is_counted_once(metrics: Metrics) -> None:
    metrics(PeerJoined(peer=ME, other=YOU, name="bob", seat="1"))
    found = values(metrics)
    assert (found["p2pfl_peers{state=connected}"], found["p2pfl_peers{state=dead}"]) == (1, 0)


@pytest.mark.fault(32)
def test_checkpoints_that_fail_are_seen_until_they_do_no_more(tmp_path: Path) -> None:
    metrics = Metrics()
    layout = Layout((("w", (2,)),))
    facts = Checkpoint(peer=ME, seat="0", name="ann", network="home", incarnation=1, round=4, settings={})
    saved = Saved(facts, torch.zeros(2))
    folder = tmp_path / "checkpoints"
    folder.write_text("a file where the folder should be")
    generations = Generations(folder / "ann.safetensors", lambda text: metrics(Warned(peer=ME, text=text)))
    assert not generations.save(saved, layout)
    assert values(metrics)["p2pfl_checkpoints_failing"] == values(metrics)["p2pfl_checkpoint_failures_total"] == 1
    folder.unlink()
    assert generations.save(saved, layout)
    assert values(metrics)["p2pfl_checkpoints_failing"] == 0
    assert values(metrics)["p2pfl_checkpoint_failures_total"] == 1


def test_no_series_tells_when_another_began(metrics: Metrics) -> None:
    for asked in ("", "?name[]=p2pfl_rounds_total"):
        with shown(metrics.registry, "127.0.0.1", 0) as address:
            text = urlopen(f"http://{address}/metrics{asked}", timeout=10).read().decode()
        assert "p2pfl_rounds_total" in text
        assert "_created" not in text


def test_what_a_peer_does_is_a_series_from_the_start() -> None:
    metrics = Metrics()
    metrics(Listening(peer=ME, name="ann", seat="0", addresses=("10.0.0.1:7470",)))
    assert values(metrics)["p2pfl_state{state=waiting}"] == 1.0


def test_names_carry_their_unit_and_what_only_grows_ends_in_total(metrics: Metrics) -> None:
    for family in metrics.registry.collect():
        assert not family.name.endswith(("_s", "_ms", "_kb", "_percent")), family.name
        if family.type == "counter":
            assert all(sample.name.endswith(("_total", "_created")) for sample in family.samples)


class Loop(asyncio.AbstractEventLoop):
    """An event loop of which the test says what time it is."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[asyncio.TimerHandle] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        self.timers.append(asyncio.TimerHandle(when, callback, args, self, context))
        return self.timers[-1]

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        self.timers.remove(handle)

    def get_debug(self) -> bool:
        return False

    def at(self, now: float) -> None:
        """Run what is due, late or not."""
        self.now = now
        due, self.timers = self.timers, []
        for timer in due:
            timer._run()


def test_the_lag_of_the_event_loop_is_seen() -> None:
    metrics, loop = Metrics(), Loop()
    with metrics.watching(loop):
        loop.at(100.25)
        assert values(metrics)["p2pfl_event_loop_lag_seconds_sum"] == 0
        loop.at(101.5)  # it was due a second earlier: somebody has blocked the loop
        assert values(metrics)["p2pfl_event_loop_lag_seconds_sum"] == 1.0
        loop.at(101.75)
        assert values(metrics)["p2pfl_event_loop_lag_seconds_count"] == 3
        assert values(metrics)["p2pfl_event_loop_lag_seconds_sum"] == 1.0
    assert loop.timers == []  # nothing goes on behind the context


def test_the_tasks_of_the_event_loop_are_counted() -> None:
    metrics = Metrics()

    async def program() -> None:
        looked = asyncio.Event()
        loop = asyncio.get_running_loop()
        with metrics.watching(loop):
            loop.call_later(0.3, looked.set)
            await looked.wait()

    asyncio.run(program())
    assert values(metrics)["p2pfl_tasks"] == 1


def test_the_listener_shows_what_prometheus_can_read(metrics: Metrics) -> None:
    with shown(metrics.registry, "127.0.0.1", 0) as address:
        assert address.startswith("127.0.0.1:")
        with urlopen(f"http://{address}/metrics", timeout=5 * SLACK) as answer:
            text = answer.read().decode()
        families = {family.name for family in text_string_to_metric_families(text)}
        assert {"p2pfl_rounds", "p2pfl_refusals", "process_resident_memory_bytes", "process_open_fds"} <= families
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urlopen(f"http://{address}/", timeout=5 * SLACK)
    with pytest.raises(urllib.error.URLError):
        urlopen(f"http://{address}/metrics", timeout=5 * SLACK)


def test_somebody_who_says_nothing_does_not_silence_the_listener(metrics: Metrics) -> None:
    with shown(metrics.registry, "127.0.0.1", 0) as address:
        host, _, port = address.partition(":")
        with socket.create_connection((host, int(port)), timeout=5 * SLACK) as silent:
            silent.sendall(b"GET /metr")
            with urlopen(f"http://{address}/metrics", timeout=10 * SLACK) as answer:
                assert answer.status == 200


def test_a_crowd_that_drips_does_not_silence_the_listener_and_is_cut_at_the_deadline(metrics: Metrics) -> None:
    with shown(metrics.registry, "127.0.0.1", 0) as address, ExitStack() as stack:
        host, _, port = address.rpartition(":")
        crowd = [stack.enter_context(socket.create_connection((host, int(port)), timeout=5 * SLACK)) for _ in range(20)]
        for end in crowd:
            end.sendall(b"GET /metr")
        began = time.monotonic()
        with urlopen(f"http://{address}/metrics", timeout=1 * SLACK) as answer:
            assert answer.status == 200
        last = crowd[-1]
        last.settimeout(0.2)  # between its drops: each piece comes in time, the whole never does
        while True:
            assert time.monotonic() - began < 4 * SLACK
            with suppress(TimeoutError):
                try:
                    last.sendall(b"i")
                    if last.recv(1) == b"":
                        break
                except ConnectionError:
                    break


def test_without_a_host_other_machines_get_nothing(metrics: Metrics) -> None:
    assert address_of("9464") == ("127.0.0.1", 9464)
    assert address_of("0") == ("127.0.0.1", 0)
    assert address_of("0.0.0.0:9464") == ("0.0.0.0", 9464)
    assert address_of("[::1]:9464") == ("::1", 9464)


@pytest.mark.parametrize("text", ["", "x", "localhost:", "1:2:3", "127.0.0.1:70000", "-1"])
def test_a_bad_address_says_the_form(text: str) -> None:
    with pytest.raises(UsageError, match=r"--metrics .* is not of the form \[HOST:\]PORT, as 9464"):
        address_of(text)


def test_a_port_in_use_is_a_clear_error(metrics: Metrics) -> None:
    with (
        shown(metrics.registry, "127.0.0.1", 0) as address,
        pytest.raises(NetworkError, match=r"port \d+ is in use, metrics cannot be shown there: choose another"),
        shown(metrics.registry, "127.0.0.1", int(address.rpartition(":")[2])),
    ):
        pass


def test_an_address_of_another_machine_is_a_clear_error(metrics: Metrics) -> None:
    with (
        pytest.raises(NetworkError, match=r"metrics cannot be shown at 192\.0\.2\.1:9464: Cannot assign"),
        shown(metrics.registry, "192.0.2.1", 9464),
    ):
        pass


def test_start_shows_metrics_and_logs_while_it_waits(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    command = [sys.executable, "-m", "p2pfl.cli.app", "start", "--insecure", "--network", f"n{os.getpid()}"]
    options = ["--metrics", "0", "--log-json", str(log), "--min-peers", "2", "--out", str(tmp_path / "run")]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = next(line for line in process.stdout if "metrics at" in line)
            next(line for line in process.stdout if "waits in network" in line)
            with urlopen(line.split()[-1], timeout=10 * SLACK) as answer:
                assert b"\np2pfl_rounds_total 0.0\n" in answer.read()
        finally:
            process.terminate()
            process.stdout.read()
        assert process.wait(timeout=20 * SLACK) == 0
    events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert events[:1] == ["Listening"]
    assert "time_s" in log.read_text()
