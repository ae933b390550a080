import math

import pytest
import torch

from diptych.core.errors import UserError
from diptych.diffusion.denoiser import Denoiser
from diptych.diffusion.samplers import SAMPLERS, euler
from diptych.diffusion.schedules import ScheduleConfig
from diptych.diffusion.steps import NoiseSource
from diptych.diffusion.times import timesteps
from tests.diffusion.oracles import Gaussian, Mixture, Net

KINDS = ("scaled-linear", "cosine", "cosine-table", "flow")
ODE = {"euler": 1, "ddim": 1, "heun": 2, "dpmpp-2m": 2, "unipc": 3}
"""Order of the global error. UniPC's predictor is of order 2; its corrector adds one (Zhao et al. 2023, Thm. 3.1)."""
SDE = ("ddpm", "euler-ancestral", "dpmpp-2m-sde")


def even_in_log_snr(schedule, start: float, end: float, steps: int) -> torch.Tensor:
    first, last = schedule.log_snr(torch.tensor([start, end], dtype=torch.float64)).tolist()
    return schedule.inverse_log_snr(torch.linspace(first, last, steps + 1, dtype=torch.float64))


@pytest.mark.parametrize("name", ODE)
@pytest.mark.parametrize("kind", ["cosine", "flow"])
def test_samplers_order_of_convergence(name, kind):
    schedule = ScheduleConfig(kind=kind).build()
    oracle = Gaussian(schedule)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).view(1, 9)
    exact = oracle.solve(x, 0.9, 0.05)
    errors = []
    for steps in (40, 80, 160):
        times = even_in_log_snr(schedule, 0.9, 0.05, steps)
        got = SAMPLERS[name](oracle, x, times, schedule, noise=NoiseSource([0], (9,)))
        errors.append((got - exact).abs().max().item())
    orders = [math.log2(errors[0] / errors[1]), math.log2(errors[1] / errors[2])]
    assert all(ODE[name] - 0.2 < order < ODE[name] + 0.6 for order in orders), (errors, orders)


@pytest.mark.parametrize("name", ODE)
def test_ode_samplers_keep_quantiles(name):
    """The one-dimensional probability-flow ODE keeps the cumulative distribution of every point."""
    schedule = ScheduleConfig(kind="cosine").build()
    oracle = Mixture(schedule)
    x = torch.special.ndtri(torch.linspace(0.02, 0.98, 49, dtype=torch.float64)).view(1, 49)
    times = even_in_log_snr(schedule, 0.99, 0.02, 400)
    got = SAMPLERS[name](oracle, x, times, schedule, noise=NoiseSource([0], (49,)))
    error = (oracle.cdf(got, times[-1]) - oracle.cdf(x, times[0])).abs().max().item()
    assert error < {1: 4e-3, 2: 4e-5, 3: 3e-6}[ODE[name]], error


@pytest.mark.every(2)
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("kind", ["scaled-linear", "cosine", "flow"])
def test_samplers_sample_the_data_distribution(name, kind):
    schedule = ScheduleConfig(kind=kind).build()
    oracle, count = Mixture(schedule), 4_000
    noise = NoiseSource([5], (count,))
    # The last call must have less noise than the modes are wide, and the first step of these two must not be a jump.
    spacing = "karras" if kind == "scaled-linear" or (name in ("heun", "dpm-2m-sde") and kind != "flow") else "trailing"
    x = oracle.noised(noise.draw(), 1.0)  # Stable Diffusion's schedule leaves 7% of the image at t = 1
    got = SAMPLERS[name](oracle, x, timesteps(schedule, 100, spacing), schedule, noise=noise)
    ranks = oracle.cdf(got.double().sort().values, 0.0).flatten()
    distance = (ranks - (torch.arange(count) + 0.5) / count).abs().max().item()  # Kolmogorov-Smirnov
    assert distance < 0.05, distance


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_keeps_the_variance_for_every_eta(eta):
    schedule = ScheduleConfig(kind="linear", beta_start=1e-4, beta_end=0.02).build()
    noise = NoiseSource([6], (20_000,))
    x = noise.draw()
    got = SAMPLERS["ddim"](Gaussian(schedule), x, timesteps(schedule, 400), schedule, noise=noise, eta=eta)
    assert got.mean().item() == pytest.approx(0.7, abs=0.03) and got.std().item() == pytest.approx(0.3, rel=0.04)
    untouched = NoiseSource([6], (20_000,))
    untouched.draw()
    assert (eta == 0) == torch.equal(noise.draw(), untouched.draw())


def test_ddpm_ddim_eta_1_and_euler_ancestral_are_one_step():
    """DDPM with the small variance, DDIM with eta = 1 and Euler ancestral draw from the same posterior."""
    schedule = ScheduleConfig().build()
    results = []
    for name, options in (("ddpm", {}), ("ddim", {"eta": 1.0}), ("euler-ancestral", {})):
        noise = NoiseSource([1, 2], (3, 4))
        denoiser = Denoiser(Net(), schedule, "v")
        results.append(
            SAMPLERS[name](denoiser, noise.draw(), timesteps(schedule, 15), schedule, noise=noise, **options)
        )
    assert torch.allclose(results[0], results[1], atol=1e-5) and torch.allclose(results[0], results[2], atol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("kind", KINDS)
def test_samplers_are_independent_of_the_batch(name, kind):
    schedule = ScheduleConfig(kind=kind).build()
    denoiser = Denoiser(Net(), schedule, "flow" if kind == "flow" else "v")

    def sample(seeds):
        noise = NoiseSource(seeds, (3, 4))
        spacing = "karras" if name == "heun" else "trailing"
        return SAMPLERS[name](denoiser, noise.draw(), timesteps(schedule, 6, spacing), schedule, noise=noise)

    together = sample([7, 8, 9])
    assert torch.allclose(sample([8]), together[1:2], rtol=1e-4, atol=1e-5)
    assert torch.allclose(sample([9, 8]), together[[2, 1]], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=0.1)


def test_noise_source_depends_on_the_seed_only():
    one, many = NoiseSource([3], (2, 5)), NoiseSource([1, 3, 2], (2, 5))
    for _ in range(3):
        assert torch.equal(one.draw()[0], many.draw()[1])
    assert torch.equal(one.uniform()[0], many.uniform()[1])
    assert NoiseSource([0], (2,), dtype=torch.float64).draw().dtype == torch.float64


@pytest.mark.every(3)
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("kind", ["cosine", "cosine-table", "flow"])
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_samplers_are_finite_for_any_number_of_steps(name, kind, steps):
    schedule = ScheduleConfig(kind=kind).build()
    for prediction in ("eps", "v", "x0", "flow"):
        for shape in ((), (3,), (3, 2, 2, 2)):
            noise = NoiseSource([0, 1], shape)
            denoiser = Denoiser(lambda x, time: torch.tanh(x), schedule, prediction)  # type: ignore[arg-type]
            got = SAMPLERS[name](denoiser, noise.draw(), timesteps(schedule, steps), schedule, noise=noise)
            assert got.shape == (2, *shape) and got.dtype == torch.float32 and got.isfinite().all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_last_step_returns_x0(name):
    schedule = ScheduleConfig(kind="flow").build()
    seen = []
    noise = NoiseSource([0, 1], (3,))
    got = SAMPLERS[name](
        Denoiser(Net(), schedule, "flow"),
        noise.draw(),
        timesteps(schedule, 4),
        schedule,
        noise=noise,
        callback=lambda step, steps, x0: seen.append((step, steps, x0)),
    )
    assert [(step, steps) for step, steps, _ in seen] == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert torch.allclose(got, seen[-1][2])


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_callback_may_cancel(name):
    class Cancelled(Exception):
        pass

    def callback(step, steps, x0):
        if step == 2:
            raise Cancelled

    schedule = ScheduleConfig().build()
    denoiser, noise = Denoiser(Net(), schedule, "v"), NoiseSource([0], (3,))
    with pytest.raises(Cancelled):
        SAMPLERS[name](denoiser, noise.draw(), timesteps(schedule, 50), schedule, noise=noise, callback=callback)
    assert denoiser.calls == (5 if name == "heun" else 3)


def test_euler_from_the_middle():
    """As image-to-image does: noise an image to t = 0.6, and come back."""
    schedule = ScheduleConfig().build()
    oracle = Gaussian(schedule, std=1e-3)
    x0 = torch.full((1, 5), 0.7)
    x = Denoiser(Net(), schedule).add_noise(x0, NoiseSource([0], (5,)).draw(), 0.6)
    times = timesteps(schedule, 50)[20:]
    assert times[0] == 0.6
    assert torch.allclose(euler(oracle, x, times, schedule), x0, atol=0.01)


def test_samplers_errors():
    schedule = ScheduleConfig().build()
    x, times, noise = torch.zeros(1, 3), timesteps(schedule, 3), NoiseSource([0], (3,))
    ddpm = SAMPLERS["ddpm"]
    with pytest.raises(UserError, match="needs a network that predicts one"):
        ddpm(Denoiser(Net(), schedule), x, times, schedule, noise=noise, variance="learned-range")
    with pytest.raises(UserError, match="unknown variance 'large'"):
        ddpm(Denoiser(Net(), schedule), x, times, schedule, noise=noise, variance="large")
    with pytest.raises(UserError, match="give it noise"):
        ddpm(Denoiser(Net(), schedule), x, times, schedule, noise=None)  # type: ignore[arg-type]
