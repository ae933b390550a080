"""What is measured of generated images while a model is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from diptych.core.config import Config, Within


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Config):
    """Images of held-out examples, generated with the averaged weights and the same seeds each time, and compared with
    the real ones."""

    images: Annotated[int, Within(0, 2**20)] = 0
    """Of so many examples, the first of the held-out split; 0 is none. The Fréchet distance falls with their number:
    compare runs with the same."""
    every: Annotated[int, Within(1)] = 10_000
    """Steps between two evaluations; the last is after the last step."""
    features: Literal["judge", "inception", "clip"] = "judge"
    """Whose features are compared. `judge` needs no download and compares with nothing published; it and `clip` compare
    images with captions too."""
    weights: str | None = None
    """Where the weights of these lie, as for `diptych evaluate images`; none for the judge in the package."""
    allow_pickle: bool = False
    """Read weights of `inception` from a .pth file: its tensors, never code."""
    batch: Annotated[int, Within(1, 4096)] = 16
    """Images that a process generates at once."""

    def check(self) -> None:
        self.require(self.images != 1, "images", "be 0, or at least 2")
        some = self.features == "judge" or self.weights is not None
        self.require(some, "weights", f"name the weights of {self.features}")
