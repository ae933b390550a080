"""3x3 convolutions with a quarter of the multiplications: Winograd's F(4x4, 3x3) (Lavin & Gray 2015, section 4.3).

Y = A^T [(G g G^T) . (B^T d B)] A over tiles d of 6 x 6 pixels, of which 4 x 4 come out. As a graph: patches, one matrix
product for the input transform, 36 products over channels, one for the output transform. The points 0, 1, -1, 1/2, -2
and infinity round less than Lavin's 0, 1, -1, 2, -2 (Alam et al. 2022): below 1e-5 for a whole U-Net in float32.
"""

from __future__ import annotations

import functools
import math
import os
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from openvino import opset15 as op
from torch import Tensor

from diptych.engines.openvino_graph import Recorder
from diptych.engines.openvino_ops import whole

POINTS = (Fraction(0), Fraction(1), Fraction(-1), Fraction(1, 2), Fraction(-2))
OUT, TAPS = 4, 3
TILE = OUT + TAPS - 1
"""Pixels a side of a tile: 6."""
LEAST_SIDE, LEAST_CHANNELS = 32, 64
"""Smaller images and fewer channels are as fast by OpenVINO's own convolution."""
SMALL_SIDE, SMALL_CHANNELS = 16, 256
"""Images of this side are faster too where so many channels are multiplied. Their kernels are the largest of a network,
and take four times their memory here: those of Stable Diffusion 1.x 3 GB."""
SHARE = 8
"""Kernels for small images may take this part of the machine's memory."""


@functools.cache
def transforms() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A^T (4, 6), G (6, 3) and B^T (6, 6), by Toom and Cook at `POINTS` and infinity."""
    finite = range(len(POINTS))
    scale = [math.prod((POINTS[i] - POINTS[j] for j in finite if j != i), start=Fraction(1)) for i in finite]
    at = [[*(POINTS[i] ** k for i in finite), Fraction(k == OUT - 1)] for k in range(OUT)]
    g = [[POINTS[i] ** k / scale[i] for k in range(TAPS)] for i in finite] + [
        [Fraction(k == TAPS - 1) for k in range(TAPS)]
    ]
    bt = [[*_polynomial(POINTS[:i] + POINTS[i + 1 :]), Fraction(0)] for i in finite] + [_polynomial(POINTS)]
    a, b, c = (np.array([[float(value) for value in row] for row in matrix]) for matrix in (at, g, bt))
    return a, b, c


def _polynomial(roots: tuple[Fraction, ...]) -> list[Fraction]:
    """Coefficients of the product of (x - root), lowest first."""
    made = [Fraction(1)]
    for root in roots:
        made = [
            (made[i - 1] if i else Fraction(0)) - (root * made[i] if i < len(made) else 0) for i in range(len(made) + 1)
        ]
    return made


def kernel_transform(weight: Tensor) -> np.ndarray:
    """G g G^T of a kernel (O, C, 3, 3), in float64: (36, O, C) float32."""
    g = torch.from_numpy(transforms()[1])
    columns, made = torch.kron(g, g).T.contiguous(), torch.empty(TILE * TILE, *weight.shape[:2])  # (9, 36)
    for start in range(0, len(weight), 64):  # few at a time, for the processor's cache
        some = weight[start : start + 64].double().flatten(2)
        made[:, start : start + 64] = (some @ columns).permute(2, 0, 1)
    return made.numpy()


class Convolutions:
    """Makes the nodes of a network's convolutions, where this is faster.

    memory: bytes that kernels for small images may take; a share of the machine's if none, so that the same machine
      always chooses the same.
    """

    def __init__(self, memory: int | None = None) -> None:
        self.left = total_memory() // SHARE if memory is None else memory

    def __call__(self, graph: Recorder, x: Tensor, weight: Tensor) -> Any:
        """The node of a 3x3 convolution of stride 1 with a border of zeros, or none where OpenVINO's own is to be."""
        side, channels = min(x.shape[-2:]), min(weight.shape[:2])
        if id(weight) not in graph.values or side < SMALL_SIDE or channels < LEAST_CHANNELS:
            return None
        if side < LEAST_SIDE:
            bytes_needed = 4 * TILE * TILE * weight.shape[0] * weight.shape[1]
            if channels < SMALL_CHANNELS or bytes_needed > self.left:
                return None
            self.left -= bytes_needed
        return convolution(graph, x, weight)


def total_memory() -> int:
    """Bytes of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def convolution(graph: Recorder, x: Tensor, weight: Tensor) -> Any:
    """The node of a 3x3 convolution of stride 1 with a border of zeros."""
    rows, channels, height, width = x.shape
    made = weight.shape[0]
    at, _, bt = transforms()
    high, wide = -(-height // OUT), -(-width // OUT)  # tiles
    tiles, square = rows * high * wide, TILE * TILE
    after = [0, 0, 1 + OUT * high - height, 1 + OUT * wide - width]
    padded = op.pad(graph.node(x), whole([0, 0, 1, 1]), whole(after), "constant", graph.node(0.0))
    node = op.extract_image_patches(padded, [TILE, TILE], [OUT, OUT], [1, 1], "VALID")  # (B, 36 C, high, wide)
    node = op.reshape(node, whole([rows, square, channels * high * wide]), False)
    node = node if rows == 1 else op.transpose(node, whole([1, 0, 2]))
    node = op.reshape(node, whole([square, rows * channels * high * wide]), False)
    node = op.matmul(op.constant(np.kron(bt, bt).astype(np.float32)), node, False, False)  # B^T d B
    if rows > 1:
        node = op.reshape(node, whole([square, rows, channels, high * wide]), False)
        node = op.transpose(node, whole([0, 2, 1, 3]))
    node = op.reshape(node, whole([square, channels, tiles]), False)
    node = op.matmul(op.constant(kernel_transform(graph.values[id(weight)])), node, False, False)  # (36, O, tiles)
    node = op.reshape(node, whole([square, made * tiles]), False)
    node = op.matmul(op.constant(np.kron(at, at).astype(np.float32)), node, False, False)  # A^T m A
    node = op.reshape(node, whole([OUT, OUT, made, rows, high, wide]), False)
    node = op.transpose(node, whole([3, 2, 4, 0, 5, 1]))
    node = op.reshape(node, whole([rows, made, OUT * high, OUT * wide]), False)
    if (OUT * high, OUT * wide) == (height, width):
        return node
    return op.slice(node, whole([0, 0]), whole([height, width]), whole([1, 1]), whole([2, 3]))
