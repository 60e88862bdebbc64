"""A vectorized step as a list of plain tensor operations, which skips what `torch.func` costs at every call.

The gradient of a dense layer's weights is a product of two matrices that are small beside it: where the trace shows
one, the product is added to the weights in one operation, and the gradient is never formed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

_aten: Any = torch.ops.aten
_VIEWS = {
    _aten.view.default,
    _aten._unsafe_view.default,
    _aten.transpose.int,
    _aten.t.default,
    _aten.permute.default,
    _aten.reshape.default,
}
_RESHAPES = {_aten.view.default, _aten._unsafe_view.default, _aten.expand.default}
_LOOSE = 1e-3  # relative difference to the gradient itself: rounding alone, or not the same thing

Gradients = Callable[..., tuple[torch.Tensor, ...]]  # (*parameters, *others) -> a gradient a parameter, then the losses


@dataclass(frozen=True)
class TracedStep:
    """One step of SGD on stacks of parameters of one shape each."""

    _run: Callable[..., tuple[torch.Tensor, ...]]
    _products: tuple[bool | None, ...]  # of each parameter: whether a product's factors stand swapped; None for none

    def step(self, parameters: Sequence[torch.Tensor], others: Sequence[torch.Tensor], lr: float) -> torch.Tensor:
        """Change the parameters [k, …] in place; the losses [k]."""
        found = iter(self._run(*parameters, *others))
        changes = [(next(found),) if swapped is None else (next(found), next(found)) for swapped in self._products]
        for parameter, change, swapped in zip(parameters, changes, self._products, strict=True):
            if swapped is None:
                parameter.add_(change[0], alpha=-lr)
            else:
                torch.baddbmm(parameter, *_turned(change, swapped), alpha=-lr, out=parameter)
        return next(found)


def traced(gradients: Gradients, parameters: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> TracedStep:
    """Trace a function on examples; what comes out is good for tensors of these shapes alone.

    Raises whatever cannot be traced raises.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    examples = (*parameters, *others)
    module: GraphModule = make_fx(gradients)(*examples)
    _shorten(module)
    output = next(node for node in module.graph.nodes if node.op == "output")
    wanted: list[Node] = list(output.args[0])
    factors = [_product(node) for node in wanted[: len(parameters)]]
    # Computed once with the factors beside the gradients, to see which of them are what they seem.
    output.args = (tuple(node for pair in factors if pair is not None for node in pair) + tuple(wanted),)
    module.recompile()
    found = list(module(*examples))
    owned = {tensor.untyped_storage().data_ptr() for tensor in parameters}
    results: list[Node] = []
    products: list[bool | None] = []
    values = iter(found[: 2 * sum(pair is not None for pair in factors)])
    gradient_values = found[2 * sum(pair is not None for pair in factors) :]
    for node, pair, gradient in zip(wanted, factors, gradient_values, strict=False):
        swapped = None
        if pair is not None:
            both = (next(values), next(values))
            # A factor that is a view of parameters would have changed when it is used.
            if not any(factor.untyped_storage().data_ptr() in owned for factor in both):
                swapped = _orientation(both, gradient)
        products.append(swapped)
        results += [node] if swapped is None or pair is None else pair
    output.args = ((*results, wanted[-1]),)
    module.graph.eliminate_dead_code()
    module.recompile()
    return TracedStep(module.forward, tuple(products))


def _shorten(module: GraphModule) -> None:
    """Leave out reshapes to the shape there is."""
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target in _RESHAPES:
            source = node.args[0]
            if source.meta["val"].shape == node.meta["val"].shape:
                node.replace_all_uses_with(source)
                module.graph.erase_node(node)


def _product(node: Node) -> tuple[Node, Node] | None:
    """The factors, if the node is a batched product but for its shape."""
    while node.op == "call_function" and node.target in _VIEWS:
        assert isinstance(node.args[0], Node)
        node = node.args[0]
    if node.op != "call_function" or node.target is not _aten.bmm.default:
        return None
    left, right = node.args
    return (left, right) if isinstance(left, Node) and isinstance(right, Node) else None


def _orientation(factors: tuple[torch.Tensor, torch.Tensor], gradient: torch.Tensor) -> bool | None:
    """Whether the gradient is the product of the factors swapped and turned, or as they are; None if neither."""
    for swapped in (False, True):
        left, right = _turned(factors, swapped)
        if (*left.shape[:2], right.shape[2]) == tuple(gradient.shape):
            apart = (torch.bmm(left, right) - gradient).abs().max()
            if apart <= _LOOSE * gradient.abs().max():
                return swapped
    return None


def _turned(factors: tuple[torch.Tensor, ...], swapped: bool) -> tuple[torch.Tensor, torch.Tensor]:
    left, right = factors
    return (right.transpose(1, 2), left.transpose(1, 2)) if swapped else (left, right)
