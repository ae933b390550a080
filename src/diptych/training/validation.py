"""Metrics over validation images."""

from __future__ import annotations

from diptych.training.distributed import Team
from diptych.training.logger import Means
from diptych.training.prefetch import BatchAt, to_device
from diptych.training.trainable import Trainable
from diptych.training.training_config import TrainingConfig


def validate(trainable: Trainable, batch_at: BatchAt, config: TrainingConfig, team: Team) -> dict[str, float]:
    """Means over the first validation images, always the same, each process taking its share: with the weights that
    the module has now."""
    size = -(-config.batch_size // (team.size * config.accumulation))
    mine, means = team.share(range(config.validation_images)), Means()
    for i in range(0, len(mine), size):
        part = mine[i : i + size]
        means.add(trainable.validation(to_device(batch_at(part), team.device)), len(part))
    return means.take(team)
