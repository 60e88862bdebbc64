"""What a participant is: a state machine that is fed events and the time, and returns effects.

Live and simulated are two drivers of the same participants. A driver delivers events in any order it likes, carries
out each effect, and wakes the participant at its next deadline; it decides nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from p2pfl.events import RunEvent
from p2pfl.graphs.schedule import Schedule
from p2pfl.graphs.topology import Topology
from p2pfl.layout import Vector
from p2pfl.protocol.messages import KeyChange, Message, Offer, Settings
from p2pfl.types import PeerId

LinkId: TypeAlias = int  # one control connection, numbered by the driver


# Events: what the driver tells a participant.


@dataclass(frozen=True)
class LinkOpened:
    """A control connection is there; nothing is known of its other end yet."""

    link: LinkId
    dialed: str | None = None  # the key it was dialed under, None where the other end dialed
    proven: PeerId = ""  # whose key the other end has proved to hold; empty on a link without encryption


@dataclass(frozen=True)
class Received:
    """A control message arrived."""

    link: LinkId
    message: Message


@dataclass(frozen=True)
class LinkLost:
    """A control connection ended, in good order or not; `why` says how, in words only."""

    link: LinkId
    why: str = ""


@dataclass(frozen=True)
class DialFailed:
    """No connection came about; `refused` where the machine answered that nobody listens there."""

    key: str
    refused: bool
    why: str = ""


@dataclass(frozen=True)
class Found:
    """Discovery, or the user, proposes an address. `peer` is empty where only the address is known."""

    peer: PeerId
    addresses: tuple[str, ...]
    named: bool = False  # by the user


@dataclass(frozen=True)
class Rules:
    """What the core must know of a recipe, prepared by the layer that owns recipes."""

    topology: Callable[[int, int], Topology]  # by number of members, and round; raises TopologyError
    rounds: int  # 0 = until stopped
    min_peers: int
    patience: float = 3.0  # a round's deadline, in times of the median neighbor
    min_deadline_s: float = 2.0
    max_wait_s: float = 600.0  # for a neighborhood that is slow as a whole
    schedule: Callable[[int], Schedule] | None = None  # by number of members: of what `topology` gives each round
    healing: str = "catch-up"  # or "average": with which model the smaller part of a split network comes back


@dataclass(frozen=True)
class Prepared:
    """A model for the settings is built, with its initial vector or the one of a checkpoint."""

    settings: Settings
    fingerprint: str
    rules: Rules
    layout: str  # digest
    tensors: tuple[str, ...]
    bytes: int  # of a framed vector
    data: str  # fingerprint of the training data
    vector: Vector | None  # None once the run has begun with it: it may be as large as all else together
    init: str  # digest of the vector
    round: int = 0
    standing: Settings | None = None  # the settings and the defaults of all others: what a run that begins goes by


@dataclass(frozen=True)
class Trained:
    """Local training of the round is done."""

    round: int
    vector: Vector
    steps: int
    full_steps: int  # what the recipe asks for
    loss: float | None
    seconds: float
    payload: bytes = b""  # SHA-256 of the framed vector
    norm: float = 0.0  # of the vector, Euclidean; 0 where nobody measured it


@dataclass(frozen=True)
class Fetched:
    """An offered body arrived whole and in the layout, with its hash; `finite` says whether its numbers are."""

    peer: PeerId
    offer: Offer
    vector: Vector
    finite: bool
    norm: float = 0.0  # Euclidean; 0 where nobody measured it


@dataclass(frozen=True)
class FetchFailed:
    """An offered body did not arrive; `reason` is a short phrase to count."""

    peer: PeerId
    offer: Offer
    reason: str


@dataclass(frozen=True)
class Mixed:
    """Mixing, loading and evaluation are done."""

    round: int
    vector: Vector
    distance: float | None
    seconds: float
    test_loss: float | None = None
    test_accuracy: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Hashed:
    """The answer to `Hash`."""

    token: str
    payload: bytes  # SHA-256 of the framed vector


@dataclass(frozen=True)
class KeyChosen:
    """This peer's user has changed the network's key, or banned somebody."""

    change: KeyChange


@dataclass(frozen=True)
class Tick:
    """A deadline has come."""


@dataclass(frozen=True)
class Stop:
    """The user wants to leave."""


Event: TypeAlias = (
    LinkOpened
    | Received
    | LinkLost
    | DialFailed
    | Found
    | Prepared
    | Trained
    | Fetched
    | FetchFailed
    | Mixed
    | Hashed
    | KeyChosen
    | Tick
    | Stop
)


# Effects: what a participant asks of its driver.


@dataclass(frozen=True)
class Dial:
    """Open a control connection to one of the addresses, in their order."""

    key: str
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class Send:
    """Send a message on a connection, in order."""

    link: LinkId
    message: Message


@dataclass(frozen=True)
class Close:
    """Close a connection once what was sent before is out."""

    link: LinkId
    why: str


@dataclass(frozen=True)
class Prepare:
    """Build model and data for these settings and answer with `Prepared`."""

    settings: Settings


@dataclass(frozen=True)
class Train:
    """Load the vector unless it is loaded, train, for at most `budget_s` seconds; answer with `Trained`."""

    round: int
    vector: Vector
    budget_s: float | None


@dataclass(frozen=True)
class Serve:
    """Keep the vector for whoever fetches the token, until `Drop`."""

    token: str
    vector: Vector
    targets: tuple[PeerId, ...] = ()  # for whom it is a share; others may fetch it, and that counts as no edge


@dataclass(frozen=True)
class Drop:
    """Forget the token once no fetch of it is under way."""

    token: str


@dataclass(frozen=True)
class Hash:
    """Work out the hash of a body that is served under a token; answer with `Hashed`."""

    token: str


@dataclass(frozen=True)
class Rekey:
    """The network's key has changed: accept it, use it, keep it."""

    change: KeyChange


@dataclass(frozen=True)
class Fetch:
    """Fetch an offered body into a pooled buffer; answer with `Fetched` or `FetchFailed`."""

    peer: PeerId
    addresses: tuple[str, ...]
    offer: Offer


@dataclass(frozen=True)
class Abandon:
    """Give up a fetch that is under way: it came too late. No answer is due."""

    peer: PeerId
    token: str


@dataclass(frozen=True)
class Mix:
    """Mix, load and evaluate; answer with `Mixed`. The received are in the order of seats."""

    round: int
    own: Vector
    own_weight: float
    received: tuple[tuple[float, Vector], ...]
    parties: tuple[PeerId, ...] = ()  # whose vectors they are


@dataclass(frozen=True)
class Save:
    """Write a checkpoint: the model with which `round` begins."""

    round: int
    vector: Vector


@dataclass(frozen=True)
class Emit:
    """Hand an event to the sinks."""

    event: RunEvent


@dataclass(frozen=True)
class Done:
    """The participant is at its end; `error` says what the person should read, empty where all is well."""

    round: int
    error: str = ""


Effect: TypeAlias = (
    Dial | Send | Close | Prepare | Train | Serve | Drop | Hash | Rekey | Fetch | Abandon | Mix | Save | Emit | Done
)


class Participant(Protocol):
    """A peer's behavior, without I/O, clock or randomness of its own."""

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Take in an event at a time (seconds on any monotonic clock) and say what to do."""
        ...

    def next_deadline(self) -> float | None:
        """When to hand in a `Tick`, if nothing else comes first."""
        ...
