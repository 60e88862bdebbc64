"""How different the peers' tasks are: variance of gradients, within a peer, between peers, and in neighborhoods."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from p2pfl.errors import UsageError
from p2pfl.keys import random_key

if TYPE_CHECKING:
    import torch

    from p2pfl.simulation.problem import Problem

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class GradientHeterogeneity:
    """In squared units of the gradient, all at one common point.

    Attributes:
        sigma2: σ² = mean over peers of E‖g_i − ∇f_i‖², what drawing a batch adds; None where no batches were given.
        zeta2: ζ² = (1/n) Σ ‖∇f_i − ∇f‖², how far the peers' tasks are apart.
        tau2: τ² = (1/n) Σ ‖Σ_j W_ij ∇f_j − ∇f‖², what of it is left within neighborhoods: a topology that suits the
            data has a small one even where ζ² is large. None where no mixing matrix was given.
    """

    sigma2: float | None
    zeta2: float
    tau2: float | None


def gradient_heterogeneity(
    gradients: npt.ArrayLike,
    batches: Sequence[npt.ArrayLike] | None = None,
    mixing: npt.ArrayLike | None = None,
) -> GradientHeterogeneity:
    """σ², ζ² and τ² of a set of gradients taken at one point.

    Args:
        gradients: [peers, size] ∇f_i, each over all of a peer's examples.
        batches: [draws, size] for each peer, gradients of batches, for σ².
        mixing: W, [peers, peers], for τ².

    Raises:
        UsageError: shapes that do not belong together.

    Source: Le Bars et al., "Refined convergence and topology learning for decentralized SGD with heterogeneous data",
    2023, section 3 (τ²).
    """
    full = np.asarray(gradients, dtype=np.float64)
    if full.ndim != 2:
        raise UsageError(f"gradients of shape {full.shape}: give [peers, size]")
    mean = full.mean(axis=0)
    sigma2 = tau2 = None
    if batches is not None:
        drawn = [np.asarray(own, dtype=np.float64) for own in batches]
        if len(drawn) != len(full) or any(own.ndim != 2 or own.shape[1:] != full.shape[1:] for own in drawn):
            raise UsageError(f"batches do not fit gradients of shape {full.shape}: give [draws, size] for each peer")
        sigma2 = float(
            np.mean([np.square(own - center).sum(axis=1).mean() for own, center in zip(drawn, full, strict=True)])
        )
    if mixing is not None:
        matrix = np.asarray(mixing, dtype=np.float64)
        if matrix.shape != (len(full), len(full)):
            raise UsageError(f"a mixing matrix of shape {matrix.shape} does not fit {len(full)} peers")
        tau2 = _mean_square(matrix @ full - mean)
    return GradientHeterogeneity(sigma2, _mean_square(full - mean), tau2)


def gradients_at(
    problem: "Problem", vector: "torch.Tensor", draws: int = 0, seed: int = 0
) -> tuple[Floats, list[Floats]]:
    """The peers' gradients at a common point, over all of their examples and over batches of the recipe's size.

    Args:
        vector: [size] the point, the averaged model say.
        draws: batches of each peer, drawn with repetition; 0 draws none.
        seed: of the draws.

    Returns:
        [peers, size], and [draws, size] for each peer; 0 where a parameter is frozen or not used. Dropout is off: the
        gradients are of the model as it is tested.

    Raises:
        UsageError: the point is not of the model's size.
    """
    import torch

    module = problem.build().eval()
    parameters = list(module.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if sum(parameter.numel() for parameter in parameters) != vector.numel():
        raise UsageError(f"the point has {vector.numel()} numbers, the model {sum(p.numel() for p in parameters)}")
    torch.nn.utils.vector_to_parameters(vector.to(parameters[0].dtype), parameters)

    def gradient(inputs: "torch.Tensor", targets: "torch.Tensor") -> Floats:
        output = module(inputs.to(parameters[0].dtype))
        found = iter(torch.autograd.grad(_loss(problem, output, targets), trained, materialize_grads=True))
        parts = [next(found) if parameter.requires_grad else torch.zeros_like(parameter) for parameter in parameters]
        return torch.cat([part.reshape(-1) for part in parts]).double().numpy()

    full, batches = [], []
    for peer in range(problem.peers):
        examples = problem.examples(peer)
        full.append(gradient(*examples.batch(torch.arange(len(examples)))))
        generator = torch.Generator().manual_seed(random_key(seed, "gradient noise", peer))
        shape = (draws, problem.recipe.batch_size)
        drawn = [gradient(*examples.batch(row)) for row in torch.randint(len(examples), shape, generator=generator)]
        batches.append(np.stack(drawn) if drawn else np.zeros((0, vector.numel())))
    return np.stack(full), batches


def _loss(problem: "Problem", output: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
    """As the learner chooses it: the problem's own, cross-entropy for classes, squared error for numbers."""
    from torch.nn import functional

    if problem.loss is not None:
        return problem.loss(output, targets)
    if problem.data.task == "classification":
        return functional.cross_entropy(output, targets)
    return functional.mse_loss(output, targets.to(output.dtype).view_as(output))


def _mean_square(rows: Floats) -> float:
    return float(np.square(rows).sum() / len(rows))
