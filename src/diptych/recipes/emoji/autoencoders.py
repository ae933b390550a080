"""First stages on the emoji data with the paper's whole objective: perceptual, adversarial, KL or VQ."""

from __future__ import annotations

import dataclasses

from diptych.networks.discriminator import DiscriminatorConfig
from diptych.recipes.emoji.latent import DATA, DATA_64, SMALL_AUTOENCODER, SMALL_VQ
from diptych.recipes.emoji.latent import RECIPES as EMOJI
from diptych.training.experiment_config import Recipe
from diptych.training.tasks.adversarial import AdversarialConfig
from diptych.training.tasks.autoencoding import FirstStageConfig, PerceptualConfig
from diptych.training.tasks.codebook import CodebookConfig
from diptych.training.training_config import TrainingConfig

FEATURES = PerceptualConfig(features="judge", path="runs/emoji-features", weight=0.1)
"""A judge of another seed than the one that measures, so that nothing is measured by what it was trained to please."""
SMALL_DISCRIMINATOR = DiscriminatorConfig(channels=32, layers=2, norm="group", norm_groups=8)
"""Patches of 34 pixels, for images of 64; each image is judged by itself."""


def adversarial(start: int) -> AdversarialConfig:
    return AdversarialConfig(discriminator=SMALL_DISCRIMINATOR, weight=0.5, start=start, lead=200, warmup=200)


def training(steps: int, learning_rate: float = 1e-3) -> TrainingConfig:
    """Without clipping, as published: one norm over both sides would let either hold the other back."""
    return TrainingConfig(
        steps=steps,
        batch_size=16,
        learning_rate=learning_rate,
        warmup=100,
        cooldown=0.3,
        betas=(0.5, 0.9),
        weight_decay=0.0,
        clip=0.0,
        ema=0.995,
        validate_every=250,
        sample_every=500,
        checkpoint_every=250,
    )


RECIPES = {
    "emoji-features": Recipe(
        description="what emoji first stages are trained by to look right: a judge that never measures anything",
        system=EMOJI["judge"].system,
        data=DATA_64,
        training=dataclasses.replace(
            EMOJI["judge"].training, steps=600, batch_size=48, seed=1, validate_every=300, checkpoint_every=300
        ),
    ),
    "emoji-vq": Recipe(
        description="VQ autoencoder, factor 8, 1,024 entries, 64-px emoji images: first stage of emoji-codes",
        system=FirstStageConfig(
            network=SMALL_VQ,
            l2=1.0,
            codebook=CodebookConfig(update="ema", restart=0.1, from_data=True),
            perceptual=FEATURES,
            adversarial=adversarial(start=1500),
            save_dtype="bfloat16",
        ),
        data=DATA_64,
        training=training(2500),
    ),
    "emoji-decoder": Recipe(
        description="the default's decoder trained on with perceptual and adversarial terms; its latents stay",
        system=FirstStageConfig(
            network=SMALL_AUTOENCODER,
            l2=1.0,
            init_from="latent",
            train="decoder",
            perceptual=dataclasses.replace(FEATURES, weight=1.0),  # near the end distances are small
            adversarial=adversarial(start=100),
            save_dtype="bfloat16",
        ),
        data=DATA,
        training=training(1500, learning_rate=3e-4),
    ),
}
