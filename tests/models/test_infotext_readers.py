"""What other programs read of diptych's images: sd-parsers stands for galleries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diptych.cli.output import write_png
from diptych.models.exif import encoded
from diptych.models.metadata import SCHEDULES, png_texts
from diptych.models.options import SCHEDULE_TYPES

sd_parsers = pytest.importorskip("sd_parsers")

ROW: dict[str, Any] = {
    "prompt": "a red apple, on a table: (ripe:1.2)\nsecond line",
    "negative": "green, worms",
    "seed": 5,
    "steps": 24,
    "guidance": 7.5,
    "sampler": "dpmpp-2m",
    "schedule_type": "karras",
    "size": [64, 32],
    "model": {"kind": "latent", "source": "runs/apple.safetensors", "sha256": "0123456789abcdef" * 4},
    "lora": [{"file": "style.safetensors", "sha256": "f" * 64, "tensors_sha256": "e" * 64, "scale": 0.5}],
}


@pytest.mark.parametrize("format", ["png", "webp", "jpeg"])
def test_a_gallery_reads_prompt_sampler_and_model(tmp_path: Path, format: Any) -> None:
    path = write_png(Image.new("RGB", (8, 8)), tmp_path, "a", png_texts(ROW))
    if format != "png":
        path.with_suffix(f".{format}").write_bytes(encoded(path.read_bytes(), format))
    found = sd_parsers.ParserManager().parse(path.with_suffix(f".{format}"))
    assert found.generator.value == "AUTOMATIC1111"
    (sampler,) = found.samplers
    assert sampler.name == "DPM++ 2M"
    assert sampler.parameters == {"scheduler": "Karras", "cfg_scale": "7.5", "seed": "5", "steps": "24"}
    assert (sampler.model.name, sampler.model.hash) == ("apple", "0123456789")
    assert [one.value for one in sampler.prompts] == [ROW["prompt"]]
    assert [one.value for one in sampler.negative_prompts] == [ROW["negative"]]
    assert found.metadata["Size"] == "64x32"


def test_every_schedule_type_has_a_name_that_web_uis_know() -> None:
    assert SCHEDULES.keys() == set(SCHEDULE_TYPES)
    assert set(SCHEDULES.values()) <= {"Karras", "Exponential", "Beta", "Simple", "DDIM", "Normal", "SGM Uniform"}
