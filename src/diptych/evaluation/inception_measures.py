"""FID, Inception Score, precision and recall inside a study, beside the judge's measures, as papers' tables have them.

Features of each image are written to a file as they come, and measures read that part by part, as those of
`diptych evaluate images` do.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from diptych.core.errors import UserError
from diptych.core.progress import bar
from diptych.core.version import version
from diptych.evaluation.runner import file_name
from diptych.metrics.feature_networks import InceptionFeatures
from diptych.metrics.feature_rows import FeatureRowsFile
from diptych.metrics.frechet import Gaussian, frechet_distance
from diptych.metrics.inception_score import inception_score
from diptych.metrics.kernels import SEED
from diptych.metrics.neighbours import manifolds
from diptych.models.retrieval import Mean

MEASURED = ("fid", "is", "precision", "recall")
"""In the order of the tables."""
FOLDER = "measures"
"""Of a study: a file for each row, which `diptych evaluate published` places beside the figures of papers."""


class InceptionMeasures:
    """Measures on the features of an InceptionV3. Its temporary files go with it."""

    def __init__(self, network: InceptionFeatures, splits: int = 10, k: int = 3, batch: int = 32) -> None:
        """splits: parts of the Inception Score; k: neighbours of precision and recall; batch: images at a time."""
        self.network, self.splits, self.k, self.batch = network, splits, k, batch
        self._folder = tempfile.TemporaryDirectory(prefix="diptych-inception-")
        self._files = 0

    def describe(self) -> dict[str, Any]:
        """All that its numbers depend on, apart from the images."""
        return {**self.network.describe(), "splits": self.splits, "k": self.k}

    def require(self, generated: int, real: int) -> None:
        """Raise a `UserError` where there will be too few images."""
        if generated < self.splits:
            raise UserError(
                f"the Inception Score in {self.splits} parts needs as many generated images, not {generated}: raise "
                "--images or lower --splits"
            )
        if min(generated, real) <= self.k:
            raise UserError(
                f"precision and recall with k = {self.k} need more images on each side, not {min(generated, real)}: "
                "raise --images or lower --k"
            )

    def features(self, images: Sequence[Image.Image]) -> FeatureRowsFile:
        """The features (N, 2048) of images, on disk."""
        self._files += 1
        path = Path(self._folder.name) / f"{self._files}.f32"
        with path.open("wb") as file, bar() as progress:
            task = progress.add_task("inception features", total=len(images))
            for start in range(0, len(images), self.batch):
                part = images[start : start + self.batch]
                values = self.network(torch.stack([self.network.prepare(image.convert("RGB")) for image in part]))
                if not torch.isfinite(values).all():
                    raise UserError(f"{self.network.title} gives NaN or Inf: use other weights")
                file.write(values.numpy().tobytes())
                progress.advance(task, len(part))
        return FeatureRowsFile(path, (len(images), self.network.width))

    def __call__(self, real: FeatureRowsFile, generated: Sequence[Image.Image]) -> dict[str, float]:
        """The measures of generated images against the features of real ones."""
        features = self.features(generated)
        score = inception_score(self.network.logits(features), self.splits, SEED)
        found = manifolds(features, real, self.k)
        values = {
            "fid": frechet_distance(Gaussian.of(features), Gaussian.of(real)),
            "is": score.mean,
            "precision": found.precision,
            "recall": found.recall,
        }
        features.path.unlink()
        return values

    def files(
        self,
        rows: Mapping[str, Mapping[str, Any]],
        images: tuple[int, int],
        size: int,
        data: Mapping[str, Any],
        protocol: Mapping[str, Any],
        perceptual: str | None = None,
    ) -> dict[str, str]:
        """The rows of a study as files such as `diptych evaluate images --out` writes, by their names in its folder.

        Args:
            rows: name -> measure -> value with its error: `MEASURED`, `psnr`, `ssim`, and `perceptual` where that is
                LPIPS. Others are passed over.
            images: generated and real ones, all of `size` pixels, the real ones of `data`.
            protocol: of the study, as `choices_of` reads it.
        """
        own: dict[str, Any] = {
            "is": {"splits": self.splits, "seed": SEED},
            **{name: {"k": self.k} for name in MEASURED[2:]},
        }
        lpips = {"lpips": "perceptual"} if str(perceptual).startswith("LPIPS") else {}
        columns = {name: name for name in (*MEASURED, "psnr", "ssim")} | lpips
        generated, real = ({"images": count, "processing": {"size": size}} for count in images)
        files = {}
        for row, values in rows.items():
            records = [
                {
                    "metric": metric,
                    "value": values[name]["value"],
                    "error": values[name].get("error"),
                    "features": self.network.describe() if metric in MEASURED else {},
                    "settings": own.get(metric, {}),
                    "generated": {"name": row, **generated},
                    "reference": {**data, **real},
                    "protocol": dict(protocol),
                    "diptych": version(),
                }
                for metric, name in columns.items()
                if values.get(name) is not None
            ]
            files[f"{FOLDER}/{file_name(row)}.json"] = json.dumps(records, indent=2, ensure_ascii=False) + "\n"
        return files


def over_seeds(values: Iterable[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """The mean of each measure over seeds with its standard error; of one seed, none."""
    rows = list(values)
    if len(rows) == 1:
        return {name: {"value": value, "error": None, "count": 1} for name, value in rows[0].items()}
    return {name: Mean.of(torch.tensor([row[name] for row in rows], dtype=torch.float64))._asdict() for name in rows[0]}
