"""The study: a model paints prompts that it has seen, pairs that it has not, and scenes; the judge says what it sees.

Real renderings of the same prompts go before the same judge. Those that were kept out of everyone's training are the
ceiling: what a perfect painter of unseen drawings would score. Generated pictures scored against each other's prompts,
and plain chance, are the floor, so that the measure is seen to fail where it should.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from torch import nn

import diptych
from diptych import terminal
from diptych.conditioning.classes import ClassConfig
from diptych.data.dataset import DataConfig, PictureDataset, open_dataset
from diptych.disk import write_text
from diptych.evaluation import report
from diptych.evaluation.folder import claimed, write_tables
from diptych.evaluation.judge import Judge, load_judge
from diptych.evaluation.metrics import frechet_distance
from diptych.evaluation.prompts import Group, choose, concept_of, is_scene
from diptych.evaluation.retrieval import TEMPLATES, concept_vectors
from diptych.evaluation.scores import pooled, score_pairs, score_scenes, share_of
from diptych.pictures import save_png
from diptych.progress import bar
from diptych.weights.fingerprint import fingerprint


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


def opened(model: Any, judge: Judge | Path | str | None, name: str | None) -> tuple[Any, Judge, str]:
    """The model, the judge, and what a report calls the model."""
    judge = judge if isinstance(judge, Judge) else load_judge(Path(judge) if judge else None)
    name = name or (str(model) if isinstance(model, (str, Path)) else type(model).__name__)
    return (diptych.load(str(model)) if isinstance(model, (str, Path)) else model), judge, name


def classes_of(model: Any) -> Sequence[str]:
    """The names of the classes that a model is told; none of one that reads words, or nothing."""
    text = getattr(getattr(model, "config", None), "text", None)
    return text.names if isinstance(text, ClassConfig) else ()


def described(judge: Judge) -> dict[str, Any]:
    """The judge in a report."""
    return {"fingerprint": judge.fingerprint(), "templates": list(TEMPLATES), "resize": "antialiased bilinear"}


def paint(model: Any, groups: Sequence[Group], batch: int, **options: Any) -> dict[str, Any]:
    """Generate every picture, with a progress bar; returns the settings that the model says it used.

    options: for `generate`; those that are None are left to the model.
    """
    given = {k: v for k, v in options.items() if v is not None}
    used: dict[str, Any] = dict(given)
    with bar() as progress:
        task = progress.add_task("painting", total=sum(len(g.seeds) for g in groups))
        for group in groups:
            for images, told in batches(model, group, batch, **given):
                group.generated += images
                known = (*options, "stages", "size", "temperature", "top_k", "top_p")
                used |= {k: told[k] for k in known if k in told}
                progress.advance(task, len(images))
    return used


def batches(
    model: Any, group: Group, batch: int, each: Mapping[str, Sequence] | None = None, **options: Any
) -> Iterator[tuple[list[Image.Image], dict[str, Any]]]:
    """The pictures of a group, a batch at a time, with what the model says about the first of them.

    each: arguments of `generate` with one value for each picture; `options` are those for all.
    """
    for start in range(0, len(group.seeds), batch):
        part = slice(start, start + batch)
        own = {name: list(values[part]) for name, values in (each or {}).items()}
        result = model.generate(group.prompts[part], seeds=group.seeds[part], **own, **options)
        yield result.images, result.metadata[0] if isinstance(result.metadata, list) else result.metadata


def model_fingerprint(model: Any) -> str | None:
    """Of all its weights, a frozen first stage and every stage of a cascade included; none where there are none."""
    found = (model, getattr(model, "autoencoder", None), *getattr(model, "networks", ()))
    parts = [part for part in found if isinstance(part, nn.Module)]
    return fingerprint(*parts) if parts else None


def add_real(groups: Sequence[Group], dataset: PictureDataset, size: int | None = None) -> None:
    """The real rendering of each prompt, at `size`, or at that of the generated ones: both are then resized alike."""
    size = size or groups[0].generated[0].width
    if size != dataset.config.size:
        dataset = open_dataset(DataConfig.from_dict({**dataset.config.to_dict(), "size": size}))
    for group in groups:
        group.real = [Image.fromarray(dataset[i].picture) for i in group.indices]


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


def prompts_hash(groups: Sequence[Group]) -> str:
    """Of what is painted: data without a manifest is told apart by it."""
    return hashlib.sha256("\n".join(prompt for group in groups for prompt in group.prompts).encode()).hexdigest()[:16]


def manifest_hash(data: Path) -> str | None:
    """What the data says it holds, as a hash; none where it says nothing."""
    try:
        return json.loads((data / "manifest.json").read_text()).get("sha256")
    except (OSError, ValueError):
        return None
