"""InceptionV3's published weights for the Fréchet Inception distance, batch norms folded into convolutions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from diptych.core.errors import UserError
from diptych.networks.inception import CLASSES, InceptionV3
from diptych.weights.lazy import LazyCheckpoint, fill, on_meta, require_shapes

FILE = "weights-inception-2015-12-05-6726825d.pth"
"""torch-fidelity's, on its release page; pytorch-fid's pt_inception-2015-12-05-6726825d.pth holds the same tensors."""
NORM = ("weight", "bias", "running_mean", "running_var")
UNUSED = re.compile(r"^AuxLogits\.|\.num_batches_tracked$")
"""Keys of what is there for training."""
KIND = f"the InceptionV3 of distances ({FILE})"
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
    classes = next(iter(tensors.shapes.get("fc.weight", ())), CLASSES)
    if classes != CLASSES:
        raise UserError(
            f"{path} is an InceptionV3 of {classes} classes: distances are measured with the one of {CLASSES}, {FILE}"
        )
    with on_meta():
        network = InceptionV3()
    expected = network.state_dict()
    require_shapes(_stored(expected), tensors.only(key for key in tensors if not UNUSED.search(key)), str(path), KIND)
    folded: dict[str, Tensor] = {}
    for name in expected:
        if name.startswith("fc."):
            folded[name] = tensors[name]
        elif name.endswith(".weight"):
            folded |= _fold(tensors, name.removesuffix(".weight"))
    fill(network, folded, str(path))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    return network.eval().requires_grad_(False)


def _stored(expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names and shapes -> the file's, where each convolution has a batch norm in place of its bias."""
    stored = {}
    for name, tensor in expected.items():
        conv, _, part = name.rpartition(".")
        if conv == "fc":
            stored[name] = tensor
        elif part == "weight":
            stored[f"{conv}.conv.weight"] = tensor
        else:
            stored |= {f"{conv}.bn.{part}": tensor for part in NORM}
    return stored


def _fold(tensors: LazyCheckpoint, name: str) -> dict[str, Tensor]:
    """A convolution's kernel and bias: w γ / √(v + ε) and β - m γ / √(v + ε), for γ, β, mean m and variance v."""
    gamma, beta, mean, variance = (tensors[f"{name}.bn.{part}"].double() for part in NORM)
    if (variance < 0).any():
        raise UserError(f"{tensors.source}: key '{name}.bn.running_var' has variances below zero")
    factor = gamma / (variance + EPSILON).sqrt()
    kernel = tensors[f"{name}.conv.weight"].double() * factor[:, None, None, None]
    return {f"{name}.weight": kernel.float(), f"{name}.bias": (beta - mean * factor).float()}
