"""Contrastive pairs of clean images and text as guides: the judge, and any CLIP in a folder of transformers
(CLIP guidance; GLIDE: Nichol et al. 2021, section 2.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.config import read_json
from diptych.core.errors import UserError
from diptych.core.values import short_repr
from diptych.diffusion.gradient_guidance import Score
from diptych.encoders.frozen import build_on_meta, text_shape
from diptych.encoders.tokenizers import saved_tokenizer, token_ids
from diptych.models.guides import Space
from diptych.models.judge import Judge
from diptych.weights.lazy import LazyCheckpoint, fill

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the colours in [0, 1] that OpenAI's CLIPs were trained on, where a folder does not state others."""


class PairGuide:
    """A contrastive pair as a guide: its score is the cosine of image and prompt over the temperature.

    pair: a module with `embed_images((B, 3, H, W) in [-1, 1])` and `embed_captions(texts)`, unit vectors (B, D), and
      `scale`, its inverse temperature.
    """

    input_kind: Literal["images"] = "images"

    def __init__(self, pair: Judge | ClipPair, name: str, through: bool = True) -> None:
        self.pair, self.name, self.through = pair.eval().requires_grad_(False), name, through

    def bind(self, prompts: Sequence[str], space: Space) -> Score:
        """(images (B, 3, H, W) in [-1, 1]) -> (B,)."""
        pair = self.pair.to(space.device)
        with torch.no_grad():
            text, scale = pair.embed_captions(list(prompts)), pair.scale.detach()
        return lambda images: scale * (pair.embed_images(images) * text).sum(-1)


def pair_config(path: Path) -> Any:
    """The transformers config of a whole CLIP. A `UserError` names the field that is of no CLIP."""
    from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

    values = read_json(path)
    halves = {}
    for name, kind in (("text_config", CLIPTextConfig), ("vision_config", CLIPVisionConfig)):
        if not isinstance(half := values.get(name) or {}, dict):
            raise UserError(f"{path}: {name} must be an object, not {short_repr(half)}")
        halves[name] = text_shape(kind, half, path).to_dict()
    shared = text_shape(CLIPConfig, {key: values[key] for key in ("auto_map", "model_type") if key in values}, path)
    width = text_shape(CLIPTextConfig, {"projection_dim": values.get("projection_dim", 512)}, path).projection_dim
    return type(shared)(**halves, projection_dim=width)


def read_colour(values: Any, where: Path) -> Tensor:
    """(3, 1, 1): one number for each colour channel, as a folder states them."""
    numbers = isinstance(values, (list, tuple)) and all(type(value) in (int, float) for value in values)
    if not numbers or len(values) != 3 or not all(0 < value < 1000 for value in values):
        raise UserError(
            f"{where}: a colour's mean and deviation must be three numbers above 0, not {short_repr(values)}"
        )
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)


class ClipPair(nn.Module):
    """A CLIP of transformers, frozen: images are resized to its size and normalised as its folder says."""

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, folder: Path) -> None:
        from transformers import CLIPModel

        super().__init__()
        shape: Any = pair_config(folder / "config.json")
        model: Any = build_on_meta(lambda: CLIPModel(shape), folder)
        self.tokenizer, self.pad = saved_tokenizer(folder, "tokenizer.json", "vocab.json")
        checkpoint, weights = LazyCheckpoint.open(folder), model.state_dict()
        fill(
            model,
            checkpoint.only(key for key in checkpoint if key in weights or "position_ids" not in key),
            str(folder),
        )
        for half in (model.text_model, model.vision_model):  # buffers that no file needs
            places = half.embeddings.position_ids.shape[-1]
            half.embeddings.position_ids = torch.arange(places)[None]
        self.model = model
        self.side, self.longest = shape.vision_config.image_size, shape.text_config.max_position_embeddings
        path = folder / "preprocessor_config.json"
        values = read_json(path) if path.is_file() else {}
        for part, usual in (("image_mean", MEAN), ("image_std", DEVIATION)):
            stated = values.get(part, usual) if isinstance(values, dict) else None
            self.register_buffer(part, read_colour(stated, path), persistent=False)

    @property
    def scale(self) -> Tensor:
        return self.model.logit_scale.exp()

    def embed_captions(self, captions: list[str]) -> Tensor:
        return self.embed_tokens(token_ids(self.tokenizer, captions, self.longest))

    def embed_tokens(self, rows: list[list[int]]) -> Tensor:
        """Captions as numbers of tokens, each with its opening and closing one -> unit vectors (B, D)."""
        ids = torch.tensor([row + [self.pad] * (self.longest - len(row)) for row in rows], device=self.scale.device)
        output = self.model.text_model(input_ids=ids)  # (B, L, width)
        return F.normalize(self.model.text_projection(output.pooler_output), dim=-1)

    def embed_images(self, images: Tensor) -> Tensor:
        sides = (self.side, self.side)
        x = F.interpolate(images, sides, mode="bicubic", antialias=True, align_corners=False)
        return self.embed_pixels((x.clamp(-1, 1) / 2 + 0.5 - self.image_mean) / self.image_std)

    def embed_pixels(self, x: Tensor) -> Tensor:
        """Images (B, 3, side, side) as the network reads them -> unit vectors (B, D)."""
        output = self.model.vision_model(pixel_values=x)
        return F.normalize(self.model.visual_projection(output.pooler_output), dim=-1)
