"""Networks of recipes at full depth, sharded over two processes: the losses and gradients of one."""

from __future__ import annotations

from tests.training.processes import processes
from tests.training.recipe_steps import compare

RECIPES = ["sd1", "imagen-base", "imagen-sr-256", "if-1-xl", "kl-f8", "adm-256"]


def test_a_step_of_each() -> None:
    assert processes(2, compare, RECIPES) == [0, 0]
