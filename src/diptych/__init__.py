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

    from diptych.cascade import Cascade
    from diptych.latent import LatentDiffusion
    from diptych.stage import Stage

__all__ = ["UserError", "load"]


def load(source: str | Path | None = None, device: str = "auto") -> LatentDiffusion | Stage | Cascade:
    """Open a model: the one door to every system.

    Args:
        source: a run folder or model folder, or "latent" (also if none) or "cascade" for the defaults in the package.
        device: where its tensors go: "cpu", "cuda", or "auto" for CUDA where there is one.

    Raises:
        UserError: there is no such model, or a file in it is missing, truncated, of the wrong kind or not finite.
    """
    from diptych.devices import find_device
    from diptych.opening import open_model

    return open_model(source).to(find_device(device))
