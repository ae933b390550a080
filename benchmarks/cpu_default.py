"""The models in the package on a CPU: compiled engines beside PyTorch, which is how diptych ran them before.

    python -m benchmarks.cpu_default [--jobs latent-1,latent-8,cascade] [--engines float32,bf16,int8]

`latent-N` makes N images of 128 px at once from N prompts, with the model's own steps and guidance; `cascade` one of
512 px through all three stages. Each side is opened as `diptych.load` opens it. Images are compared with PyTorch's of
the same seeds, in units of 1 of 255: float32 must be within 1, what bf16 and int8 change is in the result.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import diptych
from benchmarks.engine_variants import VARIANTS, EagerCalls, Variant, chosen
from benchmarks.side_by_side import Contestant, Job, Work, flops, levels, parser, run_all
from diptych.models.cascade import Cascade

PROMPTS = ["a red apple", "a cat", "two trees", "a house", "a snowman", "a rocket", "a blue car", "a crown"]
LOSSY_LEVELS = 255
"""Any difference is allowed to bf16 and int8, and reported: an edge that moves by a pixel is a large one."""


def work(source: str, variant: Variant, batch: int, calls: EagerCalls, options: dict[str, Any]) -> Work:
    """Makes images (batch, H, W, 3) by a model that is opened as a user opens it."""
    opening: dict[str, Any] = {"engine": variant.engine, "precision": variant.precision}
    model, prompts = diptych.load(source, "cpu", **opening), PROMPTS[:batch]
    if variant.engine != "pytorch":
        for each in each_stage(model):
            calls.watch(each)

    def generate() -> Tensor:
        images = model.generate(prompts, seeds=list(range(batch)), **options).images
        return torch.from_numpy(np.stack([np.asarray(image) for image in images]))

    return generate


def each_stage(model: Any) -> list[Any]:
    """The models whose networks run: the stages of a cascade, opened, or the model itself."""
    return [model.stage(number) for number in range(len(model.configs))] if isinstance(model, Cascade) else [model]


def build(name: str, source: str, batch: int, variants: Sequence[Variant], options: dict[str, Any]) -> Job:
    """A job: `batch` images of a model."""
    eager = work(source, VARIANTS["pytorch"], batch, EagerCalls(), options)
    entrants = list[Contestant]()
    for variant in variants:
        if variant.engine == "pytorch":
            continue  # it is the reference
        calls = EagerCalls()
        prepare = functools.partial(work, source, variant, batch, calls, options)
        tolerance = 1.0 if variant.exact else LOSSY_LEVELS
        entrants.append(Contestant(name=variant.name, prepare=prepare, tolerance=tolerance, fault=calls.fault))
    return Job(
        name=name,
        what=f"the default {source} model, {batch} image{'s' if batch > 1 else ''} at once",
        reference=Contestant(name="diptych, PyTorch", prepare=lambda: eager),
        challengers=entrants,
        flop=flops(eager),
        measure=levels,
        items=batch,
    )


def main(argv: Sequence[str] | None = None) -> int:
    made: argparse.ArgumentParser = parser(__doc__, "benchmarks/results/cpu-default")
    given = made.parse_args(argv)
    variants, toy = chosen(given.engines), given.quick
    options: dict[str, Any] = {"steps": 1} if toy else {}
    jobs: dict[str, tuple[int, Callable[[], Job]]] = {
        "latent-1": (7, lambda: build("latent-1", "latent", 1, variants, options)),
        "latent-8": (5, lambda: build("latent-8", "latent", 2 if toy else 8, variants, options)),
        "cascade": (5, lambda: build("cascade", "cascade", 1, variants, {**options, **({"stop": 1} if toy else {})})),
    }
    return run_all(jobs, given)


if __name__ == "__main__":
    sys.exit(main())
