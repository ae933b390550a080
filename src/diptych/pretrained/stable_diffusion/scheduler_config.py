"""diffusers' scheduler_config.json and our schedule, prediction, times and default sampler, there and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diptych.core.errors import UserError
from diptych.diffusion.schedules import ScheduleConfig
from diptych.diffusion.times import TimesConfig
from diptych.models.latent_diffusion import LatentConfig
from diptych.pretrained import schedulers
from diptych.pretrained.schedulers import SAVED

OFFSET = 1
"""Whatever steps_offset says: diffusers' Stable Diffusion pipelines set it, as they set clip_sample to false."""


def sampling_config(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of a `LatentConfig` that a scheduler decides: `schedule`, `prediction`, `times`, `sampler`,
    `published_scheduler` and `unsupported_samplers`.

    Raises a `UserError` that names the field for a class or a setting that we do not have.
    """
    fields = sampling_fields(values, where)
    if reason := dict(fields["unsupported_samplers"]).get(""):
        raise UserError(reason)
    return fields


def sampling_fields(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The same also where what the default sampler would need is refused: others may be asked for."""
    kind = schedulers.kind_of(values, where)
    schedulers.check(values, where)
    refused = schedulers.refusals(values, where, latent=True)
    if schedulers.stated_settings(values).get("variance_type") == "learned_range" and kind.sampler == "ddpm":
        reason = f"{where}: variance_type 'learned_range' needs a U-Net that predicts it, and this one does not"
        refused.setdefault("", reason)
    sampler = kind.sampler if "" in refused else schedulers.sampler_of(values, where)
    times = TimesConfig.from_dict({**schedulers.times_values(values, where), "offset": OFFSET})
    schedule = {**schedulers.schedule_values(values, where), "rounding": times.rounding(sampler)}
    return {
        "schedule": ScheduleConfig.from_dict(schedule),
        "prediction": schedulers.prediction_of(values, where),
        "times": times,
        "sampler": sampler,
        "published_scheduler": None if kind.same else values["_class_name"],
        "unsupported_samplers": tuple(refused.items()),
    }


def scheduler_json(config: LatentConfig) -> dict[str, Any]:
    """A scheduler_config.json of the class that is nearest to the default sampler, as diffusers reads it.

    Raises a `UserError` that names the field for a schedule or prediction that no scheduler there has.
    """
    kinds = {ours: theirs for theirs, ours in schedulers.BETAS.items()}
    predictions = {ours: theirs for theirs, ours in schedulers.PREDICTIONS.items()}
    for field, value, allowed in (
        ("schedule.kind", config.schedule.kind, kinds),
        ("schedule.conditioning", config.schedule.conditioning, ("time",)),
        ("prediction", config.prediction, predictions),
        ("sampler", config.sampler, SAVED),
    ):
        if value not in allowed:
            raise UserError(f"published Stable Diffusion has no place for LatentConfig.{field} = {value!r}")
    times = config.times
    values = {
        "_class_name": SAVED[config.sampler][0],
        "num_train_timesteps": config.schedule.steps,
        "beta_schedule": kinds[config.schedule.kind],
        "beta_start": config.schedule.beta_start,
        "beta_end": config.schedule.beta_end,
        "trained_betas": None,
        "prediction_type": predictions[config.prediction],
        "steps_offset": times.offset,
        "set_alpha_to_one": times.final == "clean",
        "clip_sample": False,
        "skip_prk_steps": True,
    }
    if times.spacing not in ("published", "karras"):
        values["timestep_spacing"] = times.spacing
    for field, curve in schedulers.CURVES.items():
        if curve == times.sigmas or curve == times.spacing:
            values[field] = True
    optional = {"sigma_min": times.sigma_min, "sigma_max": times.sigma_max, "lambda_min_clipped": times.lambda_min}
    values |= {field: value for field, value in optional.items() if value is not None}
    if times.final_sigma == "least":
        values["final_sigmas_type"] = "sigma_min"
    if config.schedule.zero_snr:
        values["rescale_betas_zero_snr"] = True
    return values | SAVED[config.sampler][1]
