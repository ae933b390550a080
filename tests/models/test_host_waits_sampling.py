"""The steps of sampling never wait for a GPU, for which the meta device stands in, except where a check is read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.core.errors import UserError
from diptych.core.random import NoiseSource
from diptych.diffusion import finite_check
from diptych.diffusion.denoiser import Denoiser, Prediction
from diptych.diffusion.finite_check import FiniteCheck
from diptych.diffusion.guidance import ClassifierFreeGuidance
from diptych.diffusion.samplers import SAMPLERS
from diptych.diffusion.schedules import ScheduleConfig
from tests.training.test_host_waits import GPU, Watch

TIMES = torch.linspace(1, 0, 7, dtype=torch.float64)


def network(x: Tensor, time: Tensor, context: Tensor) -> Tensor:
    assert time.device == x.device
    return x * context.mean(1)[:, None, None, None] + time[:, None, None, None]


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("name", ["ddim", "euler-ancestral", "dpmpp-2m", "unipc"])
def test_a_step_waits_for_nothing(name: str, prediction: Prediction) -> None:
    schedule = ScheduleConfig().build()
    context = torch.zeros(1, 3, device=GPU)
    denoiser = Denoiser(network, schedule, prediction)
    guided = ClassifierFreeGuidance(denoiser, {"context": context}, {"context": context}, 5.0)
    checked = FiniteCheck("this model", TIMES, "").wrap(guided)
    source = NoiseSource([0, 1], (4, 2, 2), device=GPU)
    x = torch.zeros(2, 4, 2, 2, device=GPU)
    with Watch() as watch:
        x = SAMPLERS[name](checked, x, TIMES, schedule, noise=source)
    assert x.device == GPU and watch.found == []


@pytest.mark.parametrize(("every", "calls"), [(1, 3), (4, 4), (100, 6)])
def test_what_is_read_later_still_names_the_step(every: int, calls: int, monkeypatch) -> None:
    monkeypatch.setattr(finite_check, "READ", every)
    made = list[Tensor]()

    class OnGpu(Tensor):
        """Says that it lies on a GPU, where nothing is read before `READ` steps."""

        device = torch.device("meta")  # type: ignore[assignment]

    def broken(x: Tensor, time: Tensor) -> Tensor:
        made.append(x)
        return (x * float("nan" if len(made) == 3 else 1)).as_subclass(OnGpu)

    check: Any = FiniteCheck("this model", TIMES, "try another")
    denoiser = check.wrap(Denoiser(broken, ScheduleConfig().build(), "x0"))
    sampler = check.wrap_sampler(
        lambda denoise, x, times: SAMPLERS["ddim"](denoise, x, times, ScheduleConfig().build())
    )
    with pytest.raises(UserError, match=r"step 3 of 6 of this model is not finite .* try another"):
        sampler(denoiser, torch.ones(1, 2, 2), TIMES)
    assert len(made) == calls
