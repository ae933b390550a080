"""Metrics over validation images."""

from __future__ import annotations

import contextlib
import dataclasses

from diptych.training.distributed import Team
from diptych.training.logger import Means
from diptych.training.prefetch import BatchAt, prefetched
from diptych.training.trainable import Trainable, preparation
from diptych.training.training_config import TrainingConfig


def validate(trainable: Trainable, batch_at: BatchAt, config: TrainingConfig, team: Team) -> dict[str, float]:
    """Means over the first validation images, always the same, each process taking its share: with the weights that
    the module has now."""
    size = -(-config.batch_size // (team.size * config.accumulation))
    mine, means = team.share(range(config.validation_images)), Means()
    parts = [mine[start : start + size] for start in range(0, len(mine), size)]
    threads = dataclasses.replace(config, worker_kind="threads")  # for few images: those of training go on
    with contextlib.closing(prefetched(batch_at, parts, threads, team.device, preparation(trainable))) as batches:
        for part, batch in zip(parts, batches, strict=True):
            means.add(trainable.validation(batch), len(part))
    return means.take(team)
