"""A warning where images are asked for of a size far from that of training."""

from __future__ import annotations

import math
from collections.abc import Sequence

from diptych.core.errors import warn

FAR = 1.5
"""Sides, on average, from which on a model repeats or loses things."""


def warn_of_size(sides: Sequence[int], trained: int) -> None:
    """Warn of a width and height far from the squares of one side that a model was trained on."""
    across, down = sides
    ratio = math.sqrt(across * down) / trained
    if not 1 / FAR <= ratio <= FAR or max(sides) > 2 * trained:
        warn(
            f"{across} x {down} pixels are far from the {trained} x {trained} that this model was trained on: expect "
            "things repeated or lost"
        )
