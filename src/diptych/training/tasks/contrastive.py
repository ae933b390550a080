"""Training of the judge: the contrastive loss, its light augmentation, and its `Trainable`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core.config import Within
from diptych.core.devices import sent
from diptych.core.hashing import mix
from diptych.core.progress import track
from diptych.data.caption_text import concept_of, is_scene
from diptych.data.dataset import ImageDataset
from diptych.encoders.configs import MiniLMConfig
from diptych.models.judge import Judge, JudgeConfig
from diptych.models.retrieval import concept_vectors, prompt_ensemble, ranks, share_of_right_captions
from diptych.models.word_features import WordFeatures
from diptych.training.system import TrainingData, TrainingSystem, first_weights

_ONE_SIDED = re.compile(
    r"left|right|clock|arrow|letter|button|keycap|flag|moon|east|west|reverse|back|symbol|sign|square|[A-Z0-9]"
)
"""Concepts whose mirror image is another concept, or is nothing."""


@dataclass(frozen=True, kw_only=True)
class ContrastConfig(TrainingSystem):
    """The judge, and the settings of its loss and augmentation."""

    kind: Literal["judge"] = "judge"
    """Which system this is."""
    judge: JudgeConfig = JudgeConfig()
    """The network."""
    negatives: Annotated[int, Within(0)] = 4096
    """The most concepts used as further negatives, drawn anew for each step where there are more."""
    foils: Annotated[int, Within(0)] = 2
    """Wrong captions of each scene (its own foils, wrong in one attribute) drawn for a step."""
    scale: Annotated[float, Within(0, 1)] = 0.2
    """Images are zoomed by up to this fraction, scenes only out, so that nothing leaves the image."""
    shift: Annotated[float, Within(0, 1)] = 0.1
    """Images are moved by up to this fraction of their side."""
    colour: Annotated[float, Within(0, 1)] = 0.2
    """Brightness, contrast and saturation are changed by up to this fraction."""
    flip: bool = True
    """Mirror half of the single drawings, but none with letters, arrows, clocks or a side in the name."""

    @property
    def text_config(self) -> Any:
        return MiniLMConfig()

    def networks(self) -> dict[str, nn.Module]:
        return self.judge.networks()

    def build(self, data: TrainingData, seed: int, resuming: bool = False) -> JudgeTrainable:
        with first_weights(seed):
            return JudgeTrainable(self, data.images)


def augment(
    images: Tensor, seeds: Sequence[int], scenes: Sequence[bool], flips: Sequence[bool], config: ContrastConfig
):
    """(B, 3, H, W) in [-1, 1] to the same, each moved, zoomed, recoloured and perhaps mirrored by its own seed."""
    draws = [torch.Generator().manual_seed(mix(seed, 11)) for seed in seeds]
    u = sent(torch.stack([torch.rand(7, generator=g) for g in draws]), images.device) * 2 - 1  # (B, 7) in [-1, 1]
    scene, flipped = sent(torch.tensor([list(scenes), list(flips)]), images.device)
    mirror = (u[:, 6] < 0) & flipped
    # How much of the image an output pixel steps over: above 1 zooms out.
    step = torch.where(scene, 1 + config.scale * u[:, 0].abs(), 1 + config.scale * u[:, 0])
    reach = torch.where(scene, (step - 1).clamp(max=config.shift), torch.full_like(step, config.shift))
    theta = torch.zeros(len(u), 2, 3, device=u.device)
    theta[:, 0, 0] = torch.where(mirror, -step, step)
    theta[:, 1, 1] = step
    theta[:, :, 2] = u[:, 1:3] * reach[:, None] * 2
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    x = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    brightness, contrast, saturation = (config.colour * u[:, 3:6]).T[..., None, None, None]  # (B, 1, 1, 1) each
    grey = x.mean(1, keepdim=True)
    x = grey + (1 + saturation) * (x - grey)
    return (x * (1 + contrast) + brightness).clamp(-1, 1)


def contrast(
    images: Tensor,
    captions: Tensor,
    same: Tensor,
    scale: Tensor,
    others: Tensor | None = None,
    same_other: Tensor | None = None,
    foils: Tensor | None = None,
) -> Tensor:
    """Symmetric InfoNCE (CLIP, figure 3) per image, (B,): the caption among captions, the image among images.

    Args:
        images, captions: unit vectors (B, D) of the pairs.
        same: (B, B) bool, True where image i also answers to caption j (the same concept in another style): such
            pairs are neither right nor wrong, they are left out.
        others: unit vectors (N, D) of further captions, if any, with `same_other` (B, N) bool likewise. Rows of zeros
            do not count.
        foils: unit vectors (B, K, D) of captions wrong for this image alone, if any. Rows of zeros do not count.
        scale: the inverse temperature.
    """
    ignored = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
    logits = (scale * images @ captions.T).masked_fill(ignored, -math.inf)  # (B, B)
    choices = [logits]
    if others is not None and same_other is not None:
        unused = same_other | (others == 0).all(-1)
        choices.append((scale * images @ others.T).masked_fill(unused, -math.inf))  # (B, N)
    if foils is not None:
        wrong = scale * torch.einsum("bd,bkd->bk", images, foils)  # (B, K)
        choices.append(wrong.masked_fill((foils == 0).all(-1), -math.inf))
    target = torch.arange(len(logits), device=logits.device)
    to_caption = F.cross_entropy(torch.cat(choices, dim=1), target, reduction="none")
    to_image = F.cross_entropy(logits.T, target, reduction="none")
    return (to_caption + to_image) / 2


class Contrast(nn.Module):
    """The judge, and its memory of what each concept's words were last (a memory bank: Wu et al. 2018, section 3.2).

    So every image is contrasted with all concepts, however small the batch. The memory is a buffer, so checkpoints hold
    it.
    """

    bank: Tensor

    def __init__(self, judge: Judge, concepts: int) -> None:
        super().__init__()
        self.judge = judge
        self.register_buffer("bank", torch.zeros(concepts, judge.config.embedding))

    @torch.no_grad()
    def update_bank(self, places: Tensor, vectors: Tensor) -> None:
        """Average the vectors (N, D) of concepts said just now into their rows; the wordings of a concept mix."""
        self.bank[places] = F.normalize(self.bank[places] + vectors.to(self.bank.dtype), dim=-1)


class JudgeTrainable:
    """The judge for the training loop.

    A batch names its examples by key; their concepts and foils are read here, from all splits of `dataset`, so that
    held-out images can be validated. No held-out image is trained on unless a batch brings it.
    """

    def __init__(self, config: ContrastConfig, dataset: ImageDataset, words: WordFeatures | None = None) -> None:
        self.config = config
        self.meta = read_meta(dataset.split("all", in_memory=False))
        self.concepts = sorted({concept_of(m) for m in self.meta.values() if not is_scene(m)})
        self.place = {concept: row for row, concept in enumerate(self.concepts)}
        self.judge = Judge(config.judge, words)
        self.module = Contrast(self.judge, len(self.concepts))
        self._vectors: tuple[float, Tensor] | None = None

    def start(self, batch: dict[str, Any]) -> None:
        """Read the words of every concept now; scenes' captions are read when they first come."""
        self.judge.words.prepare([words for c in self.concepts for words in prompt_ensemble(c)])
        if self.concepts:
            self.module.bank.copy_(concept_vectors(self.judge, self.concepts))

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        metas, seeds = self._metas(batch), batch.get("seed_on_host", batch["seed"]).tolist()
        concepts = [concept_of(m) for m in metas]
        captions = [self._caption(m, seed) for m, seed in zip(metas, seeds, strict=True)]
        foils = [self._foils(m, seed) for m, seed in zip(metas, seeds, strict=True)]
        scenes = [is_scene(m) for m in metas]
        flips = [self.config.flip and not s and not _ONE_SIDED.search(c) for s, c in zip(scenes, concepts, strict=True)]
        x = augment(batch["picture"], seeds, scenes, flips, self.config)  # (B, 3, H, W)
        images = self.judge.embed_images(x)  # (B, D)
        flat = [foil for row in foils for foil in row]
        words, foil = self.judge.embed_captions([*captions, *flat]).split([len(images), len(flat)])
        device, scale = words.device, self.judge.scale
        draw = np.random.Generator(np.random.PCG64(mix(seeds[0], 12)))
        others = draw.permutation(len(self.concepts))[: self.config.negatives].tolist()
        foil_vectors = torch.zeros(len(images), self.config.foils, words.shape[1], device=device)
        if flat:
            place = [(i, j) for i, row in enumerate(foils) for j in range(len(row))]
            rows, columns = sent(torch.tensor(place), device).T
            foil_vectors = foil_vectors.index_put((rows, columns), foil.to(foil_vectors.dtype))
        same = sent(equal(concepts, concepts) | equal(captions, captions), device)  # (B, B)
        same_other = sent(equal(concepts, [self.concepts[i] for i in others]), device)  # (B, N)
        others_said = self.module.bank[sent(torch.tensor(others, dtype=torch.int64), device)]  # (N, D)
        losses = contrast(images, words, same, scale, others_said, same_other, foil_vectors)
        row_of = {self.place[c]: i for i, c in enumerate(concepts) if c in self.place}  # each once
        if self.module.training and row_of:
            places, rows = sent(torch.tensor([list(row_of), list(row_of.values())]), device)
            self.module.update_bank(places, words[rows])
        return losses, {"scale": scale.detach()}

    @torch.no_grad()
    def validation(self, batch: dict[str, Any]) -> dict[str, float]:
        """Share of the images whose concept is named first, or among five, of all; scenes: right caption first."""
        was_training = self.judge.training
        self.judge.eval()
        metas = self._metas(batch)
        images = self.judge.embed_images(batch["picture"]).float().cpu()
        metrics: dict[str, float] = {}
        single = [i for i, m in enumerate(metas) if not is_scene(m) and concept_of(m) in self.place]
        if single:
            truth = torch.tensor([self.place[concept_of(metas[i])] for i in single])
            rank = ranks(images[single], self._concept_vectors(), truth)
            metrics = {"top1": (rank < 1).double().mean().item(), "top5": (rank < 5).double().mean().item()}
        scene = [i for i, m in enumerate(metas) if is_scene(m) and m.get("foils")]
        if scene:
            trials = [(metas[i]["captions"][0], metas[i]["foils"]) for i in scene]
            metrics["scenes"] = share_of_right_captions(self.judge, images[scene], trials).double().mean().item()
        self.judge.train(was_training)
        return metrics

    def samples(self) -> None:
        """A judge generates nothing."""

    def save(self, folder: Path) -> None:
        self.judge.save(folder)

    def _metas(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        unknown = ({"captions": [caption]} for caption in batch["caption"])
        return [self.meta.get(key, other) for key, other in zip(batch["key"], unknown, strict=True)]

    @staticmethod
    def _caption(meta: dict[str, Any], seed: int) -> str:
        """A drawing by its concept, a scene by its plain caption: so no word of style or wording gives it away."""
        if is_scene(meta) or not meta.get("concept"):
            return meta["captions"][0]
        choices = prompt_ensemble(meta["concept"])
        return choices[mix(seed, 14) % len(choices)]

    def _foils(self, meta: dict[str, Any], seed: int) -> list[str]:
        foils = list(meta.get("foils", ()))
        order = np.random.Generator(np.random.PCG64(mix(seed, 13))).permutation(len(foils)) if foils else []
        return [foils[i] for i in order[: self.config.foils]]

    def _concept_vectors(self) -> Tensor:
        """Vectors of all concepts under the present weights; a validation asks for them once a batch."""
        state = float(self.judge.word_head.weight.double().sum())
        if self._vectors is None or self._vectors[0] != state:
            self._vectors = state, concept_vectors(self.judge, self.concepts)
        return self._vectors[1]


def read_meta(dataset: ImageDataset) -> dict[str, dict[str, Any]]:
    """Metadata by key."""
    examples = (dataset[i] for i in range(len(dataset)))
    return {e.key: e.meta for e in track(examples, "reading metadata", len(dataset))}


def equal(one: Sequence[str], other: Sequence[str]) -> Tensor:
    """(len(one), len(other)) bool: where the words are equal."""
    number = {word: i for i, word in enumerate({*one, *other})}
    return torch.tensor([number[w] for w in one])[:, None] == torch.tensor([number[w] for w in other])
