"""Recipes: every model that diptych trains by name, as Python values. `get` finds one."""

from __future__ import annotations

from diptych.core.errors import pick
from diptych.training.experiment_config import Recipe


def all_recipes() -> dict[str, Recipe]:
    """Every recipe by name."""
    from diptych.recipes import inpainting, layouts, super_resolution
    from diptych.recipes.emoji import autoencoders as emoji_first_stages
    from diptych.recipes.emoji import class_conditional as emoji_classes
    from diptych.recipes.emoji import classifiers as guides
    from diptych.recipes.emoji import distilled_decoder as tiny
    from diptych.recipes.emoji import few_step_students as students
    from diptych.recipes.emoji import latent as emoji
    from diptych.recipes.emoji import pixel_cascade as emoji_cascade
    from diptych.recipes.emoji import vqgan as emoji_codes
    from diptych.recipes.papers import adm, deepfloyd, first_stages, glide, imagen, taming
    from diptych.recipes.papers import ldm as latent_diffusion
    from diptych.recipes.papers import stable_diffusion as published

    ours = (emoji, emoji_classes, emoji_first_stages, emoji_cascade, emoji_codes, inpainting, tiny, students, guides)
    theirs = (first_stages, published, latent_diffusion, taming, imagen, deepfloyd, adm, glide)
    tasks = (super_resolution, layouts)
    return {name: recipe for module in (*ours, *theirs, *tasks) for name, recipe in module.RECIPES.items()}


def get(name: str) -> Recipe:
    """The recipe of that name; a `UserError` lists the names there are."""
    recipes = all_recipes()
    return recipes[pick("recipe", name, recipes, listed_by="`diptych recipes`")]
