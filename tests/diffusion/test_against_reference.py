"""Every sampler against the reference library's scheduler: the same network, the same noises, the same final x.

The reference works in other units: its Euler and Heun schedulers carry x / alpha and sigma / alpha, and divide by
sqrt((sigma / alpha)^2 + 1) = 1 / alpha before each network call. Ours carries x = alpha x_0 + sigma eps throughout.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diptych.diffusion.denoiser import Denoiser
from diptych.diffusion.samplers import SAMPLERS
from diptych.diffusion.schedules import ScheduleConfig
from diptych.diffusion.steps import NoiseSource
from diptych.diffusion.thresholding import DynamicThreshold, StaticThreshold
from diptych.diffusion.times import timesteps
from tests.diffusion.oracles import Net

diffusers = pytest.importorskip("diffusers")

SHAPE, SEEDS, TOLERANCE = (3, 4, 5), (1, 2), 1e-5
SCHEDULES = {
    "scaled-linear": ("scaled_linear", 0.00085, 0.012),
    "linear": ("linear", 1e-4, 0.02),
    "cosine-table": ("squaredcos_cap_v2", 1e-4, 0.02),
}
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
LEADING, SOLVER = {"spacing": "leading", "offset": 1}, {"spacing": "leading", "offset": 1, "drop_last": True}
# name of ours, its options; scheduler, its settings; how the times are laid out; whether it carries x / alpha
CASES = {
    "ddim, as in Stable Diffusion": (
        ("ddim", {}),
        ("DDIMScheduler", {"set_alpha_to_one": False, "clip_sample": False}),
        {**LEADING, "final": "first"},
    ),
    "ddim": (("ddim", {}), ("DDIMScheduler", {"clip_sample": False}), {"spacing": "trailing"}),
    "ddim, eta 0.6": (("ddim", {"eta": 0.6}), ("DDIMScheduler", {"clip_sample": False}), {"spacing": "trailing"}),
    "ddpm": (("ddpm", {}), ("DDPMScheduler", {"clip_sample": False}), {"spacing": "linspace"}),
    "ddpm, fixed-large": (
        ("ddpm", {"variance": "fixed-large"}),
        ("DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_large"}),
        {"spacing": "leading"},
    ),
    "ddpm, learned-range": (
        ("ddpm", {"variance": "learned-range"}),
        ("DDPMScheduler", {"clip_sample": False, "variance_type": "learned_range"}),
        {"spacing": "leading"},
    ),
    "euler": (("euler", {}), ("EulerDiscreteScheduler", {}), LEADING),
    "euler, karras": (("euler", {}), ("EulerDiscreteScheduler", {"use_karras_sigmas": True}), {"spacing": "karras"}),
    "euler-ancestral": (("euler-ancestral", {}), ("EulerAncestralDiscreteScheduler", {}), LEADING),
    "heun": (("heun", {}), ("HeunDiscreteScheduler", {}), LEADING),
    "heun, karras": (("heun", {}), ("HeunDiscreteScheduler", {"use_karras_sigmas": True}), {"spacing": "karras"}),
    "dpmpp-2m": (("dpmpp-2m", {}), ("DPMSolverMultistepScheduler", {}), SOLVER),
    "dpmpp-2m, linspace": (
        ("dpmpp-2m", {}),
        ("DPMSolverMultistepScheduler", {}),
        {"spacing": "linspace", "drop_last": True},
    ),
    "dpmpp-2m, karras": (
        ("dpmpp-2m", {}),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
        {"spacing": "karras"},
    ),
    "dpmpp-2m-sde": (
        ("dpmpp-2m-sde", {}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        SOLVER,
    ),
    "lcm": (("lcm", {}), ("LCMScheduler", {"clip_sample": False}), {"spacing": "lcm"}),
    "unipc": (("unipc", {}), ("UniPCMultistepScheduler", {}), SOLVER),
    "unipc, trailing": (("unipc", {}), ("UniPCMultistepScheduler", {}), {"spacing": "trailing"}),
    "unipc, karras": (("unipc", {}), ("UniPCMultistepScheduler", {"use_karras_sigmas": True}), {"spacing": "karras"}),
}


def generators(skip: int) -> list[torch.Generator]:
    """One per image, as `NoiseSource` has them after `skip` draws."""
    made = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    for generator in made:
        for _ in range(skip):
            torch.randn(SHAPE, generator=generator)
    return made


def reference(scheduler, x: torch.Tensor, net, **options) -> torch.Tensor:
    """Run the scheduler over its timesteps."""
    names = scheduler.step.__code__.co_varnames
    if "generator" in names:
        options["generator"] = generators(skip=1)
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(net(scaled, torch.as_tensor(t).float().expand(len(x))), t, x, **options).prev_sample
    return x


def build(kind: str, prediction: str, scheduler: str, settings: dict, layout: dict):
    beta_schedule, start, end = SCHEDULES[kind]
    schedule = ScheduleConfig(kind=kind, beta_start=start, beta_end=end).build()  # type: ignore[arg-type]
    spacing = "linspace" if layout["spacing"] == "karras" else layout["spacing"]
    made = getattr(diffusers, scheduler)(
        beta_schedule=beta_schedule,
        beta_start=start,
        beta_end=end,
        prediction_type=PREDICTIONS[prediction],
        timestep_spacing=spacing,
        steps_offset=layout.get("offset", 0),
        **settings,
    )
    if kind != "scaled-linear" or layout["spacing"] == "karras":
        # Its table is a float32 product, which costs 1e-3 of the smallest sigma: give it ours to compare the samplers.
        # (Stable Diffusion's is left as published; test_schedules.py compares all the tables.)
        made.alphas_cumprod = schedule.alpha_sigma(torch.arange(1, 1001).double() / 1000)[0] ** 2
        if not settings.get("set_alpha_to_one", True):
            made.final_alpha_cumprod = made.alphas_cumprod[0]
    return schedule, made


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    assert want.isfinite().all() and want.abs().max() > 0.1
    return ((got - want).norm() / want.norm()).item()


@pytest.mark.every(5)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_samplers_match_diffusers(case, kind, prediction, record_property):
    (name, options), (scheduler, settings), layout = CASES[case]
    if prediction == "x0" and "Ancestral" in scheduler:
        pytest.skip("the reference has no such prediction there")
    if kind == "cosine-table" and case in ("dpmpp-2m, karras", "unipc, karras"):
        pytest.skip("the reference's times collide there")
    schedule, theirs = build(kind, prediction, scheduler, settings, layout)
    learned = options.get("variance") == "learned-range"
    net, noise = Net(2 if learned else 1), NoiseSource(SEEDS, SHAPE)
    whole = layout["spacing"] == "karras" and "Multistep" in scheduler  # rounds the network's time: see below
    steps = 10 if whole else 20
    theirs.set_timesteps(steps)
    x = noise.draw()
    carried = x * (theirs.sigmas[0] ** 2 + 1) ** 0.5 if "Discrete" in scheduler else x
    want = reference(theirs, carried, net, **({"eta": options["eta"]} if "eta" in options else {}))

    # With Karras sigmas the reference's multistep solvers tell the network the nearest whole time.
    network = (lambda x, time: net(x, time.round())) if whole else net
    times = timesteps(schedule, steps, **layout)
    denoiser = Denoiser(network, schedule, prediction, learned_variance=learned)
    got = SAMPLERS[name](denoiser, x, times, schedule, noise=noise, **options)
    record_property("error", relative(got, want))
    assert relative(got, want) < TOLERANCE


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_euler_matches_diffusers(shift):
    schedule = ScheduleConfig(kind="flow", shift=shift).build()
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(sigmas=np.linspace(1, 1 / 12, 12))
    x, net = NoiseSource(SEEDS, SHAPE).draw(), Net()
    got = SAMPLERS["euler"](Denoiser(net, schedule, "flow"), x, timesteps(schedule, 12), schedule, noise=None)  # type: ignore[arg-type]
    assert relative(got, reference(theirs, x, net)) < TOLERANCE


FLOW_CASES = {
    "heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "dpmpp-2m": ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
    "dpmpp-2m-sde": (
        "DPMSolverMultistepScheduler",
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "algorithm_type": "sde-dpmsolver++"},
    ),
    "unipc": ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
}


@pytest.mark.parametrize("name", FLOW_CASES)
def test_flow_samplers_match_diffusers(name):
    """Each reference scheduler has its sigmas: take them from it."""
    scheduler, settings = FLOW_CASES[name]
    theirs = getattr(diffusers, scheduler)(**settings)
    theirs.set_timesteps(12)
    sigmas = theirs.sigmas.double()
    times = torch.cat([sigmas[:1], sigmas[1:-1:2], sigmas[-1:]]) if name == "heun" else sigmas
    schedule, net, noise = ScheduleConfig(kind="flow").build(), Net(), NoiseSource(SEEDS, SHAPE)
    x = noise.draw()
    want = reference(theirs, x, net)

    def network(x, time):  # the reference's multistep solvers cut the network's time to a whole number
        nearest = (theirs.sigmas[:-1] * 1000 - time[0]).abs().argmin()
        return net(x, theirs.timesteps[nearest].float().expand(len(x)))

    got = SAMPLERS[name](Denoiser(network, schedule, "flow"), x, times, schedule, noise=noise)
    assert relative(got, want) < TOLERANCE


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("scheduler", ["DDPMScheduler", "DPMSolverMultistepScheduler", "DDIMScheduler"])
def test_dynamic_thresholding_matches_diffusers(kind, prediction, scheduler):
    settings = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5}
    name = {"DDPMScheduler": "ddpm", "DPMSolverMultistepScheduler": "dpmpp-2m", "DDIMScheduler": "ddim"}[scheduler]
    layout = SOLVER if name == "dpmpp-2m" else LEADING
    schedule, theirs = build(kind, prediction, scheduler, settings, layout)
    theirs.set_timesteps(20)
    net, noise = Net(), NoiseSource(SEEDS, SHAPE)
    x = noise.draw()
    # Without it the reference's DDIM keeps the noise of the unclipped estimate; guided-diffusion and we do not.
    want = reference(theirs, x, net, **({"use_clipped_model_output": True} if name == "ddim" else {}))
    denoiser = DynamicThreshold(Denoiser(net, schedule, prediction), percentile=0.9, cap=1.5)
    got = SAMPLERS[name](denoiser, x, timesteps(schedule, 20, **layout), schedule, noise=noise)
    assert relative(got, want) < TOLERANCE


def test_static_thresholding_matches_diffusers():
    schedule, theirs = build("linear", "eps", "DDPMScheduler", {"clip_sample": True}, {"spacing": "leading"})
    theirs.set_timesteps(50)
    net, noise = Net(), NoiseSource(SEEDS, SHAPE)
    x = noise.draw()
    want = reference(theirs, x, net)
    times = timesteps(schedule, 50, "leading")
    got = SAMPLERS["ddpm"](StaticThreshold(Denoiser(net, schedule)), x, times, schedule, noise=noise)
    assert relative(got, want) < TOLERANCE
