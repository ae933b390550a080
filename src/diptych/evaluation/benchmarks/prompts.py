"""The study: a model paints prompts that it has seen, pairs that it has not, and scenes; the judge says what it sees.

Real renderings of the same prompts go before the same judge. Those that were kept out of everyone's training are the
ceiling: what a perfect painter of unseen drawings would score. Generated pictures scored against each other's prompts,
and plain chance, are the floor, so that the measure is seen to fail where it should.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from diptych import terminal
from diptych.data.dataset import DataConfig, open_dataset
from diptych.disk import write_text
from diptych.evaluation import report
from diptych.evaluation.folder import claimed, write_tables
from diptych.evaluation.judge import Judge
from diptych.evaluation.metrics import frechet_distance
from diptych.evaluation.prompt_sets import Group, choose, concept_of, is_scene
from diptych.evaluation.retrieval import concept_vectors
from diptych.evaluation.runner import (
    add_real,
    classes_of,
    described,
    manifest_hash,
    model_fingerprint,
    opened,
    paint,
    prompts_hash,
)
from diptych.evaluation.scores import pooled, score_pairs, score_scenes, share_of
from diptych.pictures import save_png


def evaluate(
    model: Any,
    data: Path | str,
    out: Path | str,
    *,
    pictures: int = 400,
    scenes: int = 25,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    stop: int | None = None,
    seed: int = 0,
    batch: int = 16,
    judge: Judge | Path | str | None = None,
    sheet: int = 48,
    name: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Score a model, print a table, and write results.json, results.md, pictures.jsonl and contact sheets into `out`.

    Args:
        model: anything with `generate`, or what `diptych.load` takes.
        data: the data set, with its held-out part.
        pictures: how many seen and how many held-out (concept, style) pairs, drawn by `seed`.
        scenes: how many held-out scenes of each category.
        steps, guidance, sampler: for `generate`; the model's own defaults if none.
        stop: for a cascade, how many of its stages to run; all if none.
        batch: pictures painted at a time; they do not depend on it.
        seed: fixes the prompts and the seed of each picture.
        judge: another judge than the one that ships with diptych, or its folder.
        sheet: pictures on each contact sheet, the first ones.
        name: what the report calls the model; its path or class if none.

    Returns:
        What results.json holds: all that is needed to repeat the study, and the scores as shares with standard errors.

    Raises:
        UserError: the data has no drawings of one of the two splits, or there is no judge.
    """
    out, console = Path(out), console or terminal.console()
    model, judge, name = opened(model, judge, name)
    dataset = open_dataset(DataConfig(path=str(data), size=judge.config.size, split="all"))
    metas = [dataset.meta(i) for i in range(len(dataset))]
    concepts = sorted({concept_of(m) for m in metas if not is_scene(m)})
    groups, scene_groups = choose(metas, pictures, scenes, seed, classes=classes_of(model))
    given = {"steps": steps, "guidance": guidance, "sampler": sampler, "stop": stop}
    head = {
        "evaluation": "prompts",
        "model": {"name": name, "fingerprint": model_fingerprint(model)},
        "judge": described(judge),
        "data": {"name": Path(data).name, "manifest": manifest_hash(Path(data)), "prompts": prompts_hash(groups)},
        "settings": {"pictures": pictures, "scenes": scenes, "seed": seed, **given},
    }
    sheets = [f"{group.name}.png" for group in groups] + ["scenes.png"]
    if (done := claimed(out, head, ("results.json", "results.md", "pictures.jsonl", *sheets))) is not None:
        show(done, out, console)
        return done
    everything = [*groups, *scene_groups]
    used = paint(model, everything, batch, **given)
    add_real(everything, dataset)

    vectors = concept_vectors(judge, concepts)
    records: list[dict[str, Any]] = []
    found = {g.name: score_pairs(judge, g, concepts, vectors, records) for g in groups}
    ceiling = found["held-out"]["real"]
    for scores in found.values():
        scores["of_ceiling"] = share_of(scores["generated"], ceiling)
        scores["of_real"] = share_of(scores["generated"], scores["real"])
    drawn = [judge.features(g.real).numpy() for g in groups]
    scene_scores = {g.name: score_scenes(judge, g, records) for g in scene_groups}
    if scene_scores:
        scene_scores["all"] = pooled(scene_scores)
    results = {
        "model": {"name": name, "fingerprint": model_fingerprint(model)},
        "judge": described(judge),
        "data": {"name": Path(data).name, "manifest": manifest_hash(Path(data))},
        "settings": {"pictures": pictures, "scenes": scenes, "seed": seed, **used},
        "concepts": len(concepts),
        "ceiling": "real held-out drawings, which neither the judge nor the model was trained on",
        "groups": found,
        "frechet_between_real": frechet_distance(*drawn) if min(map(len, drawn)) > 1 else None,
        "scenes": scene_scores,
    }
    write_text(out / "pictures.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    write_sheets(out, groups, scene_groups, records, sheet)
    write_text(out / "results.json", json.dumps(results, indent=2) + "\n")  # last: it says that the rest is there
    show(results, out, console)
    return results


def write_sheets(
    out: Path, groups: Sequence[Group], scenes: Sequence[Group], records: Sequence[dict[str, Any]], size: int
) -> None:
    """One contact sheet a group, the generated picture left and the real one right; scenes share one."""
    rows = iter(records)
    for group in groups:
        own = [next(rows) for _ in group.seeds]
        cells = [
            report.Cell(
                prompt=r["prompt"],
                pictures=(group.generated[i], group.real[i]),
                right=(r["rank"] == 0, r["real_rank"] == 0),
                notes=(r["guesses"][0], r["real_guesses"][0]),
            )
            for i, r in enumerate(own[:size])
        ]
        save_png(report.contact_sheet(cells), out / f"{group.name}.png")
    cells = []
    for group in scenes:
        own = [next(rows) for _ in group.seeds]
        cells += [
            report.Cell(
                prompt=r["prompt"],
                pictures=(group.generated[i], group.real[i]),
                right=(r["right"], r["real_right"]),
                notes=(group.name, "real"),
            )
            for i, r in enumerate(own[: max(1, size // len(scenes))])
        ]
    if cells:
        save_png(report.contact_sheet(cells), out / "scenes.png")


def show(results: dict[str, Any], out: Path, console: Console) -> None:
    """Print the tables, and keep them as results.md."""
    tables = list(report.tables(results))
    write_tables(out / "results.md", 160, *tables)
    for table in tables:
        console.print(table)
    console.print(f"contact sheets, tables and every picture's score are in {out}")
