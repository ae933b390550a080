"""The latent default, class-conditional or unconditional (as Rombach et al. 2022 on ImageNet and LSUN, section 4.3)."""

from __future__ import annotations

import dataclasses

from diptych.encoders.class_configs import ClassConfig
from diptych.recipes.emoji.latent import DATA as EMOJI_DATA
from diptych.recipes.emoji.latent import LATENT_TRAINING, trained_on
from diptych.training.experiment_config import Recipe

DATA = dataclasses.replace(EMOJI_DATA, kinds=("single",), caption_field="concept", least=6)
"""What all six styles drew: 825 concepts. Of a third of them one drawing is held out."""
CLASSES = ClassConfig(classes=825, null=825, names_from_captions=True)
"""The concepts and the null class. Their names are in the data, and come from there into the model."""
SHOWN = (
    *("red apple", "rocket", "evergreen tree", "red heart", "crown", "grinning face", "house", "pizza"),
    *("guitar", "strawberry", "banana", "ghost", "sun", "tulip", "octopus", "bicycle"),
)
"""Classes of the sample grid."""


def _recipe(description: str, text: ClassConfig | None, prompts: tuple[str, ...], steps: int) -> Recipe:
    """The default, its words taken away: it starts from its U-Net and goes on with these drawings."""
    unet = {
        "context_width": None if text is None else 384,  # that of the words before: the attention to them fits
        "pooled_width": None,
        "classes": None if text is None else text.entries,
    }
    return Recipe(
        description=f"{description}: the default latent model trained on without words, on what six styles drew",
        system=trained_on(
            unet=unet,
            diffusion={"prompts": prompts},
            precomputed="cache/emoji-class",
            text=text,
            guidance=1.0 if text is None else 4.0,
        ),
        data=DATA,
        training=dataclasses.replace(
            LATENT_TRAINING,
            steps=steps,
            learning_rate=5e-4,
            warmup=50,
            ema=0.99,
            validate_every=150,
            validation_images=128,
            sample_every=150,
            checkpoint_every=150,
        ),
    )


RECIPES = {
    "emoji-class": _recipe("conditioned on one of 825 classes", CLASSES, SHOWN, steps=450),
    "emoji-free": _recipe("unconditional", None, tuple(f"picture {number}" for number in range(16)), steps=300),
}
