"""The small picture that a model enlarges, as users hand it in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from diptych.core.checks import one_or_each
from diptych.core.errors import UserError
from diptych.core.images import FITTED, fit_picture, fitted_size, read_picture, to_tensor
from diptych.models.init_image import checked
from diptych.models.request import read_size


class Shape(Protocol):
    """What the config of a latent model says."""

    @property
    def size(self) -> int: ...
    @property
    def multiple(self) -> int: ...
    @property
    def low_factor(self) -> int | None: ...


def read_lows(low: Any, count: int, side: int | None, unit: int, fit: str | None = None) -> list[Image.Image]:
    """A user's low-resolution pictures for `count` prompts, one for each, all of one size.

    low: files or pictures of Pillow's, one or one for each prompt. The shorter side of each is brought to `side`, or,
    where there is none, to the multiple of `unit` that is nearest to its own; the other stays in proportion, to the
    nearest multiple. What does not come out even is cropped, or what `fit` says (see `fit_picture`).
    """
    given = [read_picture(one) for one in one_or_each("low-resolution picture", low, count)]
    pictures = [fitted(one, side or unit * max(1, round(min(one.size) / unit)), unit, fit) for one in given]
    if any(picture.size != pictures[0].size for picture in pictures):
        raise UserError("the low-resolution pictures have different shapes: enlarge them one at a time")
    return pictures * count if len(pictures) == 1 else pictures


def fitted(picture: Image.Image, side: int, unit: int, fit: str | None = None) -> Image.Image:
    """An RGB picture with its shorter side at `side`, the other in proportion and a multiple of `unit`."""
    size = fitted_size("low-resolution picture", picture.size, side, unit, slack=0)
    return fit_picture(picture, size, fit, boxes=True)


def read_enlarged(
    config: Shape, low: Any, count: int, fit: str | None = None, **others: Any
) -> tuple[Tensor | None, str | None]:
    """What a latent model is to enlarge for `count` prompts (count, 3, h, w), and how it was fitted, if it was; none
    for a model that does not enlarge.

    low: as for `read_lows`, at its own size, or a tensor (1 or count, 3, h, w) in [-1, 1], whose sides are to fit. It
    may be larger than the pictures of training: the network is convolutional (Rombach et al. 2022, section 4.3.2).
    others: what such a model has no use for. A `UserError` names what is wrong or missing.
    """
    factor = config.low_factor
    if factor is None:
        if low is not None:
            raise UserError("this model was not trained to enlarge pictures: leave --low (low=) out")
        return None, None
    if low is None:
        raise UserError(
            f"this model makes pictures {factor} times as large: give it the one to enlarge, --low (low=); "
            f"it was trained on {config.size // factor} pixels a side"
        )
    for name, value in others.items():
        if value is not None and value is not False:
            raise UserError(f"{name} does not go with low: this model enlarges a picture and does nothing else")
    unit = config.multiple // math.gcd(config.multiple, factor)
    images = [] if isinstance(low, Tensor) else read_lows(low, count, None, unit, fit)
    small = to_tensor(images) if images else checked("low", low, count, 3, -1.0)
    height, width = small.shape[-2:]
    if height % unit or width % unit:
        raise UserError(f"low has {width} x {height} values: its sides must be multiples of {unit}")
    read_size((width * factor, height * factor), config.multiple)  # or an error: too large
    return small.expand(count, -1, -1, -1), fit_of(images)


def fit_of(images: Sequence[Image.Image] | None) -> str | None:
    """How pictures of another shape were fitted, if any was."""
    return next((one.info[FITTED] for one in images or () if FITTED in one.info), None)
