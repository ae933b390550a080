"""The second stages that taming-transformers published, at full size (Esser et al. 2021, section 4.2 and appendix).

Shapes are those of the paper and its repository: a class, or the start, is the embedding of a code. The sizes
that it states, 1400 M and 801 M, fix all but the number of heads. Batch size, learning rate and steps are ours. Their
first stages are recipes of first_stages.py.
"""

from __future__ import annotations

from diptych.data.dataset import DataConfig
from diptych.encoders.class_configs import ClassConfig
from diptych.models.autoregressive_config import AutoregressiveConfig
from diptych.networks.code_transformer import CodeTransformerConfig
from diptych.recipes.papers.first_stages import VQGAN_F16, VQGAN_F16_1024
from diptych.training.experiment_config import AutoregressiveTraining, Recipe
from diptych.training.tasks.codes import CodesTraining
from diptych.training.training_config import TrainingConfig

IMAGENET = CodeTransformerConfig(vocabulary=16_384, length=256, width=1536, layers=48, heads=16, classes=1000)
FACES = CodeTransformerConfig(vocabulary=1024, length=256, width=1664, layers=24, heads=16, classes=None)


def _recipe(
    description: str, model: AutoregressiveConfig, first_stage: str, data: str, prompts: tuple[str, ...]
) -> Recipe:
    return Recipe(
        description=f"{description} (Esser et al. 2021)",
        system=AutoregressiveTraining(
            model=model, codes=CodesTraining(caption_dropout=0.0, prompts=prompts), autoencoder=f"runs/{first_stage}"
        ),
        data=DataConfig(path=data, size=model.size),
        training=TrainingConfig(
            steps=1_000_000, batch_size=32, learning_rate=4.5e-6 * 32, betas=(0.9, 0.95), clip=0.0, ema=0.0, warmup=0
        ),
    )


RECIPES = {
    "imagenet-codes": _recipe(
        "VQGAN codes of 256-px ImageNet by class, 1,411 M transformer",
        AutoregressiveConfig(
            autoencoder=VQGAN_F16,
            transformer=IMAGENET,
            text=ClassConfig(classes=1000),
            size=256,
            top_k=600,
            top_p=0.92,
        ),
        "vqgan-imagenet-f16",
        "data/imagenet",
        ("207", "88", "933", "980"),
    ),
    "ffhq-codes": _recipe(
        "VQGAN codes of 256-px faces (FFHQ), unconditional, 802 M transformer",
        AutoregressiveConfig(autoencoder=VQGAN_F16_1024, transformer=FACES, text=None, size=256, top_k=250),
        "vqgan-ffhq-f16",
        "data/ffhq",
        ("1", "2", "3", "4"),
    ),
}
