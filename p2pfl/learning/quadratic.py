"""Synthetic quadratics with a known optimum: peer i minimizes the mean over its samples b of ½‖x − b‖².

The point x that is learned is a model without inputs (`point`), so gradients are x − b exactly: what theory says of
quadratics can be read off a run.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from p2pfl.errors import DataError
from p2pfl.keys import random_key
from p2pfl.learning.examples import Data, Examples
from p2pfl.spelling import Spelled

NAME = "quadratic"
_MOST = 1 << 31


@dataclass(frozen=True)
class Quadratic:
    """What a spec as `quadratic:dim=10,groups=16` asks for.

    Attributes:
        dim: elements of x.
        groups: peers that have an optimum of their own, b_i ~ N(0, heterogeneity² · I).
        samples: of each group, b ~ N(b_i, noise² · I).
        heterogeneity: how far the peers' optima lie apart, per element; 0 gives all one.
        noise: of one sample about its peer's optimum, per element; a step's gradient has it over √(batch size).
        seed: of all of it.
    """

    dim: int = 10
    groups: int = 16
    samples: int = 100
    heterogeneity: float = 1.0
    noise: float = 1.0
    seed: int = 0


def read(spelled: Spelled) -> Quadratic:
    """The options of a spec.

    Raises:
        DataError: an unknown option, or a value of the wrong kind or out of range.
    """
    values: dict[str, int | float] = {}
    for key, text in spelled.options.items():
        if key not in _OPTIONS:
            raise DataError(f"{NAME} has no option {key!r}; it has {', '.join(_OPTIONS)}")
        kind, least = _OPTIONS[key]
        try:
            value = kind(text)
        except ValueError:
            value = kind(-1)
        if not least <= value <= _MOST:
            raise DataError(f"{key} of {NAME} is {text!r}; write {_KINDS[kind]} of at least {least}")
        values[key] = value
    return Quadratic(**values)  # type: ignore[arg-type]  # `_OPTIONS` names the type of each


def quadratic(of: Quadratic, name: str = NAME) -> Data:
    """Samples group by group, in equal blocks.

    The test part is two points with the mean of all samples and their mean squared distance from it: the test loss at
    any x is then the whole network's objective at x, exactly.
    """
    rng = np.random.default_rng(random_key(of.seed, NAME))
    centers = of.heterogeneity * rng.standard_normal((of.groups, 1, of.dim))
    points = (centers + of.noise * rng.standard_normal((of.groups, of.samples, of.dim))).astype(np.float32)
    points = points.reshape(-1, of.dim)
    mean = points.mean(axis=0, dtype=np.float64)
    apart = np.sqrt(2 * lowest_loss(points))
    stand_ins = np.stack([mean, mean])
    stand_ins[0, 0] += apart
    stand_ins[1, 0] -= apart
    return Data(
        name,
        _examples(points),
        _examples(stand_ins.astype(np.float32)),
        "regression",
        (1,),
        of.dim,
        (),
        {"kind": "array", "shape": [1]},
        groups=of.groups,
    )


def lowest_loss(points: npt.NDArray[np.float32]) -> float:
    """The mean over the samples [n, dim] of ½‖b − b̄‖²: what is left at the optimum, the samples' mean."""
    wide = points.astype(np.float64)
    return float(0.5 * np.square(wide - wide.mean(axis=0)).sum(axis=1).mean())


def half_squared_distance(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean over a batch [k, dim] of ½‖x − b‖²."""
    return 0.5 * (outputs - targets.to(outputs.dtype)).square().sum(dim=-1).mean()


def loss_of(data: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
    """The loss that belongs to data of that name; None leaves it to the targets."""
    return half_squared_distance if data.partition(":")[0] == NAME else None


def _examples(points: npt.NDArray[np.float32]) -> Examples:
    return Examples(torch.zeros(len(points), 1), torch.from_numpy(points))


_OPTIONS: Mapping[str, tuple[Callable[[str | int], int | float], float]] = {
    "dim": (int, 1),
    "groups": (int, 1),
    "samples": (int, 1),
    "heterogeneity": (float, 0),
    "noise": (float, 0),
    "seed": (int, 0),
}
_KINDS: Mapping[object, str] = {int: "a whole number", float: "a number"}
