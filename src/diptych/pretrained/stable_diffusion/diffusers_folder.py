"""Stable Diffusion 1.x and 2.x, inpainting among them, as folders of diffusers."""

from __future__ import annotations

import re
from typing import Any

from diptych.core.errors import UserError
from diptych.models.latent_diffusion import LatentConfig, LatentDiffusion
from diptych.pretrained.key_map import pieces
from diptych.pretrained.source import Family, Source
from diptych.pretrained.stable_diffusion.components import Parts, first_stage, system
from diptych.pretrained.stable_diffusion.config_json import autoencoder_config, scaling_factor, unet_config
from diptych.pretrained.stable_diffusion.scheduler_config import sampling_fields
from diptych.pretrained.stable_diffusion.state_dict_keys import diffusers_autoencoder, diffusers_unet
from diptych.pretrained.stable_diffusion.text_encoder import shape_of_json, text_config, text_of_folder

CLASSES = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
}
"""What each part of the pipeline must be."""
OLDER = "encoder.mid_block.attentions.0.query.weight"


def fits(source: Source) -> bool:
    return source.index is not None and str(source.index.get("_class_name")).startswith("StableDiffusion")


def read(source: Source) -> LatentDiffusion:
    """The model in a folder. A `UserError` names the file, field or key at fault."""
    return system(parts(source), source.options.dtype)


def parts(source: Source) -> Parts:
    """What the folder holds, none of its tensors read yet."""
    index = source.index or {}
    where = {name: f"{source.path / name / 'config.json'}" for name in CLASSES}
    for name, kind in CLASSES.items():
        entry = index.get(name)
        if not isinstance(entry, list) or entry[-1:] != [kind]:
            raise UserError(f"{source.path / 'model_index.json'}: {name} must be a {kind}, not {entry!r}")
    unet = unet_config(source.config("unet"), where["unet"])
    if extra := [name for name in index if name not in KNOWN and not name.startswith("_") and index[name] != ABSENT]:
        raise UserError(f"{source.path / 'model_index.json'}: {extra[0]} is no part of a Stable Diffusion 1.x or 2.x")
    vae = source.config("vae")
    autoencoder = autoencoder_config(vae, where["vae"])
    shape = shape_of_json(source.path / "text_encoder" / "config.json")
    file = "scheduler_config.json"
    scheduler = source.scheduler()
    config = LatentConfig(
        autoencoder=autoencoder,
        unet=unet,
        text=text_config(shape),
        size=latent_size(source.config("unet"), where["unet"]) * autoencoder.factor,
        **sampling_fields(scheduler, str(source.path / "scheduler" / file)),
    )
    stored = source.part("vae")
    return Parts(
        config=config,
        scale=scaling_factor(vae, where["vae"]),
        unet=pieces(diffusers_unet(unet), source.part("unet")),
        autoencoder=pieces(diffusers_autoencoder(autoencoder, OLDER in stored), stored),
        text=text_of_folder(source.part("text_encoder", "model"), shape),
        shape=shape,
        tokenizer=source.options.tokenizer or source.path / "tokenizer",
        scheduler=scheduler,
    )


ABSENT = [None, None]
KNOWN = (
    *CLASSES,
    *("tokenizer", "scheduler", "safety_checker", "feature_extractor", "image_encoder", "requires_safety_checker"),
)
"""What pipelines of 1.x and 2.x list; the last four are not needed for text-to-image."""


def latent_size(values: dict[str, Any], where: str) -> int:
    """The side of the latents that a U-Net was trained on."""
    size = values.get("sample_size") or 64
    if isinstance(size, list) and len(set(size)) == 1:
        size = size[0]
    if isinstance(size, bool) or not isinstance(size, int):
        raise UserError(f"{where}: sample_size must be a whole number, not {size!r}")
    first = re.match(r"0\.[0-8]\.", str(values.get("_diffusers_version")))
    return max(size, 64) if first else size  # the first releases of diffusers wrote 32, and its pipelines correct it


FAMILY = Family(
    "Stable Diffusion, folder of diffusers",
    fits,
    read,
    lambda source: first_stage(parts(source), source.options.dtype),
    ("tokenizer",),
)
