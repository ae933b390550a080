"""diptych: text to image in two panels, latent (Stable Diffusion) and cascade (Imagen), on one frame.

>>> import diptych
>>> model = diptych.load()
>>> model.generate("a red apple", seeds=[0]).images[0].save("apple.png")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from diptych.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from diptych.latent import LatentDiffusion

__all__ = ["UserError", "load"]


def load(source: str | Path | None = None, device: str = "auto") -> LatentDiffusion:
    """Open a model: the one door to every system.

    Args:
        source: a run folder or model folder, or none (or "latent") for the default model inside the package.
        device: where its tensors go: "cpu", "cuda", or "auto" for CUDA where there is one.

    Raises:
        UserError: there is no such model, or a file in it is missing, truncated, of the wrong kind or not finite.
    """
    from diptych.devices import find_device
    from diptych.opening import open_model

    return open_model(source).to(find_device(device))
