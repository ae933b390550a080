"""OpenAI's guided-diffusion at full size (ADM: Dhariwal & Nichol 2021, appendix I): ImageNet by class, enlarged; LSUN.

The captions of the data are classes, by number. Classifiers are recipes of guides.py.
"""

from __future__ import annotations

import dataclasses

from diptych.data.dataset import DataConfig
from diptych.networks.adm import AdmUNetConfig
from diptych.pretrained.guided_diffusion import PUBLISHED, Shape, adm_stage
from diptych.training.experiment_config import PixelTraining, Recipe
from diptych.training.tasks.diffusion import DiffusionTraining
from diptych.training.training_config import TrainingConfig

CLASSES = 1000
SMALL: Shape = (3, 192, (1, 2, 3, 4), (1, 2, 3))
MIDDLE: Shape = (3, 256, (1, 1, 2, 3, 4), (2, 3, 4))
LARGE: Shape = (3, 256, (1, 1, 2, 2, 4, 4), (3, 4, 5))
LARGEST: Shape = (3, 256, (0.5, 1, 1, 2, 2, 4, 4), (4, 5, 6))
ENLARGING: Shape = (6, 192, (1, 1, 2, 2, 4, 4), (3, 4, 5))
ENLARGING_MORE: Shape = (6, 192, (1, 1, 2, 2, 4, 4), (4, 5))


def recipe(
    description: str,
    shape: Shape,
    steps: int,
    *,
    classes: int | None = CLASSES,
    data: str = "data/imagenet",
    blocks: int = 2,
    dropout: float = 0.0,
    batch_size: int = 256,
    learning_rate: float = 1e-4,
    sampling_steps: int | None = None,
) -> Recipe:
    """A published U-Net and how it was trained: PyTorch's AdamW without decay, images mirrored at random."""
    inputs, channels, multipliers, attention = shape
    facts = PUBLISHED[shape]
    network = AdmUNetConfig(
        concat_channels=inputs - 3,
        channels=channels,
        multipliers=multipliers,
        blocks=blocks,
        attention_levels=attention,
        heads=facts.heads,
        head_width=facts.head_width,
        classes=classes,
        dropout=dropout,
    )
    model = adm_stage(network, facts)
    if sampling_steps is not None:
        model = dataclasses.replace(model, steps=sampling_steps)
    prompts = ("207", "88", "933", "980") if classes else ("1", "2", "3", "4")  # golden retriever, macaw, ...
    return Recipe(
        description=f"{description} (Dhariwal & Nichol 2021)",
        system=PixelTraining(model=model, diffusion=DiffusionTraining(caption_dropout=0.0, prompts=prompts)),
        data=DataConfig(path=data, size=model.size, flip=0.5),
        training=TrainingConfig(
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            warmup=0,
            betas=(0.9, 0.999),
            weight_decay=0.0,
            clip=0.0,
            ema=0.9999,
        ),
    )


RECIPES = {
    "adm-64": recipe(
        "ADM: 64-px ImageNet by class, 296 M U-Net",
        SMALL,
        540_000,
        blocks=3,
        dropout=0.1,
        batch_size=2048,
        learning_rate=3e-4,
    ),
    "adm-128": recipe("ADM: 128-px ImageNet by class, 422 M U-Net", MIDDLE, 4_360_000),
    "adm-256": recipe("ADM: 256-px ImageNet by class, 554 M U-Net", LARGE, 1_980_000),
    "adm-256-unconditional": recipe("ADM: 256-px ImageNet, 553 M U-Net", LARGE, 1_980_000, classes=None),
    "adm-bedrooms": recipe(  # half as many training steps sufficed for LSUN's cats and horses
        "ADM: 256-px bedrooms (LSUN), 553 M U-Net",
        LARGE,
        500_000,
        classes=None,
        data="data/bedrooms",
        dropout=0.1,
        sampling_steps=1000,
    ),
    "adm-512": recipe("ADM: 512-px ImageNet by class, 559 M U-Net", LARGEST, 1_940_000),
    "adm-64-256": recipe("ADM's upsampler 64 -> 256, by class, 312 M U-Net", ENLARGING, 500_000),
    "adm-128-512": recipe("ADM's upsampler 128 -> 512, by class, 309 M U-Net", ENLARGING_MORE, 1_050_000),
}
