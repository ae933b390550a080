"""A short run of a VQ first stage, as a process of its own."""

from __future__ import annotations

import dataclasses
import os

import torch

from diptych.training.tasks.autoencoding import FirstStage, FirstStageConfig
from diptych.training.tasks.codebook import CodebookConfig
from diptych.training.trainer import train
from diptych.training.training_config import TrainingConfig
from tests.models.latents import AUTOENCODER, toy_batch


def run(folder: str, accumulation: int, environment: dict[str, str] | None = None) -> None:
    os.environ.update(environment or {})
    torch.manual_seed(0)
    network = dataclasses.replace(AUTOENCODER, codebook=8)
    it = FirstStage(FirstStageConfig(network=network, codebook=CodebookConfig(update="ema", decay=0.8, from_data=True)))
    config = TrainingConfig(
        steps=4, batch_size=5, accumulation=accumulation, warmup=0, threads=1, device="cpu", validate_every=0,
        sample_every=0,
    )  # fmt: skip
    train(it, toy_batch, config, folder)
