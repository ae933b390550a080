"""Inpainting by RePaint: no change outside the mask, and inside it samples of the exact distribution."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from diptych.diffusion.denoiser import Denoiser, Estimate
from diptych.diffusion.inpainting import RePaint
from diptych.diffusion.samplers import SAMPLERS
from diptych.diffusion.schedules import Schedule, ScheduleConfig
from diptych.diffusion.steps import NoiseSource
from diptych.diffusion.times import timesteps
from tests.diffusion.oracles import Gaussian, Mixture, Net
from tests.diffusion.test_samplers import ODE, SDE, even_in_log_snr

SCHEDULE = ScheduleConfig(kind="cosine").build()
MASK = torch.tensor([True, False])
"""Of pairs (B, 2): the first is inpainted, the second is given."""


class Oracle:
    """A closed form as a denoiser that records its inputs."""

    def __init__(self, best) -> None:
        self.best, self.calls = best, 0
        self.inputs: list[tuple[float, Tensor]] = []

    def estimate(self, x: Tensor, t, cond=None) -> Estimate:
        self.inputs.append((float(t), x.clone()))
        self.calls += len(x)
        return Estimate(self.best(x, t))

    __call__ = None  # type: ignore[assignment]  # `RePaint` asks for estimates alone


class Pair(Gaussian):
    """Data ~ two coordinates N(0, 1) with this correlation, (B, 2)."""

    def __init__(self, schedule: Schedule, correlation: float) -> None:
        super().__init__(schedule, 0.0, 1.0)
        self.covariance = torch.tensor([[1.0, correlation], [correlation, 1.0]], dtype=torch.float64)

    def __call__(self, x: Tensor, t) -> Tensor:
        alpha, sigma = self.levels(x[:1], t)
        total = alpha**2 * self.covariance + sigma**2 * torch.eye(2, dtype=torch.float64)
        return (alpha * self.covariance @ torch.linalg.solve(total, x.double().T)).T.to(x)


def inpaint(best, name: str, image: Tensor, mask: Tensor, times: Tensor, noise: NoiseSource) -> tuple[Tensor, Oracle]:
    """The inpainted image, and the oracle with its inputs."""
    start, oracle = noise.draw(), Oracle(best)
    denoiser = Denoiser(Net(), SCHEDULE)  # for its `add_noise` alone
    inpainting = RePaint(oracle, image, partial(denoiser.add_noise, image, start), mask, float(times[0]))
    return inpainting.composite(SAMPLERS[name](inpainting, start, times, SCHEDULE, noise=noise)), oracle


@pytest.mark.parametrize("name", SAMPLERS)
def test_repaint_keeps_the_image_outside_the_mask(name: str) -> None:
    image = torch.linspace(-1, 1, 12).view(2, 1, 6)
    mask = (torch.arange(6) % 3 == 1).expand(2, 1, 6)
    times = timesteps(SCHEDULE, 8, "karras")
    start = NoiseSource([3, 4], (1, 6)).draw()
    got, oracle = inpaint(Mixture(SCHEDULE), name, image, mask, times, NoiseSource([3, 4], (1, 6)))
    assert torch.equal(got[~mask], image[~mask]) and (got[mask] - image[mask]).abs().max() > 0.01
    (first, x_t), *later = oracle.inputs
    assert first == times[0] and torch.equal(x_t, start), "at the start there is nothing but noise"
    assert len(later) >= 7
    for t, x_t in later:
        alpha, sigma = SCHEDULE.alpha_sigma(torch.tensor(t, dtype=torch.float64))
        torch.testing.assert_close(x_t[~mask], (alpha * image + sigma * start)[~mask].float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_repaint_of_independent_values_is_plain_sampling(name: str) -> None:
    """Every coordinate is independent: the inpainted ones are those of the sampler without a mask, to the bit."""
    image, times = torch.full((2, 50), 0.3), timesteps(SCHEDULE, 12, "karras")
    mask = torch.arange(50).expand(2, 50) % 2 == 0
    got, _ = inpaint(Mixture(SCHEDULE), name, image, mask, times, NoiseSource([1, 2], (50,)))
    noise = NoiseSource([1, 2], (50,))
    free = SAMPLERS[name](Mixture(SCHEDULE), noise.draw(), times, SCHEDULE, noise=noise)
    assert torch.equal(got[mask], free[mask]) and (got[~mask] == 0.3).all()


@pytest.mark.parametrize("name", SDE)
def test_repaint_of_a_fully_correlated_value(name: str) -> None:
    """Data whose two coordinates are all but the same have one answer. (Without fresh noise, the inpainted one nears it
    with the root of sigma only: z' = z / (2 s) in the terms of the next test.)
    """
    image = torch.tensor([[9.0, 1.4], [9.0, -0.6]], dtype=torch.float64)  # the 9 is not used
    times = even_in_log_snr(SCHEDULE, 0.99, 1e-4, 400)
    noise = NoiseSource([5, 6], (2,), dtype=torch.float64)
    got, _ = inpaint(Pair(SCHEDULE, 1 - 1e-9), name, image, MASK.expand(2, 2), times, noise)
    assert (got[:, 0] - image[:, 1]).abs().max() < 0.05


@pytest.mark.parametrize("correlation", [0.5, -0.9])
@pytest.mark.parametrize("name", ODE)
def test_repaint_of_a_correlated_value_solves_its_ode(name: str, correlation: float) -> None:
    """With y = x / alpha of the inpainted one, s = sigma / alpha and y_known(s) = b + s e, the ODE is linear:

    dy/ds = s ((1 + s^2) y - c (b + s e)) / D,  D = (1 + s^2)^2 - c^2,  with the homogeneous solution h = D^(1/4).
    """
    c, image = correlation, torch.tensor([[0.0, 1.5], [0.0, -0.7]], dtype=torch.float64)
    times = even_in_log_snr(SCHEDULE, 0.99, 0.01, 400)
    alpha, sigma = SCHEDULE.alpha_sigma(times[[0, -1]])
    (most, least) = (sigma / alpha).tolist()

    def h(s: float) -> float:
        return ((1 + s * s) ** 2 - c * c) ** 0.25

    def pull(power: int) -> float:
        return quad(lambda s: c * s**power / h(s) ** 5, least, most, limit=400)[0]

    source = partial(NoiseSource, [5, 6], (2,), dtype=torch.float64)
    got, _ = inpaint(Pair(SCHEDULE, c), name, image, MASK.expand(2, 2), times, source())
    start, b = source().draw(), image[:, 1]
    y = h(least) * (start[:, 0] / alpha[0] / h(most) + b * pull(1) + start[:, 1] * pull(2))
    assert (got[:, 0] - alpha[1] * y).abs().max() < {1: 1e-2}.get(ODE[name], 5e-4)
    assert (b * pull(1)).abs().max() > 0.1, "the neighbour has an effect"


def test_repaint_underestimates_correlations() -> None:
    """Without resampling, as RePaint does, the mean moves with the given neighbour by less than the correlation c: by
    c (1 - c^2)^(1/4) / 2 times the integral of (u^2 - c^2)^(-5/4) from 1 on, which is c / 3 for weak correlation.
    """
    c, times = 0.3, even_in_log_snr(SCHEDULE, 0.995, 0.002, 200)
    image = torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)  # the same noise for both
    source = NoiseSource([7, 7], (2,), dtype=torch.float64)
    got, _ = inpaint(Pair(SCHEDULE, c), "dpmpp-2m", image, MASK.expand(2, 2), times, source)
    moved = float(got[0, 0] - got[1, 0])
    whole = quad(lambda u: (u * u - c * c) ** -1.25, 1, math.inf)[0]
    assert moved == pytest.approx(c * (1 - c * c) ** 0.25 / 2 * whole, abs=0.003)
    assert c / 3 < moved < c / 2


def test_repaint_passes_guidance_and_variance_through() -> None:
    class Learned(Oracle):
        def estimate(self, x: Tensor, t, cond=None) -> Estimate:
            return Estimate(x * 0.5, x * 0 + 0.25)

    image, mask = torch.ones(1, 4), torch.tensor([True, True, False, False])
    inpainting = RePaint(Learned(None), image, lambda t: image * 3, mask, 0.9)
    x0, variance = inpainting.estimate(torch.zeros(1, 4) + 8, 0.4)
    assert x0.tolist() == [[4.0, 4.0, 1.0, 1.0]] and variance is not None and (variance == 0.25).all()
    assert torch.equal(inpainting(torch.zeros(1, 4) + 8, 0.4), x0)
