"""Metadata of earlier versions, read by `--from`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diptych.cli.arguments import options_given
from diptych.cli.main import parse
from diptych.cli.regenerate import Recorded, with_current_names
from diptych.core.errors import DiptychWarning
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


def test_another_sampler_leaves_the_recorded_sampler_options_out(tmp_path: Path) -> None:
    for words, eta in (([], 0.5), (["--sampler", "ddim"], 0.5), (["--sampler", "euler"], None)):
        image, arguments = recorded(tmp_path, sampler="ddim", eta=0.5), parse(["generate", "--from", "a.png", *words])
        image.complete(arguments)
        assert arguments.eta == eta and image.changed == (eta is None), words


def test_more_stages_than_were_recorded_have_their_own_options(tmp_path: Path) -> None:
    image = recorded(tmp_path, stages=[{"stage": "8", "steps": 3, "sampler": "ddim"}], stop=1)
    arguments = parse(["generate", "--from", "a.png", "--stop", "3"])
    image.complete(arguments)
    assert arguments.steps == [3, None, None] and arguments.sampler == ["ddim", None, None]


def test_another_kind_of_model_leaves_recorded_options_out(tmp_path: Path) -> None:
    class Other:
        def generate(self, prompts: list[str], steps: int, guidance: float) -> None: ...

    image = recorded(tmp_path, stages=[{"stage": "8", "steps": 3, "guidance": 2.0}], long_prompts="cut")
    arguments = parse(["generate", "--from", "a.png", "--model", "other", "--guidance", "4"])
    image.complete(arguments)
    with pytest.warns(DiptychWarning, match="long_prompts, steps of .* are of another kind of model: left out"):
        assert image.fitting(Other(), options_given(arguments)) == {"guidance": 4.0}


def test_the_recorded_model_takes_all_that_was_recorded(tmp_path: Path) -> None:
    image, arguments = recorded(tmp_path, steps=3, tile=64), parse(["generate", "--from", "a.png"])
    image.complete(arguments)
    options = options_given(arguments)
    assert image.fitting(object.__new__(type("Other", (), {"generate": lambda self: None})), options) == options != {}


def test_what_ran_in_another_precision_runs_in_it_again(tmp_path: Path) -> None:
    image = recorded(tmp_path, model={"source": "latent", "precision": "int8"})
    for words, precision, changed in (
        ([], "int8", False),
        (["--precision", "float32"], "float32", True),
        (["--model", "cascade"], None, False),
    ):
        image.changed, arguments = False, parse(["generate", "--from", "a.png", *words])
        image.complete(arguments)
        assert (arguments.precision, image.changed) == (precision, changed), words
