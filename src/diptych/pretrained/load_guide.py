"""Opening what steers a model by its gradient: `generate(prompts, guides=[(open_guide("judge"), 2.0)])`.

Noisy classifiers and noisy pairs of ours or ADM's classifiers read what the model is at work on; the judge and any CLIP
of transformers read the pictures that it sees in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.checks import said
from diptych.core.config import read_json
from diptych.core.errors import UserError
from diptych.diffusion.gradient_guidance import Guide, Score, Space
from diptych.encoders.classes import ClassConfig
from diptych.encoders.frozen import built_as_shapes, text_shape
from diptych.encoders.tokenizers import saved_tokenizer, token_ids
from diptych.models.judge import SHIPPED, Judge, load_judge
from diptych.models.noisy_guide import NoisyGuide, NoisyGuideConfig
from diptych.networks.noisy_classifier import NoisyClassifier
from diptych.pretrained.families import open_published
from diptych.pretrained.guided_diffusion import COSINE, LINEAR
from diptych.pretrained.load import find, is_published, read_config, read_options
from diptych.weights.identity import Origin
from diptych.weights.lazy import LazyCheckpoint, fill

JUDGE = "judge"
"""The name of the judge in the package."""
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the colours in [0, 1] that OpenAI's CLIPs were trained on, where a folder does not say others."""


def open_guide(source: str | Path, *, through: bool = True, **opening: Any) -> Guide:
    """A guide, on the CPU; it follows the model that it guides.

    Args:
        source: the run or model folder of a noisy classifier or noisy pair (`diptych train emoji-classifier`); "judge",
            or the folder of another one; a CLIP as a folder of transformers or by its hub id; a file with one of ADM's
            classifiers.
        through: of the judge and CLIP, whether the gradient is taken through the model that is guided too. Else the
            noise that it sees is held fixed: cheaper, and coarser where there is much noise.
        opening: `revision`, `offline` and `allow_pickle`, as for `diptych.load`.

    Raises:
        UserError: there is nothing there that guides, or its files are damaged.
    """
    embedded = str(source) == JUDGE and not Path(source).exists()
    path = SHIPPED if embedded else find(source, **opening)
    guide: Any = opened(path, Path(source).name, through, opening.get("allow_pickle", False))
    guide.origin = Origin(str(source), path)
    return guide


def opened(path: Path, name: str, through: bool, allow_pickle: bool) -> Guide:
    """What guides in a folder or file."""
    if is_published(path):
        network = open_published(path, read_options(allow_pickle))
        if not isinstance(network, NoisyClassifier):
            raise UserError(f"{path} holds no classifier of noisy pictures")
        return published_guide(network, path.stem)
    values = read_json(path / "config.json", missing=f"{path} holds no guide: it has no config.json")
    if isinstance(values, dict) and values.get("model_type") == "clip":
        return PairGuide(ClipPair(path), name, through)
    kind = read_config(path)["kind"]
    if kind == "guide":
        return NoisyGuide.load(values, path, name)
    if kind == "judge":
        return PairGuide(load_judge(path), name, through)
    raise UserError(
        f"{path} holds a model of kind {kind!r}, which does not guide: name a noisy classifier or pair "
        "(`diptych train emoji-classifier`), judge, or a CLIP as transformers saves it"
    )


def published_guide(network: NoisyClassifier, name: str) -> NoisyGuide:
    """One of ADM's classifiers; that for 64 px was trained on the cosine schedule, the others on the linear one."""
    config = NoisyGuideConfig(
        network=network.config,
        classes=ClassConfig(classes=network.config.classes),
        schedule=COSINE if network.config.size == 64 else LINEAR,
    )
    with torch.device("meta"):
        guide = NoisyGuide(config, name=name)
    guide.network = network
    return guide.eval().requires_grad_(False)


class PairGuide:
    """A contrastive pair of clean pictures and text: the cosine of picture and prompt over the temperature.

    pair: a module with `embed_pictures((B, 3, H, W) in [-1, 1])` and `embed_captions(texts)`, unit vectors (B, D), and
      `scale`, its inverse temperature.
    """

    reads: Literal["pictures"] = "pictures"

    def __init__(self, pair: Judge | ClipPair, name: str, through: bool = True) -> None:
        self.pair, self.name, self.through = pair.eval().requires_grad_(False), name, through

    def bound(self, prompts: Sequence[str], space: Space) -> Score:
        """(pictures (B, 3, H, W)) -> (B,)."""
        pair = self.pair.to(space.device)
        with torch.no_grad():
            wanted, scale = pair.embed_captions(list(prompts)), pair.scale.detach()
        return lambda pictures: scale * (pair.embed_pictures(pictures) * wanted).sum(-1)


def pair_config(path: Path) -> Any:
    """The transformers config of a whole CLIP. A `UserError` names the field that is of no CLIP."""
    from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

    values = read_json(path)
    halves = {}
    for name, kind in (("text_config", CLIPTextConfig), ("vision_config", CLIPVisionConfig)):
        if not isinstance(half := values.get(name) or {}, dict):
            raise UserError(f"{path}: {name} must be an object, not {said(half)}")
        halves[name] = text_shape(kind, half, path).to_dict()
    shared = text_shape(CLIPConfig, {key: values[key] for key in ("auto_map", "model_type") if key in values}, path)
    width = text_shape(CLIPTextConfig, {"projection_dim": values.get("projection_dim", 512)}, path).projection_dim
    return type(shared)(**halves, projection_dim=width)


def colours(values: Any, where: Path) -> Tensor:
    """(3, 1, 1) numbers that a folder states, one a colour."""
    numbers = isinstance(values, (list, tuple)) and all(type(value) in (int, float) for value in values)
    if not numbers or len(values) != 3 or not all(0 < value < 1000 for value in values):
        raise UserError(f"{where}: a colour's mean and deviation must be three numbers above 0, not {said(values)}")
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)


class ClipPair(nn.Module):
    """A CLIP of transformers, frozen: pictures are resized to its size and normalised as its folder says."""

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, folder: Path) -> None:
        from transformers import CLIPModel

        super().__init__()
        shape: Any = pair_config(folder / "config.json")
        model: Any = built_as_shapes(lambda: CLIPModel(shape), folder)
        self.tokenizer, self.pad = saved_tokenizer(folder, "tokenizer.json", "vocab.json")
        checkpoint, own = LazyCheckpoint.open(folder), model.state_dict()
        fill(model, checkpoint.only(key for key in checkpoint if key in own or "position_ids" not in key), str(folder))
        for half in (model.text_model, model.vision_model):  # buffers that no file needs
            places = half.embeddings.position_ids.shape[-1]
            half.embeddings.position_ids = torch.arange(places)[None]
        self.model = model
        self.side, self.longest = shape.vision_config.image_size, shape.text_config.max_position_embeddings
        path = folder / "preprocessor_config.json"
        told = read_json(path) if path.is_file() else {}
        for part, usual in (("image_mean", MEAN), ("image_std", DEVIATION)):
            stated = told.get(part, usual) if isinstance(told, dict) else None
            self.register_buffer(part, colours(stated, path), persistent=False)

    @property
    def scale(self) -> Tensor:
        return self.model.logit_scale.exp()

    def embed_captions(self, captions: list[str]) -> Tensor:
        rows = token_ids(self.tokenizer, captions, self.longest)
        ids = torch.tensor([row + [self.pad] * (self.longest - len(row)) for row in rows], device=self.scale.device)
        found = self.model.text_model(input_ids=ids)  # (B, L, width)
        return F.normalize(self.model.text_projection(found.pooler_output), dim=-1)

    def embed_pictures(self, pictures: Tensor) -> Tensor:
        sides = (self.side, self.side)
        x = F.interpolate(pictures, sides, mode="bicubic", antialias=True, align_corners=False)
        x = (x.clamp(-1, 1) / 2 + 0.5 - self.image_mean) / self.image_std
        found = self.model.vision_model(pixel_values=x)
        return F.normalize(self.model.visual_projection(found.pooler_output), dim=-1)
