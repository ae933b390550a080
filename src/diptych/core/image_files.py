"""Image files: reading them strictly, and bringing images to a size."""

from __future__ import annotations

import contextlib
import io
import math
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from diptych.core.errors import UserError, pick

LEAST, MOST = 8, 4096
"""Pixels a side of an image that a user gives."""
FORMATS = ("PNG", "JPEG", "WEBP")
FITS = ("crop", "pad", "stretch")
"""Ways to bring an image to another aspect ratio."""
FITTED = "diptych.fit"
"""Key of a Pillow image's `info` that says which of them was used."""
LOST = 0.01
"""Share of an image that may be cropped away before another size is tried."""
ORIENTATION = 0x0112
"""Of EXIF."""
STATED = frozenset(("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"))
"""Keys of a Pillow image's `info` that may say how it is to be turned."""
LONGEST = 4
"""Largest aspect ratio of an init image."""
_FILTERS = threading.Lock()
_SILENT = threading.Event()


def read_image(source: Path | str | Image.Image) -> Image.Image:
    """An image that a user gives, as RGB: EXIF turned, transparent parts on white, the first frame of several.

    source: a PNG, JPEG or WebP file, recognised by its content, or a Pillow image (not changed).

    Raises `UserError` for another format, a damaged file, or fewer than 8 or more than 4096 pixels a side.
    """
    if isinstance(source, Image.Image):
        try:
            return _converted(source, "the image")
        except (UserError, MemoryError):
            raise
        except Exception as error:  # read late from a broken file, closed, or of a mode that has no way to RGB
            raise UserError(f"the image cannot be made RGB: {' '.join(str(error).split())}") from None
    if not isinstance(source, (str, Path)):
        raise UserError(f"an image must be a path or one of Pillow's images, not of type {type(source).__name__}")
    path = Path(source)
    if not path.is_file():
        raise UserError(f"{path} is {'a folder' if path.is_dir() else 'no file'}: give a PNG, JPEG or WebP image")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    try:
        with opened(data) as image:
            return _converted(image, str(path))
    except (UserError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        reason = str(error).split(",")[0]  # Pillow says how many pixels, and how many it allows
        raise UserError(f"{path} is too large: {reason}; give at most {MOST} pixels a side") from None
    except Exception:  # whatever a decoder raises
        raise UserError(f"{path} is {_defect(data)}") from None


def fitted_size(what: str, size: tuple[int, int], side: int, unit: int, slack: float = 1 / 8) -> tuple[int, int]:
    """Width and height, multiples of `unit`, of an image of `size` when its shorter side is brought to `side`, itself
    a multiple, or a little below: to the largest multiple, `slack` of it below at most, at which less than a hundredth
    of its shape is lost, or else the least. A `UserError` says `what` it is where it is too long.
    """
    short, long = sorted(size)
    if long > LONGEST * short:
        raise UserError(
            f"the {what} has {size[0]} x {size[1]} pixels: crop it, "
            f"its longer side may be at most {LONGEST} times the shorter"
        )
    candidates: list[tuple[float, tuple[int, int]]] = []
    for least in range(side, max(unit, math.ceil(side * (1 - slack))) - 1, -unit):
        across, down = (round(length * least / short / unit) * unit for length in size)  # length >= short: never 0
        ratio = across / down * size[1] / size[0]
        candidates.append((1 - min(ratio, 1 / ratio), (across, down)))
        if candidates[-1][0] < LOST:
            return across, down
    return min(candidates, key=lambda one: one[0])[1]


def fit_image(
    image: Image.Image, size: tuple[int, int], fit: str | None = None, *, boxes: bool = False, fill: int | None = None
) -> Image.Image:
    """An image of this width and height, by Lanczos; with `boxes` averaged over boxes where it is a whole factor.

    fit: where its shape is another, `crop` (also if none) cuts what is beyond, as much on either side; `pad` puts its
      edge pixels around it, or pixels of value `fill`; `stretch` changes its shape. `info[FITTED]` then says which.
    """
    if image.size == size:
        return image
    fit = pick("fit", "crop" if fit is None else str(fit), FITS)
    (width, height), (across, down) = image.size, size
    kernel, box, inner = Image.Resampling.LANCZOS, None, size
    same = width * down == height * across
    if same and boxes and width % across == 0:
        kernel = Image.Resampling.BOX
    if not same and fit == "crop":
        scale = max(across / width, down / height)
        crop = min(across / scale, width), min(down / scale, height)
        left, top = (width - crop[0]) / 2, (height - crop[1]) / 2
        box = (left, top, left + crop[0], top + crop[1])
    elif not same and fit == "pad":
        scale = min(across / width, down / height)
        inner = max(1, round(width * scale)), max(1, round(height * scale))
    resized = image.resize(inner, kernel, box=box)
    if inner != size:
        before = (across - inner[0]) // 2, (down - inner[1]) // 2
        margins: list[tuple[int, int]] = [(before[axis], size[axis] - inner[axis] - before[axis]) for axis in (1, 0)]
        values = np.asarray(resized)
        margins += [(0, 0)] * (values.ndim - 2)
        padded = np.pad(values, margins, mode="edge") if fill is None else np.pad(values, margins, constant_values=fill)
        resized = Image.fromarray(padded)
    if not same:
        resized.info[FITTED] = fit
    return resized


def square(image: Image.Image, size: int) -> Image.Image:
    """The centre of an RGB image as a square of `size`: averaged over boxes by whole factors, else Lanczos."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side == size:
        return image
    if side % size == 0:
        return image.reduce(side // size)
    return image.resize((size, size), Image.Resampling.LANCZOS)


@contextlib.contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """An encoded image, its header read. Where Pillow would only warn of a decompression bomb, this raises.

    Raises an exception of any kind that Pillow has for broken images, and passes on those of its body.
    """
    with open_encoded(data) as image:
        yield image


def open_encoded(data: bytes) -> ImageFile.ImageFile:
    """As `opened`: an image that is to be closed."""
    with _quiet():
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError:  # its own words name a place in memory
            raise ValueError("not a PNG, JPEG or WebP image") from None
    pixels, most = image.width * image.height, Image.MAX_IMAGE_PIXELS
    if most is not None and pixels > most:
        image.close()
        raise Image.DecompressionBombError(f"{pixels} pixels exceed the limit of {most} pixels")
    return image


def silence_pillow() -> None:
    """Let Pillow warn of nothing from now on, in a process that does nothing but decode: changing the filters at each
    image and back takes as long as opening it."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    _SILENT.set()


def _quiet() -> contextlib.AbstractContextManager[None]:
    """Within, Pillow warns of nothing."""
    return contextlib.nullcontext() if _SILENT.is_set() else _without_warnings()


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Within, there are no warnings. Their filters are the whole process's: one thread at a time."""
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def orientation(image: Image.Image, before_pixels: bool = False) -> int:
    """How an image is to be turned, 1 to 8 as in EXIF; 1, as it is, where none or a damaged one says so.

    before_pixels: look at what was read with the header alone. Of a PNG Pillow would read all.
    """
    if (before_pixels or image.format in ("JPEG", "WEBP")) and STATED.isdisjoint(image.info):
        return 1  # what the rest would find, at a twentieth of its cost
    with _quiet():
        value = (Image.Image.getexif(image) if before_pixels else image.getexif()).get(ORIENTATION)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright(image: Image.Image, copy: bool = True) -> Image.Image:
    """Turned as its EXIF says, any mode to RGB, transparent parts on white. Reads the pixels where they are not yet.

    copy: whether an image that is so already is copied.
    """
    image.load()
    if orientation(image) != 1:  # else it would be copied, all its pixels
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and not copy and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16 bits of grey, which Pillow's own conversion clips to white, with the one value that may be transparent."""
    values, clear = np.asarray(image), image.info.get("transparency")
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _converted(image: Image.Image, name: str) -> Image.Image:
    """`upright`, after size and mode are checked."""
    width, height = image.size
    if max(width, height) > MOST:
        raise UserError(f"{name} is too large: {width} x {height} pixels; give at most {MOST} a side")
    if min(width, height) < LEAST:
        raise UserError(f"{name} is too small: {width} x {height} pixels; give at least {LEAST} a side")
    if image.mode in ("I", "F"):
        raise UserError(f"{name} has numbers of no known range (mode {image.mode}): convert it to mode L or RGB")
    return upright(image)


def is_encoded(data: bytes) -> bool:
    """Whether a file that begins so (12 bytes are enough) is one of the `FORMATS`."""
    return data.startswith((b"\x89PNG\r\n", b"\xff\xd8\xff")) or (data[:4], data[8:12]) == (b"RIFF", b"WEBP")


def _defect(data: bytes) -> str:
    """What is wrong with a file that could not be decoded."""
    return "damaged or cut short" if is_encoded(data) else "not a PNG, JPEG or WebP image"
