"""GLIDE: pixels from words that a transformer reads which learns along (Nichol et al. 2021, section 4 and appendix).

The transformer's tokens stand before the pixels in every attention, and its last token is added to the time. Of the two
models in the paper we know widths and depths, and counts in round numbers; of the smaller two that were released, all.
Their tokenizer is GPT's; ours is made from the captions of the data, as large as that, unless `text.tokenizer` is one.

The base is trained with all captions first, and then fine-tuned to be guided, with a fifth of them left out (section
4.2); what repaints is fine-tuned from that and from the upsampler (4.3); the noisy pair is trained by itself (4.4).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from diptych.conditioning.concat_config import MaskConfig
from diptych.conditioning.lowres_augmentation import AugmentationConfig
from diptych.data.dataset import DataConfig
from diptych.diffusion.schedules import ScheduleConfig
from diptych.diffusion.thresholding import ThresholdConfig
from diptych.diffusion.times import TimesConfig
from diptych.encoders.configs import ClipTextConfig, JointTransformerConfig
from diptych.models.pixel_config import PixelDiffusionConfig
from diptych.networks.adm_config import AdmUNetConfig
from diptych.networks.noisy_classifier import NoisyClassifierConfig
from diptych.networks.transformer import TextTransformerConfig
from diptych.recipes.emoji.latent import DATA_64, PROMPTS
from diptych.recipes.emoji.pixel_cascade import training as small_training
from diptych.recipes.papers.imagen import LINEAR, training
from diptych.training.experiment_config import PixelTraining, Recipe
from diptych.training.tasks.diffusion import DiffusionTraining
from diptych.training.tasks.guide_training import GuideTraining
from diptych.training.training_config import TrainingConfig

GPT = 50_257
"""Tokens of GPT's vocabulary."""


def reader(width: int, layers: int, vocabulary: int = GPT, head_width: int = 64) -> JointTransformerConfig:
    """The text transformer: 128 tokens, padding learned and read along."""
    network = TextTransformerConfig(
        vocabulary=vocabulary,
        max_tokens=128,
        width=width,
        layers=layers,
        heads=width // head_width,
        head_width=head_width,
        bias=True,
        padding=True,
    )
    return JointTransformerConfig(network=network, padded=True, pooled="last")


LARGE = reader(2048, 24)
"""Of the paper's base."""


def base(text: JointTransformerConfig, channels: int, caption_dropout: float = 0.2, **changes: Any) -> PixelTraining:
    """64 px from words: ADM's U-Net for ImageNet at 64 px, but for its width. Steps and guidance as in the notebooks of
    the release; not guided where no caption is left out in training."""
    network: dict[str, Any] = {"multipliers": (1, 2, 3, 4), "blocks": 3, "attention_levels": (1, 2, 3)}
    network |= {"channels": channels, "context_width": text.width, "pooled_width": text.width, "context_norm": False}
    model = PixelDiffusionConfig(
        network=AdmUNetConfig(**{**network, "dropout": 0.1, **changes}),
        text=text,
        null_text="empty",
        schedule=ScheduleConfig(kind="cosine-table"),
        times=TimesConfig(spacing="linspace"),
        learned_variance=True,
        size=64,
        low_size=None,
        steps=100,
        guidance=3.0 if caption_dropout else 1.0,
        threshold=ThresholdConfig(kind="static"),
    )
    return PixelTraining(model=model, diffusion=DiffusionTraining(caption_dropout=caption_dropout))


def upsampler(text: JointTransformerConfig, channels: int) -> PixelTraining:
    """64 -> 256 px from words: ADM's upsampler, but for its width; not guided."""
    network = AdmUNetConfig(
        concat_channels=3,
        channels=channels,
        multipliers=(1, 1, 2, 2, 4, 4),
        attention_levels=(3, 4, 5),
        context_width=text.width,
        pooled_width=text.width,
        context_norm=False,
        dropout=0.1,
    )
    model = PixelDiffusionConfig(
        network=network,
        text=text,
        null_text="empty",
        schedule=LINEAR,
        times=TimesConfig(spacing="linspace"),
        learned_variance=True,
        size=256,
        low_size=64,
        augmentation=AugmentationConfig(kind="none", level=0.0),
        steps=27,
        guidance=1.0,
        sampler="ddim",
        threshold=ThresholdConfig(kind="static"),
    )
    return PixelTraining(model=model, diffusion=DiffusionTraining(caption_dropout=0.0))  # the base alone is guided


def repainting(system: PixelTraining, initial: str) -> PixelTraining:
    """Told the rest of an image and a mask in four more channels, which are zeros to begin with (section 4.3). The
    paper erases "random regions": LaMa's are a choice."""
    model = system.model
    network = dataclasses.replace(model.network, concat_channels=model.network.concat_channels + 4)
    model = dataclasses.replace(model, network=network, masks=MaskConfig())
    return dataclasses.replace(system, model=model, init_from=initial)


def noisy_clip() -> Recipe:
    """A noisy pair at 64 px for the base's noise (section 4.4), trained as CLIP is (Radford et al. 2021, table 18).

    GLIDE's two halves are transformers that both learn from nothing; here the images' is the encoder of ADM's U-Net,
    and the words' the text half of a CLIP (`system.text.path`), frozen beneath a layer that learns.
    """
    encoder = AdmUNetConfig(channels=192, multipliers=(1, 2, 3, 4), blocks=3, attention_levels=(1, 2, 3))
    return Recipe(
        description="a noisy CLIP at 64 px to guide GLIDE's base, over a frozen CLIP's text half (Nichol et al. 2021)",
        system=GuideTraining(
            network=NoisyClassifierConfig(encoder=encoder, classes=768, size=64),
            classes=None,
            text=ClipTextConfig(),
            schedule=ScheduleConfig(kind="cosine-table"),
        ),
        data=DataConfig(path="data/pictures", size=64),
        training=TrainingConfig(
            steps=390_000,
            batch_size=32_768,
            learning_rate=4e-4,
            warmup=2000,
            schedule="cosine",
            betas=(0.9, 0.98),
            weight_decay=0.2,
            ema=0.0,
            sample_every=0,
        ),
    )


def _recipe(description: str, system: PixelTraining, steps: int, batch_size: int) -> Recipe:
    """Steps and batch are the paper's (section 4), but for the steps of fine-tuning, which are a choice: a tenth. On
    the learning rate the paper is silent: ADM's is a choice."""
    return Recipe(
        description=f"{description} (Nichol et al. 2021)",
        system=system,
        data=DataConfig(path="data/pictures", size=system.model.size),
        training=training(steps, batch_size, 1e-4, 0),
    )


def _small() -> PixelTraining:
    """At CPU scale, and at 32 px."""
    text = reader(192, 4, vocabulary=4096, head_width=32)
    text = dataclasses.replace(text, network=dataclasses.replace(text.network, max_tokens=48))
    shape: dict[str, Any] = {"multipliers": (1, 2, 3), "blocks": 1, "attention_levels": (1, 2), "head_width": 32}
    system = base(text, 32, **shape, norm_groups=8, dropout=0.0)
    return dataclasses.replace(
        system,
        model=dataclasses.replace(system.model, size=32, steps=50),
        diffusion=dataclasses.replace(system.diffusion, prompts=PROMPTS, save_dtype="bfloat16"),
    )


RECIPES = {
    "glide-base": _recipe("GLIDE: 64 px, 2.2 B U-Net, 1.3 B text", base(LARGE, 512, 0.0), 2_500_000, 2048),
    "glide-base-guided": _recipe(
        "GLIDE's 64 px fine-tuned to be guided",
        dataclasses.replace(base(LARGE, 512), init_from="runs/glide-base"),
        250_000,
        2048,
    ),
    "glide-base-inpainting": _recipe(
        "GLIDE's 64 px that repaints", repainting(base(LARGE, 512), "runs/glide-base-guided"), 250_000, 2048
    ),
    "glide-upsampler-inpainting": _recipe(
        "GLIDE's 64 -> 256 px that repaints",
        repainting(upsampler(reader(1024, 24), 384), "runs/glide-upsampler"),
        160_000,
        512,
    ),
    "glide-noisy-clip": noisy_clip(),
    "glide-upsampler": _recipe("GLIDE's 64 -> 256 px, 1.6 B", upsampler(reader(1024, 24), 384), 1_600_000, 512),
    "glide-base-small": _recipe("GLIDE as released: 64 px, 385 M", base(reader(512, 16), 192), 2_500_000, 2048),
    "glide-upsampler-small": _recipe(
        "GLIDE as released: 64 -> 256 px, 398 M", upsampler(reader(512, 16), 192), 1_600_000, 512
    ),
    "emoji-glide": Recipe(
        description="a small GLIDE on 32-px emoji images: pixels from a text transformer trained along",
        system=_small(),
        data=dataclasses.replace(DATA_64, size=32),
        training=small_training(steps=6000, batch_size=64, learning_rate=5e-4),
    ),
}
