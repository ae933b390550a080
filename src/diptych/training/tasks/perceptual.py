"""Perceptual distances between images for training and measuring first stages: LPIPS, or the judge's features.

The latter are put into LPIPS's formula. They need no weights from elsewhere, and are small and fast; what was trained
on them must not be measured by the judge alone, which it may have learned to please.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from diptych.core.config import Config
from diptych.core.errors import UserError, pick
from diptych.models.judge import Judge, load_judge
from diptych.networks.lpips import Lpips, at_least_float32, check_pair, feature_distance

KINDS = ("lpips", "judge")
FLOOR = 0.5
"""The length below which features are no longer scaled to unit length. The judge's stem has no bias: of mid-grey it
sees nothing, and the direction of nothing has a gradient without bounds. White is 2 long there, and most things longer.
"""


@dataclass(frozen=True, kw_only=True)
class PerceptualConfig(Config):
    """A perceptual distance as a term of the loss."""

    features: Literal["lpips", "judge"] = "lpips"
    """LPIPS on VGG16 with published weights (Zhang et al. 2018), or the features of a judge, which need no download."""
    path: str | None = None
    """Where VGG16's weights lie, or a judge; none for the hub's, or for the judge in the package. A model that is
    trained on a judge must not be measured by that one: train another with `diptych train judge training.seed=1`."""
    weight: float = 1.0
    """Weight of the distance."""

    def check(self) -> None:
        self.require(self.weight > 0, "weight", "be more than 0; leave the whole part none for no distance")

    def build(self) -> Lpips | JudgeDistance:
        """The frozen distance, its weights read."""
        return perceptual_distance(self.features, self.path)


class JudgeDistance(nn.Module):
    """forward(first (B, 3, H, W) in [-1, 1], second alike) -> distances (B,), none below zero.

    LPIPS (Zhang et al. 2018, eq. 1) with every weight 1 over the maps after the judge's stem and after each of its
    stages: of each map twice what the cosine of the features lacks to one, averaged over cells; the maps' values are
    summed, 4 at most for each. Features shorter than `FLOOR` keep their direction and are not made so long. Images of
    any size are resized to the judge's.

    The judge's image tower is copied, and the copy is frozen and stays in evaluation mode whatever holds it does:
    the statistics of its batch norms never change. Gradients flow to the images.
    """

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self.name = f"judge features, {judge.fingerprint()}"
        """What it is, for a run's record and for tables."""
        self.tower = copy.deepcopy(judge.picture_tower).requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> JudgeDistance:
        """Stays in evaluation mode: a batch norm in training would take part in what it measures."""
        return super().train(False)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        check_pair(first, second)
        maps = zip(self.tower.maps(at_least_float32(first)), self.tower.maps(at_least_float32(second)), strict=True)
        return torch.stack([feature_distance(one, other, FLOOR).sum(1).mean((1, 2)) for one, other in maps]).sum(0)


def perceptual_distance(
    kind: Literal["lpips", "judge"], path: str | None = None, *, allow_pickle: bool = False
) -> Lpips | JudgeDistance:
    """A frozen distance on the CPU, `distance(first, second) -> (B,)`, whose `name` says what it is.

    Args:
        kind: "lpips", or "judge" for the features of our judge.
        path: for "lpips" the weights of VGG16: a file, a folder or an id of the hub. For "judge" the folder of a run or
            of a model; if none, the judge that ships with diptych.
        allow_pickle: read VGG16's weights from a .pth file too: its tensors, never code.

    Raises:
        UserError: the weights are not there, are damaged, or are a pickle without leave.
    """
    if pick("perceptual distance", kind, KINDS) == "judge":
        return JudgeDistance(load_judge(Path(path) if path is not None else None))
    from diptych.pretrained.lpips_weights import EXAMPLE, read_lpips

    if path is None:
        raise UserError(f"LPIPS needs the weights of VGG16: give a file, a folder or a model of the hub ({EXAMPLE})")
    return read_lpips(path, allow_pickle=allow_pickle)
