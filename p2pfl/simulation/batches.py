"""Which examples each peer takes in which step: the order of live peers, for those who gather batches by position."""

from collections.abc import Iterator, Sequence

import torch

from p2pfl.learning.examples import Examples
from p2pfl.learning.learner import order_generator
from p2pfl.recipe import Recipe

_GATHERED = 64  # batches whose examples are at hand at once: large enough to be cheap, small enough for the cache


def steps_of(recipe: Recipe, examples: int) -> int:
    """Gradient steps of a round for a peer with so many examples."""
    return recipe.steps or recipe.epochs * -(-examples // recipe.batch_size)


def batch_positions(recipe: Recipe, part: torch.Tensor, seat: str, round: int) -> Iterator[torch.Tensor]:
    """Positions [up to 64 · batch size] in the data of a round's examples in order; all but an epoch's end are full.

    An epoch's last batch may be smaller, and an epoch begins with a piece of its own. Cut into batches, these are the
    batches of `TorchLearner`.

    Args:
        part: [k] positions of the peer's examples in the data.
    """
    left = steps_of(recipe, len(part))
    epoch = 0
    while left > 0:
        order = torch.randperm(len(part), generator=order_generator(recipe.seed, seat, round, epoch))
        # The last epoch may end early, where steps are counted instead of epochs.
        for piece in torch.split(part[order[: left * recipe.batch_size]], _GATHERED * recipe.batch_size):
            yield piece
            left -= -(-len(piece) // recipe.batch_size)
        epoch += 1


class Gatherer:
    """Copies inputs from the data into somebody's buffer, as a learner sees them, without allocating."""

    def __init__(self, examples: Examples, most: int, dtype: torch.dtype, device: torch.device) -> None:
        """Prepare for up to `most` examples at once, of `dtype` on `device`."""
        self.most = most
        self._inputs = examples.inputs.view(len(examples), -1)
        self._raw = torch.empty(most, self._inputs.shape[1], dtype=self._inputs.dtype)
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


def longest_piece(recipe: Recipe, parts: Sequence[torch.Tensor]) -> int:
    """The most examples that `batch_positions` gives at once."""
    return min(_GATHERED * recipe.batch_size, max(len(part) for part in parts))
