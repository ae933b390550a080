"""Thresholding: bounds on the estimate of x_0, which high guidance scales drive out of [-1, 1] (Imagen, Sec. 2.3).

Each wraps a denoiser and is itself a denoiser.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from diptych.core.config import Config
from diptych.core.errors import UserError, pick
from diptych.diffusion.denoiser import Cond, Denoising, Estimate, Time
from diptych.diffusion.guidance import Wrapper


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
    """Thresholding of the estimate of x_0 at every step, for high guidance scales (Imagen, section 2.3)."""

    kind: Literal["none", "static", "dynamic"] = "dynamic"
    """none; static: clipped to [-1, 1]; dynamic: clipped to a percentile of its own values and scaled back."""
    percentile: float = 0.95
    """dynamic only: the fraction of values that are not clipped."""
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

    def wrap(self, denoiser: Denoising) -> Denoising:
        """The denoiser with this thresholding."""
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
