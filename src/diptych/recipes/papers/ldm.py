"""latent-diffusion's own models at full size: configs as in its repository, training as in the paper's appendix E.

What a model was sampled with is that of the README's table of models. The models of tables 13 and 14, by which the
paper chose how much a first stage compresses, come from one function.
"""

from __future__ import annotations

from typing import Any, Literal

from diptych.data.dataset import DataConfig
from diptych.diffusion.losses import ObjectiveConfig
from diptych.diffusion.schedules import ScheduleConfig
from diptych.diffusion.times import TimesConfig
from diptych.encoders.class_configs import ClassConfig
from diptych.encoders.configs import JointTransformerConfig
from diptych.models.latent_diffusion import LatentConfig
from diptych.models.pixel_config import PixelDiffusionConfig
from diptych.networks.adm import AdmUNetConfig
from diptych.networks.autoencoder import AutoencoderConfig
from diptych.networks.transformer import TextTransformerConfig
from diptych.networks.unet import UNetConfig
from diptych.recipes.papers.first_stages import KL_F8, VQ_F2, VQ_F4, VQ_F8, VQ_F16, VQ_F32
from diptych.training.experiment_config import LatentTraining, PixelTraining, Recipe
from diptych.training.tasks.diffusion import DiffusionTraining
from diptych.training.training_config import TrainingConfig

BETAS = ScheduleConfig(beta_start=0.0015, beta_end=0.0195)
TIMES = TimesConfig(spacing="published", offset=1, final="first")
L1 = ObjectiveConfig(loss="l1")
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
TEXT_VQ_F4 = UNetConfig(
    **HEADS_OF_32,
    in_channels=3,
    out_channels=3,
    channels=192,
    multipliers=(1, 2, 3, 5),
    attention_levels=(1, 2, 3),
    context_width=640,
)
IMAGES = DataConfig(path="data/pictures", size=256)
IMAGENET = DataConfig(path="data/imagenet", size=256, crop=256)
"""Random squares of images whose shorter side is 256 px."""
FACES = DataConfig(path="data/faces", size=256)
LSUN = DataConfig(path="data/lsun", size=256, flip=0.5)


def text(width: int) -> JointTransformerConfig:
    """The text transformer, over BERT's vocabulary."""
    shape = TextTransformerConfig(vocabulary=30_522, width=width, layers=32, heads=8, head_width=64)
    return JointTransformerConfig(network=shape, padded=True)


def training(steps: int, batch_size: int, learning_rate: float, warmup: int = 0) -> TrainingConfig:
    """PyTorch's AdamW as it comes, and nothing else: of Stable Diffusion and all models of latent-diffusion."""
    return TrainingConfig(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup=warmup,
        betas=(0.9, 0.999),
        decayed="all",
        clip=0.0,
        ema=0.9999,
    )


def scale_of(first_stage: AutoencoderConfig) -> float | None:
    """Latents of a codebook are not rescaled (appendix D.1)."""
    return None if first_stage.codebook is None else 1.0


def _recipe(
    description: str,
    first_stage: str,
    training: TrainingConfig,
    data: DataConfig = IMAGES,
    diffusion: DiffusionTraining | None = None,
    **model: Any,
) -> Recipe:
    """caption dropout is 0, where `diffusion` says nothing else."""
    usual: dict[str, Any] = {"times": TIMES, "schedule": BETAS, "size": 256, "steps": 200, "guidance": 1.0}
    config = LatentConfig(**{**usual, "latent_scale": scale_of(model["autoencoder"]), **model})
    return Recipe(
        description=f"{description}, over {first_stage} latents of 256-px images (Rombach et al. 2022)",
        system=LatentTraining(
            model=config,
            diffusion=diffusion or DiffusionTraining(caption_dropout=0.0),
            autoencoder=f"runs/{first_stage}",
        ),
        data=data,
        training=training,
    )


# How much a first stage should compress (section 4.1): tables 13 and 14.

Analysed = Literal["imagenet", "celeba"]
FIRST_STAGES = {1: None, 2: VQ_F2, 4: VQ_F4, 8: VQ_F8, 16: VQ_F16, 32: VQ_F32}
SHAPES: dict[int, tuple[int, tuple[int, ...]]] = {
    1: (192, (1, 1, 2, 2, 4, 4)),
    2: (192, (1, 2, 2, 4, 4)),
    8: (256, (1, 2, 4)),
    16: (256, (1, 2, 4)),
    32: (256, (1, 2, 4)),
}
"""Channels and multipliers for each factor; both tables differ in that of 4 alone."""
SHAPES_OF_4: dict[Analysed, tuple[int, tuple[int, ...]]] = {
    "imagenet": (192, (1, 2, 3, 5)),
    "celeba": (224, (1, 2, 3, 4)),
}
BATCHES: dict[Analysed, dict[int, int]] = {
    "imagenet": {1: 7, 2: 9, 4: 40, 8: 64, 16: 112, 32: 112},
    "celeba": {1: 9, 2: 11, 4: 48, 8: 96, 16: 128, 32: 128},
}
RATES: dict[Analysed, dict[int, float]] = {
    "imagenet": {1: 4.9e-5, 2: 6.3e-5, 4: 8e-5, 8: 6.4e-5, 16: 4.5e-5, 32: 4.5e-5},
    "celeba": {1: 9e-5, 2: 1.1e-4, 4: 9.6e-5, 8: 9.6e-5, 16: 1.3e-4, 32: 1.3e-4},
}


def analysed(of: Analysed, factor: int) -> Recipe:
    """LDM-`factor`: of ImageNet by class, with cross-attention to the class, or of faces without a condition. Its three
    lowest levels attend."""
    classes = of == "imagenet"
    first_stage, (channels, multipliers) = FIRST_STAGES[factor], SHAPES_OF_4[of] if factor == 4 else SHAPES[factor]
    latent = 3 if first_stage is None else first_stage.latent_channels
    levels = len(multipliers)
    shape: dict[str, Any] = {"in_channels": latent, "out_channels": latent, "channels": channels}
    shape |= {"multipliers": multipliers, "attention_levels": tuple(range(levels - 3, levels))}
    network = (
        UNetConfig(**shape, heads=1, context_width=512, classes=1000)
        if classes
        else AdmUNetConfig(**shape, **HEADS_OF_32, scale_shift=False, residual_resampling=False)
    )
    how = training(2_000_000 if classes else 500_000, BATCHES[of][factor], RATES[of][factor])
    data, conditioning = (IMAGENET, ClassConfig(classes=1000)) if classes else (FACES, None)
    what = f"LDM-{factor} of table {13 if classes else 14}: " + ("ImageNet by class" if classes else "faces (CelebA)")
    if first_stage is not None:
        sampled: dict[str, Any] = {"steps": 100, "text": conditioning}
        return _recipe(what, f"vq-f{factor}", how, data, autoencoder=first_stage, unet=network, **sampled)
    model = PixelDiffusionConfig(
        network=network,
        text=conditioning,
        schedule=BETAS,
        times=TIMES,
        size=256,
        low_size=None,
        steps=100,
        sampler="ddim",
    )
    return Recipe(
        description=f"{what}, over 256-px pixels (Rombach et al. 2022)",
        system=PixelTraining(model=model, diffusion=DiffusionTraining(caption_dropout=0.0)),
        data=data,
        training=how,
    )


RECIPES = {
    "ldm-text": _recipe(
        "LDM's text-to-image model: 872 M U-Net, 543 M transformer trained with it",
        "kl-f8",
        training(390_000, 680, 1e-4, 10_000),
        diffusion=DiffusionTraining(caption_dropout=0.1),
        autoencoder=KL_F8,
        text=text(1280),
        unet=UNetConfig(context_width=1280),
        schedule=ScheduleConfig(beta_start=0.00085, beta_end=0.012),
        steps=50,
        guidance=5.0,
    ),
    "ldm-text-vq-f4": _recipe(
        "LDM's smaller text-to-image model: 404 M U-Net, 167 M transformer trained with it",
        "vq-f4",
        training(390_000, 28, 5.6e-5),
        diffusion=DiffusionTraining(caption_dropout=0.1),
        autoencoder=VQ_F4,
        text=text(640),
        unet=TEXT_VQ_F4,
        steps=100,
        guidance=5.0,
    ),
    "ldm-cin256": _recipe(
        "LDM of ImageNet by class, 401 M U-Net, with a null class after the 1,000",
        "vq-f4",
        training(178_000, 1200, 1e-4),
        IMAGENET,
        DiffusionTraining(caption_dropout=0.1),
        autoencoder=VQ_F4,
        text=ClassConfig(classes=1000, null=1000),
        unet=CLASSES,
        steps=250,
        guidance=1.5,
    ),
    "ldm-cin256-vq-f8": _recipe(
        "LDM of ImageNet by class, 395 M U-Net, without a null class",
        "vq-f8",
        training(2_000_000, 64, 6.4e-5),
        IMAGENET,
        autoencoder=VQ_F8,
        text=ClassConfig(classes=1000),
        unet=CLASSES_VQ_F8,
        sampler="ddpm",
    ),
    "ldm-celebahq": _recipe(
        "LDM of faces (CelebA-HQ), unconditional, 274 M U-Net",
        "vq-f4",
        training(410_000, 48, 9.6e-5),
        FACES,
        autoencoder=VQ_F4,
        text=None,
        unet=PLAIN,
    ),
    "ldm-ffhq": _recipe(
        "LDM of faces (FFHQ), unconditional, 274 M U-Net",
        "vq-f4",
        training(635_000, 42, 8.4e-5),
        FACES,
        autoencoder=VQ_F4,
        text=None,
        unet=PLAIN,
        sampler="ddpm",
    ),
    "ldm-bedrooms": _recipe(
        "LDM of bedrooms (LSUN), unconditional, 274 M U-Net",
        "vq-f4",
        training(1_900_000, 48, 9.6e-5),
        LSUN,
        autoencoder=VQ_F4,
        text=None,
        unet=PLAIN,
        sampler="ddpm",
    ),
    "ldm-churches": _recipe(
        "LDM of churches (LSUN), unconditional, 295 M U-Net",
        "kl-f8",
        training(500_000, 96, 5e-5, 10_000),
        LSUN,
        DiffusionTraining(objective=L1, caption_dropout=0.0),
        autoencoder=KL_F8,
        text=None,
        unet=CHURCHES,
        schedule=ScheduleConfig(beta_start=0.0015, beta_end=0.0155),
        steps=400,
    ),
    **{f"ldm-imagenet-{factor}": analysed("imagenet", factor) for factor in FIRST_STAGES},
    **{f"ldm-celeba-{factor}": analysed("celeba", factor) for factor in FIRST_STAGES},
}
