"""The options by which a command shows what happens to a peer: metrics for Prometheus, and logs."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from p2pfl.events import Sink
    from p2pfl.telemetry.metrics import Metrics as Counted

Metrics = Annotated[
    str | None,
    typer.Option(
        metavar="[HOST:]PORT",
        help="Show metrics to Prometheus at this port, under /metrics; on this machine alone unless a host is given.",
    ),
]
LogJson = Annotated[
    str | None, typer.Option(metavar="FILE", help="Append all events as lines of JSON to this file; - is stderr.")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Tell on stderr what was refused or dropped, and why.")]


@dataclass(frozen=True)
class Watched:
    """What a command has to do for it: hand `sinks` to the peer, and watch its event loop by `metrics`."""

    sinks: "tuple[Sink, ...]"
    metrics: "Counted | None" = None
    metrics_address: str | None = None  # host:port, None where nothing is shown


@contextmanager
def seen(metrics: str | None, log_json: str | None, verbose: bool, say: Callable[[str], None]) -> Iterator[Watched]:
    """Show metrics and write logs inside the context, as the options say.

    Args:
        say: told where the metrics are, and when a log cannot be written any more.

    Raises:
        UsageError: the address is none, or the file cannot be written to.
        NetworkError: the port is in use.
    """
    from p2pfl.telemetry.logs import logged

    with ExitStack() as stack:
        sinks = stack.enter_context(logged(log_json, verbose, say))
        if metrics is None:
            yield Watched(sinks)
            return
        from p2pfl.telemetry.listener import address_of, shown
        from p2pfl.telemetry.metrics import Metrics as Counted

        counted = Counted()
        address = stack.enter_context(shown(counted.registry, *address_of(metrics)))
        say(f"metrics at http://{address}/metrics")
        yield Watched((*sinks, counted), counted, address)
