"""The samplers' options: against the reference library, against each other, and refusals."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import pytest
import torch

from diptych.core.errors import UserError
from diptych.diffusion.denoiser import Denoiser
from diptych.diffusion.sampler_options import LIMITS, read_sampler_options, sampler_options
from diptych.diffusion.samplers import SAMPLERS, ddpm
from diptych.diffusion.schedules import ScheduleConfig
from diptych.diffusion.steps import NoiseSource
from diptych.diffusion.times import timesteps
from tests.diffusion.oracles import Gaussian, Mixture, Net

SEEDS, SHAPE = (1, 2), (3, 4)


def sample(name: str, kind: str = "scaled-linear", steps: int = 12, **options: Any) -> torch.Tensor:
    schedule, noise = ScheduleConfig(kind=kind).build(), NoiseSource(SEEDS, SHAPE)  # type: ignore[arg-type]
    denoiser = Denoiser(Net(), schedule, "v")
    return SAMPLERS[name](denoiser, noise.draw(), timesteps(schedule, steps), schedule, noise=noise, **options)


@pytest.mark.parametrize("kind", ["scaled-linear", "cosine", "flow"])
@pytest.mark.parametrize("name", ["euler-ancestral", "ddim", "ddpm", "ddpm-fixed-large"])
def test_eta_0_of_ancestral_samplers_is_euler(name: str, kind: str) -> None:
    assert torch.equal(sample(name, kind, eta=0.0), sample("euler", kind))


def test_eta_1_of_ddim_is_the_posterior_of_ddpm() -> None:
    """x' ~ N(mean of Eq. 7, beta-tilde) of DDPM, written in its betas (Ho et al. 2020, Eq. 6 and 7)."""
    steps = 40
    schedule = ScheduleConfig(kind="linear", beta_start=1e-4, beta_end=0.02, steps=steps).build()
    betas = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)
    products = torch.cumprod(1 - betas, 0)
    network, noise = Net(), NoiseSource(SEEDS, SHAPE, dtype=torch.float64)
    x = start = noise.draw()
    for i in reversed(range(steps)):
        before = products[i - 1] if i else torch.ones(())
        eps = network(x, torch.full((len(x),), float(i), dtype=torch.float64))
        x0 = (x - (1 - products[i]).sqrt() * eps) / products[i].sqrt()
        x = (
            before.sqrt() * betas[i] / (1 - products[i]) * x0
            + (betas[i] * (-1) + 1).sqrt() * (1 - before) / (1 - products[i]) * x
        )
        if i:
            x = x + ((1 - before) / (1 - products[i]) * betas[i]).sqrt() * noise.draw()
    again = NoiseSource(SEEDS, SHAPE, dtype=torch.float64)
    assert torch.equal(again.draw(), start)
    times = timesteps(schedule, steps)
    got = SAMPLERS["ddim"](Denoiser(Net(), schedule), start, times, schedule, noise=again, eta=1.0)
    assert torch.allclose(got, x, rtol=1e-9)


@pytest.mark.parametrize("name", ["dpmpp-2m", "dpmpp-1m", "dpmpp-2m-heun", "dpm-2m"])
def test_eta_turns_the_ode_into_the_sde(name: str) -> None:
    assert torch.equal(sample(name, eta=1.0), sample(f"{name}-sde".replace("2m-heun-sde", "2m-sde-heun")))
    assert not torch.allclose(sample(name, eta=0.5), sample(name, eta=1.0), atol=1e-2)


@pytest.mark.parametrize("options", [{"s_churn": 4.0}, {"s_churn": 90.0, "s_tmin": 0.3, "s_tmax": 5.0, "s_noise": 1.1}])
@pytest.mark.parametrize("name", ["euler", "heun"])
def test_s_churn_matches_diffusers(name: str, options: dict[str, float]) -> None:
    """Karras et al. 2022, Algorithm 2, which the reference writes in x / alpha and sigma / alpha, with a denoiser whose
    answer is known in both."""
    from diffusers.schedulers.deprecated.scheduling_karras_ve import KarrasVeScheduler

    schedule = ScheduleConfig().build()
    oracle, steps = Gaussian(schedule), 10
    times = timesteps(schedule, steps, "karras")[1:]  # at t = 1 there is no room for more noise
    steps -= 1
    noise = NoiseSource(SEEDS, SHAPE, dtype=torch.float64)
    x = noise.draw()
    got = SAMPLERS[name](oracle, x, times, schedule, noise=noise, **options)

    names = {"s_churn": "s_churn", "s_tmin": "s_min", "s_tmax": "s_max", "s_noise": "s_noise"}
    full = {"s_tmin": 0.0, "s_tmax": math.inf, "s_noise": 1.0} | options
    reference = KarrasVeScheduler(**{names[key]: value for key, value in full.items()})
    reference.num_inference_steps = steps
    alphas, sigmas = schedule.alpha_sigma(times)
    ratios = (sigmas / alphas).tolist()
    replay = NoiseSource(SEEDS, SHAPE, dtype=torch.float64)
    replay.draw()

    def direction(x: torch.Tensor, ratio: float) -> torch.Tensor:
        """(D(x) - x) / sigma, for data of this mean and deviation."""
        total = oracle.std**2 + ratio**2
        x0 = oracle.mean + oracle.std**2 / total * (x - oracle.mean)
        return (x0 - x) / ratio

    x, drawn = x / alphas[0], 0
    for now, then in itertools.pairwise(ratios):
        hat = now
        if full["s_tmin"] <= now <= full["s_tmax"]:
            _, hat = reference.add_noise_to_input(torch.zeros(1), now)
            x = x + full["s_noise"] * (hat**2 - now**2) ** 0.5 * replay.draw()
            drawn += 1
        step: Any = reference.step(direction(x, hat), hat, then, x)
        after = step.prev_sample
        if name == "heun" and then > 0:
            derivative = step.derivative
            corrected: Any = reference.step_correct(direction(after, then), hat, then, x, after, derivative)
            after = corrected.prev_sample
        x = after
    assert drawn == (steps if len(options) == 1 else sum(0.3 <= ratio <= 5 for ratio in ratios[:-1])) > 0
    assert torch.allclose(got, x, rtol=1e-6)
    assert torch.equal(noise.draw(), replay.draw()), "as many draws"


@pytest.mark.parametrize("name", ["euler", "heun"])
@pytest.mark.parametrize("kind", ["scaled-linear", "flow"])
def test_s_churn_keeps_the_distribution(name: str, kind: str) -> None:
    schedule = ScheduleConfig(kind=kind).build()  # type: ignore[arg-type]
    oracle, count = Mixture(schedule), 4_000
    noise = NoiseSource([5], (count,))
    x = oracle.noised(noise.draw(), 1.0)
    times = timesteps(schedule, 250, "karras" if kind == "scaled-linear" else "trailing")
    got = SAMPLERS[name](oracle, x, times, schedule, noise=noise, s_churn=60.0)
    untouched = NoiseSource([5], (count,))
    untouched.draw()
    assert not torch.equal(noise.draw(), untouched.draw()), "fresh noise was drawn"
    ranks = oracle.cdf(got.double().sort().values, 0.0).flatten()
    distance = (ranks - (torch.arange(count) + 0.5) / count).abs().max().item()  # Kolmogorov-Smirnov
    assert distance < 0.05, distance


@pytest.mark.parametrize("name", ["euler-ancestral", "dpmpp-2m-sde", "dpm-2m-sde"])
def test_s_noise_scales_the_fresh_noise(name: str) -> None:
    """With a denoiser that always answers 0, x is linear in the noises: twice the factor, twice their part."""
    schedule = ScheduleConfig().build()
    times, x = timesteps(schedule, 10)[:6], torch.zeros(2, *SHAPE)
    once, twice = (
        SAMPLERS[name](lambda x, t: 0 * x, x, times, schedule, noise=NoiseSource(SEEDS, SHAPE), s_noise=factor)
        for factor in (0.75, 1.5)
    )
    assert once.abs().max() > 0.1 and torch.allclose(2 * once, twice)


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler_options_defaults(name: str) -> None:
    options = sampler_options(name)
    for key, default in options.items():
        assert LIMITS[key].low <= default <= LIMITS[key].high, key
    assert torch.equal(sample(name, **options), sample(name))
    if "s_churn" not in options:
        assert read_sampler_options(name, dict.fromkeys(options)) == {}


def test_sampler_options_by_sampler() -> None:
    churn = {"s_churn", "s_tmin", "s_tmax", "s_noise"}
    assert set(sampler_options("euler")) == set(sampler_options("heun")) == churn
    assert set(sampler_options("ddim")) == {"eta"} and sampler_options("ddim")["eta"] == 0
    assert sampler_options("euler-ancestral")["eta"] == sampler_options("dpmpp-2m-sde")["eta"] == 1
    assert sampler_options("unipc") == {}
    assert read_sampler_options("heun", {"s_churn": 10, "eta": None}) == {"s_churn": 10.0}


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("unipc", {"eta": 0.5}, r"the sampler unipc has no eta; these have: ddpm, .*ddim, .*euler-ancestral"),
        ("ddim", {"s_churn": 5}, r"the sampler ddim has no s_churn; these have: euler, heun$"),
        ("ddim", {"eta": 1.5}, r"eta must lie between 0 and 1, not 1\.5"),
        ("ddim", {"eta": "much"}, r"eta must be a finite number, not 'much'"),
        ("ddim", {"eta": True}, r"eta must be a finite number, not True"),
        ("euler", {"s_churn": math.nan}, r"s_churn must be a finite number, not nan"),
        ("euler", {"s_churn": 1, "s_tmin": -1}, r"s_tmin must be at least 0, not -1"),
        ("euler", {"s_churn": 1, "s_tmin": 2, "s_tmax": 1}, r"s_tmin \(2\) must be at most s_tmax \(1\)"),
        ("euler", {"s_noise": 1.1}, r"s_noise has no effect without s_churn"),
        ("dpmpp-2m", {"s_noise": 1.1}, r"s_noise has no effect without eta"),
        ("ddim", {"etta": 1}, r"unknown sampler option 'etta'.*did you mean eta\?"),
        ("eular", {}, r"unknown sampler 'eular'"),
    ],
)
def test_sampler_options_are_refused_in_one_line(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as error:
        read_sampler_options(name, options)
    assert re.search(says, str(error.value)) and "\n" not in str(error.value)


def test_an_option_of_another_sampler_is_an_error() -> None:
    assert ddpm.options == {"eta": 1.0, "variance": "fixed-small", "noisy_end": False}
    assert SAMPLERS["ddpm-fixed-large"].options == {"eta": 1.0, "variance": "fixed-large", "noisy_end": True}
    with pytest.raises(TypeError, match="s_churn"):
        sample("unipc", s_churn=1.0)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("kind", ["scaled-linear", "cosine", "cosine-table", "flow"])
def test_sampler_options_at_their_bounds_are_finite(name: str, kind: str) -> None:
    largest = {"eta": 1.0, "s_churn": 1000.0, "s_noise": 2.0}
    bounds = {key: value for key, value in largest.items() if key in sampler_options(name)}
    for steps in (1, 2, 10):
        assert sample(name, kind, steps, **bounds).isfinite().all()
