"""What came out of one peer's run, as its user gets it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from p2pfl.events import RoundFinished
from p2pfl.layout import Vector
from p2pfl.types import Setting


@dataclass(frozen=True)
class Result:
    """What came out of one peer's run."""

    name: str
    round: int  # rounds that are behind it
    history: tuple[RoundFinished, ...] = ()
    failures: Mapping[str, int] = field(default_factory=dict)  # refused or lost shares by reason
    settings: Mapping[str, Setting] = field(default_factory=dict)
    members: tuple[str, ...] = ()
    model: nn.Module | None = None
    vector: Vector | None = None

    @property
    def accuracy(self) -> float | None:
        """Accuracy on the test part after the last round, a fraction."""
        return self.history[-1].test_accuracy if self.history else None

    @property
    def loss(self) -> float | None:
        """Loss on the test part after the last round."""
        return self.history[-1].test_loss if self.history else None

    @property
    def metrics(self) -> Mapping[str, float]:
        """The learner's own metrics after the last round."""
        return self.history[-1].metrics if self.history else {}
