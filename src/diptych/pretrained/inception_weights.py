"""InceptionV3's published weights for the Fréchet Inception distance, batch norms folded into convolutions."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from diptych.core.errors import UserError
from diptych.networks.inception import CLASSES, InceptionV3
from diptych.weights.lazy import LazyCheckpoint, fill

FILE = "weights-inception-2015-12-05-6726825d.pth"
"""torch-fidelity's, on its release page; pytorch-fid's pt_inception-2015-12-05-6726825d.pth holds the same tensors."""
EPSILON = 0.001
"""Added to the variance in each of its batch norms."""


def read_inception(path: str | Path, allow_pickle: bool = False) -> InceptionV3:
    """InceptionV3 on the CPU in float32, in evaluation mode, frozen.

    Args:
        path: `FILE`, or the same tensors as safetensors; also a folder with model.safetensors.
        allow_pickle: read a .pth file that is named: its tensors, never code.

    Raises:
        UserError: there is no such file, it is damaged, a pickle without leave, or the weights of another network.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"no weights of InceptionV3 at {path}: give {FILE}, which torch-fidelity's releases have")
    tensors = LazyCheckpoint.open(path, allow_pickle=allow_pickle)
    classes = tensors.shapes.get("fc.weight", (CLASSES,))[0]
    if classes != CLASSES:
        raise UserError(
            f"{path} is an InceptionV3 of {classes} classes: distances are measured with the one of {CLASSES}, {FILE}"
        )
    with torch.device("meta"):
        network = InceptionV3()
    known = re.compile(r"AuxLogits\.|fc\.(weight|bias)$|.+\.(conv|bn)\.")
    if unknown := [key for key in tensors if not known.match(key)]:
        raise UserError(f"{path}: unexpected key {unknown[0]!r} for InceptionV3: give {FILE}")
    folded: dict[str, Tensor] = {}
    for name in network.state_dict():
        if name.startswith("fc."):
            folded[name] = _read(tensors, name)
        elif name.endswith(".weight"):
            folded |= _fold(tensors, name.removesuffix(".weight"))
    fill(network, folded, str(path))
    return network.to(memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]


def _fold(tensors: LazyCheckpoint, name: str) -> dict[str, Tensor]:
    """A convolution's kernel and bias: w γ / √(v + ε) and β - m γ / √(v + ε), for γ, β, mean m and variance v."""
    gamma, beta, mean, variance = (
        _read(tensors, f"{name}.bn.{part}").double() for part in ("weight", "bias", "running_mean", "running_var")
    )
    if (variance < 0).any():
        raise UserError(f"{tensors.source}: key '{name}.bn.running_var' has variances below zero")
    factor = gamma / (variance + EPSILON).sqrt()
    kernel = _read(tensors, f"{name}.conv.weight").double() * factor[:, None, None, None]
    return {f"{name}.weight": kernel.float(), f"{name}.bias": (beta - mean * factor).float()}


def _read(tensors: LazyCheckpoint, key: str) -> Tensor:
    if key not in tensors:
        raise UserError(f"{tensors.source}: key {key!r} of InceptionV3 is missing: give {FILE}")
    return tensors[key]
