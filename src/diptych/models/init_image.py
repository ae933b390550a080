"""Images that a user gives: the init image, the mask of what to change in it, and the low-resolution image to enlarge.

An init image is changed from a later time on (SDEdit, Meng et al. 2022), or within a mask (inpainting).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from diptych.conditioning.concat import latent_mask
from diptych.conditioning.lowres_augmentation import downsample
from diptych.core.errors import UserError
from diptych.core.image_files import FITTED, fit_image, fitted_size, read_image
from diptych.core.images import to_tensor
from diptych.models.request import is_given, read_size
from diptych.models.sampling import InitState, steps_taken

STRENGTH = 0.8
"""The default strength; with a mask it is 1."""


class ImageShape(Protocol):
    """What the config of a model says of its images, or a `Canvas`."""

    @property
    def size(self) -> int: ...
    @property
    def multiple(self) -> int: ...
    @property
    def repaints(self) -> bool: ...


@dataclass(frozen=True)
class Canvas:
    """The images of a pixel model or cascade."""

    size: int
    multiple: int
    repaints: bool = False


@dataclass(frozen=True)
class InitImage:
    """The init image, the same or one for each prompt, and how much of it may change."""

    images: Tensor
    """(1 or B, 3, H, W) in [-1, 1]."""
    mask: Tensor | None
    """(1 or B, 1, H, W), 1 where to generate, else 0; none to change all of the image."""
    strength: float
    """Fraction of the steps, the last ones, that is taken."""
    paste: bool
    """Put the pixels outside the mask back in the end."""
    fit: str | None = None
    """How images of another shape were brought to this one."""

    @property
    def size(self) -> list[int]:
        """Width and height in pixels."""
        return [self.images.shape[-1], self.images.shape[-2]]

    @property
    def from_noise(self) -> bool:
        """Whether sampling starts from noise alone."""
        return self.mask is not None and self.strength == 1

    def state(self, x0: Tensor, mask: Tensor | None) -> InitState:
        """For sampling: itself and its mask in the space of the denoiser."""
        return InitState(x0, mask, self.strength, self.from_noise)

    def latent_mask(self, factor: int) -> Tensor:
        """The mask over latents (1 or B, 1, H / factor, W / factor): the first pixel of each square, as published."""
        assert self.mask is not None
        return latent_mask(self.mask, factor)

    def downsample(self, factor: int, strength: float) -> InitImage:
        """For a stage whose images are `factor` times as small: averaged over boxes. A box is within the mask where any
        of its pixels is, as the mean of these is not known."""
        sides = (self.images.shape[-2] // factor, self.images.shape[-1] // factor)
        mask = None if self.mask is None else F.max_pool2d(self.mask, factor)
        return InitImage(downsample(self.images, sides), mask, strength, self.paste, self.fit)

    def paste_into(self, images: Tensor) -> Tensor:
        """Generated images (B, 3, H, W), with the pixels outside the mask of the init image where that is asked for."""
        if not self.paste or self.mask is None:
            return images
        return torch.where(self.mask.to(images.device).bool(), images, self.images.to(images))

    def metadata(self) -> dict[str, Any]:
        """The settings as entries of an image's metadata."""
        row: dict[str, Any] = {"strength": self.strength}
        row |= {} if self.fit is None else {"fit": self.fit}
        return row if self.mask is None else {**row, "paste": self.paste}


def read_init_image(
    shape: ImageShape, count: int, steps: int, options: Mapping[str, Any], factor: int = 1
) -> InitImage | None:
    """The init image for `count` prompts, or none. A `UserError` names what is wrong or missing.

    options: the options of `generate`:
      image: PNG, JPEG or WebP files or Pillow images, one or one for each prompt, brought to `size`, or where there is
        none the shorter side to the training size; or a tensor (1 or count, 3, H, W) in [-1, 1].
      mask: likewise, white where to generate, of the image's shape; or a tensor (1 or count, 1, H, W) in [0, 1]. What
        is transparent counts as white, as everywhere, and grey is white from its middle on.
      fit: what is done to an image, and to its mask, whose shape is not that of the size: see `fit_image`. Without it
        what does not come out even is cropped, and an image of quite another shape than `size` is an error.
    factor: pixels of a latent's side.
    """
    image, mask, strength, paste = (options.get(name) for name in ("image", "mask", "strength", "paste"))
    if shape.repaints and (image is None or mask is None):
        raise UserError(
            "this model inpaints: give it an image and a mask that is white where to generate, --image and --mask "
            "(image=, mask=)"
        )
    if image is None:
        for name in ("mask", "strength", "paste", "fit"):
            if is_given(options.get(name)):
                raise UserError(f"{name} is for an image to start from: give that as --image (image=)")
        return None
    if paste and mask is None:
        raise UserError("paste puts back the pixels outside a mask: give the mask as --mask (mask=)")
    if strength is None:
        strength = STRENGTH if mask is None else 1.0
    if not steps_taken(steps, strength):
        raise UserError(f"strength {strength:g} of {steps} steps leaves none to take: raise one of them")
    size, fit = options.get("size"), options.get("fit")
    sides = None if size is None else read_size(size, shape.multiple)
    images, shapes, fitted = read_images(image, count, sides, shape.size, shape.multiple, fit)
    masks = None if mask is None else read_masks(mask, count, (images.shape[-1], images.shape[-2]), shapes, fit)
    init_image = InitImage(images, masks, strength, bool(paste), fitted)
    if masks is not None and not init_image.latent_mask(factor).flatten(1).any(1).all():
        raise UserError("the mask is black where it counts: it must be white where to generate, black elsewhere")
    return init_image


def read_images(
    image: Any, count: int, sides: Sequence[int] | None, side: int, unit: int, fit: str | None = None
) -> tuple[Tensor, list[tuple[int, int]], str | None]:
    """The images at one size, the (width, height) of each as it was given, and how they were fitted, if they were."""
    if isinstance(image, Tensor):
        tensor = read_tensor("image", image, count, 3, -1.0)
        width, height = tensor.shape[-1], tensor.shape[-2]
        if sides is not None and [width, height] != list(sides):
            raise UserError(f"the image has {width} x {height} values, and size is {sides[0]} x {sides[1]}")
        read_size((width, height), unit)
        return tensor, [(width, height)], None
    loaded = [read_image(one) for one in one_or_each("image", image, count)]
    sizes = [size_of(one, sides, side, unit, fit) for one in loaded]
    if any(size != sizes[0] for size in sizes):
        raise UserError("the images have different shapes: give them one at a time")
    images = [fit_image(one, sizes[0], fit) for one in loaded]
    return to_tensor(images), [one.size for one in loaded], fit_of(images)


def size_of(image: Image.Image, sides: Sequence[int] | None, side: int, unit: int, fit: str | None) -> tuple[int, int]:
    """Width and height to which an init image is brought."""
    if sides is None:
        return fitted_size("image", image.size, side, unit)
    width, height = sides
    if fit is None and abs(image.width * height / image.height - width) >= unit:
        raise UserError(
            f"the image has {image.width} x {image.height} pixels: crop it to the shape of {width} x {height}, "
            "or say how it is to fit: --fit crop, pad or stretch (fit=)"
        )
    return width, height


def read_masks(
    mask: Any, count: int, sides: tuple[int, int], shapes: Sequence[tuple[int, int]], fit: str | None = None
) -> Tensor:
    """Masks (1 or count, 1, H, W) at the size of the images, which had these shapes, fitted as they were; padding is
    black."""
    if isinstance(mask, Tensor):
        tensor = read_tensor("mask", mask, count, 1, 0.0)
        if (size := (tensor.shape[-1], tensor.shape[-2])) != sides:
            raise UserError(f"the mask has {size[0]} x {size[1]} values, and the image {sides[0]} x {sides[1]}")
        return (tensor >= 0.5).float()
    loaded = [read_image(one) for one in one_or_each("mask", mask, count)]
    each = max(len(loaded), len(shapes))
    for one, (width, height) in zip(loaded * (each // len(loaded)), [*shapes] * (each // len(shapes)), strict=True):
        if abs(one.width * height / one.height - width) > 1:
            raise UserError(
                f"the mask has {one.width} x {one.height} pixels and the image {width} x {height}: "
                "give a mask of the image's shape"
            )
    values = np.stack([np.asarray(fit_image(one.convert("L"), sides, fit, fill=0)) for one in loaded])  # (B, H, W)
    masks = torch.from_numpy(values >= 128).float()[:, None]
    for all_white, source in zip(masks.flatten(1).all(1).tolist(), one_or_each("mask", mask, count), strict=True):
        if all_white and has_transparency(source):  # a white brush on a transparent layer means something else
            raise UserError(
                "the mask is white or transparent everywhere, and transparent counts as white: put it on black"
            )
    return masks


def has_transparency(source: Path | str | Image.Image) -> bool:
    """Whether any part of an image, which can be read, is transparent."""
    with contextlib.ExitStack() as stack:
        image = source if isinstance(source, Image.Image) else stack.enter_context(Image.open(source))
        return image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255)


def read_tensor(name: str, tensor: Tensor, count: int, channels: int, low: float) -> Tensor:
    """A tensor (1 or count, channels, H, W) with values from `low` to 1, in float32 on the CPU."""
    if tensor.ndim != 4 or len(tensor) not in (1, count) or tensor.shape[1] != channels:
        raise UserError(
            f"{name} must be a tensor of shape (1 or {count}, {channels}, H, W), not {tuple(tensor.shape)}, "
            "or images, or paths"
        )
    tensor = tensor.detach().float().cpu()
    if not ((tensor >= low) & (tensor <= 1)).all():  # NaN fails too
        raise UserError(f"the values of {name} must lie between {low:g} and 1")
    return tensor


def one_or_each(what: str, value: Any, count: int) -> list[Any]:
    """What a user gave for all `count` prompts, or in a list with one for each; a `UserError` for another number."""
    given = list(value) if isinstance(value, (list, tuple)) else [value]
    if len(given) not in (1, count):
        raise UserError(f"give one {what} for all {count} prompts or one for each, not {len(given)}")
    return given


class LowResImage(Protocol):
    """What the config of a latent model says of the low-resolution image."""

    @property
    def size(self) -> int: ...
    @property
    def multiple(self) -> int: ...
    @property
    def low_factor(self) -> int | None: ...


def read_low_res(
    low_res: Any, count: int, side: int | None, unit: int, fit: str | None = None
) -> tuple[Tensor, str | None]:
    """Low-resolution images (count, 3, h, w) in [-1, 1], and how they were fitted, if they were.

    low_res: files or Pillow images, one or one for each prompt. The shorter side of each is brought to `side`, or,
      where there is none, to the multiple of `unit` that is nearest to its own; the other stays in proportion, to the
      nearest multiple. What does not come out even is cropped, or fitted as `fit` says (see `fit_image`). Or a tensor
      (1 or count, 3, h, w) in [-1, 1] of such sides.
    """
    if isinstance(low_res, Tensor):
        tensor = read_tensor("low_res", low_res, count, 3, -1.0)
        height, width = tensor.shape[-2:]
        if height % unit or width % unit or min(height, width) != (side or min(height, width)):
            shorter = "" if side is None else f" and the shorter one {side}"
            raise UserError(f"low_res has {width} x {height} values: its sides must be multiples of {unit}{shorter}")
        return tensor.expand(count, -1, -1, -1), None
    name, images = "low-resolution image", []
    for one in (read_image(one) for one in one_or_each(name, low_res, count)):
        least = side or unit * max(1, round(min(one.size) / unit))
        images.append(fit_image(one, fitted_size(name, one.size, least, unit, slack=0), fit, boxes=True))
    if any(one.size != images[0].size for one in images):
        raise UserError("the low-resolution images have different shapes: enlarge them one at a time")
    return to_tensor(images * count if len(images) == 1 else images), fit_of(images)


def read_latent_low_res(config: LowResImage, count: int, given: Mapping[str, Any]) -> tuple[Tensor | None, str | None]:
    """What a latent model is to enlarge for `count` prompts, as of `read_low_res`; none for a model that does not.

    given: the options of `generate`. low_res is as for `read_low_res`, at its own size, or a tensor (1 or count, 3, h,
      w) in [-1, 1], whose sides must fit. It may be larger than in training: the network is convolutional (Rombach et
      al. 2022, section 4.3.2). A `UserError` names what is wrong, missing, or does not go with it.
    """
    factor, low_res = config.low_factor, given.get("low_res")
    if factor is None:
        if low_res is not None:
            raise UserError("this model was not trained to enlarge images: leave --low-res (low_res=) out")
        return None, None
    if low_res is None:
        raise UserError(
            f"this model makes images {factor} times as large: give it the one to enlarge, --low-res (low_res=); "
            f"it was trained on {config.size // factor} pixels a side"
        )
    for name in ("size", "image", "strength", "mask", "paste"):
        if is_given(given.get(name)):
            raise UserError(f"{name} does not go with low_res: this model enlarges an image and does nothing else")
    unit = config.multiple // math.gcd(config.multiple, factor)
    images, fitted = read_low_res(low_res, count, None, unit, given.get("fit"))
    height, width = images.shape[-2:]
    read_size((width * factor, height * factor), config.multiple)  # or an error: too large
    return images, fitted


def fit_of(images: Sequence[Image.Image]) -> str | None:
    """How images of another shape were fitted, if any was."""
    return next((one.info[FITTED] for one in images if FITTED in one.info), None)
