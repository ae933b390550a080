"""Metadata of earlier versions, read by `--from`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diptych.cli.main import parse
from diptych.cli.regenerate import Recorded, with_current_names
from diptych.weights.file_hash import file_sha256


def recorded(folder: Path, **row: object) -> Recorded:
    """A PNG that has this metadata, read."""
    text = PngInfo()
    text.add_text("diptych", json.dumps({"prompt": "a cat", "seed": 5, **row}))
    Image.new("RGB", (8, 8)).save(folder / "a.png", pnginfo=text)
    return Recorded.read(folder / "a.png")


def test_old_names_in_metadata_become_those_of_today() -> None:
    row = {"low": {"file": "x"}, "weights": True, "keep": True, "steps": 3}
    assert with_current_names(row) == {
        "low_res": {"file": "x"},
        "prompt_weights": True,
        "keep_stages": True,
        "steps": 3,
    }
    assert with_current_names({"low": 1, "low_res": 2})["low_res"] == 2


@pytest.mark.parametrize(("low_res", "weights"), [("low", "weights"), ("low_res", "prompt_weights")])
def test_options_from_metadata_under_both_names(tmp_path: Path, low_res: str, weights: str) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "small.png")
    entry = {"file": "small.png", "sha256": file_sha256(tmp_path / "small.png")}
    stages = [{"stage": "8-16", "steps": 3, "sampler": "ddim", "eta": 0.5}, {"stage": "16-32", "steps": 2}]
    image = recorded(tmp_path, **{low_res: entry, weights: True, "stages": stages, "size": [32, 32]})
    arguments = parse(["generate", "--from", str(tmp_path / "a.png")])
    image.complete(arguments)
    assert (arguments.low_res, arguments.prompt_weights) == (tmp_path / "small.png", True)
    assert (arguments.steps, arguments.sampler, arguments.eta) == ([3, 2], ["ddim", None], [0.5, None])
    assert (arguments.prompts, arguments.seed, arguments.size) == (["a cat"], [range(5, 6)], None)
    assert not image.changed


def test_an_option_that_was_not_recorded_changes_the_image(tmp_path: Path) -> None:
    for words, changed in (
        ([], False),
        (["--steps", "3"], False),
        (["--steps", "4"], True),
        (["--eta", "0.5"], True),
        (["--clip", "judge:2"], True),
        (["--one-at-a-time"], False),
    ):
        image = recorded(tmp_path, steps=3)
        image.complete(parse(["generate", "--from", "a.png", *words]))
        assert image.changed == changed, words
