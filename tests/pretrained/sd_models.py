"""Stable Diffusion in miniature, with random weights, in the layouts in which it is published.

The kinds are 1.x, 2.x (linear projections, v-prediction, a text model one layer short) and inpainting. The shapes are
such that all of a config can be told from a single file too: 8 heads in 1.x, heads of 64 channels in 2.x and in CLIP.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any, Literal

import torch

from diptych.pretrained.key_map import pieces, published
from diptych.pretrained.stable_diffusion.config_json import autoencoder_config, unet_config
from diptych.pretrained.stable_diffusion.state_dict_keys import (
    compvis_autoencoder,
    compvis_unet,
    diffusers_autoencoder,
    diffusers_unet,
)
from diptych.pretrained.stable_diffusion.text_encoder import CLIP, PREFIX, clip_layout, open_clip_layout
from diptych.weights.lazy import LazyCheckpoint
from diptych.weights.save import save_safetensors
from tests.encoders.tiny_encoders import WORDS, shaken
from tests.networks.reference import noise, randomised, relative_error
from tests.parity import within

Kind = Literal["sd1", "sd2", "inpainting"]
KINDS: tuple[Kind, ...] = ("sd1", "sd2", "inpainting")
FAMILY = {
    "sd1": "Stable Diffusion 1.x",
    "sd2": "Stable Diffusion 2.x",
    "inpainting": "Stable Diffusion inpainting",
}
PROMPTS = ["a red apple", "two cats left of a house"]
SIZE = 32
"""Side of the images, in pixels; that of the latents is half of it."""
FACTOR = 2
SCALE = 0.18215
START, END = "<|startoftext|>", "<|endoftext|>"


def tokenizer(pad: str = END) -> Any:
    """A CLIP tokenizer that knows a few words whole and all else by its letters; "!" is number 0."""
    from transformers import CLIPTokenizer

    letters = ["!", *string.ascii_lowercase, *string.digits, *",.'-?"]
    pieces, merges = [*letters, *(f"{letter}</w>" for letter in letters)], []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
            pieces.append(parts[0])
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys([*pieces, START, END]))}
    merges = list(dict.fromkeys(merges))
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=77)


def text_encoder(kind: Kind = "sd1", seed: int = 1, words: Any = None, **changes: Any) -> Any:
    """A CLIP text model of two layers and two heads, 1.x with the quick gelu and 2.x with the plain one."""
    from transformers import CLIPTextConfig, CLIPTextModel

    words = words or tokenizer()
    values = {
        "vocab_size": len(words),
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_act": "gelu" if kind == "sd2" else "quick_gelu",
        "projection_dim": 128,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    return shaken(CLIPTextModel, CLIPTextConfig(**{**values, **changes}), seed)


def unet(kind: Kind = "sd1", seed: int = 2, **changes: Any) -> Any:
    from diffusers import UNet2DConditionModel  # pyright: ignore[reportPrivateImportUsage]

    values: dict[str, Any] = {
        "sample_size": SIZE // FACTOR,
        "in_channels": 9 if kind == "inpainting" else 4,
        "block_out_channels": [32, 64, 64],
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": 128,
    }
    if kind == "sd2":
        values |= {
            "block_out_channels": [64, 128],
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "layers_per_block": 1,
            "attention_head_dim": [1, 2],
            "use_linear_projection": True,
        }
    return randomised(UNet2DConditionModel(**{**values, **changes}), seed)


def vae(seed: int = 3, **changes: Any) -> Any:
    from diffusers import AutoencoderKL  # pyright: ignore[reportPrivateImportUsage]

    values: dict[str, Any] = {
        "sample_size": SIZE,
        "block_out_channels": [32, 64],
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 1,
        "latent_channels": 4,
        "scaling_factor": SCALE,
    }
    return randomised(AutoencoderKL(**{**values, **changes}), seed)


def scheduler(kind: Kind = "sd1", name: str | None = None, **changes: Any) -> Any:
    """PNDM as 1.x is published, DDIM as 2.x; or another class of this name with the same settings."""
    import diffusers

    values: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    values |= {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False, "skip_prk_steps": True}
    values["prediction_type"] = "v_prediction" if kind == "sd2" else "epsilon"
    kinds = getattr(diffusers, name or ("DDIMScheduler" if kind == "sd2" else "PNDMScheduler"))
    return kinds.from_config({**values, **changes})


def pipeline(kind: Kind = "sd1", seed: int = 0, **parts: Any) -> Any:
    """A StableDiffusionPipeline, or one for inpainting; `parts` (unet, vae, scheduler, ...) take the place of ours."""
    from diffusers import (
        StableDiffusionInpaintPipeline,  # pyright: ignore[reportPrivateImportUsage]
        StableDiffusionPipeline,  # pyright: ignore[reportPrivateImportUsage]
    )

    words = tokenizer("!" if kind == "sd2" else END)
    made = {
        "unet": unet(kind, seed + 2),
        "vae": vae(seed + 3),
        "text_encoder": text_encoder(kind, seed + 1, words),
        "tokenizer": words,
        "scheduler": scheduler(kind),
    }
    family = StableDiffusionInpaintPipeline if kind == "inpainting" else StableDiffusionPipeline
    nothing: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return family(**{**made, **parts}, **nothing)


def folder(path: Path, kind: Kind = "sd1", seed: int = 0, half: bool = False, **options: Any) -> Path:
    """A pipeline as diffusers saves it; `options` go to its save_pretrained (variant, max_shard_size)."""
    made = pipeline(kind, seed)
    (made.to(torch.float16) if half else made).save_pretrained(path, **options)
    return path


def single(path: Path, kind: Kind = "sd1", seed: int = 0, half: bool = False, averages: Any = None) -> Path:
    """The same pipeline as CompVis's scripts leave it: with the buffers of training, in 2.x with the layer that is not
    read, with the moving averages where a U-Net is given whose weights those are, and with nothing in the header.

    The names are those of our layouts, which are compared with diffusers' own elsewhere.
    """
    tensors = named_by_compvis(pipeline(kind, seed))
    if averages is not None:
        other = named_by_compvis(pipeline(kind, seed, unet=averages))
        flat = {key.removeprefix("model."): value for key, value in other.items() if key.startswith("model.")}
        tensors |= {"model_ema." + key.replace(".", ""): value for key, value in flat.items()}
        tensors |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    for name in ("betas", "alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_mean_coef1"):
        tensors[name] = torch.rand(1000)
    draw = torch.Generator().manual_seed(seed)
    if kind == "sd2":
        layer = "cond_stage_model.model.transformer.resblocks."
        last = {key: value for key, value in tensors.items() if key.startswith(f"{layer}1.")}
        tensors |= {
            key.replace(f"{layer}1.", f"{layer}2."): torch.randn(v.shape, generator=draw) for key, v in last.items()
        }
        tensors["cond_stage_model.model.text_projection"] = torch.randn(128, 128, generator=draw)
        tensors["cond_stage_model.model.logit_scale"] = torch.tensor(4.6)
    else:
        tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    if half:
        tensors = {key: value.half() if value.is_floating_point() else value for key, value in tensors.items()}
    save_safetensors(tensors, path)
    return path


def named_by_compvis(made: Any) -> dict[str, torch.Tensor]:
    """A pipeline's tensors by CompVis's names."""
    unet, vae = unet_config(made.unet.config, "the U-Net"), autoencoder_config(made.vae.config, "the autoencoder")
    shape = made.text_encoder.config
    text = open_clip_layout(shape) if shape.hidden_act == "gelu" else clip_layout(shape, CLIP + PREFIX)
    found = {}
    for network, theirs, names in (
        (made.unet, diffusers_unet(unet), compvis_unet(unet)),
        (made.vae, diffusers_autoencoder(vae), compvis_autoencoder(vae)),
        (made.text_encoder, clip_layout(shape, ""), text),
    ):
        state = {key.removeprefix(PREFIX): value for key, value in network.state_dict().items()}
        found |= published(names, dict(pieces(theirs, LazyCheckpoint.of(state, "a pipeline"))))
    return found


def compare(model: Any, made: Any, kind: Kind, files: str) -> None:
    """Each network of an opened model gives the pipeline's numbers."""
    ids = made.tokenizer(PROMPTS, padding="max_length", max_length=77, return_tensors="pt").input_ids
    x, more, time = noise(2, 4, 16, 16), noise(2, 5, 16, 16, seed=4), torch.tensor([981, 3])
    images = noise(2, 3, SIZE, SIZE, seed=5).clamp(-1, 1)
    with torch.no_grad():
        tokens = made.text_encoder(ids).last_hidden_state.float()
        inputs, concat = (torch.cat([x, more], 1), {"concat": more}) if kind == "inpainting" else (x, {})
        pairs = {
            "text encoder": (model.text.encode(PROMPTS).sequence, tokens),
            "U-Net": (model.unet(x, time, context=tokens, **concat), made.unet(inputs, time, tokens).sample),
            "encoder": (model.autoencoder.moments(images), made.vae.encode(images).latent_dist.parameters),
            "decoder": (model.autoencoder.decode(x), made.vae.decode(x).sample),
        }
    for what, (ours, theirs) in pairs.items():
        assert theirs.std() > 0.1, "the comparison says nothing if the output is next to nothing"
        within(FAMILY[kind], files, f"{what}, relative", relative_error(ours, theirs), 1e-5)
