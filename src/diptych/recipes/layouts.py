"""Layout-to-image: boxes with class names (Rombach et al. 2022, section 4.3.1 and appendices D.3, E.2.1).

At full size: the model of OpenImages as its repository configures it, that of COCO as the paper's table 15 has it. Both
read 30 boxes with 16 layers of width 512 (table 17). At our size: the default, its words taken away, trained on with
the boxes of the scenes.
"""

from __future__ import annotations

import dataclasses

from diptych.data.box_layouts import LAYOUT_FIELD
from diptych.data.dataset import DataConfig
from diptych.diffusion.schedules import ScheduleConfig
from diptych.encoders.class_configs import LayoutConfig
from diptych.models.latent_diffusion import LatentConfig
from diptych.networks.transformer import TextTransformerConfig
from diptych.networks.unet import UNetConfig
from diptych.recipes.emoji.latent import DATA, LATENT_TRAINING, trained_on
from diptych.recipes.papers.first_stages import VQ_F4, VQ_F8
from diptych.recipes.papers.ldm import L1, TIMES
from diptych.recipes.papers.ldm import training as ldm_training
from diptych.training.experiment_config import LatentTraining, Recipe
from diptych.training.tasks.diffusion import DiffusionTraining
from diptych.training.training_config import TrainingConfig

BETAS = ScheduleConfig(beta_start=0.0015, beta_end=0.0205)
OPENIMAGES = UNetConfig(
    in_channels=3,
    out_channels=3,
    channels=128,
    multipliers=(1, 2, 3, 4),
    attention_levels=(1, 2, 3),
    depth=3,
    heads=None,
    head_width=32,
    context_width=512,
)
COCO = UNetConfig(
    channels=192,
    multipliers=(1, 2, 4),
    attention_levels=(0, 1, 2),
    depth=2,
    heads=None,
    head_width=32,
    context_width=512,
    dropout=0.1,
)
SMALL = LayoutConfig(
    network=TextTransformerConfig(vocabulary=2560, max_tokens=6, width=384, layers=2, heads=6),
    boxes=6,
    grid=16,
    shared=False,
    joined=True,
    padded=False,
)
"""As wide as the text embeddings of the default, whose U-Net reads it. A box is one token: our scenes are too few to
teach the transformer which corners belong to a class."""
SHOWN = (
    "dog face 0.05 0.3 0.5 0.75; house 0.5 0.3 0.95 0.75",
    "house 0.05 0.3 0.5 0.75; dog face 0.5 0.3 0.95 0.75",
    "rocket 0.3 0.03 0.7 0.45; evergreen tree 0.3 0.53 0.7 0.97",
    "evergreen tree 0.3 0.03 0.7 0.45; rocket 0.3 0.53 0.7 0.97",
    "cat face 0.05 0.05 0.45 0.45; cat face 0.55 0.05 0.95 0.45; cat face 0.3 0.55 0.7 0.95",
    "frog 0.2 0.4 0.8 0.95; crown 0.3 0.1 0.7 0.45",
    "sun 0.6 0.05 0.95 0.4; snowman 0.1 0.35 0.55 0.95",
    "pizza 0.05 0.05 0.95 0.95",
)
"""Layouts of the sample grid: pairs that change places, several of a kind, overlapping, large and small."""


def _published(
    description: str,
    first_stage: str,
    training: TrainingConfig,
    model: LatentConfig,
    diffusion: DiffusionTraining,
) -> Recipe:
    return Recipe(
        description=f"{description}, over {first_stage} latents of 256-px images (Rombach et al. 2022)",
        system=LatentTraining(model=model, diffusion=diffusion, autoencoder=f"runs/{first_stage}"),
        data=DataConfig(path="data/layouts", size=256, caption_field=LAYOUT_FIELD),
        training=training,
    )


def _paper(autoencoder, unet: UNetConfig) -> LatentConfig:
    return LatentConfig(
        autoencoder=autoencoder,
        unet=unet,
        text=LayoutConfig(),
        schedule=BETAS,
        times=TIMES,
        latent_scale=1.0,
        size=256,
        steps=200,
        guidance=1.0,
    )


def _small() -> Recipe:
    return Recipe(
        description="emoji images from boxes and names: the default latent model, trained on with layouts for words",
        system=trained_on(diffusion={"prompts": SHOWN}, precomputed="cache/emoji-layout", text=SMALL, guidance=4.0),
        data=dataclasses.replace(DATA, styles=("noto",), caption_field=LAYOUT_FIELD),  # three scenes to one drawing
        training=dataclasses.replace(
            LATENT_TRAINING,
            steps=1600,
            batch_size=32,
            learning_rate=6e-4,
            warmup=50,
            cooldown=0.4,
            ema=0.99,
            validate_every=200,
            sample_every=200,
            checkpoint_every=100,
        ),
    )


RECIPES = {
    "emoji-layout": _small(),
    "ldm-layout-openimages": _published(
        "LDM of OpenImages from layouts, 246 M U-Net, 55 M transformer trained with it",
        "vq-f4",
        ldm_training(4_400_000, 24, 4.8e-5),
        _paper(VQ_F4, OPENIMAGES),
        DiffusionTraining(objective=L1, caption_dropout=0.0),
    ),
    "ldm-layout-coco": _published(
        "LDM of COCO from layouts, 312 M U-Net, 55 M transformer trained with it",
        "vq-f8",
        ldm_training(170_000, 48, 4.8e-5),
        _paper(VQ_F8, COCO),
        DiffusionTraining(objective=L1, caption_dropout=0.0),
    ),
}
