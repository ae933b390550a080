"""Models that enlarge images: ours over the shipped first stage and over pixels, and LDM's at full size."""

from __future__ import annotations

from typing import Any

from diptych.conditioning.concat_config import DegradationConfig, LowResConcat
from diptych.conditioning.lowres_augmentation import AugmentationConfig
from diptych.data.dataset import DataConfig
from diptych.diffusion.schedules import ScheduleConfig
from diptych.diffusion.thresholding import ThresholdConfig
from diptych.models.latent_diffusion import LatentConfig
from diptych.models.pixel_config import PixelDiffusionConfig
from diptych.networks.adm import AdmUNetConfig
from diptych.networks.efficient_unet import EfficientUNetConfig
from diptych.recipes.emoji.latent import DATA, SMALL_AUTOENCODER, trained_on
from diptych.recipes.emoji.pixel_cascade import OBJECTIVE
from diptych.recipes.papers.first_stages import VQ_F4
from diptych.recipes.papers.ldm import TIMES
from diptych.recipes.papers.ldm import training as ldm_training
from diptych.training.experiment_config import LatentTraining, PixelTraining, Recipe
from diptych.training.tasks.diffusion import DiffusionTraining
from diptych.training.training_config import TrainingConfig

LIGHT = DegradationConfig(kind="bsr-light")


def training(steps: int, batch_size: int, learning_rate: float) -> TrainingConfig:
    """Of our own: minutes on a CPU."""
    return TrainingConfig(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup=50,
        cooldown=0.3,
        ema=0.99,
        weight_decay=0.01,
        validate_every=200,
        sample_every=200,
        checkpoint_every=100,
    )


def enlarging(degradation: DegradationConfig) -> LatentTraining:
    """The default's first stage and U-Net, initialised from its weights, without cross-attention."""
    low = LowResConcat(factor=4, degradation=degradation, with_latent=True)
    unet = {"concat_channels": low.channels(SMALL_AUTOENCODER), "context_width": None, "pooled_width": None}
    return trained_on(unet=unet, diffusion={"prompts": ()}, concat=low, text=None, guidance=1.0)


def over_pixels(degradation: DegradationConfig) -> PixelTraining:
    """The same task without a first stage, as SR3 does it: a cascade stage without text."""
    network: dict[str, Any] = {"self_attention_levels": (), "cross_attention_levels": (), "augmented": False}
    model = PixelDiffusionConfig(
        network=EfficientUNetConfig(channels=32, multipliers=(1, 2, 3), blocks=(1, 2, 2), **network),
        schedule=ScheduleConfig(kind="cosine"),
        prediction="x0",
        size=128,
        low_size=32,
        degradation=degradation,
        augmentation=AugmentationConfig(kind="none", upsample="bicubic"),
        steps=24,
        sampler="dpmpp-2m",
        threshold=ThresholdConfig(kind="static"),
    )
    return PixelTraining(model=model, diffusion=DiffusionTraining(objective=OBJECTIVE, save_dtype="bfloat16"))


def _published(degradation: DegradationConfig, description: str) -> Recipe:
    """LDM-SR of table 15, and LDM-BSR of the repository, which differs in how images are made small. Both read random
    squares of half to all of the shorter side."""
    network = AdmUNetConfig(
        in_channels=3,
        concat_channels=3,
        out_channels=3,
        channels=160,
        multipliers=(1, 2, 2, 4),
        attention_levels=(3,),
        heads=None,
        head_width=32,
        scale_shift=False,
        residual_resampling=False,
    )
    model = LatentConfig(
        autoencoder=VQ_F4,
        unet=network,
        concat=LowResConcat(factor=4, degradation=degradation),
        text=None,
        schedule=ScheduleConfig(beta_start=0.0015, beta_end=0.0155),
        times=TIMES,
        latent_scale=1.0,
        size=256,
        steps=100,
        guidance=1.0,
    )
    return Recipe(
        description=f"{description}, 114 M U-Net over vq-f4 latents (Rombach et al. 2022)",
        system=LatentTraining(model=model, diffusion=DiffusionTraining(caption_dropout=0.0), autoencoder="runs/vq-f4"),
        data=DataConfig(path="data/pictures", size=256, max_size=512, crop=256),
        training=ldm_training(860_000, 64, 6.4e-5),
    )


RECIPES = {
    "emoji-super-resolution": Recipe(
        description="LDM that enlarges 32 -> 128 px, over the shipped first stage, from the shipped U-Net; bicubic",
        system=enlarging(DegradationConfig()),
        data=DATA,
        training=training(steps=1600, batch_size=32, learning_rate=6e-4),
    ),
    "emoji-super-resolution-bsr": Recipe(
        description="emoji-super-resolution for images that are blurred, noisy or JPEG: BSRGAN's chain, milder",
        system=enlarging(LIGHT),
        data=DATA,
        training=training(steps=480, batch_size=32, learning_rate=5e-4),
    ),
    "emoji-super-resolution-pixels": Recipe(
        description="emoji-super-resolution without a first stage: Efficient U-Net over 128-px images, as SR3",
        system=over_pixels(DegradationConfig()),
        data=DATA,
        training=training(steps=600, batch_size=16, learning_rate=1e-3),
    ),
    "ldm-sr": _published(DegradationConfig(), "LDM-SR: ImageNet 64 -> 256 px, bicubic"),
    "ldm-sr-bsr": _published(LIGHT, "LDM-BSR: 64 -> 256 px, BSRGAN's chain"),
}
