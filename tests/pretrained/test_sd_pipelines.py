"""Whole images: our latent panel beside diffusers' pipeline, from one folder and the same first noise."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch

import diptych
from tests.networks.reference import noise
from tests.parity import within
from tests.pretrained import sd_models

diffusers = pytest.importorskip("diffusers")

STEPS = 5
SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpmpp-2m": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
WORDS = {"plain": (1.0, None), "guided": (7.5, None), "negative": (7.5, "a blue dog")}
PAIRS = [*(("ddim", words) for words in WORDS), *((sampler, "guided") for sampler in SCHEDULERS if sampler != "ddim")]
"""Each sampler and each kind of words: what the one does is the same for every other."""
FOLDERS = [("sd1", "leading"), ("sd1", "unsaid"), ("sd2", "leading"), ("sd2", "unsaid")]
"""Each kind, and what its scheduler says of the times: as diffusers saves it now, or nothing, as in the releases
of 2022."""


FAST = ("sd1-unsaid-ddim-guided", "sd1-unsaid-unipc-guided", "sd2-leading-ddim-negative", "sd2-leading-dpmpp-2m-guided")


def cases() -> list[Any]:
    """Every folder with every pair."""
    found = []
    for folder, pair in itertools.product(FOLDERS, PAIRS):
        name = "-".join((*folder, *pair))
        found.append(pytest.param(folder, *pair, id=name, marks=[] if name in FAST else [pytest.mark.slow]))
    return found


@pytest.fixture(scope="module")
def both(request, tmp_path_factory):
    """(kind, our model, their pipeline), from one folder."""
    kind, spacing = request.param
    folder = sd_models.folder(tmp_path_factory.mktemp(kind), kind)
    path = folder / "scheduler" / "scheduler_config.json"
    values = {**json.loads(path.read_text()), "timestep_spacing": spacing}
    path.write_text(json.dumps({key: value for key, value in values.items() if value != "unsaid"}))
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return kind, diptych.load(folder, "cpu"), pipeline


def theirs(pipeline, sampler: str, start: torch.Tensor, guidance: float, negative: str | None) -> np.ndarray:
    """Their images (B, H, W, 3) in [0, 1]."""
    pipeline.scheduler = getattr(diffusers, SCHEDULERS[sampler]).from_config(pipeline.scheduler.config)
    prompts = sd_models.PROMPTS
    return pipeline(
        prompts,
        negative_prompt=None if negative is None else [negative] * len(prompts),
        guidance_scale=guidance,
        num_inference_steps=STEPS,
        latents=start.clone(),
        output_type="np",
    ).images


def ours(model, **settings) -> np.ndarray:
    images = model.generate(sd_models.PROMPTS, steps=STEPS, **settings).images
    return np.stack([np.asarray(image) for image in images]) / 255


@pytest.mark.parametrize(("both", "sampler", "words"), cases(), indirect=["both"])
def test_the_images_are_theirs(both, sampler, words):
    kind, model, pipeline = both
    guidance, negative = WORDS[words]
    start = noise(2, 4, 16, 16)
    reference = theirs(pipeline, sampler, start, guidance, negative)
    images = ours(model, sampler=sampler, guidance=guidance, negative=negative, noise=start)
    assert reference.std() > 0.05, "an image without contrast proves nothing"
    assert abs(reference[0] - reference[1]).max() > 0.05, "nor do images that are all the same"
    error = float(abs(images - np.round(reference * 255) / 255).max())
    within(sd_models.FAMILY[kind], "diffusers folder", f"image, {sampler}, 8 bits", error, 1.001 / 255)
