"""What bf16 and int8 cost in quality on a CPU: images of the same prompts and seeds, beside those of float32.

    python -m benchmarks.cpu_precision --data data/emoji-128 [--model latent] [--stop 2] [--images 200]
    python -m benchmarks.cpu_precision --report            the table again, from what is stored

The seen prompts of `diptych evaluate`, by OpenVINO. Measured by the judge in the package as in `benchmarks.few_steps`:
naming, alignment, the Fréchet distance from the real drawings, what share of float32's a precision keeps; and how far
its images are from float32's, in levels of 255. Int8 is calibrated as `diptych.load` does it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import diptych
from benchmarks.common import processor, run_script
from benchmarks.few_steps import Scores, summary
from diptych.core.disk import write_text
from diptych.core.errors import UserError

PRECISIONS = ("float32", "bf16", "int8")
HEAD = ("precision", "top-1, %", "top-5, %", "alignment", "Fréchet", "of float32: top-5, %", "alignment, %")
APART = ("mean difference", "of the worst image", "largest")


def opened(source: str) -> dict[str, Any]:
    """The model in each precision that this machine has."""
    models = {}
    for precision in PRECISIONS:
        try:
            models[precision] = diptych.load(source, "cpu", engine="openvino", precision=precision)
        except UserError as reason:  # bf16, where the processor is not made for it
            print(reason)
    return models


def differences(images: list[Any], exact: list[Any]) -> dict[str, float]:
    """Between 8-bit images, in levels of 255."""
    apart = [np.abs(np.asarray(a).astype(int) - np.asarray(b)) for a, b in zip(images, exact, strict=True)]
    means = [one.mean() for one in apart]
    return {
        "mean": round(float(np.mean(means)), 3),
        "worst": round(float(max(means)), 3),
        "largest": int(max(one.max() for one in apart)),
    }


def report(path: Path) -> None:
    """Write the table of all that is stored, and print it."""
    lines = []
    for file in sorted(path.glob("*.json")):
        stored = json.loads(file.read_text())
        rows = [{**row, "method": row["precision"], "calls": ""} for row in stored["rows"]]
        told = ", ".join(f"{name} {value}" for name, value in stored["settings"].items())
        lines += ["", told, "", f"| {' | '.join((*HEAD, *APART))} |", f"|-{'|-:' * 9}|"]
        for row in rows:
            cells = summary(row, rows[0])
            apart = [str(row["apart"][name]) for name in ("mean", "worst", "largest")]
            lines.append(f"| {' | '.join([cells[0], *cells[-6:], *apart])} |")
    text = "\n".join(lines).lstrip() + "\n\n± are standard errors; differences are in levels of 255.\n"
    write_text(path / "results.md", text)
    print(text)


def main() -> None:
    options = read_options()
    if options.report:
        return report(options.out)
    torch.set_num_threads(options.threads)
    scores = Scores(options.data, options.images)
    how: dict[str, Any] = {} if options.stop is None else {"stop": options.stop}
    settings = {"model": options.model, **how, "images": options.images, "processor": processor()}
    models, group = opened(options.model), scores.group
    images: dict[str, list[Any]] = {precision: [] for precision in models}
    for start in range(0, len(group.seeds), options.batch):
        part = slice(start, start + options.batch)
        for precision, model in models.items():
            images[precision] += model.generate(group.prompts[part], seeds=group.seeds[part], **how).images
        apart = {precision: differences(made, images["float32"])["mean"] for precision, made in images.items()}
        print(f"{len(images['float32'])} of {len(group.seeds)} images, {apart}", flush=True)
    rows = [
        {"precision": precision, "apart": differences(made, images["float32"]), **scores.measure(made)}
        for precision, made in images.items()
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    write_text(options.out / f"{options.model}.json", json.dumps({"settings": settings, "rows": rows}) + "\n")
    report(options.out)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="latent", help="latent or cascade")
    parser.add_argument("--stop", type=int, help="of a cascade: how many of its stages run")
    parser.add_argument("--data", type=Path, default=Path("data/emoji-128"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu-precision"))
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
