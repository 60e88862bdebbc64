"""What a learner, or an algorithm, keeps from round to round beside the model; saved with each checkpoint."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch

from p2pfl.errors import ModelError

Json: TypeAlias = Any  # None, bool, int, finite float, text, and lists and dicts (with text keys) of them

_DTYPES = frozenset(
    {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
     torch.uint8, torch.bool}
)  # fmt: skip
_INTEGERS = 1 << 63


@dataclass(frozen=True)
class State:
    """Named tensors, and everything else as JSON."""

    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)  # contiguous, on the CPU, changed by nobody
    facts: Json = None


@runtime_checkable
class Stateful(Protocol):
    """A learner that carries more than its model from round to round: momentum, say. Others need not have it."""

    def state(self) -> State:
        """A copy of it, as it is between two rounds.

        Raises:
            ModelError: some of it cannot be written down.
        """
        ...

    def restore(self, state: State) -> None:
        """Go on from a state, whose tensors are the learner's from now on.

        The model is not in it: it is loaded before. A peer that catches up from another's model keeps its own state.

        Raises:
            ModelError: it is not the state of such a learner.
        """
        ...


def pack(value: object) -> State:
    """Write nested dicts, lists, tuples, numbers, texts and tensors down; the tensors are copied.

    JSON has no tuples, keys other than text, infinities or tensors: these are objects with one key that says what they
    are, as {"tuple": [...]}, {"dict": [[key, value], ...]}, {"float": "inf"} and {"tensor": its name in `tensors`}.

    Raises:
        ModelError: there is something else in it: a function, say.
    """
    tensors: dict[str, torch.Tensor] = {}
    facts = _packed(value, (), tensors)
    return State(tensors, facts)


def unpack(state: State) -> Any:
    """What `pack` was given. The tensors are those of the state, not copies.

    Raises:
        ModelError: it was not made by `pack`.
    """
    try:
        return _unpacked(state.facts, state.tensors)
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise ModelError(f"a state that cannot be understood ({error!r})") from error


def _packed(value: object, path: tuple[str, ...], tensors: dict[str, torch.Tensor]) -> Json:
    match value:
        case None | bool() | str():
            return value
        case int() if -_INTEGERS <= value < _INTEGERS:
            return int(value)
        case float():
            return float(value) if math.isfinite(value) else {"float": repr(float(value))}
        case torch.Tensor() if value.dtype in _DTYPES and value.layout == torch.strided:
            name = "/".join(path)
            while name in tensors:  # the keys 1 and "1", say
                name += "'"
            tensors[name] = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            return {"tensor": name}
        case list():
            return list(_children(value, path, tensors))
        case tuple():
            return {"tuple": list(_children(value, path, tensors))}
        case dict() if type(value) in (dict, Counter):
            kind = "counter" if isinstance(value, Counter) else "dict"
            keys = _children(value, (*path, "key"), tensors)
            return {kind: [list(pair) for pair in zip(keys, _members(value, path, tensors), strict=True)]}
    raise ModelError(f"{'/'.join(path) or 'it'} is a {type(value).__name__}, which a checkpoint cannot hold")


def _children(values: Any, path: tuple[str, ...], tensors: dict[str, torch.Tensor]) -> Iterator[Json]:
    return (_packed(value, (*path, str(number)), tensors) for number, value in enumerate(values))


def _members(values: dict[Any, Any], path: tuple[str, ...], tensors: dict[str, torch.Tensor]) -> Iterator[Json]:
    return (_packed(value, (*path, str(key)), tensors) for key, value in values.items())


def _unpacked(value: Json, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(one, tensors) for one in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    match kind:
        case "tensor":
            return tensors[content]
        case "float":
            return float(content)
        case "tuple":
            return tuple(_unpacked(content, tensors))
        case "dict" | "counter":
            pairs = {_unpacked(key, tensors): _unpacked(one, tensors) for key, one in content}
            return Counter(pairs) if kind == "counter" else pairs
    raise ValueError(kind)
