"""Guides: networks that score images by prompts and steer a model by the gradient, `generate(guides=[(guide, scale)])`.

What they have in common, and how a denoiser is guided by them. The guides themselves are `noisy_guide.NoisyGuide` and
`pair_guide.PairGuide`; the formula is in `diffusion/gradient_guidance.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from diptych.core.errors import UserError
from diptych.diffusion.denoiser import Denoising
from diptych.diffusion.gradient_guidance import GradientGuidance, Score, WeightedScore
from diptych.diffusion.schedules import Schedule

MAX_SCALE = 1e6
"""Larger scales are refused as typing errors."""
LIMIT = 1.0
"""No guide moves an estimate by more than this root mean square, the deviation of latents and pixels."""


@dataclass(frozen=True)
class Space:
    """What x_t is in a model."""

    schedule: Schedule
    device: torch.device
    images: Callable[[Tensor], Tensor]
    """x_0 (B, ...) as images (B, 3, H, W) in [-1, 1], differentiable."""
    first_stage: str | None = None
    """Fingerprint of the autoencoder of the latents; none for pixels, or where it is not known."""
    scale: float | None = None
    """Scale factor of the latents; none for pixels."""


class Guide(Protocol):
    """A network that scores images by prompts."""

    @property
    def name(self) -> str:
        """Its name in the metadata."""
        ...

    @property
    def input_kind(self) -> Literal["noisy", "images"]:
        """Its input: the noisy x_t, or the denoiser's estimate as clean images."""
        ...

    @property
    def through(self) -> bool:
        """For clean images, whether the gradient is taken through the denoiser."""
        ...

    def bind(self, prompts: Sequence[str], space: Space) -> Score:
        """The score of one image for each prompt. A `UserError` for a prompt that it cannot read, or for a model that
        it was not trained for."""
        ...


Guides = Sequence[tuple[Guide, float]]
"""Guides and their scales."""


def guided_by(denoiser: Denoising, guides: Guides, prompts: Sequence[str], space: Space) -> Denoising:
    """The denoiser, guided by the gradients of all guides."""
    for guide, scale in guides:
        if not (isinstance(scale, (int, float)) and abs(scale) <= MAX_SCALE):  # NaN fails too
            raise UserError(f"the scale of the guide {guide.name} must lie within {MAX_SCALE:g} of 0, not {scale!r}")
    scores = []
    for guide, scale in sorted(guides, key=lambda pair: pair[0].input_kind == "noisy"):
        score, noisy = guide.bind(prompts, space), guide.input_kind == "noisy"

        def of_images(x0: Tensor, score: Score = score) -> Tensor:
            return score(space.images(x0))

        of = "noisy" if noisy else "estimate"
        scores.append(WeightedScore(score if noisy else of_images, scale, of, guide.through))
    return GradientGuidance(denoiser, space.schedule, scores, limit=LIMIT) if scores else denoiser


def guides_metadata(guides: Guides) -> dict[str, Any]:
    """The guides as metadata of an image; nothing where there are none."""
    rows = []
    for guide, scale in guides:
        origin = getattr(guide, "origin", None)  # of one that was opened: its source, and the hash of its files
        rows.append({"guide": guide.name, "scale": scale, **({} if origin is None else origin.metadata())})
    return {"guides": rows} if rows else {}
