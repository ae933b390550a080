"""Published models at full size, as their authors recorded them. Numbers in comments name the source."""

from __future__ import annotations

from diptych.conditioning.text import ClipTextConfig
from diptych.data.dataset import DataConfig
from diptych.latent import LatentConfig
from diptych.recipes import LatentTraining, Recipe
from diptych.training.config import TrainingConfig

RECIPES = {
    "sd1": Recipe(
        description="Stable Diffusion 1.x: 860 M U-Net over KL-f8 latents of 512-px pictures, frozen CLIP text",
        system=LatentTraining(model=LatentConfig(text=ClipTextConfig()), autoencoder="runs/kl-f8"),
        data=DataConfig(path="data/pictures", size=512),
        training=TrainingConfig(steps=500_000, batch_size=2048, learning_rate=1e-4, warmup=10_000, ema=0.9999),
    ),
}
