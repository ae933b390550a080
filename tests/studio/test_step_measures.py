"""What is measured in each step, against the networks' own outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diptych.studio.step_measures import StepMeasures
from tests.models import stages


def test_clipped_values_are_those_at_the_bounds() -> None:
    """Of dynamic thresholding at a percentile p, 1 - p of the values are; of a cascade, each stage has its size."""
    model = stages.stage(stages.base(steps=2, guidance=4.0, threshold=stages.ThresholdConfig(percentile=0.75)))
    seen: list[dict[str, Any]] = []
    with StepMeasures(model, 1) as measures:
        model.generate(["red left"], seeds=[1], callback=lambda step, steps, x0: seen.append(measures.of_step(x0)))
    for row in seen:
        assert (
            row["clipped"][0] == pytest.approx(0.25, abs=0.02) and row["guidance_delta"][0] > 0 and "stage" not in row
        )
    cascade = stages.cascade()
    sides: list[int] = []

    def follow(step: int, steps: int, x0: torch.Tensor) -> None:
        sides.append(int(measures.of_step(x0)["stage"][0]))

    with StepMeasures(cascade, 1) as measures:
        cascade.generate(["red left"], seeds=[1], callback=follow)
    assert sides == [8] * 3 + [16] * 2 + [32] * 2
