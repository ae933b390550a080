"""The denoiser: the one place that knows what a network predicts, and in which units it is told the time.

Everything else in the library asks one question, "which picture x_0 is in this noisy x_t?", and gets one answer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from diptych.core.errors import UserError, pick
from diptych.diffusion.losses import variance_bound
from diptych.diffusion.schedules import Schedule

Cond = Mapping[str, Tensor]
"""A condition: keyword arguments of the network, the first axis of each is the picture."""
Prediction = Literal["eps", "v", "x0", "flow"]
Weighting = Literal["none", "min-snr", "truncated-snr"]
ErrorKind = Literal["mse", "l1"]
Time = float | Tensor
"""A time in [0, 1]: one for all pictures, or (B,)."""

SMALLEST = 1e-5  # below any alpha of a published schedule (4.9e-5); at alpha = 0 eps says nothing about x_0


class Estimate(NamedTuple):
    x0: Tensor
    """(B, ...) the picture, as the network sees it now."""
    variance: Tensor | None = None
    """(B, ...) in [-1, 1]: where between the smallest and largest variance a DDPM step draws; None if not learned."""


class Denoising(Protocol):
    """What samplers and guidance ask for: `Denoiser` itself, or any wrapper of `diptych.diffusion.guidance`."""

    @property
    def calls(self) -> int: ...

    @property
    def gradients(self) -> int: ...

    @gradients.setter
    def gradients(self, count: int) -> None: ...

    def estimate(self, x: Tensor, t: Time, cond: Cond | None = None) -> Estimate: ...

    def __call__(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor: ...


class Denoiser:
    """A network made into `(x, t, cond) -> x_0`.

    network: any callable `(x (B, C, ...), time (B,), **cond) -> (B, C, ...)`, or (B, 2C, ...) with learned variance.
    prediction: what the network puts out, for x_t = alpha x_0 + sigma eps:
      `eps`; `x0`; `v` = alpha eps - sigma x_0 (Salimans & Ho 2022, App. D); `flow` = eps - x_0 (Liu et al. 2022).
    learned_variance: the second half of the output channels is the variance fraction (Nichol & Dhariwal 2021, Eq. 15).
    """

    def __init__(
        self,
        network: Callable[..., Tensor],
        schedule: Schedule,
        prediction: Prediction = "eps",
        learned_variance: bool = False,
    ):
        self.network, self.schedule = network, schedule
        self.prediction = pick("prediction", prediction, ("eps", "v", "x0", "flow"))
        self.learned_variance = learned_variance
        self._counts = {"calls": 0, "gradients": 0}

    @property
    def calls(self) -> int:
        """Pictures that the network has seen so far: a batch of 4 counts 4."""
        return self._counts["calls"]

    @calls.setter
    def calls(self, count: int) -> None:
        self._counts["calls"] = count

    @property
    def gradients(self) -> int:
        """Pictures for which a wrapper around it took the gradient of a score."""
        return self._counts["gradients"]

    @gradients.setter
    def gradients(self, count: int) -> None:
        self._counts["gradients"] = count

    def on(self, schedule: Schedule) -> Denoiser:
        """The same network on another schedule; both count together."""
        if schedule is self.schedule:
            return self
        other = copy.copy(self)
        other.schedule = schedule
        return other

    def estimate(self, x: Tensor, t: Time, cond: Cond | None = None) -> Estimate:
        """x (B, C, ...) at time t (a number, or (B,)) -> the estimate of x_0, in float32 at least."""
        times = self._times(x, t)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        output, variance = self._run(x, times, cond or {})
        return Estimate(self._x0(x, output, times), variance)

    def __call__(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        return self.estimate(x, t, cond).x0

    def noised(self, x0: Tensor, noise: Tensor, t: Time) -> Tensor:
        """x_t = alpha x_0 + sigma eps. x0, noise (B, ...); t a number or (B,)."""
        alpha, sigma = self._alpha_sigma(x0, self._times(x0, t))
        return alpha * x0 + sigma * noise

    def target(self, x0: Tensor, noise: Tensor, t: Time) -> Tensor:
        """What a perfect network puts out when it knows x_0 and the noise."""
        if self.prediction == "eps":
            return noise
        if self.prediction == "x0":
            return x0
        if self.prediction == "flow":
            return noise - x0
        alpha, sigma = self._alpha_sigma(x0, self._times(x0, t))
        return alpha * noise - sigma * x0

    def loss(
        self,
        x0: Tensor,
        noise: Tensor,
        t: Time,
        cond: Cond | None = None,
        weighting: Weighting = "none",
        gamma: float = 5.0,
        kind: ErrorKind = "mse",
    ) -> Tensor:
        """(B,) mean error of the network's output, one per image: squared, or absolute with `l1` (SR3, section 2.2).

        weighting: `none` is the plain error of whatever the network predicts (DDPM, Eq. 14); `min-snr` bounds the
          weight of the x_0 error by gamma, so that nearly clean pictures do not dominate (Hang et al. 2023);
          `truncated-snr` keeps it at 1 or more besides, so that the noisiest count too (Salimans & Ho 2022, Eq. 9).
          Both are of squared errors: a `UserError` with `l1`.
        A learned variance adds its bound, which leaves the picture's estimate alone (Nichol & Dhariwal 2021, Eq. 16).
        """
        times = self._times(x0, t)
        x = self.noised(x0, noise, times)
        output, fraction = self._run(x, times, cond or {})
        error = output - self.target(x0, noise, times)
        if pick("loss", kind, ("mse", "l1")) == "l1" and weighting != "none":
            raise UserError(f"{weighting} weighs a squared error: it does not go with the loss l1")
        error = (error.square() if kind == "mse" else error.abs()).reshape(len(x), -1).mean(1)  # (B,)
        error = error * self.weight(times, weighting, gamma).to(error)
        if fraction is None:
            return error
        bound = variance_bound(x0, self._x0(x, output, times), fraction, times, self.schedule)
        return error + bound * self.schedule.steps / 1000  # L_hybrid: 0.001 of the sum over all T steps (Eq. 16)

    def weight(self, t: Tensor, weighting: Weighting, gamma: float = 5.0) -> Tensor:
        """(B,) float64 weight of each picture's loss at its time t (B,)."""
        alpha, sigma = self.schedule.alpha_sigma(t.double())
        if pick("weighting", weighting, ("none", "min-snr", "truncated-snr")) == "none":
            return torch.ones_like(alpha)
        # min(SNR, gamma) weighs the error of x_0; dividing by |d output / d x_0|^2 weighs that of the output.
        least = sigma**2 if weighting == "truncated-snr" else torch.zeros_like(sigma)
        bounded = torch.minimum(torch.maximum(alpha**2, least), gamma * sigma**2)  # sigma^2 min(max(SNR, .), gamma)
        scale = {
            "eps": alpha**2,
            "x0": sigma**2,
            "v": (alpha**2 + sigma**2) ** 2,
            "flow": (alpha + sigma) ** 2,
        }[self.prediction]
        return bounded / scale.clamp(min=SMALLEST**2)

    def _run(self, x: Tensor, times: Tensor, cond: Cond) -> tuple[Tensor, Tensor | None]:
        """The network's output in the precision of x, and the variance half where it is learned."""
        self.calls += len(x)
        time = self.schedule.network_time(times).to(x)  # float64 until here, so that whole numbers stay whole
        kind = self._kind(x.dtype)
        told = {
            key: value.to(kind) if value.ndim > 1 and value.is_floating_point() else value
            for key, value in cond.items()
        }
        output = self.network(x.to(kind), time, **told).to(x.dtype)
        if not self.learned_variance:
            return output, None
        if output.shape[1] != 2 * x.shape[1]:
            raise UserError(f"a learned variance needs {2 * x.shape[1]} output channels, not {output.shape[1]}")
        return output.chunk(2, dim=1)  # type: ignore[return-value]

    def _kind(self, usual: torch.dtype) -> torch.dtype:
        """In what the network computes. Its weights may be of half precision; times and levels are told as they are."""
        parameters = self.network.parameters() if isinstance(self.network, torch.nn.Module) else iter(())
        return next((parameter.dtype for parameter in parameters), usual)

    def _x0(self, x: Tensor, output: Tensor, times: Tensor) -> Tensor:
        """The picture that the network's output means, from x_t = alpha x_0 + sigma eps."""
        alpha, sigma = self._alpha_sigma(x, times)
        if self.prediction == "eps":
            return (x - sigma * output) / alpha.clamp(min=SMALLEST)
        if self.prediction == "v":
            return (alpha * x - sigma * output) / (alpha**2 + sigma**2)
        if self.prediction == "flow":
            return (x - sigma * output) / (alpha + sigma)
        return output

    def _times(self, x: Tensor, t: Time) -> Tensor:
        """(B,) float64, on the CPU unless t is a tensor elsewhere."""
        return torch.as_tensor(t, dtype=torch.float64).expand(len(x))

    def _alpha_sigma(self, x: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) in the precision of x and shaped to multiply it: (B, 1, ...)."""
        shape = (-1, *[1] * (x.ndim - 1))
        alpha, sigma = self.schedule.alpha_sigma(times)
        return alpha.to(x).view(shape), sigma.to(x).view(shape)
