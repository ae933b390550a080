"""From the recipe of a noisy guide to what is trained: whose latents it reads, which classes or words it knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from diptych.core.errors import UserError
from diptych.core.seeding import drawn_apart
from diptych.diffusion.schedules import ScheduleConfig
from diptych.encoders.cache import CachedTexts, text_cache
from diptych.encoders.classes import with_names
from diptych.models.latent_diffusion import LatentDiffusion
from diptych.models.noisy_guide import NoisyGuide, NoisyGuideConfig
from diptych.networks.autoencoder import Autoencoder
from diptych.pretrained.load import find, is_published, open_autoencoder, open_model, read_config
from diptych.training.init_from import FIRST_WEIGHTS
from diptych.training.tasks.guide_training import GuideTask, GuideTraining
from diptych.weights.fingerprint import fingerprint


class Guided(NamedTuple):
    """What a guide has to know of the latent model that it will guide."""

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


def guide_task(system: GuideTraining, captions: Sequence[str], guided: Guided | None, seed: int = 0) -> GuideTask:
    """A guide to train, of the classes or texts that `captions` of the training data are; `seed` decides its first
    weights. The texts of a pair are embedded before the first step, or were by an earlier run."""
    texts = None
    if system.text is not None:
        texts = CachedTexts(system.text, text_cache())
        texts.read(sorted(set(captions)))
        texts.unload()
    config = NoisyGuideConfig(
        network=system.network,
        classes=None if system.classes is None else with_names(system.classes, captions),
        text=system.text,
        schedule=system.schedule if guided is None else guided.schedule,
        first_stage=None if guided is None else fingerprint(guided.autoencoder),
        scale=None if guided is None else guided.scale,
    )
    with drawn_apart(seed, FIRST_WEIGHTS):
        guide = NoisyGuide(config, texts)
    return GuideTask(system, guide, None if guided is None else guided.autoencoder, captions)
