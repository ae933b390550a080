"""Measures of generated images, by name: each result says all that it depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image

from diptych.core.config import Config, Within
from diptych.core.errors import UserError, pick, warn
from diptych.core.images import to_tensor
from diptych.core.progress import track
from diptych.core.version import version
from diptych.metrics.feature_files import Features, extract
from diptych.metrics.feature_networks import ClipFeatures, FeatureNetwork, InceptionFeatures, open_features
from diptych.metrics.frechet import Gaussian, frechet_distance
from diptych.metrics.image_set import ImageSet, Processing
from diptych.metrics.inception_score import inception_score
from diptych.metrics.kernels import SEED, cmmd, kernel_inception_distance
from diptych.metrics.neighbours import manifolds
from diptych.metrics.pixel_measures import image_psnr, ssim
from diptych.metrics.statistics_files import is_statistics, read_statistics, write_statistics

METRICS = {
    "fid": "fid",
    "kid": "kid",
    "is": "inception score",
    "precision-recall": "precision and recall, density and coverage",
    "clip-score": "cosine of image and caption under CLIP, times 100",
    "cmmd": "CMMD",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "lpips": "LPIPS",
}
"""Name -> what it is. The last three compare images in pairs, by name."""
PAIRED = ("psnr", "ssim", "lpips")
ALONE = ("is", "clip-score")
"""Metrics that need no reference."""
OWN_NETWORK = {"is": "inception", "clip-score": "clip", "cmmd": "clip"}
"""Metrics that are defined on one network alone."""


@dataclass(frozen=True, kw_only=True)
class MeasureConfig(Config):
    """How images are measured."""

    features: Literal["inception", "vgg16", "clip", "judge"] = "inception"
    """Whose features FID, KID, precision and recall compare."""
    resize: str | None = None
    """The filter that brings images to the network's size; none for the network's usual one."""
    batch: Annotated[int, Within(1, 4096)] = 32
    """Images that a network reads at a time."""
    splits: Annotated[int, Within(1)] = 10
    """Parts of the Inception Score."""
    subsets: Annotated[int, Within(1)] = 100
    """Draws of KID."""
    subset_size: Annotated[int, Within(2)] = 1000
    """Images of each side in a draw of KID."""
    k: Annotated[int, Within(1, 1000)] = 3
    """Neighbours of precision and recall, density and coverage."""
    seed: Annotated[int, Within(0, 2**32 - 1)] = SEED
    """Of KID's draws and of the Inception Score's order."""


@dataclass
class Measurement:
    """One comparison of generated images with a reference. Networks are opened, and features read, once."""

    generated: ImageSet
    real: ImageSet | Path | None
    """The reference: images, or an .npz of their statistics."""
    config: MeasureConfig
    weights: Mapping[str, str | Path] = field(default_factory=dict)
    """Kind of network -> where its weights lie."""
    device: torch.device | str = "cpu"
    allow_pickle: bool = False
    offline: bool = False
    cache: Path | None = None
    """Where features are kept."""

    def __post_init__(self) -> None:
        self._networks: dict[str, FeatureNetwork] = {}
        self._features: dict[tuple[str, str], Features] = {}

    def measure(self, metrics: Iterable[str]) -> list[dict[str, Any]]:
        """The results, in the order of `metrics`.

        Raises a `UserError`, before anything is computed, for a metric that is unknown or lacks its reference, weights
        or pairs.
        """
        metrics = [pick("metric", name, METRICS) for name in dict.fromkeys(metrics)]
        for name in metrics:
            self._check(name)
        measured: dict[str, Callable[[], list[dict[str, Any]]]] = {
            "fid": self._fid,
            "kid": self._kid,
            "is": self._inception_score,
            "precision-recall": self._manifolds,
            "clip-score": self._clip_score,
            "cmmd": self._cmmd,
        }
        paired = [name for name in metrics if name in PAIRED]
        results = {name: measured[name]() for name in metrics if name not in PAIRED}
        if paired:
            results |= self._paired(paired)
        return [result for name in metrics for result in results[name]]

    def save_statistics(self, path: Path, of: Literal["generated", "real"]) -> None:
        """Write mean and covariance of one side's features as an .npz."""
        images = self._images(of)
        network = self._network(self.config.features)
        about = {"features": network.describe(), "images": self._said(images, self._extracted(of, network))}
        write_statistics(path, Gaussian.of(self._extracted(of, network).values), about)

    def warn_of_left_out(self) -> None:
        """Say which files beside the images are not read."""
        for side in (self.generated, self.real):
            if isinstance(side, ImageSet) and side.left_out:
                name, reason = next(iter(side.left_out.items()))
                warn(f"{side.path}: {len(side.left_out)} files are left out, such as {name} ({reason})")

    def _check(self, name: str) -> None:
        if name not in ALONE and self.real is None:
            raise UserError(f"{name} compares with a reference: name a folder of real images, or statistics (.npz)")
        if isinstance(self.real, Path) and name not in (*ALONE, "fid"):
            raise UserError(f"{name} needs the images of the reference: {self.real} holds statistics alone, for fid")
        if name == "lpips" and "vgg16" not in self.weights:
            raise UserError("lpips needs VGG16: name torchvision's file as --weights vgg16=PATH")
        if name in PAIRED:
            self._pairs  # noqa: B018
        else:
            self._network(self._kind(name))
        if name == "clip-score":
            self._captions  # noqa: B018

    def _kind(self, name: str) -> str:
        return OWN_NETWORK.get(name, self.config.features)

    def _network(self, kind: str, resize: str | None = None) -> FeatureNetwork:
        resize = resize or (self.config.resize if kind == self.config.features else None)
        key = f"{kind} {resize}"
        if key not in self._networks:
            self._networks[key] = open_features(
                kind, self.weights.get(kind), resize, self.device, self.allow_pickle, self.offline
            )
        return self._networks[key]

    def _images(self, side: Literal["generated", "real"]) -> ImageSet:
        images = self.generated if side == "generated" else self.real
        assert isinstance(images, ImageSet), "checked before"
        return images

    def _extracted(self, side: Literal["generated", "real"], network: FeatureNetwork) -> Features:
        key = side, f"{network.kind} {network.resize}"
        if key not in self._features:
            self._features[key] = extract(self._images(side), network, self.config.batch, self.cache)
        return self._features[key]

    def _both(self, network: FeatureNetwork) -> tuple[Features, Features]:
        return self._extracted("generated", network), self._extracted("real", network)

    def _result(
        self, metric: str, value: float, network: FeatureNetwork | None, settings: Mapping[str, Any], **more: Any
    ) -> dict[str, Any]:
        result: dict[str, Any] = {"metric": metric, "value": value, **more}
        if network is not None:
            result["features"] = network.describe()
        result["settings"] = dict(settings)
        result["generated"] = self._said(self.generated, self._known("generated", network))
        if isinstance(self.real, ImageSet) and metric not in ALONE:
            result["reference"] = self._said(self.real, self._known("real", network))
        return result | {"diptych": version()}

    def _known(self, side: str, network: FeatureNetwork | None) -> Features | None:
        return None if network is None else self._features.get((side, f"{network.kind} {network.resize}"))

    def _said(self, images: ImageSet, features: Features | None) -> dict[str, Any]:
        said = {"name": images.path, "images": len(images), "processing": images.processing.describe()}
        return said if features is None else said | {"sha256": features.sha256}

    def _fid(self) -> list[dict[str, Any]]:
        network = self._network(self.config.features)
        generated = Gaussian.of(self._extracted("generated", network).values)
        fewer = {"fewer_images_than_dimensions": True} if len(self.generated) <= network.width else {}
        if not isinstance(self.real, Path):
            real = Gaussian.of(self._extracted("real", network).values)
            return [self._result("fid", frechet_distance(generated, real), network, {}, **fewer)]
        statistics = read_statistics(self.real)
        if (stated := statistics.about.get("features")) not in (None, network.describe()):
            raise UserError(f"{self.real} was made with other features ({stated}), not {network.describe()}")
        result = self._result("fid", frechet_distance(generated, statistics.gaussian), network, {}, **fewer)
        if stated is None:
            result["unknown"] = ["network, resize and images of the reference's statistics"]
        return [result | {"reference": {"name": str(self.real), **statistics.about.get("images", {})}}]

    def _kid(self) -> list[dict[str, Any]]:
        network, config = self._network(self.config.features), self.config
        generated, real = self._both(network)
        settings = {"subsets": config.subsets, "subset_size": config.subset_size, "seed": config.seed}
        estimate = kernel_inception_distance(
            generated.values, real.values, config.subsets, config.subset_size, config.seed
        )
        return [self._result("kid", estimate.mean, network, settings, deviation=estimate.deviation)]

    def _inception_score(self) -> list[dict[str, Any]]:
        network = self._network("inception")
        assert isinstance(network, InceptionFeatures)
        values = self._extracted("generated", network).values
        logits = np.concatenate([network.logits(values[start : start + 4096]) for start in range(0, len(values), 4096)])
        estimate = inception_score(logits, self.config.splits, self.config.seed)
        settings = {"splits": self.config.splits, "seed": self.config.seed}
        return [self._result("is", estimate.mean, network, settings, deviation=estimate.deviation)]

    def _manifolds(self) -> list[dict[str, Any]]:
        network = self._network(self.config.features)
        generated, real = self._both(network)
        values = manifolds(generated.values, real.values, self.config.k)._asdict()
        return [self._result(name, value, network, {"k": self.config.k}) for name, value in values.items()]

    def _clip_score(self) -> list[dict[str, Any]]:
        network = self._network("clip")
        assert isinstance(network, ClipFeatures)
        images = self._extracted("generated", network).values
        cosines = (images * network.captions(self._captions)).sum(1)
        error = float(cosines.std(ddof=1) / np.sqrt(len(cosines))) if len(cosines) > 1 else None
        # Hessel et al. 2021, equation 1, has 2.5 max(cos, 0); most of the field prints 100 cos.
        settings = {"scale": 100, "negative": "kept"}
        return [self._result("clip-score", 100 * float(cosines.mean()), network, settings, error=error and 100 * error)]

    def _cmmd(self) -> list[dict[str, Any]]:
        network = self._network("clip", "torch-bicubic" if self.config.features != "clip" else None)
        generated, real = self._both(network)
        return [self._result("cmmd", cmmd(generated.values, real.values), network, {"sigma": 10, "scale": 1000})]

    @cached_property
    def _captions(self) -> list[str]:
        return [self.generated.caption(number) for number in range(len(self.generated))]

    @cached_property
    def _pairs(self) -> list[tuple[int, int]]:
        """Numbers of the images of one name, extension apart, on both sides; each image has its partner."""
        sides = [self.generated, self._images("real")]
        names = [{str(Path(images.name(i)).with_suffix("")): i for i in range(len(images))} for images in sides]
        if lone := names[0].keys() ^ names[1].keys():
            raise UserError(
                f"pairs have one name on both sides, and {sorted(lone)[0]} is on one alone ({len(lone)} are)"
            )
        return [(number, names[1][name]) for name, number in names[0].items()]

    def _paired(self, metrics: list[str]) -> dict[str, list[dict[str, Any]]]:
        real = self._images("real")
        perceptual = None
        if "lpips" in metrics:
            from diptych.pretrained.lpips_weights import read_lpips

            perceptual = read_lpips(self.weights["vgg16"], allow_pickle=self.allow_pickle).to(self.device)
        values: dict[str, list[float]] = {name: [] for name in metrics}
        for mine, other in track(self._pairs, "comparing pairs"):
            pair = self.generated.read(mine)[0], real.read(other)[0]
            if pair[0].size != pair[1].size:
                raise UserError(
                    f"{self.generated.name(mine)} has {pair[0].size} pixels and its pair {pair[1].size}: set a size"
                )
            for name in metrics:
                values[name].append(self._of_pair(name, pair, perceptual))
        return {name: [self._paired_result(name, values[name], perceptual)] for name in metrics}

    def _of_pair(self, name: str, pair: tuple[Image.Image, Image.Image], perceptual: Any) -> float:
        if name == "psnr":
            return image_psnr(*pair)
        if name == "ssim":
            return ssim(*pair)
        with torch.inference_mode():
            return float(perceptual(*(to_tensor([image]).to(self.device) for image in pair)))

    def _paired_result(self, name: str, values: list[float], perceptual: Any) -> dict[str, Any]:
        count = len(values)
        error = float(np.std(values, ddof=1) / np.sqrt(count)) if count > 1 else None
        result = self._result(name, float(np.mean(values)), None, {}, error=error)
        return result if name != "lpips" else result | {"features": {"network": perceptual.name}}


def measure_images(
    generated: str | Path,
    real: str | Path | None = None,
    metrics: Iterable[str] = ("fid",),
    *,
    config: MeasureConfig | None = None,
    processing: Processing | None = None,
    reference_processing: Processing | None = None,
    limit: int | None = None,
    **how: Any,
) -> list[dict[str, Any]]:
    """Measure generated images, alone or against real ones. Returns one result for each number, ready for JSON.

    Args:
        generated: a folder of images or shards, shards in a store, or an .npz of samples.
        real: the same, or an .npz of statistics; for fid, kid, precision-recall, cmmd, psnr, ssim and lpips.
        metrics: names from `METRICS`.
        processing: what is done to the generated images first.
        reference_processing: what is done to the real ones; as `processing` if none.
        limit: the first so many generated images alone.
        how: `weights` (kind of network -> path), `device`, `allow_pickle`, `offline`, `cache` of `Measurement`.

    Raises:
        UserError: images, weights, captions or pairs are missing or damaged, or too few.
    """
    reference = None if real is None else open_reference(real, reference_processing or processing)
    made = ImageSet(generated, processing, limit)
    return Measurement(made, reference, config or MeasureConfig(), **how).measure(metrics)


def open_reference(real: str | Path, processing: Processing | None) -> ImageSet | Path:
    """Images, or the path of an .npz of statistics."""
    return Path(real) if is_statistics(real) else ImageSet(real, processing)
