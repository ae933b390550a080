"""VQGANs with transformers over their codes on the emoji data: text, class-conditional, unconditional."""

from __future__ import annotations

import dataclasses
from typing import Any

from diptych.data.dataset import DataConfig
from diptych.data.emoji.icon_sources import SETS
from diptych.encoders.class_configs import ClassConfig
from diptych.encoders.configs import MiniLMConfig
from diptych.models.autoregressive_config import AutoregressiveConfig
from diptych.networks.code_transformer import CodeTransformerConfig
from diptych.recipes.emoji.latent import DATA_64, PROMPTS, SMALL_VQ
from diptych.training.experiment_config import AutoregressiveTraining, Recipe
from diptych.training.tasks.codes import CodesTraining
from diptych.training.training_config import TrainingConfig

SMALL_TRANSFORMER = CodeTransformerConfig(
    vocabulary=1024,
    length=64,
    width=192,
    layers=4,
    heads=4,
    dropout=0.1,
    classes=None,
    shared_start=False,
)
"""Small enough for two CPU cores."""
STYLES = ClassConfig(classes=len(SETS), null=len(SETS), names=tuple(one.caption_name for one in SETS))
"""A drawing's style is its class: what it shows has thousands of names, and too few drawings of each."""


def _recipe(
    name: str, conditioning: str, data: DataConfig, prompts: tuple[str, ...], *, steps: int = 8000, **model: Any
) -> Recipe:
    config = AutoregressiveConfig(**{"autoencoder": SMALL_VQ, "transformer": SMALL_TRANSFORMER, "size": 64, **model})
    return Recipe(
        description=f"VQ codes and an autoregressive transformer on 64-px emoji images, {conditioning}",
        system=AutoregressiveTraining(
            model=config,
            codes=CodesTraining(prompts=prompts, save_dtype="bfloat16"),
            autoencoder="runs/emoji-vq",
            precomputed=f"cache/{name}",
        ),
        data=data,
        training=TrainingConfig(
            steps=steps,
            batch_size=64,
            learning_rate=1e-3,
            warmup=200,
            cooldown=0.3,
            ema=0.998,
            weight_decay=0.05,
            validate_every=500,
            sample_every=500,
            checkpoint_every=250,
        ),
    )


RECIPES = {
    "emoji-codes": _recipe(
        "emoji-codes",
        "frozen MiniLM text in front",
        DATA_64,
        PROMPTS,
        text=MiniLMConfig(),
        transformer=dataclasses.replace(SMALL_TRANSFORMER, context_width=MiniLMConfig().width),
        guidance=3.0,
    ),
    "emoji-codes-class": _recipe(
        "emoji-codes-class",
        "conditioned on the style as a class",
        dataclasses.replace(DATA_64, kinds=("single",), caption_field="style"),
        tuple(one.caption_name for one in SETS for _ in range(2)),
        text=STYLES,
        transformer=dataclasses.replace(SMALL_TRANSFORMER, classes=STYLES.entries),
        steps=4000,
    ),
    "emoji-codes-free": _recipe(
        "emoji-codes-free",
        "unconditional",
        DATA_64,
        tuple(f"picture {number}" for number in range(16)),
        text=None,
        steps=4000,
    ),
}
