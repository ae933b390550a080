"""The table of the super-resolution study: the measures of the paper's table 5, a column for each model."""

from __future__ import annotations

from typing import Any

from diptych.evaluation.report import number, short_name, signed

MEASURES = {
    "psnr": ("PSNR, dB", 2),
    "ssim": ("SSIM", 4),
    "perceptual": ("perceptual", 4),
    "consistency": ("consistency, dB", 1),
}
"""Names in tables, and decimal places. Consistency is the PSNR of the result, downsampled again, against the input."""
LETTERS = 17
"""Of a name on the contact sheet."""


def arm_lines(row: dict[str, Any]) -> dict[str, str]:
    """The lines of one arm in the table."""
    lines = {"parameters": f"{row['parameters'] / 1e6:.1f} M"} if "parameters" in row else {}
    distance = row["frechet"]
    lines["Fréchet (judge)"] = f"{distance['value']:.3f}" if distance["error"] is None else number(distance, 3)
    lines |= {head: number(row[name], places) for name, (head, places) in MEASURES.items() if name in row}
    ahead = row.get("margin", {})
    return lines | {
        f"{head.split(',')[0]}, to bicubic": signed(ahead[name], places)
        for name, (head, places) in MEASURES.items()
        if name in ahead and name != "consistency"
    }


def shortened(name: str) -> str:
    """A name in `LETTERS` letters: names that begin alike differ at their ends."""
    name = short_name(name).partition(",")[0]
    return name if len(name) <= LETTERS else f"…{name[1 - LETTERS :]}"
