"""What guidance and threshold do in each step: measured on what networks and denoisers return, without touching it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diptych.models.pixel_diffusion import PixelDiffusion


class StepMeasures:
    """Within, hooks on a model's denoising networks measure what they return.

    guidance_delta: root mean square of the difference between the outputs with the prompt and without it (or with the
      negative prompt), relative to that of the former. `ClassifierFreeGuidance` asks for both in one call of 2B.
    clipped: share of the values of x_0 that lie at the bounds of an image, where a threshold has put them; of models of
      pixels.
    stage: side of the images of the stage that runs, in pixels; of cascades.
    """

    def __init__(self, model: Any, count: int) -> None:
        self.count = count
        self.cascade = len(getattr(model, "configs", ())) > 1
        self.pixels = self.cascade or isinstance(model, PixelDiffusion)
        networks = list(getattr(model, "_open", {}).values()) or [model]
        modules = [getattr(one, "unet", None) or getattr(one, "network", None) for one in networks]
        self.modules = [one for one in modules if isinstance(one, nn.Module)]
        self.hooks: list[Any] = []
        self.last: Tensor | None = None

    def __enter__(self) -> StepMeasures:
        self.hooks = [module.register_forward_hook(self._seen) for module in self.modules]
        return self

    def __exit__(self, *reason: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _seen(self, module: nn.Module, given: Any, output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else output
        self.last = output if isinstance(output, Tensor) and len(output) == 2 * self.count else None

    @torch.no_grad()
    def of_step(self, x0: Tensor) -> dict[str, list[float]]:
        """Of the step that gave the estimate x0 (B, ...), one value for each image; without what does not apply."""
        row: dict[str, list[float]] = {"stage": [x0.shape[-1]] * len(x0)} if self.cascade else {}
        if self.pixels:
            shares = (x0.abs() >= 1).flatten(1).float().mean(1)
            row["clipped"] = [round(value, 4) for value in shares.tolist()]
        if self.last is None:
            return row
        cond, uncond = self.last.float().flatten(1).chunk(2)
        difference = (cond - uncond).square().mean(1).sqrt() / cond.square().mean(1).sqrt().clamp(min=1e-12)
        self.last = None
        return row | {"guidance_delta": [round(value, 4) for value in difference.tolist()]}
