"""Pixel diffusion as its papers describe it: Imagen's three stages, SR3 for faces and ImageNet, and DDPM, at full size.

Imagen's are those of its appendix F. Where a paper gives no number, the comment names who does, or says that it is a
choice. Published counts are in round numbers; `diptych info` prints ours.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from diptych.conditioning.concat_config import DegradationConfig
from diptych.conditioning.lowres_augmentation import AugmentationConfig
from diptych.data.dataset import DataConfig
from diptych.diffusion.losses import ObjectiveConfig
from diptych.diffusion.schedules import ScheduleConfig
from diptych.diffusion.thresholding import ThresholdConfig
from diptych.encoders.configs import T5Config
from diptych.models.pixel_config import PixelDiffusionConfig
from diptych.networks.adm_config import AdmUNetConfig
from diptych.networks.efficient_unet import EfficientUNetConfig
from diptych.networks.unet import UNetConfig
from diptych.training.experiment_config import PixelTraining, Recipe
from diptych.training.tasks.diffusion import DiffusionTraining
from diptych.training.training_config import TrainingConfig

WIDTH = 4096
"""Of T5-XXL's tokens."""

DYNAMIC = ThresholdConfig(kind="dynamic", percentile=0.995)
"""Figure A.10; NeMo as well. imagen-pytorch and DeepFloyd IF take .95."""

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


IMAGEN = dataclasses.replace(training(2_500_000, 2048, 1e-4, 10_000), schedule="cosine")
"""All three stages, but for the optimizer: Adafactor was found to hurt the super-resolution ones (section 4.1).

The cosine is that of the code in appendix F, which ends with the last step; its end value, printed as 2500000, is read
as 0. The average of .9999 and the gradient norm of 1 are NeMo's.
"""


def efficient(**changes: Any) -> EfficientUNetConfig:
    """The super-resolution network of F.2 and F.3. Left open there, and so a choice: 64 heads pool the text as in
    DeepFloyd IF, and words are attended to as wide as the image itself (figure A.28 draws self-attention alone)."""
    network = EfficientUNetConfig(
        context_width=WIDTH,
        text_pooling_heads=64,
        heads=8,
        attention_width=2,  # figure A.28
        feed_forward=0,  # none in figures A.28 and A.29
        scale_shift=True,
        skip_conv=True,  # figure A.27
        skips="level",  # figure A.29: one from each block of the figure, which is a level
    )
    return dataclasses.replace(network, **changes)


def imagen_stage(network: EfficientUNetConfig, schedule: ScheduleConfig, low_size: int) -> PixelTraining:
    """A super-resolution stage; 128 steps are a choice, guidance 8 is that of the paper's FID table."""
    model = PixelDiffusionConfig(
        network=network,
        text=t5_xxl(),
        schedule=schedule,
        size=4 * low_size,
        low_size=low_size,
        augmentation=AugmentationConfig(where="low"),  # the images are noised, then enlarged
        steps=128,
        guidance=8.0,
        threshold=DYNAMIC,
    )
    return PixelTraining(model=model, diffusion=DiffusionTraining(caption_dropout=0.1))


def sr3(network: AdmUNetConfig, low_size: int, size: int, augmentation: AugmentationConfig) -> PixelTraining:
    """SR3 (section 2): conditioned on gamma, continuous between 2000 steps; L1; the larger variance."""
    model = PixelDiffusionConfig(
        network=network,
        text=None,
        # The well-known reimplementation's betas; the paper gives none.
        schedule=ScheduleConfig(
            kind="linear", steps=2000, beta_start=1e-6, beta_end=0.01, continuous=True, conditioning="gamma"
        ),
        size=size,
        low_size=low_size,
        degradation=DegradationConfig(),
        augmentation=augmentation,
        steps=100,
        variance="fixed-large",  # section 2.3: 1 - alpha_t
        threshold=ThresholdConfig(kind="static"),
    )
    # Table 5: L1 11.3, L2 11.8 in FID.
    return PixelTraining(
        model=model, diffusion=DiffusionTraining(objective=ObjectiveConfig(loss="l1"), caption_dropout=0.0)
    )


def sr3_network(multipliers: tuple[int, ...], attention: int, dropout: float) -> AdmUNetConfig:
    """BigGAN's residual blocks, and skips around them scaled by 1 / sqrt 2 (section 2.4, table A.1)."""
    return AdmUNetConfig(
        concat_channels=3,
        out_channels=3,
        channels=128,
        multipliers=multipliers,
        blocks=3,
        attention_levels=(attention,),  # 16 px
        heads=1,
        head_width=None,
        scale_shift=False,
        residual_scale=2**-0.5,
        dropout=dropout,
    )


RECIPES = {
    "imagen-base": Recipe(
        description="Imagen's base stage: 64 px from frozen T5-XXL text, 2.3 B U-Net (Saharia et al. 2022)",
        system=PixelTraining(
            model=PixelDiffusionConfig(
                # F.1, D.3.1: ADM's U-Net, whose attention reads text along. "2B" in the paper, which leaves open to
                # what the tokens are projected: 2.31 B with NeMo's width of 2048, 2.44 B without a projection. Its two
                # parts that follow from no field, attention pooling over 4096 wide tokens and BigGAN's resampling,
                # come to 59 M and 133 M.
                network=AdmUNetConfig(
                    out_channels=3,
                    channels=512,
                    multipliers=(1, 2, 3, 4),
                    blocks=3,
                    attention_levels=(1, 2, 3),  # 32, 16 and 8 px
                    head_width=64,
                    context_width=WIDTH,
                    context_projection=2048,
                    context_norm_kind="layer",  # section 2.5
                    text_pooling_heads=64,
                ),
                text=t5_xxl(),
                schedule=ScheduleConfig(kind="cosine"),
                size=64,
                low_size=None,
                steps=256,  # a choice
                guidance=1.35,  # lowest FID; 7 and more for images to look at
                threshold=DYNAMIC,
            ),
            diffusion=DiffusionTraining(caption_dropout=0.1),
        ),
        data=DataConfig(path="data/pictures", size=64),
        training=dataclasses.replace(IMAGEN, optimizer="adafactor"),
    ),
    "imagen-sr-256": Recipe(
        description="Imagen's stage 64 -> 256: 566 M Efficient U-Net, frozen T5-XXL text (Saharia et al. 2022)",
        # "600M" in the paper; with a skip a block 671 M.
        system=imagen_stage(efficient(), ScheduleConfig(kind="cosine"), low_size=64),
        data=DataConfig(path="data/pictures", size=256),
        training=IMAGEN,
    ),
    "imagen-sr-1024": Recipe(
        description="Imagen's stage 256 -> 1024: 550 M Efficient U-Net on 256-px crops (Saharia et al. 2022)",
        # The paper says "400M" for the shape that is "600M" above, without self-attention: that has 17 M, too few to
        # make the difference, which the paper does not explain.
        system=imagen_stage(
            efficient(self_attention_levels=()), dataclasses.replace(LINEAR, continuous=True), low_size=256
        ),
        data=DataConfig(path="data/pictures", size=1024, crop=256),
        training=IMAGEN,
    ),
    "sr3": Recipe(
        description="SR3: faces 16 -> 128 without text, 561 M U-Net (Saharia et al. 2021)",
        # "550M"; the well-known reimplementation in PyTorch is smaller: channels=64 blocks=2.
        system=sr3(
            sr3_network((1, 2, 4, 8, 8), attention=3, dropout=0.2),
            16,
            128,
            AugmentationConfig(kind="none", upsample="bicubic"),
        ),
        data=DataConfig(path="data/pictures", size=128),
        training=training(1_000_000, 256, 1e-4, 10_000),
    ),
    "sr3-imagenet": Recipe(
        description="SR3: ImageNet 64 -> 256 without text, 617 M U-Net, blur augmentation (Saharia et al. 2021)",
        # "625M". Blurred at random in training for cascades; the paper gives no strength: up to that of "Cascaded
        # Diffusion Models", 0.6 pixels of the small image, and none at sampling. It is no input of the network.
        system=sr3(
            sr3_network((1, 2, 4, 4, 8, 8), attention=4, dropout=0.0),
            64,
            256,
            AugmentationConfig(kind="blur", where="low", upsample="bicubic", blur=0.6, level=0.0),
        ),
        data=DataConfig(path="data/imagenet", size=256),
        training=training(1_000_000, 256, 1e-4, 10_000),
    ),
    "ddpm": Recipe(
        description="DDPM: 32-px images from noise alone, 36.5 M U-Net as for CIFAR-10 (Ho et al. 2020)",
        system=PixelTraining(
            model=PixelDiffusionConfig(
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
            diffusion=DiffusionTraining(caption_dropout=0.0),
        ),
        data=DataConfig(path="data/pictures", size=32, flip=0.5),
        training=training(800_000, 128, 2e-4, 5000),
    ),
}
