"""Models by name: `mlp:hidden=256-128`, `cnn`, `logistic`, `point`, or one's own `package.module:function`."""

import difflib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import nn

from p2pfl.errors import ModelError, UsageError
from p2pfl.keys import random_key
from p2pfl.spelling import is_function, load_function, parse

Builder: TypeAlias = Callable[..., nn.Module]  # (input_shape, outputs) or () -> module
_LARGE = 1024  # values of an input above which a dense first layer costs more than convolutions
_MAX_WIDTH = 1 << 20


def build_model(spec: str | Builder, input_shape: Sequence[int], outputs: int, seed: int = 0) -> nn.Module:
    """Build a model with the initial weights of `seed`; the process's random generator is left as it was.

    A function is called as function(input_shape, outputs) if it can take two positional arguments, else with none.

    Args:
        spec: `mlp` (hidden=128, dropout=0), `cnn` (channels=16, hidden=128, dropout=0), `logistic`, `point` (of
            quadratic data: the numbers to predict themselves, from 0), or a function, itself or by name.
        input_shape: of one input, without the batch.
        outputs: classes, or numbers to predict.
        seed: the recipe's; peers with the same seed start from equal weights.

    Raises:
        ModelError: an unknown name or option, or shapes that do not fit.
    """
    shape = tuple(input_shape)
    if not shape or min(shape) < 1 or outputs < 1:
        raise ModelError(f"inputs of shape {shape} and {outputs} outputs cannot be; every number must be at least 1")
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reseed the GPUs too, which fork_rng(devices=[]) does not put back.
        torch.default_generator.manual_seed(random_key(seed, "model"))
        if not isinstance(spec, str):
            return _call(spec, getattr(spec, "__name__", "the model"), shape, outputs)
        if spec.partition(":")[0] not in _BUILDERS and is_function(spec):
            return _call(_loaded(spec), spec, shape, outputs)
        return _build(spec, shape, outputs)


def default_model(input_shape: Sequence[int]) -> str:
    """`cnn` for images of more than 1,024 values (color, or above 32×32), `mlp` for everything else."""
    shape = tuple(input_shape)
    is_image = len(shape) == 3 and shape[0] in (1, 3) and min(shape[1:]) >= 8
    return "cnn" if is_image and math.prod(shape) > _LARGE else "mlp"


def _build(spec: str, shape: tuple[int, ...], outputs: int) -> nn.Module:
    try:
        spelled = parse(spec)
    except UsageError as error:
        raise ModelError(f"{error}, as mlp:hidden=256-128") from error
    if spelled.name not in _BUILDERS:
        near = difflib.get_close_matches(spelled.name, _BUILDERS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        names = ", ".join(name for name in _BUILDERS if name != "point")  # that one comes with its data
        raise ModelError(f"there is no model {spelled.name!r}; {hint}known: {names}, or package.module:function")
    builder, known = _BUILDERS[spelled.name]
    for option in spelled.options:
        if option not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ModelError(f"{spelled.name} has no option {option!r}; {has}")
    return builder(shape, outputs, spelled.options)


def _loaded(spec: str) -> Builder:
    try:
        return load_function(spec)
    except UsageError as error:
        raise ModelError(str(error)) from error


def _call(function: Builder, spec: str, shape: tuple[int, ...], outputs: int) -> nn.Module:
    signature = inspect.signature(function)
    if _takes(signature, shape, outputs):
        model = function(shape, outputs)
    elif _takes(signature):
        model = function()
    else:
        raise ModelError(f"{spec} takes {signature}; let it take (input_shape, outputs) or nothing")
    if not isinstance(model, nn.Module):
        raise ModelError(f"{spec} returned a {type(model).__name__}; let it return a torch.nn.Module")
    return model


def _takes(signature: inspect.Signature, *arguments: object) -> bool:
    try:
        signature.bind(*arguments)
    except TypeError:
        return False
    return True


class Point(nn.Module):
    """A learned point, the same output [outputs] for every input."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.point = nn.Parameter(torch.zeros(outputs))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[k, …] -> [k, outputs]."""
        return self.point.expand(len(inputs), -1)


def _point(shape: tuple[int, ...], outputs: int, options: Mapping[str, str]) -> nn.Module:
    return Point(outputs)


def _logistic(shape: tuple[int, ...], outputs: int, options: Mapping[str, str]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), outputs))


def _mlp(shape: tuple[int, ...], outputs: int, options: Mapping[str, str]) -> nn.Module:
    widths = [_integer("hidden", text) for text in options.get("hidden", "128").split("-")]
    return nn.Sequential(nn.Flatten(), *_dense(math.prod(shape), widths, outputs, _dropout(options)))


def _cnn(shape: tuple[int, ...], outputs: int, options: Mapping[str, str]) -> nn.Module:
    """Two convolutions, without BatchNorm: averaged running statistics are nobody's."""
    if len(shape) != 3 or min(shape[1:]) < 8:
        raise ModelError(f"cnn needs [channels, height, width] of at least 8×8 and got {list(shape)}; use mlp")
    channels = _integer("channels", options.get("channels", "16"))
    halves = [size // 2 for size in shape[1:]]
    # The second pooling leaves at most 8×8, so that large images do not make a large model.
    pools = [max(2, math.ceil(half / 8)) for half in halves]
    features = 2 * channels * math.prod(half // pool for half, pool in zip(halves, pools, strict=True))
    return nn.Sequential(
        nn.Conv2d(shape[0], channels, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d((pools[0], pools[1])),
        nn.Flatten(),
        *_dense(features, [_integer("hidden", options.get("hidden", "128"))], outputs, _dropout(options)),
    )


def _dense(inputs: int, widths: Sequence[int], outputs: int, dropout: float) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        inputs = width
    return [*layers, nn.Linear(inputs, outputs)]


def _integer(option: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= _MAX_WIDTH):
        raise ModelError(f"{option} is {text!r}; write a whole number from 1 to {_MAX_WIDTH}, as {option}=128")
    return int(text)


def _dropout(options: Mapping[str, str]) -> float:
    text = options.get("dropout", "0")
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 <= rate < 1:
        raise ModelError(f"dropout is {text!r}; write the fraction to drop, from 0 to below 1, as dropout=0.2")
    return rate


_BUILDERS: Mapping[str, tuple[Callable[[tuple[int, ...], int, Mapping[str, str]], nn.Module], tuple[str, ...]]] = {
    "mlp": (_mlp, ("hidden", "dropout")),
    "cnn": (_cnn, ("channels", "hidden", "dropout")),
    "logistic": (_logistic, ()),
    "point": (_point, ()),
}
