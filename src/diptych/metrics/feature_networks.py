"""The networks whose features are compared. Weights come from the user's path or the hub, named by the user."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from diptych.core.errors import UserError, pick
from diptych.encoders.tokenizers import encode_text
from diptych.metrics.feature_rows import FeatureRows
from diptych.metrics.resizing import RESIZES
from diptych.models.judge import Judge, load_judge
from diptych.networks.inception import CLASSES, FEATURES, SIDE, InceptionV3
from diptych.networks.lpips import SCALE, SHIFT
from diptych.networks.vgg import VGG_SIDE, WIDTH
from diptych.weights.fingerprint import fingerprint


class FeatureNetwork(ABC):
    """A frozen network that turns images into features (B, width)."""

    kind: ClassVar[str]
    """Its name for users."""
    resizes: ClassVar[tuple[str, ...]]
    """Filters that may bring images to its side, the default first."""

    def __init__(self, network: nn.Module, title: str, side: int, width: int, resize: str | None = None) -> None:
        """title: its name in results; side: pixels of the square that it reads; width: of its features; resize: one of
        `resizes`."""
        self.network, self.title, self.side, self.width = network, title, side, width
        self.weights = fingerprint(network)
        """A hash of its weights."""
        self.resize = self._resize_or_default(resize)

    def with_resize(self, resize: str | None) -> Self:
        """The same network, not copied, behind another filter; the default if none."""
        other = copy.copy(self)
        other.resize = self._resize_or_default(resize)
        return other

    def _resize_or_default(self, resize: str | None) -> str:
        return pick(f"resize of {self.kind}", resize or self.resizes[0], self.resizes)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> Self:
        self.network.to(device)
        return self

    def describe(self) -> dict[str, Any]:
        """What its features depend on; only such with the same entries compare."""
        about = {"network": self.title, "weights": self.weights, "width": self.width}
        return about | {"side": self.side, "resize": self.resize}

    def prepare(self, image: Image.Image) -> Tensor:
        """An RGB image -> (side, side, 3), float32 from 0 to 255."""
        return RESIZES[self.resize](image, self.side)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Prepared images (B, side, side, 3) -> features (B, width), float32 on the CPU."""
        # Channels come last as they lie there, which convolutions on CPUs like best.
        return self._features(images.to(self.device).permute(0, 3, 1, 2)).float().cpu()

    @abstractmethod
    def _features(self, images: Tensor) -> Tensor:
        """(B, 3, side, side), from 0 to 255."""


class InceptionFeatures(FeatureNetwork):
    """The 2,048 averages of InceptionV3: FID, KID and, by its logits, the Inception Score."""

    kind, resizes = "inception", ("tf1", "torch-bilinear", "clean")

    def __init__(self, path: str | Path, resize: str | None = None, allow_pickle: bool = False) -> None:
        from diptych.pretrained.inception_weights import read_inception

        self.inception = read_inception(path, allow_pickle)
        super().__init__(self.inception, "InceptionV3 2015-12-05, pool3", SIDE, FEATURES, resize)

    def _features(self, images: Tensor) -> Tensor:
        # In TensorFlow's graph -1 is 0 and 1 would be 256; pytorch-fid has 255 there.
        centre = 127.5 if self.resize == "torch-bilinear" else 128.0
        return self.inception((images - centre) / centre)

    def logits(self, features: FeatureRows) -> FeatureRows:
        """Of the 1,008 classes, (N, 1008), from features (N, 2048): computed where they are asked for."""
        return InceptionLogits(self.inception, features)


@dataclass(frozen=True)
class InceptionLogits:
    """(N, 1008), computed from features part by part."""

    inception: InceptionV3
    features: FeatureRows

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.features), CLASSES

    def __len__(self) -> int:
        return len(self.features)

    @torch.inference_mode()
    def __getitem__(self, rows: Any, /) -> np.ndarray:
        features = torch.from_numpy(np.array(self.features[rows])).to(self.inception.fc.weight.device)
        return self.inception.logits(features).cpu().numpy()


class VggFeatures(FeatureNetwork):
    """VGG16's second hidden layer: precision and recall as in their paper."""

    kind, resizes = "vgg16", ("tf1", "torch-bilinear", "clean")

    def __init__(self, path: str | Path, resize: str | None = None, allow_pickle: bool = False) -> None:
        from diptych.pretrained.vgg_weights import read_vgg16

        super().__init__(read_vgg16(path, allow_pickle), "VGG16, fc2 after ReLU", VGG_SIDE, WIDTH, resize)

    def _features(self, images: Tensor) -> Tensor:
        mean, deviation = (images.new_tensor(values).view(3, 1, 1) for values in (SHIFT, SCALE))
        return self.network((images / 127.5 - 1 - mean) / deviation)


class ClipFeatures(FeatureNetwork):
    """CLIP's embeddings of images and of captions at length 1: CLIP score and CMMD."""

    kind, resizes = "clip", ("clip", "torch-bicubic")

    def __init__(self, path: str | Path, resize: str | None = None, offline: bool = False) -> None:
        from diptych.pretrained.clip_model import read_clip

        self.clip = read_clip(path, offline)
        config = self.clip.model.config
        vision = config.vision_config
        title = f"CLIP ViT-{vision.hidden_size}x{vision.num_hidden_layers}/{vision.patch_size}"
        super().__init__(self.clip, title, self.clip.side, config.projection_dim, resize)

    def _features(self, images: Tensor) -> Tensor:
        return self.clip.embed_pixels((images / 255 - self.clip.image_mean) / self.clip.image_std)

    @torch.inference_mode()
    def captions(self, captions: list[str]) -> tuple[np.ndarray, int]:
        """Embeddings (N, width) of captions at length 1, and how many of them were cut: CLIP reads 77 tokens."""
        rows = [encode_text(self.clip.tokenizer, caption).ids for caption in captions]
        longest = self.clip.longest
        cut = [row if len(row) <= longest else [*row[: longest - 1], row[-1]] for row in rows]
        return self.clip.embed_tokens(cut).float().cpu().numpy(), sum(len(row) > longest for row in rows)


class JudgeFeatures(FeatureNetwork):
    """The judge's features: small, trained on drawings, and comparable with nothing published."""

    kind, resizes = "judge", ("torch-antialiased",)

    def __init__(self, path: str | Path | None = None, resize: str | None = None) -> None:
        self.judge: Judge = load_judge(None if path is None else Path(path))
        super().__init__(self.judge, "diptych's judge", self.judge.config.size, self.judge.config.widths[-1], resize)

    def _features(self, images: Tensor) -> Tensor:
        return self.judge.picture_tower(images / 127.5 - 1)


NETWORKS: dict[str, type[FeatureNetwork]] = {
    one.kind: one for one in (InceptionFeatures, VggFeatures, ClipFeatures, JudgeFeatures)
}
MISSING = {
    "inception": "InceptionV3's weights (weights-inception-2015-12-05-6726825d.pth of torch-fidelity's releases)",
    "vgg16": "VGG16's weights (torchvision's file, or timm/vgg16.tv_in1k of the hub)",
    "clip": "a CLIP (a folder as transformers saves it, or openai/clip-vit-large-patch14 of the hub)",
}


def open_features(
    kind: str,
    weights: str | Path | None = None,
    resize: str | None = None,
    device: torch.device | str = "cpu",
    allow_pickle: bool = False,
    offline: bool = False,
) -> FeatureNetwork:
    """A network by its name: `inception`, `vgg16`, `clip`, or `judge`, which alone needs no weights from elsewhere.

    Raises a `UserError` that says which file is missing, and that the judge may take its place if it is asked for.
    """
    kind = pick("feature network", kind, tuple(NETWORKS))
    if kind == "judge":
        return JudgeFeatures(weights, resize).to(device)
    if weights is None:
        raise UserError(
            f"{kind} features need {MISSING[kind]}: name them as --weights {kind}=PATH. Of fid, kid and "
            "precision-recall --features judge takes their place, which compares with nothing published"
        )
    if kind == "clip":
        return ClipFeatures(weights, resize, offline).to(device)
    return (InceptionFeatures if kind == "inception" else VggFeatures)(weights, resize, allow_pickle).to(device)
