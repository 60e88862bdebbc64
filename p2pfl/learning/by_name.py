"""A learner from names alone, as on the command line: data, part and model, built once the recipe is known."""

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from p2pfl.errors import RecipeError
from p2pfl.learning.data import Data, load_data, parts_of
from p2pfl.learning.examples import Task
from p2pfl.learning.learner import Metric, TorchLearner
from p2pfl.learning.models import build_model
from p2pfl.learning.quadratic import loss_of
from p2pfl.learning.tabular import Missing
from p2pfl.model_files import ModelFacts
from p2pfl.recipe import NetworkRecipe
from p2pfl.spelling import is_function


@dataclass
class NamedLearning:
    """What one peer's user said of its data. Call it with a recipe to get the learner."""

    data: str = "mnist10k"
    part: tuple[int, int] | None = None  # from 1: (2, 5) is the second of five
    target: str | None = None
    task: Task | None = None
    missing: Missing = "refuse"
    root: Path | None = None
    device: str = "cpu"
    seat: str = "0"
    own_model: str | None = None  # the model this peer's own user asked for
    loaded: Data | None = field(default=None, init=False)
    recipe: NetworkRecipe | None = field(default=None, init=False)
    _whole: Data | None = field(default=None, init=False)

    def read(self) -> Data:
        """All of the data, unsplit; read once. Raises DataError."""
        if self._whole is None:
            self._whole = load_data(self.data, target=self.target, task=self.task, missing=self.missing, root=self.root)
        return self._whole

    def load(self, recipe: NetworkRecipe) -> Data:
        """The data in the split that the recipe describes. Raises DataError."""
        whole = self.read()
        if self.part is None:
            return whole
        part, parts = self.part
        indices = parts_of(whole, parts, recipe.alpha if recipe.alpha > 0 else None, recipe.seed_of("data"))[part - 1]
        return replace(whole, train=whole.train.subset(torch.from_numpy(indices)))

    def __call__(self, recipe: NetworkRecipe) -> TorchLearner:
        """Load the data, build the model, and bring them together.

        Raises:
            RecipeError: the network's model is a function that this machine's user did not ask for.
            DataError, ModelError: as their names say.
        """
        if is_function(recipe.model) and recipe.model != self.own_model:
            raise RecipeError(
                f"the network trains {recipe.model}, which is code of its members' own; "
                f"if you have it and trust it, say --model {recipe.model}"
            )
        data = self.load(recipe)
        self.loaded, self.recipe = data, recipe
        return TorchLearner(
            build_model(recipe.model, data.input_shape, data.outputs, recipe.seed_of("init")),
            data.train,
            data.test,
            loss=loss_of(self.data),
            metrics=metrics_of(data),
            seat=self.seat,
            **recipe.training,
            device=self.device,
        )

    def facts(self) -> ModelFacts:
        """What to write into the model's file."""
        if self.loaded is None or self.recipe is None:
            return ModelFacts()
        data = self.loaded
        return ModelFacts(
            model=self.recipe.model,
            input_shape=data.input_shape,
            outputs=data.outputs,
            task=data.task,
            labels=data.labels,
            preparation=dict(data.preparation),
            data=data.name,
        )

    def label_counts(self) -> dict[str, int]:
        """Training examples by class name; all under "examples" where there are no classes."""
        if self.loaded is None:
            return {}
        if self.loaded.task != "classification":
            return {"examples": len(self.loaded.train)}
        counts = Counter(self.loaded.train.targets.tolist())
        return {label: counts.get(index, 0) for index, label in enumerate(self.loaded.labels)}


def metrics_of(data: Data) -> dict[str, Metric]:
    """Mean absolute error, in the target's own unit, for regression."""
    if data.task != "regression":
        return {}
    scale = data.preparation.get("target_std", 1.0)
    factor = float(scale) if isinstance(scale, int | float) else 1.0
    return {"mae": lambda output, target: float((output - target.view_as(output)).abs().mean()) * factor}
