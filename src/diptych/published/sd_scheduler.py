"""diffusers' scheduler_config.json and our schedule, prediction, times and default sampler, there and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diptych.diffusion.schedule import ScheduleConfig, TimesConfig
from diptych.errors import UserError
from diptych.latent import LatentConfig

SAMPLERS = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "DPMSolverMultistepScheduler": "dpmpp-2m",
    "EulerAncestralDiscreteScheduler": "euler-ancestral",
    "EulerDiscreteScheduler": "euler",
    "HeunDiscreteScheduler": "heun",
    "LMSDiscreteScheduler": "euler",  # of a higher order, which is not among our samplers
    "PNDMScheduler": "ddim",  # as above; 1.x is published with it
    "UniPCMultistepScheduler": "unipc",
}
"""Scheduler class -> our sampler, the nearest where we have none that is the same."""
CLASSES = {sampler: name for name, sampler in reversed(SAMPLERS.items()) if name not in ("LMSDiscreteScheduler",)}
CLASSES |= {"ddim": "DDIMScheduler", "dpmpp-2m-sde": "DPMSolverMultistepScheduler"}
ALGORITHMS = {"dpmpp-2m": "dpmsolver++", "dpmpp-2m-sde": "sde-dpmsolver++"}

KINDS = {"linear": "linear", "scaled_linear": "scaled-linear", "squaredcos_cap_v2": "cosine-table"}
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
REFUSED = ("trained_betas", "rescale_betas_zero_snr", "thresholding", "use_flow_sigmas")
"""Settings without which a model is another one, and that we do not have."""
OFFSET = 1
"""Whatever steps_offset says: diffusers' Stable Diffusion pipelines set it, as they set clip_sample to false."""


def sampling_config(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields `schedule`, `prediction`, `times` and `sampler` of a `LatentConfig`.

    Raises a `UserError` that names the field for a class or a setting that we do not have.
    """
    name = values.get("_class_name")
    if name not in SAMPLERS:
        raise UserError(f"{where}: _class_name {name!r} is none of {', '.join(sorted(SAMPLERS))}")
    for field in REFUSED:
        if values.get(field) not in (None, False):
            raise UserError(f"{where}: diptych has no {field} = {values[field]!r}")
    usual = (0.00085, 0.012) if name == "HeunDiscreteScheduler" else (0.0001, 0.02)
    sampler = SAMPLERS[name]
    if sampler == "dpmpp-2m" and values.get("algorithm_type") == "sde-dpmsolver++":
        sampler = "dpmpp-2m-sde"
    return {
        "schedule": ScheduleConfig.from_dict(
            {
                "kind": _known(values, "beta_schedule", "linear", KINDS, where),
                "steps": values.get("num_train_timesteps", 1000),
                "beta_start": values.get("beta_start", usual[0]),
                "beta_end": values.get("beta_end", usual[1]),
            }
        ),
        "prediction": _known(values, "prediction_type", "epsilon", PREDICTIONS, where),
        "times": times_config(values),
        "sampler": sampler,
    }


def times_config(values: Mapping[str, Any]) -> TimesConfig:
    """How the times are laid out. What is not said is each scheduler's own, also of one that takes another's place."""
    spacing = values.get("timestep_spacing") or "published"
    return TimesConfig.from_dict(
        {
            "spacing": "karras" if values.get("use_karras_sigmas") else spacing,
            "offset": OFFSET,
            "final": "clean" if values.get("set_alpha_to_one", True) else "first",
        }
    )


def scheduler_json(config: LatentConfig) -> dict[str, Any]:
    """A scheduler_config.json of the class that is nearest to the default sampler, as diffusers reads it.

    Raises a `UserError` that names the field for a schedule or prediction that no scheduler there has.
    """
    kinds = {ours: theirs for theirs, ours in KINDS.items()}
    predictions = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    for field, value, known in (
        ("schedule.kind", config.schedule.kind, kinds),
        ("schedule.conditioning", config.schedule.conditioning, ("time",)),
        ("prediction", config.prediction, predictions),
        ("sampler", config.sampler, CLASSES),
    ):
        if value not in known:
            raise UserError(f"published Stable Diffusion has no place for LatentConfig.{field} = {value!r}")
    values = {
        "_class_name": CLASSES[config.sampler],
        "num_train_timesteps": config.schedule.steps,
        "beta_schedule": kinds[config.schedule.kind],
        "beta_start": config.schedule.beta_start,
        "beta_end": config.schedule.beta_end,
        "trained_betas": None,
        "prediction_type": predictions[config.prediction],
        "steps_offset": config.times.offset,
        "set_alpha_to_one": config.times.final == "clean",
        "clip_sample": False,
        "skip_prk_steps": True,
    }
    if config.times.spacing == "karras":
        values["use_karras_sigmas"] = True
    elif config.times.spacing != "published":
        values["timestep_spacing"] = config.times.spacing
    if config.sampler in ALGORITHMS:
        values["algorithm_type"] = ALGORITHMS[config.sampler]
    return values


def _known(values: Mapping[str, Any], field: str, usual: str, known: Mapping[str, str], where: str) -> str:
    value = values.get(field, usual)
    if value not in known:
        raise UserError(f"{where}: {field} {value!r} is none of {', '.join(known)}")
    return known[value]
