"""Classifier-free guidance. Guidance and thresholding each wrap a denoiser and are denoisers, so they stack.

guided = ClassifierFreeGuidance(denoiser, cond, uncond, scale=7.0)
bounded = DynamicThreshold(guided, percentile=0.95)
image = sampler(bounded, x, times, schedule, noise=noise)
"""

from __future__ import annotations

import torch
from torch import Tensor

from diptych.core.errors import UserError
from diptych.diffusion.denoiser import Cond, Denoising, Estimate, Time


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
        """Pictures for which the gradient of a score was taken so far (`diptych.diffusion.gradient_guidance`)."""
        return self.denoiser.gradients

    @gradients.setter
    def gradients(self, count: int) -> None:
        self.denoiser.gradients = count


class Conditioned(Wrapper):
    """A denoiser with its condition bound: `cond` of the call is ignored."""

    def __init__(self, denoiser: Denoising, cond: Cond):
        super().__init__(denoiser)
        self.cond = cond

    def estimate(self, x: Tensor, t: Time, cond: Cond | None = None) -> Estimate:
        return self.denoiser.estimate(x, t, _rows(self.cond, len(x)))


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
        self.cond, self.uncond, self.scale, self.interval = cond, uncond, scale, interval

    def estimate(self, x: Tensor, t: Time, cond: Cond | None = None) -> Estimate:
        low, high = self.interval
        times = torch.as_tensor(t, dtype=torch.float64).expand(len(x))
        scale = torch.as_tensor(self.scale, dtype=torch.float64, device=times.device).expand(len(x))
        scale = torch.where((times >= low) & (times <= high), scale, 1.0)  # (B,)
        if bool((scale == 1).all()):
            return self.denoiser.estimate(x, t, _rows(self.cond, len(x)))
        if bool((scale == 0).all()):
            return self.denoiser.estimate(x, t, _rows(self.uncond, len(x)))
        both = self.denoiser.estimate(
            torch.cat([x, x]), times.repeat(2), cat_conditions(self.cond, self.uncond, len(x))
        )
        with_cond, without = both.x0.chunk(2)
        scale = scale.to(with_cond).view(-1, *[1] * (x.ndim - 1))
        # The variance is the conditional half's, as in GLIDE and DeepFloyd IF.
        variance = None if both.variance is None else both.variance[: len(x)]
        return Estimate(without + scale * (with_cond - without), variance)


def cat_conditions(first: Cond, second: Cond, batch: int) -> dict[str, Tensor]:
    """One condition of 2 x batch rows: those of `first`, then those of `second`."""
    halves = dict(_rows(first, batch)), dict(_rows(second, batch))
    lengths = [half["context"].shape[1] if "context" in half else 0 for half in halves]
    if lengths[0] != lengths[1]:
        for half in halves:
            if "context" in half:
                half.setdefault("context_mask", half["context"].new_ones(half["context"].shape[:2], dtype=torch.bool))
                half["context"] = _pad(half["context"], max(lengths))
                half["context_mask"] = _pad(half["context_mask"], max(lengths))
    _fill(halves[0], halves[1])
    _fill(halves[1], halves[0])
    return {key: torch.cat([halves[0][key], halves[1][key]]) for key in halves[0]}


def _fill(half: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Zeros for the keys that `half` lacks. Zero tokens count as real, so that attention always has keys."""
    for key, value in other.items():
        if key not in half:
            half[key] = torch.ones_like(value) if value.dtype == torch.bool else torch.zeros_like(value)


def _pad(tokens: Tensor, length: int) -> Tensor:
    """(B, L, ...) -> (B, length, ...), padded with zeros (or False)."""
    return torch.cat([tokens, tokens.new_zeros(len(tokens), length - tokens.shape[1], *tokens.shape[2:])], 1)


def _rows(cond: Cond, batch: int) -> Cond:
    """A condition of one row, expanded to the batch."""
    for key, value in cond.items():
        if len(value) not in (1, batch):
            raise UserError(f"the condition {key!r} has {len(value)} rows for {batch} images")
    return {key: value.expand(batch, *value.shape[1:]) for key, value in cond.items()}
