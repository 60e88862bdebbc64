"""What the peers of a soak train: logistic regression, with a pace of its own that takes no processor."""

import threading
from collections.abc import Sequence

import torch
from torch import nn

PACED, UNPACED = "p2pfl.chaos.model:paced", "p2pfl.chaos.model:unpaced"
STEP_S = 0.04


def paced(input_shape: Sequence[int], outputs: int) -> nn.Module:
    """A linear model whose every training step takes `STEP_S`."""
    return _Linear(input_shape, outputs, STEP_S)


def unpaced(input_shape: Sequence[int], outputs: int) -> nn.Module:
    """The same without a wait, for comparison: equal seeds give equal weights."""
    return _Linear(input_shape, outputs, 0.0)


class _Linear(nn.Module):
    def __init__(self, input_shape: Sequence[int], outputs: int, step_s: float) -> None:
        super().__init__()
        self.layer = nn.Linear(int(torch.Size(input_shape).numel()), outputs)
        self._step_s = step_s

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training and self._step_s:
            threading.Event().wait(self._step_s)
        scores: torch.Tensor = self.layer(inputs.flatten(1))
        return scores
