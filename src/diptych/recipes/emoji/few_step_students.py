"""Students of the default latent model that need 4 or 8 steps, and one call of the network in each."""

from __future__ import annotations

from typing import Any

from diptych.networks.lora_training import LoraConfig
from diptych.recipes.emoji.latent import DATA, PROMPTS
from diptych.training.experiment_config import Recipe
from diptych.training.tasks.few_steps import FewStepTraining
from diptych.training.training_config import TrainingConfig

LATENTS = "cache/emoji-latent"
"""What `diptych precompute emoji-latent system.autoencoder=latent` writes: latents of the default's own first stage."""


TRAJECTORIES = "cache/emoji-trajectories"
"""What `diptych precompute` writes of either recipe: where the default's own sampling leads, in 16 steps of UniPC."""


def student(description: str, learning_rate: float, updates: int, batch: int = 32, **system: Any) -> Recipe:
    return Recipe(
        description=description,
        system=FewStepTraining(**{"prompts": PROMPTS, "precomputed": LATENTS, **system}),
        data=DATA,
        training=TrainingConfig(
            steps=updates,
            batch_size=batch,
            learning_rate=learning_rate,
            warmup=20,
            cooldown=0.3,
            weight_decay=0.0,
            ema=0.99,
            validate_every=250,
            validation_images=64,
            sample_every=250,
            checkpoint_every=50,
            log_every=10,
        ),
    )


def follower(description: str, steps: int) -> Recipe:
    """A student of the default's own sampling."""
    return student(
        description,
        1e-3,
        8000,
        batch=16,
        method="distillation",
        steps=steps,
        teacher_steps=16,
        teacher_sampler="unipc",
        trajectories=6500,
        precomputed=TRAJECTORIES,
        lora=LoraConfig(rank=16),
    )


RECIPES = {
    "emoji-4-steps": follower("the default in 4 steps, as a LoRA, by distillation of its own sampling", steps=4),
    "emoji-8-steps": follower(
        "the default in 8 steps of one call, as a LoRA, by distillation of its own sampling", steps=8
    ),
    "emoji-lcm": student(
        "the default in 4 steps by consistency distillation", 1e-4, 3000, method="consistency", steps=4
    ),
    "emoji-lcm-lora": student(
        "the default in 4 steps by consistency distillation of a LoRA (LCM-LoRA)",
        1e-3,
        3000,
        method="consistency",
        steps=4,
        lora=LoraConfig(rank=8),
    ),
    "emoji-progressive-8": student(
        "the default in 8 steps by progressive distillation: first of two rounds",
        2e-4,
        2000,
        method="progressive",
        steps=8,
        teacher_steps=16,
    ),
    "emoji-progressive-4": student(
        "the same in 4 steps; the second round with system.teacher=runs/emoji-progressive-8",
        2e-4,
        2000,
        method="progressive",
        steps=4,
        teacher_steps=8,
    ),
    "emoji-progressive-lora": student(
        "the default in 8 steps by progressive distillation of a LoRA, in one round",
        1e-3,
        3000,
        method="progressive",
        steps=8,
        teacher_steps=16,
        lora=LoraConfig(rank=8),
    ),
}
