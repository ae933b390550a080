"""Three kinds of guidance of one model: by a classifier, by CLIP, and without a classifier.

Dhariwal & Nichol 2021, section 4; GLIDE: Nichol et al. 2021, figure 6; Ho & Salimans 2022.

    python -m benchmarks.guidance --data data/emoji-64
    python -m benchmarks.guidance --report                  table, plot and sheet again, from what is stored

The model is told concepts ("red apple") of drawings that it has seen. A noisy classifier (`diptych train
emoji-classifier`), a noisy pair (`emoji-noisy-clip`) and an ordinary pair that sees the decoded estimates
(`emoji-features`) guide it where it is told nothing, and where classifier-free guidance has a small weight already.
Alignment and naming by the judge in the package against the Fréchet distance from the real drawings on its features;
that judge never guides. Every cell paints the same prompts from the same seeds, and is stored when it is measured: a
rerun goes on. Errors are over the seeds, each a set of prompts of its own. Writes seed-N/, results.json, results.md,
plot.png and sheet.png.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import diptych
from diptych.core.disk import write_text
from diptych.core.errors import UserError
from diptych.evaluation.condition_sweep import ConditionSweep, Key, seen_drawings, sweep_head
from diptych.evaluation.prompt_sets import PromptGroup, concept_of
from diptych.evaluation.report import image_table
from diptych.evaluation.runner import run_study
from diptych.models.judge import load_judge
from diptych.models.pair_guide import PairGuide
from diptych.pretrained.load_guide import open_guide

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for the next line, where this is run as a file
from benchmarks.common import axes, run_script, save

FREE = "classifier-free"
SCALES: dict[str, tuple[float, ...]] = {
    FREE: (0.0, 1.0, 2.0, 4.0, 7.0),
    "classifier": (1.0, 3.0, 10.0, 30.0),
    "noisy CLIP": (1.0, 3.0, 10.0, 30.0),
    "CLIP": (1.0, 3.0, 10.0),
}
"""Of each guide; of classifier-free guidance the weight: 0 tells the model nothing, 1 is its plain conditional."""
LITTLE = 2.0
"""The weight of classifier-free guidance on top of which guides are tried once more."""
MEASURES = {"alignment": ("value", 3), "top5": ("value", 3), "frechet": (None, 2)}
LINE_STYLES = {
    FREE: ("#333333", "o"),
    "classifier": ("#D55E00", "s"),
    "noisy CLIP": ("#0072B2", "^"),
    "CLIP": ("#009E73", "D"),
}
SHOWN = 6
"""Images in a row of the sheet."""


def main() -> None:
    options = read_options()
    if not options.report:
        model = diptych.load(options.model, options.device)
        guides = opened(options)
        for seed in range(options.seed, options.seed + options.seeds):
            study(model, guides, seed, options)
    report(options.out)


def opened(options: argparse.Namespace) -> dict[str, Any]:
    """The guides that there are, none of which may be the judge that measures."""
    found = {}
    for name in ("classifier", "noisy CLIP", "CLIP"):
        source = getattr(options, name.replace(" ", "_").lower())
        if source != "none":
            found[name] = open_guide(source)
    for name, guide in found.items():
        if isinstance(guide, PairGuide) and getattr(guide.pair, "fingerprint", str)() == load_judge().fingerprint():
            raise UserError(f"{name} is the judge that measures: guide by another (`diptych train emoji-features`)")
    return found


def study(model: Any, guides: dict[str, Any], seed: int, options: argparse.Namespace) -> None:
    """Paint and measure what is missing of one seed's cells."""
    scores = seen_drawings(
        options.data,
        load_judge().to(model.device),
        4 * options.images,  # of which some are of concepts that the classifier does not know
        1000 * seed,  # its images count on from there
        None,
    )
    stated = {"seed": 1000 * seed, "painted": options.images, "steps": options.steps}
    head = sweep_head("guides", model, options.model, options.data, scores, stated)
    scores.group = spoken(scores.group, guides.get("classifier"), options.images)

    def settings(key: Key) -> dict[str, Any]:
        own = {} if options.steps is None else {"steps": options.steps}
        if key["way"] == FREE:
            return {**own, "guidance": key["scale"]}
        return {**own, "guidance": key["free"], "guides": ((guides[key["way"]], key["scale"]),)}

    sweep = ConditionSweep(
        head=head,
        batch=options.batch,
        sheet=min(SHOWN, len(scores.group.seeds)),
        model=model,
        scores=scores,
        points=list(keys(guides)),
        options=settings,
    )
    run_study(sweep, options.out / f"seed-{seed}")


def keys(guides: Iterable[str]) -> Iterable[Key]:
    """Every cell, the baselines first."""
    for way in (FREE, *guides):
        for free in (0.0,) if way == FREE else (0.0, LITTLE):
            yield from ({"way": way, "free": free, "scale": scale} for scale in SCALES[way])


def spoken(group: PromptGroup, classifier: Any, count: int) -> PromptGroup:
    """The first so many whose concept the classifier knows, asked for by that alone, which every guide can read."""

    def known(index: int) -> bool:
        try:
            return classifier is None or classifier.number(concept_of(group.metas[index])) is not None
        except UserError:
            return False

    chosen = [index for index in range(len(group.seeds)) if known(index)][:count]
    picked = {field: [getattr(group, field)[i] for i in chosen] for field in ("indices", "metas", "seeds")}
    return PromptGroup(group.name, **picked, named=True)


def report(out: Path) -> None:
    """Table, plot and sheet from the seeds that are stored."""
    folders = sorted(path.parent for path in out.glob("seed-*/results.json"))
    if not folders:
        raise UserError(f"nothing is stored in {out}: run the study first")
    found = [json.loads((folder / "results.json").read_text()) for folder in folders]
    rows = [summed([one[i] for one in cells]) for cells in [shared(found)] for i in range(len(cells[0]))]
    references = {name: summed([one["references"][name] for one in found]) for name in ("real", "chance")}
    told = {"seeds": len(found), **found[0]["settings"], "rows": rows, "references": references}
    write_text(out / "results.json", json.dumps(told, indent=2) + "\n")
    text = table(rows, references, told)
    write_text(out / "results.md", text)
    print(text)
    draw(rows, out / "plot.png")
    if (folders[0] / "cells").is_dir():  # else the sheet stays as it is: its images were not kept
        sheet(rows, folders[0], out / "sheet.png")


def shared(found: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Of each seed, the cells that all seeds have, in one order."""
    ordered = sorted(found[0]["cells"], key=lambda cell: [list(SCALES).index(cell["way"]), cell["free"], cell["scale"]])
    names = [cell["strip"] for cell in ordered if all(cell["strip"] in names_of(one) for one in found)]
    return [[next(cell for cell in one["cells"] if cell["strip"] == name) for name in names] for one in found]


def names_of(results: dict[str, Any]) -> set[str]:
    return {cell["strip"] for cell in results["cells"]}


def summed(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """The same cell of all seeds: means and standard errors over them; of one seed, the errors over its images."""
    row = {name: cells[0][name] for name in ("way", "free", "scale", "strip") if name in cells[0]}
    for measure, (inner, _) in MEASURES.items():
        if (first := cells[0].get(measure)) is None:
            continue
        values = [cell[measure] if inner is None else cell[measure][inner] for cell in cells]
        own = first.get("error") if inner is not None else None
        error = own if len(values) == 1 else stdev(values) / math.sqrt(len(values))
        row[measure] = {"value": mean(values), "error": error}
    return {**row, **(cells[0]["told"]["cost"] if "told" in cells[0] else {})}


def title(row: dict[str, Any]) -> str:
    return row["way"] + (f" + free {row['free']:g}" if row["free"] else "")


def table(rows: list[dict[str, Any]], references: dict[str, Any], told: dict[str, Any]) -> str:
    head = ["guidance", "scale", "alignment", "top-5", "Fréchet", "calls", "gradients"]
    lines = [" | ".join(head), " | ".join(["-"] + ["-:"] * (len(head) - 1))]

    def measured(row: dict[str, Any]) -> list[str]:
        cells = []
        for measure, (_, places) in MEASURES.items():
            one = row.get(measure)
            error = "" if one is None or one["error"] is None else f"±{one['error']:.{places}f}"
            cells.append("" if one is None else f"{one['value']:.{places}f}{error}")
        return cells

    for row in rows:
        cost = [str(row["calls"]), str(row["gradients"])]
        lines.append(" | ".join([title(row), f"{row['scale']:g}", *measured(row), *cost]))
    for name, row in references.items():
        lines.append(" | ".join([name, "", *measured(row), "", ""]))
    seeds, painted = told["seeds"], told["painted"]
    under = f"{painted} images a cell and seed, {seeds} seeds. Calls of the U-Net and gradients of guides, an image."
    return "\n".join(f"| {line} |" for line in lines) + f"\n\n{under}\n"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Alignment against distance: up and to the left is better; dashed with classifier-free guidance beneath."""
    figure, axis = axes(figsize=(7, 5))
    for name in dict.fromkeys(title(row) for row in rows):
        line = [row for row in rows if title(row) == name]
        colour, marker = LINE_STYLES[line[0]["way"]]
        x, y = ([row[measure]["value"] for row in line] for measure in ("frechet", "alignment"))
        errors = [[row[measure]["error"] or 0 for row in line] for measure in ("frechet", "alignment")]
        dash = "--" if line[0]["free"] else "-"
        axis.errorbar(x, y, errors[1], errors[0], label=name, color=colour, marker=marker, ls=dash, lw=1, ms=4)
        for row, left, up in zip(line, x, y, strict=True):
            axis.annotate(f"{row['scale']:g}", (left, up), (4, 4), textcoords="offset points", fontsize=7, color=colour)
    axis.set(xlabel="Fréchet distance from real drawings", ylabel="alignment with the prompt", xscale="log")
    axis.legend(fontsize=7)
    save(figure, path, 110)


def sheet(rows: list[dict[str, Any]], folder: Path, path: Path) -> None:
    """The same prompts by each way, at the scale of its highest alignment, and told nothing."""
    from PIL import Image

    def strip(name: str) -> list[Image.Image]:
        with Image.open(folder / "cells" / f"{name}.png") as one:
            side = one.height
            return [one.crop((x, 0, x + side, side)) for x in range(0, one.width, side)]

    lines = [("told nothing", [row for row in rows if row["way"] == FREE and row["scale"] == 0])]
    lines += [(name, [row for row in rows if title(row) == name]) for name in dict.fromkeys(map(title, rows))]
    best = [(name, max(found, key=lambda row: row["alignment"]["value"])) for name, found in lines if found]
    shown = [(f"{name.split(' + ')[0]} {row['scale']:g}"[:15], [strip(row["strip"])]) for name, row in best]
    notes = [f"a guide's second row: classifier-free guidance of {LITTLE:g} beneath"]
    image_table([""], [*shown, ("real", [strip("real")])], notes, 64).quantize(128).save(path, optimize=True)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, default=Path("data/emoji-64"))
    parser.add_argument("--out", type=Path, default=Path("runs/guidance"))
    parser.add_argument("--model", default="latent")
    parser.add_argument("--classifier", default="runs/emoji-classifier", help="or none")
    parser.add_argument("--noisy-clip", default="runs/emoji-noisy-clip", help="or none")
    parser.add_argument("--clip", default="runs/emoji-features", help="a pair of clean images and text, or none")
    parser.add_argument("--images", "--pictures", type=int, default=64, help="of each cell and seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--steps", type=int, help="of sampling (default: the model's own)")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--report", action="store_true", help="from what is stored, nothing painted")
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
