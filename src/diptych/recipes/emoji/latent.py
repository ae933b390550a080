"""Our own models, trained on `diptych data emoji`: the default that is shipped, a smaller one for a CPU, the judge."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from diptych.data.dataset import DataConfig
from diptych.diffusion.losses import ObjectiveConfig
from diptych.diffusion.schedules import ScheduleConfig
from diptych.encoders.configs import JointTransformerConfig, MiniLMConfig
from diptych.models.judge import JudgeConfig
from diptych.models.latent_diffusion import LatentConfig
from diptych.networks.autoencoder import AutoencoderConfig
from diptych.networks.transformer import TextTransformerConfig
from diptych.networks.unet import UNetConfig
from diptych.training.experiment_config import LatentTraining, Recipe
from diptych.training.tasks.autoencoding import FirstStageConfig
from diptych.training.tasks.contrastive import ContrastConfig
from diptych.training.tasks.diffusion import DiffusionTraining
from diptych.training.training_config import TrainingConfig

DATA = DataConfig(path="data/emoji-128", size=128, in_memory=True)
"""Of the default and of what goes on from it."""
DATA_64 = DataConfig(path="data/emoji-64", size=64, in_memory=True)
"""Of the judge, and of what two CPU cores can train."""

PROMPTS = (
    "a red apple",
    "a cat face",
    "a rocket",
    "an evergreen tree",
    "a red heart",
    "a snowman",
    "a crown",
    "a grinning face",
    "a house, in the style of Noto",
    "a dog face, in the style of Twemoji",
    "a pizza, in the style of OpenMoji",
    "a guitar",
    "two cats",
    "a blue car",
    "a dog to the left of a house",
    "an apple on a yellow background",
)
"""Fixed prompts of the sample grids: single drawings, styles, and scenes."""

SMALL_AUTOENCODER = AutoencoderConfig(
    latent_channels=8, channels=48, multipliers=(1, 2, 3), blocks=1, patch=2, norm_groups=8
)

SMALL_VQ = AutoencoderConfig(
    latent_channels=8, channels=32, multipliers=(1, 2, 3), blocks=1, patch=2, norm_groups=8, codebook=1024
)


def first_stage(description: str, data: DataConfig, training: TrainingConfig) -> Recipe:
    return Recipe(
        description=description,
        system=FirstStageConfig(network=SMALL_AUTOENCODER, l2=1.0, kl=2e-3, save_dtype="bfloat16"),
        data=data,
        training=training,
    )


def latent(description: str, name: str, unet: UNetConfig, data: DataConfig, training: TrainingConfig) -> Recipe:
    """Rectified flow over the latents of `runs/NAME-autoencoder` from frozen MiniLM text."""
    return Recipe(
        description=description,
        system=LatentTraining(
            model=LatentConfig(
                autoencoder=SMALL_AUTOENCODER,
                text=MiniLMConfig(),
                unet=unet,
                schedule=ScheduleConfig(kind="flow"),
                prediction="flow",
                size=data.size,
                steps=24,
                guidance=7.0,
                sampler="dpmpp-2m",
            ),
            diffusion=DiffusionTraining(
                objective=ObjectiveConfig(times="logit-normal"), prompts=PROMPTS, save_dtype="bfloat16"
            ),
            autoencoder=f"runs/{name}-autoencoder",
            precomputed=f"cache/{name}-latent",
        ),
        data=data,
        training=training,
    )


def unet(multipliers: tuple[int, ...], blocks: int) -> UNetConfig:
    """Attention to the latent itself and to the words at every level."""
    return UNetConfig(
        in_channels=8,
        out_channels=8,
        channels=96,
        multipliers=multipliers,
        blocks=blocks,
        attention_levels=tuple(range(len(multipliers))),
        heads=None,
        head_width=32,
        context_width=384,
        pooled_width=384,
    )


AUTOENCODER_TRAINING = TrainingConfig(
    steps=4500,
    batch_size=16,
    learning_rate=2e-3,
    warmup=200,
    schedule="cosine",
    ema=0.998,
    weight_decay=0.0,
    validate_every=500,
    sample_every=500,
    checkpoint_every=500,
)
LATENT_TRAINING = TrainingConfig(
    steps=8400,
    batch_size=64,
    learning_rate=1e-3,
    warmup=200,
    cooldown=0.3,
    ema=0.998,
    weight_decay=0.01,
    validate_every=500,
    sample_every=500,
    checkpoint_every=250,
)

RECIPES = {
    "emoji-autoencoder": first_stage(
        "KL autoencoder, factor 8, 128-px emoji images: first stage of the default",
        DATA,
        dataclasses.replace(AUTOENCODER_TRAINING, steps=1900, batch_size=64, learning_rate=1.5e-3),
    ),
    "emoji-latent": latent(
        "latent diffusion on 128-px emoji images, frozen MiniLM text: the default, minutes of a GPU",
        "emoji",
        unet((1, 2, 2), blocks=2),
        DATA,
        dataclasses.replace(LATENT_TRAINING, steps=1660, batch_size=512, warmup=300, ema=0.9993),
    ),
    "emoji-64-autoencoder": first_stage(
        "KL autoencoder, factor 8, 64-px emoji images: first stage of emoji-64-latent", DATA_64, AUTOENCODER_TRAINING
    ),
    "emoji-64-latent": latent(
        "latent diffusion on 64-px emoji images, frozen MiniLM text: two hours of two CPU cores",
        "emoji-64",
        unet((1, 2), blocks=1),
        DATA_64,
        LATENT_TRAINING,
    ),
    "judge": Recipe(
        description="the judge: images and words in one space, trained apart from every generator",
        system=ContrastConfig(
            judge=JudgeConfig(widths=(24, 48, 96, 192), text_width=192, text_layers=1, embedding=192),
            foils=1,
        ),
        data=DATA_64,
        training=TrainingConfig(
            steps=6000,
            batch_size=128,
            learning_rate=1.5e-3,
            warmup=100,
            schedule="cosine",
            ema=0.99,
            weight_decay=0.05,
            validate_every=500,
            sample_every=0,
            checkpoint_every=500,
        ),
    ),
}


def trained_on(
    *,
    unet: Mapping[str, Any] | None = None,
    diffusion: Mapping[str, Any] | None = None,
    precomputed: str | None = None,
    **model: Any,
) -> LatentTraining:
    """The default in the package, trained on for something else: over its first stage, from its own U-Net.

    unet, diffusion, model: what is other than in the default.
    """
    system = RECIPES["emoji-latent"].system
    assert isinstance(system, LatentTraining)
    network = dataclasses.replace(system.model.unet, **(unet or {}))
    return LatentTraining(
        model=dataclasses.replace(system.model, unet=network, **model),
        diffusion=dataclasses.replace(system.diffusion, **(diffusion or {})),
        autoencoder="latent",
        precomputed=precomputed,
        init_from="latent",
    )


def learning_words(recipe: Recipe, text: JointTransformerConfig, description: str, steps: int) -> Recipe:
    """The same latent model, but its text encoder is trained with it: what words mean it learns from captions alone."""
    system = recipe.system
    assert isinstance(system, LatentTraining)
    unet = dataclasses.replace(system.model.unet, context_width=text.width, pooled_width=text.width)
    model = dataclasses.replace(system.model, text=text, unet=unet)
    return dataclasses.replace(
        recipe,
        description=description,
        system=dataclasses.replace(system, model=model),
        training=dataclasses.replace(recipe.training, steps=steps),
    )


RECIPES["emoji-latent-joint"] = learning_words(
    RECIPES["emoji-64-latent"],
    JointTransformerConfig(network=TextTransformerConfig(vocabulary=4096, width=192, layers=4, heads=6, head_width=32)),
    "emoji-64-latent with a small transformer, trained along, in MiniLM's place: what frozen text is compared with",
    steps=4200,
)
