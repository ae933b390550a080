"""What guides by its gradient: noisy classifiers and a noisy pair for our own models, and ADM's classifiers."""

from __future__ import annotations

import dataclasses

from diptych.data.dataset import DataConfig
from diptych.diffusion.losses import ObjectiveConfig
from diptych.diffusion.schedules import ScheduleConfig
from diptych.encoders.class_configs import ClassConfig
from diptych.encoders.configs import MiniLMConfig
from diptych.networks.adm import AdmUNetConfig
from diptych.networks.noisy_classifier import NoisyClassifierConfig
from diptych.pretrained.guided_diffusion import COSINE, LINEAR
from diptych.recipes.emoji.class_conditional import CLASSES, DATA
from diptych.recipes.papers.adm import CLASSES as IMAGENET
from diptych.recipes.papers.adm import LARGE, LARGEST, MIDDLE, SMALL
from diptych.training.experiment_config import Recipe
from diptych.training.tasks.guide_training import GuideTraining
from diptych.training.training_config import TrainingConfig

CONCEPTS = CLASSES.classes
NAMED = ClassConfig(classes=CONCEPTS, names_from_captions=True)
"""The classes of a class-conditional model: concepts that all styles drew, with five or six training
drawings each. Their held-out drawings are of concepts in training."""
FAVOURED = ObjectiveConfig(times="logit-normal")
"""The times of the latent default: the middle counts most, and the noisiest teach little."""


def small(
    channels: int, outputs: int, *, in_channels: int = 8, multipliers: tuple[int | float, ...] = (1, 2)
) -> NoisyClassifierConfig:
    """An encoder at CPU scale: attention at its last level alone, features pooled by their mean."""
    encoder = AdmUNetConfig(
        in_channels=in_channels,
        channels=channels,
        multipliers=multipliers,
        blocks=1,
        attention_levels=(len(multipliers) - 1,),
        head_width=32,
        norm_groups=8,
        dropout=0.1,
    )
    return NoisyClassifierConfig(encoder=encoder, classes=outputs, pool="adaptive", size=None)


def training(steps: int, batch_size: int, learning_rate: float = 2e-3) -> TrainingConfig:
    return TrainingConfig(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup=100,
        cooldown=0.3,
        ema=0.998,
        weight_decay=0.05,
        validate_every=500,
        validation_images=284,
        sample_every=0,
        checkpoint_every=500,
    )


def latents(description: str, outputs: int, *, text: MiniLMConfig | None, batch_size: int, steps: int) -> Recipe:
    """A guide over the latents of the default model, at its times and their noise."""
    return Recipe(
        description=f"{description}, for the latents of the default model",
        system=GuideTraining(
            network=small(64, outputs),
            classes=NAMED if text is None else None,
            text=text,
            guided="latent",
            objective=FAVOURED,
            precomputed="cache/emoji-class",  # the same drawings
            save_dtype="bfloat16",
        ),
        data=DATA,
        training=training(steps, batch_size),
    )


def adm(
    size: int,
    shape: tuple,
    schedule: ScheduleConfig,
    steps: int,
    *,
    blocks: int = 2,
    batch_size: int = 256,
    learning_rate: float = 3e-4,
    weight_decay: float = 0.05,
) -> Recipe:
    """A published classifier (table 12; the flags for 128 px also in guided-diffusion's README), of random squares of
    at least 0.8 of an image's shorter side."""
    _, _, multipliers, attention = shape
    encoder = AdmUNetConfig(channels=128, multipliers=multipliers, blocks=blocks, attention_levels=attention)
    return Recipe(
        description=f"ADM's classifier of noisy {size}-px ImageNet images (Dhariwal & Nichol 2021)",
        system=GuideTraining(
            network=NoisyClassifierConfig(encoder=encoder, classes=IMAGENET, size=size),
            classes=ClassConfig(classes=IMAGENET),
            schedule=schedule,
        ),
        data=DataConfig(path="data/imagenet", size=size, max_size=size * 5 // 4, crop=size, flip=0.5),
        training=TrainingConfig(
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            warmup=0,
            cooldown=1.0,
            betas=(0.9, 0.999),
            weight_decay=weight_decay,
            decayed="all",
            clip=0.0,
            ema=0.0,
            sample_every=0,
            validate_every=5000,
            checkpoint_every=10_000,
        ),
    )


RECIPES = {
    "emoji-classifier": latents(
        f"classifier of {CONCEPTS:,} concepts in noise", CONCEPTS, text=None, batch_size=64, steps=4000
    ),
    "emoji-noisy-clip": latents(
        "contrastive pair of noisy images and text", 256, text=MiniLMConfig(), batch_size=256, steps=1000
    ),
    "emoji-classifier-pixels": Recipe(
        description=f"classifier of {CONCEPTS:,} concepts in noise, for the 32-px pixels of the default cascade's base",
        system=GuideTraining(
            network=small(32, CONCEPTS, in_channels=3, multipliers=(1, 2, 4)),
            classes=NAMED,
            schedule=ScheduleConfig(kind="cosine"),
            save_dtype="bfloat16",
        ),
        data=dataclasses.replace(DATA, size=32),
        training=training(4000, 64),
    ),
    "adm-64-classifier": adm(
        *(64, SMALL, COSINE, 300_000), blocks=4, batch_size=1024, learning_rate=6e-4, weight_decay=0.2
    ),
    "adm-128-classifier": adm(128, MIDDLE, LINEAR, 300_000),
    "adm-256-classifier": adm(256, LARGE, LINEAR, 500_000),
    "adm-512-classifier": adm(512, LARGEST, LINEAR, 500_000),
}
