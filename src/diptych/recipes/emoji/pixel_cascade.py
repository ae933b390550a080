"""Our own cascade 32 -> 128 -> 512, trained on `diptych data emoji`: the default that is shipped, at CPU scale."""

from __future__ import annotations

from diptych.conditioning.lowres_augmentation import AugmentationConfig
from diptych.data.dataset import DataConfig
from diptych.diffusion.losses import ObjectiveConfig
from diptych.diffusion.schedules import ScheduleConfig
from diptych.diffusion.thresholding import ThresholdConfig
from diptych.encoders.configs import MiniLMConfig
from diptych.models.pixel_config import PixelDiffusionConfig
from diptych.networks.efficient_unet import EfficientUNetConfig
from diptych.networks.unet import UNetConfig
from diptych.recipes.emoji.latent import PROMPTS
from diptych.training.experiment_config import PixelTraining, Recipe
from diptych.training.tasks.diffusion import DiffusionTraining
from diptych.training.training_config import TrainingConfig

OBJECTIVE = ObjectiveConfig(weighting="truncated-snr")
"""Small networks predict the image: the noise that eps and v ask for as well has no structure to learn."""


def training(steps: int, batch_size: int, learning_rate: float) -> TrainingConfig:
    return TrainingConfig(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup=200,
        cooldown=0.3,
        ema=0.998,
        weight_decay=0.01,
        validate_every=500,
        sample_every=500,
        checkpoint_every=250,
    )


def enlarging(low_size: int, size: int) -> PixelTraining:
    """A super-resolution stage that reads pooled text and has no attention, so that it runs on any size of image."""
    network = EfficientUNetConfig(
        channels=32,
        multipliers=(1, 2, 2),
        blocks=(1, 1, 1),
        self_attention_levels=(),
        cross_attention_levels=(),
        pooled_width=384,
    )
    model = PixelDiffusionConfig(
        network=network,
        text=MiniLMConfig(),
        schedule=ScheduleConfig(kind="cosine"),
        prediction="x0",
        size=size,
        low_size=low_size,
        augmentation=AugmentationConfig(highest=0.6, level=0.1),
        steps=8,
        guidance=1.0,
        sampler="dpmpp-2m",
        threshold=ThresholdConfig(kind="static"),
    )
    return PixelTraining(model=model, diffusion=DiffusionTraining(objective=OBJECTIVE, save_dtype="bfloat16"))


def base(description: str, network: UNetConfig | EfficientUNetConfig) -> Recipe:
    """The first stage: 32 px from words."""
    model = PixelDiffusionConfig(
        network=network,
        text=MiniLMConfig(),
        schedule=ScheduleConfig(kind="cosine"),
        prediction="x0",
        size=32,
        low_size=None,
        steps=24,
        guidance=7.0,
        sampler="dpmpp-2m",
        threshold=ThresholdConfig(kind="static"),  # half of a drawing is white: a percentile says nothing
    )
    return Recipe(
        description=f"cascade stage 32: pixel diffusion from frozen MiniLM text, {description}",
        system=PixelTraining(
            model=model,
            diffusion=DiffusionTraining(objective=OBJECTIVE, prompts=PROMPTS, save_dtype="bfloat16"),
        ),
        data=DataConfig(path="data/emoji-64", size=32, in_memory=True),
        training=training(steps=6400, batch_size=64, learning_rate=1e-3),
    )


RECIPES = {
    "emoji-base": base(
        "plain U-Net",
        UNetConfig(
            in_channels=3,
            out_channels=3,
            channels=32,
            multipliers=(1, 2, 4, 4),
            blocks=1,
            attention_levels=(2, 3),
            heads=None,
            head_width=32,
            feed_forward=2,
            context_width=384,
            pooled_width=384,
            norm_groups=16,
        ),
    ),
    "emoji-base-efficient": base(
        "Efficient U-Net: the base of the cascade in the package",
        EfficientUNetConfig(
            concat_channels=0,
            channels=32,
            multipliers=(2, 3, 3),
            blocks=(2, 2, 2),
            self_attention_levels=(1, 2),
            cross_attention_levels=(1, 2),
            head_width=32,
            feed_forward=1,
            context_width=384,
            pooled_width=384,
            augmented=False,
        ),
    ),
    "emoji-sr-128": Recipe(
        description="cascade stage 32 -> 128: Efficient U-Net on 64-px crops, the CPU-trained cascade's second stage",
        system=enlarging(32, 128),
        data=DataConfig(path="data/emoji-512", size=128, crop=64, in_memory=True),
        training=training(steps=2000, batch_size=16, learning_rate=1e-3),
    ),
    "emoji-sr-512": Recipe(
        description="cascade stage 128 -> 512: Efficient U-Net on 64-px crops, the CPU-trained cascade's last stage",
        system=enlarging(128, 512),
        data=DataConfig(path="data/emoji-512", size=512, crop=64),
        training=training(steps=1200, batch_size=16, learning_rate=1e-3),
    ),
}
