"""Memory that `diptych plan` foresees beside what a training run takes: three recipes and variants of them.

    python benchmarks/plan_memory.py --out benchmarks/results/plan

Each is trained for two steps in a process of its own, by the training loop itself, with random weights and images of
zeros: on a GPU, where there is one, the peak of PyTorch's allocator (`torch.cuda.max_memory_allocated`); on the CPU the
peak of the process's resident memory (VmHWM) less what it had before the networks were built. The CPU's libraries take
room of their own for convolutions, which the plan does not count. Writes memory-cpu.md, or memory-cuda.md, and .json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CASES: dict[str, dict[str, tuple[str, ...]]] = {
    "cpu": {
        "emoji-latent": ("training.batch_size=16", "system.precomputed=cache/any"),
        "ldm-celebahq": ("training.batch_size=1",),
        "adm-64": ("training.batch_size=1",),
        "emoji-sr-128": ("training.batch_size=4",),
        "emoji-64-autoencoder": ("training.batch_size=32",),
    },
    "cuda": {
        "sd1": ("training.batch_size=16", "system.precomputed=cache/any"),
        "imagen-base": ("training.batch_size=32", "system.embed_text=ahead"),
        "adm-256": ("training.batch_size=16",),
        "kl-f8": ("training.batch_size=8",),
    },
}
"""Recipes, and what is changed of them so that they fit the machine."""
COMMON = ("training.steps=3", "training.accumulation=1", "training.workers=0", "training.warmup=0")
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
"""glibc returns the memory of each tensor when it is freed."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/plan"), metavar="FOLDER")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--only", metavar="RECIPE", help="one of them alone")
    parser.add_argument("--one", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.one:
        print(json.dumps(compared(*arguments.one)))
        return 0
    import torch

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    precision = "bf16" if kind == "cuda" else arguments.precision
    rows = []
    for name, changes in CASES[kind].items():
        if arguments.only in (None, name):
            words = [name, kind, *COMMON, *changes, f"training.precision={precision}", f"training.device={kind}"]
            done = subprocess.run(
                [sys.executable, __file__, "--one", *words],
                env={**os.environ, **ALLOCATOR},
                stdout=subprocess.PIPE,
                check=True,
                text=True,
            )
            rows.append({**json.loads(done.stdout.splitlines()[-1]), "changes": [*changes, precision]})
            print(line(rows[-1]), flush=True)
    where = torch.cuda.get_device_name() if kind == "cuda" else f"{os.cpu_count()} CPU cores ({platform.machine()})"
    if arguments.only is None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / f"memory-{kind}.json").write_text(
            json.dumps({"machine": where, "rows": rows}, indent=2) + "\n"
        )
        text = [f"Measured on {where}, PyTorch {torch.__version__}.", "", *HEAD, *map(line, rows), ""]
        (arguments.out / f"memory-{kind}.md").write_text("\n".join(text))
    return 0


HEAD = ("| recipe | changed | planned GiB | measured GiB | planned / measured |", "|-|-|-:|-:|-:|")


def line(row: dict[str, Any]) -> str:
    ratio = row["planned"] / row["measured"]
    changes = ", ".join(change.replace("training.", "").replace("system.", "") for change in row["changes"])
    return (
        f"| {row['recipe']} | {changes} | {row['planned'] / 2**30:.2f} | {row['measured'] / 2**30:.2f} | {ratio:.3f} |"
    )


def compared(name: str, kind: str, *assignments: str) -> dict[str, Any]:
    """Bytes as planned and as measured, in this process."""
    import torch

    from diptych.recipes import get
    from diptych.training.planning.outline import outlined
    from diptych.training.planning.plan import measure, memory_of
    from diptych.training.trainer import train

    recipe = get(name).override(assignments)
    outline = outlined(recipe, device=kind)
    half = recipe.training.precision == "bf16"
    step = measure(outline, recipe, recipe.training.batch_size, half, kind)  # type: ignore[arg-type]
    memory, optimizer_step = memory_of(outline, recipe, step)
    del outline
    torch.manual_seed(0)
    before = resident("VmRSS")
    if kind == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    real = outlined(recipe, device=kind, place=kind)
    peak, calls, loss = [0], [0], real.task.loss

    def counted(batch: dict[str, Any]) -> Any:
        calls[0] += 1
        if calls[0] == 3:  # two whole steps are behind, and no checkpoint is written yet
            peak[0] = torch.cuda.max_memory_allocated() if kind == "cuda" else resident("VmHWM") - before
            raise Measured
        return loss(batch)

    real.task.loss = counted  # type: ignore[method-assign]
    batch = real.batch(recipe, recipe.training.batch_size)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Measured):
        train(real.task, lambda positions: batch, recipe.training, Path(folder) / "run")
    return {"recipe": name, "planned": max(memory.total, optimizer_step), "measured": peak[0]}


class Measured(Exception):
    """The run has gone far enough."""


def resident(field: str) -> int:
    """A size in bytes of /proc/self/status."""
    for row in Path("/proc/self/status").read_text().splitlines():
        if row.startswith(f"{field}:"):
            return int(row.split()[1]) * 1024
    raise SystemExit(f"{field} is missing: this measures on Linux")


if __name__ == "__main__":
    sys.exit(main())
