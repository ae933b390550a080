"""Guidance and thresholding: each wraps a denoiser and is itself a denoiser, so they stack.

guided = ClassifierFreeGuidance(denoiser, cond, uncond, scale=7.0)
bounded = DynamicThreshold(guided, percentile=0.95)
picture = sampler(bounded, x, times, schedule, noise=noise)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from diptych.config import Config
from diptych.diffusion.denoiser import Cond, Denoising, Estimate, Time
from diptych.errors import UserError, pick


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
        """Pictures that the network has seen so far."""
        return self.denoiser.calls

    @property
    def gradients(self) -> int:
        """Pictures for which the gradient of a score was taken so far (`diptych.diffusion.gradients`)."""
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

    cond, uncond: conditions of B rows, or of 1 row for all pictures. A key that only one has is filled with zeros in
      the other; contexts of different lengths are padded and masked.
    scale: 1 is the plain conditional and 0 the unconditional, which are then computed alone; a number, or (B,) for a
      scale per picture.
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
        both = self.denoiser.estimate(torch.cat([x, x]), times.repeat(2), join(self.cond, self.uncond, len(x)))
        with_cond, without = both.x0.chunk(2)
        scale = scale.to(with_cond).view(-1, *[1] * (x.ndim - 1))
        # The variance is the conditional half's, as in GLIDE and DeepFloyd IF.
        variance = None if both.variance is None else both.variance[: len(x)]
        return Estimate(without + scale * (with_cond - without), variance)


class StaticThreshold(Wrapper):
    """Clip x_0 to [-limit, limit] (Imagen, Sec. 2.3). For pixels; latents have no such bounds."""

    def __init__(self, denoiser: Denoising, limit: float = 1.0):
        super().__init__(denoiser)
        self.limit = limit

    def estimate(self, x: Tensor, t: Time, cond: Cond | None = None) -> Estimate:
        x0, variance = self.denoiser.estimate(x, t, cond)
        return Estimate(x0.clamp(-self.limit, self.limit), variance)


class DynamicThreshold(Wrapper):
    """Clip each x_0 to a percentile s of its absolute values, and divide by s where s > 1 (Imagen, Sec. 2.3).

    percentile: as a fraction, 0.95 or 0.995.
    cap: s is at most this (DeepFloyd IF: 1.5); with 1.0 it is static thresholding. None leaves s free, as in Imagen.
    """

    def __init__(self, denoiser: Denoising, percentile: float = 0.95, cap: float | None = None):
        super().__init__(denoiser)
        if not 0 < percentile <= 1:
            raise UserError(f"the threshold percentile is a fraction between 0 and 1, such as 0.95, not {percentile}")
        if cap is not None and cap < 1:
            raise UserError(f"the threshold cap must be at least 1, not {cap}")
        self.percentile, self.cap = percentile, cap

    def estimate(self, x: Tensor, t: Time, cond: Cond | None = None) -> Estimate:
        x0, variance = self.denoiser.estimate(x, t, cond)
        s = quantile(x0.abs().reshape(len(x0), -1), self.percentile).clamp(1, self.cap).view(-1, *[1] * (x0.ndim - 1))
        return Estimate(x0.clamp(-s, s) / s, variance)


@dataclass(frozen=True, kw_only=True)
class ThresholdConfig(Config):
    """What bounds the estimate of the picture at every step, for high guidance weights (Imagen, section 2.3)."""

    kind: Literal["none", "static", "dynamic"] = "dynamic"
    """none; static: clipped to [-1, 1]; dynamic: clipped to a percentile of its own values and scaled back."""
    percentile: float = 0.95
    """dynamic only: the fraction of values that are left alone."""
    cap: float | None = None
    """dynamic only: the most that is scaled back (DeepFloyd IF: 1.5), or none."""

    def check(self) -> None:
        self.require(0 < self.percentile <= 1, "percentile", "be a fraction between 0 and 1")
        self.require(self.cap is None or self.cap >= 1, "cap", "be at least 1, or none")

    @classmethod
    def parse(cls, value: Any) -> ThresholdConfig:
        """From a config, or from "none", "static", "dynamic", "dynamic:0.95" or "dynamic:0.95:1.5"."""
        if isinstance(value, ThresholdConfig):
            return value
        kind, *numbers = str(value).split(":")
        pick("threshold", kind, ("none", "static", "dynamic"))
        names = ("percentile", "cap") if kind == "dynamic" else ()
        try:
            values = dict(zip(names[: len(numbers)], map(float, numbers), strict=True))
        except ValueError:  # no numbers, or too many
            raise UserError(f"cannot read the threshold {value!r}: write it as dynamic:0.95:1.5") from None
        return cls.from_dict({"kind": kind, **values})

    def around(self, denoiser: Denoising) -> Denoising:
        """The denoiser, bounded."""
        if self.kind == "none":
            return denoiser
        if self.kind == "static":
            return StaticThreshold(denoiser)
        return DynamicThreshold(denoiser, self.percentile, self.cap)

    def __str__(self) -> str:
        if self.kind != "dynamic":
            return self.kind
        return f"dynamic:{self.percentile:g}" + ("" if self.cap is None else f":{self.cap:g}")


def quantile(values: Tensor, fraction: float) -> Tensor:
    """(B, N) -> (B,), linear between neighbours: torch.quantile without its limit of 16 million values."""
    ordered = values.sort(dim=1).values
    position = fraction * (values.shape[1] - 1)
    low = int(position)
    return torch.lerp(ordered[:, low], ordered[:, min(low + 1, values.shape[1] - 1)], position - low)


def join(first: Cond, second: Cond, batch: int) -> dict[str, Tensor]:
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
    """Zeros for what `half` lacks. Zero tokens count as real: attention reads nothing from them, and is never empty."""
    for key, value in other.items():
        if key not in half:
            half[key] = torch.ones_like(value) if value.dtype == torch.bool else torch.zeros_like(value)


def _pad(tokens: Tensor, length: int) -> Tensor:
    """(B, L, ...) -> (B, length, ...), zeros (or False) behind."""
    return torch.cat([tokens, tokens.new_zeros(len(tokens), length - tokens.shape[1], *tokens.shape[2:])], 1)


def _rows(cond: Cond, batch: int) -> Cond:
    """A condition of one row stands for every picture."""
    for key, value in cond.items():
        if len(value) not in (1, batch):
            raise UserError(f"the condition {key!r} has {len(value)} rows for {batch} pictures")
    return {key: value.expand(batch, *value.shape[1:]) for key, value in cond.items()}
