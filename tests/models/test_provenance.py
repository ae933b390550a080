"""Every image says in XMP that it was generated, for programs that know nothing of diptych."""

from __future__ import annotations

import io
import struct
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diptych.cli.output import save_image
from diptych.core.version import version
from diptych.evaluation.image_store import ImageFolder, ImageSheet
from diptych.evaluation.set_files import stored_row, write_image
from diptych.models.exif import encoded
from diptych.models.metadata import read_metadata

ROW: dict[str, Any] = {"prompt": "<b>&\"'</b> ]]> 猫", "seed": 3, "size": [16, 16]}
TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
NAMES = {
    "type": "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType",
    "tool": "{http://ns.adobe.com/xap/1.0/}CreatorTool",
}


def grey() -> Image.Image:
    return Image.new("RGB", (16, 16), "grey")


def stated(packet: bytes | str) -> dict[str, str | None]:
    """What an XMP packet states, by any XML parser."""
    root = ET.fromstring(packet)
    return {key: root.findtext(f".//{name}") for key, name in NAMES.items()}


def of_file(path: Path) -> dict[str, str | None]:
    with Image.open(path) as image:
        return stated(image.info["xmp"])


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Kinds and contents of a PNG's chunks."""
    parts, place = [], 8
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        parts.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    return parts


def test_a_png_holds_xmp_as_its_specification_says(tmp_path: Path) -> None:
    path = save_image(grey(), tmp_path, "a", ROW)
    packets = [content for kind, content in chunks(path.read_bytes()) if content.startswith(b"XML:com.adobe.xmp\0")]
    assert len(packets) == 1 and (b"iTXt", packets[0]) in chunks(path.read_bytes())
    head, packet = packets[0][:22], packets[0][22:]
    assert head == b"XML:com.adobe.xmp\0\0\0\0\0"  # neither compressed nor of a language
    assert stated(packet) == {"type": f"{TYPES}trainedAlgorithmicMedia", "tool": f"diptych {version()}"}
    assert read_metadata(path)["prompt"] == ROW["prompt"]
    assert save_image(grey(), tmp_path, "a", ROW).read_bytes() == path.read_bytes()  # of no time


@pytest.mark.parametrize("given", ["image", "mask", "low"])
def test_what_was_made_from_an_image_is_a_composite(tmp_path: Path, given: str) -> None:
    row = {**ROW, given: {"file": "in.png", "sha256": "0" * 64}}
    assert of_file(save_image(grey(), tmp_path, "a", row))["type"] == f"{TYPES}compositeWithTrainedAlgorithmicMedia"


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_other_formats_keep_it(tmp_path: Path, format: Any) -> None:
    path = save_image(grey(), tmp_path, "a", {**ROW, "image": {"file": "in.png"}})
    with Image.open(io.BytesIO(encoded(path.read_bytes(), format))) as image:
        assert stated(image.info["xmp"]) == of_file(path)


@pytest.mark.parametrize("name", ["0.png", "0.jpg"])
def test_sets_of_images_state_it(tmp_path: Path, name: str) -> None:
    write_image(grey(), tmp_path / name, ROW, quality=90)
    assert of_file(tmp_path / name)["type"] == f"{TYPES}trainedAlgorithmicMedia"
    row = stored_row(tmp_path / name)
    assert row is not None and row["prompt"] == ROW["prompt"]


def test_sheets_and_images_of_evaluations_state_it(tmp_path: Path) -> None:
    save_image(grey(), tmp_path, "sheet", {"models": ["latent", "cascade"], "pictures": [["a", 1]]})
    ImageFolder(tmp_path, ["one.png"]).save([0], [grey()], {})
    sheet = ImageSheet(tmp_path / "grid.png", 2, 16, {"steps": 3})
    sheet.save([0, 1], [grey(), grey()], {})
    assert sheet.load()[1] is not None
    for name in ("sheet.png", "one.png", "grid.png"):
        assert of_file(tmp_path / name)["type"] == f"{TYPES}trainedAlgorithmicMedia", name
