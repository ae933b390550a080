"""A tiny decoder for the default latent model: previews and quick images on a CPU."""

from __future__ import annotations

from diptych.networks.tiny_decoder import TinyDecoderConfig
from diptych.recipes.emoji.latent import DATA
from diptych.training.experiment_config import Recipe
from diptych.training.tasks.distillation import DistillationConfig
from diptych.training.training_config import TrainingConfig

RECIPES = {
    "emoji-tiny-decoder": Recipe(
        description="a tiny decoder after that of the default latent model: for previews, a tenth of the cost",
        system=DistillationConfig(
            network=TinyDecoderConfig(latent_channels=8, channels=(24, 40, 56), blocks=1, patch=2)
        ),
        data=DATA,
        training=TrainingConfig(
            steps=2000,
            batch_size=16,
            learning_rate=2e-3,
            warmup=50,
            schedule="cosine",
            ema=0.99,
            weight_decay=0.0,
            validate_every=250,
            sample_every=500,
            checkpoint_every=500,
        ),
    ),
}
