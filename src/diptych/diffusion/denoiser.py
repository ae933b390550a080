"""The denoiser: a network as (x_t, t, cond) -> x_0.

Prediction type, learned variance, the units of the time and the dtype of the network are handled here and nowhere else.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from diptych.core.errors import UserError, pick
from diptych.diffusion.schedules import Schedule

Cond = Mapping[str, Tensor]
"""A condition: keyword arguments of the network, the first axis of each is the batch."""
Prediction = Literal["eps", "v", "x0", "flow"]
Weighting = Literal["none", "min-snr", "truncated-snr"]
LossType = Literal["mse", "l1"]
Time = float | Tensor
"""A time in [0, 1]: one for the whole batch, or (B,)."""

MIN_ALPHA = 1e-5  # below any alpha of a published schedule (4.9e-5); at alpha = 0, eps does not determine x_0


class Estimate(NamedTuple):
    x0: Tensor
    """(B, ...) the prediction of x_0."""
    variance: Tensor | None = None
    """(B, ...) in [-1, 1]: where between the smallest and largest variance a DDPM step draws; None if not learned."""


class Denoising(Protocol):
    """The interface that samplers and guidance need: a `Denoiser`, or any wrapper of one (`guidance.Wrapper`)."""

    @property
    def calls(self) -> int: ...

    @property
    def gradients(self) -> int: ...

    @gradients.setter
    def gradients(self, count: int) -> None: ...

    def estimate(self, x: Tensor, t: Time, cond: Cond | None = None) -> Estimate: ...

    def __call__(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor: ...


class Denoiser:
    """A network as `(x, t, cond) -> x_0`.

    network: any callable `(x (B, C, ...), time (B,), **cond) -> (B, C, ...)`, or (B, 2C, ...) with learned variance.
    prediction: what the network predicts, for x_t = alpha x_0 + sigma eps:
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
        """Images that the network has processed so far: a batch of 4 counts 4."""
        return self._counts["calls"]

    @calls.setter
    def calls(self, count: int) -> None:
        self._counts["calls"] = count

    @property
    def gradients(self) -> int:
        """Images for which a wrapper took the gradient of a score."""
        return self._counts["gradients"]

    @gradients.setter
    def gradients(self, count: int) -> None:
        self._counts["gradients"] = count

    def with_schedule(self, schedule: Schedule) -> Denoiser:
        """The same network with another schedule; calls of both are counted together."""
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

    def add_noise(self, x0: Tensor, noise: Tensor, t: Time) -> Tensor:
        """x_t = alpha x_0 + sigma eps. x0, noise (B, ...); t a number or (B,)."""
        alpha, sigma = self._alpha_sigma(x0, self._times(x0, t))
        return alpha * x0 + sigma * noise

    def target(self, x0: Tensor, noise: Tensor, t: Time) -> Tensor:
        """The training target: the output of the network from which x_0 follows exactly."""
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
        loss_type: LossType = "mse",
    ) -> Tensor:
        """(B,) mean error of the network's output, one per image: squared, or absolute with `l1` (SR3, section 2.2).

        weighting: `none` is the plain error of whatever the network predicts (DDPM, Eq. 14); `min-snr` bounds the
          weight of the x_0 error by gamma, so that nearly clean images do not dominate (Hang et al. 2023);
          `truncated-snr` also bounds it from below by 1, so that the noisiest images count (Salimans & Ho 2022, Eq. 9).
          Both are of squared errors: a `UserError` with `l1`.
        A learned variance adds its bound, without a gradient for x_0 (Nichol & Dhariwal 2021, Eq. 16).
        """
        times = self._times(x0, t)
        x = self.add_noise(x0, noise, times)
        output, fraction = self._run(x, times, cond or {})
        error = output - self.target(x0, noise, times)
        if pick("loss", loss_type, ("mse", "l1")) == "l1" and weighting != "none":
            raise UserError(f"{weighting} weighs a squared error: it does not go with the loss l1")
        error = (error.square() if loss_type == "mse" else error.abs()).reshape(len(x), -1).mean(1)  # (B,)
        error = error * self.weight(times, weighting, gamma).to(error)
        if fraction is None:
            return error
        from diptych.diffusion.losses import variance_bound

        bound = variance_bound(x0, self._x0(x, output, times), fraction, times, self.schedule)
        return error + bound * self.schedule.steps / 1000  # L_hybrid: 0.001 of the sum over all T steps (Eq. 16)

    def weight(self, t: Tensor, weighting: Weighting, gamma: float = 5.0) -> Tensor:
        """(B,) float64 weight of each image's loss at its time t (B,)."""
        if pick("weighting", weighting, ("none", "min-snr", "truncated-snr")) == "none":
            return torch.ones_like(t, dtype=torch.float64)
        alpha, sigma = self.schedule.alpha_sigma(t.double())
        # min(SNR, gamma) weighs the error of x_0; dividing by |d output / d x_0|^2 weighs that of the output.
        least = sigma**2 if weighting == "truncated-snr" else torch.zeros_like(sigma)
        bounded = torch.minimum(torch.maximum(alpha**2, least), gamma * sigma**2)  # sigma^2 min(max(SNR, .), gamma)
        scale = {
            "eps": alpha**2,
            "x0": sigma**2,
            "v": (alpha**2 + sigma**2) ** 2,
            "flow": (alpha + sigma) ** 2,
        }[self.prediction]
        return bounded / scale.clamp(min=MIN_ALPHA**2)

    def _run(self, x: Tensor, times: Tensor, cond: Cond) -> tuple[Tensor, Tensor | None]:
        """The network's output in the precision of x, and the variance half where it is learned."""
        self.calls += len(x)
        time = sent_like(x, self.schedule.network_time(times))  # float64 until here: whole numbers stay whole
        dtype = self._network_dtype(x.dtype)
        cond = {  # (B,) values such as levels keep their precision
            key: value.to(dtype) if value.ndim > 1 and value.is_floating_point() else value
            for key, value in cond.items()
        }
        output = self.network(x.to(dtype), time, **cond).to(x.dtype)
        if not self.learned_variance:
            return output, None
        if output.shape[1] != 2 * x.shape[1]:
            raise UserError(f"a learned variance needs {2 * x.shape[1]} output channels, not {output.shape[1]}")
        return output.chunk(2, dim=1)  # type: ignore[return-value]

    def _network_dtype(self, default: torch.dtype) -> torch.dtype:
        """The dtype of the network's weights, which may be of half precision."""
        parameters = self.network.parameters() if isinstance(self.network, torch.nn.Module) else iter(())
        return next((parameter.dtype for parameter in parameters), default)

    def _x0(self, x: Tensor, output: Tensor, times: Tensor) -> Tensor:
        """x_0 from the network's output, by x_t = alpha x_0 + sigma eps."""
        alpha, sigma = self._alpha_sigma(x, times)
        if self.prediction == "eps":
            return (x - sigma * output) / alpha.clamp(min=MIN_ALPHA)
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
        alpha, sigma = (sent_like(x, each) for each in self.schedule.alpha_sigma(times))
        return alpha.view(shape), sigma.view(shape)


def sent_like(x: Tensor, values: Tensor) -> Tensor:
    """Values in the dtype and on the device of x; a GPU is not waited for."""
    from diptych.core.devices import sent

    return sent(values.to(x.dtype), x.device)
