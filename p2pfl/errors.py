"""The errors of p2pfl: one tree, split by who broke what.

    P2pflError
    ├── UsageError              the caller asked for something that cannot be; the message says the mend
    │   ├── TopologyError       a topology that does not exist or does not fit the number of peers
    │   ├── DataError           data that cannot be read, split or used
    │   ├── ModelError          a model that cannot be built, averaged or loaded
    │   └── RecipeError         settings that contradict each other, or the network's
    ├── TrainingError           training went wrong on this peer (a loss that is not finite, say)
    ├── NetworkError            this machine or the network failed us (port in use, nobody found, link lost)
    │   ├── Unreachable         no connection came about
    │   ├── LinkClosed          a control connection ended
    │   └── FetchError          a body could not be fetched
    └── ProtocolError           another peer sent what it must not; carries a counted reason

A `UsageError`, `TrainingError` or `NetworkError` reaches the person as one line. A `ProtocolError` never leaves the
place that talks to that peer: it becomes an event and costs that peer, not the round.
"""


class P2pflError(Exception):
    """Whatever p2pfl raises on purpose."""


class UsageError(P2pflError):
    """The caller's mistake; the message says what is wrong and the mend."""


class TopologyError(UsageError):
    """A topology that does not exist or does not fit."""


class DataError(UsageError):
    """Data that cannot be read, split or used."""


class ModelError(UsageError):
    """A model that cannot be built, averaged or loaded."""


class RecipeError(UsageError):
    """Settings that contradict each other or the network's."""


class TrainingError(P2pflError):
    """Training failed on this peer."""


class NetworkError(P2pflError):
    """This machine or the network failed us."""


class Unreachable(NetworkError):
    """No connection came about; `refused` where the machine answered that nobody listens there; `reason` is counted."""

    def __init__(self, detail: str, *, refused: bool = False, reason: str = "unreachable") -> None:
        super().__init__(detail)
        self.refused = refused
        self.reason = reason


class LinkClosed(NetworkError):
    """A control connection ended; the text says why."""


class FetchError(NetworkError):
    """A body could not be fetched; `reason` is counted."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class ProtocolError(P2pflError):
    """Another peer sent what it must not; `reason` is a short fixed phrase that is counted."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
