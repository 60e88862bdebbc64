"""A learner for the recipe that a network agreed on, and what the protocol has to know of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from p2pfl.checkpoint import Generations
from p2pfl.errors import RecipeError
from p2pfl.layout import Vector, digest_of
from p2pfl.learning.learner import GENERATOR, Learner, Source, TorchLearner
from p2pfl.model_files import Checkpoint, read_vector
from p2pfl.protocol.messages import Settings
from p2pfl.protocol.participant import Prepared, Rules
from p2pfl.recipe import NetworkRecipe, recipe_of, standing_settings
from p2pfl.state import Stateful

Build: TypeAlias = Callable[[NetworkRecipe], Learner]  # called in a worker thread, once the network's recipe is known


@dataclass(frozen=True)
class Construction:
    """What a peer brings to the network's recipe: its model and data, and what it begins or goes on with."""

    model: nn.Module | Build
    parts: tuple[Source | None, Source | None]
    learning: Mapping[str, Any]  # see `TorchLearner`
    seat: str
    init: Path | None
    resumed: tuple[Checkpoint, Generations] | None

    def build(self, settings: Settings) -> tuple[Prepared, Learner]:
        """Model and data for a recipe; for a worker thread. Raises RecipeError where they do not go together."""
        with GENERATOR:  # a function of the user's own may draw initial weights from it
            return self._build(settings)

    def _build(self, settings: Settings) -> tuple[Prepared, Learner]:
        recipe = recipe_of(settings)
        if recipe.steps and "epochs" in settings:
            raise RecipeError("the network was asked for both epochs and steps; choose one")
        if isinstance(self.model, nn.Module):
            learner: Learner = TorchLearner(
                self.model,
                *self.parts,
                seat=self.seat,
                **recipe.training,
                **self.learning,
            )
        else:
            learner = self.model(recipe)
        vector, round = self._initial(learner, recipe)
        return Prepared(
            settings=settings,
            fingerprint=recipe.fingerprint,
            rules=Rules(
                topology=recipe.build_topology,
                schedule=recipe.schedule,
                rounds=recipe.rounds,
                min_peers=recipe.min_peers,
                patience=recipe.patience,
                min_deadline_s=recipe.min_deadline_s,
                max_wait_s=recipe.max_wait_s,
                healing=recipe.healing,
            ),
            layout=learner.layout.digest,
            tensors=learner.layout.describe(),
            bytes=learner.layout.framed_bytes,
            data=learner.data,
            vector=vector,
            init=digest_of(vector),
            round=round,
            standing=standing_settings(settings),
        ), learner

    def _initial(self, learner: Learner, recipe: NetworkRecipe) -> tuple[Vector, int]:
        """The vector to begin with, and the round it belongs to."""
        if self.resumed is not None:
            checkpoint, generations = self.resumed
            if recipe_of(checkpoint.settings).lineage != recipe.lineage:
                raise RecipeError(
                    "the network's recipe is not the one of the checkpoint; start without --resume, in a new --out"
                )
            saved = generations.read(learner.layout)
            learner.load(saved.vector)
            if saved.learner is not None and isinstance(learner, Stateful):
                learner.restore(saved.learner)
            return saved.vector, saved.facts.round
        if self.init is not None:
            vector = read_vector(self.init, learner.layout)
            learner.load(vector)
        else:
            vector = torch.empty(learner.layout.size, dtype=learner.layout.torch_dtype)
            learner.parameters(vector)
        return vector, 0
