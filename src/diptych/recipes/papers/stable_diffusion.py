"""Stable Diffusion 1.x at full size, as its model cards and the config that came with it record it.

They were trained in turn: 237 k steps at 256 px, then 512 px for 194 k (v1-1) and 515 k (v1-2), and on from there for
195 k (v1-3) or 225 k (v1-4) with a tenth of the captions dropped. Ours is one run; to train in turns, train with
`data.size=256 system.model.size=256 system.diffusion.caption_dropout=0` first, and name that run as `system.init_from`.
"""

from __future__ import annotations

from diptych.data.dataset import DataConfig
from diptych.encoders.configs import ClipTextConfig
from diptych.models.latent_diffusion import LatentConfig
from diptych.recipes.papers.ldm import training
from diptych.training.experiment_config import LatentTraining, Recipe

RECIPES = {
    "sd1": Recipe(
        description="Stable Diffusion 1.x: 860 M U-Net over kl-f8 latents of 512-px images, frozen CLIP text",
        system=LatentTraining(model=LatentConfig(text=ClipTextConfig()), autoencoder="runs/kl-f8"),
        data=DataConfig(path="data/pictures", size=512),
        training=training(500_000, 2048, 1e-4, 10_000),
    ),
}
