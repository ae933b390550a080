"""JPEGs that are decoded without Pillow's parsing of their tables: the same pixels and the same errors."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diptych.data import jpeg
from diptych.data.decode import decode_image
from diptych.data.pixels import array_of

CASES = ((6, True), (16, False), (33, True))
"""Decoded at an eighth or less, at a fraction, and enlarged or whole."""
SIDES = [(64, 64), (97, 53), (33, 120), (8, 8), (1, 3)]


def image(width: int, height: int) -> Image.Image:
    """Smooth, and noise."""
    rng = np.random.default_rng(width * height)
    ramp = np.linspace(0, 200, width * height * 3).reshape(height, width, 3)
    return Image.fromarray((ramp + rng.integers(0, 56, ramp.shape)).astype(np.uint8))


def encoded(mode: str = "RGB", sides: tuple[int, int] = (97, 53), **options: Any) -> bytes:
    file = io.BytesIO()
    image(*sides).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def with_segment(data: bytes, kind: int, content: bytes) -> bytes:
    """A JPEG with one more segment, before all others."""
    return data[:2] + bytes((0xFF, kind)) + (len(content) + 2).to_bytes(2, "big") + content + data[2:]


def outcome(data: bytes, size: int, square: bool) -> Any:
    """The pixels, or the error."""
    try:
        pixels = array_of(decode_image(data, size, square))
        return pixels.shape[:2], pixels.tobytes()
    except Exception as error:
        return type(error), str(error)


def same_as_pillow(
    data: bytes, monkeypatch: pytest.MonkeyPatch, cases: tuple[tuple[int, bool], ...] = CASES
) -> list[Any]:
    """What comes of a file at some sizes, the same with Pillow's reading of the header."""
    found = [outcome(data, *case) for case in cases]
    with monkeypatch.context() as patch:
        patch.setattr(jpeg, "plain_size", lambda data: None)
        assert found == [outcome(data, *case) for case in cases]
    return found


@pytest.mark.parametrize(
    "options",
    [{"quality": 90}, {"quality": 100, "subsampling": 0}, {"subsampling": 1}, {"progressive": True}, {"optimize": True},
     {"restart_marker_rows": 1}, {"comment": "one"}, {"icc_profile": bytes(300)}, {"keep_rgb": True}],
    ids=lambda options: "-".join(options),
)  # fmt: skip
def test_usual_photographs(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for sides in SIDES:
        data = encoded(sides=sides, **options)
        assert jpeg.plain_size(data) == sides
        same_as_pillow(data, monkeypatch)


def test_what_is_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = encoded()
    for data in (
        encoded("L"),
        encoded("CMYK"),
        encoded(exif=exif),
        encoded(exif=exif, progressive=True),
        with_segment(plain, 0xE1, b"http://ns.adobe.com/xap/1.0/\x00<x/>"),
        with_segment(plain, 0xE2, b"MPF\0" + bytes(20)),
        with_segment(plain, 0xED, b"Photoshop 3.0\x008BIM"),
        with_segment(plain, 0xE0, b"JFIF"),
        with_segment(plain, 0xDC, bytes(2)),
        plain[:2] + b"\xff" + plain[2:],
        plain.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),
        b"\x89PNG\r\n\x1a\n" + plain,
        b"",
    ):
        assert jpeg.plain_size(data) is None
        same_as_pillow(data, monkeypatch)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 97 * 53 - 1)
    assert jpeg.plain_size(plain) == (97, 53)
    assert "more than 5,140 pixels" in str(same_as_pillow(plain, monkeypatch)[0])


@pytest.mark.parametrize("progressive", [False, True])
def test_damaged_files_fail_as_with_pillow(progressive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, rng, errors = encoded(progressive=progressive), np.random.default_rng(3), 0
    cuts = [plain[:size] for size in (2, 3, 20, 170, 400, len(plain) // 2, len(plain) - 2, len(plain) - 1)]
    for data in [*cuts, plain + b"more", plain[:-2] + b"more"]:
        errors += isinstance(same_as_pillow(data, monkeypatch)[0][0], type)
    assert errors >= len(cuts) - 1
    for place, value in zip(rng.integers(2, len(plain), 60), rng.integers(0, 256, 60), strict=True):
        changed = bytearray(plain)
        changed[place] = value
        same_as_pillow(bytes(changed), monkeypatch, CASES[1:2])
