"""Models that diptych does not read, recognised by keys, shapes and class names, and advice for each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diptych.core.config import read_json
from diptych.core.errors import UserError
from diptych.pretrained.source import Source
from diptych.pretrained.stable_diffusion.state_dict_keys import FIRST_STAGE, UNET

OTHER = "diptych reads Stable Diffusion 1.x and 2.x, latent-diffusion, DeepFloyd IF and guided-diffusion"
WITH_LORA = "give it by --lora FILE (lora=), beside the --model that it was made for"
EMBEDDING = "diptych has no textual inversion: give a model as --model"
PLUGIN = "a part that is added to a model, which diptych does not read: give the model itself"
WHOLE = "give the whole model: a folder of diffusers, or a single file that holds all three networks"
TINY = "of tiny decoders diptych reads its own alone, which `--preview-decoder RUN` takes"
FOLDER = "give the folder that it lies in, with its config.json"
QUANTISED = "give the model in float32, float16 or bfloat16"

BY_KEYS: tuple[tuple[str, str, str], ...] = (
    (r"\.(lora|hada|lokr|oft)_|\.lora\.(down|up)|_lora\.(down|up)|\.lora_[AB]\b", "a LoRA", WITH_LORA),
    (r"^(string_to_param\.|emb_params$|clip_[lg]$)", "an embedding of textual inversion", EMBEDDING),
    (
        r"\.(absmax|quant_map|quant_state\.\S*|weight_scale|scale_weight|comfy_quant)$|^scaled_fp8$",
        "a model with quantised weights",
        QUANTISED,
    ),
    (r"\bjoint_blocks\.\d", "a Stable Diffusion 3", OTHER),
    (r"\bdistilled_guidance_layer\.", "a Chroma", OTHER),
    (r"\bindividual_token_refiner\.", "a HunyuanVideo", OTHER),
    (r"\bdouble_blocks\.\d+\.(img|txt)_|\bsingle_transformer_blocks\.\d", "a Flux", OTHER),
    (r"\b(head\.modulation|blocks\.\d+\.cross_attn\.norm_k\.)", "a Wan video model", OTHER),
    (r"\b(double_layers\.\d|cond_seq_linear\.)", "an AuraFlow", OTHER),
    (r"\bpatchify_proj\.", "an LTX video model", OTHER),
    (r"\b(cap_embedder|noise_refiner)\.", "a Lumina or Z-Image", OTHER),
    (r"\b(clip_txt_(pooled_)?mapper|effnet_mapper|\d+\.channelwise)\.", "a Würstchen (Stable Cascade)", OTHER),
    (r"\b(adaln_single|csize_embedder|y_embedder\.y_embedding)\b|\bt_block\.1\.", "a PixArt", OTHER),
    (r"\b(add_embedding\.image_(norm|proj)|movq|prior_transformer)\b", "a Kandinsky", OTHER),
    (r"^conditioner\.embedders\.(\d\.)?(open_clip|encoder)|\.time_stack\.", "a Stable Video Diffusion", OTHER),
    (r"^conditioner\.embedders\.", "a Stable Diffusion XL", OTHER),
    (r"^(control_model\.|input_hint_block\.|controlnet_|zero_convs\.)|^lllite_", "a ControlNet", PLUGIN),
    (r"^(adapter\.)?body\.\d+\.(block1|resnets)\b", "a T2I-Adapter", PLUGIN),
    (r"^(ip_adapter|image_proj)\.", "an IP-Adapter", PLUGIN),
    (r"\b(motion_modules|temporal_transformer)\.", "an AnimateDiff motion module", PLUGIN),
    (r"\b(position_net|fuser)\.", "a GLIGEN", OTHER),
    (r"^(noise_augmentor|embedder)\.", "a Stable Diffusion 2.x unCLIP", OTHER),
    (r"\btime_embed(ding)?\.cond_proj\.", "a latent consistency model", OTHER),
    (
        r"^(RRDB_trunk\.|model\.1\.sub\.|body\.\d+\.(rdb\d|weight)\b|layers\.\d+\.residual_group)",
        "an upscaler (ESRGAN or its kin)",
        OTHER,
    ),
    (r"^(taesd_)?(decoder|encoder)\.(layers\.)?\d+\.|^\d+\.conv\.\d\.weight", "a tiny autoencoder (TAESD)", TINY),
    (r"^(concept_embeds|special_care_embeds)", "a safety checker", WHOLE),
    (r"^(down_blocks|mid_block)\.\S*(resnets|attentions)\.", "a U-Net alone in diffusers' names", WHOLE),
    (r"^encoder\.down_blocks\.", "an autoencoder alone in diffusers' names", FOLDER),
    (
        r"^(text_model|text_encoders?|transformer\.text_model)\.|^encoder\.block\.\d+\.layer\.|^(transformer\.)?resblocks\.",
        "a text encoder alone",
        WHOLE,
    ),
    (r"^(vision_model|visual)\.", "a CLIP", "with its folder, --clip FOLDER guides by it"),
)
"""By patterns of their keys, files of other kinds; the first that fits."""
CONCATENATED = {
    1: ("a Stable Diffusion 2.x depth model", "one channel of depth"),
    3: ("Stable Diffusion's x4 upscaler", "the three channels of a small image"),
    4: ("an InstructPix2Pix", "the four channels of an image's latent"),
}
"""Channels of a U-Net's input beyond the latent, and what they are in models that are not read."""
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "model.", "module.", "net.")

BY_CLASS: tuple[tuple[str, str, str], ...] = (
    (r"XL|Kolors", "a Stable Diffusion XL", OTHER),
    (r"StableDiffusion3|SD3", "a Stable Diffusion 3", OTHER),
    (r"Upscale", "an upscaler of Stable Diffusion", OTHER),
    (r"Depth2Img", "a depth model of Stable Diffusion 2.x", OTHER),
    (r"Pix2Pix", "an InstructPix2Pix", OTHER),
    (r"ControlNet", "a ControlNet, or a pipeline with one", PLUGIN),
    (r"Adapter", "a T2I-Adapter, or a pipeline with one", PLUGIN),
    (r"GLIGEN", "a GLIGEN", OTHER),
    (r"LDM3D|ImageVariation|UnCLIP|VideoDiffusion|LatentConsistency", "a relative of Stable Diffusion", OTHER),
    (r"AnimateDiff|Motion", "an AnimateDiff", PLUGIN),
    (r"Chroma", "a Chroma", OTHER),
    (r"Flux", "a Flux", OTHER),
    (r"PixArt", "a PixArt", OTHER),
    (r"HunyuanVideo|HunyuanDiT|Hunyuan", "a Hunyuan", OTHER),
    (r"Wan", "a Wan video model", OTHER),
    (r"Kandinsky|PriorTransformer", "a Kandinsky", OTHER),
    (r"Wuerstchen|StableCascade", "a Würstchen (Stable Cascade)", OTHER),
    (r"AutoencoderTiny", "a tiny autoencoder (TAESD)", TINY),
    (r"UNet2DConditionModel", "a U-Net alone", WHOLE),
    (r"^(?!AutoencoderKL$)\w*Autoencoder|VQModel", "an autoencoder of another kind than AutoencoderKL", OTHER),
    (r"Transformer", "a diffusion transformer alone", OTHER),
    (r"Scheduler", "a scheduler alone", WHOLE),
)
"""By patterns of diffusers' class names."""
WEIGHTS = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
TEXT_WIDTHS = {768, 1024, 1280, 4096}


def foreign_file(shapes: Mapping[str, tuple[int, ...]], ema: bool = False) -> str | None:
    """What a file is, and what to do, in one phrase; none for one that a family may read.

    One that holds the averaged weights of a U-Net and not those that were trained is read where the user asks for them:
    `ema`.
    """
    keys = "\n".join(sorted(shapes))
    for prefix in ("", *PREFIXES):
        stripped = keys if not prefix else re.sub(rf"(?m)^{re.escape(prefix)}", "", keys)
        if prefix and stripped == keys:
            continue
        for pattern, what, remedy in BY_KEYS:
            if re.search(pattern, stripped, re.MULTILINE) and not (what.startswith("a U-Net") and UNET in keys):
                return f"{what}: {remedy}"
    return incomplete(shapes, ema) or embedding(shapes)


def incomplete(shapes: Mapping[str, tuple[int, ...]], ema: bool) -> str | None:
    """Which networks of a latent model are missing beside the one or two that are there."""
    first = "input_blocks.0.0.weight"
    unprefixed = first in shapes and any(".transformer_blocks." in key for key in shapes)
    unet = unprefixed or any(key.startswith(UNET) for key in shapes)
    autoencoder = any(key.startswith(FIRST_STAGE) for key in shapes)
    conditioned = any(key.startswith("cond_stage_model.") for key in shapes)
    averages = any(key.startswith("model_ema.diffusion_model") for key in shapes)
    if unet and not autoencoder:
        return (
            f"a model without its autoencoder: no key begins with {FIRST_STAGE!r}; {WHOLE}"
            if conditioned
            else f"a U-Net alone: {WHOLE}"
        )
    if averages and not unet and not ema:
        how = "open it with --ema (ema=True)" if autoencoder else WHOLE
        return f"a file with the averaged (EMA) weights of a U-Net, and not those that were trained: {how}"
    return None


def embedding(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """A few vectors as wide as tokens, under the name of what they stand for."""
    if 0 < len(shapes) <= 3 and all(0 < len(s) <= 2 and s[-1] in TEXT_WIDTHS for s in shapes.values()):
        return f"an embedding of textual inversion: {EMBEDDING}"
    return None


def foreign_class(name: Any) -> str | None:
    """What a class of diffusers is, and what to do; none for one that a family may read."""
    for pattern, what, remedy in BY_CLASS:
        if isinstance(name, str) and re.search(pattern, name):
            return f"{what} ({name[:60]}): {remedy}"
    return None


def foreign_folder(source: Source) -> str | None:
    """What a folder is, by the class in its model_index.json or config.json."""
    if (source.path / "adapter_config.json").is_file():
        return f"an adapter of PEFT: {WITH_LORA}"
    if source.index is not None:
        return foreign_class(source.index.get("_class_name"))
    try:
        values = read_json(source.path / "config.json")
    except UserError:
        return None
    return foreign_class(values.get("_class_name")) if isinstance(values, dict) else None


def concatenated(channels: int, source: str) -> None:
    """Raise a `UserError` for a U-Net that reads what diptych does not make beside the latent."""
    if channels in CONCATENATED:
        what, reads = CONCATENATED[channels]
        raise UserError(f"{source} is {what}, whose U-Net reads {reads} besides: {OTHER}")


def other_folder(folder: Path) -> str | None:
    """What a folder without a config.json holds, and what to do; none where it holds no weights either."""
    if (folder / "adapter_config.json").is_file():
        return f"is an adapter of PEFT: {WITH_LORA}"
    names = sorted(path.name for path in folder.iterdir() if path.suffix in WEIGHTS and path.is_file())
    if not names:
        return None
    listed = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    files = "the file of weights" if len(names) == 1 else f"{len(names)} files of weights:"
    return f"is no model folder, but holds {files} {listed}: give the file itself, {folder / names[0]}"
