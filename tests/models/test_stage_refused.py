"""What a stage of the cascade refuses, in one line that says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import diptych
from diptych.core.errors import UserError
from diptych.models.pixel_diffusion import PixelDiffusion
from tests.models.stages import CAPTIONS, UNET, Words, attentive, base, drawing, enlarging, stage, unet


@pytest.fixture(scope="module")
def painter() -> PixelDiffusion:
    return stage(base())


@pytest.fixture(scope="module")
def enlarger() -> PixelDiffusion:
    return stage(enlarging())


BAD: list[tuple[dict[str, Any], str]] = [
    ({"prompts": ""}, "empty"),
    ({"prompts": ["a", " \n"]}, "empty"),
    ({"prompts": 5}, "prompts must be a text"),
    ({"negative": ["a", "b", "c"]}, "negative prompt for all or one for each of the 2"),
    ({"seeds": [1]}, "2 prompts, 1 seeds"),
    ({"seeds": [0, 2**63]}, "from 0 to"),
    ({"steps": 0}, "at least 1"),
    ({"steps": 10**12}, "at most 10000"),
    ({"steps": [2, 3]}, "steps must be a whole number"),
    ({"guidance": float("nan")}, "finite number"),
    ({"sampler": "dimm"}, "unknown sampler"),
    ({"threshold": "dynamics"}, "unknown threshold 'dynamics'.*static"),
    ({"threshold": "dynamic:"}, "cannot read the threshold 'dynamic:'"),
    ({"threshold": "dynamic:x"}, "cannot read the threshold"),
    ({"threshold": "dynamic:0.9:1.5:2"}, "cannot read the threshold"),
    ({"threshold": "static:0.9"}, "cannot read the threshold"),
    ({"threshold": "dynamic:95"}, "percentile must be a fraction"),
    ({"threshold": "dynamic:nan"}, "percentile must be a number"),
    ({"threshold": "dynamic:0.95:0.5"}, "cap must be at least 1"),
    ({"threshold": 0.95}, "unknown threshold '0.95'"),
    ({"augmentation": 1.5}, "augmentation must lie between 0 and 1, not 1.5"),
    ({"augmentation": -0.1}, "augmentation must lie between 0 and 1"),
    ({"augmentation": "much"}, "augmentation must be a finite number"),
    ({"noise": torch.zeros(2, 3, 4, 4)}, r"shape \(2, 3, (8, 8|16, 16)\), not \(2, 3, 4, 4\)"),
    ({"noise": torch.full((2, 3, 8, 8), torch.nan)}, "finite|shape"),
]
BAD_SIZES: list[tuple[dict[str, Any], str]] = [
    ({"size": (10, 8)}, "multiples of 4"),
    ({"size": (8, 2**40)}, "up to 8192"),
    ({"size": 8}, "size must be a list of whole numbers, not 8"),
    ({"augmentation": 0.5}, "augmentation has no effect on this stage"),
    ({"low": drawing()}, "starts from noise: leave the low-resolution image out"),
]
BAD_LOWS: list[tuple[dict[str, Any], str]] = [
    ({"low": None}, "8-px images into 16-px ones: give it the image to enlarge as --low-res"),
    ({"low": []}, "one low-resolution image for all 2 prompts or one for each, not 0"),
    ({"low": [drawing()] * 3}, "one for each, not 3"),
    ({"low": [drawing(), drawing(8, 12)]}, "different shapes"),
    ({"low": drawing(8, 40)}, "8 x 40 pixels: crop it, its longer side may be at most 4 times the shorter"),
    ({"low": drawing(4, 4)}, "too small"),
    ({"low": Image.new("RGB", (5000, 100))}, "too large"),
    ({"low": "/nowhere/low.png"}, "/nowhere/low.png is no file"),
    ({"low": Path("/")}, "is a folder"),
    ({"low": __file__}, "not a PNG, JPEG or WebP image"),
    ({"low": np.zeros((8, 8, 3))}, "must be a path or one of Pillow's"),
    ({"low": [drawing(), None]}, "must be a path or one of Pillow's"),
    ({"low": Image.new("F", (8, 8))}, "mode F"),
    ({"low": torch.zeros(2, 3, 8, 9)}, "low_res has 9 x 8 values: its sides must be multiples of"),
    ({"low": torch.zeros(2, 3, 16, 16)}, "low_res has 16 x 16 values: .* the shorter one 8"),
    ({"low": torch.full((2, 3, 8, 8), 2.0)}, "the values of low_res must lie between -1 and 1"),
    ({"size": (16, 16)}, "size follows from the low-resolution image"),
]
CASES = [  # of which stage, what, and what is said
    *(("base", bad, says) for bad, says in [*BAD, *BAD_SIZES]),
    *(("noise before", bad, says) for bad, says in [*BAD, *BAD_LOWS]),
]


@pytest.mark.parametrize(
    ("kind", "bad", "says"), CASES, ids=[f"{k}-{next(iter(b))}-{i}" for i, (k, b, _) in enumerate(CASES)]
)
def test_what_makes_no_sense_is_refused_in_one_line(
    painter: PixelDiffusion, enlarger: PixelDiffusion, kind: str, bad: dict[str, Any], says: str
) -> None:
    model = painter if kind == "base" else enlarger
    before, read = model.denoiser.calls, len(model.text.seen)
    given = {"prompts": list(CAPTIONS), **({} if kind == "base" else {"low": drawing()}), **bad}
    with pytest.raises(UserError, match=says) as caught:
        model.generate(**given)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 260
    assert model.denoiser.calls == before and len(model.text.seen) == read, "refused before any work"


def test_a_damaged_image_is_named(enlarger: PixelDiffusion, tmp_path: Path) -> None:
    drawing(64, 64).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:500])
    with pytest.raises(UserError, match=r"cut\.png is damaged or cut short"):
        enlarger.generate("a", low=tmp_path / "cut.png")


def test_a_table_has_no_more_steps_than_entries() -> None:
    with pytest.raises(UserError, match="steps must lie between 1 and 1000, not 1001"):
        stage(base(**UNET)).generate("a", steps=1001)


def test_a_stage_that_was_never_trained_says_so(tmp_path: Path) -> None:
    fresh = PixelDiffusion(base(), Words())
    with pytest.raises(UserError, match="stage 8 was never trained"):
        fresh.generate("a")
    assert not fresh.text.seen, "refused before any work"
    sr = PixelDiffusion(enlarging(), Words())
    with pytest.raises(UserError, match="stage 8-16 was never trained"):
        sr.sample_from_images(torch.zeros(1, 3, 16, 16), ["a"], [0])
    sr.save(tmp_path)
    with pytest.raises(UserError, match=r"the stage in .* was never trained"):
        diptych.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"size": 18}, "size"),
        ({"size": 0}, "size"),
        ({"low_size": 12}, "low_size"),
        ({"low_size": 16}, "low_size"),
        ({"low_size": 0}, "low_size"),
        ({"steps": 0}, "steps"),
        ({"guidance": float("inf")}, "guidance"),
        ({"sampler": "magic"}, "sampler"),
        ({"low_size": None}, r"network\.concat_channels"),
        ({"low_size": None, "network": unet(concat_channels=0)}, r"network\.augmented"),
        ({"network": unet(in_channels=4)}, r"network\.in_channels"),
        ({"learned_variance": True}, r"network\.out_channels"),
        ({"network": unet(pooled_width=20)}, r"network\.pooled_width"),
        ({"network": attentive(context_width=20)}, r"network\.context_width"),
        ({"text": None}, r"network\.pooled_width"),
    ],
)
def test_a_stage_whose_parts_do_not_fit_is_refused_by_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError, match=rf"PixelDiffusionConfig\.{field} must"):
        enlarging(**{"size": 16, **changes})
