"""The networks whose features are compared. Weights come from the user's path or the hub, named by the user."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from diptych.core.errors import UserError, pick
from diptych.metrics.resizing import resize_named
from diptych.models.judge import Judge, load_judge
from diptych.networks.inception import FEATURES, SIDE
from diptych.networks.lpips import SCALE, SHIFT
from diptych.networks.vgg import VGG_SIDE, WIDTH
from diptych.weights.fingerprint import fingerprint


class FeatureNetwork(ABC):
    """A frozen network that turns images into features (B, width)."""

    kind: ClassVar[str]
    """Its name for users."""
    title: ClassVar[str]
    """Its name in results."""
    resizes: ClassVar[tuple[str, ...]]
    """Filters that may bring images to its side, the default first."""

    def __init__(self, network: nn.Module, side: int, width: int, resize: str | None = None) -> None:
        """side: pixels of the square that it reads; width: of its features; resize: one of `resizes`."""
        self.network, self.side, self.width = network, side, width
        self.resize = pick("resize", resize or self.resizes[0], self.resizes)
        self.weights = fingerprint(network)
        """A hash of its weights."""
        self._resized = resize_named(self.resize)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> FeatureNetwork:
        self.network.to(device)
        return self

    def describe(self) -> dict[str, Any]:
        """What its features depend on; only such with the same entries compare."""
        return {"network": self.title, "weights": self.weights, "width": self.width, "side": self.side} | {
            "resize": self.resize
        }

    def prepare(self, image: Image.Image) -> Tensor:
        """An RGB image -> (side, side, 3), float32 from 0 to 255."""
        return self._resized(image, self.side)

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

    kind, title, resizes = "inception", "InceptionV3 2015-12-05, pool3", ("tf1", "torch-bilinear", "clean")

    def __init__(self, path: str | Path, resize: str | None = None, allow_pickle: bool = False) -> None:
        from diptych.pretrained.inception_weights import read_inception

        super().__init__(read_inception(path, allow_pickle), SIDE, FEATURES, resize)

    def _features(self, images: Tensor) -> Tensor:
        # In TensorFlow's graph -1 is 0 and 1 would be 256; pytorch-fid has 255 there.
        centre = 127.5 if self.resize == "torch-bilinear" else 128.0
        return self.network((images - centre) / centre)

    @torch.inference_mode()
    def logits(self, features: np.ndarray) -> np.ndarray:
        """Of the 1,008 classes, (N, 1008), from features (N, 2048)."""
        return self.network.logits(torch.from_numpy(np.array(features)).to(self.device)).cpu().numpy()  # type: ignore


class VggFeatures(FeatureNetwork):
    """VGG16's second hidden layer: precision and recall as in their paper."""

    kind, title, resizes = "vgg16", "VGG16, fc2 after ReLU", ("tf1", "torch-bilinear", "clean")

    def __init__(self, path: str | Path, resize: str | None = None, allow_pickle: bool = False) -> None:
        from diptych.pretrained.vgg_weights import read_vgg16

        super().__init__(read_vgg16(path, allow_pickle), VGG_SIDE, WIDTH, resize)
        self._shift, self._scale = (torch.tensor(values).view(3, 1, 1) for values in (SHIFT, SCALE))

    def _features(self, images: Tensor) -> Tensor:
        shift, scale = (values.to(images.device) for values in (self._shift, self._scale))
        return self.network((images / 127.5 - 1 - shift) / scale)


class ClipFeatures(FeatureNetwork):
    """CLIP's embeddings of images and of captions at length 1: CLIP score and CMMD."""

    kind, title, resizes = "clip", "CLIP", ("clip", "torch-bicubic")

    def __init__(self, path: str | Path, resize: str | None = None, offline: bool = False) -> None:
        from diptych.pretrained.clip_model import read_clip

        model, self.tokenizer, shift, scale = read_clip(path, offline)
        vision = model.config.vision_config
        super().__init__(model, vision.image_size, model.config.projection_dim, resize)
        self.title = f"CLIP ViT-{vision.hidden_size}x{vision.num_hidden_layers}/{vision.patch_size}"  # type: ignore
        self._shift, self._scale = (torch.tensor(values).view(3, 1, 1) for values in (shift, scale))

    def _features(self, images: Tensor) -> Tensor:
        shift, scale = (values.to(images.device) for values in (self._shift, self._scale))
        return F.normalize(clip_embedding(self.network.get_image_features((images / 255 - shift) / scale)), dim=-1)  # type: ignore[operator]

    @torch.inference_mode()
    def captions(self, captions: list[str], batch: int = 256) -> np.ndarray:
        """Embeddings (N, width) of captions at length 1; those beyond CLIP's 77 tokens are cut."""
        rows = []
        for start in range(0, len(captions), batch):
            tokens = self.tokenizer(captions[start : start + batch], padding=True, truncation=True, return_tensors="pt")
            embedded = clip_embedding(self.network.get_text_features(**tokens.to(self.device)))  # type: ignore[operator]
            rows.append(F.normalize(embedded, dim=-1).float().cpu().numpy())
        return np.concatenate(rows) if rows else np.empty((0, self.width), np.float32)


class JudgeFeatures(FeatureNetwork):
    """The judge's features: small, trained on drawings, and comparable with nothing published."""

    kind, title, resizes = "judge", "diptych's judge", ("torch-bilinear",)

    def __init__(self, path: str | Path | None = None, resize: str | None = None) -> None:
        self.judge: Judge = load_judge(None if path is None else Path(path))
        super().__init__(self.judge, self.judge.config.size, self.judge.config.widths[-1], resize)
        self.resize = "antialiased bilinear"

    def prepare(self, image: Image.Image) -> Tensor:
        values = torch.from_numpy(np.array(image.convert("RGB"), np.float32)).permute(2, 0, 1)[None]
        sides = (self.side, self.side)
        if values.shape[-2:] != sides:
            values = F.interpolate(values, sides, mode="bilinear", antialias=True, align_corners=False)
        return values[0].permute(1, 2, 0).contiguous()

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
            f"{kind} features need {MISSING[kind]}: name them as --weights {kind}=PATH, or measure with "
            "--features judge, which compares with nothing published"
        )
    if kind == "clip":
        return ClipFeatures(weights, resize, offline).to(device)
    return NETWORKS[kind](weights, resize, allow_pickle).to(device)  # type: ignore[call-arg,arg-type]


def clip_embedding(output: Any) -> Tensor:
    """The projected embedding; newer releases of transformers wrap it."""
    return output if isinstance(output, Tensor) else output.pooler_output
