"""A scheduler_config.json of diffusers as our schedule, prediction, times and sampler, and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diptych.diffusion.schedule import TimesConfig, build_schedule
from diptych.errors import UserError
from diptych.latent import LatentConfig
from diptych.published.sd_scheduler import CLASSES, SAMPLERS, sampling_config, scheduler_json
from tests.published import sd_models

diffusers = pytest.importorskip("diffusers")

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
NOISES: list[dict[str, Any]] = [
    SD,
    {"beta_schedule": "linear", "beta_start": 0.0015, "beta_end": 0.0195},
    {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 400},
    {"num_train_timesteps": 250},
]


def saved(name: str, **values: Any) -> dict[str, Any]:
    """What diffusers writes of a scheduler: all of its settings, the default ones too."""
    return dict(getattr(diffusers, name)(**values).config) | {"_class_name": name}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("noise", NOISES, ids=["scaled", "linear", "cosine", "default"])
def test_the_noise_is_theirs(name: str, noise: dict[str, Any]) -> None:
    theirs = getattr(diffusers, name)(**noise)
    found = sampling_config(saved(name, **noise), "a file")
    schedule = build_schedule(found["schedule"])
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
        assert found["times"] == TimesConfig(spacing="leading", offset=1, final="first")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, TimesConfig(spacing="published", offset=1)),
        ({"timestep_spacing": "trailing"}, TimesConfig(spacing="trailing", offset=1)),
        ({"timestep_spacing": "linspace"}, TimesConfig(spacing="linspace", offset=1)),
        ({"use_karras_sigmas": True, "timestep_spacing": "leading"}, TimesConfig(spacing="karras", offset=1)),
        ({"set_alpha_to_one": False, "steps_offset": 0}, TimesConfig(spacing="published", offset=1, final="first")),
    ],
)
def test_times_are_laid_out_as_they_say(values: dict[str, Any], expected: TimesConfig) -> None:
    """steps_offset is 1 whatever it says, as diffusers' pipelines set it."""
    assert sampling_config({"_class_name": "EulerDiscreteScheduler", **SD, **values}, "a file")["times"] == expected


@pytest.mark.parametrize("sampler", CLASSES)
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_what_we_write_diffusers_reads(sampler: str, prediction: str) -> None:
    values: dict[str, Any] = {"sampler": sampler, "prediction": prediction}
    values["times"] = {"spacing": "trailing", "offset": 1, "final": "first"}
    config = LatentConfig.from_dict({**values, "schedule": {"kind": "linear", "beta_start": 0.001, "beta_end": 0.01}})
    written = scheduler_json(config)
    theirs = getattr(diffusers, written["_class_name"]).from_config(written)
    assert theirs.config.prediction_type == {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}[prediction]
    assert theirs.config.timestep_spacing == "trailing"
    assert torch.allclose(theirs.betas, torch.linspace(0.001, 0.01, 1000))
    again = sampling_config(written, "a file")
    assert {name: getattr(config, name) for name in again} == again


def test_karras_goes_there_and_back() -> None:
    config = LatentConfig.from_dict({"sampler": "dpmpp-2m", "times": {"spacing": "karras", "offset": 1}})
    again = sampling_config(scheduler_json(config), "a file")
    assert {name: getattr(config, name) for name in again} == again
    plain = LatentConfig.from_dict({"times": {"spacing": "published", "offset": 1}})
    assert "timestep_spacing" not in scheduler_json(plain)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"_class_name": "EDMEulerScheduler"}, "_class_name 'EDMEulerScheduler' is none of DDIMScheduler, DDPM"),
        ({"_class_name": None}, "_class_name"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ({"thresholding": True}, "thresholding"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid' is none of linear, scaled_linear"),
        ({"prediction_type": "flow_prediction"}, "prediction_type 'flow_prediction' is none of epsilon, v_prediction"),
        ({"timestep_spacing": "odd"}, "spacing"),
        ({"beta_start": "little"}, "beta_start"),
    ],
)
def test_what_we_do_not_have_is_refused_by_field(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        sampling_config({"_class_name": "DDIMScheduler", **SD, **changes}, "a file")


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
