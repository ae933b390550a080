"""Memory while images are made: what is free, the most that was used, and a lack of it in one line.

PyTorch is imported late: the command line asks here what an error means.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from diptych.core.errors import UserError

if TYPE_CHECKING:
    import torch

NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory", re.IGNORECASE)
"""What PyTorch says of the memory of CPUs, whose errors have no type of their own."""
ASKED = re.compile(r"tried to allocate (\d+ bytes|[\d.]+ ?\w*B)", re.IGNORECASE)
"""What it says of the tensor that had no room."""
WHERE = re.compile(r"GPU (\d+)")
REMEDIES = (
    "make fewer images at once (batch) or smaller ones (size), or open the model with offload=parts, offload=layers or "
    "weight_precision=int8 on a GPU; tile helps where the decoder is what does not fit. `diptych info MODEL --memory` "
    "says what each takes"
)


def lacks_memory(error: BaseException) -> bool:
    """Whether it is a lack of memory, of a GPU or of the host."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and bool(NO_MEMORY.search(str(error)))


def memory_error(error: BaseException) -> UserError:
    """What to tell a user of an error that `lacks_memory`, and what needs less."""
    text = str(error)
    where = f"cuda:{gpu[1]}" if (gpu := WHERE.search(text)) else "the GPU" if "CUDA" in text else "this machine"
    asked = f" for {found[1]} more" if (found := ASKED.search(text)) else ""
    return UserError(f"{where} has no memory left{asked}: {REMEDIES}")


def free_device_memory(device: torch.device) -> int | None:
    """Bytes that tensors can have of a GPU, with what PyTorch has reserved and not in use; none where it is not known:
    the host gives up other things for it."""
    import torch

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return None


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process had: of a GPU, as PyTorch took them from it; else of the host."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.0f} MiB"


def peak_line(device: torch.device) -> str:
    """What to tell of it: `peak memory 1.2 GiB (cuda:0)`."""
    name = str(device) if device.type != "cuda" or device.index is not None else "cuda:0"
    return f"peak memory {gib(peak_memory(device))} ({name})"
