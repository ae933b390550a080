"""Published trainings of Stable Diffusion beside what `diptych plan` says of them.

    python benchmarks/plan_published.py --out benchmarks/results/plan

FLOPs are counted from the recipe `sd1`, or from its U-Net with Stable Diffusion 2's changes, with the first stage and
the text encoder in the step where they were. One utilisation is assumed for each kind of software, not for each row:

- 2022, latent-diffusion's code: float32 with TF32 where PyTorch's defaults allowed it, activations computed again in
  the backward pass (`use_checkpoint: True`), parts of 4 images, first stage and text encoder in each step: 6.5 % of the
  bfloat16 peak.
- 2023 and later: half precision, fused attention, channels last, large parts, latents precomputed: 28 %.

The last column is the utilisation that each published figure means by itself. Writes published.md and .json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

STACKS = {"2022": 0.065, "2023": 0.28}
SD2 = (
    *("system.model.unet.heads=none", "system.model.unet.head_width=64", "system.model.unet.context_width=1024"),
    *("system.model.unet.linear_projection=true", "system.model.text.width=1024"),
)
CARD1 = "https://github.com/CompVis/stable-diffusion/blob/main/Stable_Diffusion_v1_Model_Card.md"
CARD2 = "https://github.com/Stability-AI/stablediffusion/blob/main/modelcard.md"
MOSAIC = "https://github.com/mosaicml/diffusion"
MLPERF = "https://github.com/mlcommons/training_results_v4.0"


class Phase(NamedTuple):
    """Steps at a size."""

    size: int
    steps: int


class Published(NamedTuple):
    """A published training."""

    name: str
    stack: str
    gpu: str
    figure: float
    source: str
    sd2: bool = False
    phases: tuple[Phase, ...] = ()
    """With these, `figure` is GPU-hours; else images a second of a GPU at `size`."""
    size: int = 512
    batch: int = 2048


ROWS = (
    Published(
        "Stable Diffusion 1.1 to 1.4, GPU-hours",
        "2022",
        "a100-40",
        150_000,
        CARD1,
        phases=(Phase(256, 237_000), Phase(512, 194_000 + 515_000 + 195_000 + 225_000)),
    ),
    Published(
        "Stable Diffusion 2.0, base and 768, GPU-hours",
        "2022",
        "a100-40",
        200_000,
        CARD2,
        sd2=True,
        phases=(Phase(256, 550_000), Phase(512, 850_000 + 150_000), Phase(768, 140_000)),
    ),
    Published("MosaicML, SD2 at 256 px, 8 GPUs, images/s a GPU", "2023", "a100", 1100 / 8, MOSAIC, True, size=256),
    Published("MosaicML, SD2 at 512 px, 8 GPUs, images/s a GPU", "2023", "a100", 290 / 8, MOSAIC, True),
    Published("MosaicML, SD2 at 512 px, 128 GPUs, images/s a GPU", "2023", "a100", 4590 / 128, MOSAIC, True),
    Published("MLPerf Training 4.0, SD2 at 512 px, images/s a GPU", "2023", "h200", 129, MLPERF, True),
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/plan"), metavar="FOLDER")
    arguments = parser.parse_args(argv)
    found = [planned(row) for row in ROWS]
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = "\n".join(["\n".join(HEAD), *(line(row) for row in found), ""])
    (arguments.out / "published.md").write_text(text)
    (arguments.out / "published.json").write_text(json.dumps(found, indent=2) + "\n")
    print(text, end="")
    return int(any(abs(row["planned"] / row["published"] - 1) > 0.3 for row in found))


HEAD = (
    "| training | GPU | assumed | published | planned | planned / published | implied |",
    "|-|-|-:|-:|-:|-:|-:|",
)


def line(row: dict) -> str:
    """A row of the table."""
    digits = "{:,.0f}" if row["published"] >= 1000 else "{:.1f}"
    values = (digits.format(row["published"]), digits.format(row["planned"]))
    ratio = row["planned"] / row["published"]
    return (
        f"| [{row['training']}]({row['source']}) | {row['gpu']} | {row['utilisation']:.1%} | {values[0]} | {values[1]} "
        f"| {ratio:.2f} | {row['implied']:.1%} |"
    )


def planned(row: Published) -> dict:
    """The published figure, what is planned, and the utilisation that the figure means."""
    from diptych.training.planning.cards import card

    assumed, peak = STACKS[row.stack], card(row.gpu).peak * 1e12
    if row.phases:
        work = sum(phase.steps * row.batch * flops(phase.size, row.sd2, row.stack) for phase in row.phases)
        full = work / peak / 3600  # hours of GPUs that do nothing else
        value, implied = full / assumed, full / row.figure
    else:
        full = peak / flops(row.size, row.sd2, row.stack)
        value, implied = full * assumed, row.figure / full
    return {
        "training": row.name,
        "gpu": card(row.gpu).title,
        "utilisation": assumed,
        "published": row.figure,
        "planned": value,
        "implied": implied,
        "source": row.source,
    }


KNOWN: dict[tuple[int, bool, str], float] = {}


def flops(size: int, sd2: bool, stack: str) -> float:
    """FLOPs of an image in training, as that software ran it."""
    from diptych.recipes import get
    from diptych.training.planning.outline import outlined
    from diptych.training.planning.plan import measure

    if (size, sd2, stack) in KNOWN:
        return KNOWN[size, sd2, stack]
    changes = [f"data.size={size}", f"system.model.size={size}", *(SD2 if sd2 else ())]
    if stack == "2023":
        changes.append("system.precomputed=cache/any")
    recipe = get("sd1").override(changes)
    outline = outlined(recipe)
    step = measure(outline, recipe, 1, half=True)
    total = sum(step.forward.values()) + step.backward
    if stack == "2022":
        total += step.forward["unet"]  # once more in the backward pass
    KNOWN[size, sd2, stack] = total
    return total


if __name__ == "__main__":
    sys.exit(main())
