"""Where tensors live."""

from __future__ import annotations

import torch

from diptych.errors import UserError


def find_device(name: str = "auto") -> torch.device:
    """`auto` is CUDA where there is one, else the CPU; a device that is not there raises a `UserError`."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}: write auto, cpu, cuda or cuda:0") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"there is no device {name!r} here: this PyTorch sees {torch.cuda.device_count()} CUDA devices")
    return device
