"""LPIPS with its published weights: VGG16 under torchvision's names, the heads out of the PyPI package `lpips`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from diptych.core.errors import UserError
from diptych.networks.lpips import STAGES, Lpips
from diptych.pretrained.key_map import Piece, pieces
from diptych.weights.fingerprint import fingerprint
from diptych.weights.hub import fetch_model, hub_id
from diptych.weights.lazy import LazyCheckpoint, fill, on_meta

UNUSED = ("classifier.", "pre_logits.", "head.")
"""Of VGG16, what follows the convolutions: in torchvision's file, and in timm's."""
EXAMPLE = "timm/vgg16.tv_in1k"
"""A model of the hub that holds torchvision's weights as safetensors."""
INSTALLED = Path("weights", "v0.1", "vgg.pth")
"""Where the heads of version 0.1 for VGG16 lie in the package."""
LAYOUT = {f"{stage}.weight": Piece(f"lin{stage}.model.1.weight", ones=2) for stage in range(len(STAGES))}
"""Our heads there: 1x1 convolutions."""


def read_lpips(vgg16: str | Path, heads: str | Path | None = None, allow_pickle: bool = False) -> Lpips:
    """LPIPS, version 0.1 on VGG16, on the CPU in float32; its `name` ends in the fingerprint of these weights.

    Args:
        vgg16: VGG16 trained on ImageNet: a file, a folder with model.safetensors, or an id of the hub.
        heads: the file with the five linear heads; if none, that of the installed package `lpips`.
        allow_pickle: read .pth, .pt and .bin files that are named: their tensors, never code. The installed package's
            file is such a pickle and is read without this leave, its tensors alone: who installed a package trusts
            it with more. The package is not imported, and so needs none of what it asks for, torchvision above all.

    Raises:
        UserError: something is not there, is damaged, is a pickle without leave, or are the weights of another network.
    """
    with on_meta():
        distance = Lpips()
    trunk = LazyCheckpoint.open(vgg16_path(vgg16, allow_pickle), allow_pickle=allow_pickle)
    fill(distance.vgg16, trunk.only(key for key in trunk if not key.startswith(UNUSED)), trunk.source)
    file = heads_path(heads)
    linear = LazyCheckpoint.open(file, allow_pickle=allow_pickle or heads is None)
    fill(distance.heads, pieces(LAYOUT, linear), linear.source)
    for name, weight in distance.heads.named_parameters():
        if (weight < 0).any():  # a distance that could fall below zero, and a loss without a bottom
            raise UserError(f"{file}: key {LAYOUT[name].key!r} has negative weights, which no head of LPIPS has")
    distance.name += f", {fingerprint(distance)}"
    return distance


def vgg16_path(source: str | Path, pickles: bool = False) -> Path:
    """VGG16's file or folder: the path itself, or where the hub's model is on this machine, fetched if need be."""
    path = Path(source)
    if not path.exists():
        if (repository := hub_id(str(source))) is None:
            raise UserError(
                f"no VGG16 at {source}: give torchvision's file, a folder with model.safetensors, or a model of the "
                f"hub, such as {EXAMPLE}"
            )
        path = fetch_model(*repository, pickles=pickles)
    return path


def heads_path(source: str | Path | None = None) -> Path:
    """The file of the heads: the one named, or that of the package `lpips`, which is found without importing it."""
    if source is not None:
        if not Path(source).is_file():
            raise UserError(f"no heads of LPIPS at {source}: give the file {INSTALLED} of the package lpips")
        return Path(source)
    try:
        spec = importlib.util.find_spec("lpips")
    except ValueError:  # a module of that name that came from no file
        spec = None
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (path := Path(folder) / INSTALLED).is_file():
            return path
    raise UserError(
        "LPIPS's linear heads are in the package lpips, which is not installed here: `pip install --no-deps lpips` "
        "(--no-deps: without torchvision, which diptych does not need and which may not fit your PyTorch)"
    )
