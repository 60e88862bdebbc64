"""Logs: a line for each refusal and drop, and on request all events as lines of JSON.

Lines go through Python's `logging`, below the logger `p2pfl`. What repeats is told the first time, and then at every
power of ten, with the count: a flood of strangers must not fill a disk. Secrets are struck out of whatever is written.
"""

import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import msgspec

from p2pfl.errors import UsageError
from p2pfl.events import PeerGone, Refusal, RunEvent, ShareRejected, Sink, Warned
from p2pfl.plain import printable, printable_lines
from p2pfl.reasons import meaning
from p2pfl.telemetry.repeats import Refusals, Repeats, Seldom

LOGGER = "p2pfl"
STRUCK = "[struck out]"
_SECRET = re.compile(
    r"(?<![a-z2-7])(?:[a-z2-7]{7}[-\s]?){7}[a-z2-7]{7}(?![a-z2-7])"  # a network's token: an id is four letters shorter
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.IGNORECASE | re.DOTALL,
)
_OPENSSL = re.compile(r"_ssl\.c\b|^\[(SSL|ASN1|X509|CRYPTO)\b")  # its own words, which the reason says plainly

_log = logging.getLogger(f"{LOGGER}.seen")


def without_secrets(text: str) -> str:
    """The text with network keys and private keys struck out."""
    return _SECRET.sub(STRUCK, text)


def log_refusals() -> Sink:
    """A sink that logs what was refused, dropped or lost, with reason, peer, round, connection and remote address."""
    refusals, seen = Refusals(), Repeats()

    def sink(event: RunEvent) -> None:
        line = _line(event)
        if line is None:
            return
        times = refusals.count(event) if isinstance(event, Refusal) else seen.count(_key(event))
        if times is not None:
            often = f" ({times} times)" if times > 1 else ""
            _log.info("%s%s", printable(line), often, extra={"event": event, "times": times})

    return sink


def _line(event: RunEvent) -> str | None:
    match event:
        case Refusal():
            facts = {
                "peer": event.other[:8],
                "remote": event.remote,
                "connection": event.connection or "",
                "round": event.round or "",
                "detail": "" if _OPENSSL.search(event.detail) else event.detail,
            }
            told = ", ".join(f"{key} {value}" for key, value in facts.items() if value != "")
            return f"refused {event.what}: {event.reason}{f' ({told})' if told else ''}. {meaning(event.reason)}"
        case ShareRejected():
            who = f"peer {event.other[:8]}, round {event.round}"
            return f"no share: {event.reason} ({who}). {meaning(event.reason)}"
        case PeerGone(reason="dead"):
            return f"taken for dead: peer {event.other[:8]}, {event.name}"
        case Warned():
            return event.text
        case _:
            return None


def _key(event: RunEvent) -> object:
    """What makes two lines equal."""
    if isinstance(event, ShareRejected):
        return ("share", event.reason, event.other)
    return (type(event).__name__, _line(event))


class JsonLines:
    """Writes events, and log records, as lines of JSON with the time since the start and the time of day.

    Ids are whole here, as `p2pfl network ban` needs them, and details are as they came. A disk that fails costs the
    log, not the run: the first trouble is told to `warn`, and writing ends.
    """

    def __init__(self, stream: TextIO, warn: Callable[[str], None]) -> None:
        self._stream: TextIO | None = stream
        self._warn = warn
        self._seldom = Seldom()
        self._began = time.monotonic()

    def __call__(self, event: RunEvent) -> None:
        """Take an event."""
        told, times = self._seldom.told(event)
        if told is not None:
            self._write({**msgspec.structs.asdict(told), "event": type(told).__name__}, event.time_s, times)

    def record(self, record: logging.LogRecord) -> None:
        """Take a log record; one that tells of an event is left to the event."""
        if hasattr(record, "event"):
            return
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        facts = {"event": "Logged", "level": record.levelname.lower(), "logger": record.name, "text": text}
        self._write(facts, time.monotonic() - self._began, 1)

    def _write(self, facts: dict[str, Any], time_s: float, times: int) -> None:
        if self._stream is None:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": now, **facts, "time_s": round(time_s, 6)}
        if times > 1:
            line["times"] = times
        try:
            self._stream.write(printable(without_secrets(msgspec.json.encode(line).decode())) + "\n")
            self._stream.flush()
        except (OSError, ValueError) as error:  # ValueError: somebody has closed the stream
            self._stream = None
            self._warn(f"the log ends here: {error}; the run goes on")


class _Lines(logging.Handler):
    """Lines for a person, on whatever stderr is now: a live table puts itself in its place.

    Warnings of the run are left out: the commands show them anyway.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(getattr(record, "event", None), Warned):
            return
        line = without_secrets(f"{time.strftime('%H:%M:%S')} {record.levelname.lower()} {self.format(record)}")
        line = printable_lines(line)
        with suppress(OSError, ValueError):  # a closed terminal is no reason to stop
            sys.stderr.write(line + "\n")


class _Json(logging.Handler):
    def __init__(self, lines: JsonLines) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.record(record)


@contextmanager
def logged(json: str | None, verbose: bool, warn: Callable[[str], None]) -> Iterator[tuple[Sink, ...]]:
    """Inside the context, log as asked for; yields the sinks that need the events.

    Args:
        json: a file to append lines of JSON to, `-` for stderr.
        verbose: also tell refusals and drops on stderr, for a person.
        warn: told when the log cannot be written any more.

    Raises:
        UsageError: the file cannot be written to.
    """
    logger = logging.getLogger(LOGGER)
    level, handlers, stream = logger.level, list[logging.Handler](), None
    sinks: list[Sink] = [log_refusals()]
    if json is not None:
        try:
            stream = sys.stderr if json == "-" else Path(json).open("a", encoding="utf-8")  # noqa: SIM115  # closed below
        except OSError as error:
            raise UsageError(f"--log-json {json}: {error.strerror}; choose another file, or - for stderr") from error
        lines = JsonLines(stream, warn)
        sinks.append(lines)
        handlers.append(_Json(lines))
    if verbose:
        handlers.append(_Lines())
    for handler in handlers:
        logger.addHandler(handler)
    if handlers:
        logger.setLevel(logging.INFO)
    try:
        yield tuple(sinks)
    finally:
        logger.setLevel(level)
        for handler in handlers:
            logger.removeHandler(handler)
        if stream is not None and stream is not sys.stderr:
            with suppress(OSError):
                stream.close()
