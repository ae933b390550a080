"""The quality of generated images while a model is trained: distances to real ones, and how they fit their captions.

Examples, seeds and noise are the same each time, and in each run with the same data and seed, so that curves compare.
Images are generated in batches that do not depend on the number of processes, which share them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from diptych.core.devices import settled
from diptych.core.errors import UserError
from diptych.core.images import to_tensor
from diptych.core.memory_use import lacks_memory
from diptych.core.terminal import print_err
from diptych.metrics.feature_networks import ClipFeatures, JudgeFeatures, open_features
from diptych.metrics.frechet import frechet_distance
from diptych.metrics.kernels import kernel_inception_distance
from diptych.metrics.pixel_measures import WINDOW, image_psnr, ssim
from diptych.training.distributed import Team
from diptych.training.logger import Counted
from diptych.training.prefetch import BatchAt, prefetched
from diptych.training.tasks.perceptual import JudgeDistance
from diptych.training.trainable import Generating, Trainable, preparation
from diptych.training.training_config import TrainingConfig

SUBSET, SUBSETS = 1000, 100
"""Images in a subset of KID, and how many are drawn, as usual; fewer images are one subset."""
OFF = "training.evaluation.images=0 trains without"


class MeasuredBatch(NamedTuple):
    """What is measured of a batch, a row an image."""

    generated: np.ndarray
    """Features (B, D)."""
    real: np.ndarray
    """Features (B, D)."""
    means: dict[str, np.ndarray]
    """(B,) each."""
    decoded: bool
    """Whether the real ones are decoded from what was precomputed."""
    cut: int
    """Captions that are longer than CLIP reads."""


class SampleQuality:
    """What `TrainingConfig.evaluation` asks for."""

    def __init__(self, trainable: Trainable, batch_at: BatchAt | None, config: TrainingConfig, team: Team) -> None:
        """batch_at: of held-out examples. A `UserError` where there are too few of them, the model generates nothing,
        or weights are missing."""
        self.config, asked = config, config.evaluation
        if not isinstance(trainable, Generating):
            raise UserError(f"a model of this kind generates nothing that could be evaluated: {OFF}")
        if batch_at is None:
            raise UserError(f"evaluation needs held-out images, and there are none: raise data.held_out; {OFF}")
        count = getattr(batch_at, "identity", {}).get("count", asked.images)
        if count < asked.images:
            raise UserError(
                f"training.evaluation.images must be at most {count}, as many as are held out, not {asked.images}: "
                "lower it, or raise data.held_out"
            )
        self.trainable, self.generating, self.batch_at, self.team = trainable, trainable, batch_at, team
        self.network = open_features(asked.features, asked.weights, allow_pickle=asked.allow_pickle)
        self._perceptual: JudgeDistance | None = None
        self._warned = False

    def measure(self, counted: Counted) -> dict[str, float]:
        """Generate and compare, with the weights that the module has now. To be called in all processes; the numbers
        are the main one's."""
        began, failed, mine = time.monotonic(), None, dict[int, MeasuredBatch]()
        try:
            mine = self._own_rows(counted)
        except Exception as error:  # all processes are to hear of it, and not wait
            failed, cause = self._said(error), error
        else:
            cause = None
        rows = self.team.gather((failed, mine))
        if stopped := next((said for said, _ in rows if said is not None), None):
            raise UserError(f"evaluation has failed: {stopped}; checkpoints stay, and {OFF}") from cause
        if not self.team.main:
            return {}
        parts = {number: part for _, some in rows for number, part in some.items()}
        found = self._numbers([parts[number] for number in sorted(parts)])
        return {**found, "seconds": time.monotonic() - began}

    def _said(self, error: Exception) -> str:
        if isinstance(error, UserError):
            return str(error)
        if lacks_memory(error):
            batch = self.config.evaluation.batch
            return f"no memory is left on {self.team.device}: lower training.evaluation.batch (now {batch})"
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0]}"

    def _own_rows(self, counted: Counted) -> dict[int, MeasuredBatch]:
        """What this process measures: batch number -> rows."""
        count, size = self.config.evaluation.images, self.config.evaluation.batch
        parts = [list(range(start, min(start + size, count))) for start in range(0, count, size)]
        mine = self.team.share(range(len(parts)))
        threads = dataclasses.replace(self.config, worker_kind="threads")  # those of training go on
        pieces, prepare = [parts[number] for number in mine], preparation(self.trainable)
        self.network.to(self.team.device)
        try:
            with contextlib.closing(prefetched(self.batch_at, pieces, threads, self.team.device, prepare)) as batches:
                rows = dict[int, MeasuredBatch]()
                for number, batch in zip(mine, batches, strict=True):
                    rows[number] = self._rows(parts[number], batch)
                    counted(min(count, len(rows) * size * self.team.size), count)
                return rows
        finally:
            self.network.to("cpu")  # the memory is for training

    def _rows(self, positions: list[int], batch: dict) -> MeasuredBatch:
        """Of one batch; its images are generated with their positions as seeds."""
        made, real, paired, captions, decoded = self.generating.generated(batch, positions)
        with torch.autocast(self.team.device.type, enabled=False):
            features, real_features = self._features(made), self._features(real)
            means, cut = dict[str, np.ndarray](), 0
            if captions is not None:
                means, cut = self._alignment(features, real_features, captions)
            if paired:
                means |= self._differences(made, real)
        return MeasuredBatch(features, real_features, means, decoded, cut)

    def _features(self, images: Sequence[Image.Image]) -> np.ndarray:
        prepared = torch.stack([self.network.prepare(image) for image in images])
        features = self.network(prepared).numpy()
        if not np.isfinite(features).all():
            raise UserError(f"features of {self.config.evaluation.features} are not finite: its weights are damaged")
        return features

    def _alignment(self, made: np.ndarray, real: np.ndarray, captions: list[str]) -> tuple[dict[str, np.ndarray], int]:
        """The cosine of image and caption, of generated and of real images, with CLIP times 100; and how many captions
        were cut."""
        network = self.network
        if isinstance(network, ClipFeatures):
            words, cut = network.captions(captions)
            return {"clip_score": 100 * (made * words).sum(1), "clip_score_real": 100 * (real * words).sum(1)}, cut
        if isinstance(network, JudgeFeatures):
            words = network.judge.captions(captions).numpy()
            sides = {"alignment_judge": made, "alignment_judge_real": real}
            places = {name: network.judge.place(torch.from_numpy(side)).numpy() for name, side in sides.items()}
            return {name: (place * words).sum(1) for name, place in places.items()}, 0
        return {}, 0

    def _differences(self, made: list[Image.Image], real: list[Image.Image]) -> dict[str, np.ndarray]:
        """Of images that ought to be equal: PSNR in dB, SSIM, and with the judge a perceptual distance."""
        pairs = list(zip(made, real, strict=True))
        found = {"psnr": np.array([image_psnr(*pair) for pair in pairs])}
        if min(real[0].size) >= WINDOW:
            found["ssim"] = np.array([ssim(*pair) for pair in pairs])
        if isinstance(self.network, JudgeFeatures):
            self._perceptual = self._perceptual or JudgeDistance(self.network.judge)
            distance = settled(self._perceptual, self.team.device)
            sides = (to_tensor(side).to(self.team.device) for side in (made, real))
            found["perceptual_judge"] = distance(*sides).float().cpu().numpy()
        return found

    def _numbers(self, parts: list[MeasuredBatch]) -> dict[str, float]:
        """From the rows of all images, in the order of the examples."""
        made = np.concatenate([part.generated for part in parts])
        real = np.concatenate([part.real for part in parts])
        if not self._warned:
            self._warned = True
            if parts[0].decoded:
                print_err("evaluation: compared with what the first stage decodes of the precomputed images (_decoded)")
            if cut := sum(part.cut for part in parts):
                print_err(f"evaluation: {cut} of {len(made)} captions are longer than CLIP reads, and are cut")
        name = self.config.evaluation.features + ("_decoded" if parts[0].decoded else "")
        size = min(len(made), SUBSET)
        kid = kernel_inception_distance(made, real, SUBSETS if len(made) > SUBSET else 1, size)
        found = {f"frechet_{name}": frechet_distance(made, real), f"kid_{name}": kid.mean}
        means = {key: np.concatenate([part.means[key] for part in parts]) for key in parts[0].means}
        return found | {key: float(values.mean()) for key, values in means.items()}
