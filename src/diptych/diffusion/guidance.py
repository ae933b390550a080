"""Classifier-free guidance. Guidance and thresholding each wrap a denoiser and are denoisers, so they stack.

guided = ClassifierFreeGuidance(denoiser, cond, uncond, scale=7.0)
bounded = DynamicThreshold(guided, percentile=0.95)
image = sampler(bounded, x, times, schedule, noise=noise)
"""

from __future__ import annotations

import torch
from torch import Tensor

from diptych.core.errors import UserError
from diptych.diffusion.conditions import cat_conditions, expand_condition, without_full_masks
from diptych.diffusion.denoiser import Cond, Denoising, Estimate, Time, sent_like


class Wrapper:
    """A denoiser around another one. Subclasses change `estimate`."""

    def __init__(self, denoiser: Denoising):
        self.denoiser = denoiser

    def estimate(self, x: Tensor, t: Time, cond: Cond | None = None) -> Estimate:
        return self.denoiser.estimate(x, t, cond)

    def __call__(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        return self.estimate(x, t, cond).x0

    @property
    def calls(self) -> int:
        """Images that the network has processed so far."""
        return self.denoiser.calls

    @property
    def gradients(self) -> int:
        """Images for which the gradient of a score was taken so far (`diptych.diffusion.gradient_guidance`)."""
        return self.denoiser.gradients

    @gradients.setter
    def gradients(self, count: int) -> None:
        self.denoiser.gradients = count


class ClassifierFreeGuidance(Wrapper):
    """x_0 = uncond + scale (cond - uncond), both from one batched call (Ho & Salimans 2022, Eq. 6, with scale = 1 + w).

    cond, uncond: conditions of B rows, or of 1 row for all images. A key that only one has is filled with zeros in
      the other; contexts of different lengths are padded and masked.
    scale: 1 is the plain conditional and 0 the unconditional, which are then computed alone; a number, or (B,) for a
      scale per image.
    interval: guide only at times within it (Kynkäänniemi et al. 2024); outside, only the conditional half is computed.
    """

    def __init__(
        self,
        denoiser: Denoising,
        cond: Cond,
        uncond: Cond,
        scale: float | Tensor,
        interval: tuple[float, float] = (0.0, 1.0),
    ):
        super().__init__(denoiser)
        if not 0 <= interval[0] <= interval[1] <= 1:
            raise UserError(f"the guidance interval must lie within 0 and 1, low before high, not {interval}")
        self.cond, self.uncond = without_full_masks(cond, uncond)
        self.scale, self.interval = scale, interval

    def estimate(self, x: Tensor, t: Time, cond: Cond | None = None) -> Estimate:
        low, high = self.interval
        times = torch.as_tensor(t, dtype=torch.float64).expand(len(x))
        scale = torch.as_tensor(self.scale, dtype=torch.float64, device=times.device).expand(len(x))
        scale = torch.where((times >= low) & (times <= high), scale, 1.0)  # (B,)
        if bool((scale == 1).all()):
            return self.denoiser.estimate(x, t, expand_condition(self.cond, len(x)))
        if bool((scale == 0).all()):
            return self.denoiser.estimate(x, t, expand_condition(self.uncond, len(x)))
        both = cat_conditions(self.cond, self.uncond, len(x))
        x0, variance = self.denoiser.estimate(torch.cat([x, x]), times.repeat(2), both)
        cond_x0, uncond_x0 = x0.chunk(2)
        scale = sent_like(x0, scale).view(-1, *[1] * (x.ndim - 1))
        # The variance is the conditional half's, as in GLIDE and DeepFloyd IF.
        return Estimate(uncond_x0 + scale * (cond_x0 - uncond_x0), None if variance is None else variance[: len(x)])
