"""Cards that training runs on: their peak, as their makers state it for dense matrices, and their memory."""

from __future__ import annotations

from typing import NamedTuple

from diptych.core.errors import pick


class Card(NamedTuple):
    """A card."""

    title: str
    peak: float
    """TFLOP/s of dense bfloat16 matrix products with float32 sums; of float32 where it has no bfloat16."""
    memory: float
    """Memory in GB (10^9 bytes), as sold."""
    source: str
    """Where that is stated."""
    bf16: bool = True
    float32: float = 0.0
    """TFLOP/s in float32, without tensor cores."""


NVIDIA = "https://www.nvidia.com/en-us/data-center"
ADA = "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
CARDS = {
    "a100": Card("A100 SXM 80 GB", 312, 80, f"{NVIDIA}/a100", float32=19.5),
    "a100-40": Card("A100 SXM 40 GB", 312, 40, f"{NVIDIA}/a100", float32=19.5),
    "h100": Card("H100 SXM", 989.4, 80, f"{NVIDIA}/h100 (half of what is stated with sparsity)", float32=67),
    "h100-pcie": Card("H100 PCIe", 756, 80, "H100 PCIe datasheet, PB-11133 (half of that with sparsity)", float32=51),
    "h200": Card("H200 SXM", 989.4, 141, f"{NVIDIA}/h200 (half of what is stated with sparsity)", float32=67),
    "b200": Card("B200 SXM", 2250, 180, f"{NVIDIA}/dgx-b200 (an eighth of a DGX, dense)", float32=75),
    "l40s": Card("L40S", 362, 48, f"{NVIDIA}/l40s (half of what is stated with sparsity)", float32=91.6),
    "l4": Card("L4", 121, 24, f"{NVIDIA}/l4 (half of what is stated with sparsity)", float32=30.3),
    "a10": Card("A10", 125, 24, f"{NVIDIA}/products/a10-gpu", float32=31.2),
    "4090": Card("GeForce RTX 4090", 165.2, 24, f"{ADA}, appendix A", float32=82.6),
    "3090": Card("GeForce RTX 3090", 71, 24, "NVIDIA Ampere GA102 whitepaper, table 9", float32=35.6),
    "v100": Card("V100 SXM 32 GB, without bfloat16", 15.7, 32, f"{NVIDIA}/v100", bf16=False, float32=15.7),
    "t4": Card("T4, without bfloat16", 8.1, 16, f"{NVIDIA}/tesla-t4", bf16=False, float32=8.1),
}
"""By the names that `diptych plan --gpu` takes. Where a maker rounds, its number is kept."""


def card(name: str) -> Card:
    """The card of that name, in any case. A `UserError` lists what there is."""
    return CARDS[pick("GPU", name.lower(), CARDS)]
