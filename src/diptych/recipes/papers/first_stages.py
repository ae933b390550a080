"""The first stages of latent-diffusion and taming-transformers at full size: configs and training as published there.

Attention is given there by the resolutions, of a 256-px image, at which it stands; here by levels. The learning rate is
a base rate times the images that all GPUs see for one step; how many GPUs there were is not said, so ours is for one.
The discriminator has batch norms, over the images that one process looks at together: where these are one or two, as
with kl-f8's 12 spread over 8 GPUs, set `system.adversarial.discriminator.norm=group`.
"""

from __future__ import annotations

from diptych.data.dataset import DataConfig
from diptych.networks.autoencoder import AutoencoderConfig
from diptych.networks.discriminator import DiscriminatorConfig
from diptych.training.experiment_config import Recipe
from diptych.training.tasks.adversarial import AdversarialConfig
from diptych.training.tasks.autoencoding import FirstStageConfig, PerceptualConfig
from diptych.training.tasks.codebook import CodebookConfig
from diptych.training.training_config import TrainingConfig

KL_F4 = AutoencoderConfig(latent_channels=3, multipliers=(1, 2, 4))
KL_F8 = AutoencoderConfig()
KL_F16 = AutoencoderConfig(latent_channels=16, multipliers=(1, 1, 2, 2, 4), attention_levels=(4,))
KL_F32 = AutoencoderConfig(latent_channels=64, multipliers=(1, 1, 2, 2, 4, 4), attention_levels=(4, 5))
VQ_F2 = AutoencoderConfig(latent_channels=2, multipliers=(1, 2), codebook=2048)
VQ_F4 = AutoencoderConfig(latent_channels=3, multipliers=(1, 2, 4), codebook=8192)
VQ_F4_NOATTN = AutoencoderConfig(latent_channels=3, multipliers=(1, 2, 4), codebook=8192, attention=False)
VQ_F8 = AutoencoderConfig(latent_channels=4, multipliers=(1, 2, 2, 4), attention_levels=(3,), codebook=16_384)
VQ_F8_N256 = AutoencoderConfig(latent_channels=4, multipliers=(1, 2, 2, 4), attention_levels=(3,), codebook=256)
VQ_F16 = AutoencoderConfig(latent_channels=8, multipliers=(1, 1, 2, 2, 4), attention_levels=(4,), codebook=16_384)
VQ_F32 = AutoencoderConfig(latent_channels=32, multipliers=(1, 1, 2, 2, 4, 4), attention_levels=(4, 5), codebook=16_384)
VQGAN_F16 = AutoencoderConfig(latent_channels=256, multipliers=(1, 1, 2, 2, 4), attention_levels=(4,), codebook=16_384)
VQGAN_F16_1024 = AutoencoderConfig(
    latent_channels=256, multipliers=(1, 1, 2, 2, 4), attention_levels=(4,), codebook=1024
)

BASE_RATE = 4.5e-6
"""Learning rate for each image of a batch."""
OPENIMAGES = DataConfig(path="data/pictures", size=384, crop=256)
"""Random squares of images whose shorter side is 384 px."""
IMAGENET = DataConfig(path="data/imagenet", size=256, crop=256)
"""Random squares of images whose shorter side is 256 px."""
FACES = DataConfig(path="data/ffhq", size=256)


def _recipe(
    network: AutoencoderConfig,
    steps: int,
    batch_size: int,
    *,
    start: int = 50_001,
    weight: float = 0.5,
    layers: int = 3,
    accumulation: int = 1,
    data: DataConfig = OPENIMAGES,
    of: str = "a first stage of latent-diffusion",
) -> Recipe:
    """start, weight, layers: of the discriminator. batch_size: of a step, all accumulated parts together."""
    kind = "KL" if network.codebook is None else f"VQ of {network.codebook:,} entries"
    discriminator = DiscriminatorConfig(layers=layers)
    return Recipe(
        description=f"{of}, {kind}, factor {network.factor}, at 256 px: L1, LPIPS, discriminator",
        system=FirstStageConfig(
            network=network,
            codebook=CodebookConfig(legacy=network.codebook is not None),
            perceptual=PerceptualConfig(path="timm/vgg16.tv_in1k"),
            adversarial=AdversarialConfig(discriminator=discriminator, weight=weight, start=start),
        ),
        data=data,
        training=TrainingConfig(
            steps=steps,
            batch_size=batch_size,
            accumulation=accumulation,
            learning_rate=BASE_RATE * batch_size,
            optimizer="adam",
            betas=(0.5, 0.9),
            warmup=0,
            weight_decay=0.0,
            clip=0.0,
            ema=0.0,
        ),
    )


RECIPES = {
    "kl-f4": _recipe(KL_F4, 176_991, 10),
    "kl-f8": _recipe(KL_F8, 246_803, 24, accumulation=2, of="the autoencoder of Stable Diffusion 1.x"),
    "kl-f16": _recipe(KL_F16, 442_998, 6),
    "kl-f32": _recipe(KL_F32, 406_763, 6),
    "vq-f2": _recipe(VQ_F2, 533_066, 8, start=0, weight=0.75, of="the first stage of LDM-2"),
    "vq-f4": _recipe(VQ_F4, 533_066, 8, start=0, weight=0.75),
    "vq-f4-noattn": _recipe(VQ_F4_NOATTN, 658_131, 8, start=11, weight=0.75),
    "vq-f8": _recipe(VQ_F8, 971_043, 10, start=1, weight=0.6, layers=2),
    "vq-f8-n256": _recipe(VQ_F8_N256, 1_608_649, 10, start=250_001, weight=0.75),
    "vq-f16": _recipe(VQ_F16, 1_101_166, 14, start=250_001, weight=0.75, layers=2),
    "vq-f32": _recipe(VQ_F32, 1_101_166, 14, start=250_001, weight=0.75, layers=2, of="the first stage of LDM-32"),
    "vqgan-imagenet-f16": _recipe(
        VQGAN_F16, 1_000_000, 12, start=250_001, weight=0.8, data=IMAGENET, of="VQGAN of ImageNet (Esser et al. 2021)"
    ),
    "vqgan-ffhq-f16": _recipe(
        VQGAN_F16_1024, 500_000, 3, start=30_001, weight=0.8, data=FACES, of="VQGAN of faces (Esser et al. 2021)"
    ),
}
