"""What is measured with held-out images while a model is trained."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

from diptych.training.distributed import Team
from diptych.training.logger import Counted, Means
from diptych.training.prefetch import BatchAt, prefetched
from diptych.training.trainable import Trainable, preparation
from diptych.training.training_config import TrainingConfig


class Measure(NamedTuple):
    """Something that is measured with the averaged weights."""

    kind: str
    """As metrics.jsonl has it."""
    doing: str
    every: int
    """Steps between two; 0 is never."""
    take: Callable[[Counted], dict[str, float]]
    """Gives the numbers; called in all processes, and they are the main one's."""


def measures(trainable: Trainable, batch_at: BatchAt | None, config: TrainingConfig, team: Team) -> list[Measure]:
    """What a run measures with held-out images. A `UserError` where it cannot."""
    found, asked = list[Measure](), config.evaluation
    if batch_at is not None:
        take = functools.partial(validate, trainable, batch_at, config, team)
        found.append(Measure("validation", "validating", config.validate_every, take))
    if asked.images:
        from diptych.training.sample_quality import SampleQuality

        quality = SampleQuality(trainable, batch_at, config, team)
        found.append(Measure("evaluation", f"evaluating {asked.images} images", asked.every, quality.measure))
    return found


def validate(
    trainable: Trainable, batch_at: BatchAt, config: TrainingConfig, team: Team, counted: Counted
) -> dict[str, float]:
    """Means over the first validation images, always the same, each process taking its share: with the weights that
    the module has now."""
    size = -(-config.batch_size // (team.size * config.accumulation))
    mine, means = team.share(range(config.validation_images)), Means()
    parts = [mine[start : start + size] for start in range(0, len(mine), size)]
    threads = dataclasses.replace(config, worker_kind="threads")  # for few images: those of training go on
    with contextlib.closing(prefetched(batch_at, parts, threads, team.device, preparation(trainable))) as batches:
        for number, (part, batch) in enumerate(zip(parts, batches, strict=True), 1):
            means.add(trainable.validation(batch), len(part))
            counted(min(number * size * team.size, config.validation_images), config.validation_images)
    return means.take(team)
