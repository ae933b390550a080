"""Published models at full size, as their authors recorded them. Numbers in comments name the source."""

from __future__ import annotations

from diptych.conditioning.text import ClipTextConfig, JointTransformerConfig
from diptych.data.dataset import DataConfig
from diptych.diffusion.schedule import ScheduleConfig
from diptych.latent import LatentConfig
from diptych.networks.transformer import TextTransformerConfig
from diptych.networks.unet import UNetConfig
from diptych.recipes import LatentTraining, Recipe
from diptych.training.config import TrainingConfig
from diptych.training.first_stage import FirstStageConfig

RECIPES = {
    "kl-f8": Recipe(
        description="the autoencoder of Stable Diffusion 1.x at 256 px (L1 and KL terms)",
        system=FirstStageConfig(),
        data=DataConfig(path="data/pictures", size=256),
        training=TrainingConfig(steps=300_000, batch_size=12, learning_rate=5.4e-5, optimizer="adam", betas=(0.5, 0.9)),
    ),
    "sd1": Recipe(
        description="Stable Diffusion 1.x: 860 M U-Net over KL-f8 latents of 512-px pictures, frozen CLIP text",
        system=LatentTraining(model=LatentConfig(text=ClipTextConfig()), autoencoder="runs/kl-f8"),
        data=DataConfig(path="data/pictures", size=512),
        training=TrainingConfig(steps=500_000, batch_size=2048, learning_rate=1e-4, warmup=10_000, ema=0.9999),
    ),
    "ldm-text": Recipe(
        description="LDM's text-to-image model, 1.45 B: 32-layer transformer trained with the U-Net, 256 px",
        system=LatentTraining(
            model=LatentConfig(
                text=JointTransformerConfig(
                    network=TextTransformerConfig(vocabulary=30522, width=1280, layers=32, heads=8, head_width=64)
                ),
                unet=UNetConfig(context_width=1280),
                schedule=ScheduleConfig(beta_start=0.00085, beta_end=0.012),
                size=256,
                guidance=5.0,
            ),
            autoencoder="runs/kl-f8",
        ),
        data=DataConfig(path="data/pictures", size=256),
        training=TrainingConfig(steps=390_000, batch_size=680, learning_rate=1e-4, warmup=10_000, ema=0.9999),
    ),
}
