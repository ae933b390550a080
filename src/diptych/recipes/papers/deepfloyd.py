"""DeepFloyd IF at full size: the public cascade of Imagen's kind, three pixel stages that read with one T5-XXL.

IF-I-XL is as its config records it. Of the others we know a round number of parameters, and of II-L and III the blocks
of each level: their widths are a choice that comes to that number. A published folder is opened by its own config.
"""

from __future__ import annotations

from typing import Any

from diptych.conditioning.lowres_augmentation import AugmentationConfig
from diptych.data.dataset import DataConfig
from diptych.diffusion.schedules import ScheduleConfig
from diptych.diffusion.thresholding import ThresholdConfig
from diptych.diffusion.times import TimesConfig
from diptych.encoders.configs import T5Config
from diptych.models.pixel_config import PixelDiffusionConfig
from diptych.networks.adm import AdmUNetConfig
from diptych.training.experiment_config import PixelTraining, Recipe
from diptych.training.tasks.diffusion import DiffusionTraining
from diptych.training.training_config import TrainingConfig

WIDTH = 4096
"""Of T5-XXL's tokens."""


def stage(channels: int, multipliers: tuple[int, ...], low_size: int | None, **network: Any) -> PixelTraining:
    """A stage: base from words, or four times as large with the changes that IF calls efficient."""
    shared: dict[str, Any] = {
        "concat_channels": 0 if low_size is None else 3,
        "channels": channels,
        "multipliers": multipliers,
        "head_width": 64,
        "context_width": WIDTH,
        "context_projection": channels * multipliers[-1],
        "text_pooling_heads": 64,
        "time_width": channels * max(multipliers),
        "activation": "gelu",
    }
    if low_size is not None:
        shared |= {"augmented": True, "self_attention": False, "preactivated": True, "residual_scale": 0.7071}
    model = PixelDiffusionConfig(
        network=AdmUNetConfig(**{**shared, **network}),
        text=T5Config(width=WIDTH, max_tokens=77, padded=True, cleaning="lower"),
        null_text="empty",
        schedule=ScheduleConfig(kind="cosine-table"),
        times=TimesConfig(spacing="leading"),
        learned_variance=True,
        size=64 if low_size is None else 4 * low_size,
        low_size=low_size,
        augmentation=AugmentationConfig(align_corners=True, table=1000, level=0.0 if low_size == 256 else 0.25),
        steps=100 if low_size is None else 50,
        guidance=7.0 if low_size is None else 4.0,
        threshold=ThresholdConfig(kind="dynamic", percentile=0.95, cap=1.5 if low_size is None else 1.0),
    )
    return PixelTraining(model=model, diffusion=DiffusionTraining(caption_dropout=0.1))


def base(channels: int) -> PixelTraining:
    """Attention at 32, 16 and 8 pixels."""
    return stage(channels, (1, 2, 3, 4), None, blocks=3, attention_levels=(1, 2, 3))


def second(channels: int, multipliers: tuple[int, ...]) -> PixelTraining:
    """Attention to the text at 32 and 16 pixels."""
    return stage(channels, multipliers, 64, blocks=(2, 2, 3, 5, 5), attention_levels=(3, 4))


def recipe(description: str, system: PixelTraining, batch_size: int, steps: int, learning_rate: float = 5e-5) -> Recipe:
    """Batch and steps are those of the README, the optimizer and its one cycle those of the cards of I-XL and I-L, from
    a 25th of the highest learning rate to a 10,000th; for the others I-XL's are a choice. AdamW's states are not kept
    in 8 bits here: that saves memory and is meant to change nothing else. The crop is the cards' as well."""
    first = system.model.low_size is None
    return Recipe(
        description=description,
        system=system,
        data=DataConfig(path="data/pictures", size=system.model.size, center_shift=0.1 if first else 0.0),
        training=TrainingConfig(
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            initial_learning_rate=learning_rate / 25,
            final_learning_rate=learning_rate / 10_000,
            warmup=10_000,
            schedule="one-cycle",
            betas=(0.9, 0.999),
            ema=0.9999,
        ),
    )


RECIPES = {
    "if-1-xl": recipe("DeepFloyd IF-I-XL: 64 px from T5-XXL text, 4.3 B U-Net", base(704), 3072, 2_420_000),
    # I-L went on for 500 k steps in a second cycle, 1e-8 -> 4e-6 -> 4e-8, which one run does not have.
    "if-1-l": recipe("DeepFloyd IF-I-L: 64 px from T5-XXL text, 0.9 B U-Net", base(320), 3200, 2_500_000, 1e-4),
    "if-1-m": recipe("DeepFloyd IF-I-M: 64 px from T5-XXL text, 0.4 B U-Net", base(192), 3072, 2_500_000),
    "if-2-l": recipe("DeepFloyd IF-II-L: 64 -> 256 px, 1.2 B U-Net", second(192, (1, 2, 4, 6, 6)), 1536, 2_500_000),
    "if-2-m": recipe("DeepFloyd IF-II-M: 64 -> 256 px, 0.44 B U-Net", second(128, (1, 2, 4, 5, 5)), 1536, 2_500_000),
    "if-3-l": recipe(
        "DeepFloyd IF-III-L: 256 -> 1024 px, 0.7 B U-Net, never released",
        stage(128, (1, 2, 3, 4, 6, 8), 256, blocks=(2, 2, 3, 3, 4, 4), attention_levels=(5,)),
        3072,
        1_250_000,
    ),
}
