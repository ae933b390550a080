"""Inpainting models: one initialised from the default, and latent diffusion's at full size."""

from __future__ import annotations

import dataclasses

from diptych.conditioning.concat_config import MaskConcat, MaskConfig
from diptych.data.dataset import DataConfig
from diptych.diffusion.schedules import ScheduleConfig
from diptych.models.latent_diffusion import LatentConfig
from diptych.networks.adm_config import AdmUNetConfig
from diptych.recipes.emoji.latent import DATA, SMALL_AUTOENCODER, trained_on
from diptych.recipes.papers.first_stages import VQ_F4_NOATTN
from diptych.recipes.papers.ldm import L1, TIMES
from diptych.recipes.papers.ldm import training as ldm_training
from diptych.training.experiment_config import LatentTraining, Recipe
from diptych.training.tasks.diffusion import DiffusionTraining
from diptych.training.training_config import TrainingConfig

BIG = AdmUNetConfig(
    in_channels=3,
    concat_channels=4,
    out_channels=3,
    channels=256,
    multipliers=(1, 2, 3, 4),
    attention_levels=(1, 2, 3),
    heads=8,
    head_width=None,
    scale_shift=False,
)
"""As published in models/ldm/inpainting_big: ADM's residual blocks halve and double, three levels attend."""
SMALL = dataclasses.replace(BIG, channels=128, multipliers=(1, 4, 8), attention_levels=(), residual_resampling=False)
"""That of table 15: the middle alone attends."""


def _published(size: str, unet: AdmUNetConfig, warmup: int) -> Recipe:
    """Steps, batch and rate are table 15's for the small one. Its rate, 1e-6, is the config's for one image: all other
    columns of the table have that times the batch."""
    return Recipe(
        description=f"LDM that inpaints, {size} U-Net over vq-f4-noattn latents of 256-px images (Rombach et al. 2022)",
        system=LatentTraining(
            model=LatentConfig(
                autoencoder=VQ_F4_NOATTN,
                unet=unet,
                concat=MaskConcat(masks=MaskConfig(thin=0, medium=0)),
                text=None,
                schedule=ScheduleConfig(beta_start=0.0015, beta_end=0.0205),
                times=TIMES,
                latent_scale=1.0,
                size=256,
                guidance=1.0,
            ),
            diffusion=DiffusionTraining(objective=L1, caption_dropout=0.0),
            autoencoder="runs/vq-f4-noattn",
        ),
        data=DataConfig(path="data/pictures", size=512, crop=256),
        training=ldm_training(360_000, 128, 1.28e-4, warmup),
    )


BESIDE = MaskConcat(fill="smooth", full_resolution_mask=True)
"""Its condition: a mask and the masked image. A latent covers 8 x 8 pixels here: a mask
of one value for each would not say what a thin stroke hides."""

RECIPES = {
    "emoji-inpainting": Recipe(
        description="inpainting of 128-px emoji images, initialised from the default, in its latent space",
        system=trained_on(
            unet={
                "concat_channels": BESIDE.channels(SMALL_AUTOENCODER),
                "context_width": None,
                "pooled_width": None,
            },
            diffusion={"caption_dropout": 0.0, "prompts": ()},
            concat=BESIDE,
            text=None,
            guidance=1.0,
        ),
        data=DATA,
        training=TrainingConfig(
            steps=1200,
            batch_size=32,
            learning_rate=6e-4,
            warmup=50,
            cooldown=0.4,
            ema=0.99,
            weight_decay=0.01,
            validate_every=200,
            validation_images=128,
            sample_every=200,
            checkpoint_every=100,
        ),
    ),
    "ldm-inpainting": _published("387 M", BIG, 1000),
    "ldm-inpainting-small": _published("215 M", SMALL, 0),
}
