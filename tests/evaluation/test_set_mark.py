"""What decides a set of images."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from diptych.evaluation.set_mark import described_option


def test_a_file_counts_by_its_content(tmp_path: Path) -> None:
    for name, colour in (("a.png", "red"), ("b.png", "red"), ("c.png", "blue")):
        Image.new("RGB", (4, 4), colour).save(tmp_path / name)
    first, same, other = (described_option(None, "image", str(tmp_path / name)) for name in ("a.png", "b.png", "c.png"))
    assert first == same != other and len(first[0]) == 64
