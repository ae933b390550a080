"""The judge: images and words in one space, learned from real renderings and never from a generator.

Two towers meet in one unit sphere (CLIP: Radford et al. 2021, section 2.3): a small residual network reads an image,
a small transformer reads the frozen MiniLM features of a caption. What a generated image shows is then what the
judge finds nearest among all concepts (`retrieval.py`). No generator is trained on the judge, so it cannot be tuned to.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from diptych.core.config import Config, Within, read_json
from diptych.core.devices import sent
from diptych.core.disk import write_text
from diptych.core.errors import UserError
from diptych.core.images import to_tensor
from diptych.models.word_features import WordFeatures
from diptych.weights.fingerprint import fingerprint
from diptych.weights.lazy import load_module, on_meta
from diptych.weights.model_folder import model_place
from diptych.weights.save import save_weights

SHIPPED = Path(__file__).resolve().parent.parent / "assets" / "judge"


@dataclass(frozen=True, kw_only=True)
class JudgeConfig(Config):
    most = 2**16

    size: Annotated[int, Within(1)] = 64
    """Side in pixels of the square that the image tower reads; other sizes are resized to it, antialiased."""
    widths: Annotated[tuple[int, ...], Within(1)] = (32, 64, 128, 256)
    """Channels of the image tower's stages, from half the resolution down, each half the one before."""
    blocks: Annotated[tuple[int, ...], Within(1, 1000)] = (1, 1, 2, 1)
    """Residual blocks of each stage."""
    token_width: Annotated[int, Within(1)] = 384
    """Width of the frozen word features (MiniLM: 384)."""
    text_width: Annotated[int, Within(1)] = 256
    """Width of the trained transformer over the words."""
    text_layers: Annotated[int, Within(0, 1000)] = 1
    """Its layers."""
    tokens: Annotated[int, Within(1)] = 64
    """The most word pieces that it reads; a longer caption is cut."""
    heads: Annotated[int, Within(1)] = 4
    """Attention heads, in both towers."""
    embedding: Annotated[int, Within(1)] = 256
    """Dimensions of the space that images and words share."""
    dropout: float = 0.1
    """Dropout in both towers' transformers."""

    def check(self) -> None:
        self.require(0 <= self.dropout < 1, "dropout", "lie between 0 and 1, 1 left out")
        self.require(len(self.widths) == len(self.blocks) > 0, "blocks", "have one entry for each of widths")
        self.require(self.size % 2 ** len(self.widths) == 0, "size", f"be divisible by {2 ** len(self.widths)}")
        self.require(self.widths[-1] % self.heads == 0 == self.text_width % self.heads, "heads", "divide both widths")

    def networks(self) -> dict[str, nn.Module]:
        """Each network by its name, to be counted: call it on the meta device."""
        return {"judge": Judge(self)}


class JudgeBlock(nn.Module):
    """Pre-activation residual block (He et al. 2016b); a change of width comes with a halved resolution."""

    def __init__(self, inputs: int, outputs: int, halve: bool) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 2 if halve else 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.skip = nn.Conv2d(inputs, outputs, 1, bias=False) if inputs != outputs else None
        self.halve = halve

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(x))  # (B, inputs, H, W)
        skip = F.avg_pool2d(h, 2) if self.halve else h
        skip = self.skip(skip) if self.skip is not None else (skip if self.halve else x)
        h = self.conv1(h)  # (B, outputs, H', W')
        return skip + self.conv2(F.relu(self.norm2(h)))


class Attend(nn.Module):
    """A summary token and transformer layers over a sequence: the summary is what the tower hands on."""

    def __init__(self, width: int, length: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(length, width) * 0.02)
        self.summary = nn.Parameter(torch.randn(width) * 0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 2 * width, dropout, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """`x` (B, L, width), `padding` (B, L) True where there is no token; returns (B, width)."""
        x = x + self.positions[: x.shape[1]]
        x = torch.cat([self.summary.expand(len(x), 1, -1), x], dim=1)  # (B, 1 + L, width)
        if padding is not None:
            padding = F.pad(padding, (1, 0), value=False)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=padding)
        return self.norm(x[:, 0])


class ImageTower(nn.Module):
    """(B, 3, H, W) in [-1, 1] to (B, widths[-1]): convolutions, then attention over the cells of what is left."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.size, self.blocks = config.size, config.blocks
        width = config.widths[0]
        self.stem = nn.Conv2d(3, width, 5, 2, 2, bias=False)
        stages: list[nn.Module] = []
        for depth, (outputs, blocks) in enumerate(zip(config.widths, config.blocks, strict=True)):
            for block in range(blocks):
                stages.append(JudgeBlock(width, outputs, halve=depth > 0 and block == 0))
                width = outputs
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(width)
        cells = (config.size >> len(config.widths)) ** 2
        # Positions and attention, not a plain mean: "left of" and counts live in where things are.
        self.attend = Attend(width, cells, 1, config.heads, config.dropout)

    def maps(self, x: Tensor) -> list[Tensor]:
        """The activations of the stem and each stage: (B, widths[0], S/2, S/2) twice, then half the
        resolution stage by stage."""
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        maps = [self.stem(x.contiguous(memory_format=torch.channels_last))]
        blocks = iter(self.stages)
        for count in self.blocks:
            x = maps[-1]
            for block in itertools.islice(blocks, count):
                x = block(x)
            maps.append(x)  # (B, widths[i], S/2 >> i, S/2 >> i)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.maps(x)[-1]))  # (B, widths[-1], s, s)
        cells = x.flatten(2).transpose(1, 2)  # (B, s*s, widths[-1])
        return self.attend(cells) + cells.mean(1)


class WordTower(nn.Module):
    """Frozen word features (B, L, token_width) to (B, text_width), word order included."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.tokens = config.tokens
        self.enter = nn.Sequential(nn.LayerNorm(config.token_width), nn.Linear(config.token_width, config.text_width))
        self.attend = Attend(config.text_width, config.tokens, config.text_layers, config.heads, config.dropout)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        features, mask = features[:, : self.tokens], mask[:, : self.tokens]
        x = self.enter(features)  # (B, L, text_width)
        mean = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return self.attend(x, ~mask) + mean


class Judge(nn.Module):
    """Both towers and the temperature. `words` turns captions into frozen features; by default MiniLM, loaded late."""

    def __init__(self, config: JudgeConfig, words: WordFeatures | None = None) -> None:
        super().__init__()
        self.config = config
        # A plain object, not a submodule: frozen features belong to no checkpoint.
        self.words = words or WordFeatures()
        self.picture_tower = ImageTower(config)
        self.word_tower = WordTower(config)
        self.picture_head = nn.Linear(config.widths[-1], config.embedding, bias=False)
        self.word_head = nn.Linear(config.text_width, config.embedding, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @property
    def device(self) -> torch.device:
        return self.log_scale.device

    @property
    def scale(self) -> Tensor:
        """The inverse temperature, held at 100 or less so that training stays stable (CLIP, section 2.5)."""
        return self.log_scale.exp().clamp(max=100.0)

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], any size, to unit vectors (B, embedding)."""
        return F.normalize(self.picture_head(self.picture_tower(images)), dim=-1)

    def embed_captions(self, captions: Sequence[str], chunk: int = 128) -> Tensor:
        """Captions to unit vectors (B, embedding); read in chunks of like length, so that little padding is read."""
        order = sorted(range(len(captions)), key=lambda i: len(captions[i]))
        parts = []
        for start in range(0, len(order), chunk):
            features, mask = self.words([captions[i] for i in order[start : start + chunk]], self.device)
            parts.append(self.word_head(self.word_tower(features, mask)))  # (chunk, embedding)
        place = torch.empty(len(order), dtype=torch.long)
        place[torch.tensor(order)] = torch.arange(len(order))
        return F.normalize(torch.cat(parts)[sent(place, self.device)], dim=-1)

    @torch.inference_mode()
    def encode_images(self, images: Sequence[Image.Image], batch: int = 64) -> Tensor:
        """Unit vectors (N, embedding) of PIL images, in evaluation mode and small batches."""
        return self._evaluate(lambda part: self.embed_images(to_tensor(part).to(self.device)), images, batch)

    @torch.inference_mode()
    def captions(self, captions: Sequence[str], batch: int = 256) -> Tensor:
        """Unit vectors (N, embedding) of captions, in evaluation mode."""
        return self._evaluate(self.embed_captions, captions, batch)

    @torch.inference_mode()
    def features(self, images: Sequence[Image.Image], batch: int = 64) -> Tensor:
        """Features of the image tower before the projection, (N, widths[-1]): for the Frechet distance."""
        return self._evaluate(lambda part: self.picture_tower(to_tensor(part).to(self.device)), images, batch)

    @torch.inference_mode()
    def place(self, features: Tensor) -> Tensor:
        """Unit vectors (N, embedding) of `features` (N, widths[-1]): what `encode_images` gives, computed from them."""
        return F.normalize(self.picture_head(features.to(self.device)), dim=-1).float().cpu()

    def _evaluate(self, run: Callable[[Sequence], Tensor], items: Sequence, batch: int) -> Tensor:
        training = self.training
        self.eval()
        try:
            return torch.cat([run(items[i : i + batch]).float().cpu() for i in range(0, len(items), batch)])
        finally:
            self.train(training)

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors; matrices and kernels in bfloat16, plenty for a ranking."""
        folder = model_place(folder)
        write_text(folder / "config.json", json.dumps({"kind": "judge", **self.config.to_dict()}, indent=2) + "\n")
        save_weights(self.state_dict(), folder, torch.bfloat16)

    def fingerprint(self) -> str:
        """Names these weights: scores are comparable only under the same ones."""
        return fingerprint(self)


def load_judge(path: Path | None = None, words: WordFeatures | None = None) -> Judge:
    """The judge in the folder `path` (a model or a run), or the one that ships with diptych; ready to judge.

    Raises:
        UserError: there is no judge there, or its files are damaged.
    """
    folder, config = judge_config(path)
    with on_meta():
        judge = Judge(config, words)
    load_module(judge, folder)
    return judge.eval()


def judge_config(path: Path | None = None) -> tuple[Path, JudgeConfig]:
    """Where the judge of `load_judge` lies, and its config."""
    folder = Path(path) if path is not None else SHIPPED
    if (folder / "model" / "config.json").is_file():
        folder = folder / "model"
    path = folder / "config.json"
    values = read_json(
        path,
        missing=f"no judge in {folder}: train one with `diptych train judge` and name its folder",
        damaged=f"{path} is not readable JSON; get or train the judge again",
    )
    if not isinstance(values, dict) or values.pop("kind", None) != "judge":
        raise UserError(f"{folder} holds another kind of model, not a judge")
    return folder, JudgeConfig.from_dict(values)
