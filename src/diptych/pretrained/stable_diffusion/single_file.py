"""Stable Diffusion 1.x and 2.x, inpainting among them, as single files in CompVis's layout.

Such a file has tensors and no config. Sizes follow from shapes, everything else is as in the releases;
for 2.x that leaves open what the U-Net predicts, see `prediction_of`. Files that `diptych convert` wrote say it all in
their header.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from diptych.core.errors import UserError
from diptych.encoders.frozen import text_shape
from diptych.models.latent_diffusion import LatentConfig, LatentDiffusion
from diptych.networks.unet import UNetConfig
from diptych.pretrained.file_metadata import FileMetadata, metadata, read_file_metadata
from diptych.pretrained.key_map import Layout, pieces
from diptych.pretrained.source import Family, Source
from diptych.pretrained.stable_diffusion.components import Parts, first_stage, system
from diptych.pretrained.stable_diffusion.config_json import SCALE
from diptych.pretrained.stable_diffusion.infer_shapes import Shapes, autoencoder_of_shapes, unet_of_shapes
from diptych.pretrained.stable_diffusion.scheduler_config import sampling_config
from diptych.pretrained.stable_diffusion.state_dict_keys import (
    FIRST_STAGE,
    UNET,
    averaged,
    averaged_key,
    compvis_autoencoder,
    compvis_unet,
    trained_key,
)
from diptych.pretrained.stable_diffusion.text_encoder import (
    CLIP,
    OPEN_CLIP,
    is_open_clip,
    shape_of_file,
    text_config,
    text_of_file,
    tokenizer_of_file,
)
from diptych.pretrained.unsupported import concatenated
from diptych.weights.lazy import LazyCheckpoint, reading_shapes

if TYPE_CHECKING:
    from transformers import CLIPTextConfig

TEXT = "cond_stage_model."
AVERAGED = "model_ema."
HEADER = "diptych"
"""The entry of the header under which `diptych convert` writes what the layout has no place for, as JSON."""
UNREAD = re.compile(
    r"model_ema\..*|first_stage_model\.(loss|model_ema)\..*|cond_stage_model\.logit_scale"
    r"|(sqrt_|log_)?(one_minus_)?(recip(m1)?_)?alphas_cumprod(_prev)?|betas|posterior_\w+|lvlb_weights|logvar"
    r"|sqrt_recipm1_alphas_cumprod|log_one_minus_alphas_cumprod|denoiser\.\w+|global_step|scale_factor|v_pred|ztsnr"
    r"|safety_checker\..*|embedding_manager\..*"
)
"""Keys that sampling does not need: buffers that follow from the schedule, the averages, what only training needs."""
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "set_alpha_to_one": False,
}
"""Stable Diffusion's; no single file says it."""
SCALE_KEY = "scale_factor"
LAST_NORM = r"up\.\d+\.transformer\.blocks\.0\.norm1\.bias"
SPREAD = 0.09
"""Standard deviation of one bias above which a U-Net of 2.x predicts v."""


def fits(source: Source) -> bool:
    """A U-Net under CompVis's name, beside a text encoder that is a CLIP; others are latent-diffusion's own."""
    if source.folder or not any(key.startswith((UNET, AVERAGED + "diffusion_model")) for key in source.checkpoint):
        return False
    kinds = (CLIP + "text_model.", CLIP + "embeddings.position_embedding", OPEN_CLIP)
    return any(key.startswith(kinds) for key in source.checkpoint)


def read(source: Source) -> LatentDiffusion:
    """The model in a file. A `UserError` names the key at fault, or says that a tokenizer is needed."""
    counting = reading_shapes() and source.options.tokenizer is None  # who counts parameters reads no words
    return system(parts(source, tokenizer=not counting), source.options.dtype)


def parts(source: Source, tokenizer: bool = True) -> Parts:
    """What the file holds, none of its tensors read yet. `tokenizer` is false for who needs none."""
    checkpoint, name = source.checkpoint, str(source.path)
    if unknown := [
        key for key in checkpoint if not key.startswith((UNET, FIRST_STAGE, TEXT)) and not UNREAD.fullmatch(key)
    ]:
        raise UserError(f"{name}: unexpected key {min(unknown)!r} ({len(unknown)} in all)")
    own_header = header(source)
    stored = checkpoint.only(key for key in checkpoint if key.startswith(TEXT))
    newer = is_open_clip(stored)
    if own_header is None:
        autoencoder = autoencoder_of_shapes(checkpoint.shapes, name)
        statements = read_file_metadata(source)
        unet = apply_stated(unet_of_shapes(unet_shapes(source), name, autoencoder.latent_channels), statements, name)
        shape = shape_of_file(stored)
        prediction = prediction_of(source, unet, statements)
        size = 96 if (newer and prediction == "v") else 64
        config = LatentConfig(
            autoencoder=autoencoder,
            unet=unet,
            text=text_config(shape),
            size=size * autoencoder.factor,
            **sampling_of(statements, prediction, name),
        )
        scale, scheduler = scale_of(checkpoint, statements), None
    else:
        config, scale, shape, scheduler = own_header
        unet = config.unet
        assert isinstance(unet, UNetConfig)
    return Parts(
        config=config,
        scale=scale,
        unet=unet_of(source, compvis_unet(unet)),
        autoencoder=pieces(
            compvis_autoencoder(config.autoencoder),
            checkpoint.only(key for key in checkpoint if key.startswith(FIRST_STAGE) and not UNREAD.fullmatch(key)),
        ),
        text=text_of_file(stored, shape),
        shape=shape,
        tokenizer=tokenizer_of_file(source.options, 2 if newer else 1) if tokenizer else None,
        scheduler=scheduler,
        lost=tuple(dropped(source, shape)),
    )


def unet_of(source: Source, layout: Layout) -> LazyCheckpoint:
    """The U-Net's tensors by our names: those that were trained, or their averages if the user asks for them."""
    checkpoint, ema = source.checkpoint, source.options.ema
    if ema and not any(key.startswith(AVERAGED) for key in checkpoint):
        raise UserError(f"{source.path} has no EMA weights: none of its keys begins with {AVERAGED!r}")
    layout = averaged(layout) if ema else layout
    keys = {piece.key for piece in layout.values()}
    return pieces(
        layout, checkpoint.only(key for key in checkpoint if key in keys or (key.startswith(UNET) and not ema))
    )


def unet_shapes(source: Source) -> Shapes:
    """Shapes by CompVis' names of the U-Net that is read, which the averages have without dots."""
    checkpoint = source.checkpoint
    if any(key.startswith(UNET) for key in checkpoint):
        return checkpoint.shapes
    return {
        trained_key(key): shape
        for key, shape in checkpoint.shapes.items()
        if key.startswith(AVERAGED + "diffusion_model")
    }


def apply_stated(unet: UNetConfig, statements: FileMetadata, name: str) -> UNetConfig:
    """The U-Net of these shapes, with what they do not show as it is stated. A `UserError` where the two differ."""
    concatenated(unet.concat_channels, name)
    shapes = {
        "in_channels": unet.in_channels + unet.concat_channels,
        "out_channels": unet.out_channels,
        "model_channels": unet.channels,
        "context_dim": unet.context_width,
    }
    for field, value in shapes.items():
        if field in statements.unet and statements.unet[field].value != value:
            raise UserError(
                f"{statements.unet[field].where} states {field} {statements.unet[field].value}, and {name} has {value}"
            )
    heads, width = (statements.unet.get(field) for field in ("num_heads", "num_head_channels"))
    if heads is None and width is None:
        return unet
    stating = {"heads": None if width else heads and heads.value, "head_width": width and width.value}
    return dataclasses.replace(unet, **stating)


def sampling_of(statements: FileMetadata, prediction: str, name: str) -> dict[str, Any]:
    """The fields of a `LatentConfig` that say how images are sampled: Stable Diffusion's, or what is stated."""
    fields: dict[str, Any] = {field: statement.value for field, statement in statements.schedule.items()}
    fields["prediction_type"] = {"eps": "epsilon", "v": "v_prediction"}[prediction]
    if statements.terminal is None:
        return sampling_config({**SCHEDULER, **fields}, name)
    try:
        # Sampling is to start at the last step, the one without an image (Lin et al. 2024, section 3.3).
        rescaled = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return sampling_config({**SCHEDULER, **fields, **rescaled}, name)
    except UserError as error:
        raise UserError(f"{statements.terminal} says that betas are rescaled to zero terminal SNR: {error}") from None


def prediction_of(source: Source, unet: UNetConfig, statements: FileMetadata) -> Literal["eps", "v"]:
    """What the U-Net predicts, where the user does not say.

    All of 1.x and the inpainting models predict the noise. Of 2.x the 512-px base does too, and the 768-px model
    predicts v in the same shapes: some files say so in their header, by a key v_pred, or in a config beside them.
    Without, it is guessed as ComfyUI guesses: the biases of one norm near the output are spread wider where it is v.
    """
    if source.options.prediction is not None:
        return source.options.prediction
    if (read_file_metadata := statements.prediction()) is not None:
        return read_file_metadata
    if not unet.linear_projection or unet.concat_channels:
        return "eps"
    biases = [p.key for name, p in compvis_unet(unet).items() if re.fullmatch(LAST_NORM, name)]
    key = max(biases, key=lambda key: int(key.split(".")[3]))
    bias = source.checkpoint[key if key in source.checkpoint else averaged_key(key)]
    return "v" if not bias.is_meta and bias.float().std(correction=0) > SPREAD else "eps"


def header(source: Source) -> tuple[LatentConfig, float, CLIPTextConfig, dict[str, Any] | None] | None:
    """What `diptych convert` said of the file: config, scale, text model and scheduler. None where it said nothing."""
    from transformers import CLIPTextConfig

    text = metadata(source).get(HEADER)  # of our own writing, and of all else the one that is meant
    if text is None:
        return None
    try:
        values = json.loads(text)
        config, scheduler = LatentConfig.from_dict(values["config"]), values["scheduler"]
        shape, scale = text_shape(CLIPTextConfig, dict(values["text"]), "text"), float(values["scale"])
        if not (isinstance(config.unet, UNetConfig) and 0 < scale < 1e30 and isinstance(scheduler, (dict, type(None)))):
            raise ValueError("scale, unet or scheduler")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, UserError) as error:
        raise UserError(f"{source.path}: the entry {HEADER!r} of its header is damaged ({error})") from None
    if source.options.prediction not in (None, config.prediction):
        config = dataclasses.replace(config, prediction=source.options.prediction)
        scheduler = None
    return config, scale, shape, scheduler


def scale_of(checkpoint: LazyCheckpoint, statements: FileMetadata | None = None) -> float:
    """Of the latents: what a buffer says, which files have whose scale was measured, or what is stated, or as usual."""
    if SCALE_KEY not in checkpoint:
        return float(statements.scale.value) if statements is not None and statements.scale is not None else SCALE
    scale = checkpoint[SCALE_KEY]
    if scale.numel() != 1 or not (scale.is_meta or 0 < float(scale) < 1e30):
        raise UserError(f"{checkpoint.source}: {SCALE_KEY} must be one positive number")
    return SCALE if scale.is_meta else float(scale)


def dropped(source: Source, shape: CLIPTextConfig) -> Iterator[str]:
    """What is left out, for who makes another file of it."""
    checkpoint = source.checkpoint
    averages = any(key.startswith(AVERAGED) for key in checkpoint) and any(key.startswith(UNET) for key in checkpoint)
    if averages and source.options.ema:
        yield f"of {UNET} the weights that were trained: the averages took their place"
    elif averages:
        yield f"{AVERAGED}, the averages: --ema takes them in the place of what was trained"
    beyond = f"{OPEN_CLIP}transformer.resblocks.{shape.num_hidden_layers}."
    if any(key.startswith(beyond) for key in checkpoint):
        yield f"{beyond[:-1]}, text_projection and logit_scale, which Stable Diffusion 2.x does not read"


FAMILY = Family(
    "Stable Diffusion, single file",
    fits,
    read,
    lambda source: first_stage(parts(source, tokenizer=False), source.options.dtype),
)
