"""What models that enlarge make of pictures made small: side by side with bicubic, the truth, and what bounds them.

The layout is that of LDM's table 5 (Rombach et al. 2022, section 4.4). A latent model paints no picture that its first
stage cannot decode: what that makes of the truth itself is in the table, too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from diptych import terminal
from diptych.conditioning.degradations import DegradationConfig, degraded
from diptych.data.dataset import Split
from diptych.data.hashing import mix
from diptych.disk import values_of, write_text
from diptych.errors import UserError
from diptych.evaluation.benchmarks.reconstruction import Rebuilt, measuring, rebuild
from diptych.evaluation.folder import MARK, claimed, require_folder, write_tables
from diptych.evaluation.judge import Judge, load_judge
from diptych.evaluation.metrics import psnr
from diptych.evaluation.retrieval import Mean
from diptych.evaluation.runner import manifest_hash, model_fingerprint
from diptych.evaluation.super_resolution_report import MEASURES, Column, larger_page, page, table
from diptych.evaluation.super_resolution_task import Task, file_name, keep, kept, read_task
from diptych.pictures import grid, save_png, to_images, to_tensor
from diptych.progress import bar
from diptych.weights.fingerprint import fingerprint


def evaluate_super_resolution(
    models: Sequence[tuple[str, Any]],
    data: Path | str,
    out: Path | str,
    *,
    split: Split = "held-out",
    pictures: int = 200,
    seeds: int = 2,
    degradation: Literal["bicubic", "bsr", "bsr-light"] = "bicubic",
    perceptual: Any = None,
    judge: Judge | Path | str | None = None,
    steps: int | None = None,
    sampler: str | None = None,
    seed: int = 0,
    batch: int = 16,
    sheet: int = 8,
    console: Console | None = None,
) -> dict[str, Any]:
    """Enlarge the same pictures by all models; write results.json, results.md, sheet.png, larger.png and painted/.

    What lies in `painted/` from an earlier run, of the same models and settings, is not painted again.

    Args:
        models: names and models that enlarge (latent models, stages), all by one factor to one size, on one device.
        data: shards, or a folder of pictures; of its `split`, so many `pictures`, drawn by `seed`.
        seeds: how often each model paints each picture.
        degradation: how the pictures are made small.
        perceptual, judge: as for `evaluate_reconstruction`.
        steps, sampler: for `generate`; each model's own if none.
        sheet: pictures on the contact sheet.

    Returns:
        What results.json holds. Means over pictures have standard errors over pictures, of the mean over seeds; the
        Fréchet distance, which is one number a seed, has one over seeds. `margin` is the mean difference to bicubic,
        picture by picture.

    Raises:
        UserError: a model does not enlarge, or otherwise than the first; fewer than two pictures; no seed.
    """
    out, console = Path(out), console or terminal.console()
    factor, size = sizes(models)
    if seeds < 1 or pictures < 2:
        raise UserError("at least one seed and two pictures are needed: raise --seeds and --pictures")
    judge = judge if isinstance(judge, Judge) else load_judge(Path(judge) if judge else None)
    kind = DegradationConfig(kind=degradation)
    task = read_task(data, split, size, factor, kind, pictures, seed)
    device = models[0][1].device
    measure = measuring(judge, None if perceptual is None else perceptual.to(device), batch, device)
    options = {name: value for name, value in (("steps", steps), ("sampler", sampler)) if value is not None}
    settings = {"pictures": len(task.truth), "seeds": seeds, "seed": seed, "factor": factor, "size": size, **options}
    head = {
        "data": {"name": Path(data).name, "manifest": manifest_hash(Path(data)), "split": split},
        "settings": {**settings, "degradation": degradation},
    }
    measures = {"judge": judge.fingerprint(), "perceptual": None if perceptual is None else perceptual.name}
    claim(out, head | measures, {name: told_of(model) for name, model in models})
    columns = [Column("bicubic", [task.bicubic()], {})]
    with bar() as progress:
        bar_task = progress.add_task("enlarging", total=len(models) * seeds * len(task.truth))
        for name, model in models:
            column = Column(name, [], told_of(model))
            for number in range(seeds):
                made = {**head, **column.told, "number": number}
                own = out / "painted" / f"{file_name(name)}-{number}.png"
                images = kept(own, made, len(task.truth))
                if images is None:
                    images = painted(model, task, number, batch, options, lambda n: progress.advance(bar_task, n))
                    keep(own, made, images)
                else:
                    progress.advance(bar_task, len(images))
                column.images.append(images)
            columns.append(column)
    columns += bounds(models, task.truth, batch)
    rows = [measured(column, task, measure, kind) for column in columns]
    compare(rows)
    results = {
        **head,
        "frechet": {"features": "judge", "judge": judge.fingerprint()},
        "perceptual": None if perceptual is None else perceptual.name,
        "models": [{key: value for key, value in row.items() if key != "each"} for row in rows],
    }
    told = page(task.low, columns, task.truth, [row["each"]["psnr"] for row in rows], task.captions, sheet)
    save_png(told, out / "sheet.png", optimize=True)
    if (larger := enlarged_further(models, task, options)) is not None:
        results["larger"] = larger[1]
        save_png(larger_page(*larger[0]), out / "larger.png", optimize=True)
    write_text(out / "results.json", json.dumps(results, indent=2) + "\n")
    write_tables(out / "results.md", 200, table(results))
    console.print(table(results))
    console.print(f"the table, all that was painted and contact sheets are in {out}")
    return results


def claim(out: Path, head: dict[str, Any], models: dict[str, Any]) -> None:
    """Make `out` the folder of this comparison, or go on in it, also with more models than before.

    Raises a `UserError` where it holds anything else.
    """
    require_folder(out)
    before = values_of(out / MARK)
    earlier = before.get("models", {})
    if not before or any(models.get(name) != told for name, told in earlier.items()):
        earlier = models
    whole = {"evaluation": "super-resolution", **json.loads(json.dumps(head)), "models": models}
    if {**whole, "models": earlier} == before:  # the models of before, and more
        write_text(out / MARK, json.dumps(whole, indent=2) + "\n")
    else:
        claimed(out, whole, ("results.json", "results.md", "sheet.png", "larger.png", "painted"))


def sizes(models: Sequence[tuple[str, Any]]) -> tuple[int, int]:
    """By which factor, and to how many pixels a side, all models enlarge."""
    if len({name for name, _ in models}) < len(models) or not models:
        raise UserError("name each model once, and at least one")
    found = {}
    for name, model in models:
        low = getattr(model, "low_size", None)
        if low is None or not hasattr(model, "device"):
            raise UserError(f"{name} does not enlarge pictures: give latent models and stages that do")
        found[name] = (model.config.size // low, model.config.size)
    first, *others = found.items()
    for name, other in others:
        if other != first[1]:
            told = [f"{who} enlarges by {by} to {to} px" for who, (by, to) in (first, (name, other))]
            raise UserError(f"models that enlarge alike are compared, and {', '.join(told)}")
    return first[1]


def told_of(model: Any) -> dict[str, Any]:
    parameters = sum(p.numel() for p in model.parameters())
    return {"fingerprint": model_fingerprint(model), "parameters": parameters}


def painted(model: Any, task: Task, number: int, batch: int, options: dict[str, Any], advance: Any) -> list:
    """What a model makes of all small pictures, the `number`-th time."""
    images: list[Image.Image] = []
    for start in range(0, len(task.low), batch):
        part = slice(start, start + batch)
        own = [mix(one, number) for one in task.seeds[part]]
        images += model.generate(task.captions[part], seeds=own, low=task.low[part], **options).images
        advance(len(task.low[part]))
    return images


def bounds(models: Sequence[tuple[str, Any]], truth: list[Image.Image], batch: int) -> list[Column]:
    """What each first stage makes of the truth."""
    stages: dict[str, tuple[str, Any]] = {}
    for name, model in models:
        if (stage := getattr(model, "autoencoder", None)) is not None:
            stages.setdefault(fingerprint(stage), (name, stage))
    found = []
    for name, stage in stages.values():
        row = Rebuilt(f"first stage{f' of {name}' if len(stages) > 1 else ''}, of the truth", {})
        for start in range(0, len(truth), batch):
            rebuild(stage, [(row, stage)], truth[start : start + batch], again=False)
        found.append(Column(row.name, [row.images], {"parameters": sum(p.numel() for p in stage.parameters())}))
    return found


def measured(column: Column, task: Task, measure: Any, kind: DegradationConfig) -> dict[str, Any]:
    """A row of the table; under "each" what was measured of each picture (N,), the mean over seeds."""
    each, distances = [], []
    for images in column.images:
        means, values = measure(task.truth, images)
        distances.append(means["frechet"])
        if kind.kind == "bicubic":  # the only way of making small that draws nothing
            again = to_images(degraded(to_tensor(images), task.factor, kind, torch.zeros(len(images))))
            values = [{**v, "consistency": psnr(a, b)} for v, a, b in zip(values, again, task.low, strict=True)]
        each.append(values)
    own: dict[str, Tensor] = {}
    for name in MEASURES:
        if name in each[0][0]:
            values = [[value[name] for value in seed] for seed in each]
            own[name] = torch.tensor(values, dtype=torch.float64).mean(0)
    frechet = torch.tensor(distances)
    spread = Mean.of(frechet)._asdict() if len(frechet) > 1 else {"value": distances[0], "error": None, "count": 1}
    return {
        "name": column.name,
        **column.told,
        **{name: Mean.of(values)._asdict() for name, values in own.items()},
        "frechet": spread,
        "each": own,
    }


def compare(rows: Sequence[dict[str, Any]]) -> None:
    """Write into each row but the first, bicubic's, what it is ahead of that, picture by picture."""
    for row in rows[1:]:
        row["margin"] = {name: Mean.of(row["each"][name] - own)._asdict() for name, own in rows[0]["each"].items()}


def enlarged_further(models: Sequence[tuple[str, Any]], task: Task, options: dict[str, Any]) -> Any:
    """One picture larger than those of training, of another shape, by all latent models; none where there is none.

    Four small pictures stand together, of which the middle is cut out, three quarters high: what is painted is twice as
    wide as in training.
    """
    latent = [(name, model) for name, model in models if getattr(model.config, "low_factor", None)]
    if not latent or len(task.low) < 4:
        return None
    side = task.low[0].width
    cut, wide = (0, side // 4, 2 * side, 2 * side - side // 4), task.factor
    low, truth = (grid(images[:4], 2, gap=0) for images in (task.low, task.truth))
    low, truth = low.crop(cut), truth.crop((0, wide * cut[1], wide * cut[2], wide * cut[3]))
    made = [
        (name, model.generate("a larger picture", seeds=[0], low=low, **options).images[0]) for name, model in latent
    ]
    made.insert(0, ("bicubic", low.resize(truth.size, Image.Resampling.BICUBIC)))
    told = {"low": list(low.size), "size": list(truth.size), "psnr": {name: psnr(one, truth) for name, one in made}}
    return (low, made, truth), told
