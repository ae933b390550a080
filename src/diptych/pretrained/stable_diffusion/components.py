"""A Stable Diffusion as every layout has it: our config, and tensors by our names, each read when it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diptych.core.errors import UserError
from diptych.encoders.clip import ClipText
from diptych.encoders.configs import ClipTextConfig
from diptych.models.latent_diffusion import LatentConfig, LatentDiffusion
from diptych.networks.autoencoder import Autoencoder
from diptych.networks.unet import UNet, UNetConfig
from diptych.weights.lazy import LazyCheckpoint, fill, on_meta, reading_shapes

if TYPE_CHECKING:
    from transformers import CLIPTextConfig


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a folder or file holds."""

    config: LatentConfig
    scale: float
    """By what latents are multiplied."""
    unet: LazyCheckpoint
    autoencoder: LazyCheckpoint
    text: LazyCheckpoint
    """By the names of transformers, without "text_model."."""
    shape: CLIPTextConfig
    """Of the text encoder."""
    tokenizer: Path | None
    """The folder with its files; none for a single file, until one is found."""
    scheduler: dict[str, Any] | None = None
    """The scheduler_config.json that `config` was read from, if there was one."""
    lost: tuple[str, ...] = ()
    """What else is there and is not read, a line each."""


def first_stage(parts: Parts, dtype: torch.dtype | None = torch.float32) -> Autoencoder:
    """The autoencoder alone, on the CPU, of `dtype` (none: as stored). A `UserError` names the key at fault."""
    with on_meta():
        autoencoder = Autoencoder(parts.config.autoencoder)
    fill(autoencoder, parts.autoencoder, parts.autoencoder.source, dtype)
    return autoencoder.eval()


def system(parts: Parts, dtype: torch.dtype | None = torch.float32) -> LatentDiffusion:
    """The model on the CPU, its networks of `dtype` (none: as stored). A `UserError` names the key at fault."""
    config = parts.config
    assert isinstance(config.text, ClipTextConfig) and isinstance(config.unet, UNetConfig)
    if parts.tokenizer is None and not reading_shapes():
        raise UserError(f"{parts.unet.source} has no tokenizer: give its folder by --tokenizer FOLDER (tokenizer=)")
    with on_meta():  # shapes alone, until the files are known to have them
        unet = UNet(config.unet)
    text = ClipText.of(config.text, parts.shape, parts.text, parts.tokenizer, parts.text.source, dtype)
    autoencoder = first_stage(parts, dtype)
    fill(unet, parts.unet, parts.unet.source, dtype)
    model = LatentDiffusion(config, autoencoder, text, unet)
    model.scale.fill_(parts.scale)
    return model.eval()
