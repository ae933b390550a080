"""The latent model that a noisy guide is trained for: its first stage, scale and schedule."""

from __future__ import annotations

from typing import NamedTuple

from diptych.core.errors import UserError
from diptych.diffusion.schedules import ScheduleConfig
from diptych.models.latent_diffusion import LatentDiffusion
from diptych.networks.autoencoder import Autoencoder
from diptych.pretrained.load import find, is_published, open_autoencoder, open_model, read_config


class Guided(NamedTuple):
    """The properties of the latent model that a guide is trained for."""

    autoencoder: Autoencoder
    scale: float
    schedule: ScheduleConfig


def guided_model(source: str) -> Guided:
    """Of a latent model by name, folder or hub id; a `UserError` where it is none. Of ours, the U-Net is not read."""
    path = find(source)
    if is_published(path):
        model = open_model(source)
        if isinstance(model, LatentDiffusion):
            return Guided(model.autoencoder, float(model.scale), model.config.schedule)
    elif (values := read_config(path))["kind"] == "latent":
        schedule = ScheduleConfig.from_dict(values.get("schedule", {}))
        return Guided(open_autoencoder(source), float(values["scale"]), schedule)
    raise UserError(f"{source} is no latent model: name one as system.guided, or none for a guide of pixels")
