"""The picture that a new one is made from: read, brought to a size, and how much of it is to change.

It is painted over from a later time on (SDEdit, Meng et al. 2022), or the part that a mask marks is painted anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from diptych.conditioning.concat import masked_latent
from diptych.core.checks import one_or_each
from diptych.core.errors import UserError, pick
from diptych.core.images import FITS, FITTED, fit_picture, fitted_size, read_picture, to_tensor
from diptych.models.request import read_number, read_size

STRENGTH = 0.8
"""Of what is painted over, where none is chosen; what a mask marks is painted anew, at strength 1."""


@dataclass(frozen=True)
class InitImage:
    """What a user gave, the same or one for each prompt."""

    pictures: Tensor
    """(1 or B, 3, H, W) in [-1, 1]."""
    mask: Tensor | None
    """(1 or B, 1, H, W), 1 where to paint, else 0; none to paint over all."""
    strength: float
    """The last so many of the steps are taken, as a fraction."""
    paste: bool
    """Put the pixels that the mask leaves alone back in the end."""
    fit: str | None = None
    """How pictures of another shape were brought to this one."""

    @property
    def sides(self) -> list[int]:
        """Width and height in pixels."""
        return [self.pictures.shape[-1], self.pictures.shape[-2]]

    @property
    def anew(self) -> bool:
        """Whether nothing but noise is at the start."""
        return self.mask is not None and self.strength == 1

    def small_mask(self, factor: int) -> Tensor:
        """The mask over latents (1 or B, 1, H / factor, W / factor): at each place its first pixel's, as published."""
        assert self.mask is not None
        return masked_latent(self.mask, factor)

    def smaller(self, factor: int, strength: float) -> InitImage:
        """As a stage paints it whose pictures are `factor` times as small, averaged over boxes. What has any pixel to
        paint in it is painted: its mean is not known."""
        sides = (self.pictures.shape[-2] // factor, self.pictures.shape[-1] // factor)
        mask = None if self.mask is None else F.max_pool2d(self.mask, factor)
        from diptych.conditioning.lowres_augmentation import reduce

        return InitImage(reduce(self.pictures, sides), mask, strength, self.paste, self.fit)

    def later(self, times: Tensor) -> Tensor:
        """The times (N + 1,) that are left."""
        return times[len(times) - 1 - taken(len(times) - 1, self.strength) :]

    def pasted(self, painted: Tensor) -> Tensor:
        """Painted pictures (B, 3, H, W), in their place the pixels that were to stay where that is wanted."""
        if not self.paste or self.mask is None:
            return painted
        return torch.where(self.mask.to(painted.device).bool(), painted, self.pictures.to(painted))

    def told(self) -> dict[str, Any]:
        """As metadata, the pictures aside."""
        told: dict[str, Any] = {"strength": self.strength}
        told |= {} if self.fit is None else {"fit": self.fit}
        return told if self.mask is None else {**told, "paste": self.paste}


def taken(steps: int, strength: float) -> int:
    """How many of the steps are taken: rounded down, as published."""
    return int(steps * strength)


class ImageShape(Protocol):
    """What the config of a model says, or a `Canvas`."""

    @property
    def size(self) -> int: ...
    @property
    def multiple(self) -> int: ...
    @property
    def repaints(self) -> bool: ...


@dataclass(frozen=True)
class Canvas:
    """The shape of a model over pixels."""

    size: int
    multiple: int
    repaints: bool = False


def read_init_image(
    config: ImageShape,
    count: int,
    steps: int,
    size: Any,
    image: Any,
    strength: Any,
    mask: Any,
    paste: Any,
    factor: int = 1,
    fit: Any = None,
) -> InitImage | None:
    """What a user gave for `count` prompts, or none. A `UserError` names what is wrong or missing. What is painted is
    `factor` times as small.

    image: PNG, JPEG or WebP files or pictures of Pillow's, one or one for each prompt, brought to `size`, or where
      there is none the shorter side to the training size; or a tensor (1 or count, 3, H, W) in [-1, 1].
    mask: likewise, white where to paint, of the picture's shape; or a tensor (1 or count, 1, H, W) in [0, 1]. What is
      transparent counts as white, as everywhere, and grey is white from its middle on.
    fit: what is done to a picture, and to its mask, whose shape is not that of the size: see `fit_picture`. Without it
      what does not come out even is cropped, and a picture of quite another shape than `size` is an error.
    """
    if config.repaints and (image is None or mask is None):
        raise UserError(
            "this model repaints a part of a picture: give it the picture and a mask that is white where to paint, "
            "--image and --mask (image=, mask=)"
        )
    if image is None:
        for name, given in (
            ("mask", mask is not None),
            ("strength", strength is not None),
            ("paste", bool(paste)),
            ("fit", fit is not None),
        ):
            if given:
                raise UserError(f"{name} is for a picture that another is made from: give that as --image (image=)")
        return None
    if paste and mask is None:
        raise UserError("paste puts back what a mask leaves alone: give the mask as --mask (mask=)")
    if strength is None:
        strength = STRENGTH if mask is None else 1.0
    strength = read_number("strength", strength)
    if not 0 < strength <= 1:
        raise UserError(f"strength must lie above 0 and be at most 1, not {strength:g}")
    if not taken(steps, strength):
        raise UserError(f"strength {strength:g} of {steps} steps leaves none to take: raise one of them")
    sides = None if size is None else read_size(size, config.multiple)
    fit = None if fit is None else pick("fit", str(fit), FITS)
    pictures, shapes, fitted = read_pictures(image, count, sides, config.size, config.multiple, fit)
    masks = None if mask is None else read_masks(mask, count, (pictures.shape[-1], pictures.shape[-2]), shapes, fit)
    original = InitImage(pictures, masks, strength, bool(paste), fitted)
    if masks is not None and not original.small_mask(factor).flatten(1).any(1).all():
        raise UserError("the mask marks nothing that can be painted: it is white where to paint, black where not")
    return original


def read_pictures(
    image: Any, count: int, sides: Sequence[int] | None, side: int, unit: int, fit: str | None = None
) -> tuple[Tensor, list[tuple[int, int]], str | None]:
    """The pictures at one size, the (width, height) of each as it was given, and how they were fitted, if they were."""
    if isinstance(image, Tensor):
        tensor = checked("image", image, count, 3, -1.0)
        width, height = tensor.shape[-1], tensor.shape[-2]
        if sides is not None and [width, height] != list(sides):
            raise UserError(f"the image has {width} x {height} values, and size is {sides[0]} x {sides[1]}")
        read_size((width, height), unit)
        return tensor, [(width, height)], None
    given = [read_picture(one) for one in one_or_each("picture", image, count)]
    found = [fitting(picture, sides, side, unit, fit) for picture in given]
    if any(size != found[0] for size in found):
        raise UserError("the pictures have different shapes: give them one at a time")
    made = [fit_picture(picture, found[0], fit) for picture in given]
    fitted = next((one.info[FITTED] for one in made if FITTED in one.info), None)
    return to_tensor(made), [picture.size for picture in given], fitted


def fitting(
    picture: Image.Image, sides: Sequence[int] | None, side: int, unit: int, fit: str | None
) -> tuple[int, int]:
    """The size at which a picture is read."""
    if sides is None:
        return fitted_size("picture", picture.size, side, unit)
    width, height = sides
    if fit is None and abs(picture.width * height / picture.height - width) >= unit:
        raise UserError(
            f"the picture has {picture.width} x {picture.height} pixels: crop it to the shape of {width} x {height}, "
            "or say how it is to fit: --fit crop, pad or stretch (fit=)"
        )
    return width, height


def read_masks(
    mask: Any, count: int, sides: tuple[int, int], shapes: Sequence[tuple[int, int]], fit: str | None = None
) -> Tensor:
    """Masks (1 or count, 1, H, W) at the size of the pictures, which had these shapes, fitted as they were; nothing is
    painted in what is padded."""
    if isinstance(mask, Tensor):
        tensor = checked("mask", mask, count, 1, 0.0)
        if (found := (tensor.shape[-1], tensor.shape[-2])) != sides:
            raise UserError(f"the mask has {found[0]} x {found[1]} values, and the picture {sides[0]} x {sides[1]}")
        return (tensor >= 0.5).float()
    given = [read_picture(one) for one in one_or_each("mask", mask, count)]
    each = max(len(given), len(shapes))
    for one, (width, height) in zip(given * (each // len(given)), [*shapes] * (each // len(shapes)), strict=True):
        if abs(one.width * height / one.height - width) > 1:
            raise UserError(
                f"the mask has {one.width} x {one.height} pixels and the picture {width} x {height}: "
                "give a mask of the picture's shape"
            )
    values = np.stack([np.asarray(fit_picture(one.convert("L"), sides, fit, fill=0)) for one in given])  # (B, H, W)
    marked = torch.from_numpy(values >= 128).float()[:, None]
    for whole, source in zip(marked.flatten(1).all(1).tolist(), one_or_each("mask", mask, count), strict=True):
        if whole and see_through(source):  # as of a white brush on a transparent layer, which is another mask
            raise UserError(
                "the mask is white or transparent everywhere, and transparent counts as white: put it on black"
            )
    return marked


def see_through(source: Path | str | Image.Image) -> bool:
    """Whether any part of a picture, which can be read, is transparent."""
    with contextlib.ExitStack() as stack:
        picture = source if isinstance(source, Image.Image) else stack.enter_context(Image.open(source))
        return picture.has_transparency_data and picture.convert("RGBA").getchannel("A").getextrema() != (255, 255)


def checked(name: str, tensor: Tensor, count: int, channels: int, least: float) -> Tensor:
    """A tensor (1 or count, channels, H, W) in [least, 1], in float32."""
    if tensor.ndim != 4 or len(tensor) not in (1, count) or tensor.shape[1] != channels:
        raise UserError(
            f"{name} must be a tensor of shape (1 or {count}, {channels}, H, W), not {tuple(tensor.shape)}, "
            "or pictures, or paths"
        )
    tensor = tensor.detach().float().cpu()
    if not ((tensor >= least) & (tensor <= 1)).all():  # nor is what is not a number
        raise UserError(f"the values of {name} must lie between {least:g} and 1")
    return tensor
