"""LPIPS: the perceptual distance of two images by features of VGG16 (Zhang et al. 2018, section 3; version 0.1).

Its weights are published; `diptych.pretrained.lpips_weights` loads them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Of VGG16 (Simonyan and Zisserman 2015, table 1, column D): channels and convolutions of each."""
SMALLEST = 2 ** (len(STAGES) - 1)
"""Side in pixels of the smallest image that has a cell at the last stage."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Mean and deviation of ImageNet's red, green and blue, of values in [-1, 1]."""


def feature_distance(first: Tensor, second: Tensor, floor: float = 0.0) -> Tensor:
    """Squared difference of two maps of features (B, C, h, w), each cell's features scaled to unit length (eq. 1).

    Features shorter than `floor` are scaled as those of that length are, so that the gradient is bounded. In float32 at
    least, also under autocast.
    """
    return (unit_length(first, floor) - unit_length(second, floor)).square()


def unit_length(features: Tensor, floor: float) -> Tensor:
    features = at_least_float32(features)
    # Where all features are zero, this norm's gradient is zero; that of a root of squares is NaN.
    length = torch.linalg.vector_norm(features, dim=1, keepdim=True).clamp(min=floor)  # (B, 1, h, w)
    return features / (length + 1e-10)


def at_least_float32(x: Tensor) -> Tensor:
    """In float32, or in float64 where it is that: half precision is too coarse for differences."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_pair(first: Tensor, second: Tensor, smallest: int = 1) -> None:
    """Raise a `ValueError` unless both are images (B, 3, H, W) of one shape, of `smallest` pixels a side or more."""
    if first.shape != second.shape or first.ndim != 4 or first.shape[1] != 3:
        raise ValueError(f"two batches of images (B, 3, H, W) of one shape, not {first.shape} and {second.shape}")
    height, width = first.shape[-2:]
    if min(height, width) < smallest:
        raise ValueError(f"images of {smallest} x {smallest} pixels or more, not {height} x {width}")


class Vgg16(nn.Module):
    """The convolutions of VGG16: forward(x (B, 3, H, W)) -> the maps relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3.

    The first is (B, 64, H, W); each later stage halves the resolution of the one before, rounded down.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for stage, (width, convolutions) in enumerate(STAGES):
            if stage > 0:
                layers.append(nn.MaxPool2d(2))
            for _ in range(convolutions):
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(inplace=True)]
                inputs = width
        self.features = nn.Sequential(*layers)  # name and numbers are torchvision's

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                maps.append(x)  # a stage ends: (B, C, h, w)
            x = layer(x)
        return [*maps, x]


class Lpips(nn.Module):
    """forward(first (B, 3, H, W) in [-1, 1], second alike) -> distances (B,), none below zero.

    Frozen: no parameter requires a gradient, but gradients flow to the images. H and W are 16 or more. Distances mean
    something only with the published weights; before, the heads weigh all channels equally.
    """

    def __init__(self) -> None:
        super().__init__()
        self.name = "LPIPS (VGG16 v0.1)"
        """For a run's record and for tables; loading weights adds their fingerprint."""
        self.vgg16 = Vgg16()
        self.heads = nn.ModuleList(nn.Linear(width, 1, bias=False) for width, _ in STAGES)
        for weight in self.heads.parameters():
            nn.init.ones_(weight)  # (1, C)
        self.requires_grad_(False)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        check_pair(first, second, SMALLEST)
        # One after the other, not as one batch, so that no graph is built for an image without gradient.
        maps = zip(self.features(first), self.features(second), self.heads.parameters(), strict=True)
        # The mean over cells is taken before the channels are weighed: a head is linear, so their order is free.
        stages = [
            (feature_distance(one, other).mean((2, 3)) * weight).sum(1) for one, other, weight in maps
        ]  # each (B,)
        return torch.stack(stages).sum(0)

    def features(self, images: Tensor) -> list[Tensor]:
        images = at_least_float32(images)
        shift, scale = (images.new_tensor(values).view(3, 1, 1) for values in (SHIFT, SCALE))
        return self.vgg16((images - shift) / scale)
