"""Recipes: every model that diptych trains by name, as Python values. `get` finds one, `run` carries it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from diptych.config import Config
from diptych.data.dataset import DataConfig
from diptych.errors import UserError, pick
from diptych.evaluation.judge_training import ContrastConfig
from diptych.latent import LatentConfig
from diptych.training.config import TrainingConfig
from diptych.training.diffusion import DiffusionTraining
from diptych.training.first_stage import FirstStageConfig


@dataclass(frozen=True, kw_only=True)
class LatentTraining(Config):
    """A latent diffusion model to train, over a first stage that is already trained."""

    kind: Literal["latent"] = "latent"
    """Which system this is."""
    model: LatentConfig = LatentConfig()
    """The model."""
    diffusion: DiffusionTraining = DiffusionTraining()
    """Its objective, caption dropout and sample prompts."""
    autoencoder: str = "runs/autoencoder"
    """Run folder or model folder of the trained first stage; its network must be `model.autoencoder`."""
    precomputed: str | None = None
    """Folder that `diptych precompute` wrote, or none to encode pictures and captions at every step."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Config):
    """What is trained, on what, and how."""

    description: str
    """One line for `diptych recipes`."""
    system: FirstStageConfig | LatentTraining | ContrastConfig
    """What is trained."""
    data: DataConfig = DataConfig()
    """The training data; validation uses its held-out split."""
    training: TrainingConfig = TrainingConfig()
    """How it is trained."""

    def check(self) -> None:
        if isinstance(self.system, LatentTraining) and self.data.size != self.system.model.size:
            sizes = f"data.size ({self.data.size}) and system.model.size ({self.system.model.size})"
            raise UserError(f"Recipe: {sizes} must be the same: set both")


def all_recipes() -> dict[str, Recipe]:
    """Every recipe by name."""
    from diptych.recipes import emoji, published

    return {**emoji.RECIPES, **published.RECIPES}


def get(name: str) -> Recipe:
    """The recipe of that name; a `UserError` lists the names there are."""
    recipes = all_recipes()
    return recipes[pick("recipe", name, recipes)]
