"""What happens in a run, as frozen values for whoever watches: terminal, files, dashboard.

The core and the shell emit them to *sinks*, plain callables `(RunEvent) -> None`; neither imports any sink.
Ids and names of events only grow: runs on disk outlive versions.
"""

from collections.abc import Callable
from typing import TypeAlias

import msgspec

from p2pfl.types import PeerId, Seat, Setting


class _Event(msgspec.Struct, frozen=True, tag=True, tag_field="event", kw_only=True):
    peer: PeerId  # whose event it is
    time_s: float = 0.0  # since that peer's process began its run; filled in by the shell


class Listening(_Event, frozen=True):
    """The peer can be reached."""

    name: str
    seat: Seat
    addresses: tuple[str, ...]  # host:port


class StateChanged(_Event, frozen=True):
    """What the peer is doing: waiting, joining, training, gathering, mixing, finished, observer, left."""

    state: str
    round: int


class PeerJoined(_Event, frozen=True):
    """Another peer became reachable on a control connection."""

    other: PeerId
    name: str
    seat: Seat


class PeerGone(_Event, frozen=True):
    """Another peer left, or is taken for dead."""

    other: PeerId
    name: str
    reason: str  # "left" or "dead"


class Started(_Event, frozen=True):
    """The network's recipe stands and this peer begins."""

    settings: dict[str, Setting]
    round: int
    members: tuple[str, ...]  # names, by seat


class ViewTaken(_Event, frozen=True):
    """A round runs with other members than the one before it."""

    round: int
    members: tuple[str, ...]
    topology: str


class ShareReceived(_Event, frozen=True):
    """A neighbor's model is here and counts; `bytes` is the whole body."""

    round: int
    other: PeerId
    bytes: int


class ShareSent(_Event, frozen=True):
    """A neighbor has fetched this peer's model."""

    round: int
    other: PeerId
    bytes: int


class ShareRejected(_Event, frozen=True):
    """A neighbor's share was refused or lost; the reasons are few fixed phrases, made to be counted."""

    round: int
    other: PeerId
    reason: str
    times: int = 1  # how often in one round, where many are told of as one


class Refusal(_Event, frozen=True):
    """Something that another machine sent, claimed or asked for was refused or dropped, other than a share.

    Reasons are few fixed phrases, made to be counted; `reasons` says what each means.
    """

    what: str  # connection, hello, message, dial, body
    reason: str
    other: PeerId = ""  # empty while nobody has proved who it is
    remote: str = ""  # its address
    connection: int = 0  # as numbered by this peer, 0 where there was none
    round: int = 0
    detail: str = ""
    times: int = 1  # how often, where many are told of as one


class RoundsSkipped(_Event, frozen=True):
    """This peer had fallen behind and goes on with its neighbors' round."""

    after: int
    next: int


class RoundFinished(_Event, frozen=True):
    """A round is over: trained, mixed, loaded, evaluated."""

    round: int
    steps: int
    neighbors: int
    missing: int  # neighbors whose weight went to self
    train_loss: float | None = None
    test_loss: float | None = None
    test_accuracy: float | None = None  # a fraction
    neighbor_distance: float | None = None  # mean squared distance to the neighbors' shares, before mixing
    wall_time_s: float = 0.0
    train_s: float = 0.0
    wait_s: float = 0.0
    mix_s: float = 0.0  # mixing and evaluation
    bytes_sent: int = 0
    bytes_received: int = 0
    control_bytes_sent: int = 0
    control_bytes_received: int = 0
    metrics: dict[str, float] = {}
    reduced: bool = False  # trained fewer steps than asked for, so as not to hold up the others
    row_sum: float | None = None  # of this peer's row of the mixing matrix, as it was mixed


class Warned(_Event, frozen=True):
    """Something a person should know that stops nothing."""

    text: str


class Finished(_Event, frozen=True):
    """The peer's run is over."""

    round: int
    reason: str  # "rounds" or "stopped"


RunEvent: TypeAlias = (
    Listening
    | StateChanged
    | PeerJoined
    | PeerGone
    | Started
    | ViewTaken
    | ShareReceived
    | ShareSent
    | ShareRejected
    | Refusal
    | RoundsSkipped
    | RoundFinished
    | Warned
    | Finished
)
Sink: TypeAlias = Callable[[RunEvent], None]
