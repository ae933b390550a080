"""A warning where a negative prompt is given, which guidance alone reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from diptych.core.errors import warn


def warn_of_unguided(negatives: Sequence[str], guidance: Iterable[float]) -> None:
    """Warn of negative prompts where no stage guides: at a weight of 1 only the half with the prompt is computed."""
    if any(negatives) and all(weight == 1 for weight in guidance):
        warn("the negative prompt has no effect: this generates without guidance (its weight is 1)")
