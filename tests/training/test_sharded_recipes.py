"""Networks of recipes at full depth, sharded over two processes: the losses and gradients of one."""

from __future__ import annotations

import pytest

from tests.training.processes import processes
from tests.training.recipe_steps import compare

RECIPES = ["sd1", "imagen-base", "imagen-sr-256", "kl-f8"]
"""One of each class of network. Each costs two CPU-seconds."""
RELATIVES = ["if-1-xl", "adm-256"]
"""Other shapes of the network of `imagen-base`."""


@pytest.mark.parametrize("names", [RECIPES, pytest.param(RELATIVES, marks=pytest.mark.slow)], ids="-".join)
def test_a_step_of_each(names: list[str]) -> None:
    assert processes(2, compare, names) == [0, 0]
