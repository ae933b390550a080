import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from diptych.core.errors import UserError
from diptych.diffusion.losses import ObjectiveConfig, training_times
from diptych.diffusion.schedules import ScheduleConfig, cosine_betas
from diptych.diffusion.times import TimesConfig, timesteps

KINDS = ("linear", "scaled-linear", "cosine", "cosine-table", "flow")
TABLES = ("linear", "scaled-linear", "cosine-table")
REFERENCE = {"linear": "linear", "scaled-linear": "scaled_linear", "cosine-table": "squaredcos_cap_v2"}


def indices(count: int) -> torch.Tensor:
    return torch.arange(1, count + 1, dtype=torch.float64) / count


@pytest.mark.parametrize("kind", KINDS)
def test_schedule_ends_and_direction(kind):
    schedule = ScheduleConfig(kind=kind).build()
    alpha, sigma = schedule.alpha_sigma(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert alpha[0] == 1 and sigma[0] == 0
    assert sigma[1] > 0.99 and 0 <= alpha[1] < 0.07
    log_snr = schedule.log_snr(torch.linspace(0, 1, 4321, dtype=torch.float64))
    assert (log_snr.diff() < 0).all() and not log_snr.isnan().any()
    alpha, sigma = schedule.alpha_sigma(torch.rand(2, 3, 4))
    assert alpha.shape == sigma.shape == (2, 3, 4) and alpha.dtype == torch.float64
    assert torch.allclose(alpha + sigma if kind == "flow" else alpha**2 + sigma**2, torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_inverse_log_snr(kind):
    schedule = ScheduleConfig(kind=kind, shift=3.0 if kind == "flow" else 1.0).build()
    times = torch.cat([torch.tensor([1e-5, 3e-4, 1e-3]), torch.rand(200), torch.ones(1)]).double()
    assert torch.allclose(
        schedule.inverse_log_snr(schedule.log_snr(times)), times, atol=1e-4 if kind == "cosine" else 1e-9
    )
    assert schedule.inverse_log_snr(torch.tensor([math.inf], dtype=torch.float64)).item() == 0


@pytest.mark.parametrize("kind", TABLES)
def test_table_schedules_are_cumulative_products_of_betas(kind):
    start, end = 0.0015, 0.0195
    schedule = ScheduleConfig(kind=kind, beta_start=start, beta_end=end, steps=200).build()
    betas = {
        "linear": [start + (end - start) * i / 199 for i in range(200)],
        "scaled-linear": [(start**0.5 + (end**0.5 - start**0.5) * i / 199) ** 2 for i in range(200)],
        "cosine-table": cosine_betas(200).tolist(),
    }[kind]
    alpha, sigma = schedule.alpha_sigma(indices(200))
    product = 1.0
    for i, beta in enumerate(betas):
        product *= 1 - beta
        assert alpha[i].item() ** 2 == pytest.approx(product, rel=1e-12)
        assert sigma[i].item() ** 2 == pytest.approx(1 - product, rel=1e-10)


@pytest.mark.parametrize("kind", TABLES)
def test_table_schedules_match_diffusers(kind):
    diffusers = pytest.importorskip("diffusers")
    config = ScheduleConfig(kind=kind)
    reference = diffusers.DDPMScheduler(
        beta_schedule=REFERENCE[kind], beta_start=config.beta_start, beta_end=config.beta_end
    )
    alpha, _ = config.build().alpha_sigma(indices(1000))
    assert torch.allclose(alpha.square(), reference.alphas_cumprod.double(), rtol=1e-4, atol=1e-7)


def test_table_schedule_interpolates_the_log_snr():
    schedule = ScheduleConfig().build()
    low, middle, high = schedule.log_snr(torch.tensor([0.3, 0.3004, 0.301], dtype=torch.float64)).tolist()
    assert middle == pytest.approx(low + 0.4 * (high - low), rel=1e-9)


def test_continuous_table_schedule():
    fields = {"kind": "linear", "steps": 100, "beta_start": 1e-4, "beta_end": 0.02}
    table, between = (ScheduleConfig.from_dict({**fields, "continuous": c}).build() for c in (False, True))
    entries, uniform = indices(100), torch.linspace(0, 0.999, 37)
    assert torch.equal(table.log_snr(entries), between.log_snr(entries))
    off = [bool(((training_times(uniform, ObjectiveConfig(), s) * 100) % 1 > 1e-6).any()) for s in (table, between)]
    assert off == [False, True]
    times = timesteps(between, 7)
    assert times[0] == 1 and times[-1] == 0 and torch.allclose(times.diff(), times.diff()[0])
    for kind in ("cosine", "flow"):
        with pytest.raises(UserError, match=rf"continuous must be false: {kind} has no steps"):
            ScheduleConfig(kind=kind, continuous=True)


def test_gamma_conditioning_is_the_noise_level():
    one, other = (
        ScheduleConfig(kind="linear", steps=2000, beta_start=1e-6, beta_end=end, conditioning="gamma").build()
        for end in (0.01, 0.005)
    )
    t = torch.linspace(0.05, 1, 20, dtype=torch.float64)
    assert torch.allclose(one.network_time(t), 2000 * one.alpha_sigma(t)[0] ** 2)
    alike = other.inverse_log_snr(one.log_snr(t[:10]))
    assert torch.allclose(other.network_time(alike), one.network_time(t[:10]), rtol=1e-6)
    assert not torch.allclose(alike, t[:10], rtol=0.1)
    with pytest.raises(UserError, match="conditioning must be time for flow"):
        ScheduleConfig(kind="flow", conditioning="gamma")


def test_cosine_schedule_and_its_table():
    closed, table = (ScheduleConfig(kind=kind).build() for kind in ("cosine", "cosine-table"))
    alpha = closed.alpha_sigma(torch.tensor([0.5], dtype=torch.float64))[0].item()
    f = lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
    assert alpha**2 == pytest.approx(f(0.5) / f(0), rel=1e-12)
    unclipped = indices(1000)[:990]
    assert torch.allclose(closed.log_snr(unclipped), table.log_snr(unclipped), atol=1e-6)
    for schedule in (closed, table):  # the last bit of signal
        alpha, sigma = schedule.alpha_sigma(torch.ones(1, dtype=torch.float64))
        assert 20_000 < (sigma / alpha).item() < 23_000


def test_flow_schedule_and_its_shift():
    t = torch.rand(50, dtype=torch.float64)
    alpha, sigma = ScheduleConfig(kind="flow").build().alpha_sigma(t)
    assert torch.equal(sigma, t) and torch.equal(alpha, 1 - t)
    shifted = ScheduleConfig(kind="flow", shift=3.0).build()
    assert torch.allclose(shifted.alpha_sigma(t)[1], 3 * t / (1 + 2 * t))
    assert torch.allclose(shifted.network_time(t), 3000 * t / (1 + 2 * t))


@pytest.mark.parametrize("steps", [10, 100, 1000])
def test_network_time_is_a_whole_number_at_every_entry(steps):
    time = ScheduleConfig(steps=steps).build().network_time(indices(steps)).float()
    assert torch.equal(time, torch.arange(steps, dtype=torch.float32))


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 16, 20, 27, 50, 300, 999, 1000])
@pytest.mark.parametrize(("spacing", "offset"), [("leading", 0), ("leading", 1), ("trailing", 0), ("linspace", 0)])
def test_timesteps_match_diffusers(steps, spacing, offset):
    diffusers = pytest.importorskip("diffusers")
    if steps * (offset + 1) > 1000 or (steps == 1 and spacing == "linspace"):
        pytest.skip("beyond the table")
    schedule = ScheduleConfig().build()
    reference = diffusers.DDIMScheduler(timestep_spacing=spacing, steps_offset=offset)
    reference.set_timesteps(steps)
    times = timesteps(schedule, steps, spacing, offset=offset)
    assert times[-1] == 0
    assert torch.equal(schedule.network_time(times[:-1]).round().long(), reference.timesteps)
    first = timesteps(schedule, steps, spacing, offset=offset, final="first")
    assert first[-1].item() == 1 / 1000 and torch.equal(first[:-1], times[:-1])
    if spacing != "trailing" and steps < 1000:
        reference = diffusers.DPMSolverMultistepScheduler(timestep_spacing=spacing, steps_offset=offset)
        reference.set_timesteps(steps)
        times = timesteps(schedule, steps, spacing, offset=offset, drop_last=True)
        assert torch.equal(schedule.network_time(times[:-1]).round().long(), reference.timesteps)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace", "karras"])
def test_timesteps_fall_to_zero(kind, spacing):
    times = timesteps(ScheduleConfig(kind=kind).build(), 13, spacing)
    assert times.shape == (14,) and times.dtype == torch.float64
    assert (times.diff() < 0).all() and times[0] <= 1 and times[-1] == 0
    assert times[0] > (0.9 if spacing == "leading" else 0.999)


def test_karras_timesteps_are_even_in_the_seventh_root():
    schedule = ScheduleConfig().build()
    alpha, sigma = schedule.alpha_sigma(timesteps(schedule, 9, "karras")[:-1])
    steps = (sigma / alpha).pow(1 / 7).diff()
    assert torch.allclose(steps, steps[0].expand(8), rtol=1e-9)


def test_timesteps_of_closed_forms():
    times = timesteps(ScheduleConfig(kind="flow").build(), 7)
    assert torch.allclose(times, torch.arange(7, -1, -1, dtype=torch.float64) / 7)
    assert len(timesteps(ScheduleConfig(kind="flow").build(), 3000)) == 3001


def test_schedule_and_timesteps_errors():
    with pytest.raises(UserError, match="steps must lie between 1 and 1000, not 1001"):
        timesteps(ScheduleConfig().build(), 1001)
    with pytest.raises(UserError, match="steps must lie between 1 and 1000, not 0"):
        timesteps(ScheduleConfig().build(), 0)
    with pytest.raises(UserError, match="spacing"):
        timesteps(ScheduleConfig().build(), 10, "even")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"beta_end must lie between"):
        ScheduleConfig(beta_start=0.1, beta_end=0.05)
    with pytest.raises(UserError, match="shift must be 1 unless kind is flow"):
        ScheduleConfig(kind="cosine", shift=3.0)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp-2m"])
@pytest.mark.parametrize("kind", ["karras", "exponential", "beta"])
def test_sigma_curves_of_rectified_flow_match_diffusers(kind, sampler):
    """Along sigma itself: sigma / alpha starts at infinity there."""
    reference = FlowMatchEulerDiscreteScheduler(**{f"use_{kind}_sigmas": True})
    reference.set_timesteps(8)
    schedule = ScheduleConfig(kind="flow").build()
    sigma = schedule.alpha_sigma(TimesConfig().times(schedule, 8, sampler, kind))[1]
    torch.testing.assert_close(sigma, reference.sigmas.double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize(
    ("sampler", "scheduler"),
    [
        ("ddim", "DDIMScheduler"),
        ("euler", "EulerDiscreteScheduler"),
        ("euler-ancestral", "EulerAncestralDiscreteScheduler"),
        ("heun", "HeunDiscreteScheduler"),
        ("dpmpp-2m", "DPMSolverMultistepScheduler"),
        ("unipc", "UniPCMultistepScheduler"),
    ],
)
def test_init_noise_sigma_matches_diffusers(sampler, scheduler, spacing):
    """Its Euler and Heun schedulers carry x / alpha, so their initial sigma is scaled by alpha here."""
    diffusers = pytest.importorskip("diffusers")
    reference = getattr(diffusers, scheduler)(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, timestep_spacing=spacing, steps_offset=1
    )
    reference.set_timesteps(20)
    schedule = ScheduleConfig().build()
    course = TimesConfig(spacing=spacing, offset=1).plan(schedule, 20, sampler)
    alpha = float(schedule.alpha_sigma(course.times[:1])[0]) if "Discrete" in scheduler else 1.0
    assert course.init_noise_sigma == pytest.approx(float(reference.init_noise_sigma) * alpha, rel=1e-5)
    assert (course.init_noise_sigma < 0.999) == ("Discrete" in scheduler and spacing != "leading")
