"""What people hand in as an image: the obviously right RGB, or one line that says what is wrong."""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diptych.core import image_files
from diptych.core.errors import UserError
from diptych.core.image_files import opened, read_image, silence_pillow, square
from diptych.data.decode import decode

SIDE = 16


def colours(side: int = SIDE, *, seed: int = 0) -> Image.Image:
    """Smooth, so that JPEG keeps it: red grows to the right, green downwards, blue from corner to corner."""
    x, y = np.meshgrid(np.linspace(0, 255, side), np.linspace(0, 255, side))
    return Image.fromarray(np.stack([x, y, (x + y) / 2], axis=-1).astype(np.uint8))


def grey(side: int = SIDE) -> np.ndarray:
    return np.asarray(colours(side))[..., 1]


def saved(path: Path, image: Image.Image, kind: str = "PNG", **options: Any) -> Path:
    path.write_bytes(encoded(image, kind, **options))
    return path


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """(H, W, 3) of 8-bit colours under 8-bit alpha (H, W, 1), written out."""
    return np.rint((colour * alpha.astype(float) + 255.0 * (255 - alpha)) / 255)


# Right


@pytest.mark.parametrize("form", [str, Path, Image.open])
def test_a_path_and_an_image_are_the_same(tmp_path: Path, form: Any) -> None:
    path = saved(tmp_path / "a.png", colours())
    assert np.array_equal(pixels(read_image(form(path))), pixels(colours()))


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [("PNG", {}, 0), ("WEBP", {"lossless": True}, 0), ("WEBP", {"quality": 95}, 12), ("JPEG", {"quality": 95}, 12)],
)
def test_the_content_decides_the_format_not_the_name(
    tmp_path: Path, kind: str, options: dict[str, Any], tolerance: int
) -> None:
    path = saved(tmp_path / "image.txt", colours(32), kind, **options)
    assert np.abs(pixels(read_image(path)) - pixels(colours(32))).max() <= tolerance


def test_grey_is_grey() -> None:
    expected = np.repeat(grey()[..., None], 3, axis=-1)
    image = Image.fromarray(grey())
    assert np.array_equal(pixels(read_image(image)), expected)
    deep = Image.fromarray(grey().astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    assert np.array_equal(pixels(read_image(deep)), expected)


def test_one_bit_is_black_and_white() -> None:
    bits = grey() > 100
    image = Image.fromarray((bits * 255).astype(np.uint8)).convert("1")
    assert np.array_equal(pixels(read_image(image)), np.repeat(bits[..., None] * 255, 3, axis=-1))


@pytest.mark.parametrize("through", [False, True], ids=["in memory", "as a file"])
def test_transparent_parts_are_on_white(tmp_path: Path, through: bool) -> None:
    alpha = np.asarray(colours())[..., :1]
    rgba = np.concatenate([np.asarray(colours()), alpha], axis=-1)
    for array, mode, colour in (
        (rgba, "RGBA", np.asarray(colours())),
        (np.concatenate([grey()[..., None], alpha], axis=-1), "LA", np.repeat(grey()[..., None], 3, axis=-1)),
    ):
        image = Image.fromarray(array)
        assert image.mode == mode
        source = saved(tmp_path / f"{mode}.png", image) if through else image
        assert np.abs(pixels(read_image(source)) - over_white(colour, alpha)).max() <= 1


@pytest.mark.parametrize("through", [False, True], ids=["in memory", "as a file"])
def test_a_palette_gives_its_colours_and_its_transparent_one_is_white(tmp_path: Path, through: bool) -> None:
    indices = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 3
    table = np.array([[200, 10, 20], [30, 210, 40], [50, 60, 220]])
    image = Image.fromarray(indices.astype(np.uint8))
    image.putpalette(table.astype(np.uint8).tobytes())
    source = saved(tmp_path / "a.png", image) if through else image
    assert np.array_equal(pixels(read_image(source)), table[indices])
    image.info["transparency"] = 1
    source = saved(tmp_path / "b.png", image, transparency=1) if through else image
    table[1] = 255
    assert np.array_equal(pixels(read_image(source)), table[indices])


@pytest.mark.parametrize("kind", ["L", "I;16", "RGB"])
def test_the_one_transparent_value_of_a_png_is_white(tmp_path: Path, kind: str) -> None:
    levels = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 5 * 50  # 0, 50, .. 200
    array = {
        "L": levels.astype(np.uint8),
        "I;16": levels.astype(np.uint16) * 257,
        "RGB": np.repeat(levels[..., None], 3, axis=-1).astype(np.uint8),
    }[kind]
    clear = {"L": 50, "I;16": 50 * 257, "RGB": (50, 50, 50)}[kind]
    path = tmp_path / "a.png"
    path.write_bytes(with_chunk(encoded(Image.fromarray(array)), *clear_chunk(clear)))
    expected = np.where(levels == 50, 255, levels)[..., None].repeat(3, axis=-1)
    assert np.array_equal(pixels(read_image(path)), expected)


def test_cmyk_is_converted_to_rgb(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", Image.new("CMYK", (SIDE, SIDE), (0, 255, 255, 0)), "JPEG", quality=95)
    red = pixels(read_image(path))
    assert Image.open(path).mode == "CMYK"
    assert np.abs(red - [255, 0, 0]).max() < 12
    assert np.abs(pixels(read_image(Image.new("CMYK", (SIDE, SIDE), (255, 0, 255, 0)))) - [0, 255, 0]).max() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", [Path, Image.open])
def test_exif_orientation_is_followed(tmp_path: Path, orientation: int, form: Any) -> None:
    exif, right = Image.Exif(), np.asarray(colours(32))[:, :24]
    exif[0x0112] = orientation
    # How each orientation lies in the file when `right` is how it should be seen (EXIF 2.3, Sec. 4.6.4).
    lying = [
        right,
        right[:, ::-1],
        right[::-1, ::-1],
        right[::-1],
        right.swapaxes(0, 1),
        np.rot90(right, 1),
        np.rot90(right.swapaxes(0, 1), 2),
        np.rot90(right, -1),
    ][orientation - 1]
    path = saved(tmp_path / "a.png", Image.fromarray(np.ascontiguousarray(lying)), exif=exif)
    assert np.array_equal(pixels(read_image(form(path))), right)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_read(tmp_path: Path, kind: str) -> None:
    rest = [Image.new("RGB", (SIDE, SIDE), "black"), Image.new("RGB", (SIDE, SIDE), "red")]
    path = saved(tmp_path / "a", colours(), kind, save_all=True, append_images=rest, lossless=True)
    assert Image.open(path).n_frames == 3  # type: ignore[attr-defined]
    assert np.array_equal(pixels(read_image(path)), pixels(colours()))


def test_an_image_handed_in_is_left_as_it_is() -> None:
    image = Image.new("RGBA", (SIDE, SIDE), (1, 2, 3, 4))
    read_image(image)
    assert image.mode == "RGBA"
    assert image.getpixel((0, 0)) == (1, 2, 3, 4)
    plain = colours()
    read_image(plain).paste("white", (0, 0, SIDE, SIDE))
    assert np.array_equal(pixels(plain), pixels(colours()))


def test_images_of_users_and_of_training_are_read_alike(tmp_path: Path) -> None:
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        path = saved(tmp_path / f"{mode}.png", colours().convert(mode))
        assert np.array_equal(pixels(read_image(path)), decode(path.read_bytes(), SIDE))


# Wrong


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(png: bytes, kind: bytes, data: bytes) -> bytes:
    """Before the pixels."""
    at = png.index(b"IDAT") - 4
    return png[:at] + chunk(kind, data) + png[at:]


def clear_chunk(clear: int | tuple[int, ...]) -> tuple[bytes, bytes]:
    values = clear if isinstance(clear, tuple) else (clear,)
    return b"tRNS", struct.pack(f">{len(values)}H", *values)


def claiming(width: int, height: int) -> bytes:
    """A PNG whose header claims more pixels than there are."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def cut(kind: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    return data[: len(data) // 2]


NOT_AN_IMAGE, DAMAGED = "is not a PNG, JPEG or WebP image", "is damaged or cut short"
WRONG = {
    "empty": (b"", NOT_AN_IMAGE),
    "text": (b"<html>404 not found</html>", NOT_AN_IMAGE),
    "GIF": (encoded(colours(), "GIF"), NOT_AN_IMAGE),
    "half a PNG": (cut("PNG"), DAMAGED),
    "half a JPEG": (cut("JPEG"), DAMAGED),
    "half a WebP": (cut("WEBP"), DAMAGED),
    "the start of a PNG": (encoded(colours())[:20], DAMAGED),
    "the start of a JPEG": (encoded(colours(), "JPEG")[:20], DAMAGED),
    "a PNG with a flipped byte": (encoded(colours()).replace(b"IDAT", b"IDBT"), DAMAGED),
    "no pixels in the file": (claiming(100, 100), DAMAGED),
    "no area": (claiming(0, 9), "is (damaged|too small)"),
    "bomb": (claiming(40000, 40000), r"is too large: .*1600000000 pixels.*limit of \d+ pixels; give at most 4096"),
    "above Pillow's warning": (claiming(10000, 10000), r"is too large: .*100000000 pixels.*limit of \d+ pixels"),
    "huge": (claiming(4097, 8), "is too large: 4097 x 8 pixels; give at most 4096 a side"),
    "tall": (claiming(8, 4097), "is too large: 8 x 4097 pixels; give at most 4096 a side"),
    "tiny": (encoded(colours(7)), "is too small: 7 x 7 pixels; give at least 8 a side"),
    "thin": (encoded(colours().crop((0, 0, 16, 1))), "is too small: 16 x 1 pixels"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, what: str) -> None:
    data, text = WRONG[what]
    path = tmp_path / "low.png"
    path.write_bytes(data)
    with pytest.raises(UserError, match=text) as error:
        read_image(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("what", ["huge", "tiny", "thin", "half a PNG", "half a JPEG"])
def test_an_image_of_pillows_is_held_to_the_same(what: str) -> None:
    image = Image.open(io.BytesIO(WRONG[what][0]))  # its pixels are read when they are needed
    with pytest.raises(UserError, match=r"the image (is too|cannot be made RGB: )") as error:
        read_image(image)
    assert "\n" not in str(error.value)


def test_images_without_a_way_to_rgb_are_refused() -> None:
    with pytest.raises(UserError, match="too small: 0 x 9 pixels"):
        read_image(Image.new("RGB", (0, 9)))
    for mode in ("I", "F"):
        with pytest.raises(UserError, match=f"mode {mode}.: convert it"):
            read_image(Image.new(mode, (SIDE, SIDE)))
    with pytest.raises(UserError, match="cannot be made RGB"):
        read_image(Image.new("La", (SIDE, SIDE)))
    closed = colours()
    closed.close()
    with pytest.raises(UserError, match="cannot be made RGB"):
        read_image(closed)


def test_the_largest_and_the_smallest_are_read(tmp_path: Path) -> None:
    for size in ((8, 8), (4096, 8), (8, 4096)):
        assert read_image(saved(tmp_path / "a.png", Image.new("L", size))).size == size


def test_a_path_without_an_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.png is no file: give a PNG, JPEG or WebP image"):
        read_image(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match="is a folder: give"):
        read_image(str(tmp_path))
    with pytest.raises(UserError, match="must be a path or one of Pillow's images, not of type ndarray"):
        read_image(np.zeros((8, 8, 3)))  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", colours())
    path.chmod(0)
    with pytest.raises(UserError, match=r"a\.png cannot be read: "):
        read_image(path)


# Square


def test_a_whole_factor_averages_boxes() -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 24, 3), dtype=np.uint8))
    boxes = np.asarray(image).reshape(8, 3, 8, 3, 3).mean((1, 3))
    assert np.abs(pixels(square(image, 8)) - boxes).max() < 0.6  # it rounds in fixed point
    assert np.array_equal(pixels(square(image, 24)), pixels(image))


def test_other_sizes_are_resized_smoothly() -> None:
    for size in (10, 40):
        resized = pixels(square(colours(24), size))
        assert resized.shape == (size, size, 3)
        expected = np.clip(((np.arange(size) + 0.5) * 24 / size - 0.5) / 23 * 255, 0, 255)
        assert np.abs(resized[..., 0] - expected).max() < 8
        assert np.abs(resized[..., 1] - expected[:, None]).max() < 8


@pytest.mark.parametrize("size", [8, 16, 20])
@pytest.mark.parametrize("wide", [False, True])
def test_the_centre_is_kept(size: int, wide: bool) -> None:
    array = np.zeros((16, 40, 3), dtype=np.uint8)
    array[:, :12], array[:, -12:] = (255, 0, 0), (0, 0, 255)  # what goes
    array = array if wide else array.swapaxes(0, 1)
    assert not pixels(square(Image.fromarray(np.ascontiguousarray(array)), size)).any()


def test_a_silenced_process_refuses_a_bomb_without_a_warning_before_it(monkeypatch):
    data = encoded(colours())
    monkeypatch.setattr(image_files, "_SILENT", threading.Event())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SIDE * SIDE - 1)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        Image.open(io.BytesIO(data)).close()
        assert len(seen) == 1
        silence_pillow()
        with pytest.raises(Image.DecompressionBombError), opened(data):
            pass
        warnings.warn("of something else", stacklevel=1)
    assert len(seen) == 2
