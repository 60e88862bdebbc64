"""What `torch.optim` keeps from round to round, as named tensors and JSON: nothing of it is ever pickled."""

from typing import Any, TypeAlias

import torch
from torch import nn

from p2pfl.errors import ModelError
from p2pfl.state import State, pack, unpack

Optimizer: TypeAlias = torch.optim.Optimizer
Schedule: TypeAlias = torch.optim.lr_scheduler.LRScheduler


def take(model: nn.Module, optimizer: Optimizer | None, schedule: Schedule | None, rounds: int) -> State:
    """A copy of an optimizer's and a schedule's state, and of a module's buffers that are no floats.

    Args:
        rounds: how far the schedule is.

    Raises:
        ModelError: one of them keeps what cannot be written down, an object of the user's own, say.
    """
    counters = {name: buffer for name, buffer in model.named_buffers() if not buffer.is_floating_point()}
    if optimizer is None and not counters:
        return State()
    parts = {"optimizer": _kept(optimizer), "schedule": _kept(schedule)}
    return pack({**parts, "rounds": rounds, "buffers": counters})


def put(state: State, model: nn.Module, optimizer: Optimizer | None, schedule: Schedule | None) -> int:
    """Put a state back; how far the schedule is.

    The settings of the optimizer (learning rate and so on) are those of the state afterwards.

    Raises:
        ModelError: it is of another optimizer, schedule or module, some of which may have changed.
    """
    kept: dict[str, Any] = {} if state.facts is None else unpack(state)
    try:
        for name, part in (("optimizer", optimizer), ("schedule", schedule)):
            was, values = kept.get(name) or ("none", {})
            now = "none" if part is None else type(part).__name__
            if was != now:
                raise ModelError(f"the {name} was {was} and is {now}: use the one with which the run began")
            if part is not None:
                part.load_state_dict(values)
        if optimizer is not None:
            _check_shapes(optimizer)
        for name, buffer in kept.get("buffers", {}).items():
            model.get_buffer(name).copy_(buffer)
        return int(kept.get("rounds", 0))
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise ModelError(f"the saved state does not fit the optimizer or the module: {error}") from error


def _kept(part: Optimizer | Schedule | None) -> tuple[str, Any] | None:
    return None if part is None else (type(part).__name__, part.state_dict())


def _check_shapes(optimizer: Optimizer) -> None:
    """torch itself compares how many parameters there are, not their shapes."""
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.ndim == parameter.ndim and value.shape != parameter.shape:
                raise ModelError(
                    f"the optimizer's {name} is {list(value.shape)} where the parameter is {list(parameter.shape)}: "
                    "use the model with which the run began"
                )
