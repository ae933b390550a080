"""InceptionV3 as the Fréchet Inception distance uses it: the TensorFlow network of 2015-12-05.

The architecture is that of Szegedy et al. 2016 (figures 5 to 7, table 1). The graph that everyone measures with departs
from the paper in two ways: average pools leave their padding out, and the last block takes a maximum where all others
average. Each batch norm is folded into the convolution before it (`diptych.pretrained.inception_weights`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 299
"""Pixels a side of the image that it reads."""
CLASSES = 1008
"""Of its logits: ImageNet's 1000 and some that were never trained."""
FEATURES = 2048
Pool = Literal["mean", "max", "halve"]


@dataclass(frozen=True)
class Conv:
    """A convolution within a block. Padding keeps the size, unless it strides."""

    name: str
    """The published file's."""
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


Path = tuple[Conv | tuple[Conv, Conv], ...]
"""Convolutions one after another; two as a pair both read what comes before them, and are concatenated."""
POOLING = "branch_pool"
SQUARE, WIDE, HIGH = (3, 3), (1, 7), (7, 1)


def _chain(name: str, *layers: tuple[int, tuple[int, int]], stride: int = 1) -> Path:
    """Convolutions `name`_1, `name`_2, ..., each (width, kernel); the last one strides."""
    last = len(layers)
    return tuple(Conv(f"{name}_{i}", *layer, stride if i == last else 1) for i, layer in enumerate(layers, 1))


def _cells35(pooled: int) -> tuple[Path, ...]:
    """Figure 5: at 35 x 35."""
    return (
        (Conv("branch1x1", 64),),
        _chain("branch5x5", (48, (1, 1)), (64, (5, 5))),
        _chain("branch3x3dbl", (64, (1, 1)), (96, SQUARE), (96, SQUARE)),
        (Conv(POOLING, pooled),),
    )


def _cells17(width: int) -> tuple[Path, ...]:
    """Figure 6: at 17 x 17, with 7 x 7 factorised."""
    return (
        (Conv("branch1x1", 192),),
        _chain("branch7x7", (width, (1, 1)), (width, WIDE), (192, HIGH)),
        _chain("branch7x7dbl", (width, (1, 1)), (width, HIGH), (width, WIDE), (width, HIGH), (192, WIDE)),
        (Conv(POOLING, 192),),
    )


def _fork(name: str) -> tuple[Conv, Conv]:
    return Conv(f"{name}a", 384, (1, 3)), Conv(f"{name}b", 384, (3, 1))


CELLS8: tuple[Path, ...] = (
    (Conv("branch1x1", 320),),
    (Conv("branch3x3_1", 384), _fork("branch3x3_2")),
    (Conv("branch3x3dbl_1", 448), Conv("branch3x3dbl_2", 384, SQUARE), _fork("branch3x3dbl_3")),
    (Conv(POOLING, 192),),
)
"""Figure 7: at 8 x 8."""
BLOCKS: dict[str, tuple[Pool, tuple[Path, ...]]] = {
    "Mixed_5b": ("mean", _cells35(32)),
    "Mixed_5c": ("mean", _cells35(64)),
    "Mixed_5d": ("mean", _cells35(64)),
    "Mixed_6a": (
        "halve",
        (
            (Conv("branch3x3", 384, SQUARE, 2),),
            _chain("branch3x3dbl", (64, (1, 1)), (96, SQUARE), (96, SQUARE), stride=2),
        ),
    ),
    "Mixed_6b": ("mean", _cells17(128)),
    "Mixed_6c": ("mean", _cells17(160)),
    "Mixed_6d": ("mean", _cells17(160)),
    "Mixed_6e": ("mean", _cells17(192)),
    "Mixed_7a": (
        "halve",
        (
            _chain("branch3x3", (192, (1, 1)), (320, SQUARE), stride=2),
            _chain("branch7x7x3", (192, (1, 1)), (192, WIDE), (192, HIGH), (192, SQUARE), stride=2),
        ),
    ),
    "Mixed_7b": ("mean", CELLS8),
    "Mixed_7c": ("max", CELLS8),
}
"""Name -> how its pooling branch pools, and its other branches. A pooling branch that averages, or takes the maximum,
ends in the convolution `POOLING`; one that halves has none."""
STEM = (
    (Conv("Conv2d_1a_3x3", 32, SQUARE, 2), False),
    (Conv("Conv2d_2a_3x3", 32, SQUARE), False),
    (Conv("Conv2d_2b_3x3", 64, SQUARE), True),
    (Conv("Conv2d_3b_1x1", 80), False),
    (Conv("Conv2d_4a_3x3", 192, SQUARE), False),
)
"""The first convolutions, and whether each is padded. After the third and the fifth a maximum halves the size."""
POOLED = ("Conv2d_2b_3x3", "Conv2d_4a_3x3")


class InceptionBlock(nn.Module):
    """Branches side by side, concatenated: (B, inputs, H, W) -> (B, outputs, H, W), or about half of H and W."""

    def __init__(self, inputs: int, pool: Pool, branches: Sequence[Path]) -> None:
        super().__init__()
        self.pool, self.branches = pool, tuple(branches)
        self.outputs = inputs if pool == "halve" else 0
        for branch in branches:
            width = inputs
            for step in branch:
                pair = step if isinstance(step, tuple) else (step,)
                for conv in pair:
                    self.add_module(conv.name, convolution(width, conv, padded=conv.stride == 1))
                width = sum(conv.width for conv in pair)
            self.outputs += width

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._branch(x, branch) for branch in self.branches] + self._halved(x), 1)

    def _branch(self, x: Tensor, branch: Path) -> Tensor:
        if is_pooling(branch) and self.pool == "mean":
            # A convolution of one cell and a mean commute; so fewer channels are averaged.
            x = self.get_submodule(POOLING)(x)
            return F.relu_(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))
        if is_pooling(branch):
            x = F.max_pool2d(x, 3, 1, 1)
        for step in branch:
            pair = step if isinstance(step, tuple) else (step,)
            outputs = [F.relu_(self.get_submodule(conv.name)(x)) for conv in pair]
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)
        return x

    def _halved(self, x: Tensor) -> list[Tensor]:
        return [F.max_pool2d(x, 3, 2)] if self.pool == "halve" else []


class InceptionV3(nn.Module):
    """forward(images (B, 3, 299, 299) in [-1, 1)) -> features (B, 2048), the averages over the last 8 x 8 cells."""

    def __init__(self) -> None:
        super().__init__()
        width = 3
        for conv, padded in STEM:
            self.add_module(conv.name, convolution(width, conv, padded))
            width = conv.width
        for name, (pool, branches) in BLOCKS.items():
            block = InceptionBlock(width, pool, branches)
            self.add_module(name, block)
            width = block.outputs
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for conv, _ in STEM:
            x = F.relu_(self.get_submodule(conv.name)(x))
            if conv.name in POOLED:
                x = F.max_pool2d(x, 3, 2)  # at last (B, 192, 35, 35)
        for name in BLOCKS:
            x = self.get_submodule(name)(x)
        return x.mean((2, 3))  # of (B, 2048, 8, 8)

    def logits(self, features: Tensor) -> Tensor:
        """Logits (B, 1008) of features (B, 2048), without the bias, as the Inception Score's graph has them."""
        return features @ self.fc.weight.T


def convolution(inputs: int, conv: Conv, padded: bool) -> nn.Conv2d:
    padding = (conv.kernel[0] // 2, conv.kernel[1] // 2) if padded else 0
    return nn.Conv2d(inputs, conv.width, conv.kernel, conv.stride, padding)


def is_pooling(branch: Path) -> bool:
    """Whether a branch pools before its one convolution."""
    return isinstance(branch[0], Conv) and branch[0].name == POOLING


def resize_tf1(images: Tensor, side: int = SIDE) -> Tensor:
    """Bilinear as TensorFlow 1 has it: (B, H, W, 3) -> (B, side, side, 3). Corners are not aligned and there is no
    offset of half a pixel: output i is read at i · H / side, between its floor and the next pixel, the last repeated.

    Whatever the size, at most four pixels are read for one: shrinking is not antialiased.
    """
    for axis in (2, 1):
        length = images.shape[axis]
        place = torch.arange(side, dtype=torch.float32, device=images.device) * torch.tensor(length / side)
        below = place.long()
        low = images.index_select(axis, below)
        step = images.index_select(axis, (below + 1).clamp(max=length - 1)).sub_(low)
        images = step.mul_((place - below).view(-1, *[1] * (3 - axis))).add_(low)
    return images
