"""What fewer calls of the network cost: fewer steps, guidance within an interval, cached features, distilled students.

    python -m benchmarks.few_steps --data data/emoji-128
    python -m benchmarks.few_steps --methods "full model, 24 steps" --student "4-step student=runs/emoji-4-steps"
    python -m benchmarks.few_steps --time                  seconds an image of each method, interleaved
    python -m benchmarks.few_steps --report                the table again, from what is stored

Each method generates the seen prompts of `diptych evaluate` from the same seeds. Measured by the judge in the package:
naming (top-1, top-5), alignment, and the Fréchet distance on its features from the real drawings, with standard errors;
and the share of the full model's top-5 and alignment that a method keeps, with errors by a bootstrap over the prompts,
which both have in common. A method is stored when it is measured: a rerun goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

import diptych
from benchmarks.common import processor, run_script
from diptych.core.disk import write_text
from diptych.core.errors import UserError
from diptych.data.caption_text import concept_of
from diptych.evaluation.prompt_sets import PromptGroup, choose_prompts
from diptych.evaluation.runner import open_data
from diptych.evaluation.scores import bootstrap_ratio, real_images
from diptych.metrics.frechet import frechet_distance, frechet_error
from diptych.models.judge import load_judge
from diptych.models.retrieval import Mean, Share, concept_vectors, ranks

FULL = "full model, 24 steps"
METHODS: dict[str, dict[str, Any]] = {
    FULL: {},
    "8 steps": {"steps": 8},
    "4 steps": {"steps": 4},
    "8 steps, guidance 0.25:1": {"steps": 8, "guidance_interval": "0.25:1"},
    "12 steps, cache every 2nd": {"steps": 12, "cache_interval": 2},
    "16 steps, unipc": {"steps": 16, "sampler": "unipc"},
    "8 steps, unipc": {"steps": 8, "sampler": "unipc"},
    "4 steps, unipc": {"steps": 4, "sampler": "unipc"},
    "6 steps, unipc": {"steps": 6, "sampler": "unipc"},
    "8 steps, unipc, guidance 0.25:1": {"steps": 8, "sampler": "unipc", "guidance_interval": "0.25:1"},
    "cache every 2nd": {"cache_interval": 2},
    "guidance 0.25:1": {"guidance_interval": "0.25:1"},
    "12 steps": {"steps": 12},
    "cache every 3rd": {"cache_interval": 3},
    "guidance 0:0.75": {"guidance_interval": "0:0.75"},
    "8 steps, euler": {"steps": 8, "sampler": "euler"},
}
"""Of the latent default: dpmpp-2m, guidance 7, 24 steps."""


class Scores:
    """The measures of images for the prompts of a group."""

    def __init__(self, data: Path, images: int) -> None:
        self.judge = load_judge(None)
        dataset, metas, concepts = open_data(data, self.judge)
        (group,), _ = choose_prompts(metas, images, 0, seed=0, splits=("seen",))
        self.group: PromptGroup = group
        self.vectors = concept_vectors(self.judge, concepts)
        self.truth = torch.tensor([concepts.index(concept_of(meta)) for meta in group.metas])
        self.real = self.judge.features(real_images(dataset, group.indices, 128)).numpy()

    def measure(self, images: list[Any]) -> dict[str, Any]:
        features = self.judge.features(images)
        vectors = self.judge.place(features)
        return {
            "ranks": ranks(vectors, self.vectors, self.truth).tolist(),
            "alignment": [round(one, 5) for one in (vectors * self.vectors[self.truth]).sum(1).tolist()],
            "frechet": frechet_distance(features.numpy(), self.real),
            "frechet_error": frechet_error(features.numpy(), self.real),
        }


def generate(
    model: Any, group: PromptGroup, batch: int, half: bool, **options: Any
) -> tuple[list[Any], dict[str, Any]]:
    """The images of a group, and the metadata of the last."""
    images, row = [], {}
    for start in range(0, len(group.seeds), batch):
        part = slice(start, start + batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            result = model.generate(group.prompts[part], seeds=group.seeds[part], **options)
        images, row = images + result.images, result.metadata[-1]
    return images, row


def seconds(model: Any, group: PromptGroup, options: dict[str, Any]) -> float:
    """Processor seconds of an image, of a batch of 4 in float32 on one thread."""
    began = time.process_time()
    model.generate(group.prompts[:4], seeds=group.seeds[:4], **options)
    return (time.process_time() - began) / 4


def summary(row: dict[str, Any], full: dict[str, Any]) -> list[str]:
    """The cells of a method in the table."""
    count = len(row["ranks"])  # a method may have been measured on the first prompts alone
    rank, before = torch.tensor(row["ranks"]), torch.tensor(full["ranks"])[:count]
    top1, top5 = Share.of(rank < 1), Share.of(rank < 5)
    alignment = torch.tensor(row["alignment"], dtype=torch.float64)
    kept5, _ = bootstrap_ratio((before < 5).double(), (rank < 5).double())
    kept, _ = bootstrap_ratio(torch.tensor(full["alignment"], dtype=torch.float64)[:count], alignment)
    mean = Mean.of(alignment)

    def percent(one: Any) -> str:
        return "" if one is None else f"{100 * one['value']:.0f}±{100 * one['error']:.0f}"

    return [
        row["method"],
        str(count),
        str(row["calls"]),
        f"{row['seconds']:.2f}" if "seconds" in row else "",
        f"{100 * top1.value:.1f}±{100 * top1.error:.1f}",
        f"{100 * top5.value:.1f}±{100 * top5.error:.1f}",
        f"{mean.value:.3f}±{mean.error:.3f}",
        f"{row['frechet']:.1f}±{row['frechet_error']:.1f}" if count == len(full["ranks"]) else "",
        percent(kept5) if row is not full else "100",
        percent(kept) if row is not full else "100",
    ]


HEAD = [
    "method",
    "images",
    "calls",
    "s",
    "top-1, %",
    "top-5, %",
    "alignment",
    "Fréchet",
    "of full: top-5, %",
    "alignment, %",
]


def report(out: Path) -> None:
    """Write results.md from what is stored, and print it."""
    stated, rows = stored(out)
    full = next((row for row in rows if row["method"] == FULL), None)
    if full is None:
        raise UserError(f"nothing of the full model is stored in {out}: run the study first")
    lines = ["| " + " | ".join(HEAD) + " |", "|-" + "|-:" * (len(HEAD) - 1) + "|"]
    lines += ["| " + " | ".join(summary(row, full)) + " |" for row in rows]
    under = (
        "Of full: on the same prompts. Calls: images that the U-Net processes for one; a shallow pass of a cache "
        f"counts as one. s: processor seconds of an image in float32 on one thread of {stated['processor']}, the "
        "least of interleaved rounds. The U-Net of images that were scored: "
        f"{stated['precision']}. ± are standard errors."
    )
    text = "\n".join([*lines, "", under]) + "\n"
    write_text(out / "results.md", text)
    print(text)


def stored(out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    path = out / "results.json"
    values = json.loads(path.read_text()) if path.is_file() else {}
    return values.get("settings", {}), values.get("rows", [])


def save(out: Path, settings: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    write_text(out / "results.json", f'{{"settings": {json.dumps(settings)},\n "rows": [\n{lines}\n]}}\n')


def main() -> None:
    options = read_options()
    unknown = [name for name in options.methods if name not in METHODS]
    if unknown:
        raise UserError(f"no method is called {unknown[0]!r}: choose among {', '.join(map(repr, METHODS))}")
    methods: dict[str, tuple[str, dict[str, Any]]] = {name: (options.model, METHODS[name]) for name in options.methods}
    for student in options.student:
        name, _, source = student.partition("=")
        methods[name] = (source, {})
    stated, rows = stored(options.out)
    if not options.report:
        torch.set_num_threads(1)
        models = {source: diptych.load(source) for source in dict.fromkeys(source for source, _ in methods.values())}
        scores = Scores(options.data, options.images)
        half = options.precision == "bf16"
        settings = {"processor": processor(), "precision": options.precision}
        if stated and stated != settings:
            raise UserError(f"{options.out} holds results of {stated}: name another folder")
        if options.time:
            for _ in range(options.rounds):
                for row in rows:
                    if row["method"] in methods:
                        source, given = methods[row["method"]]
                        took = seconds(models[source], scores.group, given)
                        row["seconds"] = min(took, row.get("seconds", took))
                save(options.out, settings, rows)
        else:
            for name, (source, given) in methods.items():
                if any(row["method"] == name for row in rows):
                    continue
                images, metadata = generate(models[source], scores.group, options.batch, half, **given)
                row = {"method": name, "options": given, "calls": metadata["cost"]["calls"]}
                rows.append({**row, **scores.measure(images)})
                save(options.out, settings, rows)
                print(name, *summary(rows[-1], rows[0])[4:], flush=True)
    report(options.out)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="latent")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), metavar="NAME", help="default: all")
    parser.add_argument("--student", action="append", default=[], help="NAME=run or model folder; may be repeated")
    parser.add_argument("--data", type=Path, default=Path("data/emoji-128"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/few-steps"))
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the U-Net, by autocast")
    parser.add_argument("--time", action="store_true", help="measure seconds of what is stored")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--report", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
