"""What training and sampling share of `torch.compile` and CUDA graphs."""

from __future__ import annotations

import math

from torch import Tensor

SHAPES_OF_A_BLOCK = 8
"""In training and not, with a last smaller batch; PyTorch's own limit is as many for all blocks together."""


def allow_recompiling(blocks: int, shapes: int = 1) -> None:
    """Let so many blocks be compiled for so many shapes of images; beyond its limit PyTorch would run others as they
    are."""
    import torch._dynamo

    dynamo = torch._dynamo.config
    most = SHAPES_OF_A_BLOCK * blocks * shapes
    dynamo.recompile_limit = max(dynamo.recompile_limit, most)  # type: ignore[assignment]
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, most)  # type: ignore[assignment]


def relative(own: Tensor, other: Tensor) -> float:
    """|own - other| / |own|; infinite where they cannot be compared."""
    if own.shape != other.shape:
        return math.inf
    off, size = float((own.float() - other.float()).norm()), float(own.float().norm())
    return 0.0 if off == 0 else off / size if size and math.isfinite(off) else math.inf


def reason(error: BaseException) -> str:
    """Why something failed, in a line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
