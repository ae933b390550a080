"""Our own models, trained on `diptych data emoji`: the defaults that are shipped, at CPU scale and at GPU scale."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from diptych.conditioning.text import JointTransformerConfig, MiniLMConfig
from diptych.data.dataset import DataConfig
from diptych.diffusion.objective import ObjectiveConfig
from diptych.diffusion.schedule import ScheduleConfig
from diptych.evaluation.judge import JudgeConfig
from diptych.evaluation.judge_training import ContrastConfig
from diptych.latent import LatentConfig
from diptych.networks.autoencoder import AutoencoderConfig
from diptych.networks.transformer import TextTransformerConfig
from diptych.networks.unet import UNetConfig
from diptych.recipes import LatentTraining, Recipe
from diptych.training.config import TrainingConfig
from diptych.training.diffusion import DiffusionTraining
from diptych.training.first_stage import FirstStageConfig

DATA_64 = DataConfig(path="data/emoji-64", size=64, in_memory=True)

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

RECIPES = {
    "emoji-autoencoder": Recipe(
        description="KL autoencoder, factor 8, 64-px emoji pictures: first stage of the CPU-trained default",
        system=FirstStageConfig(network=SMALL_AUTOENCODER, l2=1.0, kl=2e-3, save_dtype="bfloat16"),
        data=DATA_64,
        training=TrainingConfig(
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
        ),
    ),
    "emoji-latent": Recipe(
        description="latent diffusion on 64-px emoji pictures, frozen MiniLM text: the CPU-trained default",
        system=LatentTraining(
            model=LatentConfig(
                autoencoder=SMALL_AUTOENCODER,
                text=MiniLMConfig(),
                unet=UNetConfig(
                    in_channels=8,
                    out_channels=8,
                    channels=96,
                    multipliers=(1, 2),
                    blocks=1,
                    attention_levels=(0, 1),
                    heads=None,
                    head_width=32,
                    context_width=384,
                    pooled_width=384,
                ),
                schedule=ScheduleConfig(kind="flow"),
                prediction="flow",
                size=64,
                steps=24,
                guidance=7.0,
                sampler="dpmpp-2m",
            ),
            diffusion=DiffusionTraining(
                objective=ObjectiveConfig(times="logit-normal"), prompts=PROMPTS, save_dtype="bfloat16"
            ),
            autoencoder="runs/emoji-autoencoder",
            precomputed="cache/emoji-latent",
        ),
        data=DATA_64,
        training=TrainingConfig(
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
        ),
    ),
    "judge": Recipe(
        description="the judge: pictures and words in one space, trained apart from every generator",
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
        initial="latent",
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
    RECIPES["emoji-latent"],
    JointTransformerConfig(network=TextTransformerConfig(vocabulary=4096, width=192, layers=4, heads=6, head_width=32)),
    "emoji-latent with a small transformer, trained along, in MiniLM's place: what frozen text is compared with",
    steps=4200,
)
