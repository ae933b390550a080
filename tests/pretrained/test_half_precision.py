"""Networks opened in half precision paint: what they paint in float32, within the tolerance that the field uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.models.latent_diffusion import LatentDiffusion
from tests.pretrained.every_family import KINDS, opened

pytest.importorskip("diffusers")

TOLERANCE = 5e-2
"""Of a value of the image, 0 to 1."""
PAINTING = {  # what is asked of each
    **dict.fromkeys(("sd1-folder-unet", "if-base", "if-enlarging", "ldm-text-kl"), "a red apple"),
    **dict.fromkeys(("ldm-class-vq4", "adm-upsampler"), "7"),
}


def painted(name: str, folder: Path, dtype: str) -> np.ndarray:
    model = opened(KINDS[name], folder, dtype=dtype)
    network = model.unet if isinstance(model, LatentDiffusion) else model.network
    assert {p.dtype for p in network.parameters()} == {getattr(torch, dtype)}
    own: dict[str, Any] = {"size": (32, 32)} if isinstance(model, LatentDiffusion) else {}
    if not isinstance(model, LatentDiffusion) and model.config.low_size is not None:
        side = model.config.low_size
        values = np.random.default_rng(0).integers(0, 256, (side, side, 3))
        own = {"low": Image.fromarray(values.astype(np.uint8))}
    guided = isinstance(model, LatentDiffusion) and model.config.text is not None
    result = model.generate(PAINTING[name], seeds=[3], steps=3, guidance=3.0 if guided else None, **own)
    return np.asarray(result.images[0], dtype=float) / 255


FAST = {"if-base", "ldm-text-kl"}  # pixels and latents, of small images


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in PAINTING]
)
def test_half_precision_paints_what_single_precision_does(name: str, tmp_path: Path) -> None:
    KINDS[name].write(tmp_path)
    full = painted(name, tmp_path, "float32")
    assert full.std() > 0.1
    for dtype in ("float16", "bfloat16"):
        apart = np.abs(painted(name, tmp_path, dtype) - full)
        # bfloat16 has an eighth of the precision, and guidance multiplies what is lost. And a latent that is rounded to
        # the nearest entry of a codebook jumps to another. Both differ more in single places than on the whole.
        largest = dtype == "float16" and "vq" not in name
        assert 0 < (apart.max() if largest else np.square(apart).mean() ** 0.5) <= TOLERANCE, dtype
