"""Image-to-image and inpainting with any denoiser: SDEdit from a noised image, RePaint within a mask."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from diptych.diffusion.denoiser import Cond, Denoising, Estimate, Time
from diptych.diffusion.guidance import Wrapper


class RePaint(Wrapper):
    """Replaces x_t outside the mask by the noised image before each call of the denoiser (RePaint: Lugmayr et al. 2022,
    Eq. 8, with the same noise at all times and without resampling).

    image: x_0 of the whole image (B, C, ...). noised: t -> x_t of it. mask: bool, true where to inpaint, of a shape
      that broadcasts to it. first: the time at which sampling begins; there x may be pure noise and is not changed.

    A sampler's values outside the mask are never used, because its steps are elementwise: so any sampler will do,
    and `composite` restores the image outside the mask at the end.

    The inpainted part fits its surroundings less closely than a sample of the conditional distribution: for weakly
    correlated Gaussian data they have a third of their effect. A network that was trained to inpaint has no such bias.
    """

    def __init__(
        self, denoiser: Denoising, image: Tensor, noised: Callable[[Time], Tensor], mask: Tensor, first: float
    ) -> None:
        super().__init__(denoiser)
        self.image, self.noised, self.mask, self.first = image, noised, mask, first

    def estimate(self, x: Tensor, t: Time, cond: Cond | None = None) -> Estimate:
        if float(t) < self.first:
            x = torch.where(self.mask, x, self.noised(t))
        x0, variance = self.denoiser.estimate(x, t, cond)
        return Estimate(self.composite(x0), variance)

    def composite(self, x0: Tensor) -> Tensor:
        """x_0 within the mask, the image outside."""
        return torch.where(self.mask, x0, self.image)


def sample_from_image(
    sampler: Callable[[Denoising, Tensor, Tensor], Tensor],
    denoiser: Denoising,
    image: Tensor,
    noise: Tensor,
    times: Tensor,
    add_noise: Callable[[Tensor, Tensor, Time], Tensor],
    *,
    mask: Tensor | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Sample from an image x_0 (B, C, ...) that is noised to the first of the times (SDEdit: Meng et al. 2022, section
    3), or from `start`; with a mask, only within it.

    sampler: (denoiser, x, times) -> x. add_noise: (x_0, noise, time) -> x_t. mask: as in `RePaint`.
    """
    x = add_noise(image, noise, times[0]) if start is None else start
    if mask is None:
        return sampler(denoiser, x, times)
    inpainting = RePaint(denoiser, image, partial(add_noise, image, noise), mask, float(times[0]))
    return inpainting.composite(sampler(inpainting, x, times))
