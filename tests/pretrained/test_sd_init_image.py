"""Images made from images, and parts painted anew: our latent panel beside diffusers' pipelines.

Both sides have the same weights, images, masks, first noise and noise of the autoencoder's posterior.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import diptych
from diptych.core.errors import UserError
from diptych.core.random import CONCAT, POSTERIOR, GeneratorDraws
from diptych.models.latent_diffusion import LatentDiffusion
from diptych.pretrained.convert import convert
from diptych.pretrained.source import Options
from tests.networks.reference import noise
from tests.parity import within
from tests.pretrained import sd_models
from tests.pretrained.sd_models import FACTOR, FAMILY, PROMPTS, SIZE, Kind
from tests.pretrained.test_sd_pipelines import SCHEDULERS, WORDS

diffusers = pytest.importorskip("diffusers")

STEPS = 6
STRENGTHS = (0.4, 0.75, 1.0)
"""Of 6 steps these take 2, 4 and 6."""
SEEDS = [11, 12]
SIDE = SIZE // FACTOR
Both = tuple[LatentDiffusion, Any]


def opened(folder: Path, family: str) -> Both:
    """Our model, and their pipeline of a family, from one folder."""
    pipeline = getattr(diffusers, family).from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    model = diptych.load(folder, "cpu")
    assert isinstance(model, LatentDiffusion)
    return model, pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Kind], Path]:
    return lru_cache(lambda kind: sd_models.folder(tmp_path_factory.mktemp(kind), kind))


@pytest.fixture(scope="module")
def painters(folder) -> Callable[[Kind], Both]:
    return lru_cache(lambda kind: opened(folder(kind), "StableDiffusionImg2ImgPipeline"))


@pytest.fixture(scope="module")
def repainters(folder) -> Callable[[Kind], Both]:
    return lru_cache(lambda kind: opened(folder(kind), "StableDiffusionInpaintPipeline"))


def images() -> list[Image.Image]:
    """One for each prompt, of large shapes: a disc, and stripes."""
    y, x = np.mgrid[:SIZE, :SIZE]
    disc = np.stack([(x - 14) ** 2 + (y - 18) ** 2 < 90, x > 20, y > 9], -1)
    stripes = np.stack([x // 6 % 2, y // 8 % 2, (x + y) // 10 % 2], -1)
    return [Image.fromarray((40 + 170 * values).astype(np.uint8)) for values in (disc, stripes)]


def masks() -> list[Image.Image]:
    """One for each prompt, with edges between the latents' places, and grey on either side of the middle."""
    first, second = np.zeros((2, SIZE, SIZE), np.uint8)
    first[5:22, 7:25], first[24:28] = 255, 128
    second[:, 13:], second[:6, 20:] = 255, 127
    return [Image.fromarray(values) for values in (first, second)]


def shared(monkeypatch: pytest.MonkeyPatch, streams: list[int]) -> Tensor:
    """The first noise; both sides draw it, and their encoders draw what ours does, from these streams in this order."""
    start = noise(len(PROMPTS), 4, SIDE, SIDE)
    draws, left = GeneratorDraws(torch.tensor(SEEDS)), list(streams)
    module = diffusers.pipelines.stable_diffusion
    for name in ("pipeline_stable_diffusion_img2img", "pipeline_stable_diffusion_inpaint"):
        monkeypatch.setattr(getattr(module, name), "randn_tensor", lambda shape, **_: start.clone().reshape(shape))
    encoders = diffusers.models.autoencoders.vae
    monkeypatch.setattr(encoders, "randn_tensor", lambda shape, **_: draws.normal(start, left.pop(0)).reshape(shape))
    return start


def compared(kind: Kind, both: Both, sampler: str, what: str, monkeypatch, words: str, streams, **settings) -> None:
    """Whole images of both sides, in 8 bits, within one."""
    (model, pipeline), (guidance, negative) = both, WORDS[words]
    start = shared(monkeypatch, streams)
    pipeline.scheduler = getattr(diffusers, SCHEDULERS[sampler]).from_config(pipeline.scheduler.config)
    mask = {"mask_image": settings["mask"]} if "mask" in settings else {}
    reference = pipeline(
        PROMPTS,
        image=settings["image"],
        strength=settings["strength"],
        **mask,
        negative_prompt=None if negative is None else [negative] * len(PROMPTS),
        guidance_scale=guidance,
        num_inference_steps=STEPS,
        output_type="np",
    ).images
    words_of_ours: dict[str, Any] = {"guidance": guidance, "negative": negative, "sampler": sampler, "steps": STEPS}
    result = model.generate(PROMPTS, seeds=SEEDS, noise=start, **words_of_ours, **settings)
    ours = np.stack([np.asarray(image) for image in result.images]) / 255
    assert reference.std() > 0.05, "an image without contrast proves nothing"
    assert abs(reference[0] - reference[1]).max() > 0.05, "nor do images that are all the same"
    error = float(abs(ours - np.round(reference * 255) / 255).max())
    within(FAMILY[kind], "diffusers folder", f"{what}, {sampler}, 8 bits", error, 1.001 / 255)


OVER = ("sd1-dpmpp-2m-0.75-guided", "sd2-euler-1.0-negative")
ANEW = ("sd1-euler-0.4-negative", "sd2-unipc-0.75-plain", "inpainting-ddim-1.0-guided")
"""The fast ones of the two tests below: each kind, sampler, strength and words is in one of them."""


def cases(kinds: Sequence[Kind], fast: Sequence[str]) -> list[Any]:
    """Every kind, sampler, strength and words."""
    found = []
    for kind, sampler, strength, words in itertools.product(kinds, SCHEDULERS, STRENGTHS, WORDS):
        name = f"{kind}-{sampler}-{strength}-{words}"
        marks = () if name in fast else (pytest.mark.slow,)
        found.append(pytest.param(kind, sampler, strength, words, marks=marks, id=name))
    return found


@pytest.mark.parametrize(("kind", "sampler", "strength", "words"), cases(("sd1", "sd2"), OVER))
def test_an_image_painted_over_is_theirs(painters, monkeypatch, kind: Kind, sampler, strength, words) -> None:
    settings = {"image": images(), "strength": strength}
    compared(kind, painters(kind), sampler, "image from an image", monkeypatch, words, [POSTERIOR], **settings)


@pytest.mark.parametrize(("kind", "sampler", "strength", "words"), cases(sd_models.KINDS, ANEW))
def test_a_part_painted_anew_is_theirs(repainters, monkeypatch, kind: Kind, sampler, strength, words) -> None:
    """1.x and 2.x are shown what is known at each step; their pipeline encodes the masked image and leaves it."""
    streams = [CONCAT] if kind == "inpainting" and strength == 1 else [POSTERIOR, CONCAT]
    settings = {"image": images(), "mask": masks(), "strength": strength}
    compared(kind, repainters(kind), sampler, "part painted anew", monkeypatch, words, streams, **settings)


@pytest.mark.slow
def test_a_model_that_repaints_paints_the_same_through_every_door(folder, tmp_path: Path) -> None:
    """From diffusers' folder, ours, a single file of ours, one of CompVis's, and a folder that diffusers gets back."""
    start = folder("inpainting")
    convert(start, tmp_path / "ours")
    convert(start, tmp_path / "one.safetensors")
    convert(tmp_path / "one.safetensors", tmp_path / "back", to="diffusers", options=Options(tokenizer=start))
    sd_models.single(tmp_path / "compvis.safetensors", "inpainting")
    settings: dict[str, Any] = {"image": images(), "mask": masks(), "seeds": SEEDS, "steps": 2, "size": (SIZE, SIZE)}
    first = diptych.load(start, "cpu").generate(PROMPTS, **settings)
    for name in ("ours", "one.safetensors", "back", "compvis.safetensors"):
        words = start if name.endswith("safetensors") else None
        model = diptych.load(tmp_path / name, "cpu", tokenizer=words)
        again = model.generate(PROMPTS, **settings)
        assert all(np.array_equal(a, b) for a, b in zip(first.images, again.images, strict=True)), name
        with pytest.raises(UserError, match="inpaints: give it an image and a mask"):
            model.generate(PROMPTS)
