"""A scheduler_config.json of diffusers as our schedule, prediction, times and sampler, and back."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.core.config import Config
from diptych.core.errors import UserError
from diptych.diffusion.denoiser import Denoiser
from diptych.diffusion.samplers import SAMPLERS, read_sampler
from diptych.diffusion.steps import NoiseSource
from diptych.diffusion.times import TimesConfig
from diptych.models.latent_diffusion import LatentConfig
from diptych.pretrained.schedulers import CLASSES, SAVED, SETTINGS
from diptych.pretrained.schedulers_page import page
from diptych.pretrained.stable_diffusion.scheduler_config import sampling_config, sampling_fields, scheduler_json
from tests.diffusion.oracles import Net
from tests.diffusion.test_against_reference import SEEDS, SHAPE, reference, relative
from tests.pretrained import sd_models

diffusers = pytest.importorskip("diffusers")

DPM, UNIPC = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
EULER = "EulerDiscreteScheduler"
UNCURVED = ("ddim", "ddpm", "euler-ancestral")
"""Whose classes follow no curve of sigmas."""
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
CURVED = ("HeunDiscreteScheduler", "EulerDiscreteScheduler", DPM, UNIPC)
ZERO = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
ROOT = Path(__file__).parent.parent.parent
NOISES: list[dict[str, Any]] = [
    SD,
    {"beta_schedule": "linear", "beta_start": 0.0015, "beta_end": 0.0195},
    {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 400},
    {"num_train_timesteps": 250},
]


ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "dpmpp-2m": (DPM, {"algorithm_type": "dpmsolver++"}),
    "dpmpp-2m-sde": (DPM, {"algorithm_type": "sde-dpmsolver++"}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
"""Sampler -> diffusers' class of that name, and what makes it that one."""


def compared(values: dict[str, Any], sampler: str, scheduler: Any, steps: int, asked: str | None = None) -> float:
    """The relative difference of the last x from what diffusers makes with the same network and noises."""
    found, noise = sampling_fields(values, "a file"), NoiseSource(SEEDS, SHAPE)
    scheduler.set_timesteps(steps)
    x = noise.draw()
    want = reference(scheduler, x * scheduler.init_noise_sigma, Net())
    times, first, schedule = found["times"].plan(found["schedule"].build(), steps, sampler, asked)
    denoiser = Denoiser(Net(), schedule, found["prediction"])
    return relative(SAMPLERS[sampler](denoiser, first * x, times, schedule, noise=noise), want)


def saved(name: str, **values: Any) -> dict[str, Any]:
    """What diffusers writes of a scheduler: all of its settings, the default ones too."""
    return dict(getattr(diffusers, name)(**values).config) | {"_class_name": name}


@pytest.mark.every(5)
@pytest.mark.parametrize("name", [name for name in CLASSES if name != "DPMSolverSDEScheduler"])  # needs torchsde
@pytest.mark.parametrize("noise", NOISES, ids=["scaled", "linear", "cosine", "default"])
def test_the_noise_is_theirs(name: str, noise: dict[str, Any]) -> None:
    theirs = getattr(diffusers, name)(**noise)
    found = sampling_config(saved(name, **noise), "a file")
    schedule = found["schedule"].build()
    t = torch.arange(1, schedule.steps + 1, dtype=torch.float64) / schedule.steps
    alpha, sigma = schedule.alpha_sigma(t)
    assert schedule.steps == theirs.config.num_train_timesteps
    assert torch.allclose(alpha**2, theirs.alphas_cumprod.double(), rtol=3e-5, atol=1e-9)
    assert torch.allclose(sigma**2, 1 - theirs.alphas_cumprod.double(), rtol=1e-3, atol=1e-6)
    # Of a file that leaves out what is as it is by default, the same.
    assert sampling_config({"_class_name": name, **noise}, "a file")["schedule"] == found["schedule"]


def test_the_published_one_is_known() -> None:
    for kind, prediction in (("sd1", "eps"), ("sd2", "v")):
        values = dict(sd_models.scheduler(kind).config)  # pyright: ignore[reportArgumentType]
        found = sampling_config(values | {"_class_name": "PNDMScheduler"}, "a file")
        assert found["prediction"] == prediction and found["sampler"] == "ddim"
        assert found["times"] == TimesConfig(spacing="published", offset=1, final="first")
        assert found["published_scheduler"] == "PNDMScheduler"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, TimesConfig(spacing="published", offset=1)),
        ({"timestep_spacing": "trailing"}, TimesConfig(spacing="trailing", offset=1)),
        ({"timestep_spacing": "linspace"}, TimesConfig(spacing="linspace", offset=1)),
        (
            {"use_karras_sigmas": True, "timestep_spacing": "leading"},
            TimesConfig(spacing="leading", offset=1, sigmas="karras"),
        ),
        (
            {
                "timestep_spacing": "leading",
                "final_sigmas_type": "sigma_min",
                "sigma_max": 10.0,
                "_use_default_values": ["timestep_spacing"],
            },
            TimesConfig(spacing="published", offset=1, final_sigma="least", sigma_max=10.0),
        ),
        ({"set_alpha_to_one": False, "steps_offset": 0}, TimesConfig(spacing="published", offset=1, final="first")),
    ],
)
def test_times_are_laid_out_as_they_say(values: dict[str, Any], expected: TimesConfig) -> None:
    """steps_offset is 1 whatever it says, as diffusers' pipelines set it."""
    assert sampling_config({"_class_name": "EulerDiscreteScheduler", **SD, **values}, "a file")["times"] == expected


@pytest.mark.every(3)
@pytest.mark.parametrize("sampler", ASKED)
@pytest.mark.parametrize("spacing", ["unsaid", "by default", "leading", "trailing"])
@pytest.mark.parametrize("name", ["DDIMScheduler", "PNDMScheduler", "DDPMScheduler", DPM, "EulerDiscreteScheduler"])
def test_a_sampler_that_is_asked_for_brings_its_own_times(name: str, spacing: str, sampler: str) -> None:
    """As `from_config` makes a scheduler of another class: what the file says is taken over, its defaults are not."""
    values: dict[str, Any] = {"_class_name": name, **SD, "steps_offset": 1}
    if spacing == "by default":
        values = saved(name, **SD, steps_offset=1)
    elif spacing != "unsaid":
        values["timestep_spacing"] = spacing
    kind, extra = ASKED[sampler]
    for steps in (4, 50) if name == "DDIMScheduler" else (20,):
        theirs = getattr(diffusers, kind).from_config(values, **extra)
        assert compared(values, sampler, theirs, steps) < 5e-5


MANY = [("ddim", "leading", 999), ("ddim", "leading", 700), ("euler", "leading", 1000)]
MANY += [("unipc", "linspace", 999), ("dpmpp-2m", "linspace", 999)]


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "spacing", "steps"), MANY)
def test_very_many_steps(sampler: str, spacing: str, steps: int) -> None:
    values = {"_class_name": "DDIMScheduler", **SD, "steps_offset": 1, "timestep_spacing": spacing}
    kind, extra = ASKED[sampler]
    assert compared(values, sampler, getattr(diffusers, kind).from_config(values, **extra), steps) < 5e-5


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_few_and_too_many_steps(sampler: str) -> None:
    """What is sampled is finite, or one line says how many steps there may be; diffusers gives NaN for some of them."""
    for spacing in ("leading", "linspace", "trailing"):
        values = {
            "_class_name": "DDIMScheduler",
            "num_train_timesteps": 40,
            "steps_offset": 1,
            "timestep_spacing": spacing,
        }
        found = sampling_config(values, "a file")
        for steps in (1, 2, 39, 40, 41):
            try:
                times, first, schedule = found["times"].plan(found["schedule"].build(), steps, sampler)
            except UserError as error:
                assert steps >= 40 and "steps must lie between 1 and" in str(error)
                continue
            noise = NoiseSource(SEEDS, SHAPE)
            x = SAMPLERS[sampler](Denoiser(Net(), schedule), first * noise.draw(), times, schedule, noise=noise)
            assert x.isfinite().all()


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {f"use_{curve}_sigmas": True}) for name in CURVED for curve in ("karras", "exponential", "beta")),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "timestep_spacing": "leading"}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    ("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min"}),
    ("HeunDiscreteScheduler", {"timestep_spacing": "trailing"}),
    ("DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_large"}),
    (DPM, {"use_lu_lambdas": True}),
    (DPM, {"solver_order": 3}),
    (DPM, {"solver_order": 1, "lower_order_final": False}),
    (DPM, {"solver_order": 1, "algorithm_type": "sde-dpmsolver++"}),
    (DPM, {"solver_type": "heun"}),
    (DPM, {"solver_type": "heun", "algorithm_type": "sde-dpmsolver++"}),
    (DPM, {"final_sigmas_type": "sigma_min"}),
    (DPM, {"final_sigmas_type": "sigma_min", "algorithm_type": "dpmsolver"}),
    (DPM, {"final_sigmas_type": "sigma_min", "algorithm_type": "sde-dpmsolver"}),
    (UNIPC, {"final_sigmas_type": "sigma_min", "solver_type": "bh1"}),
    ("EulerAncestralDiscreteScheduler", {"final_sigmas_type": "sigma_min"}),  # which it does not read
    (DPM, {"lambda_min_clipped": -2.0}),
    (DPM, {"lambda_min_clipped": -2.0, "timestep_spacing": "leading"}),
    ("UniPCMultistepScheduler", {"final_sigmas_type": "sigma_min"}),
    *((name, {**ZERO, "timestep_spacing": "trailing"}) for name in (*CURVED, "EulerAncestralDiscreteScheduler")[1:]),
]


@pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=str)
def test_settings_are_followed(name: str, settings: dict[str, Any]) -> None:
    values = {"_class_name": name, **SD, "steps_offset": 1, **settings}
    for steps in (5, 20):
        theirs = getattr(diffusers, name).from_config(values)
        # Where a walk ends at the least noise of a table, its float32 shows.
        loose = 1e-3 if settings.get("final_sigmas_type") and "Euler" in name else 5e-5
        assert compared(values, sampling_config(values, "a file")["sampler"], theirs, steps) < loose


@pytest.mark.parametrize("curve", ["karras", "exponential", "beta"])
@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp-2m", "unipc"])
def test_a_schedule_type_that_is_asked_for(sampler: str, curve: str) -> None:
    kind, extra = ASKED[sampler]
    values = {"_class_name": "DDIMScheduler", **SD, "steps_offset": 1, "timestep_spacing": "leading"}
    theirs = getattr(diffusers, kind).from_config(values, **extra, **{f"use_{curve}_sigmas": True})
    assert compared(values, sampler, theirs, 20, curve) < 5e-5


def test_every_setting_of_every_class_has_a_place_in_the_table() -> None:
    for name in CLASSES:
        defaults = {k: v.default for k, v in inspect.signature(getattr(diffusers, name).__init__).parameters.items()}
        for extra in ("self", "args", "kwargs"):
            defaults.pop(extra, None)
        assert defaults.keys() <= SETTINGS.keys(), name
        sampling_config({"_class_name": name, **defaults}, "a file")  # as diffusers saves it where nothing was said


def test_the_page_has_the_table() -> None:
    assert f"\n{page()}\n" in (ROOT / "docs" / "published.md").read_text()


@pytest.mark.parametrize("sampler", SAVED)
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_what_we_write_diffusers_reads(sampler: str, prediction: str) -> None:
    values: dict[str, Any] = {"sampler": sampler, "prediction": prediction}
    values["times"] = {"spacing": "trailing", "offset": 1, "final": "first"}
    values["times"] |= {"final_sigma": "least"} if sampler.startswith("dpm-2m") else {}
    config = LatentConfig.from_dict({**values, "schedule": {"kind": "linear", "beta_start": 0.001, "beta_end": 0.01}})
    written = scheduler_json(config)
    theirs = getattr(diffusers, written["_class_name"]).from_config(written)
    assert theirs.config.prediction_type == {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}[prediction]
    assert theirs.config.timestep_spacing == "trailing"
    assert torch.allclose(theirs.betas, torch.linspace(0.001, 0.01, 1000))
    again = sampling_config(written, "a file")
    assert {name: getattr(config, name) for name in again} == again


def test_curves_of_sigmas_go_there_and_back() -> None:
    for curve, told in (("karras", "nearest"), ("exponential", "below"), ("beta", "below"), ("lu", "nearest")):
        times = {"spacing": "published", "sigmas": curve, "offset": 1, "sigma_min": 0.1, "final_sigma": "least"}
        schedule = {"rounding": told, "zero_snr": True}
        config = LatentConfig.from_dict({"sampler": "dpmpp-2m", "times": times, "schedule": schedule})
        again = sampling_config(scheduler_json(config), "a file")
        assert {name: getattr(config, name) for name in again} == again
    older = LatentConfig.from_dict({"sampler": "dpmpp-2m", "times": {"spacing": "karras", "offset": 1}})
    assert scheduler_json(older)["use_karras_sigmas"] is True
    plain = LatentConfig.from_dict({"times": {"spacing": "published", "offset": 1}})
    assert "timestep_spacing" not in scheduler_json(plain)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"_class_name": "EDMEulerScheduler"}, "_class_name 'EDMEulerScheduler' is none of .*DDIMScheduler"),
        ({"_class_name": None}, "_class_name"),
        ({"_class_name": ["DDIMScheduler"]}, "_class_name"),
        ({"beta_schedule": ["linear"]}, "beta_schedule"),
        ({"_class_name": DPM, "lambda_min_clipped": "low"}, "lambda_min_clipped must be a number, not 'low'"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "_class_name"),
        ({"a_setting_of_tomorrow": 0.3}, "does not know the setting a_setting_of_tomorrow = 0.3"),
        ({"_class_name": DPM, "use_flow_sigmas": True}, "use_flow_sigmas"),
        ({"_class_name": "SchedulerOfTomorrow"}, "_class_name 'SchedulerOfTomorrow'"),
        ({"_class_name": DPM, "solver_order": 4}, "solver_order 4 is none of 1, 2, 3"),
        (
            {"_class_name": DPM, "solver_order": 3, "algorithm_type": "sde-dpmsolver++"},
            "solver_order 3 is none of 1, 2",
        ),
        ({"_class_name": DPM, "solver_order": 1, "algorithm_type": "sde-dpmsolver"}, "solver_order 1 is none of 2"),
        ({"_class_name": DPM, "solver_order": 3, "lower_order_final": False}, "lower_order_final False"),
        ({"_class_name": DPM, "use_karras_sigmas": True, "use_beta_sigmas": True}, "only one of use_karras_sigmas and"),
        ({"_class_name": UNIPC, "solver_order": 3}, "solver_order 3 is none of 2"),
        ({"_class_name": UNIPC, "predict_x0": False}, "predict_x0 False"),
        ({"_class_name": "EulerDiscreteScheduler", "interpolation_type": "log_linear"}, "interpolation_type"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "timestep_type"),
        ({"_class_name": "DDPMScheduler", "variance_type": "fixed_large_log"}, "variance_type 'fixed_large_log'"),
        ({"_class_name": "DDPMScheduler", "variance_type": "learned_range"}, "variance_type 'learned_range'"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ({"thresholding": True}, "thresholding"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid' is none of linear, scaled_linear"),
        ({"prediction_type": "flow_prediction"}, "prediction_type 'flow_prediction' is none of epsilon, v_prediction"),
        ({"timestep_spacing": "odd"}, "timestep_spacing 'odd' is none of leading"),
        ({"beta_start": "little"}, "beta_start"),
    ],
)
def test_what_we_do_not_have_is_refused_by_field(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        sampling_config({"_class_name": "DDIMScheduler", **SD, **changes}, "a file")


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"_class_name": EULER, "interpolation_type": "log_linear"}, {"euler"}),
        ({"_class_name": EULER, "timestep_type": "continuous"}, {"euler"}),
        ({"_class_name": EULER, "a_setting_of_tomorrow": 2}, {"euler"}),
        ({"_class_name": UNIPC, "solver_order": 3, "predict_x0": False}, set()),
        ({"_class_name": DPM, "solver_order": 3, "solver_type": "heun"}, set()),
        (
            {"_class_name": DPM, "lambda_min_clipped": -2.0, "timestep_spacing": "trailing"},
            {"dpmpp-2m", "dpmpp-2m-sde"},
        ),
        ({"_class_name": "DDIMScheduler", "thresholding": True}, {"ddim", "ddpm", "dpmpp-2m", "dpmpp-2m-sde", "unipc"}),
        ({"_class_name": DPM, "use_flow_sigmas": True}, {"dpmpp-2m", "dpmpp-2m-sde", "unipc"}),
        ({"_class_name": EULER, "use_beta_sigmas": True, "use_karras_sigmas": True}, {*ASKED} - {*UNCURVED}),
        ({"_class_name": "SchedulerOfTomorrow", "trick": 3}, set()),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
)
def test_what_is_refused_is_refused_where_it_is_used_alone(settings: dict[str, Any], kept: set[str]) -> None:
    """By default, and by samplers whose class reads it: all others sample as `from_config` of that file makes them."""
    values: dict[str, Any] = {"_class_name": "DDIMScheduler", **SD, "steps_offset": 1, **settings}
    config = LatentConfig.from_dict({**jsonable(sampling_fields(values, "a file"))})
    with pytest.raises(UserError, match=r"a file: .*; choose another by --sampler"):
        read_sampler(None, config)
    for sampler, (kind, extra) in ASKED.items():
        if sampler in kept:
            with pytest.raises(UserError, match="a file: "):
                read_sampler(sampler, config)
            continue
        assert read_sampler(sampler, config) == sampler
        plain = {"solver_order": 2, "solver_type": "bh2" if kind == UNIPC else "midpoint", "predict_x0": True}
        names = inspect.signature(getattr(diffusers, kind).__init__).parameters
        theirs = getattr(diffusers, kind).from_config(values, **extra, **{k: v for k, v in plain.items() if k in names})
        assert compared(values, sampler, theirs, 5) < 5e-5


def test_what_is_refused_names_no_folder() -> None:
    """It is kept in the config of a converted model, and compared when that is written again."""
    values = {"_class_name": UNIPC, **SD, "solver_order": 3}
    found = [sampling_fields(values, where) for where in ("/some/where/scheduler_config.json", "scheduler_config.json")]
    assert found[0] == found[1] and dict(found[0]["unsupported_samplers"])[""].startswith(
        "scheduler_config.json: solver_order 3"
    )


def jsonable(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value.to_dict() if isinstance(value, Config) else value for name, value in fields.items()}


def test_readers_are_the_classes_that_read_it() -> None:
    for field, setting in SETTINGS.items():
        for name in CLASSES.keys() - {"DPMSolverSDEScheduler"}:  # needs torchsde
            reads = field in inspect.signature(getattr(diffusers, name).__init__).parameters
            # What a sampler's name says is asked of none but those that are chosen by it.
            if setting.readers and not setting.named:
                assert reads == (name in setting.readers), (field, name)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prediction": "flow"}, "LatentConfig.prediction = 'flow'"),
        ({"schedule": {"kind": "cosine"}}, "LatentConfig.schedule.kind = 'cosine'"),
        ({"schedule": {"conditioning": "gamma"}}, "LatentConfig.schedule.conditioning = 'gamma'"),
    ],
)
def test_what_they_do_not_have_is_refused_by_field(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        scheduler_json(LatentConfig.from_dict(changes))
