"""Tiny latent models with random weights, and a toy world of two captions, for the tests of the latent panel."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from diptych.encoders.bert import MiniLM
from diptych.encoders.configs import JointTransformerConfig, MiniLMConfig, TextConfig
from diptych.encoders.joint import JointTransformer, train_tokenizer
from diptych.models.latent_diffusion import LatentConfig, LatentDiffusion, Result
from diptych.networks.autoencoder import Autoencoder, AutoencoderConfig
from diptych.networks.transformer import TextTransformerConfig
from diptych.networks.unet import UNetConfig
from tests.networks.reference import randomised

SIZE = 16
AUTOENCODER = AutoencoderConfig(latent_channels=4, channels=8, multipliers=(1, 2), blocks=1, norm_groups=4)
JOINT = JointTransformerConfig(
    network=TextTransformerConfig(vocabulary=64, max_tokens=24, width=16, layers=1, heads=2, head_width=8)
)
CAPTIONS = ("a red picture", "a blue picture")


def config(text: TextConfig = JOINT, **changes: Any) -> LatentConfig:
    unet = UNetConfig(
        channels=16,
        multipliers=(1, 2),
        blocks=1,
        attention_levels=(1,),
        heads=2,
        context_width=text.width,
        pooled_width=text.width,
        norm_groups=8,
    )
    values = {"autoencoder": AUTOENCODER, "unet": unet, "text": text, "size": SIZE, "steps": 3, "guidance": 3.0}
    return LatentConfig(**{**values, **changes})


@lru_cache
def minilm() -> MiniLM:
    return MiniLM()


def joint(config: JointTransformerConfig = JOINT) -> JointTransformer:
    return randomised(JointTransformer(config, train_tokenizer(CAPTIONS, config.network.vocabulary)), seed=3)


def autoencoder(seed: int = 1) -> Autoencoder:
    return randomised(Autoencoder(AUTOENCODER), seed)


def system(text: str = "joint", **changes: Any) -> LatentDiffusion:
    """A model with random weights in every layer, whose images are neither grey nor clipped all over."""
    encoder = minilm() if text == "minilm" else joint()
    model = LatentDiffusion(config(MiniLMConfig() if text == "minilm" else JOINT, **changes), autoencoder(), encoder)
    randomised(model.unet, seed=2)
    model.scale.fill_(0.5)
    return model.eval()


def arrays(result: Result) -> np.ndarray:
    """The images of a result as (B, H, W, 3), whole numbers."""
    return np.stack([np.asarray(image) for image in result.images]).astype(int)


def same_image(a: Image.Image, b: Image.Image) -> bool:
    """Whether no value of two images differs by more than 1 of 255."""
    return a.size == b.size and int(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max()) <= 1


def write_images(folder: Path, count: int = 12, held_out: int = 3) -> Path:
    """Red and blue images of `SIZE` pixels, each a little different, captions and split beside them."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for i in range(count):
        colour = np.array([(200, 30, 30), (30, 30, 200)][i % 2])
        pixels = colour + generator.integers(-20, 20, (SIZE, SIZE, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i:02d}.png")
        captions = [CAPTIONS[i % 2], CAPTIONS[i % 2].removeprefix("a ")]
        split = "held-out" if i >= count - held_out else "train"
        (folder / f"{i:02d}.json").write_text(json.dumps({"captions": captions, "split": split, "kind": "single"}))
    return folder


def toy_batch(seeds: list[int]) -> dict[str, Any]:
    """A training batch of the toy world: the seed decides the caption, and the image is its colour with noise."""
    colours = torch.tensor([[0.8, -0.8, -0.8], [-0.8, -0.8, 0.8]])
    rows = [
        colours[seed % 2][:, None, None]
        + 0.1 * torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
        for seed in seeds
    ]
    return {
        "picture": torch.stack(rows).clamp(-1, 1),
        "caption": [CAPTIONS[seed % 2] for seed in seeds],
        "seed": torch.tensor(seeds),
        "key": [str(seed) for seed in seeds],
    }
