"""A peer's metrics for Prometheus: a sink of its events, and figures of its process read when somebody asks.

Names follow Prometheus' conventions: base units in the name, `_total` on what only grows. Labels take few values:
reasons are those of `reasons`, and no peer, address or network is a label, so that no stranger makes new series.

Source: https://prometheus.io/docs/practices/naming/
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, ProcessCollector

from p2pfl.events import (
    Listening,
    PeerGone,
    PeerJoined,
    Refusal,
    RoundFinished,
    RoundsSkipped,
    RunEvent,
    ShareReceived,
    ShareRejected,
    ShareSent,
    StateChanged,
    Warned,
)
from p2pfl.reasons import MEANING
from p2pfl.types import PeerId

OTHER = "other"  # the label of what is not in the lists: a reason of a later version, say
_WHATS = frozenset({"connection", "hello", "message", "dial", "body", "announcement"})
_LOOK_S = 0.25  # between looks at the event loop; less sees shorter lags, and costs more
_PEERS_REMEMBERED = 4096
_ROUND_S = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
_LAG_S = (0.001, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)


class _Registry(CollectorRegistry):
    """Without the time at which each series began, which the library shows as a second series beside it."""

    def collect(self) -> Iterator[Metric]:
        """What is shown."""
        for family in super().collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


class Metrics:
    """The metrics of the one peer of this process. Call it with each event; `registry` is what is shown."""

    def __init__(self) -> None:
        self.registry = registry = _Registry()
        self._peers: dict[PeerId, str] = {}
        self._state = ""
        self._info = Gauge("p2pfl_peer_info", "Who this peer is.", ("peer", "name", "seat"), registry=registry)
        self._doing = Gauge("p2pfl_state", "1 for what the peer is doing.", ("state",), registry=registry)
        self._known = Gauge("p2pfl_peers", "Other peers, by what became of them.", ("state",), registry=registry)
        self._round = Gauge("p2pfl_round", "The round under way.", registry=registry)
        self._rounds = Counter("p2pfl_rounds", "Rounds finished.", registry=registry)
        self._skipped = Counter("p2pfl_rounds_skipped", "Rounds left out to catch up.", registry=registry)
        self._steps = Counter("p2pfl_steps", "Gradient steps done.", registry=registry)
        self._round_s = Histogram("p2pfl_round_seconds", "Length of a round.", buckets=_ROUND_S, registry=registry)
        self._phase_s = Counter("p2pfl_phase_seconds", "Time spent, by phase.", ("phase",), registry=registry)
        self._train_loss = Gauge("p2pfl_train_loss", "Mean loss of the last round's steps.", registry=registry)
        self._test_loss = Gauge("p2pfl_test_loss", "Loss on the test part after the last round.", registry=registry)
        self._accuracy = Gauge(
            "p2pfl_test_accuracy_ratio", "Accuracy on the test part after the last round.", registry=registry
        )
        self._distance = Gauge(
            "p2pfl_neighbor_distance", "Mean squared distance to the neighbors' models.", registry=registry
        )
        self._shares = Counter("p2pfl_shares", "Models exchanged.", ("direction",), registry=registry)
        self._share_bytes = Counter("p2pfl_share_bytes", "Bytes of models.", ("direction",), registry=registry)
        self._control_bytes = Counter(
            "p2pfl_control_bytes", "Bytes of control messages.", ("direction",), registry=registry
        )
        self._rejected = Counter("p2pfl_shares_rejected", "Shares refused or lost.", ("reason",), registry=registry)
        self._refused = Counter(
            "p2pfl_refusals", "What else of others was refused or dropped.", ("what", "reason"), registry=registry
        )
        self._warned = Counter("p2pfl_warnings", "Warnings told to the user.", registry=registry)
        self._unsaved = Counter("p2pfl_checkpoint_failures", "Times that checkpoints began to fail.", registry=registry)
        self._failing = Gauge("p2pfl_checkpoints_failing", "1 while no checkpoint can be written.", registry=registry)
        self._lag_s = Histogram(
            "p2pfl_event_loop_lag_seconds", "How late the event loop is.", buckets=_LAG_S, registry=registry
        )
        self._tasks = Gauge("p2pfl_tasks", "Asynchronous tasks.", registry=registry)
        ProcessCollector(registry=registry)  # resident memory, descriptors and their limit, processor time; Linux
        for direction in ("sent", "received"):  # a series that is there from the start has a rate from the start
            self._shares.labels(direction)
            self._share_bytes.labels(direction)
            self._control_bytes.labels(direction)

    def __call__(self, event: RunEvent) -> None:
        """Take an event."""
        match event:
            case Listening(peer=peer, name=name, seat=seat):
                self._info.labels(peer, name, seat).set(1)
                if not self._state:
                    self._become("waiting")
            case StateChanged(state=state, round=round):
                self._become(state)
                self._round.set(round)
            case PeerJoined(other=other):
                self._tell_of(other, "connected")
            case PeerGone(other=other, reason=reason):
                self._tell_of(other, reason if reason in ("left", "dead") else OTHER)
            case ShareReceived(bytes=size):
                self._share("received", size)
            case ShareSent(bytes=size):
                self._share("sent", size)
            case ShareRejected(reason=reason):
                self._rejected.labels(_listed(reason)).inc()
            case Refusal(what=what, reason=reason):
                self._refused.labels(what if what in _WHATS else OTHER, _listed(reason)).inc()
            case RoundsSkipped(after=after, next=following):
                self._skipped.inc(max(0, following - after - 1))
            case RoundFinished():
                self._finished(event)
            case Warned(text=text):
                self._warned.inc()
                if text.startswith("the checkpoint of round"):  # as `checkpoint` tells its trouble, once
                    self._unsaved.inc()
                    self._failing.set(1)
                elif text.startswith("checkpoints are written again"):
                    self._failing.set(0)
            case _:
                pass

    def _become(self, state: str) -> None:
        if self._state:
            self._doing.labels(self._state).set(0)
        self._state = state
        self._doing.labels(state).set(1)

    def _tell_of(self, peer: PeerId, state: str) -> None:
        before = self._peers.pop(peer, None)
        if before is not None:
            self._known.labels(before).dec()
        self._peers[peer] = state
        self._known.labels(state).inc()
        if len(self._peers) > _PEERS_REMEMBERED:  # whoever was told of longest ago
            oldest = next(iter(self._peers))
            self._known.labels(self._peers.pop(oldest)).dec()

    def _share(self, direction: str, size: int) -> None:
        self._shares.labels(direction).inc()
        self._share_bytes.labels(direction).inc(size)

    def _finished(self, event: RoundFinished) -> None:
        self._rounds.inc()
        self._steps.inc(event.steps)
        self._round_s.observe(event.train_s + event.wait_s + event.mix_s)
        for phase, seconds in (("train", event.train_s), ("wait", event.wait_s), ("mix", event.mix_s)):
            self._phase_s.labels(phase).inc(max(0.0, seconds))
        self._control_bytes.labels("sent").inc(event.control_bytes_sent)
        self._control_bytes.labels("received").inc(event.control_bytes_received)
        for gauge, value in (
            (self._train_loss, event.train_loss),
            (self._test_loss, event.test_loss),
            (self._accuracy, event.test_accuracy),
            (self._distance, event.neighbor_distance),
        ):
            if value is not None:
                gauge.set(value)

    @contextmanager
    def watching(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Inside the context, see how late the event loop is, and how many tasks it has; called on the loop."""
        due = loop.time() + _LOOK_S
        handle = loop.call_at(due, lambda: look())

        def look() -> None:
            nonlocal due, handle
            self._lag_s.observe(max(0.0, loop.time() - due))
            self._tasks.set(len(asyncio.all_tasks(loop)))
            due = loop.time() + _LOOK_S
            handle = loop.call_at(due, look)

        try:
            yield
        finally:
            handle.cancel()


def _listed(reason: str) -> str:
    return reason if reason in MEANING else OTHER
