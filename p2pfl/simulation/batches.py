"""Which examples each peer takes in which step: the order of live peers, for those who gather batches by position."""

from collections.abc import Iterator, Sequence, Sized

import numpy as np
import numpy.typing as npt
import torch

from p2pfl.learning.examples import Examples
from p2pfl.learning.learner import order_generator
from p2pfl.recipe import Recipe

_PREPARED_BYTES = 64 << 20  # of inputs that are kept as numbers
_GATHERED = 64  # batches whose examples are at hand at once: large enough to be cheap, small enough for the cache


def steps_of(recipe: Recipe, examples: int) -> int:
    """Gradient steps of a round for a peer with so many examples."""
    return recipe.steps or recipe.epochs * -(-examples // recipe.batch_size)


def epoch_positions(
    recipe: Recipe, part: npt.NDArray[np.int64], seat: str, round: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Positions in the data of a round's examples in order, an epoch at a time; its last batch may be smaller.

    Cut into batches, these are the batches of `TorchLearner`.

    Args:
        part: [k] positions of the peer's examples in the data.
    """
    count, left, epoch = len(part), steps_of(recipe, len(part)), 0
    while left > 0:
        order = torch.randperm(count, generator=order_generator(recipe.seed, seat, round, epoch)).numpy()
        # The last epoch may end early, where steps are counted instead of epochs.
        yield part[order[: left * recipe.batch_size]]
        left -= -(-count // recipe.batch_size)
        epoch += 1


def batch_positions(recipe: Recipe, part: torch.Tensor, seat: str, round: int) -> Iterator[torch.Tensor]:
    """The same in pieces [up to 64 · batch size], all but an epoch's last a number of full batches."""
    most = _GATHERED * recipe.batch_size
    for epoch in epoch_positions(recipe, part.numpy(), seat, round):
        positions = torch.from_numpy(epoch)
        for begin in range(0, len(epoch), most):
            yield positions[begin : begin + most]


class Gatherer:
    """Copies inputs from the data into somebody's buffer, as a learner sees them, without allocating."""

    def __init__(self, examples: Examples, most: int, dtype: torch.dtype, device: torch.device) -> None:
        """Prepare for up to `most` examples at once, of `dtype` on `device`."""
        self.most = most
        self._inputs = examples.inputs.reshape(len(examples), -1)
        self._raw = torch.empty(most, self._inputs.shape[1], dtype=self._inputs.dtype)
        self._dtype, self._device = dtype, device
        self._plain = dtype == torch.float32 and device.type == "cpu"

    def gather(self, positions: torch.Tensor, out: torch.Tensor) -> None:
        """Write the inputs at these positions, flat, to `out` [positions, numbers of an input]: bytes as 0…1."""
        raw = torch.index_select(self._inputs, 0, positions, out=self._raw[: len(positions)])
        if raw.dtype != torch.uint8:
            out.copy_(raw)
        elif self._plain:
            torch.div(raw, 255, out=out)
        else:  # divided in float32, as a learner does it
            out.copy_(raw.float().div_(255))

    def prepared(self, width: int) -> torch.Tensor | None:
        """All inputs [examples, width] as numbers, zeros behind them, where that is little: gathering is one copy then.

        None elsewhere.
        """
        count, numbers = self._inputs.shape
        if self._device.type != "cpu" or count * width * self._dtype.itemsize > _PREPARED_BYTES:
            return None
        prepared = torch.zeros(count, width, dtype=self._dtype)
        for positions in torch.split(torch.arange(count), self.most):
            self.gather(positions, prepared[int(positions[0]) : int(positions[-1]) + 1, :numbers])
        return prepared


def longest_piece(recipe: Recipe, parts: Sequence[Sized]) -> int:
    """The most examples that `batch_positions` gives at once."""
    return min(_GATHERED * recipe.batch_size, max(len(part) for part in parts))
