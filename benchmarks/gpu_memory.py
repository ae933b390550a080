"""Peak memory of the ways to bring Stable Diffusion 1.x to a GPU. To measure another, add a line to `MEMORY`."""

from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Callable
from typing import Any

import torch

from diptych.engines.offload import networks, weight_bytes
from diptych.engines.placement import image_bytes, place
from diptych.models.latent_diffusion import LatentDiffusion

MEMORY: tuple[dict[str, Any], ...] = (
    {},
    {"offload": "parts"},
    {"offload": "layers"},
    {"weights": "float8"},
    {"weights": "int8"},
    {"offload": "parts", "weights": "int8"},
    {"offload": "layers", "weights": "float8"},
)
"""Options of `engines.placement.place`."""
STEPS = 3


def peak_of(build: Callable[[], LatentDiffusion], options: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Bytes of the device that an image takes at most, weights included, beside those that are counted; the seconds of
    a step; and a hash of the image, which is the same wherever weights lie."""
    model = build().to("cpu")
    gc.collect()
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if cuda else 0
    model = place(model, device, **options)
    ends = list[float]()
    result = model.generate("a red apple", steps=STEPS, callback=lambda *_: ends.append(time.perf_counter()))
    found: dict[str, Any] = {"seconds_a_step": (ends[-1] - ends[0]) / (len(ends) - 1)}
    found["image"] = hashlib.sha256(result.images[0].tobytes()).hexdigest()[:16]
    found["counted_bytes"] = weight_bytes(networks(model))[options.get("offload", "none")] + image_bytes(model)
    if cuda:
        found |= {
            "peak_bytes": torch.cuda.max_memory_allocated(device) - before,
            "reserved_bytes": torch.cuda.max_memory_reserved(device),
        }
    return found
