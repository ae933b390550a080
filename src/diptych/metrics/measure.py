"""Measures of generated images, by name: each result says all that it depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch

from diptych.core.config import Config, Within
from diptych.core.errors import UserError, pick, warn
from diptych.core.version import version
from diptych.metrics.feature_files import Features, extract
from diptych.metrics.feature_networks import ClipFeatures, FeatureNetwork, InceptionFeatures, open_features
from diptych.metrics.feature_rows import FeatureRows
from diptych.metrics.frechet import Gaussian, frechet_distance, frechet_error
from diptych.metrics.image_set import ImageSet, Processing
from diptych.metrics.inception_score import inception_score
from diptych.metrics.kernels import SCALE, SEED, SIGMA, cmmd, kernel_inception_distance
from diptych.metrics.neighbours import manifolds
from diptych.metrics.npz_files import SAMPLES, npz_names
from diptych.metrics.pairs import mean_and_error, measure_pairs, numbered_pairs, open_lpips
from diptych.metrics.records import WITHOUT_REFERENCE
from diptych.metrics.statistics_files import has_statistics, read_statistics, write_statistics
from diptych.networks.lpips import Lpips

METRICS = {
    "fid": "Fréchet Inception distance",
    "kid": "kernel Inception distance",
    "is": "Inception Score",
    "precision-recall": "improved precision and recall, density and coverage",
    "clip-score": "cosine of image and caption under CLIP, times 100",
    "cmmd": "maximum mean discrepancy of CLIP's embeddings",
    "psnr": "peak signal-to-noise ratio in dB",
    "ssim": "structural similarity",
    "lpips": "learned perceptual image patch similarity, a distance",
}
"""Name -> what it is. The last three compare images in pairs, by name."""
Side = Literal["generated", "real"]
CAPTIONS = 256
"""That CLIP reads at a time."""
PAIRED = ("psnr", "ssim", "lpips")
ORIGINAL_RESIZE = {"clip-score": "clip", "cmmd": "torch-bicubic"}
"""Filters of metrics on CLIP, unless --features clip says another."""
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
    bootstrap: Annotated[int, Within(0, 10_000)] = 0
    """Resamples of the generated images from which FID's standard error is estimated; 0 for none."""


@dataclass
class Measurement:
    """One comparison of generated images with a reference. Networks are opened, and features read, once."""

    generated: ImageSet
    real: ImageSet | None
    """The images of the reference."""
    statistics: Path | None
    """An .npz of the reference's statistics, which `fid` takes in place of the images."""
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
        self._features: dict[tuple[Side, str, str], Features] = {}

    def measure(self, metrics: Iterable[str]) -> list[dict[str, Any]]:
        """The results, in the order of `metrics`.

        Raises a `UserError`, before anything is computed, for a metric that is unknown, lacks its reference, weights,
        captions or pairs, or has too few images.
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

    def save_statistics(self, path: Path, side: Side) -> None:
        """Write mean and covariance of one side's features as an .npz."""
        network = self._network(self.config.features, self.config.resize)
        features = self._extracted(side, network)
        about = {"features": network.describe(), "images": self._about_images(side, network)}
        write_statistics(path, Gaussian.of(features.values), about)

    def warn_of_left_out(self) -> None:
        """Say which files beside the images are not read."""
        for side in (self.generated, self.real):
            if side is not None:
                side.warn_of_left_out()

    def _check(self, name: str) -> None:
        if name not in WITHOUT_REFERENCE and self.real is None:
            if self.statistics is None:
                raise UserError(f"{name} compares with a reference: name a folder of real images, or statistics (.npz)")
            if name != "fid":
                raise UserError(f"{name} needs the images of the reference: {self.statistics} holds statistics alone")
        counts = [
            len(side) for side in (self.generated, None if name in WITHOUT_REFERENCE else self.real) if side is not None
        ]
        config = self.config
        least, setting = {
            "fid": (2, ""),
            "kid": (config.subset_size, f", or a smaller subset size than {config.subset_size}"),
            "is": (config.splits, f", or fewer splits than {config.splits}"),
            "precision-recall": (config.k + 1, f", or a smaller k than {config.k}"),
        }.get(name, (1, ""))
        if min(counts) < least:
            raise UserError(f"{name} needs {least:,} images or more on each side, not {min(counts):,}{setting}")
        if name == "lpips":
            self._lpips  # noqa: B018
        if name in PAIRED:
            self._pairs  # noqa: B018
        else:
            self._network_of(name)
        if name == "clip-score":
            self._captions  # noqa: B018

    def _network_of(self, metric: str) -> FeatureNetwork:
        kind = OWN_NETWORK.get(metric, self.config.features)
        chosen = self.config.resize if kind == self.config.features else None
        return self._network(kind, chosen or ORIGINAL_RESIZE.get(metric))

    def _network(self, kind: str, resize: str | None) -> FeatureNetwork:
        if kind not in self._networks:
            self._networks[kind] = open_features(
                kind, self.weights.get(kind), None, self.device, self.allow_pickle, self.offline
            )
        return self._networks[kind].with_resize(resize)

    def _images(self, side: Side) -> ImageSet:
        images = self.generated if side == "generated" else self.real
        assert images is not None, "checked before"
        return images

    def _extracted(self, side: Side, network: FeatureNetwork) -> Features:
        key = side, network.kind, network.resize
        if key not in self._features:
            self._features[key] = extract(self._images(side), network, self.config.batch, self.cache)
        return self._features[key]

    def _both(self, network: FeatureNetwork) -> tuple[FeatureRows, FeatureRows]:
        return self._extracted("generated", network).values, self._extracted("real", network).values

    def _result(
        self,
        metric: str,
        values: Mapping[str, Any],
        features: Mapping[str, Any] | FeatureNetwork | None,
        settings: Mapping[str, Any],
    ) -> dict[str, Any]:
        """What is printed and written: the number with all that it depends on."""
        network = features if isinstance(features, FeatureNetwork) else None
        about = network.describe() if network is not None else features
        result = {"metric": metric, **values, **({} if about is None else {"features": about}), "settings": settings}
        result["generated"] = self._about_images("generated", network)
        if self.real is not None and metric not in WITHOUT_REFERENCE:
            result["reference"] = self._about_images("real", network)
        return result | {"diptych": version()}

    def _about_images(self, side: Side, network: FeatureNetwork | None) -> dict[str, Any]:
        images = self._images(side)
        about = {"name": images.path, "images": len(images), "processing": images.processing.describe()}
        features = None if network is None else self._features.get((side, network.kind, network.resize))
        return about if features is None else about | {"sha256": features.sha256}

    def _fid(self) -> list[dict[str, Any]]:
        network = self._network_of("fid")
        features = self._extracted("generated", network).values
        generated = Gaussian.of(features)

        def distance() -> dict[str, Any]:
            value = frechet_distance(generated, real)
            if (resamples := self.config.bootstrap) < 2:
                return {"value": value}
            error = frechet_error(features, real, resamples, self.config.seed)
            return {"value": value, "error": error, "error_by": f"bootstrap of {resamples} resamples"}

        if self.statistics is None or (self.real is not None and network.kind != "inception"):
            real = Gaussian.of(self._extracted("real", network).values)
            result = self._result("fid", distance(), network, {})
            fewest = min(len(self.generated), len(self._images("real")))
        else:
            statistics = read_statistics(self.statistics)
            if (made_with := statistics.features) not in (None, network.describe()):
                raise UserError(f"{self.statistics} was made with other features ({made_with}): {network.describe()}")
            real = statistics.gaussian
            self._warn_of_processing(statistics.images.get("processing"))
            result = self._result("fid", distance(), network, {})
            result["reference"] = {"name": str(self.statistics), **statistics.images}
            if made_with is None:
                result["unknown"] = ["network, resize and images of the reference's statistics"]
            fewest = min(len(self.generated), real.count or network.width + 1)
        return [result | ({"fewer_images_than_dimensions": True} if fewest <= network.width else {})]

    def _warn_of_processing(self, stated: Any) -> None:
        """Say where the images of statistics were brought to a size in another way than the generated ones."""
        if not isinstance(stated, Mapping):
            return
        one, other = ({**about, "jpeg": None} for about in (stated, self.generated.processing.describe()))
        if one != other:
            warn(f"{self.statistics} is of images with {stated}, and generated ones have {other}: FID depends on it")

    def _kid(self) -> list[dict[str, Any]]:
        network, config = self._network_of("kid"), self.config
        generated, real = self._both(network)
        estimate = kernel_inception_distance(generated, real, config.subsets, config.subset_size, config.seed)
        settings = {"subsets": config.subsets, "subset_size": config.subset_size, "seed": config.seed}
        return [self._result("kid", {"value": estimate.mean, "deviation": estimate.deviation}, network, settings)]

    def _inception_score(self) -> list[dict[str, Any]]:
        network, config = self._network_of("is"), self.config
        assert isinstance(network, InceptionFeatures)
        logits = network.logits(self._extracted("generated", network).values)
        estimate = inception_score(logits, config.splits, config.seed)
        settings = {"splits": config.splits, "seed": config.seed}
        return [self._result("is", {"value": estimate.mean, "deviation": estimate.deviation}, network, settings)]

    def _manifolds(self) -> list[dict[str, Any]]:
        network, k = self._network_of("precision-recall"), self.config.k
        found = manifolds(*self._both(network), k)
        return [self._result(name, {"value": value}, network, {"k": k}) for name, value in found._asdict().items()]

    def _clip_score(self) -> list[dict[str, Any]]:
        network, captions = self._network_of("clip-score"), self._captions
        assert isinstance(network, ClipFeatures)
        images = self._extracted("generated", network).values
        cosines, cut = np.empty(len(captions)), 0
        for start in range(0, len(captions), CAPTIONS):
            texts, more = network.captions(captions[start : start + CAPTIONS])
            cosines[start : start + len(texts)] = (images[start : start + len(texts)] * texts).sum(1)
            cut += more
        if cut:
            warn(f"clip-score: {cut} captions are longer than CLIP reads, and are cut")
        # Hessel et al. 2021, equation 1, has 2.5 max(cos, 0); most of the field prints 100 cos.
        settings = {"scale": 100, "negative": "kept", "cut_captions": cut}
        settings["captions_sha256"] = sha256("\0".join(sorted(captions)).encode()).hexdigest()[:16]
        return [self._result("clip-score", mean_and_error(100 * cosines), network, settings)]

    def _cmmd(self) -> list[dict[str, Any]]:
        network = self._network_of("cmmd")
        value = cmmd(*self._both(network))
        return [self._result("cmmd", {"value": value}, network, {"sigma": SIGMA, "scale": SCALE})]

    @cached_property
    def _captions(self) -> list[str]:
        return [self.generated.caption(number) for number in range(len(self.generated))]

    @cached_property
    def _pairs(self) -> list[tuple[int, int]]:
        return numbered_pairs(self.generated, self._images("real"), part=self.generated.limited)

    @cached_property
    def _lpips(self) -> Lpips:
        if "vgg16" not in self.weights:
            raise UserError("lpips needs VGG16: name torchvision's file as --weights vgg16=PATH")
        return open_lpips(self.weights["vgg16"], self.allow_pickle, self.device)

    def _paired(self, metrics: list[str]) -> dict[str, list[dict[str, Any]]]:
        lpips = self._lpips if "lpips" in metrics else None
        measured = measure_pairs(self.generated, self._images("real"), self._pairs, metrics, lpips)
        networks = {"lpips": {"network": lpips.name}} if lpips is not None else {}
        results = {}
        for name in metrics:
            result = self._result(name, mean_and_error(measured.values[name]), networks.get(name), {})
            result["generated"]["sha256"], result["reference"]["sha256"] = measured.generated, measured.real
            results[name] = [result]
        return results


def measure_images(
    generated: str | Path,
    real: str | Path | None = None,
    metrics: Iterable[str] = ("fid",),
    *,
    config: MeasureConfig | None = None,
    processing: Processing | None = None,
    reference_processing: Processing | None = None,
    limit: int | None = None,
    reference_limit: int | None = None,
    weights: Mapping[str, str | Path] | None = None,
    device: torch.device | str = "cpu",
    allow_pickle: bool = False,
    offline: bool = False,
    cache: Path | None = None,
) -> list[dict[str, Any]]:
    """Measure generated images, alone or against real ones. Returns one result for each number, ready for JSON.

    Args:
        generated: a folder of images or shards, shards in a store, or an .npz of samples.
        real: the same, or an .npz of statistics; for all metrics but `is` and `clip-score`.
        metrics: names from `METRICS`.
        processing: what is done to the generated images first.
        reference_processing: what is done to the real ones; as `processing` if none.
        limit, reference_limit: the first so many images of a side alone.
        weights: network (inception, vgg16, clip, judge) -> where its weights lie.
        allow_pickle: read weights in .pth files too: their tensors, never code.
        offline: use only the local cache of the hub.
        cache: where features are kept; if none, under $DIPTYCH_CACHE/features.

    Raises:
        UserError: images, weights, captions or pairs are missing or damaged, or too few.
    """
    reference, statistics = open_reference(real, reference_processing, reference_limit, processing)
    measurement = Measurement(
        ImageSet(generated, processing, limit),
        reference,
        statistics,
        config or MeasureConfig(),
        weights or {},
        device,
        allow_pickle,
        offline,
        cache,
    )
    return measurement.measure(metrics)


def open_reference(
    real: str | Path | None,
    processing: Processing | None = None,
    limit: int | None = None,
    usual: Processing | None = None,
) -> tuple[ImageSet | None, Path | None]:
    """The images of a reference, and the path of its statistics. An .npz may have either, or both: ADM's have the
    statistics of a whole data set and some of its images.

    usual: how its images are processed where `processing` does not say; of statistics it asks for nothing."""
    if real is None:
        return None, None
    statistics = Path(real) if has_statistics(real) else None
    if statistics is not None and (limit is not None or SAMPLES not in npz_names(statistics)):
        if limit is not None:
            raise UserError(f"{real} holds statistics, of which no part can be taken: leave the limit out")
        if processing is not None and processing.jpeg is not None:
            raise UserError(f"{real} holds statistics, of images that cannot be made JPEGs now: leave that out")
        return None, statistics
    return ImageSet(real, processing or usual, limit), statistics
