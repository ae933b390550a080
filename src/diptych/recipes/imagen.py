"""Pixel diffusion as its papers describe it: Imagen's three stages, SR3 and DDPM, at full size."""

from __future__ import annotations

from diptych.recipes import Recipe

RECIPES: dict[str, Recipe] = {}
