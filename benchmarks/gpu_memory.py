"""Peak memory of the ways to bring Stable Diffusion 1.x to a GPU. To measure another, add a line to `MEMORY`."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import torch

from diptych.engines.placement import place
from diptych.models.latent_diffusion import LatentDiffusion

MEMORY: tuple[dict[str, Any], ...] = (
    {},
    {"offload": "parts"},
    {"offload": "layers"},
    {"weights": "float8"},
    {"weights": "int8"},
    {"offload": "layers", "weights": "float8"},
)
"""Options of `engines.placement.place`."""
STEPS = 3


def peak_of(build: Callable[[], LatentDiffusion], options: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Bytes of the device that an image takes at most, weights included, and the seconds of a step."""
    model = build().to("cpu")
    gc.collect()
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if cuda else 0
    model = place(model, device, **options)
    ends = list[float]()
    model.generate("a red apple", steps=STEPS, callback=lambda *_: ends.append(time.perf_counter()))
    found: dict[str, Any] = {"seconds_a_step": (ends[-1] - ends[0]) / (len(ends) - 1)}
    if cuda:
        found |= {
            "peak_bytes": torch.cuda.max_memory_allocated(device) - before,
            "reserved_bytes": torch.cuda.max_memory_reserved(device),
        }
    return found
