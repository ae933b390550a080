"""Devices, and whether a model fits their memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from diptych.core.errors import UserError, hint

Module = TypeVar("Module", bound=nn.Module)
KINDS = ("cpu", "cuda", "mps")
"""Types of devices."""
CPU_BF16 = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
"""What `torch.cpu` is asked; versions that lack one of them do not know."""


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
        names = ("auto", *KINDS)
        raise UserError(f"unknown device {str(name)!r}: write auto, cpu, cuda, cuda:1 or mps{hint(name, names)}")
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= counts[device.type]:
        raise UserError(
            f"there is no device {str(name)!r} here: this PyTorch sees {torch.cuda.device_count()} CUDA devices"
            + (", and mps" if counts["mps"] else ", and no mps" if device.type == "mps" else "")
        )
    return device


def fast_bf16(device: torch.device) -> bool:
    """Whether a device is made for bfloat16: GPUs that have it, processors with AVX512-BF16 or AMX. On others it is
    emulated, and up to hundreds of times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in CPU_BF16)


def sent(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Values on a device. From the CPU the host does not wait until a GPU has come so far, as with a plain `to`: from
    pinned memory, the copy takes its turn there."""
    if values.device.type != "cpu" or device.type == "mps":  # which does not keep what is still to be copied
        return values.to(device)
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)


def settled(module: Module, device: torch.device) -> Module:
    """A frozen module on a device: moved the first time, and later not gone through, which costs more than a step of
    the host should."""
    first = next(module.parameters(), None)
    return module if first is not None and first.device == device else module.to(device)


LIMITS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)
"""Of a container's memory: the files of the limit and of what is in use, and of that what can be given up."""


def free_memory(system: Path = Path("/")) -> int | None:
    """Bytes of memory that can be had on the host, in its container if it is in one; none where Linux does not say."""
    free = list[int]()
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = (system / "proc/meminfo").read_text().splitlines()
        free.append(int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))) * 1024)
    for limit, used, stat, cached in LIMITS:
        with contextlib.suppress(OSError, KeyError, ValueError):  # of which "max" is one
            groups = system / "sys/fs/cgroup"
            entries = dict(line.split() for line in (groups / stat).read_text().splitlines())
            most, now = (int((groups / name).read_text()) for name in (limit, used))
            free.append(most - now + int(entries[cached]))
    return max(min(free), 0) if free else None


def require_memory(count: Callable[[], dict[str, int]], device: torch.device) -> None:
    """Raise a `UserError` where weights alone are more than a device holds, before a network is built.

    `count` builds the networks and gives the parameters of each by its name; text encoders are not counted.
    """
    try:
        with torch.device("meta"):
            each = count()
    except RuntimeError:  # a tensor of more numbers than can be counted
        raise UserError("the networks of this recipe are too large to be built: make them smaller") from None
    if device.type == "cuda":
        have = torch.cuda.get_device_properties(device).total_memory
    else:
        have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    need = 4 * sum(number for name, number in each.items() if not name.startswith("text"))
    if need > have:
        sizes = f"weights of {need / 2**30:,.0f} GiB, and {device} has {have / 2**30:,.0f}"
        raise UserError(f"the networks of this recipe have {sizes}: make them smaller")
