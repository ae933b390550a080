"""The cascade: its stages do what they do alone, from words or from an image."""
# pyright: reportCallIssue=false, reportArgumentType=false, reportOptionalSubscript=false, reportAttributeAccessIssue=false
# Options are given by their former names too, which no signature has.

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diptych.core.errors import DiptychWarning, UserError
from diptych.diffusion.steps import NoiseSource
from diptych.diffusion.thresholding import ThresholdConfig
from diptych.models.cascade import Cascade
from diptych.models.pixel_diffusion import PixelDiffusion
from diptych.models.request import Result
from tests.models.latents import arrays, same_image
from tests.models.stages import Words, base, cascade, close, configs, drawing, enlarging, equal, stage, unet, wordless

PROMPTS = ["red left", "two blue cats left of a house", "a cat"]
SEEDS = [5, 7, 7]


@pytest.fixture(scope="module")
def model() -> Cascade:
    return cascade()


# From words


def test_three_stages_paint_ever_larger(model: Cascade) -> None:
    result = model.generate(PROMPTS, seeds=SEEDS, keep=True)
    assert [[image.size for image in images] for images in result.stages] == [[(n, n)] * 3 for n in (8, 16, 32)]
    assert result.stages[-1] == result.images and model.size == 32
    shown = arrays(result)
    assert np.mean((shown > 0) & (shown < 255)) > 0.3 and np.abs(shown[1] - shown[2]).max() > 1
    assert model.generate(PROMPTS[0]).stages == []


@pytest.mark.parametrize("sampler", ["dpmpp-2m", "ddpm"])
def test_a_seed_gives_its_image_alone_and_in_any_company(model: Cascade, sampler: str) -> None:
    together = model.generate(PROMPTS, seeds=SEEDS, sampler=sampler)
    for i in range(3):
        alone = model.generate(PROMPTS[i], seeds=[SEEDS[i]], sampler=sampler)
        assert close(alone.images[0], together.images[i])
    turned = model.generate(PROMPTS[::-1], seeds=SEEDS[::-1], sampler=sampler)
    assert all(close(a, b) for a, b in zip(turned.images, together.images[::-1], strict=True))


@pytest.mark.parametrize("options", [{}, {"sampler": "ddpm", "negative": ["a cat", "", "x"], "guidance": 3.0}])
def test_each_stage_alone_does_what_it_does_in_the_cascade(model: Cascade, options: dict[str, Any]) -> None:
    result = model.generate(PROMPTS, seeds=SEEDS, keep=True, **options)
    low: dict[str, Any] = {}
    for number in range(3):
        alone = model.stage(number).generate(PROMPTS, seeds=SEEDS, **low, **options)
        assert equal(alone.images, result.stages[number])
        low = {"low": alone.images}


def test_kept_images_are_where_one_can_go_on(model: Cascade, tmp_path: Path) -> None:
    whole = model.generate(PROMPTS, seeds=SEEDS, keep=True, augmentation=0.4)
    for number in (1, 2):
        again = model.generate(
            PROMPTS, seeds=SEEDS, low=whole.stages[number - 1], start=number, augmentation=0.4, keep=True
        )
        assert equal(again.images, whole.images) and len(again.stages) == 3 - number
        part = model.generate(PROMPTS, seeds=SEEDS, stop=number, augmentation=0.4)
        assert equal(part.images, whole.stages[number - 1])
    one = model.generate(PROMPTS, seeds=SEEDS, low=whole.stages[0], start=1, stop=2, augmentation=0.4)
    assert equal(one.images, whole.stages[1])
    for i, image in enumerate(whole.stages[0]):
        image.save(tmp_path / f"{i}.png")
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    assert equal(model.generate(PROMPTS, seeds=SEEDS, low=paths, augmentation=0.4).images, whole.images)


def test_prompts_are_read_once_by_all_stages(model: Cascade) -> None:
    words: Any = model.stage(0).text
    words.seen.clear()
    model.generate(PROMPTS, negative=["", "a cat", ""])
    assert words.seen == [*PROMPTS, "", "a cat"]  # each once


def test_negative_prompts_steer_the_stages_that_are_guided(model: Cascade) -> None:
    usual = model.generate(PROMPTS, keep=True)
    one = model.generate(PROMPTS, negative=["a dog in a very long story", "", " "], keep=True)
    for a, b in zip(usual.stages, one.stages, strict=True):
        assert not same_image(a[0], b[0]) and all(close(x, y) for x, y in zip(a[1:], b[1:], strict=True))
    assert [told["negative"] for told in one.metadata] == ["a dog in a very long story", None, None]
    with pytest.warns(DiptychWarning, match="the negative prompt has no effect"):
        model.generate(PROMPTS, negative="a dog", guidance=1.0)


def test_given_noise_is_the_first_stages(model: Cascade) -> None:
    noise = NoiseSource([3], (3, 8, 8)).draw()
    usual = model.generate("red", seeds=[3])
    given = model.generate("red", seeds=[3], noise=noise)
    assert equal(usual.images, given.images) and "sha256" in given.metadata[0]["noise"]
    assert not close(model.generate("red", seeds=[3], noise=-noise).images[0], usual.images[0])
    larger = torch.randn(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    assert model.generate("red", low=drawing(12, 8), noise=larger).images[0].size == (48, 32)


# Settings


def told(result: Result, name: str) -> list[Any]:
    return [stage.get(name) for stage in result.metadata[0]["stages"]]


def test_each_stage_has_its_own_settings(model: Cascade) -> None:
    usual = model.generate("red")
    assert told(usual, "stage") == ["8", "8-16", "16-32"] and usual.metadata[0]["size"] == [32, 32]
    assert told(usual, "steps") == [3, 2, 2] and told(usual, "guidance") == [3.0, 2.0, 1.0]
    assert told(usual, "threshold") == ["dynamic:0.95", "static", "static"]
    assert told(usual, "augmentation") == [None, 0.2, 0.2]
    one = model.generate("red", steps=1, guidance=1.5, sampler="ddim", threshold="none", augmentation=0.5)
    assert told(one, "steps") == [1] * 3 and told(one, "sampler") == ["ddim"] * 3
    assert told(one, "threshold") == ["none"] * 3 and told(one, "augmentation") == [None, 0.5, 0.5]
    thresholds = ["dynamic:0.9:1.5", None, ThresholdConfig(kind="none")]
    each = model.generate(
        "red", steps=(4, None, 1), guidance=[None, 5, None], threshold=thresholds, augmentation=[None, 0, 1]
    )
    assert told(each, "steps") == [4, 2, 1] and told(each, "guidance") == [3.0, 5.0, 1.0]
    assert told(each, "threshold") == ["dynamic:0.9:1.5", "static", "none"] and told(each, "augmentation") == [
        None,
        0.0,
        1.0,
    ]


def test_a_list_may_name_the_stages_that_run_or_all(model: Cascade) -> None:
    low = drawing()
    assert told(model.generate("red", low=low, steps=[1, 3]), "steps") == [1, 3]
    assert told(model.generate("red", low=low, steps=[9, 1, 3]), "steps") == [1, 3]
    assert told(model.generate("red", stop=2, steps=[1, 3, 9]), "steps") == [1, 3]
    assert told(model.generate("red", stop=1, steps=[4]), "steps") == [4]


def test_the_metadata_is_enough_to_make_each_image_again(model: Cascade) -> None:
    result = model.generate(
        PROMPTS, seeds=SEEDS, steps=[2, 3, 1], negative="a cat", threshold=["dynamic:0.9", None, "none"]
    )
    for image, row in zip(result.images, json.loads(json.dumps(result.metadata)), strict=True):
        names = ("steps", "guidance", "sampler", "threshold", "augmentation")
        each: dict[str, Any] = {name: [stage.get(name) for stage in row["stages"]] for name in names}
        assert close(
            model.generate(row["prompt"], seeds=[row["seed"]], negative=row["negative"], **each).images[0], image
        )


def test_the_callback_counts_the_steps_of_all_stages_and_may_cancel(model: Cascade) -> None:
    seen: list[tuple[int, int, int]] = []
    model.generate("red", steps=[2, 1, 3], callback=lambda step, steps, x0: seen.append((step, steps, x0.shape[-1])))
    assert seen == [(0, 6, 8), (1, 6, 8), (2, 6, 16), (3, 6, 32), (4, 6, 32), (5, 6, 32)]

    def cancel(step: int, steps: int, x0: torch.Tensor) -> None:
        if step == 2:
            raise KeyboardInterrupt

    calls = model.stage(2).denoiser.calls
    with pytest.raises(KeyboardInterrupt):
        model.generate("red", steps=[2, 1, 3], callback=cancel)
    assert model.stage(2).denoiser.calls == calls


# From an image


@pytest.mark.parametrize(
    ("size", "made"), [((8, 8), (32, 32)), ((12, 8), (48, 32)), ((80, 200), (32, 80)), ((13, 8), (48, 32))]
)
def test_an_image_takes_the_place_of_the_first_stages(model: Cascade, size: Any, made: Any) -> None:
    low = drawing(*size)
    result = model.generate(["a", "b"], low=low)
    assert [image.size for image in result.images] == [made] * 2
    assert "sha256" in result.metadata[0]["low"] and result.metadata[0]["size"] == list(made)
    assert told(result, "stage") == ["8-16", "16-32"]
    last = model.generate(["a", "b"], low=low, start=2)
    assert told(last, "stage") == ["16-32"] and min(last.images[0].size) == 32


def test_an_image_fits_every_stage_that_follows() -> None:
    """Widths of 2 n would do for the first stage, and leave the second with halves of pixels."""
    first = enlarging(8, network=unet(multipliers=(1,), blocks=(1,)))
    second = enlarging(16, network=unet(multipliers=(1, 1, 1, 1), blocks=(1, 1, 1, 1)))
    assert (first.unit, second.unit) == (1, 8)
    model = Cascade.of([stage(first), stage(second)])
    result = model.generate("a", low=drawing(9, 8), keep=True)
    assert [images[0].size for images in result.stages] == [(16, 16), (32, 32)]
    assert model.generate("a", low=drawing(11, 8)).images[0].size == (48, 32)


def test_a_cascade_may_lack_a_base_stage() -> None:
    model = Cascade.of([stage(one) for one in configs()[1:]])
    result = model.generate("a", low=drawing(), keep=True)
    assert [images[0].size for images in result.stages] == [(16, 16), (32, 32)]
    assert equal(model.generate("a", low=result.stages[0], start=1).images, result.images)
    with pytest.raises(UserError, match="no base stage: give it a low-resolution image"):
        model.generate("a")


def test_stages_with_and_without_words_stand_together() -> None:
    model = Cascade.of([stage(base()), stage(wordless())])
    result = model.generate(["red", "a cat"], seeds=[3, 3], guidance=4.0, keep=True)
    assert not same_image(*result.stages[0]) and told(result, "guidance") == [4.0, 1.0]
    assert told(result, "augmentation") == [None, 0.0]
    silent = Cascade.of([stage(wordless())])
    assert silent.generate("any", low=drawing()).images[0].size == (16, 16)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"prompts": ["a", ""]}, "empty"),
    ({"seeds": []}, "1 prompts, 0 seeds"),
    ({"stop": 0}, "stop must be at least 1, not 0"),
    ({"stop": 4}, "stop must be a number of stages, 1 to 3, not 4"),
    ({"stop": "two"}, "stop must be a whole number"),
    ({"stop": 1.5}, "stop must be a whole number"),
    ({"start": 1}, "start goes with a low-resolution image"),
    ({"low": drawing(), "start": 0}, "stage that enlarges, 1 to 2, not 0"),
    ({"low": drawing(), "start": 3}, "stage that enlarges, 1 to 2, not 3"),
    ({"low": drawing(), "start": -1}, "start must be at least 0, not -1"),
    ({"low": drawing(), "start": 2, "stop": 2}, "stop must be a number of stages, 3 to 3, not 2"),
    ({"low": drawing(), "stop": 1}, "stop must be a number of stages, 2 to 3, not 1"),
    ({"low": drawing(), "start": 1.5}, "start must be a whole number"),
    ({"low": [drawing()] * 2}, "one low-resolution image for all 1 prompts or one for each, not 2"),
    ({"low": drawing(8, 40)}, "crop it"),
    ({"low": "nowhere.png"}, "nowhere.png is no file"),
    ({"steps": [1, 2]}, r"steps: give one value for all stages, or a list of 3, not \[1, 2\]"),
    ({"stop": 2, "steps": [1]}, "steps: give one value for all stages, or a list of 2"),
    ({"steps": []}, "steps: give one value"),
    ({"steps": [1, 2, 0]}, "at least 1"),
    ({"guidance": [1.0, 2.0, "x"]}, "guidance must be a finite number"),
    ({"sampler": ["ddim", "ddim", "dimm"]}, "unknown sampler 'dimm'"),
    ({"threshold": [None, None, "dynamic:2"]}, "percentile must be a fraction"),
    ({"augmentation": [None, 0.1, 2]}, "augmentation must lie between 0 and 1, not 2"),
    ({"noise": torch.zeros(1, 3, 32, 32)}, r"shape \(1, 3, 8, 8\)"),
    ({"one_at_a_time": True}, "save and load the cascade"),
]


@pytest.mark.parametrize(("bad", "says"), BAD, ids=[f"{next(iter(bad))}-{i}" for i, (bad, _) in enumerate(BAD)])
def test_what_makes_no_sense_is_refused_in_one_line(model: Cascade, bad: dict[str, Any], says: str) -> None:
    before = model.stage(0).denoiser.calls + model.stage(1).denoiser.calls
    with pytest.raises(UserError, match=says) as caught:
        model.generate(**{"prompts": "red", **bad})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 260
    assert model.stage(0).denoiser.calls + model.stage(1).denoiser.calls == before, "refused before any work"


def test_a_base_stage_alone_enlarges_nothing() -> None:
    with pytest.raises(UserError, match="no stage that enlarges"):
        Cascade.of([stage(base())]).generate("red", low=drawing())


def test_a_stage_that_was_never_trained_says_so_before_the_others_paint() -> None:
    trained = stage(base())
    model = Cascade.of([trained, PixelDiffusion(enlarging(), Words())])
    with pytest.raises(UserError, match="stage 8-16 was never trained"):
        model.generate("red")
    assert trained.denoiser.calls == 0
    assert model.generate("red", stop=1).images[0].size == (8, 8)


@pytest.mark.parametrize(
    ("chain", "says"),
    [
        ([], "at least one stage"),
        ([enlarging(8), base()], "stage 8 cannot follow stage 8-16, which makes 16-px images: it is a base stage"),
        ([base(), enlarging(16)], "stage 16-32 cannot follow stage 8, .* it enlarges 16-px images"),
        ([base(), enlarging(8), enlarging(8)], "stage 8-16 cannot follow stage 8-16"),
    ],
)
def test_stages_that_do_not_follow_each_other_are_refused(chain: list[Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Cascade.of([stage(one) for one in chain])


# Devices


def test_every_part_moves_with_the_cascade(model: Cascade) -> None:
    moved = cascade()
    expected = moved.generate("red").images
    words: Any = moved.stage(0).text
    parts = [*moved.networks, words.model]
    assert moved.to("meta") is moved and moved.device.type == "meta"
    assert {p.device.type for part in parts for p in part.parameters()} == {"meta"}
    assert Cascade.of([stage(base()).to("meta")]).device.type == "meta", "a cascade lives where its stages do"
    assert equal(model.generate("red").images, expected)
