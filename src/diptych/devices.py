"""Where tensors live."""

from __future__ import annotations

import torch

from diptych.errors import UserError, hint

KINDS = ("cpu", "cuda", "mps")
"""What the networks run on."""


def find_device(name: str = "auto") -> torch.device:
    """`auto` is CUDA where there is one, else the CPU; a device that is not there raises a `UserError`.

    Apple's `mps` is never chosen by itself: it has no float64, and no test has run on it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in KINDS:
        known = ("auto", *KINDS)
        raise UserError(f"unknown device {str(name)!r}: write auto, cpu, cuda, cuda:1 or mps{hint(name, known)}")
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= counts[device.type]:
        raise UserError(
            f"there is no device {str(name)!r} here: this PyTorch sees {torch.cuda.device_count()} CUDA devices"
            + (", and mps" if counts["mps"] else ", and no mps" if device.type == "mps" else "")
        )
    return device
