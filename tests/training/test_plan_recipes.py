"""Plans of recipes: each is counted, and no figure is senseless."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import pytest

from diptych.cli.plan_report import OUTSIDE, as_values, print_plan
from diptych.core.errors import UserError
from diptych.recipes import all_recipes
from diptych.training.planning.cards import card
from diptych.training.planning.plan import Cluster, Plan, make_plan
from diptych.training.tasks.few_steps import FewStepTraining

CLUSTERS = ((1, "no"), (8, "fsdp"), (256, "hsdp"))
"""GPUs, and how what is trained is divided among them."""


def numbers(values: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """All numbers of nested values, each with where it stands."""
    for key, value in values.items() if isinstance(values, dict) else ():
        yield from numbers(value, f"{name}.{key}")
    if isinstance(values, (int, float)):
        yield name, values


def planned(name: str, gpus: int, shard: Any) -> Plan:
    """The plan of a recipe, with a batch of an image for each part of each GPU's at least."""
    recipe = all_recipes()[name]
    least = gpus * recipe.training.accumulation
    training = dataclasses.replace(recipe.training, shard=shard, batch_size=max(least, recipe.training.batch_size))
    recipe = dataclasses.replace(recipe, training=training)
    return make_plan(recipe, Cluster(gpus, card("h100"), 0.4, 3.0), examples=10**6)


def require_sense(name: str, plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    for what, value in numbers(as_values(name, plan)):
        assert math.isfinite(value) and value >= 0, (what, value)
    trained = sum(plan.parameters.values())
    forward = sum(flops for part, flops in plan.step.forward.items() if part in plan.parameters)
    # a student's target may come from itself, and most weights beneath a LoRA have no gradient
    least = 0.4 if isinstance(plan.recipe.system, FewStepTraining) else 1.2
    assert least * forward < plan.step.backward < 3.2 * forward
    others = plan.step.forward.keys() - plan.parameters.keys() - plan.frozen_parameters.keys()
    assert sum(plan.step.forward[part] for part in others) < 0.2 * sum(plan.step.forward.values()), others
    assert plan.parameters.keys() <= plan.step.forward.keys()
    assert plan.frozen_parameters.keys() - plan.step.forward.keys() <= {*plan.idle}
    assert plan.memory.activations > 0 and plan.images_per_second > 0 and plan.price and plan.model_bytes
    group = 1 if plan.recipe.training.shard == "no" else 8
    assert 4 * trained / group <= plan.memory.weights <= 4 * trained / group * 1.3 + 2**29
    assert bool(plan.advice) != plan.fits
    print_plan(name, plan)
    printed = capsys.readouterr().out
    assert ("fits: " in printed) is plan.fits
    assert (OUTSIDE in printed) == bool(others)


@pytest.mark.slow
@pytest.mark.parametrize("name", all_recipes())
def test_any_recipe_can_be_planned(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for gpus, shard in CLUSTERS:
        try:
            plan = planned(name, gpus, shard)
        except UserError as error:
            assert "train one" in str(error)  # another model, of which the shape of this one follows
        else:
            require_sense(name, plan, capsys)
