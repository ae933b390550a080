"""Pixel diffusion as its papers describe it: Imagen's three stages, SR3 and DDPM, at full size.

Where the Imagen paper gives no number, the comment names who does, or says that it is a choice. Published counts are in
round numbers; `diptych info` prints ours.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from diptych.conditioning.degradations import DegradationConfig
from diptych.conditioning.low_resolution import AugmentationConfig
from diptych.conditioning.text import T5Config
from diptych.data.dataset import DataConfig
from diptych.diffusion.guidance import ThresholdConfig
from diptych.diffusion.schedule import ScheduleConfig
from diptych.networks.efficient_unet import EfficientUNetConfig
from diptych.networks.unet import UNetConfig
from diptych.recipes import Recipe, StageTraining
from diptych.stage_config import StageConfig
from diptych.training.config import TrainingConfig
from diptych.training.diffusion import DiffusionTraining

WIDTH = 4096
"""Of T5-XXL's tokens, and of their mean, the pooled text."""

DYNAMIC = ThresholdConfig(kind="dynamic", percentile=0.95)  # as imagen-pytorch and DeepFloyd IF; NeMo takes .995

LINEAR = ScheduleConfig(kind="linear", beta_start=1e-4, beta_end=0.02)  # DDPM, section 4


def t5_xxl() -> T5Config:
    return T5Config(width=WIDTH, max_tokens=256)  # imagen-pytorch; NeMo and JAX-Toolbox stop at 128


def training(
    steps: int, batch_size: int, learning_rate: float, warmup: int, optimizer: Literal["adam", "adafactor"] = "adam"
) -> TrainingConfig:
    return TrainingConfig(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup=warmup,
        optimizer=optimizer,
        betas=(0.9, 0.999),
        weight_decay=0.0,
        ema=0.9999,
    )


IMAGEN = training(2_500_000, 2048, 1e-4, 10_000)
"""All three stages, but for the optimizer: Adafactor was found to hurt the super-resolution ones (section 4.1)."""


def imagen_stage(network: EfficientUNetConfig, schedule: ScheduleConfig, low_size: int) -> StageTraining:
    """A super-resolution stage; 128 steps are a choice, guidance 8 is that of the paper's FID table."""
    model = StageConfig(
        network=network,
        text=t5_xxl(),
        schedule=schedule,
        size=4 * low_size,
        low_size=low_size,
        augmentation=AugmentationConfig(where="low"),  # the pictures are noised, then enlarged
        steps=128,
        guidance=8.0,
        threshold=DYNAMIC,
    )
    return StageTraining(model=model, diffusion=DiffusionTraining(caption_dropout=0.1))


RECIPES = {
    "imagen-base": Recipe(
        description="Imagen's base stage: 64 px from frozen T5-XXL text, 2.4 B U-Net (Saharia et al. 2022)",
        system=StageTraining(
            model=StageConfig(
                network=UNetConfig(
                    in_channels=3,
                    out_channels=3,
                    channels=512,
                    multipliers=(1, 2, 3, 4),
                    blocks=3,
                    attention_levels=(1, 2, 3),  # 32, 16 and 8 px
                    feed_forward=0,  # 2.40 B, "2B" in the paper; 3.09 B with feed-forward layers
                    heads=None,
                    head_width=64,
                    context_width=WIDTH,
                    pooled_width=WIDTH,
                    context_norm=True,
                ),
                text=t5_xxl(),
                schedule=ScheduleConfig(kind="cosine"),
                size=64,
                low_size=None,
                steps=256,  # a choice
                guidance=1.35,  # lowest FID; 7 and more for pictures to look at
                threshold=DYNAMIC,
            ),
            diffusion=DiffusionTraining(caption_dropout=0.1),
        ),
        data=DataConfig(path="data/pictures", size=64),
        training=dataclasses.replace(IMAGEN, optimizer="adafactor"),
    ),
    "imagen-sr-256": Recipe(
        description="Imagen's stage 64 -> 256: 592 M Efficient U-Net, frozen T5-XXL text (Saharia et al. 2022)",
        system=imagen_stage(
            EfficientUNetConfig(context_width=WIDTH, pooled_width=WIDTH),  # 591.5 M, "600M" in the paper
            ScheduleConfig(kind="cosine"),
            low_size=64,
        ),
        data=DataConfig(path="data/pictures", size=256),
        training=IMAGEN,
    ),
    "imagen-sr-1024": Recipe(
        description="Imagen's stage 256 -> 1024: 443 M Efficient U-Net on 256-px crops (Saharia et al. 2022)",
        # The paper says "400M" for the shape that is "600M" above, without self-attention, whose parameters are too few
        # to make the difference. With one skip a level, as JAX-Toolbox builds its own (1,2,4,6,6; 2,4,8,8,8; cross-
        # attention alone), and no feed-forward layer, that shape has 443 M; with a skip a block it has 558 M.
        system=imagen_stage(
            EfficientUNetConfig(
                context_width=WIDTH, pooled_width=WIDTH, skips="level", self_attention_levels=(), feed_forward=0
            ),
            LINEAR,
            low_size=256,
        ),
        data=DataConfig(path="data/pictures", size=1024, crop=256),
        training=IMAGEN,
    ),
    "sr3": Recipe(
        description="SR3: faces 16 -> 128 without text, 541 M U-Net (Saharia et al. 2021)",
        system=StageTraining(
            model=StageConfig(
                network=UNetConfig(  # the paper's table of architectures, "550M"; the well-known reimplementation in
                    in_channels=3,  # PyTorch is smaller: channels=64 blocks=2, 103 M
                    concat_channels=3,
                    out_channels=3,
                    channels=128,
                    multipliers=(1, 2, 4, 8, 8),
                    blocks=3,
                    attention_levels=(3,),  # 16 px
                    feed_forward=0,
                    heads=1,
                    context_width=None,
                    dropout=0.2,
                ),
                text=None,
                # The reimplementation's table of 2000 steps; the paper draws its noise levels between such steps.
                schedule=ScheduleConfig(kind="linear", steps=2000, beta_start=1e-6, beta_end=0.01),
                size=128,
                low_size=16,
                degradation=DegradationConfig(),
                augmentation=AugmentationConfig(kind="none", upsample="bicubic"),
                steps=100,
                threshold=ThresholdConfig(kind="static"),
            ),
        ),
        data=DataConfig(path="data/pictures", size=128),
        training=training(1_000_000, 256, 1e-4, 10_000),
    ),
    "ddpm": Recipe(
        description="DDPM: 32-px pictures from noise alone, 36.5 M U-Net as for CIFAR-10 (Ho et al. 2020)",
        system=StageTraining(
            model=StageConfig(
                network=UNetConfig(  # appendix B, "35.7 million"; each attention there has two projections less
                    in_channels=3,
                    out_channels=3,
                    channels=128,
                    multipliers=(1, 2, 2, 2),
                    blocks=2,
                    attention_levels=(1,),  # 16 px
                    feed_forward=0,
                    heads=1,
                    context_width=None,
                    dropout=0.1,
                ),
                text=None,
                schedule=LINEAR,
                size=32,
                low_size=None,
                steps=1000,
                threshold=ThresholdConfig(kind="static"),
            ),
        ),
        data=DataConfig(path="data/pictures", size=32),
        training=training(800_000, 128, 2e-4, 5000),
    ),
}
