"""What was recorded and saved before the modules were moved: the same seed gives the same image, old files open."""

from __future__ import annotations

import functools
import gzip
import json
from typing import Any

import pytest

import diptych
from diptych.recipes import all_recipes
from tests.saved.replay import HERE, compare, generate, numbered

RECIPES = json.loads(gzip.decompress((HERE / "recipes.json.gz").read_bytes()))["recipes"]


@functools.cache
def embedded(name: str) -> Any:
    return diptych.load(name, device="cpu")


@pytest.mark.parametrize(("number", "call"), numbered("images"))
def test_the_same_seed_gives_the_recorded_image(number: int, call: dict[str, Any]) -> None:
    compare("images", number, generate(embedded(call["model"]), call))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recorded_recipe_resolves_to_the_same_values(name: str) -> None:
    recipe = all_recipes()[name]
    assert type(recipe).from_dict(RECIPES[name]) == recipe
