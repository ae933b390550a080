"""VGG16's published weights up to fc2, under torchvision's names or timm's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from diptych.core.errors import UserError
from diptych.networks.vgg import Vgg16Features
from diptych.pretrained.lpips_weights import EXAMPLE, vgg16_path
from diptych.weights.lazy import LazyCheckpoint, fill, on_meta

HIDDEN = {"fc1": ("classifier.0", "pre_logits.fc1"), "fc2": ("classifier.3", "pre_logits.fc2")}
"""Our hidden layers in torchvision's file, and in timm's, where they are convolutions."""


def read_vgg16(path: str | Path, allow_pickle: bool = False) -> Vgg16Features:
    """VGG16 on the CPU in float32, in evaluation mode, frozen.

    Args:
        path: torchvision's file, a folder with model.safetensors, or a model of the hub.
        allow_pickle: read a .pth file that is named: its tensors, never code.

    Raises:
        UserError: there is no such file, it is damaged, a pickle without leave, or the weights of another network.
    """
    with on_meta():
        network = Vgg16Features()
    tensors = LazyCheckpoint.open(vgg16_path(path, allow_pickle), allow_pickle=allow_pickle)
    fill(network, _translated(tensors), tensors.source)
    return network.eval().requires_grad_(False)


def _translated(tensors: LazyCheckpoint) -> Mapping[str, Tensor]:
    found = {f"trunk.{key}": tensors[key] for key in tensors if key.startswith("features.")}
    for ours, names in HIDDEN.items():
        name = next((name for name in names if f"{name}.weight" in tensors), None)
        if name is None:
            raise UserError(
                f"{tensors.source} has no hidden layers of VGG16 ({' or '.join(names)}): give torchvision's file, or "
                f"{EXAMPLE} of the hub"
            )
        for part in ("weight", "bias"):
            if f"{name}.{part}" in tensors:  # `fill` names what is missing
                tensor = tensors[f"{name}.{part}"]
                # In timm's file 7 x 7 cells, channels first: in a row they are torchvision's.
                found[f"{ours}.{part}"] = tensor.flatten(1) if tensor.ndim == 4 else tensor
    return found
