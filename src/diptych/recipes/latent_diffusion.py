"""latent-diffusion's own models at full size: configs as in its repository, training as in the paper's appendix E."""

from __future__ import annotations

from typing import Any

from diptych.conditioning.classes import ClassConfig
from diptych.conditioning.text import JointTransformerConfig
from diptych.data.dataset import DataConfig
from diptych.diffusion.schedule import ScheduleConfig, TimesConfig
from diptych.latent import LatentConfig
from diptych.networks.adm import AdmUNetConfig
from diptych.networks.transformer import TextTransformerConfig
from diptych.networks.unet import UNetConfig
from diptych.recipes import LatentTraining, Recipe
from diptych.recipes.first_stages import KL_F8, VQ_F4, VQ_F8
from diptych.training.config import TrainingConfig

BETAS = ScheduleConfig(beta_start=0.0015, beta_end=0.0195)
TIMES = TimesConfig(spacing="published", offset=1, final="first")
HEADS_OF_32: dict[str, Any] = {"heads": None, "head_width": 32}
PLAIN = AdmUNetConfig(
    **HEADS_OF_32,
    in_channels=3,
    out_channels=3,
    channels=224,
    multipliers=(1, 2, 3, 4),
    attention_levels=(1, 2, 3),
    scale_shift=False,
    residual_resampling=False,
)
CHURCHES = AdmUNetConfig(
    in_channels=4,
    out_channels=4,
    channels=192,
    multipliers=(1, 2, 2, 4, 4),
    attention_levels=(0, 1, 2, 3),
    heads=8,
    head_width=None,
)
CLASSES = UNetConfig(
    in_channels=3,
    out_channels=3,
    channels=192,
    multipliers=(1, 2, 3, 5),
    attention_levels=(1, 2, 3),
    heads=1,
    context_width=512,
    classes=1001,
)
CLASSES_VQ_F8 = UNetConfig(
    **HEADS_OF_32, channels=256, multipliers=(1, 2, 4), attention_levels=(0, 1, 2), context_width=512, classes=1000
)


def text(width: int) -> JointTransformerConfig:
    """The text transformer, over BERT's vocabulary."""
    shape = TextTransformerConfig(vocabulary=30_522, width=width, layers=32, heads=8, head_width=64)
    return JointTransformerConfig(network=shape, padded=True)


def _recipe(description: str, first_stage: str, training: TrainingConfig, **model: Any) -> Recipe:
    config = LatentConfig(**{"times": TIMES, "schedule": BETAS, "size": 256, "steps": 200, "guidance": 1.0, **model})
    return Recipe(
        description=f"{description}, over {first_stage} latents of 256-px pictures",
        system=LatentTraining(model=config, autoencoder=f"runs/{first_stage}"),
        data=DataConfig(path="data/pictures", size=256),
        training=training,
    )


def _training(steps: int, batch_size: int, learning_rate: float, warmup: int = 0) -> TrainingConfig:
    return TrainingConfig(steps=steps, batch_size=batch_size, learning_rate=learning_rate, warmup=warmup, ema=0.9999)


RECIPES = {
    "ldm-text": _recipe(
        "LDM's text-to-image model, 1.45 B: 32-layer transformer trained with the U-Net",
        "kl-f8",
        _training(390_000, 680, 1e-4, 10_000),
        autoencoder=KL_F8,
        text=text(1280),
        unet=UNetConfig(context_width=1280),
        schedule=ScheduleConfig(beta_start=0.00085, beta_end=0.012),
        steps=50,
        guidance=5.0,
    ),
    "ldm-cin256": _recipe(
        "LDM on ImageNet's classes, 401 M U-Net, a null class beside the 1,000",
        "vq-f4",
        _training(178_000, 1200, 1e-4),
        autoencoder=VQ_F4,
        text=ClassConfig(classes=1000, null=1000),
        unet=CLASSES,
        steps=50,
        guidance=3.0,
    ),
    "ldm-cin256-vq-f8": _recipe(
        "LDM on ImageNet's classes, 395 M U-Net",
        "vq-f8",
        _training(391_000, 64, 6.4e-5),
        autoencoder=VQ_F8,
        text=ClassConfig(classes=1000),
        unet=CLASSES_VQ_F8,
    ),
    "ldm-celebahq": _recipe(
        "LDM of faces (CelebA-HQ), 274 M U-Net, told nothing",
        "vq-f4",
        _training(410_000, 48, 9.6e-5),
        autoencoder=VQ_F4,
        text=None,
        unet=PLAIN,
    ),
    "ldm-ffhq": _recipe(
        "LDM of faces (FFHQ), 274 M U-Net, told nothing",
        "vq-f4",
        _training(635_000, 42, 8.4e-5),
        autoencoder=VQ_F4,
        text=None,
        unet=PLAIN,
    ),
    "ldm-bedrooms": _recipe(
        "LDM of LSUN's bedrooms, 274 M U-Net, told nothing",
        "vq-f4",
        _training(1_900_000, 48, 9.6e-5),
        autoencoder=VQ_F4,
        text=None,
        unet=PLAIN,
    ),
    "ldm-churches": _recipe(
        "LDM of LSUN's churches, 295 M U-Net, told nothing",
        "kl-f8",
        _training(500_000, 96, 5e-5),
        autoencoder=KL_F8,
        text=None,
        unet=CHURCHES,
        schedule=ScheduleConfig(beta_start=0.0015, beta_end=0.0155),
    ),
}
